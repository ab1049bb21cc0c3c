//! What operators do and see: retention gaps, offsets, replays. On `KAFKA_BOOTSTRAP`, or else the in-process cluster in a process
//! of its own, which can do a part.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Output;

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

/// Standard output and error of a command that ended with this code.
fn said(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
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

fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    let text = said(output, 0);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {text}"))).collect()
}

#[test]
fn offsets_show_where_every_partition_stands() {
    let broker = Broker::with_topic("show", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 100");
    let show = |arguments: &[&str]| deployment.winnowd(&[&["offsets", "show"], arguments].concat());
    assert!(said(&show(&[]), 69).contains("catalog.db"), "there is no catalog yet");
    said(&deployment.winnowd(&["migrate"]), 0);
    produce(&broker, 0, 600);
    let fresh = json_lines(&show(&["--json"]));
    assert_eq!((fresh.len(), &fresh[1]["high"], &fresh[1]["next_offset"]), (2, &300.into(), &serde_json::Value::Null));
    run_until(&deployment, 600);
    produce(&broker, 600, 100);
    let places = json_lines(&show(&["--json"]));
    for (partition, place) in places.iter().enumerate() {
        assert_eq!((&place["topic"], &place["partition"]), (&broker.topic.as_str().into(), &partition.into()));
        assert_eq!((&place["next_offset"], &place["low"], &place["high"]), (&300.into(), &0.into(), &350.into()));
        assert_eq!((&place["lag"], &place["owner_epoch"]), (&50.into(), &1.into()), "{place}");
        assert!(place["owner"].as_str().unwrap().starts_with("worker-0-"), "{place}");
        assert_eq!((&place["gaps"], &place["problem"]), (&serde_json::json!([]), &serde_json::Value::Null));
    }
    let table = said(&show(&[]), 0);
    let row = table.lines().find(|line| line.starts_with(&format!("{}/1 ", broker.topic))).unwrap();
    let numbers: Vec<_> = row.split_whitespace().skip(1).take(5).collect();
    assert_eq!(numbers, ["300", "0", "350", "50", "1"], "{table}");
    if broker.is_real() {
        broker.delete_before(1, 320);
        let lost = said(&show(&[]), 0);
        assert!(
            lost.contains("/1: offset 300 is not in the log, which holds 320..350: retention has removed 20"),
            "{lost}"
        );
    }
}

#[test]
fn checkpoints_are_moved_while_no_worker_runs_and_never_into_what_is_published() {
    let broker = Broker::with_topic("reset", 2);
    if !broker.is_real() {
        println!("the in-process cluster cannot list the members of a group");
        return;
    }
    let deployment = Deployment::new(&broker, "window.max_documents = 100");
    let reset = |arguments: &[&str]| deployment.winnowd(&[&["offsets", "reset"], arguments].concat());
    produce(&broker, 0, 600);
    // Before it has ever run, a pipeline can be told where to begin.
    assert!(said(&reset(&["--to", "offset:100", "--partition", "1"]), 0).contains("/1: begins at 100"));
    let daemon = deployment.start();
    wait_decided(&deployment, 500);
    let refused = said(&reset(&["--to", "latest"]), 64);
    assert!(refused.contains("has 1 live member: worker-0") && refused.contains("6s"), "{refused}");
    assert_eq!(daemon.stop(), Some(0));
    wait_for("the member to be forgotten", || reset(&["--to", "offset:300"]).status.success().then_some(()));
    assert_eq!(gaps(&deployment), [], "it stayed where it was");

    for (arguments, problem) in [
        (&["--to", "earliest"][..], "/0: offset 0 is decided already, everything below 300 is published"),
        (&["--to", "offset:301"], "/0: offset 301 is not in the log, which holds 0..300"),
        (&["--to", "latest", "--topic", "other"], "--topic other: kafka.topics has"),
        (&["--to", "latest", "--partition", "9"], "no such partition"),
        (&["--to", "soon"], "expected earliest, latest"),
    ] {
        let refused = said(&reset(arguments), 64);
        assert!(refused.contains(problem), "{arguments:?}: {refused}");
    }

    produce(&broker, 600, 400);
    let dry = said(&reset(&["--to", "offset:350", "--dry-run"]), 0);
    assert!(dry.contains("/0: 300 → 350, a gap of 50 offsets") && dry.contains("nothing was changed"), "{dry}");
    assert_eq!(gaps(&deployment), []);
    let moved = json_lines(&reset(&["--to", "latest", "--partition", "1", "--json"]));
    assert_eq!(
        (moved.len(), &moved[0]["act"], &moved[0]["from"], &moved[0]["to"]),
        (1, &"skip".into(), &300.into(), &500.into())
    );
    assert!(said(&reset(&["--to", "offset:350"]), 0).contains("/1: 500 → 350, back over offsets that are not decided"));
    let found: Vec<_> =
        gaps(&deployment).iter().map(|gap| (gap.at.partition, gap.interval.from, gap.interval.to)).collect();
    assert_eq!(found, [(0, 300, 350), (1, 300, 350)]);
    assert!(gaps(&deployment).iter().all(|gap| gap.reason == GapReason::Reset));
    let time = said(&reset(&["--to", "timestamp:2001-01-01T00:00:00Z", "--dry-run"]), 64);
    assert!(time.contains("nothing is changed") && time.contains("/1: offset 0 is decided already"), "{time}");

    run_until(&deployment, 500 + 300);
    let table = said(&deployment.winnowd(&["offsets", "show"]), 0);
    assert!(table.contains("300..350") && table.contains("reset"), "{table}");
    let windows = deployment.published().windows;
    let first = windows.iter().find(|window| window.at.partition == 1).unwrap();
    assert_eq!(first.interval.from, 100);
    let after = windows.iter().filter(|window| window.interval.from == 350).count();
    assert_eq!((after, windows.iter().map(|window| window.n_records).sum::<u64>()), (2, 800));
}
