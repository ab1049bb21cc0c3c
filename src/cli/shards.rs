//! `winnowd shards`: what has been published.

use std::fmt::Write;

use anyhow::Context;

use super::{ConfigArguments, DamagedShards, print, runtime};
use crate::catalog::{Access, CatalogReader, SqlCatalog};
use crate::config::Config;
use crate::manifest::{ShardManifest, rfc3339};
use crate::pipeline::DaemonError;
use crate::sink::ShardStore;

#[derive(clap::Args)]
pub struct ShardsArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON object a line, with windows and quantiles
    #[arg(long)]
    json: bool,
    /// Read every shard and compare its size and digest with the catalog
    #[arg(long, conflicts_with = "json")]
    verify: bool,
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
    if arguments.verify {
        return verify(&config, &shards);
    }
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

/// Reads every shard; those that are not what the catalog says are named, and make it fail.
fn verify(config: &Config, shards: &[(i64, ShardManifest)]) -> anyhow::Result<()> {
    let store = ShardStore::open(&config.sink).map_err(DaemonError::from)?;
    let (mut bad, mut bytes) = (0, 0);
    runtime().context("cannot start threads")?.block_on(async {
        for (sequence, shard) in shards {
            let (Some(path), Some(digest)) = (&shard.path, &shard.digest) else { continue };
            let problem = match store.digest(path).await.map_err(DaemonError::from)? {
                None => Some("is missing".to_owned()),
                Some((found, _)) if found != shard.bytes => Some(format!("has {found} bytes, not {}", shard.bytes)),
                Some((_, found)) if format!("sha256:{found}") != *digest => Some("has another digest".to_owned()),
                Some(_) => None,
            };
            bytes += shard.bytes;
            if let Some(problem) = problem {
                bad += 1;
                println!("shard {sequence}: {path} {problem}");
            }
        }
        Ok::<_, DaemonError>(())
    })?;
    match bad {
        0 => print(&format!("{} shards, {bytes} bytes, are what the catalog says\n", shards.len())),
        _ => Err(DamagedShards(format!("{bad} of {} shards are not what the catalog says", shards.len())).into()),
    }
}
