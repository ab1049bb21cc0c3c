//! The command line: arguments → configuration → work → exit code.
//!
//! Exit codes: 0 done, 64 bad usage or configuration, 69 an outside system is unavailable or a disk is full,
//! 70 a fault of the program, 130 interrupted.

mod bars;
mod check;
mod dead_letters;
mod demo;
mod explain;
mod files;
mod fit;
mod gc;
mod logging;
mod model;
mod offsets;
mod produce;
mod progress;
mod query;
mod replay;
mod run;
mod score;
mod select;
mod shards;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::catalog::CatalogError;
use crate::config::{Config, ConfigErrors};
use crate::pipeline::{DaemonError, LoadedModel};
use crate::source::check_settings;
use crate::source::files::FileError;
use crate::sql::{DerivedColumns, DocumentFilter};

const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const INTERNAL: u8 = 70;
const INTERRUPTED: u8 = 130;

/// Selects pretraining data from a stream, continuously and exactly once.
#[derive(Parser)]
#[command(name = "winnowd", version, propagate_version = true, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole daemon at work: an in-process Kafka cluster, the bundled sample, a report
    #[command(after_help = "Example:\n  winnowd demo --out /tmp/winnowd-demo")]
    Demo(demo::DemoArguments),
    /// Run the daemon until SIGTERM or Ctrl-C
    #[command(after_help = "Example:\n  WINNOWD_KAFKA__BOOTSTRAP=broker:9092 winnowd run -c winnowd.toml")]
    Run(ConfigArguments),
    /// Validate a configuration and its model
    #[command(after_help = "Example:\n  winnowd check -c winnowd.toml\n  winnowd check --defaults > winnowd.toml")]
    Check(check::CheckArguments),
    /// Bring the catalog's schema up to date
    #[command(after_help = "Example:\n  winnowd migrate -c winnowd.toml")]
    Migrate(ConfigArguments),
    /// Fit a model: what is wanted (target) against what comes (raw)
    #[command(
        after_help = "Examples:\n  winnowd fit --target wikipedia.jsonl.zst --raw crawl/ --raw-sample 100000 --out model.wnw\n  \
                      winnowd fit --target code=a.jsonl code=b.parquet math=c.jsonl.gz \\\n    --proportion code=0.7 math=0.3 \
                      --raw crawl-*.jsonl --out model.wnw"
    )]
    Fit(fit::FitArguments),
    /// Look at a model
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Give every document of files its log importance weight
    #[command(after_help = "Example:\n  winnowd score --model model.wnw --input crawl/ --out scores.parquet")]
    Score(score::ScoreArguments),
    /// Select documents of files: DSIR, as the published package does it
    #[command(
        after_help = "Examples:\n  winnowd select --input crawl/ --target wanted.jsonl --fraction 0.1 --out selected\n  \
                      winnowd select --input crawl/ --model model.wnw --count 50000 --temperature auto --out selected\n  \
                      winnowd select --input crawl/ --model model.wnw --count 50000 --source-proportion web=0.5 \\\n    \
                      --length-normalise --temperature 0.1 --seed 7 --format jsonl.zst --out selected\n  \
                      winnowd select --input crawl/ --model model.wnw --fraction 0.1 --selector coverage --importance loss \\\n    \
                      --cutoff 0.1 --length-normalise --temperature auto --explain web-17 --out selected"
    )]
    Select(Box<select::SelectArguments>),
    /// Load documents of files into a topic, as records that `winnowd run` reads
    #[command(
        after_help = "Examples:\n  winnowd produce --input crawl/ --topic documents --bootstrap broker:9092 --partitions 8\n  \
                      winnowd produce --input 's3://lake/crawl/*.parquet' -c winnowd.toml --text-field content\n\nThe key of a record \
                      is its document's id, so that one id is always in one partition. Sending twice gives two records."
    )]
    Produce(Box<produce::ProduceArguments>),
    /// List published shards
    #[command(after_help = "Example:\n  winnowd shards -c winnowd.toml --json | jq -r .path")]
    Shards(shards::ShardsArguments),
    /// Ask in SQL what has been published, or what is in files
    #[command(
        after_help = "Examples:\n  winnowd query -c winnowd.toml \"SELECT source, count(*), avg(n_tokens) FROM documents GROUP BY source\"\n  \
                      winnowd query -c winnowd.toml --at 120 --format parquet --out math.parquet \\\n    \"SELECT id, text FROM documents \
                      WHERE log_importance_weight > 50\"\n  winnowd query --input crawl/ \"SELECT id, \
                      log_importance_weight(text, 'model.wnw') AS w FROM input ORDER BY w DESC LIMIT 10\"\n\nTables: documents, shards, \
                      windows, dead_letters; with --input: input. Functions: n_tokens(text), log_importance_weight(text, 'MODEL' [, \
                      'TARGET']),\ngumbel_noise(seed, topic, partition, offset), gumbel_key(log_weight, temperature, seed, topic, partition, \
                      offset), and those of DataFusion."
    )]
    Query(query::QueryArguments),
    /// Decide published windows again, from the records that Kafka still has
    #[command(
        after_help = "Examples:\n  winnowd replay -c winnowd.toml --window documents/3/0-10000\n  winnowd replay -c winnowd.toml \
                      --verify --partition 3 --from 120000\n\nModel, counts and selector are those that the window was decided \
                      with; the names of fields and documents.max_bytes are those of the configuration."
    )]
    Replay(replay::ReplayArguments),
    /// Say why a document was selected or not: its weights, its key, and what it competed with
    #[command(
        after_help = "Examples:\n  winnowd explain -c winnowd.toml --window documents/3/0-10000 --id web-17\n  winnowd explain -c \
                      winnowd.toml --position documents/3:4711 --json | jq .outcome\n  winnowd explain -c winnowd.toml --id web-17\n\n\
                      The window is read again from Kafka, decided again with what it was decided with, and compared with what was \
                      published. Without --window an id is looked for in the whole log, or where --topic, --partition, --from and \
                      --to say."
    )]
    Explain(explain::ExplainArguments),
    /// Where the pipeline stands in each partition, and moving it
    #[command(subcommand)]
    Offsets(offsets::OffsetsCommand),
    /// Delete the objects of shards that were uploaded and never published
    #[command(after_help = "Example:\n  winnowd gc -c winnowd.toml --grace 24h")]
    Gc(gc::GcArguments),
    /// Look at records that could not be read, and send them again
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
}

#[derive(clap::Args)]
struct ConfigArguments {
    /// Configuration file (TOML); what it does not name has its default
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    fn load(&self) -> Result<Config, ConfigErrors> {
        let config = Config::load(self.config.as_deref(), std::env::vars())?;
        // The client knows its own settings best.
        check_settings(&config.kafka, config.memory_budget_bytes).map_err(|problem| ConfigErrors(vec![problem]))?;
        let mut mistakes = Vec::new();
        if let Some(filter) = &config.selector.filter
            && let Err(e) = DocumentFilter::compile(filter)
        {
            mistakes.push(format!("`documents.filter` = `{}`: {e}", filter.sql));
        }
        if let Err(wrong) = DerivedColumns::compile(&config.columns) {
            let sql = |column: &String| &config.columns.columns[column];
            let mistake = |(column, e)| format!("`documents.columns.{column}` = `{}`: {e}", sql(&column));
            mistakes.extend(wrong.into_iter().map(mistake));
        }
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigErrors(mistakes)) }
    }
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(e) => {
            // Printing help to a closed pipe is nobody's problem.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    let result = match arguments.command {
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Migrate(arguments) => check::migrate(&arguments),
        Command::Fit(arguments) => fit::fit(&arguments),
        Command::Model(command) => model::model(&command),
        Command::Score(arguments) => score::score(&arguments),
        Command::Select(arguments) => select::select(&arguments),
        Command::Produce(arguments) => produce::produce(&arguments),
        Command::Shards(arguments) => shards::shards(&arguments),
        Command::Query(arguments) => query::query(&arguments),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Offsets(command) => offsets::offsets(&command),
        Command::Gc(arguments) => gc::gc(&arguments),
        Command::DeadLetters(command) => dead_letters::dead_letters(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("winnowd: {}", message(&error).trim_end());
            ExitCode::from(exit_code(&error))
        }
    }
}

/// A mistake in how the program was called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// The user did not want to wait for the end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

/// Published shards are gone or changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct DamagedShards(String);

/// What happened, with the causes that it does not name itself.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.contains(&cause) => said.to_owned(),
        said => format!("{said}: {cause}"),
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigErrors>() || error.is::<UsageError>() {
        USAGE
    } else if let Some(error) = error.downcast_ref::<FileError>() {
        if error.is_of_store() { UNAVAILABLE } else { USAGE }
    } else if let Some(error) = error.downcast_ref::<files::WriteError>() {
        if error.is_of_disk() { UNAVAILABLE } else { INTERNAL }
    } else if error.is::<DamagedShards>() {
        UNAVAILABLE
    } else if let Some(error) = error.downcast_ref::<crate::sql::SqlError>() {
        query::exit_code(error)
    } else if error.is::<Interrupted>() {
        INTERRUPTED
    } else if let Some(error) = error.downcast_ref::<DaemonError>() {
        error.exit_code()
    } else if let Some(error) = error.downcast_ref::<CatalogError>() {
        crate::pipeline::catalog_exit_code(error)
    } else {
        INTERNAL
    }
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// The model that the configuration names.
fn load_model(config: &Config) -> anyhow::Result<LoadedModel> {
    let mistake = |problem: String| ConfigErrors(vec![problem]);
    let Some(path) = &config.model_path else {
        return Err(mistake("`model.path` = ``: must be set; make a model with `winnowd fit`".to_owned()).into());
    };
    let bytes = read_file(path).map_err(|e| mistake(format!("`model.path` = `{}`: {e}", path.display())))?;
    Ok(LoadedModel::from_bytes(&path.to_string_lossy(), bytes)?)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;

    #[test]
    fn a_full_disk_is_no_fault_of_the_program() {
        let out = Path::new("/somewhere/out");
        for (kind, hint) in [
            (ErrorKind::StorageFull, "free space in `/somewhere`, or name another --out"),
            (ErrorKind::QuotaExceeded, "free space in `/somewhere`, or name another --out"),
            (ErrorKind::ReadOnlyFilesystem, "make `/somewhere` writable, or name another --out"),
        ] {
            let written: anyhow::Error = files::WriteError::new(out, Error::from(kind)).into();
            for error in [written, files::unwritable(out, Error::from(kind)).context("the selection is complete")] {
                assert_eq!(exit_code(&error), UNAVAILABLE, "{error:#}");
                let said = message(&error);
                assert!(said.contains("--out `/somewhere/out` cannot be written") && said.contains(hint), "{said}");
            }
        }
        let denied = || Error::from(ErrorKind::PermissionDenied);
        assert_eq!(exit_code(&files::unwritable(out, denied())), USAGE);
        assert_eq!(exit_code(&files::WriteError::new(out, denied()).into()), INTERNAL);
    }
}
