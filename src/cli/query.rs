//! `winnowd query`: questions in SQL about what has been published, and about files.

mod output;

use std::path::PathBuf;

use anyhow::Context;
use bytesize::ByteSize;
use futures::StreamExt;

use super::files::StoreArguments;
use super::{ConfigArguments, INTERNAL, Interrupted, UNAVAILABLE, USAGE, UsageError, runtime};
use crate::catalog::{Access, CatalogReader, SqlCatalog};
use crate::config::Config;
use crate::pipeline::DaemonError;
use crate::sink::{ShardStore, dead_letter_schema, schema};
use crate::sql::{FileTable, Limits, Published, Session, SqlError};
use output::Output;

#[derive(clap::Args)]
pub struct QueryArguments {
    /// The question: one SELECT, EXPLAIN, DESCRIBE or SHOW
    #[arg(value_name = "SQL")]
    question: String,
    #[command(flatten)]
    config: ConfigArguments,
    /// Ask about files instead, the table `input`: JSONL and CSV (plain, .gz, .zst) or Parquet; a file, a folder, a pattern,
    /// s3://BUCKET/PREFIX. May be given again
    #[arg(long, value_name = "PATH", conflicts_with_all = ["config", "at"])]
    input: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    /// As it was when this shard of manifest.jsonl had just been published
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(i64).range(1..))]
    at: Option<i64>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// File to write, complete or not at all; needed for Parquet
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Memory of sorts, joins and aggregations before they go to disk, such as 2GiB
    #[arg(long, value_name = "BYTES", default_value = "512MiB")]
    memory: ByteSize,
    /// Disk that they may take, in the folder of sink.scratch_dir or of the system
    #[arg(long, value_name = "BYTES", default_value = "64GiB")]
    disk: ByteSize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people: the first 1,000 rows, long values cut
    Table,
    Csv,
    /// One object a line
    Json,
    Parquet,
}

/// Below it nothing of any size can be sorted.
const LEAST_MEMORY: ByteSize = ByteSize::mib(16);

pub fn exit_code(error: &SqlError) -> u8 {
    match error {
        SqlError::Question(_) | SqlError::Row(_) | SqlError::Memory(_) => USAGE,
        SqlError::Store(_) | SqlError::Disk(_) => UNAVAILABLE,
        SqlError::Internal(_) => INTERNAL,
    }
}

pub fn query(arguments: &QueryArguments) -> anyhow::Result<()> {
    let QueryArguments { format, out, memory, disk, .. } = arguments;
    if *memory < LEAST_MEMORY {
        return Err(UsageError(format!("--memory {memory}: must be at least {LEAST_MEMORY}")).into());
    }
    if *format == Format::Parquet && out.is_none() {
        return Err(UsageError("--format parquet needs --out FILE".to_owned()).into());
    }
    let options = arguments.store.options()?;
    let files = (!arguments.input.is_empty()).then(|| FileTable::of(&arguments.input, &options)).transpose()?;
    let config = files.is_none().then(|| arguments.config.load()).transpose()?;
    let scratch_dir = config.as_ref().and_then(|config| config.sink.scratch_dir.clone());
    let limits = Limits { memory_bytes: memory.as_u64() as usize, disk_bytes: disk.as_u64(), scratch_dir };
    let work = async {
        let session = Session::new(&limits)?;
        if let Some(files) = files {
            session.read("input", files).await?;
        } else if let Some(config) = &config {
            session.publish(published(config, arguments.at).await?).await?;
        }
        let mut answer = session.ask(&arguments.question).await?;
        let mut output = Output::begin(*format, out.as_deref(), &answer.schema)?;
        while let Some(batch) = answer.batches.next().await {
            if !output.write(&batch.map_err(SqlError::from)?)? {
                break;
            }
        }
        output.finish()
    };
    runtime().context("cannot start threads")?.block_on(async {
        tokio::select! {
            done = work => done,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("cannot wait for Ctrl-C")?;
                Err(Interrupted.into())
            }
        }
    })
}

async fn published(config: &Config, at: Option<i64>) -> anyhow::Result<Published> {
    let catalog = SqlCatalog::open(&config.catalog.url, Access::Read).await?;
    catalog.check_schema().await?;
    // In this order every shard's windows and dead letters are there.
    let shards = catalog.shards(&config.pipeline).await?;
    let windows = catalog.windows(&config.pipeline).await?;
    let dead_letters = catalog.dead_letter_files(&config.pipeline).await?;
    catalog.close().await;
    let store = ShardStore::open(&config.sink).map_err(DaemonError::from)?.objects();
    let newest = shards.last().map(|(sequence, _)| *sequence);
    let (schema, dead_letter_schema) = (schema(&[], &[]), dead_letter_schema());
    let published = Published { store, shards, windows, dead_letters, schema, dead_letter_schema };
    match at {
        None => Ok(published),
        Some(at) if newest.is_some_and(|newest| at <= newest) => Ok(published.until(at)),
        Some(at) => {
            let newest =
                newest.map_or("nothing is published yet".to_owned(), |newest| format!("the newest shard is {newest}"));
            Err(UsageError(format!("--at {at}: {newest}")).into())
        }
    }
}
