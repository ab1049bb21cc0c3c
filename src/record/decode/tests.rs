use super::*;
use proptest::prelude::*;

fn decoder() -> Decoder {
    Decoder { max_bytes: 1000, ..Decoder::for_files() }
}

fn decode(payload: &[u8]) -> Result<Document, Reject> {
    decoder().decode(Some(payload), &TopicPartition::new("docs", 3), 17, Some(5))
}

#[test]
fn reads_fields_and_carries_the_others() {
    let json = r#"{"a":1.50,"id":"x","text":"h\u00e9","n":{"k":[1, 2]},"source":"web","timestamp":"2024-01-02T03:04:05.5+01:00"}"#;
    let document = decode(json.as_bytes()).unwrap();
    assert_eq!(
        document,
        Document {
            id: "x".into(),
            text: "hé".into(),
            source: Some("web".into()),
            timestamp_ms: Some(1_704_161_045_500),
            metadata: Some(r#"{"a":1.50,"n":{"k":[1, 2]}}"#.into()),
        }
    );
}

#[test]
fn absent_and_null_fields_have_stable_stand_ins() {
    for json in [r#"{"text":""}"#, r#"{"text":"","id":null,"source":null,"timestamp":null}"#] {
        let document = decode(json.as_bytes()).unwrap();
        assert_eq!((document.id.as_str(), document.timestamp_ms, document.source), ("docs/3/17", Some(5), None));
        assert_eq!(document.metadata, None);
    }
    assert_eq!(decode(br#"{"text":"t","id":18446744073709551615}"#).unwrap().id, "18446744073709551615");
}

#[test]
fn losses_are_numbers_and_excess_losses_their_differences() {
    let decode = |json: &str, reference: Option<&str>| {
        let mut decoder = decoder();
        (decoder.fields.loss, decoder.fields.reference_loss) = (Some("loss".into()), reference.map(str::to_owned));
        let at = TopicPartition::new("docs", 3);
        let mut scratch = TextScratch::default();
        let document = decoder.decode_ref(Some(json.as_bytes()), &at, 17, None, &mut scratch)?;
        Ok((document.loss, document.metadata()))
    };
    let with = |rest: &str| format!("{{\"text\":\"a\"{rest}}}");
    for (rest, alone, excess) in [
        (r#","loss":2.5,"ref":1"#, Some(2.5), Some(1.5)),
        (r#","loss":3,"ref":1e1"#, Some(3.0), Some(-7.0)),
        (r#","loss":-0,"ref":0.0"#, Some(0.0), Some(0.0)),
        (r#","loss":2.5,"ref":null"#, Some(2.5), None),
        (r#","loss":null,"ref":1"#, None, None),
        (r#","ref":1"#, None, None),
    ] {
        assert_eq!(decode(&with(rest), None).map(|(loss, _)| loss), Ok::<_, Reject>(alone), "{rest}");
        assert_eq!(decode(&with(rest), Some("ref")), Ok((excess, None)), "{rest}");
    }
    for (rest, problem) in [
        (r#","loss":"2.5""#, "field `loss` is a string, expected a number"),
        (r#","loss":[2.5]"#, "field `loss` is an array, expected a number"),
        (r#","loss":1,"ref":true"#, "field `ref` is a boolean, expected a number"),
        (r#","loss":1.5e308,"ref":-1.5e308"#, "no finite difference"),
        (r#","loss":1,"loss":1"#, "field `loss` stands twice"),
    ] {
        let reject = decode(&with(rest), Some("ref")).unwrap_err();
        assert!(reject.detail.contains(problem), "{rest}: {}", reject.detail);
    }
    assert_eq!(decode(&with(r#","loss":1e999"#), None).unwrap_err().reason, RejectReason::MalformedJson);
}

/// A JSON string instead of an object, as a producer makes that encodes twice.
const LONG_STRING: &[u8] = &{
    let mut json = [b'x'; 900];
    (json[0], json[899]) = (b'"', b'"');
    json
};

#[test]
fn bad_records_say_why() {
    use RejectReason::*;
    let cases: &[(&[u8], RejectReason, &str)] = &[
        (br#"{"text":"abc"#, MalformedJson, "EOF"),
        (br#"{"text":"abc"} x"#, MalformedJson, "trailing"),
        (b"", MalformedJson, "EOF"),
        (br#"{"text":"\ud800"}"#, MalformedJson, "hex escape"),
        (b"{\"text\":\"\xff\"}", InvalidUtf8, "invalid utf-8"),
        (b"[1]", NotAnObject, "expected a JSON object"),
        (b"\"text\"", NotAnObject, "expected a JSON object"),
        (LONG_STRING, NotAnObject, "xxx…"),
        (br#"{"id":"x"}"#, MissingText, "no field `text`"),
        (br#"{"text":null}"#, MissingText, "no field `text`"),
        (br#"{"text":1}"#, InvalidField, "field `text` is a number, expected a string"),
        (br#"{"text":["a"]}"#, InvalidField, "field `text` is an array, expected a string"),
        (br#"{"text":"a","id":1.5}"#, InvalidField, "field `id` is a number that is no 64-bit integer"),
        (br#"{"text":"a","source":{"b":1}}"#, InvalidField, "field `source` is an object"),
        (br#"{"text":"a","timestamp":true}"#, InvalidField, "field `timestamp` is a boolean"),
        (br#"{"text":"a","timestamp":"yesterday"}"#, InvalidField, "`yesterday`, expected milliseconds or an RFC 3339"),
        (br#"{"text":"a","timestamp":18446744073709551615}"#, InvalidField, "18446744073709551615"),
        (br#"{"text":"a","text":"b"}"#, DuplicateField, "field `text` stands twice"),
    ];
    for (payload, reason, detail) in cases {
        let reject = decode(payload).unwrap_err();
        assert_eq!(reject.reason, *reason, "{}", String::from_utf8_lossy(payload));
        assert!(reject.detail.contains(detail), "`{}` does not mention `{detail}`", reject.detail);
    }
    assert_eq!(decode(&[b' '; 1001]).unwrap_err().detail, "1001 bytes, allowed are 1000");
    let tombstone = decoder().decode(None, &TopicPartition::new("docs", 0), 0, None);
    assert_eq!(tombstone.unwrap_err().reason, NullPayload);
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    let mut decoder = decoder();
    decoder.max_bytes = 10_000_000;
    let deep = format!(r#"{{"text":"a","deep":{}1{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    let in_text = format!(r#"{{"text":{}1{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    for json in [deep, in_text] {
        // Either decision is fine, a crash is not.
        let _ = decoder.decode(Some(json.as_bytes()), &TopicPartition::new("docs", 0), 0, None);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&payload);
    }

    #[test]
    fn any_text_and_metadata_come_back(text: String, key in "[a-h]{1,5}", value: String) {
        let json = serde_json::json!({ "text": text, key.clone(): value }).to_string();
        let mut decoder = decoder();
        decoder.max_bytes = 1 << 20;
        let document = decoder.decode(Some(json.as_bytes()), &TopicPartition::new("docs", 0), 0, None).unwrap();
        prop_assert_eq!(document.text, text);
        let metadata: serde_json::Value = serde_json::from_str(&document.metadata.unwrap()).unwrap();
        prop_assert_eq!(metadata, serde_json::json!({ key: value }));
    }
}
