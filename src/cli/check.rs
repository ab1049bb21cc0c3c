//! `winnowd check` and `winnowd migrate`.

use std::time::Duration;

use anyhow::Context;

use super::{ConfigArguments, load_model, print, runtime};
use crate::catalog::{Access, SqlCatalog};
use crate::config::{
    Against, Bootstrap, CatalogUrl, Config, DEFAULT_TOML, FeedbackConfig, RawDistribution, SpoolConfig,
};
use crate::feedback::Mixing;
use crate::pipeline::{DaemonError, load_tokenizer};
use crate::record::Format;
use crate::select::Unit;
use crate::sink::ShardStore;
use crate::source::{Probe, SchemaRegistry, SourceError};
use crate::sql::DerivedColumns;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct CheckArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Print the built-in configuration, with comments, and do nothing else
    #[arg(long)]
    defaults: bool,
    /// Also ask Kafka, the schema registry, the catalog and the store whether they can be reached and used. Changes nothing there
    #[arg(long)]
    connect: bool,
}

pub fn check(arguments: &CheckArguments) -> anyhow::Result<()> {
    if arguments.defaults {
        return print(DEFAULT_TOML);
    }
    let config = arguments.config.load()?;
    let model = load_model(&config)?.divided_by(&config.selector.quotas)?;
    model.check_selector(&config.selector)?;
    let tokenizer = load_tokenizer(&config)?;
    let bootstrap = match &config.kafka.bootstrap {
        Bootstrap::Embedded { .. } => "the in-process cluster",
        Bootstrap::Servers(servers) => servers,
    };
    let selector = &config.selector;
    println!("The configuration is valid.");
    println!("  pipeline   {} (group {})", config.pipeline, config.kafka.group);
    println!("  from       {} on {bootstrap}", config.kafka.topics.join(", "));
    let of_registry = config.registry.as_ref().map(|registry| format!(", schemas from {}", registry.url));
    let of_registry = of_registry.unwrap_or_default();
    match &config.decoder.format {
        Format::Json => {}
        Format::Text(_) => println!("             each the text of a document"),
        Format::Avro => println!("             in Avro{of_registry}"),
        Format::Protobuf => println!("             in Protobuf{of_registry}"),
    }
    println!(
        "  selects    {} of every window{} by {}{}, temperature {}, seed {}",
        selector.fraction,
        if selector.unit == Unit::Tokens { "'s tokens" } else { "" },
        selector.name(),
        if selector.length_normalise { " of mean weights" } else { "" },
        selector.temperature,
        selector.seed
    );
    if let Some(coverage) = &selector.coverage {
        println!("             {coverage}");
    }
    if let Some(sensitivity) = &selector.sensitivity {
        println!("             {sensitivity}");
    }
    if selector.sees_whole_windows() {
        let SpoolConfig { folder, is_compressed, max_bytes, .. } = &config.spool;
        let folder =
            folder.as_ref().map_or("the folder for temporary files".to_owned(), |folder| folder.display().to_string());
        println!(
            "             documents wait in {folder}, {}, {} at most",
            if *is_compressed { "compressed" } else { "uncompressed" },
            bytesize::ByteSize(*max_bytes).display().iec()
        );
    }
    for (source, share) in &selector.quotas.sources {
        println!("             {:.1} % of {}", 100.0 * share, selector.quotas.pool_name(Some(source)));
    }
    if let Some(filter) = &selector.filter {
        println!("             only where {}", filter.sql);
    }
    let derived = DerivedColumns::compile(&config.columns).map(|derived| derived.fields()).unwrap_or_default();
    for field in derived {
        println!(
            "             with {}: {} = {}",
            field.name(),
            field.data_type(),
            config.columns.columns[field.name()]
        );
    }
    if let Some(tokenizer) = tokenizer {
        println!("             with {}: UInt32, by the tokenizer {}", tokenizer.column(), tokenizer.digest());
    }
    println!("  model      {}", model.id);
    let documents = |side: &crate::score::Side| side.provenance.documents;
    let raw = documents(&model.model.raw);
    match &model.model.targets[..] {
        [target] => println!("             {} target and {raw} raw documents", documents(&target.side)),
        targets => {
            for target in targets {
                let (name, n, share) = (&target.name, documents(&target.side), 100.0 * target.proportion);
                println!("             target {name}: {n} documents, {share:.1} % of every window's selection");
            }
            println!("             {raw} raw documents");
        }
    }
    if let RawDistribution::Adaptive { half_life_ngrams, prior_ngrams, .. } = config.raw {
        println!("             raw follows the stream: half-life {half_life_ngrams} n-grams, prior {prior_ngrams}");
    }
    if let Against::Selected { share, prior_ngrams, half_life_ngrams, .. } = config.against {
        let half_life = half_life_ngrams.map_or("never forgets".to_owned(), |n| format!("half-life {n} n-grams"));
        println!("             weighed against what was selected (share {share}): {half_life}, prior {prior_ngrams}");
    }
    if let Some(FeedbackConfig { topic, coefficient, settings, .. }) = &config.feedback {
        let mixing = settings.mixing.map_or("as configured", Mixing::name);
        println!("  losses     from {topic}: expected ones count {coefficient}, shares of sources {mixing}");
    }
    println!("  to         {}", config.sink.url);
    println!("  catalog    {}", config.catalog.url);
    for warning in config.coverage_warnings() {
        println!("WARNING: {warning}");
    }
    if arguments.connect { connect(&config) } else { Ok(()) }
}

/// Asks everybody, and names all who cannot be used.
fn connect(config: &Config) -> anyhow::Result<()> {
    println!("Asking:");
    let mut failed: Option<DaemonError> = None;
    let mut say = |what: &str, outcome: Result<String, DaemonError>| match outcome {
        Ok(answer) => println!("  {what:<10} {answer}"),
        Err(e) => {
            println!("  {what:<10} FAILED: {e}");
            failed.get_or_insert(e);
        }
    };
    say("kafka", kafka(config));
    runtime().context("cannot start threads")?.block_on(async {
        if config.registry.is_some() {
            say("registry", registry(config).await);
        }
        say("catalog", catalog(config).await);
        let store = async { ShardStore::open(&config.sink)?.probe().await };
        say("store", store.await.map(|()| "writes, writes conditionally and deletes".to_owned()).map_err(Into::into));
    });
    failed.map_or(Ok(()), |error| Err(error.into()))
}

fn kafka(config: &Config) -> Result<String, DaemonError> {
    let Bootstrap::Servers(servers) = &config.kafka.bootstrap else { return Ok("is in this process".to_owned()) };
    let of_losses = [&config.losses.topic, &config.losses.weights_topic].into_iter().flatten();
    let wanted: Vec<_> = config.kafka.topics.iter().chain(of_losses).cloned().collect();
    let found = Probe::open(&config.kafka, servers, CONNECT_TIMEOUT)?.those_of(&wanted)?;
    if let Some(missing) = wanted.iter().find(|topic| found.iter().all(|(name, _)| name != *topic)) {
        let problem = format!("there is no topic `{missing}`, or it may not be seen");
        return Err(SourceError::Client { bootstrap: servers.clone(), problem }.into());
    }
    let topics: Vec<String> = found.iter().map(|(name, n)| format!("{name} ({n} partitions)")).collect();
    Ok(topics.join(", "))
}

async fn registry(config: &Config) -> Result<String, DaemonError> {
    let Some(registry) = &config.registry else { return Ok("is not needed".to_owned()) };
    let types = SchemaRegistry::open(registry, &config.decoder.format)?.probe().await?;
    Ok(format!("answers, has schemas of {}", types.join(", ")))
}

async fn catalog(config: &Config) -> Result<String, DaemonError> {
    if let CatalogUrl::Sqlite(file) = &config.catalog.url
        && !file.exists()
    {
        return Ok("will be created".to_owned());
    }
    let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
    let pending = catalog.pending_migrations().await?;
    catalog.close().await;
    Ok(match (pending, config.catalog.migrate) {
        (0, _) => "answers, its schema is up to date".to_owned(),
        (n, true) => format!("answers, {n} migrations will be applied at start"),
        (n, false) => format!("answers, {n} migrations are missing: run `winnowd migrate`"),
    })
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
