//! `winnowd shards`: what has been published.

use anyhow::Context;

use super::{ConfigArguments, runtime};
use crate::catalog::{Access, CatalogReader, SqliteCatalog};
use crate::manifest::rfc3339;

#[derive(clap::Args)]
pub struct ShardsArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON object a line, with windows and quantiles
    #[arg(long)]
    json: bool,
}

pub fn shards(arguments: &ShardsArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let (shards, totals) = runtime().context("cannot start threads")?.block_on(async {
        let catalog = SqliteCatalog::open(&config.catalog.sqlite_file, Access::Read).await?;
        catalog.check_schema().await?;
        Ok::<_, crate::catalog::CatalogError>((
            catalog.shards(&config.pipeline).await?,
            catalog.totals(&config.pipeline).await?,
        ))
    })?;
    if arguments.json {
        for (sequence, manifest) in shards {
            let mut line = serde_json::to_value(manifest)?;
            line["sequence"] = sequence.into();
            println!("{line}");
        }
        return Ok(());
    }
    let Some(totals) = totals else {
        println!("pipeline `{}` has published nothing yet", config.pipeline);
        return Ok(());
    };
    println!("{:>8}  {:>9}  {:>9}  {:>7}  {:<24}  path", "sequence", "rows", "KB", "windows", "published");
    for (sequence, shard) in &shards {
        let created = rfc3339(shard.created_at_ms);
        let path = shard.path.as_deref().unwrap_or_default();
        println!(
            "{sequence:>8}  {:>9}  {:>9}  {:>7}  {created:<24}  {path}",
            shard.rows,
            shard.bytes.div_ceil(1024),
            shard.windows.len()
        );
    }
    println!(
        "{} shards, {} selected, {} rejected, {} dead letters; below {}",
        totals.n_shards, totals.n_selected, totals.n_rejected, totals.n_dead_letters, config.sink.url
    );
    Ok(())
}
