//! `winnowd shards`: what has been published.

use std::fmt::Write;

use anyhow::Context;

use super::{ConfigArguments, print, runtime};
use crate::catalog::{Access, CatalogReader, SqlCatalog};
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
        let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
        catalog.check_schema().await?;
        Ok::<_, crate::catalog::CatalogError>((
            catalog.shards(&config.pipeline).await?,
            catalog.totals(&config.pipeline).await?,
        ))
    })?;
    let mut text = String::new();
    if arguments.json {
        for (sequence, manifest) in shards {
            let mut line = serde_json::to_value(manifest)?;
            line["sequence"] = sequence.into();
            writeln!(text, "{line}")?;
        }
        return print(&text);
    }
    let Some(totals) = totals else {
        return print(&format!("pipeline `{}` has published nothing yet\n", config.pipeline));
    };
    writeln!(text, "{:>8}  {:>9}  {:>9}  {:>7}  {:<24}  path", "sequence", "rows", "KB", "windows", "published")?;
    for (sequence, shard) in &shards {
        let created = rfc3339(shard.created_at_ms);
        let path = shard.path.as_deref().unwrap_or_default();
        let (rows, kilobytes, windows) = (shard.rows, shard.bytes.div_ceil(1024), shard.windows.len());
        writeln!(text, "{sequence:>8}  {rows:>9}  {kilobytes:>9}  {windows:>7}  {created:<24}  {path}")?;
    }
    writeln!(
        text,
        "{} shards, {} selected, {} rejected, {} dead letters; below {}",
        totals.n_shards, totals.n_selected, totals.n_rejected, totals.n_dead_letters, config.sink.url
    )?;
    print(&text)
}
