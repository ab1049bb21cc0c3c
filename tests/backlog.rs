//! A worker that comes late: a large backlog in many partitions must not show in its memory.
//!
//! Needs an Apache Kafka (`KAFKA_BOOTSTRAP`): without one it says that it is skipped. `WINNOWD_TEST_STORM` makes it five million
//! documents.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: i32 = 64;
const BUDGET_MIB: u64 = 64;
/// What the process itself may take.
const BESIDE_MIB: u64 = 150;

#[test]
fn a_large_backlog_in_many_partitions_stays_within_the_budget() {
    let n_documents: u64 = if std::env::var_os("WINNOWD_TEST_STORM").is_some() { 5_000_000 } else { 300_000 };
    let broker = Broker::with_topic("backlog", PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster does not keep a backlog");
        return;
    }
    let producer = broker.producer();
    let mut produced: BTreeMap<i32, i64> = BTreeMap::new();
    for i in 0..n_documents {
        let partition = (i % PARTITIONS as u64) as i32;
        producer.send(partition, Some(&document(i)));
        *produced.entry(partition).or_default() += 1;
    }
    producer.flush();
    // Windows that are never full and shards that are late: whatever can be held is.
    let extra = format!(
        "memory.budget = \"{BUDGET_MIB}MiB\"\ndocuments.max_bytes = \"1MiB\"\nselection.fraction = 0.5\nshard.max_age = \"10s\""
    );
    let deployment = Deployment::new(&broker, &extra);
    let began = Instant::now();
    let daemon = deployment.start();
    // As long as anything may take, and more for many documents: a hang is found, a busy machine is none.
    let deadline = DEADLINE + Duration::from_secs(n_documents / 1_000);
    loop {
        let decided = deployment.totals().n_records as u64;
        assert!(began.elapsed() < deadline, "{decided} of {n_documents} documents decided");
        if decided >= n_documents {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = began.elapsed();
    let peak = daemon.peak_memory();
    assert_eq!(daemon.metric("winnowd_session_restarts_total"), 0.0);
    assert_eq!(daemon.stop(), Some(0));
    deployment.published().assert_exactly_once(&produced);
    println!(
        "{n_documents} documents in {PARTITIONS} partitions: peak resident size {} MiB with a budget of {BUDGET_MIB} MiB, \
         {:.0} documents/s",
        peak >> 20,
        n_documents as f64 / took.as_secs_f64()
    );
    report_fault("a backlog in 64 partitions", 1, n_documents, took);
    assert!(peak < (BUDGET_MIB + BESIDE_MIB) << 20, "{} MiB with a budget of {BUDGET_MIB} MiB", peak >> 20);
}
