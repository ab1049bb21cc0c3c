use std::sync::Arc;

use crate::record::{
    Decoder, Document, Format, Parts, RawRecord, Reject, RejectReason, Schema, SchemaText, Schemas, TextScratch,
    TopicPartition,
};

fn compile(text: &str, references: &[(&str, &str)]) -> Schema {
    let references = references.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let text = SchemaText { kind: "PROTOBUF".to_owned(), text: text.to_owned(), references };
    Schema::compile(1, &text, &Format::Protobuf)
}

/// `datum`: behind the schema's id.
fn decode(schema: Schema, datum: &[u8]) -> Result<Document, Reject> {
    let at = TopicPartition::new("docs", 0);
    let payload = [&[0, 0, 0, 0, 1], datum].concat();
    let record =
        RawRecord { at: &at, offset: 9, timestamp_ms: Some(5), payload: Some(&payload), parts: Parts::default() };
    let schemas: Schemas = [(1, Arc::new(schema))].into_iter().collect();
    let mut decoder = Decoder { format: Format::Protobuf, ..Decoder::for_files() };
    decoder.fields.loss = Some("loss".to_owned());
    decoder.decode_record(record, &schemas, &mut TextScratch::default()).map(|document| document.to_document())
}

const NESTED: &str = r#"
syntax = "proto3";
message First { string text = 1; }
message Outer {
  map<string, string> entries = 1;
  message Zeroth { string other = 1; }
  message Inner { string text = 1; map<string, int32> counts = 2; message Deep { string text = 1; } }
}
"#;

#[test]
fn a_message_is_found_by_its_place_in_the_text() {
    let text_of = |indexes: &[u8]| {
        let datum = [indexes, &[10, 1, b't']].concat();
        decode(compile(NESTED, &[]), &datum).map(|document| document.text)
    };
    // Zig-zag: 2 is one, 4 is two, 6 is three.
    for fine in [&[0][..], &[2, 0], &[4, 2, 2], &[6, 2, 2, 0]] {
        assert_eq!(text_of(fine).as_deref(), Ok("t"), "{fine:?}");
    }
    assert_eq!(text_of(&[4, 2, 0]).unwrap_err().reason, RejectReason::MissingText);
    // No such message; a negative number; too many; cut off.
    for bad in [&[2, 4][..], &[4, 2, 4], &[2, 1], &[1], &[0x80, 1], &[4, 2, 2, 0x80]] {
        let reject = text_of(bad).unwrap_err();
        assert_eq!(reject.reason, RejectReason::MalformedProtobuf, "{bad:?}: {}", reject.detail);
    }
    assert_eq!(decode(compile("syntax = \"proto3\";", &[]), &[0]).unwrap_err().detail, "the schema has no message");
}

/// What has no presence cannot be told from its default.
#[test]
fn defaults_are_values_where_they_mean_something_and_absent_where_they_do_not() {
    let schema = || {
        compile(
            "syntax = \"proto3\"; message M { string text = 1; string id = 2; string source = 3; int64 timestamp = 4; double loss = 5; \
             int32 n = 6; optional int32 maybe = 7; repeated int32 ns = 8; }",
            &[],
        )
    };
    let document = decode(schema(), &[0]).unwrap();
    let expected = Document {
        id: "docs/0/9".to_owned(),
        text: String::new(),
        source: None,
        timestamp_ms: Some(5),
        metadata: Some("{\"n\":0}".to_owned()),
    };
    assert_eq!(document, expected);
    // An optional one that is zero is there.
    assert_eq!(decode(schema(), &[0, 56, 0]).unwrap().metadata.as_deref(), Some("{\"n\":0,\"maybe\":0}"));
    let optional = compile("syntax = \"proto3\"; message M { optional string text = 1; }", &[]);
    assert_eq!(decode(optional, &[0]).unwrap_err().reason, RejectReason::MissingText);
}

#[test]
fn imports_are_references_or_built_in() {
    let text = r#"syntax = "proto3";
import "a/b.proto";
import "confluent/meta.proto";
import "confluent/type/decimal.proto";
message M {
  string text = 1 [(confluent.field_meta).doc = "what it says"];
  B b = 2;
  confluent.type.Decimal price = 3;
}"#;
    let imported = [("a/b.proto", "syntax = \"proto3\"; message B { int32 n = 1; }")];
    let document = decode(compile(text, &imported), &[0, 18, 2, 8, 7]).unwrap();
    assert_eq!(document.metadata.as_deref(), Some("{\"b\":{\"n\":7}}"));
    match compile(text, &[]) {
        Schema::Bad(reject) => {
            assert_eq!(reject.reason, RejectReason::UnusableSchema);
            assert!(reject.detail.contains("a/b.proto"), "{}", reject.detail);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_in_messages_end_somewhere() {
    let schema = compile("syntax = \"proto3\"; message M { string text = 1; M m = 2; }", &[]);
    let mut message = Vec::new();
    for _ in 0..200 {
        let mut outer = vec![18];
        let mut length = message.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend(message);
        message = outer;
    }
    let reject = decode(schema, &[&[0], &message[..]].concat()).unwrap_err();
    assert_eq!(reject.reason, RejectReason::MalformedProtobuf, "{}", reject.detail);
}
