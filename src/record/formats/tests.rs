use std::sync::Arc;

use super::*;
use crate::record::{Document, SchemaText, schema_id};

/// Made by `tests/schemas/make_golden.py`.
const GOLDEN: &str = include_str!("../../../tests/schemas/golden.jsonl");

#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    format: String,
    id: u32,
    schema: String,
    schema_type: String,
    references: Vec<GoldenReference>,
    payload: String,
    record: serde_json::Value,
}

/// Name, subject, version, schema, and what that refers to.
#[derive(serde::Deserialize)]
struct GoldenReference(String, serde::de::IgnoredAny, serde::de::IgnoredAny, String, Vec<GoldenReference>);

impl GoldenReference {
    fn add_to(&self, references: &mut Vec<(String, String)>) {
        let GoldenReference(name, _, _, text, inner) = self;
        inner.iter().for_each(|inner| inner.add_to(references));
        if references.iter().all(|(known, _)| known != name) {
            references.push((name.clone(), text.clone()));
        }
    }
}

fn golden() -> Vec<Golden> {
    GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn decoder(format: Format) -> Decoder {
    let mut decoder = Decoder { format, ..Decoder::for_files() };
    decoder.fields.loss = Some("loss".to_owned());
    decoder
}

fn format(name: &str) -> Format {
    if name == "avro" { Format::Avro } else { Format::Protobuf }
}

impl Golden {
    fn schemas(&self, format: &Format) -> Schemas {
        let mut references = Vec::new();
        self.references.iter().for_each(|reference| reference.add_to(&mut references));
        let text = SchemaText { kind: self.schema_type.clone(), text: self.schema.clone(), references };
        [(self.id, Arc::new(Schema::compile(self.id, &text, format)))].into_iter().collect()
    }
}

/// The document, and the loss that it has.
fn decode(decoder: &Decoder, payload: &[u8], schemas: &Schemas) -> Result<(Document, Option<f64>), Reject> {
    let at = TopicPartition::new("docs", 3);
    let (payload, parts) = (Some(payload), Parts::default());
    let record = RawRecord { at: &at, offset: 17, timestamp_ms: Some(5), payload, parts };
    let mut scratch = TextScratch::default();
    // What another record has left there does not matter.
    scratch.json.begin(100);
    scratch.json.push("left behind").unwrap();
    decoder.decode_record(record, schemas, &mut scratch).map(|document| (document.to_document(), document.loss))
}

#[test]
fn what_other_programs_write_becomes_the_document_that_its_json_becomes() {
    let golden = golden();
    assert!(golden.len() > 12);
    let at = TopicPartition::new("docs", 3);
    let word =
        |document: &Document, field: &str| document.borrowed(&at, 17, None, true).word(field).map(Cow::into_owned);
    let mut words = Vec::new();
    for golden in golden {
        let (name, payload) = (&golden.name, unhex(&golden.payload));
        assert_eq!(schema_id(&payload), Some(golden.id), "{name}");
        let decoder = decoder(format(&golden.format));
        let schemas = golden.schemas(&decoder.format);
        let (found, loss) = decode(&decoder, &payload, &schemas).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let json = Decoder { format: Format::Json, ..decoder.clone() };
        let (expected, expected_loss) = decode(&json, golden.record.to_string().as_bytes(), &schemas).unwrap();
        let metadata = |document: &Document| -> Option<serde_json::Value> {
            document.metadata.as_deref().map(|json| serde_json::from_str(json).unwrap())
        };
        assert_eq!(metadata(&found), metadata(&expected), "{name}");
        assert_eq!((loss, &found.id, &found.text), (expected_loss, &expected.id, &expected.text), "{name}");
        assert_eq!((found.source.as_ref(), found.timestamp_ms), (expected.source.as_ref(), expected.timestamp_ms));
        for field in golden.record.as_object().unwrap().keys() {
            assert_eq!(word(&found, field), word(&expected, field), "{name}: {field}");
            words.extend(word(&found, field).map(|_| golden.format.clone()));
        }
        // Maps have no order, their text has.
        for _ in 0..5 {
            let again = decode(&decoder, &payload, &golden.schemas(&decoder.format)).unwrap().0;
            assert_eq!(found, again, "{name}");
        }
    }
    assert!(["avro", "protobuf"].iter().all(|format| words.iter().any(|of| of == format)));
}

/// None panics, and each is told as what it is.
#[test]
fn records_that_are_cut_off_or_broken_are_rejected() {
    for golden in golden() {
        let decoder = decoder(format(&golden.format));
        let schemas = golden.schemas(&decoder.format);
        let payload = unhex(&golden.payload);
        for end in 0..payload.len() {
            let reason = decode(&decoder, &payload[..end], &schemas).err().map(|reject| reject.reason);
            match reason {
                Some(RejectReason::NoSchemaId) => assert!(end < 5, "{}: {end} bytes", golden.name),
                Some(RejectReason::MalformedAvro | RejectReason::MalformedProtobuf) => assert!(end >= 5),
                // Protobuf has no end of its own: it may end after any field.
                None | Some(RejectReason::MissingText) => assert_eq!(golden.format, "protobuf", "{end} bytes"),
                Some(other) => panic!("{}: {end} bytes are {other:?}", golden.name),
            }
        }
        let mut broken = payload.clone();
        for i in 5..payload.len() {
            for flip in [1, 0x80, 0xff] {
                broken[i] ^= flip;
                if let Err(reject) = decode(&decoder, &broken, &schemas) {
                    let is_of_format = matches!(
                        reject.reason,
                        RejectReason::MalformedAvro
                            | RejectReason::MalformedProtobuf
                            | RejectReason::InvalidUtf8
                            | RejectReason::MissingText
                            | RejectReason::InvalidField
                            | RejectReason::NotAnObject
                    );
                    assert!(is_of_format, "{}: byte {i}: {reject:?}", golden.name);
                }
                broken[i] ^= flip;
            }
        }
    }
}

#[test]
fn schemas_that_cannot_be_used_reject_their_records_with_a_reason() {
    let flat = |of: &str| golden().into_iter().find(|golden| golden.format == of && golden.name == "flat").unwrap();
    let avro = flat("avro");
    let reason = |format: Format, payload: &[u8], schemas: &Schemas| {
        let reject = decode(&decoder(format), payload, schemas).unwrap_err();
        (reject.reason, reject.detail)
    };
    let payload = unhex(&avro.payload);
    let (why, detail) = reason(Format::Protobuf, &payload, &avro.schemas(&Format::Protobuf));
    assert_eq!((why, detail.contains("of type AVRO")), (RejectReason::UnusableSchema, true), "{detail}");
    let broken = Golden { schema: "{\"type\":\"record\"".to_owned(), ..flat("avro") };
    assert_eq!(reason(Format::Avro, &payload, &broken.schemas(&Format::Avro)).0, RejectReason::UnusableSchema);
    let broken = Golden { schema: "message A { no }".to_owned(), ..flat("protobuf") };
    let framed = [&[0][..], &broken.id.to_be_bytes(), &[0]].concat();
    assert_eq!(reason(Format::Protobuf, &framed, &broken.schemas(&Format::Protobuf)).0, RejectReason::UnusableSchema);
    let unknown = [(7, Arc::new(Schema::unknown(7)))].into_iter().collect();
    let (why, detail) = reason(Format::Avro, &[0, 0, 0, 0, 7], &unknown);
    assert_eq!((why, detail.as_str()), (RejectReason::UnknownSchema, "the registry has no schema 7"));
    let (why, detail) = reason(Format::Avro, b"{\"text\":\"JSON\"}", &unknown);
    assert_eq!((why, detail.contains("begins with byte 123")), (RejectReason::NoSchemaId, true), "{detail}");
    let small = Decoder { max_bytes: payload.len() - 1, ..decoder(Format::Avro) };
    assert_eq!(decode(&small, &payload, &unknown).unwrap_err().reason, RejectReason::TooLarge);
}

fn text_format() -> TextFormat {
    TextFormat {
        id_from_key: true,
        source_header: Some("from".to_owned()),
        source: Some("web".to_owned()),
        headers: vec!["lang".to_owned(), "quality".to_owned()],
    }
}

#[test]
fn a_text_takes_what_stands_beside_it() {
    let decoder = decoder(Format::Text(text_format()));
    let header = |name: &str| RecordPart::Header(name.to_owned());
    assert_eq!(decoder.format.parts(), [RecordPart::Key, header("from"), header("lang"), header("quality")]);
    let at = TopicPartition::new("docs", 3);
    let decode = |text: &[u8], parts: [Option<&[u8]>; 4]| {
        let (mut bytes, mut places) = (text.to_vec(), Vec::new());
        for part in parts {
            let start = bytes.len();
            bytes.extend_from_slice(part.unwrap_or_default());
            places.push(part.map(|part| start..start + part.len()));
        }
        let parts = Parts::new(&bytes, &places);
        let record = RawRecord { at: &at, offset: 17, timestamp_ms: Some(5), payload: Some(text), parts };
        let (schemas, mut scratch) = (Schemas::default(), TextScratch::default());
        decoder.decode_record(record, &schemas, &mut scratch).map(|document| document.to_document())
    };
    let document = decode(b"a \"text\"", [Some(b"k"), Some(b"books"), Some(b"en\"\n"), Some(b"0.5")]).unwrap();
    let expected = Document {
        id: "k".to_owned(),
        text: "a \"text\"".to_owned(),
        source: Some("books".to_owned()),
        timestamp_ms: Some(5),
        metadata: Some("{\"lang\":\"en\\\"\\n\",\"quality\":\"0.5\"}".to_owned()),
    };
    assert_eq!(document, expected);
    assert_eq!(document.borrowed(&at, 17, None, true).word("lang").as_deref(), Some("en\"\n"));
    // What is missing leaves everything else in its place.
    let document = decode(b"", [None, None, None, Some(b"1")]).unwrap();
    let stand_ins = (document.id.as_str(), document.source.as_deref(), document.metadata.as_deref());
    assert_eq!(stand_ins, ("docs/3/17", Some("web"), Some("{\"quality\":\"1\"}")));
    assert_eq!(decode(b"t", [Some(b""), None, None, None]).unwrap().id, "docs/3/17");
    for (text, parts, what) in [
        (&b"\xff"[..], [None; 4], "the value"),
        (b"t", [Some(&b"\xff"[..]), None, None, None], "the key"),
        (b"t", [None, Some(b"\xff"), None, None], "header `from`"),
        (b"t", [None, None, None, Some(b"\xff")], "header `quality`"),
    ] {
        let reject = decode(text, parts).unwrap_err();
        assert_eq!(reject.reason, RejectReason::InvalidUtf8);
        assert!(reject.detail.starts_with(what), "{}", reject.detail);
    }
}
