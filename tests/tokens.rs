//! Tokens of a user's tokenizer: as a column, and as what selections are counted in; the daemon through kills and replays, and files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[path = "support/files.rs"]
mod files;
#[path = "support/tokenizer.rs"]
mod bpe;

use std::collections::BTreeMap;

use files::{SELECTED, Sandbox, lines, numbers};
use serde_json::Value;
use support::*;
use winnowd::catalog::{Access, CatalogReader, SqlCatalog};
use winnowd::manifest::ShardManifest;
use winnowd::tokenizer::Tokenizer;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: u64 = 2;
const CONFIG: &str = "selection.unit = \"tokens\"\nselection.fraction = 0.3\nselection.sources = { s0 = 0.5, s1 = 0.2 }\n\
                      window.max_documents = 50\nshard.max_rows = 60\ndocuments.tokenizer.name = \"bpe\"\n";

/// Of very different lengths.
fn text(n: u64) -> String {
    const WORDS: [&str; 8] = ["select", "tables", "index", "king", "thou", "querying", "night", "vacuum"];
    let mut random = Random::new(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let n_words = 2 + random.below(9) * random.below(9);
    (0..n_words).map(|_| WORDS[random.below(8) as usize]).collect::<Vec<_>>().join(" ")
}

fn source(n: u64) -> String {
    format!("s{}", n % 4)
}

/// In a file of this name.
fn tokenizer(folder: &std::path::Path, name: &str, vocabulary: usize) -> (std::path::PathBuf, Tokenizer) {
    let texts: Vec<String> = (0..200).map(text).collect();
    let json = bpe::trained(&texts.iter().map(String::as_str).collect::<Vec<_>>(), vocabulary);
    let path = folder.join(name);
    std::fs::write(&path, &json).unwrap();
    (path, Tokenizer::from_bytes("bpe", &json).unwrap())
}

fn shards(deployment: &Deployment) -> Vec<ShardManifest> {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        catalog.shards("test").await.unwrap().into_iter().map(|(_, shard)| shard).collect()
    })
}

#[test]
fn windows_select_their_share_of_the_tokens_through_kills_and_replays() {
    let broker = Broker::with_topic("tokens", PARTITIONS as i32);
    let folder = tempfile::tempdir().unwrap();
    let (path, tokenizer) = tokenizer(folder.path(), "a.json", 300);
    let extra = format!("{CONFIG}documents.tokenizer.path = \"{}\"", path.display());
    let deployment = Deployment::new(&broker, &extra);
    let n = if broker.is_real() { 3_000 } else { 600 };
    let producer = broker.producer();
    for i in 0..n {
        let payload = serde_json::json!({ "id": i.to_string(), "source": source(i), "text": text(i) });
        producer.send((i % PARTITIONS) as i32, Some(payload.to_string().as_bytes()));
    }
    producer.flush();
    let wait_decided = |n: u64| {
        wait_for("the publication", || (deployment.totals().n_records as u64 >= n).then_some(()));
    };
    let daemon = deployment.start();
    wait_decided(n / 3);
    daemon.kill_9();
    let daemon = deployment.start();
    wait_decided(n);
    assert!(daemon.metric("winnowd_published_tokens_total{tokenizer=\"bpe\"}") > 0.0);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&(0..PARTITIONS as i32).map(|p| (p, (n / PARTITIONS) as i64)).collect());

    let count = |n: u64| u64::from(tokenizer.count(&text(n)).unwrap());
    check_windows(&deployment, &published, &count);
    check_rows(&deployment, &tokenizer);
    check_explanations(&deployment, &published, count);
    check_replays(&deployment, folder.path(), &extra, &path);
}

/// Every pool of every window is less than a document away from its budget, and the budgets are the shares of all tokens.
fn check_windows(deployment: &Deployment, published: &Published, count: &impl Fn(u64) -> u64) {
    let mut selected: BTreeMap<(String, Option<String>), u64> = BTreeMap::new();
    for row in &published.rows {
        let n = row.id.parse().unwrap();
        let pool = Some(source(n)).filter(|source| ["s0", "s1"].contains(&source.as_str()));
        *selected.entry((row.window.clone(), pool)).or_default() += count(n);
    }
    for window in shards(deployment).iter().flat_map(|shard| &shard.windows) {
        let numbers = (window.interval.from..window.interval.to)
            .map(|offset| offset as u64 * PARTITIONS + window.at.partition as u64);
        let numbers: Vec<u64> = numbers.collect();
        let longest = numbers.iter().map(|n| count(*n)).max().unwrap() as f64;
        let all: u64 = numbers.iter().map(|n| count(*n)).sum();
        let budgets: Vec<_> = window.turns.iter().map(|turn| (turn, turn.tokens.unwrap())).collect();
        let sum: f64 = budgets.iter().map(|(_, tokens)| tokens.budget).sum();
        assert!((sum - 0.3 * all as f64).abs() < 1e-6, "{sum} of {all} in {}", window.id());
        for (turn, tokens) in budgets {
            let found = selected.get(&(window.id(), turn.source.clone())).copied().unwrap_or(0);
            assert_eq!(found, tokens.selected, "{} of {:?}", window.id(), turn.source);
            assert!((found as f64 - tokens.budget).abs() <= longest, "{found} of {} in {}", tokens.budget, window.id());
        }
    }
}

/// The column, its sum in the manifest, and in the lines for trainers.
fn check_rows(deployment: &Deployment, tokenizer: &Tokenizer) {
    let answer = deployment.winnowd(&["query", "--format", "json", "SELECT text, n_tokens_bpe FROM documents"]);
    let mut sum = 0;
    for line in String::from_utf8_lossy(&answer.stdout).lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let counted = row["n_tokens_bpe"].as_u64().unwrap();
        assert_eq!(Some(counted as u32), tokenizer.count(row["text"].as_str().unwrap()), "{line}");
        sum += counted;
    }
    let counted: Vec<_> = shards(deployment).into_iter().filter_map(|shard| shard.tokenizer).collect();
    assert!(counted.iter().all(|of| of.name == "bpe" && of.digest == tokenizer.digest()));
    assert!(sum > 0);
    assert_eq!(counted.iter().map(|of| of.tokens).sum::<u64>(), sum);
}

/// What is said of the documents of a window is what decided about them.
fn check_explanations(deployment: &Deployment, published: &Published, count: impl Fn(u64) -> u64) {
    let window = &published.windows[0];
    let explain = |arguments: &[&str]| {
        let output = deployment.winnowd(&[&["explain"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut n_selected = 0;
    for offset in window.interval.from..window.interval.from + 30 {
        let position = format!("{}:{offset}", window.at.partition);
        let of: Value = serde_json::from_str(&explain(&["--json", "--position", &position])).unwrap();
        let row = published.rows.iter().find(|row| (row.partition, row.offset) == (window.at.partition, offset));
        assert_eq!(row.is_some(), of["outcome"] == "selected", "{of}");
        let n = offset as u64 * PARTITIONS + window.at.partition as u64;
        assert_eq!(of["document"]["counted_tokens"].as_u64(), Some(count(n)), "{of}");
        let Some(row) = row else { continue };
        n_selected += 1;
        let number =
            |name: &str| of["document"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {of}")).to_bits();
        assert_eq!(number("inclusion_probability"), row.inclusion_probability.to_bits(), "{of}");
        assert_eq!(number("sample_weight"), row.sample_weight.to_bits(), "{of}");
        let told = explain(&["--position", &position]);
        assert!(told.contains(" tokens"), "{told}");
    }
    assert!((3..30).contains(&n_selected), "{n_selected} of 30");
}

/// The same to the last bit with the same tokenizer under any name; not with another.
fn check_replays(deployment: &Deployment, folder: &std::path::Path, extra: &str, path: &std::path::Path) {
    let verified = || {
        let output = deployment.winnowd(&["replay", "--verify"]);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let said = verified();
    assert!(said.contains(" 0 differ, 0 cannot be verified"), "{said}");
    let config = std::fs::read_to_string(&deployment.config).unwrap();
    assert!(config.contains(extra));
    std::fs::write(&deployment.config, config.replace("\"bpe\"", "\"other\"")).unwrap();
    let said = verified();
    assert!(said.contains(" 0 differ, 0 cannot be verified"), "{said}");
    let (other, _) = tokenizer(folder, "b.json", 280);
    let changed = config.replace(&path.display().to_string(), &other.display().to_string());
    std::fs::write(&deployment.config, changed).unwrap();
    let said = verified();
    assert!(said.contains("0 windows are the same") && said.contains("documents.tokenizer.path"), "{said}");
}

#[test]
fn mistakes_are_told_before_anything_is_opened() {
    let broker = Broker::with_topic("tokens-mistakes", 1);
    let told = |extra: &str| {
        let deployment = Deployment::new(&broker, extra);
        let outputs = [deployment.winnowd(&["check"]), deployment.winnowd(&["run"])];
        for output in &outputs {
            assert_eq!(output.status.code(), Some(64), "{}", String::from_utf8_lossy(&output.stderr));
        }
        String::from_utf8_lossy(&outputs[1].stderr).into_owned()
    };
    let said = told("documents.tokenizer.path = \"no/such.json\"");
    assert!(said.contains("`documents.tokenizer.path` = `no/such.json`: cannot be read: "), "{said}");
    let said = told("documents.tokenizer.name = \"x\"");
    assert!(said.contains("has no effect without documents.tokenizer.path"), "{said}");
    let said = told("documents.tokenizer = { path = \"t.json\", name = \"a-b\" }");
    assert!(said.contains("`documents.tokenizer.name` = `a-b`: expected 1 to 64 letters"), "{said}");
    let said = told("documents.tokenizer.path = \"t.json\"\ndocuments.columns.N_TOKENS_T = \"length(text)\"");
    assert!(
        said.contains("`documents.columns.N_TOKENS_T` = `length(text)`: is the column of documents.tokenizer"),
        "{said}"
    );
    let said =
        told("selection.unit = \"tokens\"\nselection.selector = \"coverage\"\nselection.importance = \"weight\"");
    assert!(said.contains("`selection.unit` = `tokens`: works with importance_resampling and top_k"), "{said}");
}

#[test]
fn files_are_counted_and_selected_by_tokens() {
    let sandbox = Sandbox::new();
    let (_, tokenizer) = tokenizer(sandbox.folder.path(), "bpe.json", 300);
    sandbox.succeed("fit --target target.jsonl --raw raw.jsonl --out model.wnw");
    sandbox.succeed("score --model model.wnw --input raw.jsonl --tokenizer bpe.json --out scores.jsonl");
    let raw = lines(&sandbox.path("raw.jsonl"));
    let count = |row: &Value| tokenizer.count(row["text"].as_str().unwrap()).unwrap();
    let scores = lines(&sandbox.path("scores.jsonl"));
    assert_eq!(scores.len(), raw.len());
    for (score, row) in scores.iter().zip(&raw) {
        assert_eq!(score["n_tokens_bpe"], count(row), "{}", row["id"]);
    }
    let longest = raw.iter().map(count).max().unwrap();
    let all: u64 = raw.iter().map(|row| u64::from(count(row))).sum();

    let select = "select --input raw.jsonl --model model.wnw --length-normalise --temperature 0.1";
    for (options, wanted) in [
        ("--tokens 20000 --tokenizer bpe.json", 20_000.0),
        ("--fraction 0.25 --unit tokens --tokenizer bpe.json --selector top_k", 0.25 * all as f64),
    ] {
        sandbox.succeed(&format!("{select} {options} --out out --overwrite"));
        let sum: f64 = numbers(&sandbox.path("out").join(SELECTED), "n_tokens_bpe").iter().sum();
        assert!((sum - wanted).abs() <= f64::from(longest) / 2.0, "{sum} of {wanted}");
        let report = sandbox.report("out");
        assert_eq!(
            (report["tokens"]["selected"].as_f64(), report["tokenizer"]["tokens"].as_f64()),
            (Some(sum), Some(sum))
        );
        assert_eq!(report["tokenizer"]["digest"], tokenizer.digest());
    }
    // Without a tokenizer the words count. The column is there only where it was asked for.
    sandbox.succeed(&format!("{select} --tokens 5000 --out words"));
    let words: f64 = numbers(&sandbox.path("words").join(SELECTED), "n_tokens").iter().sum();
    assert_eq!(sandbox.report("words")["tokens"]["selected"].as_f64(), Some(words));
    assert!((words - 5_000.0).abs() < 2_000.0 && sandbox.report("words")["tokenizer"].is_null());
    for (options, expected) in [
        ("--count 5 --unit tokens", "with --unit tokens say --tokens"),
        ("--tokens 0", "must be at least 1"),
        ("--tokens 5 --against selected", "not with --against selected"),
        ("--tokens 5 --selector coverage --importance weight", "works with --selector importance_resampling"),
        ("--tokens 5 --tokenizer raw.jsonl", "is no tokenizer.json"),
        ("--tokens 5 --tokenizer bpe.json --tokenizer-name a-b", "expected 1 to 64 letters"),
    ] {
        let said = sandbox.refuse(&format!("{select} {options} --out refused"));
        assert!(said.contains(expected), "{options}: {said}");
    }
}
