use proptest::prelude::*;
use serde_json::{Value, json};

use super::BadLossReason::*;
use super::*;

const DECODER: LossDecoder = LossDecoder { max_bytes: 1 << 20, max_entries: 1000 };

fn decode(json: &str) -> Result<LossReport, BadReport> {
    DECODER.decode(Some(json.as_bytes()))
}

fn sample(id: &str, loss: f64, n_tokens: Option<u32>) -> SampleLoss {
    SampleLoss { id: id.into(), loss, n_tokens }
}

#[test]
fn rows_and_columns_are_read() {
    let rows = r#"{"run_id":"r","step":12,"rank":1,"world_size":4,"loss_of":"validation","manifest_sequence":7,
        "losses":[{"id":"a","loss":2.5,"n_tokens":512},{"loss":3,"id":17,"lr":0.1},{"id":"\u00e9","loss":-0.0,"n_tokens":1.0}]}"#;
    let expected = LossReport {
        run_id: "r".into(),
        step: 12,
        rank: 1,
        world_size: 4,
        selection_epoch: None,
        manifest_sequence: Some(7),
        losses: vec![sample("a", 2.5, Some(512)), sample("17", 3.0, None), sample("é", 0.0, Some(1))],
        bad: vec![],
    };
    assert_eq!(decode(rows).unwrap(), expected);
    let columns = r#"{"tokens":[512, 2],"doc_ids":["a",17],"loss_sum":[1280.0, 6],"step":9007199254740991,"run_id":"r",
        "selection_epoch":0,"losses":null,"rank":null}"#;
    let expected = LossReport {
        step: LossDecoder::MAX_INTEGER,
        rank: 0,
        world_size: 1,
        selection_epoch: Some(0),
        manifest_sequence: None,
        losses: vec![sample("a", 2.5, Some(512)), sample("17", 3.0, Some(2))],
        ..expected
    };
    assert_eq!(decode(columns).unwrap(), expected);
    assert_eq!(decode(r#"{"run_id":"r","step":0,"losses":[]}"#).unwrap().n_entries(), 0);
}

#[test]
fn bad_entries_are_kept_apart_with_their_reasons() {
    let rows: &[(&str, Option<&str>, BadLossReason)] = &[
        (r#"{"id":"a","loss":NaN}"#, Some("a"), NotFinite),
        (r#"{"id":"NaN","loss":-Infinity,"n_tokens":5}"#, Some("NaN"), NotFinite),
        (r#"{"id":"a","loss":Infinity}"#, Some("a"), NotFinite),
        (r#"{"id":"a","loss":1e999}"#, Some("a"), NotFinite),
        (r#"{"id":"\\\"NaN, ","loss":-1e999}"#, Some("\\\"NaN, "), NotFinite),
        (r#"{"id":"a","loss":-0.001}"#, Some("a"), Negative),
        (r#"{"id":"a","loss":null}"#, Some("a"), NoLoss),
        (r#"{"id":"a"}"#, Some("a"), NoLoss),
        (r#"{"id":"a","loss":"2.5"}"#, Some("a"), NotANumber),
        (r#"{"id":"a","loss":[2.5]}"#, Some("a"), NotANumber),
        (r#"{"loss":2.5}"#, None, NoId),
        (r#"{"id":NaN,"loss":2.5}"#, None, NoId),
        (r#"{"id":{"x":1},"loss":2.5}"#, None, NoId),
        (r#"{"id":"a","loss":2.5,"n_tokens":0}"#, Some("a"), NoTokens),
        (r#"{"id":"a","loss":NaN,"n_tokens":0}"#, Some("a"), NoTokens),
        (r#"{"id":"a","loss":2.5,"n_tokens":-5}"#, Some("a"), InvalidTokens),
        (r#"{"id":"a","loss":2.5,"n_tokens":5.5}"#, Some("a"), InvalidTokens),
        (r#"{"id":"a","loss":2.5,"n_tokens":16777217}"#, Some("a"), InvalidTokens),
        (r#"{"id":"a","loss":2.5,"n_tokens":1e300}"#, Some("a"), InvalidTokens),
        (r#"{"id":"a","loss":2.5,"loss":2.5}"#, None, Malformed),
        (r#"["a",2.5,512]"#, None, Malformed),
        ("2.5", None, Malformed),
        ("null", None, Malformed),
        ("NaN", None, Malformed),
    ];
    let entries: Vec<&str> = rows.iter().map(|(row, ..)| *row).collect();
    let good = r#"{"id":"million","loss":2.5,"n_tokens":1000000}"#;
    let report = decode(&format!(r#"{{"run_id":"r","step":1,"losses":[{},{good}]}}"#, entries.join(","))).unwrap();
    assert_eq!(report.losses, [sample("million", 2.5, Some(1_000_000))]);
    assert_eq!(report.bad.len(), rows.len());
    for (place, ((row, id, reason), bad)) in rows.iter().zip(&report.bad).enumerate() {
        assert_eq!(*bad, BadLoss { place, id: id.map(str::to_owned), reason: *reason }, "{row}");
    }
}

#[test]
fn bad_entries_of_columns_are_those_of_rows() {
    let report = decode(
        r#"{"run_id":"r","step":1,"doc_ids":["a","b",null,"d","e","f","g"],
            "loss_sum":[NaN,8,8,-1,null,8,1e999],"tokens":[4,0,4,4,4,null,4]}"#,
    );
    let LossReport { losses, bad, .. } = report.unwrap();
    assert_eq!(losses, []);
    let reasons: Vec<_> = bad.iter().map(|bad| (bad.id.as_deref(), bad.reason)).collect();
    let id = |id| Some(id);
    let expected = [
        (id("a"), NotFinite),
        (id("b"), NoTokens),
        (None, NoId),
        (id("d"), Negative),
        (id("e"), NoLoss),
        (id("f"), InvalidTokens),
        (id("g"), NotFinite),
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn bad_reports_say_why() {
    use BadReportReason::*;
    let long = format!(r#"{{"run_id":"{}","step":1,"losses":[]}}"#, "r".repeat(201));
    let many = format!(r#"{{"run_id":"r","step":1,"losses":[{}0]}}"#, "0,".repeat(1000));
    let cases: &[(&str, BadReportReason, &str)] = &[
        ("", MalformedJson, "EOF"),
        (r#"{"run_id":"r","step":1,"losses":[]} x"#, MalformedJson, "trailing"),
        (r#"{"run_id":"r","step":1,"losses":[nan]}"#, MalformedJson, "expected ident at line 1"),
        (r#"{"run_id":"r","step":1,"losses":[{"id":"a","loss":NaN}"#, MalformedJson, "expected value"),
        (r#"[{"id":"a","loss":1}]"#, NotAnObject, "expected a JSON object"),
        ("NaN", MalformedJson, "expected value"),
        ("3", NotAnObject, "expected a JSON object"),
        (r#"{"step":1,"losses":[]}"#, MissingField, "no field `run_id`"),
        (r#"{"run_id":"r","losses":[]}"#, MissingField, "no field `step`"),
        (r#"{"run_id":"r","step":1}"#, MissingField, "neither a field `losses` nor all of doc_ids"),
        (r#"{"run_id":"r","step":1,"doc_ids":[],"tokens":[]}"#, MissingField, "no `loss_sum`"),
        (r#"{"run_id":"","step":1,"losses":[]}"#, InvalidField, "field `run_id` is ``, expected 1 to 200 bytes"),
        (r#"{"run_id":"a\nb","step":1,"losses":[]}"#, InvalidField, "field `run_id` is `ab`"),
        (&long, InvalidField, "rrr`, expected 1 to 200 bytes"),
        (r#"{"run_id":7,"step":1,"losses":[]}"#, InvalidField, "field `run_id` is an integer, expected a string"),
        (r#"{"run_id":"r","step":-1,"losses":[]}"#, InvalidField, "field `step` is -1, expected an integer from 0"),
        (r#"{"run_id":"r","step":9007199254740992,"losses":[]}"#, InvalidField, "field `step` is 9007199254740992"),
        (r#"{"run_id":"r","step":1e3,"losses":[]}"#, InvalidField, "field `step` is a number that is no 64-bit"),
        (r#"{"run_id":"r","step":NaN,"losses":[]}"#, InvalidField, "field `step` is a number that is no 64-bit"),
        (r#"{"run_id":"r","step":"1","losses":[]}"#, InvalidField, "field `step` is a string"),
        (r#"{"run_id":"r","step":1,"world_size":0,"losses":[]}"#, InvalidField, "expected an integer from 1 to 65536"),
        (
            r#"{"run_id":"r","step":1,"rank":1,"losses":[]}"#,
            InvalidField,
            "field `rank` is 1, expected an integer from 0 to 0",
        ),
        (r#"{"run_id":"r","step":1,"rank":4,"world_size":4,"losses":[]}"#, InvalidField, "from 0 to 3"),
        (
            r#"{"run_id":"r","step":1,"manifest_sequence":-1,"losses":[]}"#,
            InvalidField,
            "field `manifest_sequence` is -1",
        ),
        (
            r#"{"run_id":"r","step":1,"losses":{"id":"a"}}"#,
            InvalidField,
            "field `losses` is no array, expected an array",
        ),
        (r#"{"run_id":"r","step":1,"losses":"a"}"#, InvalidField, "field `losses` is no array"),
        (r#"{"run_id":"r","step":1,"losses":[],"doc_ids":[]}"#, InvalidField, "field `doc_ids` is there"),
        (
            r#"{"run_id":"r","step":1,"doc_ids":[],"tokens":[],"loss_sum":1}"#,
            InvalidField,
            "field `loss_sum` is no array",
        ),
        (r#"{"run_id":"r","step":1,"step":1,"losses":[]}"#, DuplicateField, "field `step` stands twice"),
        (r#"{"run_id":"r","step":1,"losses":[],"losses":[]}"#, DuplicateField, "field `losses` stands twice"),
        (&many, TooManyEntries, "field `losses` has 1001 entries, allowed are 1000"),
        (
            r#"{"run_id":"r","step":1,"doc_ids":["a"],"tokens":[1,2],"loss_sum":[1]}"#,
            UnequalColumns,
            "1 doc_ids, 1 loss_sum and 2 tokens",
        ),
    ];
    for (json, reason, detail) in cases {
        let bad = decode(json).unwrap_err();
        assert_eq!(bad.reason, *reason, "{json}: {bad}");
        assert!(bad.detail.contains(detail), "{json}: `{bad}` does not mention `{detail}`");
    }
    assert_eq!(DECODER.decode(None).unwrap_err().reason, NullPayload);
    assert_eq!(DECODER.decode(Some(b"{\"run_id\":\"\xff\"}")).unwrap_err().reason, InvalidUtf8);
    let bad = LossDecoder { max_bytes: 10, ..DECODER }.decode(Some(b"{\"run_id\":1}")).unwrap_err();
    assert_eq!((bad.reason, bad.to_string()), (TooLarge, "12 bytes, allowed are 10".to_owned()));
}

#[test]
fn names_of_reasons_are_their_own() {
    let entries = BadLossReason::ALL.map(BadLossReason::as_str);
    let reports = BadReportReason::ALL.map(BadReportReason::as_str);
    for names in [&entries[..], &reports[..]] {
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    let decoder = LossDecoder { max_bytes: 10_000_000, ..DECODER };
    let deep = format!("{}1{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    for json in [
        format!(r#"{{"run_id":"r","step":1,"losses":{deep}}}"#),
        format!(r#"{{"run_id":"r","step":1,"losses":[{{"id":{deep}}}]}}"#),
        format!(r#"{{"run_id":"r","step":1,"other":{deep},"losses":[]}}"#),
        deep,
    ] {
        // Either decision is fine, a crash is not.
        let _ = decoder.decode(Some(json.as_bytes()));
    }
}

/// Parts of reports, good and bad, in any order.
fn fragments() -> impl Strategy<Value = String> {
    const PARTS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"run_id\":\"r\"",
        "\"step\":1",
        "\"losses\":[",
        "\"id\":\"a\"",
        "\"loss\":",
        "NaN",
        "-Infinity",
        "1e999",
        "-",
        "2.5",
        "null",
        "\"doc_ids\":[\"a\"]",
        "\"tokens\":[0]",
        "é",
        " ",
    ];
    prop::collection::vec(prop::sample::select(PARTS), 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = DECODER.decode(Some(&payload));
    }

    #[test]
    fn nor_do_parts_of_reports(json in fragments()) {
        let _ = decode(&json);
    }

    /// The same samples, and the same reasons of those that are none, to the last bit of a loss.
    #[test]
    fn both_spellings_agree(
        run_id in "[a-z0-9é/-]{1,20}",
        (step, world_size) in (0u64..1 << 53, 1u32..100),
        rank in any::<prop::sample::Index>(),
        samples in prop::collection::vec((
            prop_oneof!["[a-z\"\\\\é]{0,9}".prop_map(Value::from), any::<u64>().prop_map(Value::from), Just(Value::Null)],
            prop_oneof![6 => (0.0f64..1e6).prop_map(Value::from), 1 => (-9.0f64..0.0).prop_map(Value::from), 1 => Just(json!("NaN")), 1 => Just(Value::Null)],
            prop_oneof![6 => 1u32..4096, 1 => Just(0), 1 => Just(1 << 25)],
        ), 0..40),
    ) {
        let rank = rank.index(world_size as usize);
        let rows: Vec<Value> = samples.iter().map(|(id, sum, n_tokens)| {
            let mean = sum.as_f64().map_or(sum.clone(), |sum| json!(sum / f64::from((*n_tokens).max(1))));
            json!({ "id": id, "loss": mean, "n_tokens": n_tokens })
        }).collect();
        let column = |of: fn(&(Value, Value, u32)) -> Value| samples.iter().map(of).collect::<Vec<_>>();
        let rows = json!({ "run_id": run_id, "step": step, "rank": rank, "world_size": world_size, "losses": rows });
        let columns = json!({
            "run_id": run_id, "step": step, "rank": rank, "world_size": world_size,
            "doc_ids": column(|s| s.0.clone()), "loss_sum": column(|s| s.1.clone()), "tokens": column(|s| json!(s.2)),
        });
        // Half of the words as Python writes them.
        let [rows, columns] = [rows, columns].map(|json| json.to_string().replacen("\"NaN\"", "NaN", 1));
        let (rows, columns) = (decode(&rows).unwrap(), decode(&columns).unwrap());
        prop_assert_eq!(&rows, &columns);
        prop_assert_eq!(rows.n_entries(), samples.len());
        prop_assert_eq!((rows.rank as usize, rows.step), (rank, step));
        let places: Vec<usize> = rows.bad.iter().map(|bad| bad.place).collect();
        prop_assert!(places.is_sorted() && places.iter().all(|place| *place < samples.len()));
        prop_assert!(rows.losses.iter().all(|s| s.loss.is_finite() && s.loss >= 0.0 && s.n_tokens.is_some_and(|n| n > 0)));
    }

    /// Without such words nothing is rewritten; with them the rest stays as it is.
    #[test]
    fn words_that_json_lacks_are_replaced_outside_strings_only(text: String, number: f64) {
        let plain = json!({ "NaN": text, "x": ["-Infinity", number.is_finite().then_some(number)] }).to_string();
        prop_assert_eq!(&wire::spell_out(&plain), &plain);
        let with = format!("[{plain},NaN,{plain},-Infinity]");
        let value: Value = serde_json::from_str(&wire::spell_out(&with)).unwrap();
        let plain: Value = serde_json::from_str(&plain).unwrap();
        prop_assert_eq!(value, json!([plain.clone(), f64::MAX, plain, f64::MAX]));
    }
}
