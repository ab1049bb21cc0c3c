//! `kill -9` at every named step of a claim and a publication, on both catalogs, with shards in a folder and on S3.
//!
//! Postgres and S3 take part where `POSTGRES_URL` and `S3_ENDPOINT` name them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use support::*;
use winnowd::crash;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: i32 = 4;
/// How often each point has to be passed before it is fatal: on the first way and on a later one.
const PASSES: [u64; 2] = [1, 3];

/// Kills a worker once at each point and time, and counts documents that are lost or decided twice.
fn crash_everywhere(name: &str, postgres: Option<&url::Url>, store: Option<Bucket>) {
    let broker = Broker::with_topic(name, PARTITIONS);
    let is_remote = store.is_some();
    // The in-process cluster takes many seconds for each start, so there only the commit is tried.
    let passes = if broker.is_real() { &PASSES[..] } else { &PASSES[..1] };
    let is_tried = |point: &str| match point {
        // Half a line can only be left in a file.
        "manifest.half" | "side_file.half" if is_remote => false,
        // Here nobody reports losses: `feedback.rs` does.
        point if point.starts_with("feedback.") => false,
        // Nobody takes partitions from a single worker: `orphans.rs` does.
        "revoke.drained" => false,
        point => broker.is_real() || point.starts_with("commit."),
    };
    let deployment = Deployment::with(
        &broker,
        "window.max_documents = 50\nshard.max_rows = 20\nsink.side_files = [\"litdata\", \"fms\"]",
        postgres,
        store,
    );
    let producer = broker.producer();
    let mut produced: BTreeMap<i32, i64> = BTreeMap::new();
    let (mut sent, mut kills, mut longest) = (0u64, 0, Duration::ZERO);
    let mut produce = |n: u64| {
        for _ in 0..n {
            let partition = (sent % PARTITIONS as u64) as i32;
            producer.send(partition, Some(&document(sent)));
            *produced.entry(partition).or_default() += 1;
            sent += 1;
        }
        producer.flush();
        sent
    };
    for &pass in passes {
        for point in crash::POINTS {
            // A claim happens once a start.
            let is_start = point.starts_with("claim.") || point == "start.stored";
            if !is_tried(point) || (pass > 1 && is_start) {
                continue;
            }
            produce(1_500);
            let daemon = deployment.start_with(&[("CRASH_POINT", &format!("{point}:{pass}"))]);
            let Some(mut daemon) = daemon else {
                kills += 1;
                continue;
            };
            let status = wait_for(point, || daemon.child.try_wait().unwrap());
            assert_eq!(status.signal(), Some(9), "{point}: {status}");
            kills += 1;
            // Where partitions begin is stored once: nothing may get that far before.
            if point.starts_with("claim.") {
                continue;
            }
            let began = Instant::now();
            let before = deployment.totals().n_records;
            let daemon = deployment.start();
            let sent = produce(10);
            wait_for("progress after a crash", || (deployment.totals().n_records > before).then_some(()));
            longest = longest.max(began.elapsed());
            wait_for("all to be decided", || (deployment.totals().n_records as u64 == sent).then_some(()));
            daemon.kill_9();
        }
    }
    let sent = produce(1);
    let daemon = deployment.start();
    wait_for("all to be decided", || (deployment.totals().n_records as u64 == sent).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    deployment.published().assert_exactly_once(&produced);
    let log = deployment.log();
    for point in crash::POINTS.into_iter().filter(|point| is_tried(point)) {
        assert!(log.contains(&format!("crash point {point} reached")), "{point}");
    }
    println!(
        "{name}: {kills} kills at named points, {sent} documents, 0 lost, 0 twice, longest {:.1} s",
        longest.as_secs_f64()
    );
}

#[test]
fn a_crash_at_any_step_loses_and_repeats_nothing_with_sqlite_and_a_folder() {
    crash_everywhere("crash-sqlite", None, None);
}

#[test]
fn a_crash_at_any_step_loses_and_repeats_nothing_with_postgres_and_a_store() {
    let Some(database) = Database::create() else { return };
    crash_everywhere("crash-postgres", Some(&database.url), Bucket::create());
}
