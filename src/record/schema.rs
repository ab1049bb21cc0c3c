//! Schemas by their ids in a registry: which id a record names, and what its text compiles to. Asking the registry is another's
//! business.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::avro::AvroSchema;
use super::formats::Format;
use super::protobuf::ProtobufSchema;
use super::{Reject, RejectReason};

/// Before every datum: this byte, and the id, most significant byte first.
const MAGIC: u8 = 0;
const FRAME_BYTES: usize = 5;

/// A schema as a registry gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaText {
    /// `AVRO`, `PROTOBUF`, `JSON`.
    pub kind: String,
    pub text: String,
    /// What it refers to, and what that refers to, each behind all that it refers to itself: name and text.
    pub references: Vec<(String, String)>,
}

/// What a schema's text means, once and for all: an id never comes to name another one.
#[derive(Debug)]
pub enum Schema {
    Avro(AvroSchema),
    Protobuf(Box<ProtobufSchema>),
    /// Every record that names it is rejected so.
    Bad(Reject),
}

impl Schema {
    /// Compiles it for records of a format.
    pub fn compile(id: u32, schema: &SchemaText, format: &Format) -> Self {
        let compiled = match (format, schema.kind.as_str()) {
            (Format::Avro, "AVRO") => AvroSchema::compile(schema).map(Schema::Avro),
            (Format::Protobuf, "PROTOBUF") => {
                ProtobufSchema::compile(schema).map(|schema| Schema::Protobuf(Box::new(schema)))
            }
            (_, kind) => Err(format!("it is of type {kind}, which documents.format is not")),
        };
        let bad = |e| Schema::Bad(Reject::new(RejectReason::UnusableSchema, format!("schema {id}: {e}")));
        compiled.unwrap_or_else(bad)
    }

    /// Of an id that the registry does not have.
    pub fn unknown(id: u32) -> Self {
        Schema::Bad(Reject::new(RejectReason::UnknownSchema, format!("the registry has no schema {id}")))
    }
}

/// The schemas of some ids.
#[derive(Debug, Clone, Default)]
pub struct Schemas(BTreeMap<u32, Arc<Schema>>);

impl Schemas {
    pub fn get(&self, id: u32) -> Option<&Schema> {
        self.0.get(&id).map(|schema| &**schema)
    }
}

impl FromIterator<(u32, Arc<Schema>)> for Schemas {
    fn from_iter<I: IntoIterator<Item = (u32, Arc<Schema>)>>(schemas: I) -> Self {
        Schemas(schemas.into_iter().collect())
    }
}

/// The id that a record names, if its value is framed.
pub fn schema_id(payload: &[u8]) -> Option<u32> {
    framed(payload).ok().map(|(id, _)| id)
}

/// The id, and what follows it.
pub(super) fn framed(payload: &[u8]) -> Result<(u32, &[u8]), Reject> {
    match payload.split_first_chunk::<FRAME_BYTES>() {
        Some(([MAGIC, id @ ..], datum)) => Ok((u32::from_be_bytes(*id), datum)),
        found => {
            let begin = match found {
                Some((frame, _)) => format!("it begins with byte {}", frame[0]),
                None => format!("it has {} bytes", payload.len()),
            };
            let detail = format!("expected a zero byte and a schema's id of four bytes: {begin}");
            Err(Reject::new(RejectReason::NoSchemaId, detail))
        }
    }
}
