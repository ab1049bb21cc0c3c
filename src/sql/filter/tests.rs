use proptest::prelude::*;

use super::*;
use crate::record::{Decoder, TextScratch, TopicPartition};
use crate::select::FieldType;

fn settings(sql: &str) -> FilterSettings {
    let fields = [
        ("lang", FieldType::String),
        ("quality", FieldType::Double),
        ("n", FieldType::Integer),
        ("ok", FieldType::Boolean),
    ];
    FilterSettings { sql: sql.to_owned(), fields: fields.map(|(name, of)| (name.to_owned(), of)).into() }
}

fn problem(sql: &str) -> String {
    DocumentFilter::compile(&settings(sql)).unwrap_err().to_string()
}

/// All documents together; each alone must come to the same.
fn judge(sql: &str, records: &[&str]) -> Vec<Verdict> {
    let filter = DocumentFilter::compile(&settings(sql)).unwrap();
    let (at, decoder) = (TopicPartition::new("docs", 1), Decoder::for_files());
    let mut scratches: Vec<_> = records.iter().map(|_| TextScratch::default()).collect();
    let decode = |(record, scratch)| decoder.decode_ref(Some(str::as_bytes(record)), &at, 7, Some(5), scratch).unwrap();
    let documents: Vec<_> = records.iter().copied().zip(&mut scratches).map(decode).collect();
    let documents: Vec<_> = documents.iter().collect();
    let together = filter.judge(&documents);
    let alone: Vec<_> = documents.chunks(1).flat_map(|document| filter.judge(document)).collect();
    assert_eq!(together, alone, "{sql}");
    together
}

fn failure(verdict: &Verdict) -> (RejectReason, &str) {
    match verdict {
        Verdict::Fails(reject) => (reject.reason, &reject.detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_clause_that_is_not_true_refuses() {
    let records = [
        r#"{"text":"abc","lang":"en","quality":0.9}"#,
        r#"{"text":"abc","lang":"de","quality":0.9}"#,
        r#"{"text":"abc","lang":"en","quality":0.1}"#,
        r#"{"text":"abc","lang":"de","quality":0.1}"#,
        r#"{"text":"abc","lang":null,"quality":1}"#,
        r#"{"text":"abc","lang":"en"}"#,
    ];
    let verdicts = judge("lang = 'en' AND (quality > 0.5 OR length(text) > 10)", &records);
    let by = |clause| Verdict::Refused(clause);
    assert_eq!(verdicts, [Verdict::Passes, by(0), by(1), by(0), by(0), by(1)]);
    let filter = DocumentFilter::compile(&settings("lang = 'en' AND ok")).unwrap();
    assert_eq!(filter.labels().collect::<Vec<_>>(), ["1: lang = Utf8(\"en\")", "2: ok"]);
}

/// Their own implementation refuses to be called.
#[test]
fn functions_that_must_be_simplified_away_work() {
    let records = [r#"{"text":"abc"}"#, r#"{"text":"abc","lang":"de"}"#, r#"{"text":"abc","lang":"en","n":1}"#];
    let (passes, refused) = (Verdict::Passes, Verdict::Refused(0));
    let some = [passes.clone(), refused.clone(), passes.clone()];
    for sql in ["coalesce(lang, 'en') = 'en'", "nvl(lang, 'en') = 'en'", "nullif(lang, 'en') IS NULL"] {
        assert_eq!(judge(sql, &records), some, "{sql}");
    }
    assert_eq!(judge("nvl2(n, n, 2) = 2", &records), [passes.clone(), passes, refused]);
}

#[test]
fn every_column_can_be_named() {
    let record = r#"{"id":"x","text":"ü","source":"web","timestamp":1000,"lang":"en","quality":2,"n":-3,"ok":true}"#;
    let sql = "id = 'x' AND text = 'ü' AND source = 'web' AND timestamp = TIMESTAMP '1970-01-01T00:00:01Z' AND n_bytes = 2 \
               AND loss IS NULL AND lang LIKE 'e%' AND quality = 2.0 AND n = -3 AND ok";
    assert_eq!(judge(sql, &[record]), [Verdict::Passes]);
    // Without an id the position is one, without a timestamp the record's is.
    let sql = "id = 'docs/1/7' AND timestamp = TIMESTAMP '1970-01-01T00:00:00.005Z' AND source IS NULL";
    assert_eq!(judge(sql, &[r#"{"text":""}"#]), [Verdict::Passes]);
    assert_eq!(judge("true", &[r#"{"text":""}"#, r#"{"text":"a"}"#]), [Verdict::Passes, Verdict::Passes]);
}

#[test]
fn what_fails_is_one_documents_failure() {
    let records = [r#"{"text":"1"}"#, r#"{"text":"one"}"#, r#"{"text":"2"}"#, r#"{"text":"0"}"#];
    let verdicts = judge("n_bytes > 0 AND 10 / CAST(text AS BIGINT) > 5", &records);
    assert_eq!((&verdicts[0], &verdicts[2]), (&Verdict::Passes, &Verdict::Refused(1)));
    let (reason, detail) = failure(&verdicts[1]);
    assert_eq!(reason, RejectReason::FilterFailed);
    assert!(detail.starts_with("documents.filter, clause 2: ") && detail.contains("'one'"), "{detail}");
    assert!(failure(&verdicts[3]).1.contains("zero"), "{verdicts:?}");
    // A clause before it keeps it from what fails.
    let verdicts = judge("text <> 'one' AND CAST(text AS BIGINT) > 0", &records);
    assert_eq!(verdicts, [Verdict::Passes, Verdict::Refused(0), Verdict::Passes, Verdict::Refused(1)]);
}

#[test]
fn fields_of_another_type_are_told() {
    for (record, shown) in [
        (r#"{"text":"","quality":"high"}"#, "`\"high\"`, documents.filter_fields says double"),
        (r#"{"text":"","n":1.5}"#, "`1.5`, documents.filter_fields says integer"),
        (r#"{"text":"","n":9223372036854775808}"#, "says integer"),
        (r#"{"text":"","lang":7}"#, "says string"),
        (r#"{"text":"","ok":[true]}"#, "says boolean"),
    ] {
        let verdicts = judge("(quality > 0 OR n > 0 OR lang = '' OR ok) IS NULL", &[r#"{"text":"a"}"#, record]);
        assert_eq!(verdicts[0], Verdict::Passes);
        let (reason, detail) = failure(&verdicts[1]);
        assert!(reason == RejectReason::FilterFailed && detail.contains(shown), "{detail}");
    }
    let twice = r#"{"text":"","n":1,"n":2}"#;
    assert_eq!(failure(&judge("n > 0", &[twice])[0]).0, RejectReason::DuplicateField);
    // Nobody asks for it.
    assert_eq!(judge("ok IS NULL", &[twice]), [Verdict::Passes]);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let unknown = problem("lang = 'en' AND quallity > 1");
    assert!(unknown.contains("quallity") && unknown.ends_with("at line 1, column 17"), "{unknown}");
    let malformed = problem("lang = = 'en'");
    assert!(malformed.contains("Line: 1, Column: 8"), "{malformed}");
    let garbage = problem("lang = 'en' lang ok");
    assert!(garbage.contains("end of expression"), "{garbage}");
    assert!(problem("length(text)").ends_with("expected boolean"), "{}", problem("length(text)"));
    assert!(
        problem("ok AND id").contains("boolean") || problem("ok AND id").contains("Utf8"),
        "{}",
        problem("ok AND id")
    );
    for changing in ["random() < 0.5", "ok AND timestamp < now()", "timestamp::date < current_date()", "uuid() <> id"] {
        assert!(problem(changing).contains("cannot be replayed"), "{changing}: {}", problem(changing));
    }
    for impossible in ["count(*) > 1", "id IN (SELECT 'a')", "row_number() OVER () > 1", "$1"] {
        DocumentFilter::compile(&settings(impossible)).unwrap_err();
    }
    assert!(problem(&vec!["ok"; 33].join(" AND ")).contains("33 clauses"));
    assert!(problem(&format!("text = '{}'", "x".repeat(MAX_FILTER_BYTES))).contains("bytes"));
}

proptest! {
    /// Whatever the text: as Rust says, together and alone.
    #[test]
    fn verdicts_are_those_of_the_text(texts in prop::collection::vec("\\PC{0,12}", 0..20), least in 0..12i64) {
        let records: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let records: Vec<_> = records.iter().map(String::as_str).collect();
        let found = judge(&format!("length(text) >= {least} AND n_bytes < 20"), &records);
        let expected = texts.iter().map(|text| match (text.chars().count() as i64 >= least, text.len() < 20) {
            (false, _) => Verdict::Refused(0),
            (_, false) => Verdict::Refused(1),
            _ => Verdict::Passes,
        });
        prop_assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
