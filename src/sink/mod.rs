//! Shards: selected documents become Parquet files, files become objects, objects become lines of `manifest.jsonl`.
//!
//! In: [`crate::window::SelectedDocument`]s. Out: complete, durable objects under keys that carry the shard's id.
//! Nothing here decides whether a shard counts: that is the catalog's transaction.

mod dead_letters;
mod scratch;
mod read;
mod selection;
mod shard;
mod store;

use std::path::PathBuf;

pub use dead_letters::{DeadLetterWriter, StoredDeadLetter, read_dead_letters};
pub use read::{PublishedRow, ShardReader};
pub use scratch::{FinishedFile, ScratchFile};
pub use selection::{SelectedRow, SelectionWriter};
pub use shard::{COLUMNS, ShardWriter, WriterSettings, schema};
pub use store::ShardStore;

#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("scratch file in `{}`: {source}", folder.display())]
    Scratch { folder: PathBuf, source: std::io::Error },
    #[error("Parquet file of shard `{shard}`: {source}")]
    Parquet { shard: String, source: parquet::errors::ParquetError },
    #[error("store `{store}`: `{path}`: {source}")]
    Store { store: String, path: String, source: object_store::Error },
    #[error("store `{store}`: `{path}` cannot be made durable: {source}")]
    Sync { store: String, path: String, source: std::io::Error },
    #[error("store `{store}`: `{path}` has {found} bytes after the upload of {expected}")]
    Torn { store: String, path: String, expected: u64, found: u64 },
    #[error("`{path}` cannot be read: {problem}")]
    Damaged { path: String, problem: String },
    #[error("store `{store}` overwrites what should only be written if it is not there: it lacks conditional puts")]
    Unconditional { store: String },
    #[error(
        "store `{store}`: `{path}` lists shards that this catalog does not know: it belongs to another pipeline, or the \
         catalog was replaced; use another sink.url, or move the file away"
    )]
    ForeignManifest { store: String, path: String },
}

impl SinkError {
    /// Whether somebody else changed the object first.
    pub fn is_conflict(&self) -> bool {
        use object_store::Error;
        matches!(self, SinkError::Store { source: Error::Precondition { .. } | Error::AlreadyExists { .. }, .. })
    }
}
