//! `winnowd` selects pretraining data from a stream, continuously and exactly once.
//!
//! Documents come from Kafka, are scored, and the best of every window is published as Parquet shards. This page is the
//! map; the modules stand in the order in which a document passes them, and each may use only those before it.
//!
//! The pure core: no I/O, no clock, no randomness of its own, no `async`. It compiles with `--no-default-features`.
//!
//! | module | takes → gives |
//! | --- | --- |
//! | [`record`] | the bytes of a record (JSON, text; Avro, Protobuf and their schemas) → a [`record::Document`], or a [`record::Reject`] with its reason; a trainer's report → a [`record::LossReport`] |
//! | [`features`] | a text → tokens, hashed n-grams, a point |
//! | [`score`] | n-grams and a [`score::Model`] → log importance weight; training losses of ranks → weights of a global batch; a document's own loss, or the one to be expected → what it adds |
//! | [`feedback`] | reports of trainers and what is known of their documents → loss statistics, a predictor of losses, quotas |
//! | [`select`] | log weights, difficulty, embeddings and noise by position → the selection, within budgets, with inclusion probabilities |
//! | [`checkpoint`] | intervals of offsets → what a publication advances |
//! | [`window`] | scored records of one partition → a decided [`window::ClosedWindow`] |
//! | [`manifest`] | what a shard is, for the catalog, for trainers, and for loaders of other projects |
//! | [`publish`] | observed facts → the next step of a publication |
//!
//! The edges, behind the default feature `daemon`:
//!
//! | module | is |
//! | --- | --- |
//! | `crash` | places where tests end the process; nothing in a release |
//! | `tokenizer` | a `tokenizer.json` of Hugging Face and a text → how many of its tokens the text has |
//! | `config` | `config/default.toml`, a file and the environment → a checked `Config`, or every mistake at once |
//! | `store` | the URL of an object store and its options → the store |
//! | `telemetry` | metrics, health, status and a page for people on one HTTP port; weights for those who ask; traces to a collector |
//! | `source` | Kafka, to read and to write; schemas, from a registry; files of documents (JSONL, CSV, Parquet; here or in an object store), in order on all cores |
//! | `sink` | Parquet shards, what is held out, and dead letters on an object store; documents that wait on local disk; selections of files |
//! | `catalog` | the database that is the authority on offsets and shards |
//! | `sql` | expressions → which documents of the stream may be selected, and further columns of those that are; questions over published shards and files → batches; the scorers as functions |
//! | `pipeline` | the wiring: worker, publisher, forwarder of dead letters, weights for the topic, shutdown |
//! | `cli` | arguments → one of the above → exit code |

pub mod record;
pub mod features;
pub mod score;
pub mod feedback;
pub mod select;
pub mod checkpoint;
pub mod window;
pub mod manifest;
pub mod publish;

#[cfg(feature = "daemon")]
pub mod crash;
#[cfg(feature = "daemon")]
pub mod tokenizer;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod source;
#[cfg(feature = "daemon")]
pub mod sink;
#[cfg(feature = "daemon")]
pub mod catalog;
#[cfg(feature = "daemon")]
pub mod sql;
#[cfg(feature = "daemon")]
pub mod telemetry;
#[cfg(feature = "daemon")]
pub mod pipeline;
#[cfg(feature = "daemon")]
pub mod cli;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Base64 of RFC 4648, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}
