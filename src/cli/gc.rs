//! `winnowd gc`: the objects of shards that were never published.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::{ConfigArguments, UsageError, runtime};
use crate::catalog::{Access, Catalog, SqlCatalog};
use crate::sink::ShardStore;

/// How long an orphan's object is looked for after it was given up: a worker can sleep for long.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(clap::Args)]
pub struct GcArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Leave what was staged since then alone: it may still be published. What is given up is decided again, in another shard
    #[arg(long, value_name = "TIME", default_value = "24h")]
    grace: String,
}

pub fn gc(arguments: &GcArguments) -> anyhow::Result<()> {
    let config = arguments.config.load()?;
    let grace = humantime::parse_duration(&arguments.grace)
        .map_err(|e| UsageError(format!("--grace {}: {e}, such as 24h or 90m", arguments.grace)))?;
    let before = |age: Duration| {
        let then = SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH);
        then.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
    };
    runtime().context("cannot start threads")?.block_on(async {
        let catalog = SqlCatalog::open(&config.catalog.url, Access::Write).await?;
        catalog.check_schema().await?;
        let store = ShardStore::open(&config.sink).map_err(crate::pipeline::DaemonError::from)?;
        let orphans = catalog.abandon(&config.pipeline, before(grace)).await?;
        let mut deleted = 0;
        for path in orphans.iter().flat_map(|orphan| {
            let beside = [ShardStore::dead_letter_path, ShardStore::validation_path].map(|path| path(&orphan.shard));
            orphan.path.iter().cloned().chain(beside)
        }) {
            if store.delete(&path).await.map_err(crate::pipeline::DaemonError::from)? {
                println!("deleted {path}");
                deleted += 1;
            }
        }
        catalog.forget_orphans(&config.pipeline, before(REMEMBERED)).await?;
        println!("{deleted} objects deleted, of {} shards that were staged and never published", orphans.len());
        Ok(())
    })
}
