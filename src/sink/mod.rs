//! Shards: selected documents become Parquet files, files become objects, objects become lines of `manifest.jsonl`.
//!
//! In: [`crate::window::SelectedDocument`]s. Out: complete, durable objects under keys that carry the shard's id.
//! Nothing here decides whether a shard counts: that is the catalog's transaction.

mod dead_letters;
mod patience;
mod read;
mod row_groups;
mod selection;
mod scratch;
mod shard;
mod spool;
mod store;

use std::path::PathBuf;

pub use dead_letters::{DeadLetterWriter, StoredDeadLetter, dead_letter_schema, read_dead_letters};
pub use patience::{FullDisk, GiveUp};
pub use read::{PublishedRow, SPLIT, ShardReader};
pub use scratch::{FinishedFile, ScratchFile, file_error};
pub use selection::{SelectedRow, SelectionColumns, SelectionWriter};
pub use shard::{BATCH_BYTES, BATCH_ROWS, COLUMNS, ShardWriter, Split, WriterSettings, is_shard_column, schema};
pub use spool::{Spool, SpoolFolder};
pub use store::ShardStore;

#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error("scratch file in `{}`: {source}", folder.display())]
    Scratch { folder: PathBuf, source: std::io::Error },
    #[error("Parquet file of shard `{shard}`: {source}")]
    Parquet { shard: String, source: parquet::errors::ParquetError },
    #[error("store `{store}`: `{path}`: {}", one_line(source))]
    Store { store: String, path: String, source: object_store::Error },
    #[error("store `{store}`: `{path}` cannot be written durably: {source}")]
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

/// An error of a store with its causes, which may hold a page of XML or HTML, fit for a line of a log.
fn one_line(error: &object_store::Error) -> String {
    const MAX_CHARS: usize = 600;
    // The outermost one repeats the path.
    let outermost: &dyn std::error::Error = error;
    let mut cause = outermost.source().or(Some(outermost));
    let mut message = String::new();
    while let Some(error) = cause {
        let text = error.to_string();
        // Most errors, but not all of them, show their causes.
        if !message.contains(&text) {
            message += if message.is_empty() { "" } else { ": " };
            message += &text;
        }
        cause = error.source();
    }
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

impl SinkError {
    /// Whether somebody else changed the object first.
    pub fn is_conflict(&self) -> bool {
        use object_store::Error;
        matches!(self, SinkError::Store { source: Error::Precondition { .. } | Error::AlreadyExists { .. }, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_answers_is_one_line_of_a_log() {
        let page = format!("<Error>\n  <Code>SlowDown</Code>\r\n\n{}</Error>", "é".repeat(10_000));
        let source = object_store::Error::Generic { store: "S3", source: page.into() };
        let line = SinkError::Store { store: "s3://b".into(), path: "p".into(), source }.to_string();
        assert!(line.contains("<Error> <Code>SlowDown</Code> é") && line.ends_with("é…"), "{line}");
        assert!(!line.contains('\n') && line.chars().count() < 700, "{line}");
    }
}
