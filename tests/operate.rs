//! What operators do and see: retention gaps, offsets, replays. On `KAFKA_BOOTSTRAP`, or else the in-process cluster in a process
//! of its own, which can do a part.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::*;
use winnowd::catalog::{Access, CatalogReader, Gap, GapReason, SqlCatalog};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// Sends documents `first..first + n`, in turn to each partition.
fn produce(broker: &Broker, first: u64, n: u64) {
    let producer = broker.producer();
    (first..first + n).for_each(|i| producer.send((i % broker.partitions as u64) as i32, Some(&document(i))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("documents to be decided", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

/// Starts the daemon until `n` records are decided, all in all.
fn run_until(deployment: &Deployment, n: u64) {
    let daemon = deployment.start();
    wait_decided(deployment, n);
    assert_eq!(daemon.stop(), Some(0));
}

fn gaps(deployment: &Deployment) -> Vec<Gap> {
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Read).await.unwrap();
        catalog.gaps("test").await.unwrap()
    })
}

/// Windows and gaps of every partition follow one another, from 0 to its end.
fn assert_covered(deployment: &Deployment, ends: &[i64]) {
    let mut parts: Vec<_> = deployment.published().windows.iter().map(|w| (w.at.partition, w.interval)).collect();
    parts.extend(gaps(deployment).iter().map(|gap| (gap.at.partition, gap.interval)));
    parts.sort_by_key(|(partition, interval)| (*partition, interval.from));
    let mut next = vec![0; ends.len()];
    for (partition, interval) in parts {
        assert_eq!(
            interval.from,
            std::mem::replace(&mut next[partition as usize], interval.to),
            "partition {partition}"
        );
    }
    assert_eq!(next, ends);
}

/// By policy, what retention has removed is recorded and passed over, on several partitions at once; the rest is decided once.
#[test]
fn a_retention_gap_is_recorded_and_skipped_where_the_policy_says_so() {
    let broker = Broker::with_topic("skip", 3);
    let deployment = Deployment::new(&broker, "kafka.on_lost_offset = \"skip\"\nwindow.max_documents = 100");
    produce(&broker, 0, 900);
    run_until(&deployment, 900);
    if broker.is_real() {
        produce(&broker, 900, 900);
        broker.delete_before(0, 500);
        broker.delete_before(2, 600);
    } else {
        // Beyond the 5 MiB that the in-process cluster keeps.
        let producer = broker.producer();
        let filler = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
        (0..80)
            .for_each(|_| [0, 2].into_iter().for_each(|partition| producer.send(partition, Some(filler.as_bytes()))));
        producer.flush();
    }
    let daemon = deployment.start();
    wait_for("gaps", || (gaps(&deployment).len() == 2).then_some(()));
    let found = gaps(&deployment);
    let skipped: i64 = found.iter().map(|gap| gap.interval.to - gap.interval.from).sum();
    assert!(found.iter().all(|gap| gap.interval.from == 300 && gap.reason == GapReason::Retention), "{found:?}");
    if broker.is_real() {
        assert_eq!(skipped, 200 + 300);
        wait_decided(&deployment, 900 + 900 - skipped as u64);
        // In the middle of the stream, too: nothing that was read is lost or decided twice.
        produce(&broker, 1_800, 300);
        wait_decided(&deployment, 2_100 - skipped as u64);
    } else {
        wait_decided(&deployment, 901);
    }
    assert_eq!(daemon.metric("winnowd_skipped_offsets_total") as i64, skipped, "{}", deployment.log());
    let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(2), "{status}");
    assert_eq!(status["gaps"][0]["reason"], "retention", "{status}");
    let log = deployment.log();
    assert!(log.contains("/0: retention has removed offsets 300.."), "{log}");
    assert_eq!(daemon.stop(), Some(0));
    if broker.is_real() {
        assert_covered(&deployment, &[700; 3]);
    }
}

/// A log that ends before the checkpoint is another log: no policy goes on there.
#[test]
fn a_recreated_topic_is_always_an_error() {
    let broker = Broker::with_topic("recreated", 1);
    if !broker.is_real() {
        println!("the in-process cluster deletes no topics");
        return;
    }
    let deployment = Deployment::new(&broker, "kafka.on_lost_offset = \"skip\"\nwindow.max_documents = 100");
    produce(&broker, 0, 500);
    run_until(&deployment, 500);
    broker.recreate_topic();
    produce(&broker, 0, 200);
    let mut daemon = deployment.start();
    let status = wait_for("the end of the daemon", || daemon.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(69), "{}", deployment.log());
    let log = deployment.log();
    assert!(log.contains("offset 500 is not in the log, which holds 0..200: the topic was recreated"), "{log}");
    assert!(log.contains("a new pipeline.name"), "{log}");
    assert_eq!((deployment.totals().n_records, gaps(&deployment).len()), (500, 0));
}
