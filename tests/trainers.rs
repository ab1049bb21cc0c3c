//! What trainers rely on: an output that grows is read once, rows are shuffled so that a replay finds them, and what is held out never
//! reaches them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const READERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers.py");

fn send(broker: &Broker, range: std::ops::Range<u64>) {
    let producer = broker.producer();
    range.for_each(|i| producer.send((i % 2) as i32, Some(&document(i))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("the publication", || (deployment.totals().n_records >= n as i64).then_some(()));
}

fn halves(n: u64) -> BTreeMap<i32, i64> {
    BTreeMap::from([(0, n.div_ceil(2) as i64), (1, (n / 2) as i64)])
}

fn assert_verified(deployment: &Deployment) {
    let verified = deployment.winnowd(&["replay", "--verify"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains(" 0 differ, 0 cannot be verified"), "{said}{}", String::from_utf8_lossy(&verified.stderr));
    let checked = deployment.winnowd(&["shards", "--verify"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// The README's loop over Hugging Face `datasets`, while the daemon publishes and is killed.
#[test]
fn a_streaming_loop_over_a_growing_output_sees_each_row_once() {
    let Some(python) = python("datasets, duckdb, polars, pyarrow") else { return };
    let broker = Broker::with_topic("trainers-follow", 2);
    let deployment =
        Deployment::new(&broker, "selection.fraction = 1\nwindow.max_documents = 50\nshard.max_rows = 100");
    let (bursts, n) = (4, if broker.is_real() { 2_000 } else { 800 });
    let out = deployment.folder.path().join("out");
    let mut follower = Command::new(python)
        .arg(READERS)
        .args(["--follow", &n.to_string()])
        .arg(&out)
        .arg(README)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines().map_while(Result::ok);
    // It gives up by itself.
    let mut until_seen = |n: u64| -> serde_json::Value {
        loop {
            let line = lines.next().expect("the loop has ended");
            let seen: serde_json::Value = serde_json::from_str(&line).unwrap();
            if seen["seen"].as_u64() >= Some(n) {
                return seen;
            }
        }
    };
    send(&broker, 0..n / bursts);
    let mut daemon = deployment.start();
    for burst in 1..=bursts {
        wait_decided(&deployment, burst * n / bursts);
        // Nothing more comes before everything was read, so the output grows under the loop however fast either is.
        if burst < bursts {
            until_seen(burst * n / bursts);
        }
        if burst == 2 {
            daemon.kill_9();
            // What a daemon leaves that dies before its transaction: nobody may read it.
            std::fs::copy(first_shard(&out), out.join("shards/never-published.parquet")).unwrap();
            daemon = deployment.start();
        }
        if burst < bursts {
            send(&broker, burst * n / bursts..(burst + 1) * n / bursts);
        }
    }
    let seen = until_seen(n);
    let output = follower.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(daemon.stop(), Some(0));
    let mut ids: Vec<&str> = seen["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert!(seen["rounds"].as_u64() >= Some(bursts), "the output did not grow");
    let published = deployment.published();
    published.assert_exactly_once(&halves(n));
    let mut expected: Vec<&str> = published.rows.iter().map(|row| row.id.as_str()).collect();
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert_eq!(expected.len() as u64, n);
}

fn first_shard(out: &Path) -> std::path::PathBuf {
    let manifest = std::fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let entry: serde_json::Value = serde_json::from_str(manifest.lines().next().unwrap()).unwrap();
    out.join(entry["path"].as_str().unwrap())
}

/// Shuffled or not, the same rows; a replay finds each window's wherever they stand, by what is recorded and not by what is configured.
#[test]
fn shuffled_and_unshuffled_shards_hold_the_same_and_both_are_verified() {
    let broker = Broker::with_topic("trainers-shuffle", 2);
    let n = 900;
    send(&broker, 0..n);
    let publish = |shuffle: &str| {
        let extra = format!("window.max_documents = 60\nshard.max_rows = 30\nsink.shuffle = {shuffle}");
        let deployment = Deployment::new(&broker, &extra);
        let daemon = deployment.start();
        wait_decided(&deployment, n);
        assert_eq!(daemon.stop(), Some(0));
        deployment
    };
    let (shuffled, unshuffled) = (publish("true"), publish("false"));
    let rows = |deployment: &Deployment| {
        let published = deployment.published();
        published.assert_exactly_once(&halves(n));
        published.rows
    };
    let sorted = |mut rows: Vec<Row>| {
        rows.sort_by_key(|row| (row.partition, row.offset));
        rows
    };
    let (one, other) = (rows(&shuffled), rows(&unshuffled));
    let ascents = |rows: &[Row]| {
        rows.windows(2).filter(|pair| pair[0].window == pair[1].window && pair[0].offset < pair[1].offset).count()
    };
    let same_window = |rows: &[Row]| rows.windows(2).filter(|pair| pair[0].window == pair[1].window).count();
    assert_eq!(ascents(&other), same_window(&other), "window by window, by offset");
    assert!(same_window(&other) > 2 * same_window(&one), "windows are mixed");
    assert_eq!(sorted(one), sorted(other));
    // The other configuration does not matter.
    for (deployment, from, to) in [(&shuffled, "true", "false"), (&unshuffled, "false", "true")] {
        assert_verified(deployment);
        let text = std::fs::read_to_string(&deployment.config).unwrap();
        let text = text.replace(&format!("sink.shuffle = {from}"), &format!("sink.shuffle = {to}"));
        std::fs::write(&deployment.config, text).unwrap();
        assert_verified(deployment);
    }
}

/// As the README says it, so that anybody can tell.
fn is_held_out(id: &str, share: f64) -> bool {
    let digest = Sha256::digest(id);
    (u64::from_be_bytes(digest[..8].try_into().unwrap()) as f64) < share * 2f64.powi(64)
}

const HOLDOUT: &str = r#"
selection.holdout = 0.2
selection.fraction = 0.5
selection.length_normalise = true
model.against = "selected"
model.selected_prior_ngrams = 2000
window.max_documents = 40
shard.max_rows = 60
sink.side_files = ["litdata", "fms"]
feedback.topic = "LOSSES"
"#;

#[test]
fn what_is_held_out_never_reaches_the_shards_through_kills() {
    let broker = Broker::with_topic("trainers-holdout", 2);
    let losses = broker.other_topic("losses", 1);
    // The topic is there before the daemon is: the in-process cluster makes it now.
    let reporter = broker.producer_to(&losses);
    reporter.send(0, Some(b"no report"));
    reporter.flush();
    let extra = HOLDOUT.replace("LOSSES", &losses);
    let deployment = Deployment::new(&broker, &extra);
    let n = if broker.is_real() { 2_400 } else { 600 };
    let kills = if broker.is_real() { 4 } else { 1 };
    send(&broker, 0..n);
    for kill in 1..=kills {
        let daemon = deployment.start();
        wait_decided(&deployment, kill * n / (kills + 1));
        daemon.kill_9();
    }
    let daemon = deployment.start();
    wait_decided(&deployment, n);
    assert_eq!(daemon.stop(), Some(0));

    let published = deployment.published();
    published.assert_exactly_once(&halves(n));
    for row in &published.rows {
        assert_eq!(row.held_out, is_held_out(&row.id, 0.2), "{}", row.id);
    }
    let held_out: Vec<&Row> = published.rows.iter().filter(|row| row.held_out).collect();
    // A fifth of half of all, within five standard errors.
    let expected = 0.1 * n as f64;
    assert!((held_out.len() as f64 - expected).abs() < 5.0 * expected.sqrt(), "{} of {n}", held_out.len());
    assert_verified(&deployment);

    // Nothing else has a row of what is held out, and no loss can be joined to it.
    let ids: BTreeSet<&str> = held_out.iter().map(|row| row.id.as_str()).collect();
    let query = |sql: &str| {
        let output = deployment.winnowd(&["query", sql, "--format", "csv"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(query("SELECT id FROM documents").iter().all(|id| !ids.contains(id.as_str())));
    assert_eq!(query("SELECT id FROM validation").iter().map(String::as_str).collect::<BTreeSet<_>>(), ids);
    assert_eq!(known_to_feedback(&deployment), (published.rows.len() - ids.len()) as i64);

    // As trainers load both, and as other projects find the files.
    let Some(python) = python("datasets, duckdb, polars, pyarrow") else { return };
    let out = deployment.folder.path().join("out");
    let output = Command::new(python).arg(READERS).arg("--split").arg(&out).arg(README).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let loaded: BTreeMap<String, BTreeSet<String>> = serde_json::from_slice(&output.stdout).unwrap();
    let expected =
        |held_out| published.rows.iter().filter(move |row| row.held_out == held_out).map(|row| row.id.clone());
    assert_eq!(loaded["train"], expected(false).collect());
    assert_eq!(loaded["validation"], expected(true).collect());
}

fn known_to_feedback(deployment: &Deployment) -> i64 {
    let path = deployment.folder.path().join("catalog.db");
    block_on(async {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query_scalar("SELECT count(*) FROM feedback_documents").fetch_one(&pool).await.unwrap()
    })
}

/// Where all of a publication is held out there is a shard without rows, whose line names the other file.
#[test]
fn a_publication_of_which_all_is_held_out_is_seen() {
    let broker = Broker::with_topic("trainers-all-held-out", 2);
    let extra = "selection.holdout = 0.999999999\nselection.fraction = 1\nwindow.max_documents = 10\nsink.side_files = [\"litdata\", \"fms\"]";
    let deployment = Deployment::new(&broker, extra);
    send(&broker, 0..60);
    let daemon = deployment.start();
    wait_decided(&deployment, 60);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&halves(60));
    assert!(published.rows.len() == 60 && published.rows.iter().all(|row| row.held_out));
    assert_verified(&deployment);
}

#[test]
fn mistakes_are_told() {
    let broker = Broker::with_topic("trainers-mistakes", 1);
    let extra = "selection.holdout = 1\nsink.side_files = [\"litdata\", \"open_lm\", \"mds\"]\nsink.shuffle = \"yes\"";
    let output = Deployment::new(&broker, extra).winnowd(&["check"]);
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8_lossy(&output.stderr);
    for expected in [
        "`selection.holdout` = `1`: expected a decimal from 0 to below 1",
        "`sink.side_files` = `open_lm`: cannot be served: open_lm reads SHARD.tar",
        "`sink.side_files` = `mds`: expected some of: litdata, fms",
        "`sink.shuffle` = `yes`: expected true or false",
    ] {
        assert!(told.contains(expected), "{told}");
    }
}
