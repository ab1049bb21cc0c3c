//! A partition that no worker owns: taken from one, not yet given to another when all of them ended.
//!
//! Needs a Postgres (`POSTGRES_URL`) and an Apache Kafka (`KAFKA_BOOTSTRAP`): without them it says that it is skipped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::process::ExitStatusExt;

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: i32 = 4;

/// Spread evenly over the partitions.
fn produce(broker: &Broker, n: u64) {
    let producer = broker.producer();
    (0..n).for_each(|i| producer.send((i % PARTITIONS as u64) as i32, Some(&document(i))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: i64) {
    wait_for("all to be decided", || (deployment.totals().n_records >= n).then_some(()));
}

/// Ends two workers between the two rebalances that give partitions of one to the other. The first of them dies where it has
/// drained what was taken from it, before it can join for the second rebalance; the second when it has heard of the first, in
/// which it got nothing.
fn end_between_rebalances(deployment: &Deployment) {
    let crash = [("CRASH_POINT", "revoke.drained:1")];
    let mut first = deployment.start_worker_with("worker-0", &crash);
    wait_for("all partitions", || (first.metric("winnowd_assigned_partitions") as i32 == PARTITIONS).then_some(()));
    let second = deployment.start_worker("worker-1");
    let status = wait_for("the first worker's end", || first.child.try_wait().unwrap());
    assert_eq!(status.signal(), Some(9), "{status}");
    wait_for("the second worker to have joined", || (second.get("/readyz").0 == 200).then_some(()));
    assert_eq!(second.metric("winnowd_assigned_partitions"), 0.0);
    second.kill_9();
}

/// The group's memory of a member outlives what a test takes, on any machine.
fn deployment(name: &str, extra: &str) -> Option<(Broker, Database, Deployment)> {
    let database = Database::create()?;
    let broker = Broker::with_topic(name, PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster cannot balance a group of several members");
        return None;
    }
    let extra = format!("kafka.session_timeout = \"10m\"\nkafka.max_poll_interval = \"10m\"\n{extra}");
    let deployment = Deployment::with(&broker, &extra, Some(&database.url), None);
    Some((broker, database, deployment))
}

#[test]
fn a_partition_without_an_owner_is_shared_out_anew() {
    let extra = "kafka.ownership_interval = \"200ms\"\nkafka.ownership_grace = \"5s\"\nkafka.drain_timeout = \"4s\"";
    let Some((broker, _database, deployment)) = deployment("orphans", extra) else { return };
    end_between_rebalances(&deployment);
    produce(&broker, 400);
    let workers = ["worker-0", "worker-1"].map(|name| deployment.start_worker(name));
    wait_decided(&deployment, 400);
    // It was the case that this is about: both partitions that were taken away. A machine so busy that they have no owner for as
    // long while they move does it again.
    let mended = workers.each_ref().map(|worker| worker.metric("winnowd_orphaned_partitions_total"));
    assert!(mended.iter().sum::<f64>() >= 2.0, "{mended:?}");
    for worker in &workers {
        let gauge = r#"winnowd_unowned_partitions{topic=""#;
        wait_for("all partitions to be owned", || {
            let (_, metrics) = worker.get("/metrics");
            metrics.lines().any(|line| line.starts_with(gauge) && line.ends_with(" 0")).then_some(())
        });
    }
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
    deployment.assert_covered(&[100; PARTITIONS as usize]);
    let logs = ["worker-0", "worker-1"].map(|name| std::fs::read_to_string(deployment.worker_log(name)).unwrap());
    assert!(logs.concat().contains("leaving the group and joining it again"), "{logs:?}");
}

#[test]
fn partitions_without_an_owner_are_shown_with_what_waits_in_them() {
    // Seen soon, and not mended within the test.
    let extra = "kafka.ownership_interval = \"200ms\"\nkafka.ownership_grace = \"1d\"";
    let Some((broker, _database, deployment)) = deployment("orphans-shown", extra) else { return };
    end_between_rebalances(&deployment);
    produce(&broker, 400);
    let workers = ["worker-0", "worker-1"].map(|name| deployment.start_worker(name));
    let topic = &broker.topic;
    for worker in &workers {
        for (metric, expected) in [("winnowd_unowned_partitions", 2), ("winnowd_unowned_lag_records", 200)] {
            let line = format!("{metric}{{topic=\"{topic}\"}} {expected}");
            wait_for(&line, || worker.get("/metrics").1.lines().any(|shown| shown == line).then_some(()));
        }
        let status: serde_json::Value = serde_json::from_str(&worker.get("/status").1).unwrap();
        assert_eq!(status["unowned"].as_array().map(Vec::len), Some(2), "{status}");
    }
    // Partitions that are owned are decided, the others wait.
    wait_decided(&deployment, 200);
    assert_eq!(deployment.totals().n_records, 200);
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
}
