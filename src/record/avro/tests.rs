use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::record::{
    Decoder, Document, Format, Parts, RawRecord, Reject, RejectReason, Schema, SchemaText, Schemas, TextScratch,
    TopicPartition,
};

fn compile(schema: &Value) -> Schema {
    let text = SchemaText { kind: "AVRO".to_owned(), text: schema.to_string(), references: Vec::new() };
    Schema::compile(1, &text, &Format::Avro)
}

fn decode_with(decoder: &Decoder, schema: Schema, payload: &[u8]) -> Result<Document, Reject> {
    let at = TopicPartition::new("docs", 0);
    let record =
        RawRecord { at: &at, offset: 9, timestamp_ms: Some(5), payload: Some(payload), parts: Parts::default() };
    let schemas: Schemas = [(1, Arc::new(schema))].into_iter().collect();
    decoder.decode_record(record, &schemas, &mut TextScratch::default()).map(|document| document.to_document())
}

fn decode(schema: &Value, datum: &[u8]) -> Result<Document, Reject> {
    let decoder = Decoder { format: Format::Avro, ..Decoder::for_files() };
    decode_with(&decoder, compile(schema), &[&[0, 0, 0, 0, 1], datum].concat())
}

fn record_of(fields: &Value) -> Value {
    json!({ "type": "record", "name": "R", "fields": fields })
}

fn long(n: i64, out: &mut Vec<u8>) {
    let mut bits = (n << 1 ^ n >> 63) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

/// A type that holds a value of JSON, and the bytes of the value: an encoder that knows nothing of the decoder.
fn encode(value: &Value, names: &mut usize, out: &mut Vec<u8>) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(b) => {
            // Wrapped in a union, as optional fields are.
            long(1, out);
            out.push(u8::from(*b));
            json!(["null", "boolean"])
        }
        Value::Number(n) => match n.as_i64() {
            Some(n) => {
                long(n, out);
                json!("long")
            }
            None => {
                out.extend(n.as_f64().unwrap().to_le_bytes());
                json!({ "type": "double" })
            }
        },
        Value::String(s) => {
            long(s.len() as i64, out);
            out.extend(s.as_bytes());
            json!("string")
        }
        // An item can be of any type: each is a record of its own in a union.
        Value::Array(items) => {
            let mut branches = Vec::new();
            if !items.is_empty() {
                long(items.len() as i64, out);
            }
            for (i, item) in items.iter().enumerate() {
                long(i as i64, out);
                branches.push(encode_object([("v", item)].into_iter(), names, out));
            }
            long(0, out);
            json!({ "type": "array", "items": branches })
        }
        Value::Object(members) => encode_object(members.iter().map(|(name, value)| (name.as_str(), value)), names, out),
    }
}

fn encode_object<'a>(
    members: impl Iterator<Item = (&'a str, &'a Value)>,
    names: &mut usize,
    out: &mut Vec<u8>,
) -> Value {
    *names += 1;
    let name = format!("R{names}");
    let fields = members.map(|(name, value)| json!({ "name": name, "type": encode(value, names, out) }));
    let fields: Vec<Value> = fields.collect();
    json!({ "type": "record", "name": name, "fields": fields })
}

/// What stands in arrays comes back in records of one field.
fn wrapped(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| json!({ "v": wrapped(item) })).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), wrapped(value))).collect(),
        other => other.clone(),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let object = proptest::collection::btree_map("[a-z]{1,3}", inner.clone(), 0..4);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    /// JSON → Avro → document is JSON → document.
    #[test]
    fn a_record_is_the_document_that_its_json_is(
        members in proptest::collection::btree_map("(id|source|timestamp|n|z[a-z]{0,3})", any_value(), 0..6),
        text in "\\PC{0,40}",
    ) {
        let mut members: serde_json::Map<String, Value> = members.into_iter().collect();
        members.insert("text".to_owned(), text.into());
        let mut datum = vec![0, 0, 0, 0, 1];
        let schema = encode_object(members.iter().map(|(name, value)| (name.as_str(), value)), &mut 0, &mut datum);
        let decoder = Decoder { format: Format::Avro, ..Decoder::for_files() };
        let found = decode_with(&decoder, compile(&schema), &datum);
        let json = wrapped(&Value::Object(members)).to_string();
        let at = TopicPartition::new("docs", 0);
        let expected = Decoder::for_files().decode(Some(json.as_bytes()), &at, 9, Some(5));
        match (found, expected) {
            (Ok(found), Ok(expected)) => prop_assert_eq!(found, expected),
            // A record is called an object there.
            (Err(found), Err(expected)) => prop_assert_eq!(found.reason, expected.reason),
            (found, expected) => prop_assert!(false, "{:?} instead of {:?}", found, expected),
        }
    }

    /// Whatever the bytes are, they are a document or a reject.
    #[test]
    fn any_bytes_are_decided(datum in proptest::collection::vec(any::<u8>(), 0..60)) {
        let schema = record_of(&json!([
            { "name": "text", "type": "string" },
            { "name": "a", "type": { "type": "array", "items": ["null", "R", "bytes", { "type": "map", "values": "int" }] } },
            { "name": "f", "type": { "type": "fixed", "name": "F", "size": 2 } },
        ]));
        if let Err(reject) = decode(&schema, &datum) {
            prop_assert!(matches!(reject.reason, RejectReason::MalformedAvro | RejectReason::InvalidUtf8));
        }
    }
}

#[test]
fn hostile_lengths_allocate_nothing() {
    let nulls = record_of(&json!([{ "name": "a", "type": { "type": "array", "items": "null" } }]));
    let mut datum = Vec::new();
    long(1 << 60, &mut datum);
    let reject = decode(&nulls, &datum).unwrap_err();
    assert_eq!(
        (reject.reason, reject.detail.as_str()),
        (RejectReason::MalformedAvro, "field `a`: more items than bytes")
    );
    let text = record_of(&json!([{ "name": "text", "type": "string" }]));
    for length in [1 << 60, -1, i64::MIN, i64::MAX] {
        let mut datum = Vec::new();
        long(length, &mut datum);
        assert_eq!(decode(&text, &datum).unwrap_err().reason, RejectReason::MalformedAvro, "{length}");
    }
    let itself = record_of(&json!([{ "name": "again", "type": "R" }]));
    assert!(decode(&itself, &[]).unwrap_err().detail.contains("more than 64 times"));
    // One byte each, with a long name.
    let name = "n".repeat(1000);
    let inner = json!({ "type": "record", "name": "I", "fields": [{ "name": name, "type": "boolean" }] });
    let wide = record_of(&json!([{ "name": "a", "type": { "type": "array", "items": inner } }]));
    let mut payload = vec![0, 0, 0, 0, 1];
    long(2000, &mut payload);
    payload.extend([0; 2001]);
    let decoder = Decoder { format: Format::Avro, max_bytes: 1 << 20, ..Decoder::for_files() };
    assert_eq!(decode_with(&decoder, compile(&wide), &payload).unwrap_err().reason, RejectReason::TooLarge);
}

#[test]
fn times_become_milliseconds_and_integers_stay_in_their_bits() {
    let at = |logical: &str, value: i64| {
        let of = json!({ "type": "long", "logicalType": logical });
        let schema = record_of(&json!([{ "name": "text", "type": "string" }, { "name": "timestamp", "type": of }]));
        let mut datum = vec![2, b't'];
        long(value, &mut datum);
        decode(&schema, &datum).unwrap().timestamp_ms
    };
    assert_eq!(at("timestamp-millis", 1234), Some(1234));
    assert_eq!(at("timestamp-micros", 1_234_567), Some(1234));
    assert_eq!(at("timestamp-nanos", -1), Some(-1));
    let schema = record_of(&json!([{ "name": "text", "type": "string" }, { "name": "n", "type": "int" }]));
    let mut datum = vec![2, b't'];
    long(i64::from(i32::MAX) + 1, &mut datum);
    assert!(decode(&schema, &datum).unwrap_err().detail.contains("2147483648 is no int"));
    assert_eq!(
        decode(&schema, &[2, b't', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 3]).unwrap_err().reason,
        RejectReason::MalformedAvro
    );
    assert_eq!(decode(&schema, &[2, b't', 0, 0]).unwrap_err().detail, "1 bytes follow the last field");
}

#[test]
fn mistakes_in_schemas_are_told_with_their_place() {
    let told = |schema: &Value| match compile(schema) {
        Schema::Bad(reject) => reject.detail,
        other => panic!("{other:?}"),
    };
    for (schema, problem) in [
        (json!("Nobody"), "there is no type `Nobody`"),
        (record_of(&json!([{ "name": "a", "type": "what" }])), "field `R.a`: there is no type `what`"),
        (record_of(&json!([{ "type": "int" }])), "a field without `name`"),
        (record_of(&json!([{ "name": "a", "type": "int" }, { "name": "a", "type": "int" }])), "two fields `a`"),
        (json!({ "type": "array" }), "an array without `items`"),
        (json!({ "type": "fixed", "name": "F" }), "fixed `F` has no `size`"),
        (
            json!([{ "type": "enum", "name": "E", "symbols": [] }, { "type": "enum", "name": "E", "symbols": [] }]),
            "defined twice",
        ),
        (json!(7), "`7` is no type"),
    ] {
        let detail = told(&schema);
        assert!(detail.starts_with("schema 1: ") && detail.contains(problem), "{detail}");
    }
    assert_eq!(decode(&json!("string"), &[0]).unwrap_err().reason, RejectReason::NotAnObject);
}

#[test]
fn fields_of_other_types_are_told_as_in_json() {
    let schema = record_of(&json!([
        { "name": "text", "type": { "type": "array", "items": "int" } },
        { "name": "n", "type": "int" },
    ]));
    let reject = decode(&schema, &[2, 2, 0, 4]).unwrap_err();
    assert_eq!(
        (reject.reason, reject.detail.as_str()),
        (RejectReason::InvalidField, "field `text` is an array, expected a string")
    );
}
