use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use proptest::prelude::*;

use super::*;
use crate::record::Decoder;
use crate::score::Score;
use crate::select::FieldType;

fn settings(columns: &[(&str, &str)]) -> DerivedSettings {
    let fields = [("n", FieldType::Integer), ("lang", FieldType::String), ("quality", FieldType::Double)];
    DerivedSettings {
        columns: columns.iter().map(|(name, sql)| ((*name).to_owned(), (*sql).to_owned())).collect(),
        fields: fields.map(|(name, of)| (name.to_owned(), of)).into(),
    }
}

fn selected(offset: i64, record: &str) -> SelectedDocument {
    let at = TopicPartition::new("docs", 1);
    let document = Decoder::for_files().decode(Some(record.as_bytes()), &at, offset, Some(5)).unwrap();
    SelectedDocument {
        offset,
        document,
        score: Score { loss: Some(1.5), ..Score::default() },
        target: 0,
        log_importance_weights: Vec::new(),
        selection_key: 0.0,
        inclusion_probability: 1.0,
        sample_weight: 1.0,
        loss_weight: None,
        tenth: 0,
        held_out: false,
    }
}

/// All documents together; each alone must come to the same.
fn derive(columns: &[(&str, &str)], records: &[&str]) -> Derived {
    let compiled = DerivedColumns::compile(&settings(columns)).unwrap();
    let at = TopicPartition::new("docs", 1);
    let documents: Vec<_> = (0..).zip(records).map(|(offset, record)| selected(offset, record)).collect();
    let together = compiled.of(&documents.iter().collect::<Vec<_>>(), &at);
    let mut failed = vec![0; columns.len()];
    for (row, document) in documents.iter().enumerate() {
        let alone = compiled.of(&[document], &at);
        for (column, array) in alone.arrays.iter().enumerate() {
            assert_eq!(array, &together.arrays[column].slice(row, 1), "row {row}");
            failed[column] += alone.failed[column];
        }
    }
    assert_eq!(failed, together.failed);
    let types = together.arrays.iter().map(|array| array.data_type().clone()).collect::<Vec<_>>();
    assert_eq!(types, compiled.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>());
    together
}

fn problem(name: &str, sql: &str) -> String {
    let wrong = DerivedColumns::compile(&settings(&[(name, sql)])).unwrap_err();
    assert_eq!(wrong[0].0, name);
    wrong[0].1.to_string()
}

#[test]
fn values_are_those_of_the_documents() {
    let columns = [
        ("chars", "length(text)"),
        ("language", "coalesce(lang, 'unknown')"),
        ("of_loss", "loss * 2"),
        ("twice", "n * 2"),
        ("words", "string_to_array(text, ' ')"),
    ];
    let records = [r#"{"text":"ü b","n":3,"lang":"de"}"#, r#"{"id":"x","text":"","n":null}"#];
    let derived = derive(&columns, &records);
    assert_eq!(derived.failed, [0; 5]);
    assert_eq!(derived.arrays[0].as_primitive::<Int32Type>().values(), &[3, 0]);
    let languages: Vec<_> = derived.arrays[1].as_string::<i32>().iter().map(Option::unwrap).collect();
    assert_eq!(languages, ["de", "unknown"]);
    let twice: Vec<_> = derived.arrays[3].as_primitive::<Int64Type>().iter().collect();
    assert_eq!(twice, [Some(6), None]);
    assert_eq!(derived.arrays[4].as_list::<i32>().value(0).as_string::<i32>().value(1), "b");
}

#[test]
fn what_fails_is_null_and_counted() {
    let records = [
        r#"{"text":"1","n":0}"#,
        r#"{"text":"one","n":"one","lang":7}"#,
        r#"{"text":"2","n":5,"lang":"en"}"#,
        r#"{"text":"3","n":5,"n":6}"#,
    ];
    let derived = derive(&[("a", "10 / n"), ("b", "CAST(text AS BIGINT)"), ("c", "lang IS NULL")], &records);
    assert_eq!(derived.failed, [3, 1, 1]);
    let numbers = |column: usize| derived.arrays[column].as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
    assert_eq!(numbers(0), [None, None, Some(2), None]);
    assert_eq!(numbers(1), [Some(1), None, Some(2), Some(3)]);
    let c: Vec<_> = derived.arrays[2].as_boolean().iter().collect();
    assert_eq!(c, [Some(true), None, Some(false), Some(true)]);
}

#[test]
fn mistakes_are_told_with_their_place() {
    let unknown = problem("x", "length(text) + quallity");
    assert!(unknown.contains("quallity") && unknown.ends_with("at line 1, column 16"), "{unknown}");
    assert!(problem("x", "length(").contains("expression"), "{}", problem("x", "length("));
    assert!(problem("x", "random()").contains("cannot be replayed"));
    assert!(problem("x", "NULL").contains("a shard does not hold"), "{}", problem("x", "NULL"));
    assert!(problem("x", "named_struct('a', n)").contains("a shard does not hold"));
    for taken in ["text", "Model", "target", "log_importance_weight_code", "LOSS"] {
        assert!(problem(taken, "1").contains("every shard has"), "{taken}");
    }
    for name in ["", "1st", "a b", "ü", &"x".repeat(129)] {
        assert!(problem(name, "1").contains("letters, digits"), "{name}");
    }
    let both = DerivedColumns::compile(&settings(&[("a", "nothing"), ("b", "1"), ("c", "nobody")])).unwrap_err();
    assert_eq!(both.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}

proptest! {
    #[test]
    fn whatever_the_text(texts in prop::collection::vec("\\PC{0,12}", 0..20)) {
        let records: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let records: Vec<_> = records.iter().map(String::as_str).collect();
        let derived = derive(&[("n", "length(text)"), ("upper", "upper(text)")], &records);
        let expected: Vec<_> = texts.iter().map(|text| text.chars().count() as i32).collect();
        prop_assert_eq!(derived.arrays[0].as_primitive::<Int32Type>().values().to_vec(), expected);
        let uppers: Vec<_> = derived.arrays[1].as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect();
        prop_assert_eq!(uppers, texts.iter().map(|text| text.to_uppercase()).collect::<Vec<_>>());
    }
}
