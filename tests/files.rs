//! `winnowd fit`, `score`, `select` and `model show` on files, as a user runs them: the real binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/files.rs"]
mod support;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::StringArray;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use serde_json::Value;
use support::{SELECTED, Sandbox, lines, numbers, strings};
use winnowd::features::{Scratch, for_each_token, lowercase_into};
use winnowd::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts};
use winnowd::select::QuantileSketch;

#[test]
fn weights_equal_the_published_package_in_every_format() {
    let sandbox = Sandbox::new();
    sandbox.write_other_formats();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    sandbox.succeed("score --model model.wnw --input raw.jsonl --out scores.parquet");
    let ids = strings(&sandbox.path("scores.parquet"), "id");
    let weights = numbers(&sandbox.path("scores.parquet"), "log_importance_weight");
    let n_tokens = numbers(&sandbox.path("scores.parquet"), "n_tokens");
    let reference: Vec<Vec<&str>> =
        include_str!("reference/weights.tsv").lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(ids.len(), reference.len());
    for (i, fields) in reference.iter().enumerate() {
        assert_eq!((ids[i].as_str(), n_tokens[i]), (fields[0], fields[1].parse().unwrap()));
        let difference = (weights[i] - fields[2].parse::<f64>().unwrap()).abs();
        assert!(difference <= 1e-9, "{}: {difference:e}", ids[i]);
    }

    // The same from every format, by any number of threads; the model too.
    let expected = lines_of_scores(&sandbox, "raw.jsonl", 1);
    assert_eq!(expected.len(), reference.len());
    for format in ["raw.jsonl.gz", "raw.jsonl.zst", "raw.parquet"] {
        assert_eq!(lines_of_scores(&sandbox, format, 3), expected, "{format}");
        sandbox.succeed(&format!("fit --target target.jsonl --raw {format} --out other.wnw"));
        let counts = |model: &str| {
            let shown = sandbox.succeed(&format!("model show {model} --json"));
            let shown: Value = serde_json::from_str(&shown).unwrap();
            (
                shown["raw"]["ngrams"].clone(),
                shown["raw"]["documents"].clone(),
                shown["targets"][0]["kl_from_raw_nats"].clone(),
            )
        };
        assert_eq!(counts("other.wnw"), counts("model.wnw"), "{format}");
    }
    let json = &expected[0];
    assert_eq!(json["log_importance_weight"].as_f64().unwrap(), weights[0]);
}

fn lines_of_scores(sandbox: &Sandbox, input: &str, threads: u32) -> Vec<Value> {
    sandbox.succeed(&format!("score --model model.wnw --input {input} --out scores.jsonl --threads {threads}"));
    lines(&sandbox.path("scores.jsonl"))
}

#[test]
fn a_selection_is_exact_repeatable_and_readable() {
    let sandbox = Sandbox::new();
    sandbox.write_other_formats();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let select = |options: &str, out: &str| {
        sandbox.succeed(&format!("select --model model.wnw --count 150 --temperature 50 {options} --out {out}"));
        std::fs::read(sandbox.path(out).join(SELECTED)).unwrap()
    };
    let one = select("--input raw.jsonl --seed 5 --threads 1", "one");
    assert!(one == select("--input raw.jsonl --seed 5 --threads 4", "four"), "threads change the bytes");
    assert!(one != select("--input raw.jsonl --seed 6", "six"), "the seed does not matter");
    let file = sandbox.path("one").join(SELECTED);
    let ids = strings(&file, "id");
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (150, 150));
    for format in ["raw.jsonl.gz", "raw.jsonl.zst", "raw.parquet"] {
        let out = format.replace('.', "-");
        select(&format!("--input {format} --seed 5"), &out);
        assert_eq!(strings(&sandbox.path(&out).join(SELECTED), "id"), ids, "{format}");
    }

    // The rows are those that the weights and the keys say.
    let weights = numbers(&file, "log_importance_weight");
    let raw: HashMap<String, Value> = lines(&sandbox.path("raw.jsonl"))
        .into_iter()
        .map(|row| (row["id"].as_str().unwrap().to_owned(), row))
        .collect();
    let texts = strings(&file, "text");
    let reference: HashMap<&str, f64> = include_str!("reference/weights.tsv")
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .map(|fields| (fields[0], fields[2].parse().unwrap()))
        .collect();
    let (probabilities, sample_weights) = (numbers(&file, "inclusion_probability"), numbers(&file, "sample_weight"));
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(raw[id]["text"].as_str().unwrap(), texts[i]);
        assert!((weights[i] - reference[id.as_str()]).abs() < 1e-9);
        assert!(probabilities[i] > 0.0 && probabilities[i] <= 1.0);
        assert!((probabilities[i] * sample_weights[i] - 1.0).abs() < 1e-12);
    }
    assert!(numbers(&file, "n_tokens").iter().all(|n| *n >= 100.0));
    let report = sandbox.report("one");
    assert_eq!(
        (&report["selected"], &report["requested"], &report["shortfall"]),
        (&150.into(), &150.into(), &0.into())
    );
    assert_eq!(report["files"][0]["rows"], 150);
    assert_eq!(report["documents"].as_u64().unwrap() as usize, raw.len());
    assert!(report["kl_reduction_nats"].as_f64() > report["kl_reduction_of_random_nats"].as_f64());
}

#[test]
fn top_k_takes_the_heaviest() {
    let sandbox = Sandbox::new();
    sandbox.succeed("select --input raw.jsonl --target target.jsonl --selector top_k --fraction 0.05 --out top");
    let mut heaviest: Vec<(f64, &str)> = include_str!("reference/weights.tsv")
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|fields| fields[1].parse::<u32>().unwrap() >= 100)
        .map(|fields| (fields[2].parse().unwrap(), fields[0]))
        .collect();
    heaviest.sort_by(|a, b| b.0.total_cmp(&a.0));
    let n_documents = lines(&sandbox.path("raw.jsonl")).len() as f64;
    let expected: HashSet<&str> = heaviest[..(n_documents * 0.05).round() as usize].iter().map(|(_, id)| *id).collect();
    let selected = strings(&sandbox.path("top").join(SELECTED), "id");
    assert_eq!(selected.iter().map(String::as_str).collect::<HashSet<_>>(), expected);
    // The model was fitted here, so it stands beside the selection, and gives the same again.
    sandbox.succeed("select --input raw.jsonl --model top/model.wnw --selector top_k --fraction 0.05 --out again");
    assert_eq!(strings(&sandbox.path("again").join(SELECTED), "id"), selected);
    assert!(!sandbox.path("again/model.wnw").exists());
}

#[test]
fn more_than_there_is_is_said() {
    let sandbox = Sandbox::new();
    let shown = sandbox.succeed("select --input raw.jsonl --target target.jsonl --count 1000000 --out all");
    let report = sandbox.report("all");
    assert_eq!(report["selected"], report["candidates"]);
    assert_eq!(report["shortfall"].as_u64().unwrap(), 1_000_000 - report["selected"].as_u64().unwrap());
    assert!(shown.contains("WARNING: 1000000 documents were asked for"), "{shown}");
    let probabilities = numbers(&sandbox.path("all").join(SELECTED), "inclusion_probability");
    assert!(probabilities.iter().all(|p| *p == 1.0), "everything was certain to be selected");
}

/// A misspelt source has no documents, whatever selects; what its share comes to is said of it, and not of others.
#[test]
fn sources_that_cannot_give_their_share_are_named() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let rows = lines(&sandbox.path("raw.jsonl"));
    let n_of = |source: &str| rows.iter().filter(|row| row["source"] == source).count();
    let select = |options: &str, out: &str| {
        sandbox.succeed(&format!("select --input raw.jsonl --model model.wnw --temperature 50 {options} --out {out}"));
        let warnings = sandbox.report(out)["warnings"].clone();
        warnings.as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let misspelt = "source `sotuu`: 50 were asked for, 0 of 0 could be selected";
    for (out, options) in [
        ("importance", ""),
        ("top", "--selector top_k"),
        ("sensitivity", "--selector sensitivity"),
        ("corrected", "--against selected"),
    ] {
        let warnings = select(&format!("--count 100 {options} --source-proportion sotuu=0.5"), out);
        assert!(warnings.contains(&misspelt.to_owned()), "{options}: {warnings:?}");
        assert!(!warnings.iter().any(|warning| warning.contains("all other sources")), "{options}: {warnings:?}");
    }
    let warnings = select("--tokens 10000 --source-proportion sotuu=0.5", "tokens");
    let misspelt = "source `sotuu`: 5000 tokens were asked for, 0 could be selected";
    assert!(warnings.contains(&misspelt.to_owned()), "{warnings:?}");
    // Too few of one, and none that is left for the others.
    let n = n_of("sotu");
    let of_sotu = rows.iter().filter(|row| row["source"] == "sotu").map(|row| format!("{row}\n"));
    std::fs::write(sandbox.path("sotu.jsonl"), of_sotu.collect::<String>()).unwrap();
    let count = 4 * n;
    let options = format!("--count {count} --min-tokens 1 --source-proportion sotu=0.5");
    let warnings = select(&options, "few");
    let few = format!("source `sotu`: {} were asked for, {n} of {n} could be selected", 2 * n);
    assert!(warnings.contains(&few), "{few}: {warnings:?}");
    sandbox.succeed(&format!(
        "select --input sotu.jsonl --model model.wnw --count {} --min-tokens 1 --source-proportion sotu=0.5 --out none",
        n / 2 * 2
    ));
    let warnings = sandbox.report("none")["warnings"].to_string();
    let none = format!("all other sources: {} were asked for, 0 of 0 could be selected", n / 2);
    assert!(warnings.contains(&none), "{none}: {warnings}");
    assert!(select("--count 20 --source-proportion sotu=0.5", "enough").iter().all(|w| !w.contains("asked for")));
}

/// Nothing is no distribution that could be near to the target or far from it.
#[test]
fn an_empty_selection_has_no_divergence() {
    let sandbox = Sandbox::new();
    let shown =
        sandbox.succeed("select --input raw.jsonl --target target.jsonl --count 5 --min-tokens 100000 --out none");
    let report = sandbox.report("none");
    for number in ["kl_to_selected_nats", "kl_reduction_nats", "kl_reduction_of_random_nats"] {
        assert_eq!(report[number], Value::Null, "{number}");
    }
    assert_eq!((&report["selected"], &report["lacking"]), (&0.into(), &Value::Array(Vec::new())));
    assert_eq!(shown.matches("– nats").count(), 2, "{shown}");
    assert!(!shown.contains("are left between"), "{shown}");
}

#[test]
fn a_footer_says_what_was_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let footer = |options: &str, out: &str| {
        sandbox.succeed(&format!("select --input raw.jsonl --model model.wnw {options} --out {out}"));
        let file = File::open(sandbox.path(out).join(SELECTED)).unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let pairs = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
        ["winnowd.requested", "winnowd.selector"].map(|key| {
            let pair = pairs.iter().find(|pair| pair.key == key).unwrap();
            serde_json::from_str::<Value>(pair.value.as_ref().unwrap()).unwrap()
        })
    };
    let [requested, selector] = footer("--count 7", "count");
    assert_eq!((requested, selector.get("fraction")), (serde_json::json!({ "documents": 7 }), None));
    let [requested, selector] = footer("--fraction 0.05", "fraction");
    let documents = &sandbox.report("fraction")["requested"];
    assert_eq!((&requested["documents"], &selector["fraction"]), (documents, &"0.05".into()));
    let [requested, selector] = footer("--tokens 5000", "tokens");
    assert_eq!((requested, selector.get("fraction")), (serde_json::json!({ "tokens": 5000.0 }), None));
}

#[test]
fn jsonl_keeps_the_original_objects() {
    let sandbox = Sandbox::new();
    let mut file = File::create(sandbox.path("odd.jsonl")).unwrap();
    let text = "select from where ".repeat(60);
    writeln!(file, r#"{{"id": 17, "n": 1.50, "text": "{text}", "list": [1, {{"a": null}}], "sample_weight": "mine"}}"#)
        .unwrap();
    writeln!(file, "\n{{\"text\": \"{text}\", \"timestamp\": \"yesterday\"}}").unwrap();
    for format in ["jsonl", "jsonl.zst"] {
        let out = format.replace('.', "-");
        sandbox.succeed(&format!(
            "select --input odd.jsonl --target target.jsonl --raw raw.jsonl --count 2 --format {format} --out {out}"
        ));
        let bytes = std::fs::read(sandbox.path(&out).join(format!("selected-00000.{format}"))).unwrap();
        let text = if format == "jsonl" { bytes } else { zstd::decode_all(&bytes[..]).unwrap() };
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\"n\":1.50"), "{text}");
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!((&rows[0]["id"], &rows[0]["list"][1]["a"]), (&17.into(), &Value::Null));
        assert_eq!((&rows[0]["sample_weight"], &rows[0]["n_tokens"]), (&1.0.into(), &180.into()));
        assert_eq!(rows[1]["timestamp"], "yesterday");
        assert!(rows[1]["log_importance_weight"].is_f64() && rows[1]["selection_key"].is_f64());
        // Its position, as everywhere else where documents are named.
        assert_eq!(rows[1]["id"], "odd.jsonl/0/3");
    }
    // In columns, what has no column of its own is in the metadata, and the position is the id.
    sandbox.succeed("select --input odd.jsonl --target target.jsonl --raw raw.jsonl --count 2 --out columns");
    let file = sandbox.path("columns").join(SELECTED);
    assert_eq!(strings(&file, "id"), ["17", "odd.jsonl/0/3"]);
    assert_eq!(strings(&file, "metadata")[0], r#"{"n":1.50,"list":[1, {"a": null}],"sample_weight":"mine"}"#);
}

/// Rows can be joined with scores and decisions, whether documents have ids or not.
#[test]
fn rows_without_an_id_get_that_of_their_scores() {
    let sandbox = Sandbox::new();
    let mut file = File::create(sandbox.path("none.jsonl")).unwrap();
    for (i, row) in lines(&sandbox.path("raw.jsonl")).iter().enumerate().take(40) {
        let id = ["", "\"key\":null,", "\"key\":\"mine\",", "\"key\":17,"][i % 4];
        writeln!(file, "{{{id}\"text\":{}}}", row["text"]).unwrap();
    }
    drop(file);
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    sandbox.succeed("score --model model.wnw --input none.jsonl --id-field key --out scores.jsonl");
    sandbox.succeed(
        "select --model model.wnw --input none.jsonl --id-field key --count 40 --min-tokens 0 --format jsonl --out made",
    );
    let rows = lines(&sandbox.path("made").join("selected-00000.jsonl"));
    let scores = lines(&sandbox.path("scores.jsonl"));
    assert_eq!((rows.len(), scores.len()), (40, 40));
    for (i, (row, score)) in rows.iter().zip(&scores).enumerate() {
        let position = format!("none.jsonl/0/{}", i + 1);
        let id = [position.as_str(), position.as_str(), "mine", "17"][i % 4];
        assert_eq!(score["id"], id);
        // Those that are there already stay as they are.
        assert_eq!(row["key"], if i % 4 == 3 { Value::from(17) } else { Value::from(id) }, "{row}");
        assert_eq!((row.get("id"), &row["n_tokens"]), (None, &score["n_tokens"]));
    }
}

#[test]
fn targets_and_sources_get_their_shares() {
    let sandbox = Sandbox::new();
    let rows = lines(&sandbox.path("raw.jsonl"));
    for source in ["python-doc", "rust-doc"] {
        let of_source = rows.iter().filter(|row| row["source"] == source).map(|row| format!("{row}\n"));
        std::fs::write(sandbox.path(&format!("{source}.jsonl")), of_source.collect::<String>()).unwrap();
    }
    let shown = sandbox.succeed(
        "fit --target py=python-doc.jsonl rs=rust-doc.jsonl --proportion py=0.25 --proportion rs=0.75 --raw raw.jsonl --out two.wnw",
    );
    assert!(shown.contains("25.0 % of a selection"), "{shown}");
    sandbox.succeed(
        "select --input raw.jsonl --model two.wnw --count 40 --temperature 30 --source-proportion dict-jargon=0.5 sotu=0.1 --out two",
    );
    let file = sandbox.path("two").join(SELECTED);
    let targets = strings(&file, "target");
    let sources = strings(&file, "source");
    assert_eq!(targets.len(), 40);
    // In every pool: of 20, 4 and 16 documents.
    for (is_pool, size) in [
        ((|s: &str| s == "dict-jargon") as fn(&str) -> bool, 20),
        (|s: &str| s == "sotu", 4),
        (|s: &str| s != "dict-jargon" && s != "sotu", 16),
    ] {
        let of_pool: Vec<&String> = targets.iter().zip(&sources).filter(|(_, s)| is_pool(s)).map(|(t, _)| t).collect();
        assert_eq!(of_pool.len(), size);
        assert_eq!(of_pool.iter().filter(|t| **t == "py").count(), size / 4);
    }
    let chosen_by = numbers(&file, "log_importance_weight");
    let (py, rs) = (numbers(&file, "log_importance_weight_py"), numbers(&file, "log_importance_weight_rs"));
    for i in 0..40 {
        assert_eq!(chosen_by[i], if targets[i] == "py" { py[i] } else { rs[i] });
    }
    sandbox.succeed("score --model two.wnw --input raw.jsonl --out scores.parquet");
    assert_eq!(
        numbers(&sandbox.path("scores.parquet"), "log_importance_weight_rs").len(),
        lines(&sandbox.path("raw.jsonl")).len()
    );

    for (wrong, problem) in [
        ("--target py=python-doc.jsonl rust-doc.jsonl", "name all of them or none"),
        ("--target py=python-doc.jsonl rs=rust-doc.jsonl --proportion py=0.5 --proportion rs=0.6", "sum to 1.1"),
        ("--target py=python-doc.jsonl rs=rust-doc.jsonl --proportion py=0.5", "target `rs` has none"),
        ("--target py=python-doc.jsonl --proportion px=1", "no --target has this name"),
        ("--target none.jsonl", "none.jsonl"),
        ("--target target.jsonl --smoothing 0", "--smoothing 0"),
        ("--target target.jsonl --raw-fraction 2", "--raw-fraction 2"),
    ] {
        let said = sandbox.refuse(&format!("fit --raw raw.jsonl --out x.wnw {wrong}"));
        assert!(said.contains(problem), "`{said}` does not say `{problem}`");
    }
}

#[test]
fn raw_samples_are_exact_and_spread_over_all_files() {
    let sandbox = Sandbox::new();
    let documents = |options: &str, out: &str| -> u64 {
        sandbox.succeed(&format!("fit --target target.jsonl --raw raw.jsonl target.jsonl {options} --out {out}"));
        let shown: Value = serde_json::from_str(&sandbox.succeed(&format!("model show {out} --json"))).unwrap();
        shown["raw"]["documents"].as_u64().unwrap()
    };
    assert_eq!(documents("--raw-sample 321 --threads 1", "a.wnw"), 321);
    assert_eq!(documents("--raw-sample 321 --threads 3", "b.wnw"), 321);
    let bytes = |name: &str| std::fs::read(sandbox.path(name)).unwrap();
    assert!(bytes("a.wnw") == bytes("b.wnw"), "the sample depends on the threads");
    assert_eq!(documents("--raw-sample 321 --sample-seed 1", "c.wnw"), 321);
    assert!(bytes("a.wnw") != bytes("c.wnw"), "the sample does not depend on the seed");
    let all = documents("", "d.wnw");
    assert_eq!(documents("--raw-sample 999999", "e.wnw"), all);
    let third = documents("--raw-fraction 0.333", "f.wnw") as f64;
    // Five standard errors of a binomial.
    assert!((third - all as f64 * 0.333).abs() < 5.0 * (all as f64 * 0.333 * 0.667).sqrt(), "{third} of {all}");

    // Among as many lines that are none.
    let raw = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    let holes: String = raw.lines().map(|line| format!("{line}\n{{\"text\":1}}\n")).collect();
    std::fs::write(sandbox.path("raw.jsonl"), holes).unwrap();
    assert_eq!(documents("--raw-sample 321 --skip-bad-lines", "g.wnw"), 321);
    assert_eq!(documents("--raw-sample 999999 --skip-bad-lines", "h.wnw"), all);
}

/// Models go into config maps, which have no room for the names of all files of a crawl.
#[test]
fn of_many_inputs_a_model_names_a_few() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("raw")).unwrap();
    let raw = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    for (i, line) in raw.lines().take(50).enumerate() {
        std::fs::write(sandbox.path(&format!("raw/{i:02}.jsonl")), line).unwrap();
    }
    sandbox.succeed("fit --target target.jsonl --raw raw --out model.wnw");
    let shown = sandbox.succeed("model show model.wnw");
    assert!(shown.contains("of raw/00.jsonl, raw/01.jsonl, raw/02.jsonl and 47 more\n"), "{shown}");
    assert!(shown.contains("of target.jsonl\n"), "{shown}");
    let shown: Value = serde_json::from_str(&sandbox.succeed("model show model.wnw --json")).unwrap();
    assert_eq!((shown["raw"]["n_inputs"].as_u64(), shown["raw"]["inputs"].as_array().unwrap().len()), (Some(50), 10));
    assert!(shown["raw"]["inputs_digest"].as_str().unwrap().starts_with("sha256:"));
    assert!(shown["targets"][0]["inputs_digest"].is_null());
}

#[test]
fn bad_lines_are_named_or_counted() {
    let sandbox = Sandbox::new();
    let mut raw = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    let line_7 = raw.match_indices('\n').nth(5).unwrap().0 + 1;
    raw.insert_str(line_7, "{\"text\": 42}\n");
    std::fs::write(sandbox.path("bad.jsonl"), raw).unwrap();
    let select = "select --input bad.jsonl --target target.jsonl --raw raw.jsonl --count 50 --temperature 50 --out x";
    let said = sandbox.refuse(select);
    assert!(said.contains("`bad.jsonl`, line 7: invalid_field: field `text` is a number"), "{said}");
    assert!(!sandbox.path("x").exists());
    sandbox.succeed(&format!("{select} --skip-bad-lines"));
    let report = sandbox.report("x");
    assert_eq!((&report["bad_lines"], &report["selected"]), (&1.into(), &50.into()));
    let leftovers: Vec<_> = std::fs::read_dir(sandbox.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(leftovers.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{leftovers:?}");
}

#[test]
fn a_selection_does_not_depend_on_what_could_be_kept() {
    let sandbox = Sandbox::new();
    sandbox.write_other_formats();
    let mut raw = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    // Bad lines and texts without tokens keep their numbers.
    for (nth, line) in [(0, "{\"text\": 42}\n"), (400, "{\"text\": \" \"}\n"), (401, "\n"), (402, "nothing\n")] {
        let at = raw.match_indices('\n').nth(nth).unwrap().0 + 1;
        raw.insert_str(at, line);
    }
    std::fs::write(sandbox.path("mixed.jsonl"), raw).unwrap();
    let halves = "--target a=target.jsonl b=raw.jsonl.zst --count 60 --temperature 50 --min-tokens 0 --skip-bad-lines";
    for (name, featuriser) in [("narrow", "--featuriser reference"), ("wide", "--featuriser fast --buckets 70000")] {
        let select = |out: &str, input: &str, options: &str| {
            let out = format!("{name}-{out}");
            let arguments = format!("select --input {input} {halves} {featuriser} {options} --out {out}");
            let output = sandbox.run(&arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{arguments}: {said}");
            let file = sandbox.path(&out).join(SELECTED);
            let weights = ["log_importance_weight_a", "log_importance_weight_b", "inclusion_probability"];
            let numbers = weights.map(|column| numbers(&file, column));
            (said, strings(&file, "id"), numbers, std::fs::read(sandbox.path(&out).join("model.wnw")).unwrap())
        };
        // The raw side is the input in both cases, but only in the first it is known to be.
        let (said, ids, weights, _) = select("kept", "mixed.jsonl", "--threads 1");
        assert!(!said.contains("read again"), "{said}");
        let apart = select("apart", "mixed.jsonl", "--raw mixed.jsonl --threads 3");
        assert_eq!((&apart.1, &apart.2), (&ids, &weights));
        let full = select("full", "mixed.jsonl", "--scratch-gib 0 --threads 2");
        assert!(full.0.contains("they take more than 0 GiB"), "{}", full.0);
        assert_eq!((&full.1, &full.2), (&ids, &weights));
        // Of compressed files no chunk can be found again.
        let plain = select("plain", "raw.jsonl", "--threads 3");
        let packed = select("packed", "raw.jsonl.gz", "--threads 2");
        assert_eq!((plain.1, plain.2), (packed.1, packed.2));
    }
}

#[test]
fn a_folder_is_only_replaced_when_asked() {
    let sandbox = Sandbox::new();
    let select = "select --input raw.jsonl --target target.jsonl --count 5 --out x";
    sandbox.succeed(select);
    let said = sandbox.refuse(select);
    assert!(said.contains("holds a selection already"), "{said}");
    sandbox.succeed(&format!("{select} --overwrite --format jsonl"));
    let names = |folder: &str| {
        let mut names: Vec<_> = std::fs::read_dir(sandbox.path(folder))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("x"), ["model.wnw", "report.json", "selected-00000.jsonl"]);
    std::fs::write(sandbox.path("x/thesis.tex"), "").unwrap();
    let said = sandbox.refuse(&format!("{select} --overwrite"));
    assert!(said.contains("holds `thesis.tex`, which is not of a selection"), "{said}");
    assert_eq!(names("x").len(), 4);
    assert_eq!(names("").iter().filter(|name| name.starts_with('.')).count(), 0);
}

/// Where its link leads: a folder cannot be moved over the link itself, and then all would have been done for nothing.
#[test]
fn a_folder_behind_a_link_is_written_to() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", sandbox.path("x")).unwrap();
    let select = "select --input raw.jsonl --target target.jsonl --out x --count";
    sandbox.succeed(&format!("{select} 5"));
    assert!(sandbox.refuse(&format!("{select} 6")).contains("holds a selection already"));
    sandbox.succeed(&format!("{select} 6 --overwrite"));
    assert!(sandbox.path("x").is_symlink());
    assert_eq!(strings(&sandbox.path("elsewhere").join(SELECTED), "id").len(), 6);
    std::os::unix::fs::symlink("nowhere", sandbox.path("dangling")).unwrap();
    let said = sandbox.refuse("select --input raw.jsonl --target target.jsonl --count 5 --out dangling");
    assert!(said.contains("--out `dangling` is a link to nothing"), "{said}");
}

/// Nothing can be moved over it, which would only be seen at the end.
#[test]
fn a_file_system_is_not_replaced() {
    let sandbox = Sandbox::new();
    let said = sandbox.refuse("select --input raw.jsonl --target target.jsonl --count 5 --out /proc");
    assert!(said.contains("--out `/proc` is a file system of its own") && said.contains("name a new folder"), "{said}");
}

/// The target comes through a pipe, so that the input has been found, but not read, when another one takes its place.
#[test]
fn an_input_that_is_replaced_is_not_selected_from() {
    let sandbox = Sandbox::new();
    let pipe = sandbox.path("pipe.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let raw = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    let reversed: String = raw.lines().rev().map(|line| format!("{line}\n")).collect();
    std::fs::write(sandbox.path("reversed.jsonl"), reversed).unwrap();
    let target = std::fs::read(sandbox.path("target.jsonl")).unwrap();
    let (from, to) = (sandbox.path("reversed.jsonl"), sandbox.path("raw.jsonl"));
    let feeding = std::thread::spawn(move || {
        // Waits for its reader.
        let mut pipe = File::options().write(true).open(pipe).unwrap();
        std::fs::rename(from, to).unwrap();
        pipe.write_all(&target).unwrap();
    });
    let said = sandbox.refuse("select --input raw.jsonl --target pipe.jsonl --count 5 --out x");
    feeding.join().unwrap();
    assert!(said.contains("`raw.jsonl`: the input has changed while it was read"), "{said}");
    assert!(!sandbox.path("x").exists());
}

#[test]
fn what_is_no_regular_file_stays_what_it_is() {
    let sandbox = Sandbox::new();
    let fit = "fit --target target.jsonl --raw raw.jsonl --out";
    for (name, command) in
        [("x.wnw", fit.to_owned()), ("x.jsonl", "score --model model.wnw --input raw.jsonl --out".to_owned())]
    {
        sandbox.succeed(&format!("{fit} model.wnw"));
        let pipe = sandbox.path(name);
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reading = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        sandbox.succeed(&format!("{command} {name}"));
        assert!(pipe.symlink_metadata().unwrap().file_type().is_fifo(), "{name} was replaced");
        let read = reading.join().unwrap();
        let is_whole = if name == "x.wnw" { Model::from_bytes(&read).is_ok() } else { read.ends_with(b"}\n") };
        assert!(is_whole, "{name}: {} bytes came through", read.len());
    }
    // Links stay links, and what they lead to is the file, be it there before or not.
    std::fs::create_dir(sandbox.path("models")).unwrap();
    std::fs::write(sandbox.path("models/there.wnw"), "old").unwrap();
    for name in ["there.wnw", "new.wnw"] {
        std::os::unix::fs::symlink(Path::new("models").join(name), sandbox.path(name)).unwrap();
        sandbox.succeed(&format!("{fit} {name}"));
        assert!(sandbox.path(name).is_symlink(), "{name} was replaced");
        let model = sandbox.path("models").join(name);
        assert!(!model.is_symlink() && Model::from_bytes(&std::fs::read(model).unwrap()).is_ok(), "{name}");
    }
}

#[test]
fn a_place_that_cannot_be_written_is_told_before_anything_is_read() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("broken.jsonl"), "no JSON\n").unwrap();
    std::fs::create_dir(sandbox.path("folder")).unwrap();
    for out in ["nowhere/m.wnw", "folder", "raw.jsonl/m.wnw"] {
        let said = sandbox.refuse(&format!("fit --target target.jsonl --raw broken.jsonl --out {out}"));
        assert!(said.contains(&format!("--out `{out}` cannot be written")) && !said.contains("broken"), "{said}");
    }
    let said = sandbox.refuse("fit --target target.jsonl --raw broken.jsonl --out m.wnw");
    assert!(said.contains("`broken.jsonl`, line 1"), "{said}");
    let mut left = std::fs::read_dir(sandbox.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.all(|name| !name.to_string_lossy().starts_with('.')), "something was left behind");
}

/// The device that is always full stands for a disk.
#[test]
fn a_full_disk_is_named() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    for (name, command) in [
        ("full.wnw", "fit --target target.jsonl --raw raw.jsonl"),
        ("full.jsonl", "score --model model.wnw --input raw.jsonl"),
        ("full.jsonl.zst", "score --model model.wnw --input raw.jsonl"),
        ("full.parquet", "score --model model.wnw --input raw.jsonl"),
    ] {
        // Whatever a program does to its --out, it is done to the link.
        std::os::unix::fs::symlink("/dev/full", sandbox.path(name)).unwrap();
        let output = sandbox.run(&format!("{command} --out {name}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{name}: {said}");
        assert!(said.contains(&format!("--out `{name}` cannot be written: No space left on device")), "{said}");
        assert!(said.contains("free space in `/dev`, or name another --out"), "{said}");
    }
}

#[test]
fn auto_temperature_reaches_the_effective_sample_size() {
    let sandbox = Sandbox::new();
    let select = "select --input raw.jsonl --target target.jsonl --count 50";
    let shown = sandbox.succeed(&format!("{select} --out collapsed"));
    assert!(shown.contains("WARNING: the sample has collapsed"), "{shown}");
    assert!(shown.replace("\n  ", " ").contains("Set `--temperature "), "{shown}");
    let shown = sandbox.succeed(&format!("{select} --temperature auto:0.3 --out auto"));
    assert!(!shown.contains("WARNING"), "{shown}");
    let target = &sandbox.report("auto")["targets"][0];
    assert!((target["effective_sample_share"].as_f64().unwrap() - 0.3).abs() < 1e-4, "{target}");
    sandbox.succeed(&format!("{select} --length-normalise --temperature auto --featuriser fast --out mean"));
    let report = sandbox.report("mean");
    assert!(report["selector"]["temperature"].as_f64().unwrap() < 1.0, "{report}");
    // Of ten documents no sample is worth one or less; of equal ones every sample is worth the same.
    let rows = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    std::fs::write(sandbox.path("ten.jsonl"), rows.lines().take(10).map(|row| format!("{row}\n")).collect::<String>())
        .unwrap();
    let ten = "select --input ten.jsonl --model auto/model.wnw --count 3 --min-tokens 1 --temperature";
    let said = sandbox.refuse(&format!("{ten} auto --out ten"));
    assert!(said.contains("a tenth of 10 documents is 1; give auto:0.5 or a number"), "{said}");
    sandbox.succeed(&format!("{ten} auto:0.5 --out ten"));
    std::fs::write(sandbox.path("equal.jsonl"), "{\"text\": \"all of them alike\"}\n".repeat(12)).unwrap();
    sandbox.succeed(
        "select --input equal.jsonl --model auto/model.wnw --count 3 --min-tokens 1 --temperature auto --out equal",
    );
    assert_eq!(sandbox.report("equal")["selector"]["temperature"], 1.0);
    let said = sandbox.refuse("select --input raw.jsonl --model auto/model.wnw --featuriser fast --count 5 --out y");
    assert!(said.contains("cannot be used with"), "a model has its own featuriser: {said}");
    for wrong in ["--temperature 0", "--temperature auto:2", "--fraction 0.1", "--count 0", "--source-proportion a"] {
        sandbox.refuse(&format!("select --input raw.jsonl --target target.jsonl --count 5 --out y {wrong}"));
    }
}

/// The signal comes as soon as it is handled: the program has hardly begun to read.
#[test]
fn ctrl_c_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let before = std::fs::read_dir(sandbox.folder.path()).unwrap().count();
    let big = sandbox.path("big.jsonl");
    let raw = std::fs::read(sandbox.path("raw.jsonl")).unwrap();
    let mut file = File::create(&big).unwrap();
    (0..100).for_each(|_| file.write_all(&raw).unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_winnowd"))
        .args(["select", "--model", "model.wnw", "--input", "big.jsonl", "--count", "10", "--out", "x"])
        .current_dir(sandbox.folder.path())
        .spawn()
        .unwrap();
    // The thread that waits for signals is there once they are handled.
    let tasks_of_it = format!("/proc/{}/task", child.id());
    let handles_signals = || {
        let tasks = std::fs::read_dir(&tasks_of_it).unwrap();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map_while(Result::ok).any(|task| name(task).trim_end() == "signals")
    };
    // Far beyond what a start takes: it only keeps a program that never gets there from hanging the test.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(240);
    while !handles_signals() {
        assert_eq!(child.try_wait().unwrap(), None, "ended before signals were handled");
        assert!(std::time::Instant::now() < deadline, "signals are not handled");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!sandbox.path("x").exists());
    assert_eq!(std::fs::read_dir(sandbox.folder.path()).unwrap().count(), before + 1);
}

#[test]
fn a_model_is_shown_to_people() {
    let sandbox = Sandbox::new();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --keep-ngrams 30 --out model.wnw");
    let shown = sandbox.succeed("model show model.wnw");
    for part in [
        "sha256:",
        "reference, n-grams of 1 to 2 tokens in 10000 buckets",
        "nats from raw (KL)",
        "Most frequent n-grams",
        "  the",
        "what speaks most for target",
    ] {
        assert!(shown.contains(part), "no `{part}` in\n{shown}");
    }
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --keep-ngrams 0 --out bare.wnw");
    assert!(sandbox.succeed("model show bare.wnw").contains("No n-grams were kept"));
    std::fs::write(sandbox.path("no.wnw"), "no model").unwrap();
    assert!(sandbox.refuse("model show no.wnw").contains("`no.wnw`: not a model"));
}

/// Ids of a selection, with what stands in the column of weights.
fn selected(sandbox: &Sandbox, out: &str) -> Vec<(String, f64, f64)> {
    let path = sandbox.path(out).join(SELECTED);
    let numbers = numbers(&path, "log_importance_weight").into_iter().zip(numbers(&path, "inclusion_probability"));
    strings(&path, "id").into_iter().zip(numbers).map(|(id, (weight, probability))| (id, weight, probability)).collect()
}

#[test]
fn selecting_against_what_was_selected_is_exact_repeatable_and_nearer_to_the_target() {
    let sandbox = Sandbox::new();
    let select = |out: &str, arguments: &str| {
        let common = "--input raw.jsonl --count 200 --length-normalise --temperature 0.05 --seed 3 --out";
        sandbox.succeed(&format!("select {common} {out} {arguments}"))
    };
    let fitted = "--target target.jsonl";
    let said = select("one", &format!("{fitted} --against selected --window 300 --threads 1"));
    select("two", &format!("{fitted} --against selected --window 300 --threads 2"));
    let one = selected(&sandbox, "one");
    assert_eq!((one.len(), &one), (200, &selected(&sandbox, "two")), "the same on one core and on two");
    assert!(said.contains("nats are left between target and selection"), "{said}");
    // A model that exists needs the n-grams of the input as well.
    select("model", "--model one/model.wnw --against selected --window 300");
    assert_eq!(one, selected(&sandbox, "model"));
    select("in-order", &format!("{fitted} --against selected --window 300 --order files --rounds 3"));
    assert_eq!(selected(&sandbox, "in-order").len(), 200);
    assert_ne!(one, selected(&sandbox, "in-order"));

    // Before anything was selected the denominator is the raw distribution: one window is plain DSIR.
    select("window", &format!("{fitted} --against selected --window 1000000"));
    select("plain", fitted);
    let (window, plain) = (selected(&sandbox, "window"), selected(&sandbox, "plain"));
    assert_eq!(window.len(), plain.len());
    for ((id, weight, probability), expected) in window.iter().zip(&plain) {
        assert_eq!(*id, expected.0);
        assert!((weight - expected.1).abs() < 1e-9 && (probability - expected.2).abs() < 1e-9, "{id}");
    }

    // A target of four kinds: DSIR takes the easiest, this one takes all.
    let kinds = ["sotu", "rust-doc", "shakespeare-milton", "factbook"];
    let rows = lines(&sandbox.path("raw.jsonl"));
    let of_kinds = kinds.map(|kind| rows.iter().filter(move |row| row["source"] == kind).take(30));
    let mixed: String = of_kinds.into_iter().flatten().map(|row| format!("{row}\n")).collect();
    std::fs::write(sandbox.path("mixed.jsonl"), mixed).unwrap();
    let late = "--against selected --window 100 --lag 3";
    for (out, against) in [("easy", ""), ("all", "--against selected --window 300"), ("late", late)] {
        sandbox.succeed(&format!(
            "select --input raw.jsonl --target mixed.jsonl --count 40 --length-normalise --selector top_k {against} --out {out}"
        ));
    }
    let n_kinds = |out: &str| {
        let sources = strings(&sandbox.path(out).join(SELECTED), "source");
        kinds.iter().filter(|kind| sources.iter().filter(|source| source == kind).count() >= 2).count()
    };
    let left = |out: &str| sandbox.report(out)["kl_to_selected_nats"].as_f64().unwrap();
    println!("{:.3} nats left, {:.3} three windows late, {:.3} by DSIR", left("all"), left("late"), left("easy"));
    assert_eq!((n_kinds("all"), n_kinds("easy") < 4), (4, true));
    assert!(left("all") < 0.6 * left("easy") && left("late") < 0.8 * left("easy"));
    let parts = sandbox.report("all")["lacking"].as_array().unwrap().clone();
    assert!(parts.len() == 10 && parts[0]["nats"].as_f64() >= parts[9]["nats"].as_f64());

    // Hardly any noise: of DSIR that is warned of, here it is wanted.
    let cold = "select --input raw.jsonl --target target.jsonl --count 200 --length-normalise --temperature 0.001";
    for (against, is_warned) in [("", true), ("--against selected", false)] {
        let said = sandbox.succeed(&format!("{cold} {against} --overwrite --out cold"));
        assert_eq!(said.contains("the sample has collapsed"), is_warned, "{against}: {said}");
    }

    // Unless it is given, the prior is a tenth of what is to be selected, uni- and bigrams; and the report says how much.
    let report = sandbox.report("one");
    let prior = report["selector"]["against_selected"]["prior_ngrams"].as_u64().unwrap();
    let of_selection = prior as f64 / (2.0 * report["selected_tokens"].as_f64().unwrap());
    assert!((0.05..0.2).contains(&of_selection), "{prior} n-grams, {of_selection} of the selection");
    select("given", &format!("{fitted} --against selected --window 300 --selected-prior {prior}"));
    assert_eq!(one, selected(&sandbox, "given"));

    for (arguments, problem) in [
        ("--temperature auto", "--temperature auto: weights against what was selected change"),
        ("--temperature 1 --selected-share 0", "--selected-share 0: must be above 0"),
        ("--temperature 1 --window 0", "--window 0: must be at least 1"),
        ("--temperature 1 --selected-prior 0", "--selected-prior 0: must be at least 1"),
        ("--temperature 1 --selected-half-life 0", "--selected-half-life 0: must be at least 1"),
        ("--temperature 1 --lag 1 --rounds 2", "--rounds 2: with --lag no round sees"),
        ("--temperature 1 --scratch-gib 0", "must be kept to weigh against what was selected"),
    ] {
        let refused = sandbox.refuse(&format!(
            "select --input raw.jsonl --target target.jsonl --count 5 --against selected --out no {arguments}"
        ));
        assert!(refused.contains(problem), "{refused}");
    }
}

/// Every weight is against what had been selected so many windows before, with what is older fading away: to the last bit.
#[test]
fn counts_come_late_and_fade_as_they_are_told() {
    const LAG: usize = 2;
    const HALF_LIFE: u64 = 30_000;
    const PRIOR: u64 = 20_000;
    let sandbox = Sandbox::new();
    sandbox.succeed(&format!(
        "select --input raw.jsonl --target target.jsonl --count 200 --length-normalise --temperature 0.05 --against selected \
         --order files --window 150 --lag {LAG} --selected-half-life {HALF_LIFE} --selected-prior {PRIOR} \
         --selected-share 0.75 --out out"
    ));
    let model = Model::from_bytes(&std::fs::read(sandbox.path("out/model.wnw")).unwrap()).unwrap();
    let weights: HashMap<String, f64> = selected(&sandbox, "out").into_iter().map(|(id, w, _)| (id, w)).collect();
    let texts = lines(&sandbox.path("raw.jsonl")).into_iter();
    let texts = texts.map(|row| (row["id"].as_str().unwrap().to_owned(), row["text"].as_str().unwrap().to_owned()));
    let (target, raw) = (model.target_probabilities(), model.raw.counts.probabilities());
    let mut scratch = Scratch::default();
    let fitted = ImportanceWeight::of_targets(&model).remove(0);
    let candidates: Vec<_> = texts.filter(|(_, text)| fitted.score(text, &mut scratch).n_tokens >= 100).collect();

    let mut seen = DecayedCounts::prior(model.featuriser, &raw, PRIOR);
    let (mut unseen, mut n_selected) = (VecDeque::new(), 0);
    for window in candidates.chunks(150) {
        let denominator = [(0.25, &raw), (0.75, &seen.probabilities())];
        let weight = ImportanceWeight::against(model.featuriser, &target, &denominator, model.smoothing);
        let mut counts = NgramCounts::zero(model.featuriser.buckets as usize);
        for (id, text) in window {
            let Some(given) = weights.get(id) else { continue };
            assert_eq!(weight.score(text, &mut scratch).log_importance_weight, *given, "{id}");
            counts.add_text(text, &model.featuriser, &mut scratch);
            n_selected += 1;
        }
        unseen.push_back(counts);
        if unseen.len() > LAG {
            seen.add(&unseen.pop_front().unwrap(), Some(HALF_LIFE));
        }
    }
    assert_eq!(n_selected, 200);
}

/// Shares of the pairs of tokens that follow one another in the texts of a file.
fn pairs(path: &Path) -> HashMap<(String, String), f64> {
    let (mut counts, mut total) = (HashMap::new(), 0.0);
    for row in lines(path) {
        let (mut lowered, mut before) = (String::new(), None);
        lowercase_into(row["text"].as_str().unwrap(), &mut lowered);
        for_each_token(&lowered, |range| {
            let token = lowered[range].to_owned();
            if let Some(before) = before.replace(token.clone()) {
                *counts.entry((before, token)).or_insert(0.0) += 1.0;
                total += 1.0;
            }
        });
    }
    counts.values_mut().for_each(|count| *count /= total);
    counts
}

/// Documents of nothing but what the target has most beyond raw weigh more than any other, but only until that is covered.
#[test]
fn stuffed_documents_stop_paying_against_what_was_selected() {
    let sandbox = Sandbox::new();
    let (target, raw) = (pairs(&sandbox.path("target.jsonl")), pairs(&sandbox.path("raw.jsonl")));
    let pays = |pair: &(String, String)| target[pair] * (target[pair] / raw.get(pair).unwrap_or(&1e-6)).ln();
    let mut wanted: Vec<&(String, String)> = target.keys().collect();
    wanted.sort_by(|a, b| pays(b).total_cmp(&pays(a)).then(a.cmp(b)));
    let mut documents = std::fs::read_to_string(sandbox.path("raw.jsonl")).unwrap();
    for n in 0..200 {
        let pairs = (0..100).map(|i| wanted[(i * 7 + n * (i + 1)) % 100]);
        let text: Vec<String> = pairs.map(|(one, other)| format!("{one} {other}")).collect();
        let row = serde_json::json!({ "id": format!("stuffed-{n}"), "text": text.join(" ") });
        documents.push_str(&format!("{row}\n"));
    }
    std::fs::write(sandbox.path("stuffed.jsonl"), documents).unwrap();
    let n_stuffed = |out: &str, against: &str| {
        sandbox.succeed(&format!(
            "select --input stuffed.jsonl --target target.jsonl --count 200 --length-normalise --temperature 0.005 \
             --out {out} {against}"
        ));
        selected(&sandbox, out).iter().filter(|(id, ..)| id.starts_with("stuffed-")).count()
    };
    let (by_dsir, corrected) = (n_stuffed("plain", ""), n_stuffed("corrected", "--against selected --window 150"));
    println!("of 200 selected documents {by_dsir} are stuffed by DSIR, {corrected} against what was selected");
    assert!(by_dsir > 150 && corrected < by_dsir / 2);
}

#[test]
fn several_targets_and_sources_keep_their_shares_against_what_was_selected() {
    let sandbox = Sandbox::new();
    sandbox.succeed(
        "select --input raw.jsonl --target a=target.jsonl b=raw.jsonl --proportion a=0.7 b=0.3 --raw raw.jsonl --count 100 \
         --source-proportion sotu=0.25 --against selected --window 200 --rounds 2 --min-tokens 20 --out out",
    );
    let path = sandbox.path("out").join(SELECTED);
    let count = |column: &str, wanted: &str| strings(&path, column).iter().filter(|value| *value == wanted).count();
    assert_eq!((count("source", "sotu"), strings(&path, "id").len()), (25, 100));
    assert!((69..=71).contains(&count("target", "a")), "{}", count("target", "a"));
    let ids: HashSet<String> = strings(&path, "id").into_iter().collect();
    assert_eq!(ids.len(), 100, "nothing twice");
    assert!(numbers(&path, "inclusion_probability").iter().all(|p| *p > 0.0 && *p <= 1.0));
}

/// Of ten documents in turn; what is no word belongs to all others.
fn language(i: usize) -> Value {
    match i % 10 {
        0..=3 => "de".into(),
        4 | 5 => 17.into(),
        6 => true.into(),
        7 => Value::Null,
        8 => serde_json::json!(["de"]),
        _ => "fr".into(),
    }
}

/// Whatever the selector and the format: sources stay what they are.
#[test]
fn values_of_any_field_get_their_shares() {
    let sandbox = Sandbox::new();
    let rows = lines(&sandbox.path("raw.jsonl"));
    let with_languages = rows.iter().enumerate().map(|(i, row)| {
        let mut row = row.clone();
        (row["lang"], row["hard"]) = (language(i), (i * i % 101).into());
        format!("{row}\n")
    });
    std::fs::write(sandbox.path("lang.jsonl"), with_languages.collect::<String>()).unwrap();
    let quoted = |value: &Value| format!("\"{}\"", value.as_str().unwrap().replace('"', "\"\""));
    let in_csv = rows.iter().enumerate().map(|(i, row)| {
        let lang = match language(i) {
            Value::String(word) => word,
            value if value.is_null() || value.is_array() => String::new(),
            value => value.to_string(),
        };
        format!("{},{},{},{lang},{}\n", quoted(&row["id"]), quoted(&row["text"]), quoted(&row["source"]), i * i % 101)
    });
    std::fs::write(sandbox.path("lang.csv"), "id,text,source,lang,hard\n".to_owned() + &in_csv.collect::<String>())
        .unwrap();
    let index: HashMap<&str, usize> =
        rows.iter().enumerate().map(|(i, row)| (row["id"].as_str().unwrap(), i)).collect();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    const SHARES: &str = "--model model.wnw --source-proportion de=0.5 17=0.25 true=0.125 --quota-field lang";
    let languages = ["de", "17", "true"];
    for (number, options) in [
        "--count 40 --temperature 30",
        "--count 40 --selector top_k",
        "--count 40 --selector coverage --importance hard --strata 5 --temperature 30",
        "--count 40 --selector sensitivity --centres 8",
        "--count 40 --length-normalise --temperature 0.01 --against selected --window 200",
        "--tokens 20000 --temperature 30",
    ]
    .into_iter()
    .enumerate()
    {
        let mut found = Vec::new();
        for format in ["jsonl", "csv"] {
            let out = format!("{format}-{number}");
            let shown = sandbox.succeed(&format!("select --input lang.{format} {SHARES} {options} --out {out}"));
            let ids = strings(&sandbox.path(&out).join(SELECTED), "id");
            let report = sandbox.report(&out);
            assert!(report["selector"]["quota_field"] == "lang" && shown.contains("\nAcceptance by lang\n"), "{shown}");
            let of = |value: Option<&str>| {
                let is_of = |id: &&String| match language(index[id.as_str()]) {
                    Value::String(word) => languages.contains(&&*word).then_some(word).as_deref() == value,
                    other => Some(other.to_string()).filter(|word| languages.contains(&&**word)).as_deref() == value,
                };
                ids.iter().filter(is_of).count()
            };
            let values = [None, Some("de"), Some("17"), Some("true")];
            for (pool, value) in report["acceptance_by_field"]["pools"].as_array().unwrap().iter().zip(values) {
                assert_eq!(
                    (pool["value"].as_str(), pool["selected"].as_u64()),
                    (value, Some(of(value) as u64)),
                    "{out}"
                );
            }
            if options.contains("--count") {
                assert_eq!(values.map(of), [5, 20, 10, 5], "{out}");
            } else {
                for (pool, share) in report["tokens"]["pools"].as_array().unwrap().iter().zip([0.125, 0.5, 0.25, 0.125])
                {
                    assert!((pool["budget"].as_f64().unwrap() - share * 20_000.0).abs() < 1e-6, "{pool}");
                }
            }
            found.push(ids);
        }
        assert_eq!(found[0], found[1], "{options}");
    }

    let id = rows[4]["id"].as_str().unwrap();
    sandbox.succeed(&format!(
        "select --input lang.jsonl {SHARES} --count 40 --temperature 30 --explain {id} --out explained"
    ));
    let explanation = &sandbox.report("explained")["explanations"][0];
    assert_eq!((&explanation["pool"], &explanation["source"]), (&"17".into(), &rows[4]["source"]));
    // That of the source is the one that there is anyway.
    sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --count 40 --source-proportion sotu=0.5 --quota-field source --out by-source",
    );
    assert!(sandbox.report("by-source")["acceptance_by_field"].is_null());
    let select = "select --input lang.jsonl --model model.wnw --count 40 --out wrong --quota-field";
    assert!(sandbox.refuse(&format!("{select} lang")).contains("--source-proportion"));
    let said = sandbox.refuse(&format!("{select} text --source-proportion de=0.5"));
    assert!(said.contains("--quota-field text: is the text, the id or a loss"), "{said}");
}

/// The loss of the raw document at `i`; every fifth has none.
fn loss(i: usize) -> Option<f64> {
    (i % 5 != 2).then(|| 1.0 + (i * 7_919 % 1_009) as f64 / 256.0)
}

#[test]
fn losses_add_to_the_weights() {
    let sandbox = Sandbox::new();
    let rows = lines(&sandbox.path("raw.jsonl"));
    let with_losses = rows.iter().enumerate().map(|(i, row)| {
        let mut row = row.clone();
        row["nll"] = loss(i).into();
        format!("{row}\n")
    });
    std::fs::write(sandbox.path("losses.jsonl"), with_losses.collect::<String>()).unwrap();
    let column = |name: &str| -> arrow::array::ArrayRef {
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row[name].as_str())))
    };
    // Parquet says in two ways that there is none.
    let nll: Vec<_> = (0..rows.len()).map(|i| loss(i).or((i % 2 == 0).then_some(f64::NAN))).collect();
    let nll: arrow::array::ArrayRef = Arc::new(arrow::array::Float64Array::from(nll));
    let batch = RecordBatch::try_from_iter([("id", column("id")), ("text", column("text")), ("nll", nll)]).unwrap();
    let file = File::create(sandbox.path("losses.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();

    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    let said = sandbox.succeed("score --model model.wnw --input losses.jsonl --loss-field nll --out scores.jsonl");
    let scores = lines(&sandbox.path("scores.jsonl"));
    let mut present: Vec<f64> = (0..rows.len()).filter_map(loss).collect();
    assert!(scores.iter().enumerate().all(|(i, row)| row["loss"].as_f64() == loss(i)));
    present.sort_by(f64::total_cmp);
    let at = |percent: usize| present[((present.len() - 1) * percent + 50) / 100];
    let (_, shown) = said.split_once(&format!("{} have a loss: 1 % are below about ", present.len())).unwrap();
    let (low, high) = shown.trim_end().split_once(" nats, 99 % below about ").unwrap();
    for (shown, exact) in [(low, at(1)), (high, at(99))] {
        let error = shown.parse::<f64>().unwrap() / exact - 1.0;
        assert!(error.abs() < QuantileSketch::RELATIVE_ERROR + 1e-3, "{shown} for {exact}");
    }

    // By our own formula, over the range of the candidates' losses.
    let index: HashMap<&str, usize> =
        rows.iter().enumerate().map(|(i, row)| (row["id"].as_str().unwrap(), i)).collect();
    for input in ["losses.jsonl", "losses.parquet"] {
        let out = input.replace('.', "-");
        sandbox.succeed(&format!(
            "select --input {input} --model model.wnw --count 60 --selector top_k --loss-field nll --loss-coefficient -300 \
             --loss-strategy quadratic --out {out}"
        ));
        let report = sandbox.report(&out);
        let term = &report["selector"]["loss"];
        let (low, high) = (term["low"].as_f64().unwrap(), term["high"].as_f64().unwrap());
        assert!((1.0..1.2).contains(&low) && (4.8..5.0).contains(&high), "{term}");
        let preference = |loss: Option<f64>| match loss {
            None => 2.0 / 3.0,
            Some(loss) => 1.0 - ((2.0 * loss.clamp(low, high) - low - high) / (high - low)).powi(2),
        };
        let file = sandbox.path(&out).join(SELECTED);
        let (ids, weights) = (strings(&file, "id"), numbers(&file, "log_importance_weight"));
        let (keys, of_losses) = (numbers(&file, "selection_key"), numbers(&file, "loss_weight"));
        assert_eq!(ids.len(), 60);
        let total = |i: usize| scores[i]["log_importance_weight"].as_f64().unwrap() - 300.0 * preference(loss(i));
        let least = ids.iter().map(|id| total(index[id.as_str()])).fold(f64::INFINITY, f64::min);
        for (row, id) in ids.iter().enumerate() {
            let i = index[id.as_str()];
            assert!((of_losses[row] - preference(loss(i))).abs() < 1e-9, "{id}");
            assert!(
                (keys[row] - total(i)).abs() < 1e-6
                    && (weights[row] + 300.0 * -of_losses[row] - keys[row]).abs() < 1e-6
            );
        }
        let tokens = |i: usize| scores[i]["n_tokens"].as_u64().unwrap() >= 100;
        let better = (0..rows.len()).filter(|&i| tokens(i) && total(i) > least + 1e-6).count();
        assert!(better < 60, "{better} documents are better than the last that was selected");
    }
    let ids = |out: &str| strings(&sandbox.path(out).join(SELECTED), "id");
    assert_eq!(ids("losses-jsonl"), ids("losses-parquet"));

    // Lines keep their loss, and get what it says.
    sandbox.succeed(
        "select --input losses.jsonl --model model.wnw --count 5 --loss-field nll --loss-coefficient 1 --loss-low 1 --loss-high 3 \
         --format jsonl --out lines",
    );
    for row in lines(&sandbox.path("lines/selected-00000.jsonl")) {
        let expected = row["nll"].as_f64().map_or(0.75, |loss| (loss - 1.0).clamp(0.0, 1.0));
        assert!((row["loss_weight"].as_f64().unwrap() - expected).abs() < 1e-12, "{row}");
    }

    let select = "select --input losses.jsonl --model model.wnw --count 5 --out refused";
    for (options, problem) in [
        ("--loss-coefficient 1", "--loss-field"),
        ("--loss-field nll --loss-coefficient inf", "--loss-coefficient inf: expected a finite number"),
        (
            "--loss-field nll --loss-coefficient 1 --loss-low 3 --loss-high 2",
            "--loss-high 2: must be above the low loss (3)",
        ),
        ("--loss-field none --loss-coefficient 1", "the losses of the candidates have no range"),
        ("--reference-loss-field nll", "--loss-field"),
    ] {
        let said = sandbox.refuse(&format!("{select} {options}"));
        assert!(said.contains(problem), "{options}: {said}");
    }
}
