//! `winnowd select` with `--selector coverage` and `sensitivity`, as a user runs it: the real binary.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/files.rs"]
mod support;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, ListArray, StringArray};
use arrow::datatypes::Float32Type;
use arrow::record_batch::RecordBatch;
use base64::Engine;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use support::{SELECTED, Sandbox, lines, numbers, strings};
use winnowd::features::{Featuriser, Projection, Scratch};
use winnowd::record::TopicPartition;
use winnowd::select::Noise;

/// A number for a document that has nothing to do with its text; most are small, as losses are.
fn loss(id: &str) -> f64 {
    let hash = id.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let uniform = (hash >> 11) as f64 / (1u64 << 53) as f64;
    // To sixteenths, so that what is computed from them in any way is exact.
    (-(1.0 - uniform).ln() * 64.0).round() / 16.0 - 1.0
}

fn embedding(id: &str) -> Vec<f32> {
    (0..12).map(|i| loss(&format!("{id} {i}")) as f32).collect()
}

/// The raw documents with a loss and an embedding, as JSONL, compressed, and as Parquet.
fn with_losses() -> (Sandbox, Vec<Value>) {
    let sandbox = Sandbox::new();
    let mut rows = lines(&sandbox.path("raw.jsonl"));
    for row in &mut rows {
        let id = row["id"].as_str().unwrap().to_owned();
        row["loss"] = loss(&id).into();
        row["embedding"] = json!(embedding(&id));
    }
    let jsonl: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(sandbox.path("raw.jsonl"), &jsonl).unwrap();
    std::fs::write(sandbox.path("raw.jsonl.zst"), zstd::encode_all(jsonl.as_bytes(), 1).unwrap()).unwrap();
    let string =
        |name: &str| -> ArrayRef { Arc::new(StringArray::from_iter(rows.iter().map(|row| row[name].as_str()))) };
    let losses: ArrayRef = Arc::new(Float64Array::from_iter(rows.iter().map(|row| row["loss"].as_f64())));
    let vectors = rows.iter().map(|row| Some(embedding(row["id"].as_str().unwrap()).into_iter().map(Some)));
    let vectors: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(vectors));
    let columns = [
        ("id", string("id")),
        ("text", string("text")),
        ("source", string("source")),
        ("loss", losses),
        ("embedding", vectors),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(sandbox.path("raw.parquet")).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --featuriser fast --out model.wnw");
    sandbox.succeed("score --model model.wnw --input raw.jsonl --out scores.parquet");
    (sandbox, rows)
}

fn n_tokens(sandbox: &Sandbox) -> HashMap<String, f64> {
    let scores = sandbox.path("scores.parquet");
    strings(&scores, "id").into_iter().zip(numbers(&scores, "n_tokens")).collect()
}

/// Whether it is one argument where arguments are cut at spaces.
fn is_word(id: &str) -> bool {
    !id.contains(char::is_whitespace)
}

/// Ids, keys, probabilities and weights of a selection.
fn selection(sandbox: &Sandbox, out: &str) -> (Vec<String>, [Vec<f64>; 3]) {
    let file = sandbox.path(out).join(SELECTED);
    let columns = ["selection_key", "inclusion_probability", "sample_weight"];
    (strings(&file, "id"), columns.map(|column| numbers(&file, column)))
}

/// Budgets by the formula, strata taken away one by one.
fn water_level(sizes: &[u64], mut total: u64) -> Vec<u64> {
    let (mut budgets, mut open) = (vec![0; sizes.len()], (0..sizes.len()).collect::<Vec<_>>());
    while let Some(&smallest) = open.iter().min_by_key(|&&j| (sizes[j], j)) {
        budgets[smallest] = sizes[smallest].min(total / open.len() as u64);
        total -= budgets[smallest];
        open.retain(|&j| j != smallest);
    }
    budgets
}

#[test]
fn strata_have_the_budgets_of_the_formula_in_every_format() {
    let (sandbox, rows) = with_losses();
    let n_tokens = n_tokens(&sandbox);
    let mut losses: Vec<f64> =
        rows.iter().map(|r| r["id"].as_str().unwrap()).filter(|id| n_tokens[*id] >= 60.0).map(loss).collect();
    losses.sort_by(f64::total_cmp);
    let n_cut = losses.len() / 20;
    let cut_at = losses[losses.len() - n_cut];
    losses.truncate(losses.len() - n_cut);
    let (low, high) = (losses[0], losses[losses.len() - 1]);
    let stratum = |loss: f64| (((loss - low) * 8.0 / (high - low)) as usize).min(7);
    let mut sizes = [0; 8];
    losses.iter().for_each(|loss| sizes[stratum(*loss)] += 1);
    let budgets = water_level(&sizes, 400);

    let options = "--model model.wnw --selector coverage --importance loss --strata 8 --clip 0 --cutoff 0.05 --within uniform --count 400 --min-tokens 60";
    let shown = sandbox.succeed(&format!("select --input raw.jsonl {options} --threads 1 --out one"));
    let (ids, columns) = selection(&sandbox, "one");
    assert_eq!(ids.len(), 400);
    let mut found = [0; 8];
    for (id, p) in ids.iter().zip(&columns[1]) {
        let stratum = stratum(loss(id));
        found[stratum] += 1;
        assert!((p - budgets[stratum] as f64 / sizes[stratum] as f64).abs() < 1e-12);
        assert!(loss(id) <= cut_at && n_tokens[id] >= 60.0);
    }
    assert_eq!(found[..], budgets[..]);

    let report = sandbox.report("one");
    assert_eq!(report["selector"]["kind"], "coverage");
    assert_eq!((&report["strata"]["cut"], &report["strata"]["cut_at"]), (&json!(n_cut), &json!(cut_at)));
    let strata = report["strata"]["pools"][0]["strata"].as_array().unwrap();
    let pairs: Vec<_> =
        strata.iter().map(|s| (s["documents"].as_u64().unwrap(), s["budget"].as_u64().unwrap())).collect();
    assert_eq!(pairs, sizes.into_iter().zip(budgets).collect::<Vec<_>>());
    assert!(shown.contains("Strata of `loss`, 8 of equal width") && shown.contains("AUC_pr"), "{shown}");

    // The same on several threads, of compressed files and of Parquet, and with a model that is fitted on the input.
    for (input, threads, out) in [("raw.jsonl", 3, "three"), ("raw.jsonl.zst", 2, "packed"), ("raw.parquet", 2, "rows")]
    {
        sandbox.succeed(&format!("select --input {input} {options} --threads {threads} --out {out}"));
        assert_eq!(selection(&sandbox, out), (ids.clone(), columns.clone()), "{input}");
        assert_eq!(sandbox.report(out)["coverage"], report["coverage"], "{input}");
    }
    let fitted = options.replace("--model model.wnw", "--target target.jsonl --featuriser fast");
    sandbox.succeed(&format!("select --input raw.jsonl {fitted} --out fitted"));
    assert_eq!(selection(&sandbox, "fitted"), (ids.clone(), columns));
    sandbox.succeed(&format!("select --input raw.jsonl {options} --seed 2 --out other"));
    assert_ne!(selection(&sandbox, "other").0, ids);
}

#[test]
fn sources_keep_their_shares_and_each_is_covered() {
    let (sandbox, rows) = with_losses();
    let of_source: HashMap<&str, &str> =
        rows.iter().map(|row| (row["id"].as_str().unwrap(), row["source"].as_str().unwrap())).collect();
    sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --selector coverage --importance loss --strata 5 --count 100 --length-normalise \
         --temperature 0.1 --source-proportion rust-doc=0.3 --out out",
    );
    let (ids, columns) = selection(&sandbox, "out");
    assert_eq!((ids.len(), ids.iter().filter(|id| of_source[id.as_str()] == "rust-doc").count()), (100, 30));
    let pools = sandbox.report("out")["strata"]["pools"].clone();
    assert_eq!((&pools[0]["source"], &pools[1]["source"]), (&Value::Null, &json!("rust-doc")));
    for (pool, budget) in [(0, 70), (1, 30)] {
        let strata = pools[pool]["strata"].as_array().unwrap();
        let of = |key: &str| strata.iter().map(|s| s[key].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(of("budget").iter().sum::<u64>(), budget);
        assert_eq!(of("budget"), water_level(&of("documents"), budget));
    }
    assert!(columns[1].iter().all(|p| *p > 0.0 && *p <= 1.0));
    assert!(columns[1].iter().zip(&columns[2]).all(|(p, w)| (p * w - 1.0).abs() < 1e-12));
    // Targets choose inside the strata, and get their shares.
    sandbox.succeed("fit --target a=target.jsonl b=raw.jsonl.zst --raw raw.jsonl --featuriser fast --out two.wnw");
    sandbox.succeed(
        "select --input raw.jsonl --model two.wnw --selector coverage --importance loss --count 101 --temperature 50 --out two",
    );
    let targets = strings(&sandbox.path("two").join(SELECTED), "target");
    let of_a = targets.iter().filter(|target| *target == "a").count();
    assert!(targets.len() == 101 && (50..=51).contains(&of_a), "{of_a} of {}", targets.len());
}

#[test]
fn what_is_far_from_the_target_can_be_cut_off_before() {
    let (sandbox, _) = with_losses();
    let scores = sandbox.path("scores.parquet");
    let n = numbers(&scores, "n_tokens");
    let mean = |(weight, n): (&f64, &f64)| weight / (2.0 * n - 1.0);
    let weights = numbers(&scores, "log_importance_weight");
    let of: HashMap<String, f64> = strings(&scores, "id").into_iter().zip(weights.iter().zip(&n).map(mean)).collect();
    let mut candidates: Vec<f64> = weights.iter().zip(&n).filter(|(_, n)| **n >= 100.0).map(mean).collect();
    candidates.sort_by(f64::total_cmp);
    let n_cut = candidates.len() * 8 / 10;
    let shown = sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --selector coverage --importance loss --cutoff 0.8 --cutoff-field weight --within \
         uniform --length-normalise --count 60 --out near",
    );
    assert!(!shown.contains("WARNING"), "{shown}");
    let (ids, _) = selection(&sandbox, "near");
    assert!(ids.len() == 60 && ids.iter().all(|id| of[id] >= candidates[n_cut]));
    let reduction = |out: &str| sandbox.report(out)["kl_reduction_nats"].as_f64().unwrap();
    sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --selector coverage --importance loss --within uniform --count 60 --out far",
    );
    assert!(reduction("near") > reduction("far") + 0.05, "{} and {}", reduction("near"), reduction("far"));

    let shown = sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --selector coverage --importance weight --length-normalise --count 60 --out weight",
    );
    assert!(shown.contains("WARNING: `--importance weight` spreads the selection"), "{shown}");
}

#[test]
fn documents_without_a_number_are_counted_and_more_than_there_is_is_said() {
    let (sandbox, rows) = with_losses();
    let mut without = 0;
    let n_tokens = n_tokens(&sandbox);
    let holes: String = (0..)
        .zip(rows)
        .map(|(i, mut row)| {
            let missing = [Value::Null, json!("2.5"), json!([1]), json!(true)];
            if i % 7 == 0 {
                without += u64::from(n_tokens[row["id"].as_str().unwrap()] >= 100.0);
                row["loss"] = missing[i / 7 % 4].clone();
            }
            format!("{row}\n")
        })
        .collect();
    std::fs::write(sandbox.path("holes.jsonl"), holes).unwrap();
    let options = "--model model.wnw --selector coverage --importance loss --within uniform";
    let shown =
        sandbox.succeed(&format!("select --input holes.jsonl {options} --cutoff 0.5 --count 100000 --out holes"));
    let report = sandbox.report("holes");
    let candidates = report["candidates"].as_u64().unwrap();
    assert_eq!(report["strata"]["without_number"], json!(without));
    assert_eq!(report["selected"], json!(candidates - candidates / 2));
    assert_eq!(report["shortfall"], json!(100_000 - (candidates - candidates / 2)));
    assert!(shown.contains(&format!("WARNING: {without} documents lack a number")), "{shown}");
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(
        warning.contains(&format!("of which {} were cut off: all others were selected", candidates / 2)),
        "{warning}"
    );

    for (wrong, problem) in [
        ("--selector coverage", "--importance"),
        ("--selector coverage --importance nothing", "no document has a number in field `nothing`"),
        ("--selector coverage --importance loss --strata 0", "--strata 0"),
        ("--selector coverage --importance loss --clip 0.5", "--clip 0.5"),
        ("--selector coverage --importance loss --cutoff 1", "--cutoff 1"),
        (
            "--selector coverage --importance loss --cutoff 0.6 --fraction 0.5",
            "--fraction 0.5: --cutoff 0.6 leaves 0.4 of the documents",
        ),
        ("--selector coverage --importance loss --centres 5", "--centres: only with --selector sensitivity"),
        ("--selector coverage --importance loss --within uniform --temperature auto", "has no weights"),
        ("--strata 7", "--strata: only with --selector coverage"),
        ("--selector sensitivity --floor 0", "--floor 0"),
        ("--selector sensitivity --distance-power 3", "--distance-power 3"),
        ("--selector sensitivity --centres 0", "--centres 0"),
        ("--selector sensitivity --loss-field nothing", "has a number in field `nothing`"),
        ("--loss-field loss", "--loss-field: only with --loss-coefficient or --selector sensitivity"),
        (
            "--selector coverage --importance loss --loss-field loss",
            "--loss-field: only with --loss-coefficient or --selector sensitivity",
        ),
        ("--selector sensitivity --loss-field loss --loss-coefficient 1", "looks at losses, but not at weights"),
        (
            "--selector coverage --importance loss --within uniform --loss-field loss --loss-coefficient 1",
            "--loss-coefficient: --within uniform has no weights",
        ),
        ("--selector sensitivity --reference-loss-field loss", "--loss-field"),
        ("--selector sensitivity --embedding-field nothing", "has an embedding in field `nothing`"),
    ] {
        let count = if wrong.contains("--fraction") { "" } else { "--count 9" };
        let said = sandbox.refuse(&format!("select --input raw.jsonl --model model.wnw {count} --out x {wrong}"));
        assert!(said.contains(problem), "`{said}` does not say `{problem}`");
    }
}

#[test]
fn sensitivity_samples_are_exact_repeatable_and_weighted() {
    let (sandbox, rows) = with_losses();
    // Only some losses are known, which is what it is for.
    let few: String = (0..)
        .zip(rows)
        .map(|(i, mut row)| {
            if i % 3 != 0 {
                row.as_object_mut().unwrap().remove("loss");
            }
            format!("{row}\n")
        })
        .collect();
    std::fs::write(sandbox.path("few.jsonl"), few).unwrap();
    let base = "--model model.wnw --selector sensitivity --centres 20 --count 150";
    for (name, options) in [
        ("projected", ""),
        ("losses", "--loss-field loss --distance-power 1"),
        ("vectors", "--embedding-field embedding --loss-field loss"),
        ("shares", "--loss-field loss --source-proportion rust-doc=0.5"),
    ] {
        let select = |out: &str, input: &str, more: &str| {
            let arguments = format!("select --input {input} {base} {options} {more} --out {name}-{out}");
            (sandbox.succeed(&arguments), selection(&sandbox, &format!("{name}-{out}")))
        };
        let input = if name == "vectors" { "raw.jsonl" } else { "few.jsonl" };
        let (_, (ids, columns)) = select("one", input, "--threads 1");
        assert_eq!(ids.len(), 150);
        let explained = ids.iter().filter(|id| is_word(id)).map(String::as_str).collect::<Vec<_>>();
        let more = format!("--threads 3 --explain {}", explained.join(" "));
        let (shown, again) = select("more", input, &more);
        assert_eq!(again, (ids.clone(), columns.clone()));
        assert!(shown.contains("Sensitivities by") && shown.contains("AUC_pr"), "{shown}");
        if name == "vectors" {
            assert_eq!(select("rows", "raw.parquet", "--threads 2").1, again);
        }
        // p = min(1, s / τ), and the weight is the ratio over it.
        let report = sandbox.report(&format!("{name}-more"));
        let place: HashMap<&str, usize> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
        let explanations = report["explanations"].as_array().unwrap();
        assert_eq!(explanations.len(), explained.len());
        for of in explanations {
            assert_eq!(of["is_selected"], true);
            let number = |name: &str| of[name].as_f64().unwrap();
            let pool = usize::from(name == "shares" && of["source"] == "rust-doc");
            let pool = &report["sensitivity"]["pools"][pool];
            let p = (number("sensitivity") / pool["threshold"].as_f64().unwrap().exp()).min(1.0);
            let i = place[of["id"].as_str().unwrap()];
            assert!((columns[1][i] / p - 1.0).abs() < 1e-9, "{} for {p}", columns[1][i]);
            let weight = pool["ratio"].as_f64().unwrap() / p;
            assert!((columns[2][i] / weight - 1.0).abs() < 1e-9, "{} for {weight}", columns[2][i]);
        }
        // A weighted count is near to the count: scores have a floor, so that no weight is large.
        let estimate: f64 = columns[2].iter().sum();
        let n = report["candidates"].as_f64().unwrap();
        assert!((estimate / n - 1.0).abs() < 0.3, "{name}: {estimate} for {n}");
    }
}

/// Beside those that have one: none, one of other dimensions, numbers that are finite but too large to be squared and summed.
#[test]
fn documents_without_a_usable_embedding_are_counted_and_not_selected() {
    let (sandbox, rows) = with_losses();
    let embedding = |i: usize| match i % 10 {
        3 => None,
        5 => Some(json!([1.0])),
        7 => Some(json!([1e20, 1e20, 1e20])),
        _ => Some(json!([i as f32 % 7.0, i as f32 % 11.0, 0.5])),
    };
    let bytes = |list: &Value| -> Vec<u8> {
        list.as_array().unwrap().iter().flat_map(|x| (x.as_f64().unwrap() as f32).to_le_bytes()).collect()
    };
    let base64 = |list: &Value| json!(base64::engine::general_purpose::STANDARD.encode(bytes(list)));
    let write = |name: &str, of: &dyn Fn(&Value) -> Value| {
        let mut lines = String::new();
        for (i, mut row) in rows.clone().into_iter().enumerate() {
            row.as_object_mut().unwrap().remove("embedding");
            if let Some(list) = embedding(i) {
                row["embedding"] = of(&list);
            }
            lines += &format!("{row}\n");
        }
        std::fs::write(sandbox.path(name), lines).unwrap();
    };
    write("lists.jsonl", &|list| list.clone());
    write("strings.jsonl", &base64);
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |(i, row): (usize, &Value)| {
        let list = embedding(i).map(|list| list.to_string()).unwrap_or_default();
        format!("{},{},{}\n", quoted(row["id"].as_str().unwrap()), quoted(row["text"].as_str().unwrap()), quoted(&list))
    };
    let csv: String = rows.iter().enumerate().map(line).collect();
    std::fs::write(sandbox.path("lists.csv"), format!("id,text,embedding\n{csv}")).unwrap();

    let base = "--model model.wnw --selector sensitivity --centres 20 --embedding-field embedding --min-tokens 1";
    let id = |i: usize| rows[i]["id"].as_str().unwrap();
    let reasons = [(3, "no embedding"), (5, "has 1 numbers, most have 3"), (7, "no embedding")];
    let explained = reasons.map(|(rest, why)| {
        let one = (0..rows.len()).find(|&i| i % 10 == rest && is_word(id(i))).unwrap();
        (id(one), why)
    });
    let explain = explained.map(|(id, _)| id).join(" ");
    let shown =
        sandbox.succeed(&format!("select --input lists.jsonl {base} --count 150 --explain {explain} --out lists"));
    let (ids, columns) = selection(&sandbox, "lists");
    assert_eq!(ids.len(), 150);
    let report = sandbox.report("lists");
    let n = |is: &dyn Fn(usize) -> bool| (0..rows.len()).filter(|i| is(i % 10)).count();
    assert_eq!(report["sensitivity"]["without_embedding"], json!(n(&|i| i == 3 || i == 7)));
    assert_eq!(report["sensitivity"]["other_dimensions"], json!(n(&|i| i == 5)));
    assert_eq!(report["candidates"], json!(n(&|i| ![3, 5, 7].contains(&i))));
    let rejected = n(&|i| [3, 5, 7].contains(&i));
    assert!(shown.contains(&format!("WARNING: {rejected} documents lack an embedding")), "{shown}");
    for (id, why) in explained {
        let of = report["explanations"].as_array().unwrap().iter().find(|of| of["id"] == id).unwrap();
        assert!(of["is_selected"] == false && of["why"].as_str().unwrap().contains(why), "{of}");
    }
    let place: HashMap<&str, usize> = (0..rows.len()).map(|i| (id(i), i)).collect();
    assert!(ids.iter().all(|id| ![3, 5, 7].contains(&(place[id.as_str()] % 10))));
    // The same numbers in other forms, the same selection.
    sandbox.succeed(&format!("select --input strings.jsonl {base} --embedding-base64 f32 --count 150 --out strings"));
    sandbox.succeed(&format!("select --input lists.csv {base} --count 150 --out csv"));
    assert_eq!(selection(&sandbox, "strings"), (ids.clone(), columns.clone()));
    assert_eq!(selection(&sandbox, "csv"), (ids, columns));

    sandbox.succeed(&format!("select --input lists.jsonl {base} --count 100000 --out all"));
    let report = sandbox.report("all");
    assert_eq!(report["selected"], json!(rows.len() - rejected));
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(
        warning.ends_with(&format!("only {} may be selected: all of them were", rows.len() - rejected)),
        "{warning}"
    );
}

#[test]
fn why_a_document_was_selected_or_not() {
    let (sandbox, rows) = with_losses();
    let n_tokens = n_tokens(&sandbox);
    let ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).filter(|id| is_word(id)).collect();
    let all = ids.join(" ");
    for options in [
        "--temperature 50",
        "--selector top_k",
        "--selector coverage --importance loss --cutoff 0.1 --temperature 50",
        "--selector coverage --importance loss --within uniform --cutoff 0.3 --cutoff-field weight",
        "--selector sensitivity",
    ] {
        sandbox.succeed(&format!(
            "select --input raw.jsonl --model model.wnw --count 120 {options} --out out --overwrite --decisions --explain {all} nobody"
        ));
        let (selected, columns) = selection(&sandbox, "out");
        let selected: HashMap<&str, usize> = selected.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
        let report = sandbox.report("out");
        let explanations = report["explanations"].as_array().unwrap();
        assert_eq!(explanations.len(), ids.len() + 1);
        // The same of all documents, in their order.
        let decisions = lines(&sandbox.path("out/decisions.jsonl"));
        assert_eq!(decisions.len(), rows.len());
        let are_words: Vec<&Value> = decisions.iter().filter(|d| is_word(d["id"].as_str().unwrap())).collect();
        assert_eq!(are_words, explanations[..ids.len()].iter().collect::<Vec<_>>());
        assert_eq!(decisions.iter().filter(|d| d["is_selected"] == true).count(), 120);
        let mut reasons = HashSet::new();
        for explained in explanations {
            let id = explained["id"].as_str().unwrap();
            let why = explained["why"].as_str().unwrap();
            if id == "nobody" {
                assert_eq!(why, "no document has this id");
                continue;
            }
            assert_eq!(explained["is_selected"], selected.contains_key(id), "{explained}");
            let number = |name: &str| explained[name].as_f64();
            if n_tokens[id] < 100.0 {
                assert!(why.contains("at least 100 are asked for"), "{why}");
                reasons.insert("short");
                continue;
            }
            if why.contains("cut off") {
                assert!(options.contains("--cutoff") && !selected.contains_key(id), "{why}");
                reasons.insert("cut");
                continue;
            }
            let (key, threshold) = (number("key").unwrap(), number("threshold"));
            match selected.get(id) {
                Some(&i) => {
                    assert_eq!((key, number("inclusion_probability").unwrap()), (columns[0][i], columns[1][i]));
                    assert_eq!(number("sample_weight"), Some(columns[2][i]));
                    assert!(threshold.is_none_or(|threshold| key > threshold), "{explained}");
                    reasons.insert("selected");
                }
                None => {
                    // A stratum without a budget has no threshold.
                    assert!(threshold.is_none_or(|threshold| key <= threshold), "{explained}");
                    reasons.insert("below");
                }
            }
            if options.contains("coverage") {
                assert_eq!(number("importance"), Some(loss(id)));
                let stratum = &explained["stratum"];
                assert!(stratum["budget"].as_u64() <= stratum["documents"].as_u64());
            }
        }
        let expected = if options.contains("--cutoff") { 4 } else { 3 };
        assert_eq!(reasons.len(), expected, "{options}: {reasons:?}");
    }
}

/// Computed again here, from the documents and the noise.
#[test]
fn losses_add_to_the_weights_inside_strata() {
    let (sandbox, rows) = with_losses();
    let strata =
        "--model model.wnw --selector coverage --importance loss --strata 6 --count 200 --temperature 50 --decisions";
    let losses = "--loss-field loss --loss-coefficient 300 --loss-low 0 --loss-high 4";
    sandbox.succeed(&format!("select --input raw.jsonl {strata} --out without"));
    sandbox.succeed(&format!("select --input raw.jsonl {strata} {losses} --out lines"));
    sandbox.succeed(&format!("select --input raw.parquet {strata} {losses} --out columns"));
    assert_eq!(selection(&sandbox, "lines"), selection(&sandbox, "columns"));
    assert_ne!(selection(&sandbox, "lines").0, selection(&sandbox, "without").0);
    // They decide who is selected of a stratum, not how many are.
    assert_eq!(sandbox.report("lines")["strata"], sandbox.report("without")["strata"]);
    let file = sandbox.path("lines").join(SELECTED);
    let expected: Vec<f64> = strings(&file, "id").iter().map(|id| loss(id)).collect();
    assert_eq!(numbers(&file, "loss"), expected);
    let added = |loss: f64| (loss / 2.0).clamp(0.0, 1.0);
    assert_eq!(numbers(&file, "loss_weight"), expected.iter().map(|loss| added(*loss)).collect::<Vec<_>>());

    let noise = Noise::new(0, &TopicPartition::new("files", 0));
    let weights = numbers(&sandbox.path("scores.parquet"), "log_importance_weight");
    let total = |i: usize| weights[i] + 300.0 * added(loss(rows[i]["id"].as_str().unwrap()));
    let mut drawn = 0;
    for (i, decision) in lines(&sandbox.path("lines/decisions.jsonl")).iter().enumerate() {
        let Some(key) = decision["key"].as_f64() else { continue };
        assert!((key - total(i) / 50.0 - noise.gumbel(i as i64)).abs() < 1e-9, "{decision}");
        if let Some(threshold) = decision["threshold"].as_f64() {
            let chance = -(-(total(i) / 50.0 - threshold).exp()).exp_m1();
            assert!((decision["inclusion_probability"].as_f64().unwrap() - chance).abs() < 1e-9, "{decision}");
            drawn += 1;
        }
    }
    assert!(drawn > 200, "{drawn} documents competed");
    // Strata of the weight are strata of all that adds to it, however documents are drawn from them.
    sandbox.succeed(&format!(
        "select --input raw.jsonl --model model.wnw --selector coverage --importance weight --within uniform --count 50 {losses} \
         --decisions --out weights"
    ));
    let decisions = lines(&sandbox.path("weights/decisions.jsonl"));
    let of_weight = |(i, decision): (usize, &Value)| Some((decision["importance"].as_f64()?, total(i)));
    let compared: Vec<_> = decisions.iter().enumerate().filter_map(of_weight).collect();
    assert!(compared.len() > 200 && compared.iter().all(|(found, total)| (found - total).abs() < 1e-6));
}

#[test]
fn an_excess_over_a_reference_is_a_loss_for_every_selector() {
    let (sandbox, rows) = with_losses();
    let of_excess = |mut row: Value| {
        let id = row["id"].as_str().unwrap().to_owned();
        let reference = loss(&format!("{id} of the reference"));
        row["reference"] = reference.into();
        row["excess"] = (loss(&id) - reference).into();
        format!("{row}\n")
    };
    std::fs::write(sandbox.path("excess.jsonl"), rows.into_iter().map(of_excess).collect::<String>()).unwrap();
    for (name, options) in [
        ("weights", "--loss-coefficient 300"),
        ("strata", "--selector coverage --importance loss --loss-coefficient 300"),
        ("sensitivities", "--selector sensitivity --centres 20"),
    ] {
        let select = |fields: &str, out: &str| {
            let base = "select --input excess.jsonl --model model.wnw --count 90 --temperature 50";
            sandbox.succeed(&format!("{base} {options} {fields} --out {name}-{out}"));
            let file = sandbox.path(&format!("{name}-{out}")).join(SELECTED);
            (selection(&sandbox, &format!("{name}-{out}")), numbers(&file, "loss"))
        };
        let given = select("--loss-field excess", "given");
        assert_eq!(given.0.0.len(), 90);
        assert_eq!(given, select("--loss-field loss --reference-loss-field reference", "computed"), "{name}");
        assert_ne!(given.0, select("--loss-field loss", "plain").0, "{name}: the reference changes nothing");
    }
}

/// AUC_pr is what it says: computed again here from the texts, of the sample that the noise chooses.
#[test]
fn coverage_is_measured_as_it_is_defined() {
    let (sandbox, rows) = with_losses();
    let n_tokens = n_tokens(&sandbox);
    sandbox.succeed(
        "select --input raw.jsonl --model model.wnw --count 100 --seed 4 --measure-coverage --threads 2 --out out",
    );
    let (projection, featuriser) = (Projection::new(128), Featuriser::with_hash(winnowd::features::NgramHash::Fast));
    let mut scratch = Scratch::default();
    let mut point = |row: &Value| projection.of_text(row["text"].as_str().unwrap(), &featuriser, &mut scratch);
    let points: Vec<Vec<f32>> = rows.iter().map(&mut point).collect();
    let id = |i: usize| rows[i]["id"].as_str().unwrap();
    let noise = Noise::new(4, &TopicPartition::new("files", 0));
    let mut candidates: Vec<usize> = (0..rows.len()).filter(|&i| n_tokens[id(i)] >= 100.0).collect();
    let n_candidates = candidates.len() as f64;
    let random: Vec<usize> =
        candidates.iter().copied().filter(|&i| noise.in_baseline(i as i64, 100.0 / n_candidates)).collect();
    candidates.sort_by(|&a, &b| noise.sampling(a as i64).total_cmp(&noise.sampling(b as i64)));
    let selected: HashSet<String> = selection(&sandbox, "out").0.into_iter().collect();
    let selected: Vec<usize> = (0..rows.len()).filter(|&i| selected.contains(id(i))).collect();
    let distance = |a: usize, b: usize| {
        points[a].iter().zip(&points[b]).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    let auc = |of: &[usize]| {
        let sample = &candidates[..1_000.min(candidates.len())];
        let least = |&i: &usize| of.iter().map(|&s| distance(i, s)).fold(f64::INFINITY, f64::min);
        sample.iter().map(least).sum::<f64>() / sample.len() as f64
    };
    let report = sandbox.report("out");
    let found = |name: &str| report["coverage"][name].as_f64().unwrap();
    assert!((found("auc_pr") - auc(&selected)).abs() < 1e-5, "{} for {}", found("auc_pr"), auc(&selected));
    assert!((found("auc_pr_of_random") - auc(&random)).abs() < 1e-5);
    // What is near to one target covers the rest badly.
    assert!(found("auc_pr") > found("auc_pr_of_random"));
    assert!(found("source_entropy_of_selected") < found("source_entropy_of_documents"));
    // Nobody asked for it.
    sandbox.succeed("select --input raw.jsonl --model model.wnw --count 100 --out plain");
    assert_eq!(sandbox.report("plain")["coverage"], Value::Null);
}
