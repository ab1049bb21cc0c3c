//! `winnowd query`: what it finds is what was published, at one moment; it changes nothing and stays within its memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The rows of an answer.
fn rows(output: &Output) -> Vec<Value> {
    let (code, stdout, stderr) = said(output);
    assert_eq!(code, Some(0), "{stderr}");
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait_decided(deployment: &Deployment, n: i64) {
    wait_for("all documents", || (deployment.totals().n_records >= n).then_some(()));
}

fn produce(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer();
    for n in numbers {
        producer.send((n % 2) as i32, Some(&document(n)));
    }
    producer.send(0, Some(b"broken"));
    producer.flush();
}

fn check(store: Option<Bucket>) {
    const N: u64 = 2000;
    let broker = Broker::with_topic("query", 2);
    let deployment = Deployment::with(&broker, "window.max_documents = 100\nselection.fraction = 0.1", None, store);
    let ask =
        |question: &str, more: &[&str]| deployment.winnowd(&[&["query", question, "--format", "json"], more].concat());

    // Nothing yet: tables are there and empty.
    assert_eq!(deployment.winnowd(&["migrate"]).status.code(), Some(0));
    let counted = rows(&ask("SELECT count(*) AS n, max(n_tokens) AS t FROM documents", &[]));
    assert_eq!(counted, [serde_json::json!({ "n": 0 })]);
    let (code, _, stderr) = said(&ask("SELECT 1 FROM documents", &["--at", "1"]));
    assert!(code == Some(64) && stderr.contains("--at 1: nothing is published yet"), "{stderr}");

    let daemon = deployment.start();
    produce(&broker, 0..N);
    wait_decided(&deployment, N as i64 + 1);
    let first = deployment.published();
    let at = rows(&ask("SELECT max(sequence) AS at FROM shards", &[]))[0]["at"].to_string();
    produce(&broker, N..2 * N);
    wait_decided(&deployment, 2 * N as i64 + 2);
    assert_eq!(daemon.stop(), Some(0));

    // What the files hold, and at the earlier moment what they held then, whatever came after.
    let all = deployment.published();
    let ids = |published: &Published| {
        let mut ids: Vec<_> = published.rows.iter().map(|row| row.id.clone()).collect();
        ids.sort();
        ids
    };
    let found = |more: &[&str]| -> Vec<String> {
        let found = rows(&ask("SELECT id FROM documents ORDER BY id", more));
        found.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    assert!(all.rows.len() > first.rows.len() && !first.rows.is_empty());
    assert_eq!(found(&[]), ids(&all));
    assert_eq!(found(&["--at", &at]), ids(&first));

    let sums = "SELECT sum(n_records) AS records, sum(n_selected) AS selected, count(DISTINCT \"window\") AS windows FROM windows";
    let expected =
        serde_json::json!({ "records": 2 * N + 2, "selected": all.rows.len(), "windows": all.windows.len() });
    assert_eq!(rows(&ask(sums, &[])), [expected]);
    let joined = "SELECT count(*) AS n FROM documents d JOIN windows w ON d.\"window\" = w.\"window\" JOIN shards s ON w.shard = s.shard";
    assert_eq!(rows(&ask(joined, &[])), [serde_json::json!({ "n": all.rows.len() })]);
    let letters = "SELECT reason, count(*) AS n FROM dead_letters GROUP BY reason";
    assert_eq!(rows(&ask(letters, &[])), [serde_json::json!({ "reason": "malformed_json", "n": 2 })]);

    // Weights and keys can be computed again where the shards are.
    let model = deployment.folder.path().join("model.wnw");
    let again = format!(
        "SELECT count(*) AS n FROM documents WHERE log_importance_weight(text, '{}') = log_importance_weight AND n_tokens(text) = n_tokens \
         AND gumbel_key(log_importance_weight, 1, 7, topic, \"partition\", \"offset\") = selection_key",
        model.display()
    );
    assert_eq!(rows(&ask(&again, &[])), [serde_json::json!({ "n": all.rows.len() })]);

    // Files come complete.
    let out = deployment.folder.path().join("answer.parquet");
    let question = "SELECT id, text FROM documents WHERE source = 's1' ORDER BY id";
    let written = deployment.winnowd(&["query", question, "--format", "parquet", "--out", &out.to_string_lossy()]);
    assert_eq!(said(&written), (Some(0), String::new(), String::new()));
    let input = out.to_string_lossy();
    let of_file = winnowd(&["query", "--input", &input, "--format", "json", "SELECT id, text FROM input ORDER BY id"]);
    assert_eq!(rows(&of_file), rows(&ask(question, &[])));

    // A filter is carried into the files.
    let plan = deployment.winnowd(&["query", "EXPLAIN SELECT text FROM documents WHERE n_tokens > 100000"]);
    let (_, plan, _) = said(&plan);
    assert!(plan.contains("pruning_predicate") && plan.contains("n_tokens"), "{plan}");

    // Nothing is changed, and mistakes are told from faults.
    for (question, told) in [
        ("DROP TABLE shards", "DDL not supported"),
        ("INSERT INTO shards SELECT * FROM shards", "DML not supported"),
        ("COPY documents TO 'copy.csv'", "DML not supported"),
        ("SET datafusion.execution.batch_size = 1", "Statement not supported"),
        ("SELECT 1; SELECT 2", "single SQL statement"),
        ("SELECT nothing FROM documents", "No field named nothing"),
        ("SELECT id FORM documents WHERE", "Line: 1, Column: "),
        ("SELECT CAST(text AS int) FROM documents", "Cannot cast string"),
    ] {
        let (code, stdout, stderr) = said(&deployment.winnowd(&["query", question]));
        assert!(code == Some(64) && stderr.contains(told) && stderr.len() < 1000, "{question}: {stdout}{stderr}");
    }
    assert_eq!(found(&[]), ids(&all));
}

#[test]
fn it_answers_what_was_published() {
    check(None);
}

#[test]
fn it_answers_what_was_published_on_s3() {
    match Bucket::create() {
        Some(bucket) => check(Some(bucket)),
        None => eprintln!("skipped: S3_ENDPOINT names no store"),
    }
}

/// What a plan says that it did: `name` of all scans together, as in `page_index_rows_pruned=4.10 K total → 1.02 K matched`.
fn told(plan: &str, name: &str) -> String {
    let from = plan.find(&format!("{name}=")).unwrap_or_else(|| panic!("{name} is not in {plan}"));
    plan[from + name.len() + 1..].split([',', ']']).next().unwrap().to_owned()
}

/// Of one row group only the page that a row is on is read.
#[test]
fn pages_that_cannot_match_are_not_read() {
    const N: u64 = 4000;
    let broker = Broker::with_topic("query-pages", 1);
    let settings = "window.max_documents = 4000\nselection.fraction = 1.0\nsink.shuffle = false";
    let deployment = Deployment::new(&broker, settings);
    let daemon = deployment.start();
    let producer = broker.producer();
    (0..N).for_each(|n| producer.send(0, Some(&document(n))));
    producer.flush();
    wait_decided(&deployment, N as i64);
    assert_eq!(daemon.stop(), Some(0));

    let question = "SELECT id, text FROM documents WHERE \"offset\" = 2500";
    let found = rows(&deployment.winnowd(&["query", "--format", "json", question]));
    assert_eq!(found.iter().map(|row| &row["id"]).collect::<Vec<_>>(), ["d2500"]);
    let explained = deployment.winnowd(&["query", "--format", "csv", &format!("EXPLAIN ANALYZE {question}")]);
    let (code, plan, stderr) = said(&explained);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(told(&plan, "row_groups_pruned_statistics"), "1 total → 1 matched");
    // Pages hold 1,024 rows.
    assert_eq!(told(&plan, "page_index_pages_pruned"), "4 total → 1 matched");
    assert_eq!(told(&plan, "page_index_rows_pruned"), "4.00 K total → 1.02 K matched");
}

/// A missing file is a fault of the store, and not an empty answer.
#[test]
fn a_shard_that_is_gone_is_told_of() {
    let broker = Broker::with_topic("query-gone", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 100");
    let daemon = deployment.start();
    produce(&broker, 0..400);
    wait_decided(&deployment, 401);
    assert_eq!(daemon.stop(), Some(0));
    let shards = rows(&deployment.winnowd(&["query", "SELECT path FROM shards LIMIT 1", "--format", "json"]));
    let path = shards[0]["path"].as_str().unwrap();
    std::fs::remove_file(deployment.folder.path().join("out").join(path)).unwrap();
    for question in ["SELECT sum(n_tokens) FROM documents", "SELECT count(*) FROM documents"] {
        let (code, _, stderr) = said(&deployment.winnowd(&["query", question]));
        assert!(code == Some(69) && stderr.contains(path), "{stderr}");
    }
}

fn parquet(path: &Path, n: i64) {
    let rows = |from: i64| {
        let numbers = from..(from + 10_000).min(n);
        let key = |i: i64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64);
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers.clone().map(key)));
        let texts = numbers.map(|i| format!("{:0200}", key(i) as u64));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        RecordBatch::try_from_iter([("key", keys), ("text", texts)]).unwrap()
    };
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10_000)).build();
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(path).unwrap(), rows(0).schema(), Some(properties)).unwrap();
    (0..n).step_by(10_000).for_each(|from| writer.write(&rows(from)).unwrap());
    writer.close().unwrap();
}

/// Eighty megabytes are sorted in thirty-two, by way of the disk; with no disk to go to it says so.
#[test]
fn what_does_not_fit_into_memory_waits_on_disk() {
    const N: i64 = 400_000;
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("rows.parquet"), folder.path().join("sorted.csv"));
    parquet(&path, N);
    let (input, out_name) = (path.to_string_lossy(), out.to_string_lossy());
    let sort = |more: &[&str]| {
        let question = ["query", "--input", &input, "SELECT key, text FROM input ORDER BY key", "--memory", "32MiB"];
        winnowd(&[&question, more].concat())
    };
    let sorted = sort(&["--format", "csv", "--out", &out_name]);
    assert_eq!(said(&sorted).0, Some(0), "{}", said(&sorted).2);
    let keys: Vec<i64> = std::fs::read_to_string(&out)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap().parse().unwrap())
        .collect();
    assert!(keys.len() == N as usize && keys.is_sorted());

    std::fs::remove_file(&out).unwrap();
    let (code, _, stderr) = said(&sort(&["--format", "csv", "--out", &out_name, "--disk", "1MiB"]));
    assert!(code == Some(69) && stderr.contains("cannot wait on disk: it is more than"), "{stderr}");
    assert!(!out.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 1, "half an answer is left");
}

#[test]
fn files_of_other_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_string_lossy().into_owned()
    };
    let jsonl =
        file("a*.jsonl", b"{\"id\":\"a\",\"text\":\"one, two\"}\n{\"id\":\"b\",\"text\":\"three\",\"n\":1.5}\n");
    let csv = file("b.csv", b"id,text\na,one\n");
    let gz = file("c.jsonl.gz", b"");
    let ask = |inputs: &[&str], question: &str, format: &str| {
        let inputs: Vec<&str> = inputs.iter().flat_map(|input| ["--input", *input]).collect();
        said(&winnowd(&[&["query", question, "--format", format], &inputs[..]].concat()))
    };
    let (code, stdout, stderr) = ask(&[&jsonl], "SELECT id, n_tokens(text) AS t, n FROM input ORDER BY id", "csv");
    assert_eq!((code, stdout.as_str()), (Some(0), "id,t,n\na,3,\nb,1,1.5\n"), "{stderr}");
    let (code, stdout, stderr) = ask(&[&csv], "SELECT * FROM input", "table");
    assert_eq!((code, stdout.as_str()), (Some(0), "id  text\na   one\n"), "{stderr}");
    for (inputs, told) in [
        (vec![&*jsonl, &*csv], "of two kinds"),
        (vec![&*gz], "unexpected end of file"),
        (vec!["none.jsonl"], "none.jsonl"),
    ] {
        let (code, _, stderr) = ask(&inputs, "SELECT 1", "csv");
        assert!(code == Some(64) && stderr.contains(told), "{stderr}");
    }
}
