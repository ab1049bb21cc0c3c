//! The text of a schema, a zero byte, a datum: compiled and decoded as Avro or as Protobuf. A document or not, in bounded memory; the
//! same one again; and what travels along is JSON.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use winnowd::record::{
    Decoder, Format, Parts, RawRecord, Schema, SchemaText, Schemas, TextScratch, TopicPartition, schema_id,
};
use winnowd_fuzz::within;

/// Also of the JSON that travels along: a schema can ask for much more than the datum has.
const MAX_BYTES: usize = 1 << 16;
/// A schema of Protobuf may import those that are built in.
const MAX_HELD_BYTES: usize = 16 << 20;

fuzz_target!(|input: &[u8]| {
    let (schema, datum) = match input.iter().position(|byte| *byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    let text = String::from_utf8_lossy(schema).into_owned();
    let (kind, format) = match text.starts_with(['{', '[', '"']) {
        true => ("AVRO", Format::Avro),
        false => ("PROTOBUF", Format::Protobuf),
    };
    let schema = SchemaText { kind: kind.to_owned(), text, references: Vec::new() };
    let payload = [&[0, 0, 0, 0, 1], datum].concat();
    assert_eq!(schema_id(&payload), Some(1));
    let mut decoder = Decoder { format, max_bytes: MAX_BYTES, ..Decoder::for_files() };
    (decoder.fields.loss, decoder.fields.reference_loss) = (Some("loss".into()), Some("ref".into()));
    let at = TopicPartition::new("docs", 3);
    let decode = || {
        let schemas: Schemas = [(1, Arc::new(Schema::compile(1, &schema, &decoder.format)))].into_iter().collect();
        let parts = Parts::default();
        let record = RawRecord { at: &at, offset: 7, timestamp_ms: Some(5), payload: Some(&payload), parts };
        let mut scratch = TextScratch::default();
        let decoded = decoder.decode_record(record, &schemas, &mut scratch);
        decoded.map(|read| {
            for (name, json) in &read.members {
                assert!(serde_json::from_str::<&RawValue>(json).is_ok(), "`{name}` is no JSON: {json}");
            }
            assert!(read.loss.is_none_or(f64::is_finite));
            read.to_document()
        })
    };
    let decoded = within(MAX_HELD_BYTES, decode);
    assert_eq!(decoded, decode());
});
