//! Values of Protobuf as JSON: by the names of the schema, 64-bit integers as numbers, bytes in base64, enums by name, and maps in
//! the order of their keys, so that the same bytes give the same text.

use chrono::{DateTime, SecondsFormat};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};

use super::super::Reject;
use super::super::json::JsonBuffer;

/// Whether a field is shown: if it is there, or cannot be absent. Lists and maps without items are not.
pub(super) fn is_shown(message: &DynamicMessage, field: &FieldDescriptor) -> bool {
    message.has_field(field) || !(field.supports_presence() || field.is_list() || field.is_map())
}

/// `kind`: of the value; of a list, of its items; of a map, of its entries.
pub(super) fn push(json: &mut JsonBuffer, value: &Value, kind: &Kind) -> Result<(), Reject> {
    match value {
        Value::Bool(value) => json.push(value),
        Value::I32(value) => json.push(value),
        Value::I64(value) => json.push(value),
        Value::U32(value) => json.push(value),
        Value::U64(value) => json.push(value),
        Value::F32(value) => json.push_number(*value),
        Value::F64(value) => json.push_number(*value),
        Value::String(value) => json.push(value.as_str()),
        Value::Bytes(value) => json.push(crate::base64(value).as_str()),
        Value::EnumNumber(number) => match kind.as_enum().and_then(|of| of.get_value(*number)) {
            Some(symbol) => json.push(symbol.name()),
            None => json.push(number),
        },
        Value::Message(message) => push_message(json, message),
        Value::List(items) => {
            let mut between = "[";
            for item in items {
                json.push_raw(between)?;
                push(json, item, kind)?;
                between = ",";
            }
            json.push_raw(if items.is_empty() { "[]" } else { "]" })
        }
        Value::Map(entries) => push_map(json, entries, kind),
    }
}

fn push_map<'a>(
    json: &mut JsonBuffer,
    entries: impl IntoIterator<Item = (&'a MapKey, &'a Value)>,
    kind: &Kind,
) -> Result<(), Reject> {
    let of_values = kind.as_message().map_or(Kind::Bool, |entry| entry.map_entry_value_field().kind());
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    json.push_raw("{")?;
    for (i, (key, value)) in entries.into_iter().enumerate() {
        json.push_raw(if i > 0 { "," } else { "" })?;
        match key {
            MapKey::Bool(key) => json.push(&key.to_string()),
            MapKey::I32(key) => json.push(&key.to_string()),
            MapKey::I64(key) => json.push(&key.to_string()),
            MapKey::U32(key) => json.push(&key.to_string()),
            MapKey::U64(key) => json.push(&key.to_string()),
            MapKey::String(key) => json.push(key.as_str()),
        }?;
        json.push_raw(":")?;
        push(json, value, &of_values)?;
    }
    json.push_raw("}")
}

fn push_message(json: &mut JsonBuffer, message: &DynamicMessage) -> Result<(), Reject> {
    let descriptor = message.descriptor();
    if let Some((value, field)) = wrapped(message) {
        return push(json, &value, &field.kind());
    }
    match descriptor.full_name() {
        "google.protobuf.Timestamp" => {
            let (seconds, nanos) = seconds(message);
            let time = u32::try_from(nanos).ok().and_then(|nanos| DateTime::from_timestamp(seconds, nanos));
            match time {
                Some(time) => json.push(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
                None => push_fields(json, message, &descriptor),
            }
        }
        "google.protobuf.Duration" => {
            let (seconds, nanos) = seconds(message);
            let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
            let fraction = format!(".{:09}", nanos.unsigned_abs());
            let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
            json.push(&format!("{sign}{}{fraction}s", seconds.unsigned_abs()))
        }
        "google.protobuf.Struct" | "google.protobuf.ListValue" => match descriptor.fields().next() {
            Some(field) => push(json, &message.get_field(&field), &field.kind()),
            None => json.push_raw("null"),
        },
        "google.protobuf.Value" => match descriptor.fields().find(|field| message.has_field(field)) {
            Some(field) if field.name() != "null_value" => push(json, &message.get_field(&field), &field.kind()),
            _ => json.push_raw("null"),
        },
        _ => push_fields(json, message, &descriptor),
    }
}

fn push_fields(json: &mut JsonBuffer, message: &DynamicMessage, of: &MessageDescriptor) -> Result<(), Reject> {
    let mut between = "{";
    for field in of.fields().filter(|field| is_shown(message, field)) {
        json.push_raw(between)?;
        json.push(field.name())?;
        json.push_raw(":")?;
        push(json, &message.get_field(&field), &field.kind())?;
        between = ",";
    }
    json.push_raw(if between == "{" { "{}" } else { "}" })
}

/// Of a time or a duration: seconds, and billionths of one.
pub(super) fn seconds(message: &DynamicMessage) -> (i64, i32) {
    let seconds = message.get_field_by_name("seconds").and_then(|value| value.as_i64());
    let nanos = message.get_field_by_name("nanos").and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// The value in a message that is there to be able to be absent.
pub(super) fn wrapped(message: &DynamicMessage) -> Option<(Value, FieldDescriptor)> {
    const WRAPPERS: [&str; 9] = [
        "DoubleValue",
        "FloatValue",
        "Int64Value",
        "UInt64Value",
        "Int32Value",
        "UInt32Value",
        "BoolValue",
        "StringValue",
        "BytesValue",
    ];
    let descriptor = message.descriptor();
    let name = descriptor.full_name().strip_prefix("google.protobuf.")?;
    let field = WRAPPERS.contains(&name).then(|| descriptor.get_field_by_name("value"))??;
    Some((message.get_field(&field).into_owned(), field))
}
