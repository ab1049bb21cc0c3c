//! `winnowd shards`: what has been published.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Context;

use super::{ConfigArguments, DamagedShards, print, runtime};
use crate::catalog::{Access, CatalogReader, SqlCatalog};
use crate::config::Config;
use crate::manifest::{DeadLetterFile, ShardManifest, rfc3339};
use crate::pipeline::DaemonError;
use crate::sink::ShardStore;

#[derive(clap::Args)]
pub struct ShardsArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// One JSON object a line, with windows and quantiles
    #[arg(long)]
    json: bool,
    /// Read every shard and file of dead letters, and compare size and digest with the catalog
    #[arg(long, conflicts_with = "json")]
    verify: bool,
}

pub fn shards(arguments: &ShardsArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let (shards, dead_letters, totals) = runtime().context("cannot start threads")?.block_on(async {
        let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
        catalog.check_schema().await?;
        Ok::<_, crate::catalog::CatalogError>((
            catalog.shards(&config.pipeline).await?,
            catalog.dead_letter_files(&config.pipeline).await?,
            catalog.totals(&config.pipeline).await?,
        ))
    })?;
    if arguments.verify {
        return verify(&config, &shards, &dead_letters);
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
        "{} shards, {} selected{}, {} rejected, {} dead letters; below {}",
        totals.n_shards,
        totals.n_selected,
        by_target(&shards),
        totals.n_rejected,
        totals.n_dead_letters,
        config.sink.url
    )?;
    print(&text)
}

/// How many documents each of several targets has selected, in parentheses.
fn by_target(shards: &[(i64, ShardManifest)]) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for target in shards.iter().flat_map(|(_, shard)| &shard.windows).flat_map(|window| &window.targets) {
        *sums.entry(&target.target).or_default() += target.diagnostics.n_selected;
    }
    let sums: Vec<String> = sums.into_iter().map(|(target, n)| format!("{n} for {target}")).collect();
    if sums.is_empty() { String::new() } else { format!(" ({})", sums.join(", ")) }
}

/// Reads every shard, what is held out, and every file of dead letters; those that are not what the catalog says are named, and make it fail.
fn verify(config: &Config, shards: &[(i64, ShardManifest)], dead_letters: &[DeadLetterFile]) -> anyhow::Result<()> {
    let store = ShardStore::open(&config.sink).map_err(DaemonError::from)?;
    let validation = shards.iter().filter_map(|(_, shard)| shard.validation.as_ref());
    let beside = validation.chain(dead_letters).map(|f| (&f.path, f.bytes, &f.digest));
    let shards =
        shards.iter().filter_map(|(_, shard)| Some((shard.path.as_ref()?, shard.bytes, shard.digest.as_ref()?)));
    let files: Vec<_> = shards.chain(beside).collect();
    let (mut n_bad, mut total) = (0, 0);
    runtime().context("cannot start threads")?.block_on(async {
        for &(path, bytes, digest) in &files {
            let problem = match store.digest(path).await.map_err(DaemonError::from)? {
                None => Some("is missing".to_owned()),
                Some((found, _)) if found != bytes => Some(format!("has {found} bytes, not {bytes}")),
                Some((_, found)) if format!("sha256:{found}") != *digest => Some("has another digest".to_owned()),
                Some(_) => None,
            };
            total += bytes;
            if let Some(problem) = problem {
                n_bad += 1;
                print(&format!("{path} {problem}\n"))?;
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    match n_bad {
        0 => print(&format!("{} files, {total} bytes, are what the catalog says\n", files.len())),
        _ => Err(DamagedShards(format!("{n_bad} of {} files are not what the catalog says", files.len())).into()),
    }
}
