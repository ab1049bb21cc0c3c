//! `winnowd explain`: every outcome, and that its numbers are those in the shard, to the last bit; and what windows cover. On `KAFKA_BOOTSTRAP`, or else
//! the in-process cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use support::*;
use winnowd::features::{Featuriser, Scratch};
use winnowd::record::TopicPartition;
use winnowd::score::{Model, NgramCounts, Side, Target};
use winnowd::select::Noise;
use winnowd::window::WindowSummary;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

fn run_until(deployment: &Deployment, n: u64) {
    let daemon = deployment.start();
    wait_for("documents to be decided", || (deployment.totals().n_records as u64 >= n).then_some(()));
    assert_eq!(daemon.stop(), Some(0), "{}", deployment.log());
}

/// Standard output and error after it has ended with this code.
fn said(deployment: &Deployment, arguments: &[&str], code: i32) -> (String, String) {
    let output = deployment.winnowd(&[&["explain"], arguments].concat());
    let [out, error] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{error}");
    (out, error)
}

fn explained(deployment: &Deployment, arguments: &[&str]) -> Vec<Value> {
    let (out, _) = said(deployment, &[arguments, &["--json"]].concat(), 0);
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// What is said of the record at a position.
fn at_position(deployment: &Deployment, partition: i32, offset: i64) -> Value {
    let mut found = explained(deployment, &["--position", &format!("{partition}:{offset}")]);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Explanations of a whole window are one decision: ranks are those of the keys, selected are the first ones, and all numbers of
/// the selected ones stand in the shard.
fn check_one_target(explanations: &[Value], window: &WindowSummary, rows: &[&Row], seed: u64) {
    let noise = Noise::new(seed, &window.at);
    let candidates: Vec<&Value> =
        explanations.iter().filter(|e| !e["document"]["targets"][0]["rank"].is_null()).collect();
    let mut by_key: Vec<(f64, u64, bool)> = Vec::new();
    for of in &candidates {
        let (document, target) = (&of["document"], &of["document"]["targets"][0]);
        let offset: i64 = of["position"].as_str().unwrap().rsplit('/').next().unwrap().parse().unwrap();
        let loss = document["loss"]["added"].as_f64().unwrap_or(0.0);
        let total = number(&target["of_text"]) + loss;
        assert_eq!(number(&target["total_log_weight"]).to_bits(), total.to_bits(), "{of}");
        assert_eq!(number(&document["noise"]).to_bits(), noise.gumbel(offset).to_bits());
        let key = total / number(&of["selector"]["temperature"]) + number(&document["noise"]);
        assert_eq!(number(&target["key"]).to_bits(), key.to_bits(), "{of}");
        let turn = &of["competition"]["turns"][0];
        assert_eq!(turn["threshold"].as_f64().map(f64::to_bits), window.threshold.map(f64::to_bits));
        let is_selected = of["outcome"] == "selected";
        assert_eq!(is_selected, window.threshold.is_none_or(|threshold| key > threshold), "{of}");
        by_key.push((key, target["rank"].as_u64().unwrap(), is_selected));
        let row = rows.iter().find(|row| row.offset == offset);
        assert_eq!(row.is_some(), is_selected, "{of}");
        if let Some(row) = row {
            assert_eq!(Some(row.id.as_str()), of["id"].as_str());
            assert_eq!(row.log_importance_weight.to_bits(), number(&target["log_importance_weight"]).to_bits());
            assert_eq!(row.selection_key.to_bits(), key.to_bits());
            assert_eq!(row.inclusion_probability.to_bits(), number(&document["inclusion_probability"]).to_bits());
            assert_eq!(row.sample_weight.to_bits(), number(&document["sample_weight"]).to_bits());
            assert_eq!(row.loss, document["loss"]["loss"].as_f64());
            assert_eq!(row.loss_weight, document["loss"]["loss_weight"].as_f64());
        }
    }
    by_key.sort_by(|a, b| b.0.total_cmp(&a.0));
    let ranks: Vec<(u64, bool)> = by_key.iter().map(|(_, rank, selected)| (*rank, *selected)).collect();
    let expected: Vec<(u64, bool)> =
        (1..=candidates.len() as u64).map(|rank| (rank, rank <= window.n_selected)).collect();
    assert_eq!(ranks, expected);
}

const MIXED: &str = r#"
documents.filter = "source <> 's1' AND 100 / (n % 50) > 2"
documents.filter_fields.n = "integer"
documents.loss_field = "loss"
selection.fraction = 0.25
selection.temperature = 2.0
selection.loss_coefficient = 1.5
selection.loss_high = 8.0
window.max_documents = 30
shard.max_rows = 20
"#;

/// One of every kind, with a loss or without.
fn mixed(n: u64) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(&document(n)).unwrap();
    if !n.is_multiple_of(4) {
        document["loss"] = json!((n % 9) as f64 / 1.3);
    }
    match n % 30 {
        5 => Some(b"{\"id\": \"broken".to_vec()),
        8 => None,
        15 => Some(
            json!({ "id": format!("d{n}"), "source": "s0", "text": "select table", "n": n }).to_string().into_bytes(),
        ),
        _ => Some(document.to_string().into_bytes()),
    }
}

#[test]
fn every_record_of_a_window_is_explained_as_it_was_decided() {
    let broker = Broker::with_topic("explain", 2);
    let deployment = Deployment::new(&broker, MIXED);
    let n = 240;
    let producer = broker.producer();
    (0..n).for_each(|i| producer.send((i % 2) as i32, mixed(i).as_deref()));
    producer.flush();
    run_until(&deployment, n);
    let published = deployment.published();
    let window =
        published.windows.iter().find(|window| window.at.partition == 1 && window.interval.from == 30).unwrap();
    let rows: Vec<&Row> = published.rows.iter().filter(|row| row.window == window.id()).collect();
    assert_eq!(rows.len() as u64, window.n_selected);
    let explanations: Vec<Value> = (30..60).map(|offset| at_position(&deployment, 1, offset)).collect();
    check_one_target(&explanations, window, &rows, 7);

    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for (offset, of) in (30i64..).zip(&explanations) {
        let outcome = of["outcome"].as_str().unwrap();
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
        assert_eq!(of["position"], json!(window.at.position(offset)));
        assert_eq!(of["window"], json!(window.id()));
        let n = 2 * offset as u64 + 1;
        let letter = published.dead_letters.iter().find(|letter| (letter.at.partition, letter.offset) == (1, offset));
        assert_eq!(letter.is_some(), outcome == "dead_letter", "{of}");
        if let Some(letter) = letter {
            assert_eq!(
                (&of["dead_letter"]["reason"], &of["dead_letter"]["detail"]),
                (&json!(letter.reason), &json!(letter.detail))
            );
            assert!(deployment.folder.path().join("out").join(of["path"].as_str().unwrap()).exists());
            continue;
        }
        assert_eq!(
            (&of["id"], &of["document"]["refused_by"].is_null()),
            (&json!(format!("d{n}")), &(outcome != "filtered"))
        );
        let why = of["why"].as_str().unwrap();
        match outcome {
            "selected" => assert!(
                of["path"].as_str().unwrap().starts_with("shards/") && why.contains("is above the threshold"),
                "{why}"
            ),
            "below_threshold" => assert!(why.contains("is not above the threshold") && of["path"].is_null(), "{why}"),
            "too_short" => assert!(why.contains("it has 2 tokens, at least 5 are asked for"), "{why}"),
            _ => assert!(why.contains(if n % 3 == 1 { "source" } else { "100" }), "{why}"),
        }
    }
    let count = |name: &str| outcomes.get(name).copied().unwrap_or_default();
    assert_eq!((count("selected"), count("too_short")), (window.n_selected, window.n_too_short), "{outcomes:?}");
    assert_eq!(count("dead_letter"), window.n_dead_letters, "{outcomes:?}");
    assert_eq!(count("below_threshold") + count("filtered") + count("too_short"), window.n_rejected, "{outcomes:?}");
    assert!(
        ["selected", "below_threshold", "filtered", "too_short", "dead_letter"].iter().all(|name| count(name) > 0),
        "{outcomes:?}"
    );

    by_id(&deployment, &published, window, &explanations);
    outside(&broker, &deployment, window);
    a_change_is_no_explanation(&deployment, window);
}

/// The same by id, in the window and in the whole log; and what is there several times, or not at all.
fn by_id(deployment: &Deployment, published: &Published, window: &WindowSummary, explanations: &[Value]) {
    let window_id = window.id();
    for of in [&explanations[0], explanations.iter().find(|of| of["outcome"] == "selected").unwrap()] {
        let id = of["id"].as_str().unwrap();
        assert_eq!(&explained(deployment, &["--window", &window_id, "--id", id]), std::slice::from_ref(of));
        assert_eq!(&explained(deployment, &["--id", id]), std::slice::from_ref(of));
        let told = said(deployment, &["--window", &window_id, "--id", id], 0).0;
        let first = told.lines().next().unwrap();
        assert!(first.starts_with(&format!("`{id}` at {}", of["position"].as_str().unwrap())), "{told}");
        assert!(first.ends_with(of["why"].as_str().unwrap()) && told.contains("closed by documents"), "{told}");
        assert!(told.contains(&format!("{:.6}", number(&of["document"]["noise"]))), "{told}");
    }
    let selected = published.rows.iter().find(|row| row.window != window_id).unwrap();
    let elsewhere = explained(deployment, &["--window", &window_id, "--id", &selected.id]).remove(0);
    assert_eq!(elsewhere["outcome"], "not_in_window");
    let why = elsewhere["why"].as_str().unwrap();
    assert!(why.contains(&format!("{} of its records could not be read", window.n_dead_letters)), "{why}");
    assert_eq!(explained(deployment, &["--id", "nobody"])[0]["outcome"], "not_found");
    let beside = explained(deployment, &["--id", &selected.id, "--partition", &(1 - selected.partition).to_string()]);
    assert_eq!(beside[0]["outcome"], "not_found");
}

/// Positions that no window has, ids that are positions, and what cannot be asked.
fn outside(broker: &Broker, deployment: &Deployment, window: &WindowSummary) {
    let topic = &broker.topic;
    let producer = broker.producer();
    let without_id = json!({ "text": "table index query vacuum select", "source": "s0", "n": 1 }).to_string();
    producer.send(0, Some(without_id.as_bytes()));
    producer.send(0, Some(&document(1_000)));
    producer.flush();
    let waiting = at_position(deployment, 0, 121);
    assert_eq!(waiting["outcome"], "undecided");
    assert!(waiting["why"].as_str().unwrap().contains("below 120 is decided, the log holds 0..122"), "{waiting}");
    assert_eq!(explained(deployment, &["--id", "d1000"])[0]["outcome"], "undecided");
    run_until(deployment, 242);
    let id = format!("{topic}/0/120");
    let by_id = explained(deployment, &["--id", &id]);
    assert_eq!((&by_id[0]["id"], &by_id[0]["position"]), (&json!(id), &json!(id)));
    assert_eq!(by_id, explained(deployment, &["--position", &format!("{topic}/0:120")]));

    let other = explained(deployment, &["--window", &window.id(), "--position", "1:7"]);
    assert_eq!(other[0]["outcome"], "not_in_window");
    for (arguments, problem) in [
        (&["--position", "7:0"][..], "kafka.topics has no such partition"),
        (&["--position", "soon"], "expected [TOPIC/]PARTITION:OFFSET"),
        (&["--window", "x/0/0-1", "--id", "d1"], "has published no window `x/0/0-1`"),
        (&["--window", "x", "--id", "d1"], "expected topic/partition/from-to"),
        (&["--id", "d1", "--position", "0:1"], "cannot be used with"),
        (&[], "required"),
    ] {
        let (_, error) = said(deployment, arguments, 64);
        assert!(error.contains(problem), "{arguments:?}: {error}");
    }
}

/// Where a window is not decided again as it was published, nothing is explained.
fn a_change_is_no_explanation(deployment: &Deployment, window: &WindowSummary) {
    let text = std::fs::read_to_string(&deployment.config).unwrap();
    // Not recorded, so that a replay sees other losses than the daemon did.
    std::fs::write(&deployment.config, text.replace("loss_field = \"loss\"", "loss_field = \"none\"")).unwrap();
    let (out, error) = said(deployment, &["--window", &window.id(), "--id", "d61"], 69);
    assert!(out.is_empty() && error.contains("is not decided again as it was published"), "{out}{error}");
    std::fs::write(&deployment.config, text).unwrap();
}

/// For every target and pool the ranks are those of what the targets before have left.
#[test]
fn several_targets_and_sources_are_explained_turn_by_turn() {
    let broker = Broker::with_topic("explain-targets", 1);
    let extra = "selection.fraction = 0.3\nselection.length_normalise = true\nselection.temperature = 0.3\n\
                 window.max_documents = 30\nselection.sources.s0 = 0.5\nselection.proportions = { good = 0.6, bad = 0.4 }";
    let deployment = Deployment::new(&broker, extra);
    let side = |text: &str| {
        let featuriser = Featuriser::default();
        let mut counts = NgramCounts::zero(featuriser.buckets as usize);
        counts.add_text(text, &featuriser, &mut Scratch::default());
        Side::of(counts)
    };
    let raw = side("king thou night select thou king table index night query vacuum king thou select");
    let (good, bad) = (side("select index from table query vacuum"), side("king thou night thou king"));
    let one = Model::of_one_target(Featuriser::default(), good.clone(), raw).unwrap();
    let target = |(name, side): (&str, Side)| Target { name: name.into(), proportion: 0.5, side };
    let model = Model { targets: [("good", good), ("bad", bad)].map(target).to_vec(), ..one }.validated().unwrap();
    std::fs::write(deployment.folder.path().join("model.wnw"), model.to_bytes()).unwrap();
    let producer = broker.producer();
    (0..60).for_each(|i| producer.send(0, Some(&document(i))));
    producer.send(0, Some(b"{\"id\": \"short\", \"text\": \"two words\"}"));
    producer.flush();
    run_until(&deployment, 61);

    let published = deployment.published();
    let window = published.windows.iter().find(|window| window.interval.from == 30).unwrap();
    let explanations: Vec<Value> = (30..60).map(|offset| at_position(&deployment, 0, offset)).collect();
    let mut selected = 0;
    for (offset, of) in (30i64..).zip(&explanations) {
        let document = &of["document"];
        let row = published.rows.iter().find(|row| row.offset == offset);
        assert_eq!(row.is_some(), of["outcome"] == "selected", "{of}");
        let turns = of["competition"]["turns"].as_array().unwrap();
        let source = if of["source"] == "s0" { json!("s0") } else { Value::Null };
        let expected: Vec<_> = window.turns.iter().filter(|turn| json!(turn.source) == source).collect();
        assert_eq!((turns.len(), expected.len()), (2, 2));
        for (turn, expected) in turns.iter().zip(expected) {
            assert_eq!((&turn["target"], &turn["source"]), (&json!(expected.target), &source));
            assert_eq!(
                (&turn["budget"], &turn["n_candidates"]),
                (&json!(expected.n_selected), &json!(expected.n_candidates))
            );
            assert_eq!(turn["threshold"].as_f64(), expected.threshold);
        }
        let targets = document["targets"].as_array().unwrap();
        let n_ngrams = number(&document["n_ngrams"]);
        for target in targets {
            let mean = number(&target["log_importance_weight"]) / n_ngrams;
            assert_eq!(number(&target["of_text"]).to_bits(), mean.to_bits());
        }
        if let Some(row) = row {
            selected += 1;
            assert_eq!(json!(row.target), document["selected_for"]);
            let by = targets.iter().position(|target| target["target"] == document["selected_for"]).unwrap();
            assert_eq!(row.selection_key.to_bits(), number(&targets[by]["key"]).to_bits());
            assert_eq!(row.inclusion_probability.to_bits(), number(&document["inclusion_probability"]).to_bits());
            assert!(targets[by]["rank"].as_u64().unwrap() <= turns[by]["budget"].as_u64().unwrap(), "{of}");
            let weights: Vec<_> = targets.iter().map(|target| number(&target["log_importance_weight"])).collect();
            assert_eq!(weights, row.log_importance_weights.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
        } else {
            for (target, turn) in targets.iter().zip(turns) {
                assert!(target["rank"].as_u64().unwrap() > turn["budget"].as_u64().unwrap(), "{of}");
            }
        }
    }
    assert_eq!(selected, window.n_selected);
    // In each pool the second target's ranks go on from 1 over what the first has left.
    for source in [true, false] {
        let of_pool = explanations.iter().filter(|of| (of["source"] == "s0") == source);
        let ranks = |target: usize| -> BTreeSet<u64> {
            of_pool.clone().filter_map(|of| of["document"]["targets"][target]["rank"].as_u64()).collect()
        };
        let taken = of_pool.clone().filter(|of| of["document"]["selected_for"] == "good").count() as u64;
        let n = of_pool.clone().count() as u64;
        assert_eq!((ranks(0), ranks(1)), ((1..=n).collect(), (1..=n - taken).collect()));
    }
    // A document that competes with nobody has its weights, too.
    let short = at_position(&deployment, 0, 60);
    assert_eq!((&short["outcome"], short["document"]["targets"].as_array().unwrap().len()), (&json!("too_short"), 2));
    assert!(
        short["document"]["targets"].as_array().unwrap().iter().all(|t| t["log_importance_weight"].is_number()),
        "{short}"
    );
}

/// What retention has removed cannot be decided again; what the shard still says of it is told.
#[test]
fn what_is_no_longer_in_kafka_is_said_to_be_gone() {
    let broker = Broker::with_topic("explain-gone", 1);
    let deployment = Deployment::new(&broker, "window.max_documents = 50\nselection.fraction = 0.2");
    let producer = broker.producer();
    if !broker.is_real() {
        // Beyond the 5 MiB that the in-process cluster keeps.
        println!("the in-process cluster deletes what is beyond its 5 MiB");
    }
    (0..99).for_each(|i| producer.send(0, Some(&document(i))));
    producer.send(0, Some(b"nonsense"));
    producer.flush();
    run_until(&deployment, 100);
    let published = deployment.published();
    let selected = published.rows.iter().find(|row| row.offset >= 50).unwrap();
    let n_selected = published.rows.iter().filter(|row| row.offset >= 50).count();
    let is_row = |offset: i64| published.rows.iter().any(|row| row.offset == offset);
    let rejected = (50..99).find(|offset| !is_row(*offset)).unwrap();
    if broker.is_real() {
        broker.delete_before(0, 100);
    } else {
        let filler = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
        (0..80).for_each(|_| producer.send(0, Some(filler.as_bytes())));
        producer.flush();
    }
    let window = published.windows.iter().find(|window| window.interval.from == 50).unwrap().id();
    for (arguments, rest) in [
        (
            ["--position".to_owned(), format!("0:{}", selected.offset)],
            format!("has offset {} (`{}`), selected with", selected.offset, selected.id),
        ),
        (
            ["--position".to_owned(), format!("0:{rejected}")],
            format!("it is none of the {n_selected} that were selected of the window"),
        ),
        (["--position".to_owned(), "0:99".to_owned()], "has it as a dead letter: malformed_json".to_owned()),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (out, error) = said(&deployment, &arguments, 69);
        assert!(out.is_empty(), "{out}");
        assert!(
            error.contains(&format!("{window} cannot be decided again: its records are deleted: the log holds ")),
            "{error}"
        );
        assert!(error.contains(&rest), "{error}");
    }
    let (_, error) = said(&deployment, &["--window", &window, "--id", &selected.id], 69);
    assert!(error.contains(&format!("key {}", selected.selection_key)), "{error}");
}

/// Offsets that hold no document, and such that nobody decides.
#[test]
fn offsets_without_a_decision_are_told_apart() {
    let broker = Broker::with_topic("explain-offsets", 2);
    if !broker.is_real() {
        println!("the in-process cluster has no transactions that abort, and deletes no records on demand");
        return;
    }
    let deployment = Deployment::new(&broker, "kafka.on_lost_offset = \"skip\"\nwindow.max_documents = 20");
    let transactional = broker.transactional_producer();
    for (commit, first) in [(false, 100), (true, 200)] {
        transactional
            .transaction(commit, |producer| (first..first + 10).for_each(|i| producer.send(0, Some(&document(i)))));
    }
    let producer = broker.producer();
    (0..30).for_each(|i| producer.send(1, Some(&document(i))));
    producer.flush();
    broker.delete_before(1, 5);
    run_until(&deployment, 10 + 25);
    // Ten aborted ones and their mark, ten committed ones and theirs.
    for offset in [0, 9, 10, 21] {
        assert_eq!(at_position(&deployment, 0, offset)["outcome"], "no_record", "offset {offset}");
    }
    assert_eq!(at_position(&deployment, 0, 11)["id"], "d200");
    let before = at_position(&deployment, 1, 4);
    assert_eq!(before["outcome"], "before_start", "{before}");
    (30..60).for_each(|i| producer.send(1, Some(&document(i))));
    producer.flush();
    broker.delete_before(1, 40);
    run_until(&deployment, 10 + 25 + 20);
    let skipped = at_position(&deployment, 1, 35);
    assert_eq!(skipped["outcome"], "skipped");
    assert!(skipped["why"].as_str().unwrap().contains("offsets 30..40 were passed over (retention"), "{skipped}");
    let at = TopicPartition::new(broker.topic.as_str(), 1);
    assert_eq!(skipped["position"], json!(at.position(35)));
}

/// In manifests, the catalog, metrics and status, in SQL, and once more when windows are decided again.
#[test]
fn what_windows_cover_is_shown_everywhere_and_repeated() {
    let broker = Broker::with_topic("measured", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 100\nselection.coverage_sample = 4");
    let producer = broker.producer();
    let n = 2_050;
    (0..n).for_each(|i| producer.send((i % 2) as i32, Some(&document(i))));
    producer.flush();
    let daemon = deployment.start();
    wait_for("documents to be decided", || (deployment.totals().n_records as u64 >= n).then_some(()));
    let published = deployment.published();
    let spreads: Vec<_> = published.windows.iter().filter_map(|window| window.spread).collect();
    let is_last = |window: &&WindowSummary| window.interval.to == 1_025;
    assert!(
        published.windows.iter().filter(is_last).all(|window| window.spread.is_some()),
        "what is quiet is measured"
    );
    // A twelfth of the twenty full windows on average: not all of them in 1 of 10^21 seeds.
    assert!(spreads.len() < published.windows.len(), "{} of {}", spreads.len(), published.windows.len());
    assert!(
        spreads.iter().all(|s| s.n_sampled == 4 && s.n_selected == 2 && s.auc_pr > 0.0 && s.auc_pr_of_random > 0.0)
    );
    // Three sources, evenly.
    assert!(spreads.iter().all(|s| (s.source_entropy_of_documents - 3f64.ln()).abs() < 0.05), "{spreads:?}");

    let status: Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    let coverage = &status["coverage"];
    assert_eq!(coverage["n_windows"], spreads.len(), "{coverage}");
    let mean = spreads.iter().map(|s| s.auc_pr).sum::<f64>() / spreads.len() as f64;
    assert!((number(&coverage["auc_pr"]) - mean).abs() < 1e-9, "{coverage} for {mean}");
    assert_eq!(daemon.metric("winnowd_coverage_distance{to=\"selected\"}"), number(&coverage["auc_pr"]));
    assert_eq!(daemon.metric("winnowd_coverage_distance{to=\"random\"}"), number(&coverage["auc_pr_of_random"]));
    let last = &coverage["last_window"];
    assert_eq!(daemon.metric("winnowd_window_coverage_distance{to=\"selected\"}"), number(&last["auc_pr"]));
    assert_eq!(
        daemon.metric("winnowd_window_source_entropy_nats{of=\"selected\"}"),
        number(&last["source_entropy_of_selected"])
    );
    assert_eq!(daemon.stop(), Some(0));

    let sql = "SELECT count(auc_pr) AS n, sum(auc_pr) AS a FROM windows";
    let answer = deployment.winnowd(&["query", "--format", "json", sql]);
    let answer: Value = serde_json::from_slice(answer.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(answer["n"], spreads.len());
    assert!((number(&answer["a"]) - mean * spreads.len() as f64).abs() < 1e-9);
    // By what is recorded: the configuration says otherwise by now.
    let text = std::fs::read_to_string(&deployment.config).unwrap();
    std::fs::write(&deployment.config, text.replace("coverage_sample = 4", "coverage_sample = 0")).unwrap();
    let verified = deployment.winnowd(&["replay", "--verify"]);
    let told = String::from_utf8_lossy(&verified.stdout);
    assert!(told.contains(&format!("{} windows are the same", published.windows.len())), "{told}");

    // Turned off, nothing of it is there, and what was recorded before is read as it was.
    producer.send(0, Some(&document(n)));
    producer.flush();
    let daemon = deployment.start();
    wait_for("one more", || (deployment.totals().n_records as u64 > n).then_some(()));
    assert!(!daemon.get("/metrics").1.contains("winnowd_coverage_distance{"));
    let status: Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    assert_eq!(status["coverage"], Value::Null);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(deployment.published().windows.iter().filter_map(|window| window.spread).count(), spreads.len());
}

const STRATA: &str = r#"
selection.selector = "coverage"
selection.importance = "hard"
selection.strata = 5
selection.clip = 0
selection.cutoff = 0.2
selection.fraction = 0.2
selection.temperature = 2.0
selection.holdout = 0.3
documents.columns.n_chars = "length(text)"
sink.shuffle = true
window.max_documents = 60
"#;

/// Every record of a window over strata: what is said of it is what its stratum decided, and stands in the shard, on whichever side.
#[test]
fn a_window_over_strata_is_explained_by_its_strata() {
    let broker = Broker::with_topic("explain-strata", 1);
    let deployment = Deployment::new(&broker, STRATA);
    let n = 120;
    let producer = broker.producer();
    for i in 0..n {
        let mut document: Value = serde_json::from_slice(&document(i)).unwrap();
        // Some lack it; some are equal, at the cut-off as well.
        if i % 10 != 7 {
            document["hard"] = json!((i * 7 % 12) as f64);
        }
        producer.send(0, Some(document.to_string().as_bytes()));
    }
    producer.flush();
    run_until(&deployment, n);
    let published = deployment.published();
    assert!(published.rows.iter().any(|row| row.held_out) && published.rows.iter().any(|row| !row.held_out));
    let window = published.windows.iter().find(|window| window.interval.from == 60).unwrap();
    let coverage = window.coverage.as_ref().unwrap();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut of_stratum: BTreeMap<u64, u64> = BTreeMap::new();
    for offset in 60..120 {
        let of = at_position(&deployment, 0, offset);
        let (outcome, strata) = (of["outcome"].as_str().unwrap(), &of["document"]["strata"]);
        *outcomes.entry(outcome.to_owned()).or_default() += 1;
        let row = published.rows.iter().find(|row| row.offset == offset);
        assert_eq!(row.is_some(), outcome == "selected", "{of}");
        assert_eq!(strata["stratum"].is_null(), ["no_number", "cut_off"].contains(&outcome), "{of}");
        if let Some(place) = strata["stratum"]["stratum"].as_u64() {
            let known = coverage.pools[0].strata.iter().find(|s| u64::from(s.stratum) == place).unwrap();
            assert_eq!(strata["stratum"]["budget"], json!(known.n_selected), "{of}");
            let value = number(&strata["value"]);
            assert!((number(&strata["stratum"]["from"])..=number(&strata["stratum"]["to"])).contains(&value), "{of}");
            let key = number(&of["document"]["targets"][0]["key"]);
            let beats = known.n_selected > 0 && known.thresholds[0].is_none_or(|threshold| key > threshold);
            assert_eq!(beats, outcome == "selected", "{of}");
            *of_stratum.entry(place).or_default() += u64::from(outcome == "selected");
        }
        if let Some(row) = row {
            let probability = number(&of["document"]["inclusion_probability"]);
            assert_eq!(row.inclusion_probability.to_bits(), probability.to_bits(), "{of}");
            let side = if row.held_out { "validation/" } else { "shards/" };
            assert!(of["path"].as_str().unwrap().starts_with(side), "{of}");
        }
    }
    let count = |name: &str| outcomes.get(name).copied().unwrap_or_default();
    assert_eq!(count("no_number"), coverage.n_without_number, "{outcomes:?}");
    assert_eq!((count("cut_off"), count("selected")), (coverage.n_cut, window.n_selected), "{outcomes:?}");
    assert!(coverage.n_cut > 0 && count("below_threshold") > 0, "{outcomes:?}");
    for stratum in &coverage.pools[0].strata {
        assert_eq!(of_stratum[&u64::from(stratum.stratum)], stratum.n_selected, "{stratum:?}");
    }
    let replayed = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(replayed.status.code(), Some(0), "{}", String::from_utf8_lossy(&replayed.stdout));
}
