//! From bytes to a document: where it stands, what it says, or why it cannot be read; and to a report of training losses.
//! Pure.

mod avro;
mod decode;
mod document;
mod embedding;
mod formats;
mod json;
mod losses;
mod protobuf;
mod scan;
mod schema;
mod unescape;

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use decode::{Decoder, FieldNames};
pub use document::{Document, DocumentRef, Members};
pub use embedding::{Base64Floats, EmbeddingField, embedding, embedding_of_base64, is_embedding};
pub use formats::{Format, Parts, RawRecord, RecordPart, TextFormat};
pub use losses::{BadLoss, BadLossReason, BadReport, BadReportReason, LossDecoder, LossReport, SampleLoss};
pub use scan::TextScratch;
pub use schema::{Schema, SchemaText, Schemas, schema_id};

/// One partition of one topic; the scope of windows and checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }

    /// The position of an offset in this partition as text, `topic/partition/offset`: the id of a document without one.
    pub fn position(&self, offset: i64) -> String {
        format!("{self}/{offset}")
    }
}

/// By topic, then by partition. It is asked for every record, whose topics are nearly always one and the same string.
impl Ord for TopicPartition {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_topic =
            if Arc::ptr_eq(&self.topic, &other.topic) { Ordering::Equal } else { self.topic.cmp(&other.topic) };
        by_topic.then(self.partition.cmp(&other.partition))
    }
}

impl PartialOrd for TopicPartition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Why a record is not a document. A closed set: it labels metrics and dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// The record has no value (a tombstone).
    NullPayload,
    /// Larger than `documents.max_bytes`.
    TooLarge,
    InvalidUtf8,
    MalformedJson,
    /// JSON, but not an object; in Avro, not a record.
    NotAnObject,
    MissingText,
    /// A named field holds a value of the wrong type, or one that cannot be read.
    InvalidField,
    /// A named field stands in the record twice.
    DuplicateField,
    /// `documents.filter` cannot be told of it: a field is of another type, or the expression fails.
    FilterFailed,
    /// Not in the wire format of a schema registry: it does not begin with a zero byte and a schema's id.
    NoSchemaId,
    /// The registry has no schema of the id that it names.
    UnknownSchema,
    /// The schema is of another type than `documents.format`, or cannot be compiled.
    UnusableSchema,
    /// Not what its schema says.
    MalformedAvro,
    /// Not what its schema says.
    MalformedProtobuf,
}

impl RejectReason {
    pub const ALL: [RejectReason; 14] = [
        RejectReason::NullPayload,
        RejectReason::TooLarge,
        RejectReason::InvalidUtf8,
        RejectReason::MalformedJson,
        RejectReason::NotAnObject,
        RejectReason::MissingText,
        RejectReason::InvalidField,
        RejectReason::DuplicateField,
        RejectReason::FilterFailed,
        RejectReason::NoSchemaId,
        RejectReason::UnknownSchema,
        RejectReason::UnusableSchema,
        RejectReason::MalformedAvro,
        RejectReason::MalformedProtobuf,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RejectReason::NullPayload => "null_payload",
            RejectReason::TooLarge => "too_large",
            RejectReason::InvalidUtf8 => "invalid_utf8",
            RejectReason::MalformedJson => "malformed_json",
            RejectReason::NotAnObject => "not_an_object",
            RejectReason::MissingText => "missing_text",
            RejectReason::InvalidField => "invalid_field",
            RejectReason::DuplicateField => "duplicate_field",
            RejectReason::FilterFailed => "filter_failed",
            RejectReason::NoSchemaId => "no_schema_id",
            RejectReason::UnknownSchema => "unknown_schema",
            RejectReason::UnusableSchema => "unusable_schema",
            RejectReason::MalformedAvro => "malformed_avro",
            RejectReason::MalformedProtobuf => "malformed_protobuf",
        }
    }
}

/// A record that could not be read, with what a person needs to see why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub reason: RejectReason,
    pub detail: String,
}

impl Reject {
    /// Parsers like to repeat what they were given.
    const MAX_DETAIL_CHARS: usize = 200;

    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Reject { reason, detail: Self::shorten(detail.into()) }
    }

    fn shorten(mut detail: String) -> String {
        if let Some((end, _)) = detail.char_indices().nth(Self::MAX_DETAIL_CHARS) {
            detail.truncate(end);
            detail.push('…');
        }
        detail
    }
}
