//! How a record's bytes are written: JSON, plain text, or Avro and Protobuf whose schema a registry has.

use std::borrow::Cow;
use std::ops::Range;

use super::decode::{Decoder, Parsed, Scalar};
use super::document::DocumentRef;
use super::scan::TextScratch;
use super::schema::{Schema, Schemas, framed};
use super::{Reject, RejectReason, TopicPartition};

/// What the values of a topic are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    Json,
    Text(TextFormat),
    /// In the wire format of Confluent's registry: a zero byte, four of the schema's id, the datum.
    Avro,
    /// The same, with the place of the message in its schema before the message.
    Protobuf,
}

/// The value is the text; all else stands beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFormat {
    /// A record's key is its id; otherwise its position is.
    pub id_from_key: bool,
    /// The header that names the source.
    pub source_header: Option<String>,
    /// Of records without that header.
    pub source: Option<String>,
    /// Headers that travel along as strings, by their own names.
    pub headers: Vec<String>,
}

/// What is wanted of a record beside its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordPart {
    Key,
    /// The last header of this name.
    Header(String),
}

/// These of one record, in the order in which they are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    bytes: &'a [u8],
    places: &'a [Option<Range<usize>>],
}

impl<'a> Parts<'a> {
    /// `places`: of each part in `bytes`; `None` where the record has none.
    pub fn new(bytes: &'a [u8], places: &'a [Option<Range<usize>>]) -> Self {
        Parts { bytes, places }
    }

    fn get(&self, number: usize) -> Option<&'a [u8]> {
        self.places.get(number)?.clone().map(|place| &self.bytes[place])
    }
}

/// A record before anybody has looked into it.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    pub at: &'a TopicPartition,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub payload: Option<&'a [u8]>,
    pub parts: Parts<'a>,
}

impl Format {
    /// Whether records name schemas.
    pub fn is_framed(&self) -> bool {
        matches!(self, Format::Avro | Format::Protobuf)
    }

    /// What must be brought along of each record, in this order.
    pub fn parts(&self) -> Vec<RecordPart> {
        let Format::Text(text) = self else { return Vec::new() };
        let headers = text.source_header.iter().chain(&text.headers);
        let key = text.id_from_key.then_some(RecordPart::Key);
        key.into_iter().chain(headers.cloned().map(RecordPart::Header)).collect()
    }
}

impl Decoder {
    /// In: a record, and the schemas of all ids that [`super::schema_id`] finds in such records. Out: the document, or why it is
    /// none; as [`Decoder::decode_ref`] does of JSON.
    ///
    /// # Panics
    /// If the schema that the record names is not among the schemas.
    pub fn decode_record<'a>(
        &'a self,
        record: RawRecord<'a>,
        schemas: &'a Schemas,
        scratch: &'a mut TextScratch,
    ) -> Result<DocumentRef<'a>, Reject> {
        let RawRecord { at, offset, timestamp_ms, payload, parts } = record;
        let format = match &self.format {
            Format::Json => return self.decode_ref(payload, at, offset, timestamp_ms, scratch),
            other => other,
        };
        let payload = self.payload(payload)?;
        let parsed = match format {
            Format::Text(text) => text.parse(payload, parts, scratch)?,
            _ => {
                let (id, datum) = framed(payload)?;
                match schemas.get(id).unwrap_or_else(|| panic!("schema {id} was not asked for")) {
                    Schema::Avro(schema) => schema.read(self, datum, &mut scratch.json)?,
                    Schema::Protobuf(schema) => schema.read(self, datum, &mut scratch.json)?,
                    Schema::Bad(reject) => return Err(reject.clone()),
                }
            }
        };
        self.document(parsed, at, offset, timestamp_ms)
    }
}

impl TextFormat {
    fn parse<'a>(
        &'a self,
        payload: &'a [u8],
        parts: Parts<'a>,
        scratch: &'a mut TextScratch,
    ) -> Result<Parsed<'a>, Reject> {
        let text = utf8(payload, || "the value".to_owned())?;
        let mut numbers = 0..;
        let mut next = || numbers.next().and_then(|number| parts.get(number));
        let key = if self.id_from_key { next() } else { None };
        let id = key.filter(|key| !key.is_empty()).map(|key| utf8(key, || "the key".to_owned())).transpose()?;
        let named = self.source_header.as_ref().and_then(|name| Some((name, next()?)));
        // Also a source header that is not there has its place.
        let source = named.map(|(name, value)| utf8(value, || format!("header `{name}`"))).transpose()?;
        let source = source.or(self.source.as_deref());
        let json = &mut scratch.json;
        json.begin(usize::MAX);
        let mut ends = Vec::with_capacity(self.headers.len());
        for name in &self.headers {
            let Some(value) = next() else { continue };
            json.push(utf8(value, || format!("header `{name}`"))?)?;
            ends.push((Cow::Borrowed(name.as_str()), json.len()));
        }
        let string = |value: Option<&'a str>| value.map_or(Scalar::Null, |s| Scalar::String(Cow::Borrowed(s)));
        Ok(Parsed {
            text: Scalar::String(Cow::Borrowed(text)),
            id: string(id),
            source: string(source),
            members: json.split(ends),
            ..Parsed::default()
        })
    }
}

fn utf8(bytes: &[u8], what: impl Fn() -> String) -> Result<&str, Reject> {
    simdutf8::compat::from_utf8(bytes).map_err(|e| Reject::new(RejectReason::InvalidUtf8, format!("{}: {e}", what())))
}

#[cfg(test)]
mod tests;
