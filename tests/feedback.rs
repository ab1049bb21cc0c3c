//! The loop back: documents become shards, a trainer reads them and says what it lost, and what comes next is selected otherwise.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::*;
use winnowd::catalog::{Access, FeedbackCatalog, FeedbackVersion, SqlCatalog};
use winnowd::config::CatalogUrl;
use winnowd::crash;
use winnowd::feedback::FeedbackSummary;
use winnowd::record::{Decoder, DocumentRef};
use winnowd::source::files::for_each_document;
use winnowd::window::WindowSummary;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: i32 = 2;
const BATCH: usize = 8;
/// Reports of other shapes come after every so many steps.
const MISCHIEF: u64 = 5;
/// Publications after reports: the bandit is fair to three sources for the first three.
const TURNS: i64 = 6;

/// What a trainer loses on a document: there are words that it does not know, and a source that it finds hard.
fn loss_of(id: &str) -> f64 {
    let n: u64 = id[1..].parse().unwrap();
    let payload: serde_json::Value = serde_json::from_slice(&document(n)).unwrap();
    let words: Vec<&str> = payload["text"].as_str().unwrap().split_whitespace().collect();
    let hard = words.iter().filter(|word| ["king", "thou", "night"].contains(word)).count();
    let of_source = if payload["source"] == "s1" { 1.5 } else { 0.0 };
    1.0 + of_source + 6.0 * hard as f64 / words.len() as f64
}

fn summary(deployment: &Deployment) -> FeedbackSummary {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let summary = catalog.feedback_summary("test").await.unwrap();
        catalog.close().await;
        summary.unwrap_or_default()
    })
}

fn newest(deployment: &Deployment) -> FeedbackVersion {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let newest = catalog.newest_feedback("test").await.unwrap().unwrap();
        catalog.close().await;
        newest
    })
}

/// It is written after the transaction.
fn wait_for_manifest(deployment: &Deployment) {
    let manifest = deployment.folder.path().join("out/manifest.jsonl");
    let n_lines = || std::fs::read_to_string(&manifest).map_or(0, |manifest| manifest.lines().count());
    wait_for("the manifest", || (n_lines() as i64 == deployment.totals().n_shards).then_some(()));
}

/// Ids of published documents, in the order of the catalog's shards.
fn published_ids(deployment: &Deployment) -> Vec<String> {
    deployment.published().rows.into_iter().map(|row| row.id).collect()
}

/// What was sent to the losses' topic, and what has to become of it.
#[derive(Default)]
struct Sent {
    expected: BTreeMap<&'static str, u64>,
    n_reports: u64,
    n_bad_reports: u64,
    step: u64,
}

impl Sent {
    fn expect(&mut self, outcome: &'static str, n: usize) {
        if n > 0 {
            *self.expected.entry(outcome).or_default() += n as u64;
        }
    }

    /// One step a batch of documents that have not been reported, with mischief in between.
    fn reports(&mut self, ids: &[String], random: &mut Random) -> Vec<Vec<u8>> {
        let mut reports = Vec::new();
        for batch in ids.chunks(BATCH) {
            let report = report(self.step, 0, batch);
            self.expect("counted", batch.len());
            if self.step.is_multiple_of(MISCHIEF) {
                self.mischief(&report, batch, &mut reports);
            }
            // The trainer died and repeats the step, or its producer sent it twice.
            if random.below(4) == 0 {
                self.expect("duplicate", batch.len());
                reports.push(report.clone());
                self.n_reports += 1;
            }
            reports.push(report);
            self.n_reports += 1;
            self.step += 1;
        }
        reports
    }

    fn mischief(&mut self, report: &[u8], batch: &[String], reports: &mut Vec<Vec<u8>>) {
        let step = self.step + 1_000_000;
        // Entries that say nothing, in a step and of a rank of their own: Python writes NaN so.
        let id = &batch[0];
        let bad = format!(
            r#"{{"run_id":"r","step":{step},"rank":1,"world_size":2,"losses":[{{"id":"{id}","loss":NaN,"n_tokens":9}},
            {{"id":"{id}","loss":-1.0,"n_tokens":9}},{{"id":"{id}","loss":2.0,"n_tokens":0}},{{"id":"{id}","loss":2.0,"n_tokens":1000000}},
            {{"id":"{id}","loss":1e6,"n_tokens":9}},{{"id":"nobody","loss":2.0,"n_tokens":9}},{{"loss":2.0}}]}}"#
        );
        reports.push(bad.into_bytes());
        for outcome in ["not_finite", "negative", "no_tokens", "unknown_id", "no_id"] {
            self.expect(outcome, 1);
        }
        self.expect("implausible", 2);
        // A step that the rank has left far behind, and half a report.
        let old = r#"{"run_id":"r","step":1,"rank":1,"world_size":2,"losses":[{"id":"nobody","loss":2.0}]}"#;
        reports.push(old.as_bytes().to_vec());
        self.expect("too_old", 1);
        reports.push(report[..report.len() / 2].to_vec());
        self.n_reports += 2;
        self.n_bad_reports += 1;
    }

    fn is_taken(&self, summary: &FeedbackSummary) -> bool {
        (summary.n_reports, summary.n_bad_reports) == (self.n_reports, self.n_bad_reports)
    }

    fn assert_taken_once(&self, summary: &FeedbackSummary) {
        let expected: BTreeMap<String, u64> = self.expected.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        assert_eq!(summary.losses, expected, "after {} reports", self.n_reports);
    }
}

fn report(step: u64, rank: i32, ids: &[String]) -> Vec<u8> {
    let n_tokens = 24u32;
    let sums: Vec<f64> = ids.iter().map(|id| loss_of(id) * f64::from(n_tokens)).collect();
    let report = serde_json::json!({ "run_id": "r", "step": step, "rank": rank, "world_size": 2, "doc_ids": ids,
        "loss_sum": sums, "tokens": vec![n_tokens; ids.len()] });
    report.to_string().into_bytes()
}

/// Documents, shards, losses, and documents again, with the daemon killed at each step of taking losses and at random moments.
fn the_loop(name: &str, postgres: Option<&url::Url>) {
    let broker = Broker::with_topic(name, PARTITIONS);
    let (kills, n_documents) = if broker.is_real() { (8, 6_000) } else { (1, 2_400) };
    let losses = broker.other_topic("losses", PARTITIONS);
    let extra = format!(
        "feedback.topic = \"{losses}\"\nfeedback.interval = \"200ms\"\nselection.mixing = \"odm\"\n\
         feedback.half_life_losses = 2000\nselection.expected_loss = 60.0\nwindow.max_documents = 200\nshard.max_rows = 300\n\
         selection.fraction = 0.2\nselection.length_normalise = true"
    );
    let deployment = Deployment::with(&broker, &extra, postgres, None);
    let producer = broker.producer();
    let mut sent_documents = 0;
    let mut produce = |n: u64| {
        (0..n).for_each(|i| producer.send(((sent_documents + i) % 2) as i32, Some(&document(sent_documents + i))));
        producer.flush();
        sent_documents += n;
        sent_documents
    };
    let reporter = broker.producer_to(&losses);
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let (mut random, mut sent) = (Random::new(seed), Sent::default());
    // The topic is there before the daemon is: the in-process cluster makes it now.
    reporter.send(0, Some(b"no report"));
    reporter.flush();
    sent.n_bad_reports += 1;
    // The mischief's rank, so that its step 1 is old.
    let first = r#"{"run_id":"r","step":900000,"rank":1,"world_size":2,"losses":[{"id":"nobody","loss":2.0}]}"#;
    reporter.send(0, Some(first.as_bytes()));
    reporter.flush();
    sent.n_reports += 1;
    sent.expect("unknown_id", 1);

    let daemon = deployment.start();
    let all = produce(n_documents);
    wait_for("all documents", || (deployment.totals().n_records as u64 == all).then_some(()));
    wait_for("the first reports", || sent.is_taken(&summary(&deployment)).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let ids = published_ids(&deployment);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    let points = crash::POINTS.iter().filter(|point| point.starts_with("feedback."));
    let mut faults: Vec<Option<&str>> = points.map(|point| Some(*point)).collect();
    faults.extend((0..kills).map(|_| None));
    let each = ids.len().div_ceil(faults.len());
    for (fault, ids) in faults.iter().zip(ids.chunks(each)) {
        let environment = fault.map(|point| ("CRASH_POINT", format!("{point}:2")));
        let environment: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut daemon = deployment.start_with(&environment).unwrap();
        // In two parts, so that there is a second transaction.
        let (head, tail) = ids.split_at(ids.len() / 2);
        for (i, part) in [head, tail].into_iter().enumerate() {
            for report in sent.reports(part, &mut random) {
                // A rank keeps to its partition, as a producer with its key does.
                reporter.send(0, Some(&report));
            }
            reporter.flush();
            if i == 0 {
                wait_for("a part", || {
                    sent.is_taken(&summary(&deployment))
                        .then_some(())
                        .or_else(|| daemon.child.try_wait().unwrap().map(drop))
                });
            }
        }
        match fault {
            Some(point) => {
                let status = wait_for(point, || daemon.child.try_wait().unwrap());
                assert_eq!(status.signal(), Some(9), "{point}: {status}");
            }
            None => {
                // The moment of the fault is the input of this test, not a way to wait.
                std::thread::sleep(Duration::from_millis(random.below(1500)));
                daemon.kill_9();
            }
        }
    }
    let daemon = deployment.start();
    wait_for("all reports", || sent.is_taken(&summary(&deployment)).then_some(()));
    let learnt = summary(&deployment);
    sent.assert_taken_once(&learnt);
    println!("{} reports, {:?}, taken once each", sent.n_reports, learnt.losses);

    // A version comes with each publication, and the windows that open after it are scored with it and divided by it.
    for _ in 0..TURNS {
        let known = &ids[..3 * BATCH];
        sent.expect("counted", known.len());
        reporter.send(0, Some(&report(sent.step, 0, known)));
        reporter.flush();
        (sent.step, sent.n_reports) = (sent.step + 1, sent.n_reports + 1);
        wait_for("a report", || sent.is_taken(&summary(&deployment)).then_some(()));
        let all = produce(n_documents / 4);
        wait_for("all documents", || (deployment.totals().n_records as u64 == all).then_some(()));
    }
    let (learnt, version) = (summary(&deployment), newest(&deployment).version);
    sent.assert_taken_once(&learnt);
    assert!(version >= TURNS, "{version} versions");
    wait_for("the version in force", || (daemon.metric("winnowd_feedback_version") as i64 == version).then_some(()));
    shows_what_was_learnt(&daemon, &learnt);
    assert_eq!(daemon.stop(), Some(0));
    selects_otherwise(&deployment);
    let verified = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
}

fn shows_what_was_learnt(daemon: &DaemonProcess, learnt: &FeedbackSummary) {
    let expected = &learnt.expected_loss;
    println!(
        "expected losses: R² {:.3}, mean absolute error {:.3} nats",
        expected.explained.unwrap(),
        expected.mean_absolute_error.unwrap()
    );
    // A third of the variance is that of the source, which no text tells.
    assert!(expected.explained.unwrap() > 0.1);
    assert!((daemon.metric("winnowd_feedback_match_ratio") - learnt.match_ratio.unwrap()).abs() < 1e-9);
    assert!(daemon.metric("winnowd_feedback_explained_ratio") > 0.1);
    assert_eq!(daemon.metric("winnowd_feedback_lag_records"), 0.0);
    let quotas: f64 = ["s0", "s1", "s2"]
        .iter()
        .map(|s| daemon.metric(&format!("winnowd_feedback_quota_ratio{{source=\"{s}\"}}")))
        .sum();
    assert!((quotas - 0.99).abs() < 1e-9, "{quotas}: a hundredth is for sources that nobody knows");
    let median = daemon.metric("winnowd_feedback_loss_nats{point=\"median\",source=\"s1\"}");
    assert!((2.5..8.5).contains(&median), "{median}");
    let (_, status) = daemon.get("/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["feedback"]["learnt"]["losses"]["counted"], learnt.losses["counted"]);
    assert_eq!(status["feedback"]["problem"], serde_json::Value::Null);
}

/// Windows that knew nothing yet took what the target likes, later ones what the trainer finds hard, of each source its share;
/// each names the versions.
fn selects_otherwise(deployment: &Deployment) {
    let published = deployment.published();
    let windows: BTreeMap<String, &WindowSummary> = published.windows.iter().map(|w| (w.id(), w)).collect();
    let is_late = |window: &WindowSummary| window.expected_loss.unwrap().version > 0;
    let mean = |late: bool| {
        let rows = published.rows.iter().filter(|row| is_late(windows[&row.window]) == late);
        let losses: Vec<f64> = rows.map(|row| loss_of(&row.id)).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let (before, after) = (mean(false), mean(true));
    println!("mean loss of what is selected: {before:.2} nats before, {after:.2} once losses are expected");
    for row in &published.rows {
        assert!(row.expected_loss.is_none() || is_late(windows[&row.window]), "{}: {:?}", row.id, row.expected_loss);
    }
    let version = |row: &&Row| windows[&row.window].expected_loss.unwrap().version;
    let last_named = published.rows.iter().map(|row| version(&row)).max().unwrap();
    assert!(published.rows.iter().filter(|row| version(row) == last_named).all(|row| row.expected_loss.is_some()));
    // What is expected of a document goes with what is lost on it.
    let late: Vec<(f64, f64)> =
        published.rows.iter().filter_map(|row| Some((row.expected_loss?, loss_of(&row.id)))).collect();
    let mean_of = |of: &dyn Fn(&(f64, f64)) -> f64| late.iter().map(of).sum::<f64>() / late.len() as f64;
    let (expected, lost) = (mean_of(&|both| both.0), mean_of(&|both| both.1));
    let covariance = mean_of(&|both| (both.0 - expected) * (both.1 - lost));
    println!("expected {expected:.2} nats a token of what was selected, lost {lost:.2}, covariance {covariance:.3}");
    assert!(covariance > 0.0 && (expected - lost).abs() < 1.5);
    assert!(after > before + 1.0, "{before} became {after}");

    let mut n_divided = 0;
    for window in published.windows.iter().filter(|window| window.n_selected >= 20) {
        let Some(version) = window.quota_version else { continue };
        assert_eq!(version, window.expected_loss.unwrap().version, "both are pinned when it opens");
        let quotas = quotas_of(deployment, version);
        for turn in window.turns.iter().filter(|turn| turn.source.is_some()) {
            let wanted = quotas[turn.source.as_ref().unwrap()] * window.n_selected as f64;
            // What is left to others, of whom there are none, flows to those that are there.
            assert!(
                (turn.n_selected as f64 - wanted).abs() < 1.6,
                "{}: {} of {wanted:.1}",
                window.id(),
                turn.n_selected
            );
        }
        n_divided += 1;
    }
    let last = newest(deployment).quotas;
    println!("{n_divided} windows were divided by losses, in the end by {last:.3?}");
    assert!(n_divided >= TURNS && last["s1"] > last["s0"] + 0.05 && last["s1"] > last["s2"] + 0.05, "{last:?}");
}

fn quotas_of(deployment: &Deployment, version: i64) -> BTreeMap<String, f64> {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        let found = catalog.feedback_version("test", version).await.unwrap().unwrap();
        catalog.close().await;
        found.quotas
    })
}

#[test]
fn losses_count_once_and_change_what_is_selected() {
    the_loop("feedback", None);
}

#[test]
fn losses_count_once_on_postgres_too() {
    let Some(database) = Database::create() else { return };
    the_loop("feedback-postgres", Some(&database.url));
}

/// Workers share the losses' topic: one sleeps until the group has given its partitions away, wakes up in the middle of a batch, and
/// is killed in the end.
#[test]
fn zombies_and_rebalances_count_nothing_twice() {
    let Some(database) = Database::create() else { return };
    let broker = Broker::with_topic("feedback-fleet", PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster takes too long for each rebalance");
        return;
    }
    let losses = broker.other_topic("losses", PARTITIONS);
    let extra = format!("feedback.topic = \"{losses}\"\nfeedback.interval = \"3s\"\nselection.fraction = 0.5");
    let deployment = Deployment::with(&broker, &extra, Some(&database.url), None);
    let (sleeper, other) = (deployment.start_worker("worker-0"), deployment.start_worker("worker-1"));
    let (producer, n_documents) = (broker.producer(), 2_000);
    (0..n_documents).for_each(|n| producer.send((n % 2) as i32, Some(&document(n))));
    producer.flush();
    wait_for("all documents", || (deployment.totals().n_records as u64 == n_documents).then_some(()));
    wait_for_manifest(&deployment);
    let ids = published_ids(&deployment);
    let (reporter, mut sent) = (broker.producer_to(&losses), Sent::default());
    let mut send = |ids: &[String]| {
        for batch in ids.chunks(BATCH) {
            // Both partitions, and each report twice.
            for _ in 0..2 {
                let rank = (sent.step % 2) as i32;
                reporter.send(rank, Some(&report(sent.step, rank, batch)));
                sent.n_reports += 1;
            }
            sent.expect("counted", batch.len());
            sent.expect("duplicate", batch.len());
            sent.step += 1;
        }
        reporter.flush();
        sent.n_reports
    };
    let taken = |n: u64| wait_for("the reports", || (summary(&deployment).n_reports == n).then_some(()));
    let parts: Vec<&[String]> = ids.chunks(ids.len().div_ceil(4)).collect();
    taken(send(parts[0]));
    // What it has read waits for its interval when it falls asleep.
    send(parts[1]);
    sleeper.signal("STOP");
    taken(send(parts[2]));
    let all = send(parts[3]);
    sleeper.signal("CONT");
    taken(all);
    sleeper.kill_9();
    let learnt = summary(&deployment);
    let expected = [("counted", ids.len() as u64), ("duplicate", ids.len() as u64)];
    assert_eq!(learnt.losses, expected.map(|(outcome, n)| (outcome.to_owned(), n)).into());
    assert_eq!(other.stop(), Some(0));
    println!("{} reports by two workers, one of them a zombie: {:?}", learnt.n_reports, learnt.losses);
}

fn train(python: &Path, deployment: &Deployment, broker: &Broker, topic: &str, more: &[&str]) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trainer.py");
    let mut command = Command::new(python);
    command.arg(script).arg(deployment.folder.path().join("out"));
    command.args(["--bootstrap", &broker.bootstrap, "--topic", topic]).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Real texts, a real model of them, real losses.
#[test]
fn a_trainer_in_python_is_understood() {
    let Some(python) = python("confluent_kafka, pyarrow") else { return };
    let broker = Broker::with_topic("trainer", PARTITIONS);
    let losses = broker.other_topic("losses", 1);
    let extra = format!(
        "feedback.topic = \"{losses}\"\nfeedback.interval = \"200ms\"\nselection.mixing = \"odm\"\n\
         feedback.half_life_losses = 1000\nselection.fraction = 0.6\nselection.temperature = 1000.0\n\
         window.max_documents = 200"
    );
    let deployment = Deployment::new(&broker, &extra);
    let reporter = broker.producer_to(&losses);
    reporter.send(0, Some(b"no report"));
    reporter.flush();
    let (producer, mut sent) = (broker.producer(), 0);
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/sample.jsonl.zst");
    let produce = |document: &DocumentRef<'_>, _| {
        let payload = serde_json::json!({ "id": document.id(), "source": document.source, "text": document.text });
        producer.send(sent % PARTITIONS, Some(payload.to_string().as_bytes()));
        sent += 1;
    };
    for_each_document(&sample, &Decoder::for_files(), produce).unwrap();
    producer.flush();
    let daemon = deployment.start();
    wait_for("all documents", || (deployment.totals().n_records == i64::from(sent)).then_some(()));
    wait_for_manifest(&deployment);
    let n_rows = deployment.published().rows.len() as u64;

    let checkpoint = deployment.folder.path().join("checkpoint");
    let checkpoint = ["--checkpoint", checkpoint.to_str().unwrap()];
    let first = train(&python, &deployment, &broker, &losses, &checkpoint);
    let steps = first["steps"].as_u64().unwrap();
    wait_for("the reports", || (summary(&deployment).n_reports == steps).then_some(()));
    let learnt = summary(&deployment);
    assert_eq!(learnt.losses, BTreeMap::from([("counted".to_owned(), n_rows)]));
    let expected = &learnt.expected_loss;
    println!(
        "{n_rows} documents in {steps} steps: loss {:.2} to {:.2} nats a token; expected with R² {:.3}, off by {:.3} nats",
        first["first_loss"].as_f64().unwrap(),
        first["last_loss"].as_f64().unwrap(),
        expected.explained.unwrap(),
        expected.mean_absolute_error.unwrap()
    );
    for source in learnt.sources.iter().take(8) {
        println!("  {:<16} {:>5} losses, median {:.2}", source.source, source.n_losses, source.median.unwrap());
    }
    assert!(first["last_loss"].as_f64() < first["first_loss"].as_f64(), "it learns");
    assert!(expected.explained.unwrap() > 0.1);

    // With its checkpoint it finds nothing new; without, it repeats all of its steps, and none counts.
    assert_eq!(train(&python, &deployment, &broker, &losses, &checkpoint)["steps"], steps);
    train(&python, &deployment, &broker, &losses, &[]);
    wait_for("the copies", || (summary(&deployment).n_reports == 2 * steps).then_some(()));
    let again = summary(&deployment);
    let copies = BTreeMap::from([("counted".to_owned(), n_rows), ("duplicate".to_owned(), n_rows)]);
    assert_eq!((&again.losses, &again.expected_loss), (&copies, expected));
    // What cannot be used is counted by its reason, and changes nothing else: not what is known of sources, not what is expected.
    let id = &published_ids(&deployment)[0];
    let losses_of = |loss: &str| format!(r#"{{"id":{},"loss":{loss},"n_tokens":9}}"#, serde_json::json!(id));
    let entries = ["NaN", "Infinity", "-1e999", "-0.5", "null", "\"2\"", "1e6"].map(losses_of).join(",");
    let long = losses_of("2").replace(":9}", ":1000000}");
    let bad = format!(
        r#"{{"run_id":"bad","step":0,"losses":[{entries},{long},{},{{"id":"nobody","loss":2.0,"n_tokens":9}},{{"loss":2.0}},7]}}"#,
        long.replace("1000000", "0")
    );
    reporter.send(0, Some(bad.as_bytes()));
    reporter.flush();
    wait_for("the bad report", || (summary(&deployment).n_reports == 2 * steps + 1).then_some(()));
    let after = summary(&deployment);
    let reasons = [
        ("not_finite", 3),
        ("negative", 1),
        ("no_loss", 1),
        ("not_a_number", 1),
        ("implausible", 2),
        ("no_tokens", 1),
        ("unknown_id", 1),
        ("no_id", 1),
        ("malformed", 1),
    ];
    let mut outcomes = again.losses.clone();
    outcomes.extend(reasons.map(|(reason, n)| (reason.to_owned(), n)));
    assert_eq!(after.losses, outcomes);
    let known = |summary: &FeedbackSummary| {
        (
            summary.sources.clone(),
            summary.mean_loss_by_stratum.clone(),
            summary.expected_loss.clone(),
            summary.quotas.clone(),
        )
    };
    assert_eq!(known(&after), known(&again));
    // Another run is another trainer.
    train(&python, &deployment, &broker, &losses, &["--run-id", "other"]);
    wait_for("the other run", || (summary(&deployment).losses["counted"] == 2 * n_rows).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    if let CatalogUrl::Sqlite(file) = &deployment.catalog {
        println!("the catalog takes {} kB", std::fs::metadata(file).unwrap().len() >> 10);
    }
}
