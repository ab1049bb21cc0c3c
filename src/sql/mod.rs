//! SQL by DataFusion: questions over what has been published, and over files; [`DocumentFilter`], which says of the documents of
//! the stream whether they may be selected; and [`DerivedColumns`], which gives selected ones further columns.
//!
//! For questions this module says what the tables are, adds the scorers as functions, and bounds the memory.
//! In: facts of the catalog, an object store, a question. Out: record batches, one after the other. Promises: nothing is changed,
//! neither by a question nor beside it; only files that the catalog names are read; what does not fit into the memory that a
//! question may take waits on local disk.

mod derived;
mod files;
mod filter;
mod functions;
mod memory;
mod published;
mod rows;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::sqlparser::parser::ParserError;

use memory::TwoPools;

pub use derived::{Derived, DerivedColumns};
pub use files::FileTable;
pub use filter::{DocumentFilter, FilterError, MAX_FILTER_BYTES, Verdict};
pub use published::Published;

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The question is wrong, or may not be asked.
    #[error("{0}")]
    Question(String),
    /// A row is not what the question takes it for.
    #[error("{0}")]
    Row(String),
    #[error("{0}; give it more memory, or ask for less at a time")]
    Memory(String),
    #[error("what does not fit into memory cannot wait on disk: {0}")]
    Disk(String),
    #[error("{0}")]
    Store(String),
    #[error("{0}")]
    Internal(String),
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        use DataFusionError as E;
        let root = error.find_root();
        // The text of the outermost error repeats kinds, contexts and backtraces.
        let said = match root {
            E::SQL(error, _) => match &**error {
                ParserError::ParserError(said) | ParserError::TokenizerError(said) => one_line(said),
                ParserError::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
            },
            other => one_line(&other.strip_backtrace()),
        };
        match root {
            // Named as the setting that stands behind it.
            root if is_of_disk(root) && said.contains("max_temp_directory_size") => {
                SqlError::Disk("it is more than the question may take there".to_owned())
            }
            root if is_of_disk(root) => SqlError::Disk(said),
            E::SQL(..)
            | E::Plan(_)
            | E::SchemaError(..)
            | E::NotImplemented(_)
            | E::Configuration(_)
            | E::Diagnostic(..) => SqlError::Question(said),
            E::ArrowError(..) | E::Execution(_) => SqlError::Row(said),
            E::ResourcesExhausted(_) => SqlError::Memory(said),
            E::ObjectStore(_) | E::ParquetError(_) => SqlError::Store(said),
            _ => SqlError::Internal(said),
        }
    }
}

/// Files that are read are objects of a store: what else is read and written is what went to disk.
fn is_of_disk(error: &DataFusionError) -> bool {
    match error {
        DataFusionError::IoError(_) => true,
        DataFusionError::ArrowError(error, _) => matches!(**error, ArrowError::IoError(..)),
        _ => false,
    }
}

/// Without the kind of error before it, and of a value that is quoted in it, its beginning.
fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 600;
    const KINDS: [&str; 6] = [
        "Error during planning: ",
        "Schema error: ",
        "This feature is not implemented: ",
        "Execution error: ",
        "Resources exhausted: ",
        "Arrow error: ",
    ];
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = KINDS.iter().find_map(|kind| line.strip_prefix(kind)).unwrap_or(&line);
    match said.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said.to_owned(),
    }
}

/// What a question may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes that sorts, joins and aggregations hold before they go to disk. What is read and written at a time comes on top.
    pub memory_bytes: usize,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Where; `None`: the system's folder for temporary files.
    pub scratch_dir: Option<PathBuf>,
}

/// Tables and functions that questions may name.
pub struct Session {
    context: SessionContext,
}

impl Session {
    pub fn new(limits: &Limits) -> Result<Self, SqlError> {
        let mode = match &limits.scratch_dir {
            Some(folder) => DiskManagerMode::Directories(vec![folder.clone()]),
            None => DiskManagerMode::OsTmpDirectory,
        };
        let disk = DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(limits.disk_bytes);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TwoPools::new(limits.memory_bytes)))
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let mut config =
            SessionConfig::new().with_information_schema(true).with_default_catalog_and_schema("winnowd", "public");
        // Rows hold texts: of the usual 8,192 a few batches alone would fill the memory.
        config = config.with_batch_size(1024);
        // One sort has all the memory: several, and what merges them, take it from each other until one finds nothing.
        config = config.with_repartition_sorts(false);
        let parquet = &mut config.options_mut().execution.parquet;
        // Texts are most of a row: they are read only of rows that pass.
        parquet.pushdown_filters = true;
        parquet.reorder_filters = true;
        // Strings as they are written, for whoever reads the answer.
        parquet.schema_force_view_types = false;
        // Of a sort: what it keeps back to merge what it wrote to disk must leave it room to work.
        config.options_mut().execution.sort_spill_reservation_bytes = (limits.memory_bytes / 16).min(10 << 20);
        let context = SessionContext::new_with_config_rt(config, runtime);
        functions::register(&context);
        Ok(Session { context })
    }

    /// Makes the tables `documents`, `shards`, `windows` and `dead_letters`.
    pub async fn publish(&self, published: Published) -> Result<(), SqlError> {
        published.register(&self.context).await
    }

    /// Makes a table of files.
    pub async fn read(&self, name: &str, table: FileTable) -> Result<(), SqlError> {
        table.register(name, &self.context).await
    }

    /// Plans a question and begins to answer it. What would change something is refused.
    pub async fn ask(&self, question: &str) -> Result<Answer, SqlError> {
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let frame = self.context.sql_with_options(question, read_only).await?;
        let task = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await?;
        Ok(Answer { schema: plan.schema(), batches: execute_stream(plan, task)? })
    }
}

/// An answer on its way.
pub struct Answer {
    pub schema: SchemaRef,
    pub batches: SendableRecordBatchStream,
}
