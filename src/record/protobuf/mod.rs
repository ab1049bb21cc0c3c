//! Protobuf: the text of a schema compiled to descriptors, and the fields of the messages that they describe.

mod compile;
mod json;

use std::borrow::Cow;

use prost_reflect::prost::encoding::decode_varint;
use prost_reflect::{DynamicMessage, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};

use super::decode::{Decoder, Parsed, Scalar};
use super::json::JsonBuffer;
use super::{Reject, RejectReason};

/// Messages in messages, on the way to the one that is sent.
const MAX_INDEXES: i64 = 32;

/// A schema of one file, and what it imports.
#[derive(Debug)]
pub struct ProtobufSchema {
    file: FileDescriptor,
}

impl ProtobufSchema {
    /// In: what follows the schema's id. Out: the named fields of the message, and all others as JSON. Fields that have no presence
    /// are there with their defaults, but for those named other than the text, and for lists and maps.
    pub(in crate::record) fn read<'a>(
        &'a self,
        decoder: &Decoder,
        datum: &[u8],
        json: &'a mut JsonBuffer,
    ) -> Result<Parsed<'a>, Reject> {
        json.begin(decoder.max_bytes);
        let mut rest = datum;
        let descriptor = self.message(&mut rest)?;
        let mut message = DynamicMessage::decode(descriptor, rest).map_err(|e| malformed(e.to_string()))?;
        let names = &decoder.fields;
        let is = |name: &Option<String>, field: &str| name.as_deref() == Some(field);
        let (mut parsed, mut ends) = (Parsed::default(), Vec::new());
        for field in message.descriptor().fields() {
            let slot = match field.name() {
                k if k == names.text => {
                    let is_there = message.has_field(&field) || !field.supports_presence();
                    if is_there {
                        let value = message.take_field(&field).unwrap_or_else(|| field.default_value());
                        parsed.text = scalar(value, &field.kind());
                    }
                    continue;
                }
                k if is(&names.id, k) => &mut parsed.id,
                k if is(&names.source, k) => &mut parsed.source,
                k if is(&names.timestamp, k) => &mut parsed.timestamp,
                k if is(&names.loss, k) => &mut parsed.loss,
                k if is(&names.reference_loss, k) => &mut parsed.reference_loss,
                name => {
                    if json::is_shown(&message, &field) {
                        json::push(json, &message.get_field(&field), &field.kind())?;
                        ends.push((Cow::Owned(name.to_owned()), json.len()));
                    }
                    continue;
                }
            };
            if let Some(value) = message.take_field(&field) {
                *slot = scalar(value, &field.kind());
            }
        }
        parsed.members = json.split(ends);
        Ok(parsed)
    }

    /// Where the message stands in its schema: how many numbers, and the numbers; one zero stands for the first message.
    fn message(&self, rest: &mut &[u8]) -> Result<MessageDescriptor, Reject> {
        let n_indexes = match zigzag(rest)? {
            0 => return self.file.messages().next().ok_or_else(|| malformed("the schema has no message")),
            n if (1..=MAX_INDEXES).contains(&n) => n,
            n => return Err(malformed(format!("{n} numbers of messages, expected up to {MAX_INDEXES}"))),
        };
        let mut found: Option<MessageDescriptor> = None;
        for _ in 0..n_indexes {
            let index = zigzag(rest)?;
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            found = match &found {
                None => self.file.messages().nth(place),
                // Entries of maps are not written down as messages, so they are not counted.
                Some(outer) => outer.child_messages().filter(|inner| !inner.is_map_entry()).nth(place),
            };
            if found.is_none() {
                return Err(malformed(format!("the schema has no message {index} there")));
            }
        }
        found.ok_or_else(|| malformed("no number of a message"))
    }
}

fn malformed(detail: impl Into<String>) -> Reject {
    Reject::new(RejectReason::MalformedProtobuf, detail)
}

/// Seven bits a byte, least significant first, the sign in the lowest.
fn zigzag(rest: &mut &[u8]) -> Result<i64, Reject> {
    let bits = decode_varint(rest).map_err(|e| malformed(e.to_string()))?;
    Ok((bits >> 1) as i64 ^ -((bits & 1) as i64))
}

/// A field that has a name of ours.
fn scalar(value: Value, kind: &Kind) -> Scalar<'static> {
    let float = |x: f64| if x.is_finite() { Scalar::Float(x) } else { Scalar::Other("not finite") };
    match value {
        Value::String(text) => Scalar::String(Cow::Owned(text)),
        Value::I32(n) => Scalar::Integer(n.into()),
        Value::I64(n) => Scalar::Integer(n.into()),
        Value::U32(n) => Scalar::Integer(n.into()),
        Value::U64(n) => Scalar::Integer(n.into()),
        Value::F32(x) => float(x.into()),
        Value::F64(x) => float(x),
        Value::EnumNumber(number) => match kind.as_enum().and_then(|of| of.get_value(number)) {
            Some(symbol) => Scalar::String(Cow::Owned(symbol.name().to_owned())),
            None => Scalar::Integer(number.into()),
        },
        Value::Message(message) => well_known(&message),
        Value::Bool(_) => Scalar::Other("a boolean"),
        Value::Bytes(_) => Scalar::Other("bytes"),
        Value::List(_) => Scalar::Other("a list"),
        Value::Map(_) => Scalar::Other("a map"),
    }
}

/// Times, and values that can be absent.
fn well_known(message: &DynamicMessage) -> Scalar<'static> {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Timestamp" {
        let (seconds, nanos) = json::seconds(message);
        return Scalar::Integer(i128::from(seconds) * 1000 + i128::from(nanos).div_euclid(1_000_000));
    }
    match json::wrapped(message) {
        Some((value, field)) => scalar(value, &FieldDescriptor::kind(&field)),
        None => Scalar::Other("a message"),
    }
}

#[cfg(test)]
mod tests;
