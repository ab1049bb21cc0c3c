//! JSON objects to documents, with configurable field names; fields of any format to documents.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::document::{Document, DocumentRef};
use super::formats::Format;
use super::scan::{TextScratch, scan};
use super::{Reject, RejectReason, TopicPartition};

/// Which field of the record is what. `None`: the stream has no such field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldNames {
    pub text: String,
    pub id: Option<String>,
    pub source: Option<String>,
    pub timestamp: Option<String>,
    /// Of a proxy model.
    pub loss: Option<String>,
    /// Of a reference model: what counts is by how much the loss is above it.
    pub reference_loss: Option<String>,
}

/// Turns the payload of a record into a document.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub format: Format,
    pub fields: FieldNames,
    pub max_bytes: usize,
}

impl Decoder {
    /// The field names of the defaults, for files: `text`, `id`, `source`, `timestamp`.
    pub fn for_files() -> Self {
        let name = |s: &str| Some(s.to_owned());
        let fields = FieldNames {
            text: "text".into(),
            id: name("id"),
            source: name("source"),
            timestamp: name("timestamp"),
            loss: None,
            reference_loss: None,
        };
        Decoder { format: Format::Json, fields, max_bytes: 1 << 30 }
    }

    /// In: the payload of one record, which is JSON, and where it stood. Out: the document, or why it is none. Never fails otherwise.
    ///
    /// `id` may be a string or an integer; `timestamp` an integer (milliseconds since 1970 UTC) or an RFC 3339 string.
    /// Losses are numbers; where a reference is named, the document has a loss only if both are there. Fields that are null count as absent. Without an id the position is the id; without a timestamp the record's
    /// own, `record_timestamp_ms`, is taken. An empty text is a document without tokens.
    pub fn decode(
        &self,
        payload: Option<&[u8]>,
        at: &TopicPartition,
        offset: i64,
        record_timestamp_ms: Option<i64>,
    ) -> Result<Document, Reject> {
        let mut scratch = TextScratch::default();
        self.decode_ref(payload, at, offset, record_timestamp_ms, &mut scratch).map(|d| d.to_document())
    }

    /// The same without a copy: what is given borrows from the payload and the scratch.
    pub fn decode_ref<'a>(
        &self,
        payload: Option<&'a [u8]>,
        at: &'a TopicPartition,
        offset: i64,
        record_timestamp_ms: Option<i64>,
        scratch: &'a mut TextScratch,
    ) -> Result<DocumentRef<'a>, Reject> {
        let payload = self.payload(payload)?;
        let parsed = match scan(&self.fields, payload, scratch) {
            Some(parsed) => parsed,
            None => self.parse(payload)?,
        };
        self.document(parsed, at, offset, record_timestamp_ms)
    }

    pub(super) fn payload<'a>(&self, payload: Option<&'a [u8]>) -> Result<&'a [u8], Reject> {
        let payload = payload.ok_or_else(|| Reject::new(RejectReason::NullPayload, "the record has no value"))?;
        if payload.len() > self.max_bytes {
            let detail = format!("{} bytes, allowed are {}", payload.len(), self.max_bytes);
            return Err(Reject::new(RejectReason::TooLarge, detail));
        }
        Ok(payload)
    }

    /// Every record, and what is wrong with it.
    pub(super) fn parse<'a>(&self, payload: &'a [u8]) -> Result<Parsed<'a>, Reject> {
        let json = std::str::from_utf8(payload).map_err(|e| Reject::new(RejectReason::InvalidUtf8, e.to_string()))?;
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let parsed =
            ObjectSeed(&self.fields).deserialize(&mut deserializer).and_then(|p| deserializer.end().map(|()| p));
        parsed.map_err(|e| match e.classify() {
            serde_json::error::Category::Data => Reject::new(RejectReason::NotAnObject, e.to_string()),
            _ => Reject::new(RejectReason::MalformedJson, e.to_string()),
        })?
    }

    pub(super) fn document<'a>(
        &self,
        parsed: Parsed<'a>,
        at: &'a TopicPartition,
        offset: i64,
        record_timestamp_ms: Option<i64>,
    ) -> Result<DocumentRef<'a>, Reject> {
        let names = &self.fields;
        let string_or_integer = |value: Scalar<'a>, name: &Option<String>| match value {
            Scalar::Null => Ok(None),
            Scalar::String(s) => Ok(Some(s)),
            Scalar::Integer(n) => Ok(Some(Cow::Owned(n.to_string()))),
            other => Err(wrong_type(name.as_deref().unwrap_or_default(), "a string or an integer", other.kind())),
        };
        let text = match parsed.text {
            Scalar::String(text) => text,
            Scalar::Null => return Err(Reject::new(RejectReason::MissingText, format!("no field `{}`", names.text))),
            Scalar::Integer(_) => return Err(wrong_type(&names.text, "a string", "a number")),
            other => return Err(wrong_type(&names.text, "a string", other.kind())),
        };
        let timestamp_ms = match parsed.timestamp {
            Scalar::Null => record_timestamp_ms,
            Scalar::Integer(ms) => match i64::try_from(ms) {
                Ok(ms) => Some(ms),
                Err(_) => return Err(bad_timestamp(names, &ms.to_string())),
            },
            Scalar::String(s) => match chrono::DateTime::parse_from_rfc3339(&s) {
                Ok(time) => Some(time.timestamp_millis()),
                Err(_) => return Err(bad_timestamp(names, &s)),
            },
            other => {
                let name = names.timestamp.as_deref().unwrap_or_default();
                return Err(wrong_type(name, "milliseconds or an RFC 3339 string", other.kind()));
            }
        };
        let given_losses = [number(&parsed.loss, &names.loss)?, number(&parsed.reference_loss, &names.reference_loss)?];
        let loss = match (given_losses, &names.reference_loss) {
            ([loss, _], None) => loss,
            ([loss, reference], Some(_)) => loss.zip(reference).map(|(loss, reference)| loss - reference),
        };
        // Two numbers at opposite ends of doubles.
        if loss.is_some_and(|loss| !loss.is_finite()) {
            return Err(Reject::new(
                RejectReason::InvalidField,
                "the loss and its reference have no finite difference",
            ));
        }
        let own_id = string_or_integer(parsed.id, &names.id)?;
        let source = string_or_integer(parsed.source, &names.source)?;
        Ok(DocumentRef { own_id, at, offset, text, source, timestamp_ms, loss, given_losses, members: parsed.members })
    }
}

fn number(value: &Scalar<'_>, name: &Option<String>) -> Result<Option<f64>, Reject> {
    match value {
        Scalar::Null => Ok(None),
        Scalar::Integer(n) => Ok(Some(*n as f64)),
        Scalar::Float(number) => Ok(Some(*number)),
        other => Err(wrong_type(name.as_deref().unwrap_or_default(), "a number", other.kind())),
    }
}

fn wrong_type(name: &str, wanted: &str, found: &str) -> Reject {
    Reject::new(RejectReason::InvalidField, format!("field `{name}` is {found}, expected {wanted}"))
}

fn bad_timestamp(names: &FieldNames, value: &str) -> Reject {
    let name = names.timestamp.as_deref().unwrap_or_default();
    let shown: String = value.chars().take(40).collect();
    Reject::new(
        RejectReason::InvalidField,
        format!("field `{name}` is `{shown}`, expected milliseconds or an RFC 3339 string"),
    )
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Parsed<'a> {
    pub text: Scalar<'a>,
    pub id: Scalar<'a>,
    pub source: Scalar<'a>,
    pub timestamp: Scalar<'a>,
    pub loss: Scalar<'a>,
    pub reference_loss: Scalar<'a>,
    /// The other fields, with the bytes of their values.
    pub members: Vec<(Cow<'a, str>, &'a str)>,
}

/// A value of a named field. Wrong types are kept as such, so that they become a message and not a parse error.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Scalar<'a> {
    #[default]
    Null,
    String(Cow<'a, str>),
    Integer(i128),
    /// Written with a point or an exponent, or too large for 64 bits.
    Float(f64),
    Other(&'static str),
}

impl Scalar<'_> {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Scalar::Null => "null",
            Scalar::String(_) => "a string",
            Scalar::Integer(_) => "an integer",
            Scalar::Float(_) => "a number that is no 64-bit integer",
            Scalar::Other(kind) => kind,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::String(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Scalar<'de>, E> {
                Ok(Scalar::String(Cow::Owned(v.to_owned())))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Integer(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Integer(v.into()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Float(v))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Other("a boolean"))
            }
            fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
                Ok(Scalar::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("an array"))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other("an object"))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

#[derive(Deserialize)]
pub(super) struct Key<'a>(#[serde(borrow)] pub Cow<'a, str>);

struct ObjectSeed<'n>(&'n FieldNames);

impl<'de> DeserializeSeed<'de> for ObjectSeed<'_> {
    type Value = Result<Parsed<'de>, Reject>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ObjectSeed<'_> {
    type Value = Result<Parsed<'de>, Reject>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let names = self.0;
        let is = |name: &Option<String>, key: &str| name.as_deref() == Some(key);
        let mut parsed = Parsed::default();
        let mut seen = [false; 6];
        let mut duplicate = None;
        while let Some(Key(key)) = map.next_key()? {
            let (place, slot) = match &*key {
                k if k == names.text => (0, &mut parsed.text),
                k if is(&names.id, k) => (1, &mut parsed.id),
                k if is(&names.source, k) => (2, &mut parsed.source),
                k if is(&names.timestamp, k) => (3, &mut parsed.timestamp),
                k if is(&names.loss, k) => (4, &mut parsed.loss),
                k if is(&names.reference_loss, k) => (5, &mut parsed.reference_loss),
                _ => {
                    let value: &'de RawValue = map.next_value()?;
                    parsed.members.push((key, value.get()));
                    continue;
                }
            };
            *slot = map.next_value()?;
            if std::mem::replace(&mut seen[place], true) {
                duplicate = Some(Reject::new(
                    RejectReason::DuplicateField,
                    format!("field `{key}` stands twice in the record"),
                ));
            }
        }
        Ok(duplicate.map_or(Ok(parsed), Err))
    }
}

#[cfg(test)]
mod tests;
