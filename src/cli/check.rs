//! `winnowd check` and `winnowd migrate`.

use anyhow::Context;

use super::{ConfigArguments, load_model, print, runtime};
use crate::catalog::{Access, SqlCatalog};
use crate::config::{Bootstrap, DEFAULT_TOML, RawDistribution};

#[derive(clap::Args)]
pub struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Print the built-in configuration, with comments, and do nothing else
    #[arg(long)]
    defaults: bool,
}

pub fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    if arguments.defaults {
        return print(DEFAULT_TOML);
    }
    let config = arguments.config.load()?;
    let model = load_model(&config)?;
    let bootstrap = match &config.kafka.bootstrap {
        Bootstrap::Embedded { .. } => "the in-process cluster",
        Bootstrap::Servers(servers) => servers,
    };
    let selector = &config.selector;
    println!("The configuration is valid.");
    println!("  pipeline   {} (group {})", config.pipeline, config.kafka.group);
    println!("  from       {} on {bootstrap}", config.kafka.topics.join(", "));
    println!(
        "  selects    {} of every window by {}{}, temperature {}, seed {}",
        selector.fraction,
        selector.kind.as_str(),
        if selector.length_normalise { " of mean weights" } else { "" },
        selector.temperature,
        selector.seed
    );
    println!("  model      {}", model.id);
    let documents = |side: &crate::score::Side| side.provenance.documents;
    let (target, raw) = (documents(&model.model.targets[0].side), documents(&model.model.raw));
    println!("             {target} target and {raw} raw documents");
    if let RawDistribution::Adaptive { half_life_ngrams, prior_ngrams, .. } = config.raw {
        println!("             raw follows the stream: half-life {half_life_ngrams} n-grams, prior {prior_ngrams}");
    }
    println!("  to         {}", config.sink.url);
    println!("  catalog    {}", config.catalog.url);
    Ok(())
}

pub fn migrate(arguments: &ConfigArguments) -> anyhow::Result<()> {
    let config = arguments.load()?;
    let url = &config.catalog.url;
    let applied = runtime().context("cannot start threads")?.block_on(async {
        let catalog = SqlCatalog::open(url, Access::Write).await?;
        catalog.migrate().await
    })?;
    match applied {
        0 => println!("{url} is up to date"),
        n => println!("{url}: {n} migration{} applied", if n == 1 { "" } else { "s" }),
    }
    Ok(())
}
