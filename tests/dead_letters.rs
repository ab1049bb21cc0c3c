//! Dead letters: kept beside the shards, sent to a topic, sent again, and too many of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// Record `n` of a stream in which every fourth is bad.
fn record(n: u64) -> Vec<u8> {
    match n % 4 {
        3 => format!("{{\"id\":\"d{n}\",\"text\":\"cut off").into_bytes(),
        _ => document(n),
    }
}

fn produce(broker: &Broker, records: impl Iterator<Item = (u64, Vec<u8>)>) {
    let producer = broker.producer();
    for (n, payload) in records {
        producer.send((n % broker.partitions as u64) as i32, Some(&payload));
    }
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("the publication", || (deployment.totals().n_records >= n as i64).then_some(()));
}

#[test]
fn dead_letters_reach_their_topic_through_kills() {
    let broker = Broker::with_topic("letters", 2);
    let topic = broker.other_topic("dead", 1);
    let extra = format!("window.max_documents = 20\nshard.max_rows = 10\ndead_letters.topic = \"{topic}\"");
    let deployment = Deployment::new(&broker, &extra);
    let n = if broker.is_real() { 2_000 } else { 400 };
    let kills = if broker.is_real() { 4 } else { 1 };
    produce(&broker, (0..n).map(|i| (i, record(i))));
    for kill in 1..=kills {
        let daemon = deployment.start();
        wait_decided(&deployment, kill * n / (kills + 1));
        daemon.kill_9();
    }
    let daemon = deployment.start();
    wait_decided(&deployment, n);
    // What another run has published is left to it for a while; what this one has is sent at once.
    let mut forwarded = BTreeMap::new();
    let reader = broker.reader(&topic);
    wait_for("all dead letters", || {
        let record = reader.next()?;
        forwarded.entry((record.header("winnowd.partition"), record.header("winnowd.offset"))).or_insert(record);
        (forwarded.len() as u64 == n / 4).then_some(())
    });
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, n as i64 / 2), (1, n as i64 / 2)]));
    assert_eq!(published.dead_letters.len(), forwarded.len());
    for letter in &published.dead_letters {
        let record = &forwarded[&(letter.at.partition.to_string(), letter.offset.to_string())];
        assert_eq!((&record.payload, record.timestamp_ms), (&letter.payload, letter.timestamp_ms));
        assert_eq!(record.header("winnowd.reason"), "malformed_json");
        assert_eq!(
            (record.header("winnowd.pipeline"), record.header("winnowd.topic")),
            ("test".into(), broker.topic.clone())
        );
    }
}

#[test]
fn dead_letters_are_listed_and_sent_again() {
    let broker = Broker::with_topic("listed", 1);
    let deployment = Deployment::new(&broker, "dead_letters.payload_bytes = \"1KiB\"");
    let long = format!("[\"{}\"]", "x".repeat(2000));
    let bad: [&[u8]; 4] = [b"\xff\xfe", b"{\"id\":\"a\"}", long.as_bytes(), b"{\"id\":\"b\"}"];
    produce(&broker, (0..10).map(|n| (n, document(n))).chain((10..).zip(bad.map(<[u8]>::to_vec))));
    let daemon = deployment.start();
    wait_decided(&deployment, 14);
    assert_eq!(daemon.stop(), Some(0));

    let run = |arguments: &[&str]| {
        let output = deployment.winnowd(&[&["dead-letters"], arguments].concat());
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    };
    let (code, text) = run(&["list"]);
    assert_eq!((code, text.lines().count()), (Some(0), 5), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with(&format!("{}/0/10 ", broker.topic)), "{text}");
    assert_eq!(run(&["list", "--limit", "1"]).1.lines().count(), 2);
    let (_, json) = run(&["list", "--json"]);
    let letters: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&letters[0]["payload_base64"], &letters[1]["payload"]), (&"//4=".into(), &"{\"id\":\"a\"}".into()));
    assert_eq!((&letters[2]["is_whole"], &letters[2]["payload_bytes"]), (&false.into(), &2004.into()));
    assert_eq!(letters[2]["payload"].as_str().unwrap().len(), 1024);

    let topic = broker.other_topic("again", 1);
    let (code, text) = run(&["redrive", "--to", &topic, "--reason", "missing_text", "--dry-run"]);
    assert_eq!((code, &*text), (Some(0), &*format!("2 dead letters would be sent to {topic}\n")));
    let (code, text) = run(&["redrive", "--to", &topic]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.starts_with(&format!("3 dead letters sent to {topic}\n1 not sent: only the beginning is kept")),
        "{text}"
    );
    let reader = broker.reader(&topic);
    let mut payloads: Vec<_> = (0..3).map(|_| wait_for("a record", || reader.next()).payload.unwrap()).collect();
    // Of several partitions any may come first.
    payloads.sort_unstable();
    assert_eq!(payloads, [bad[1], bad[3], bad[0]]);

    let (code, text) = run(&["list", "--reason", "typo"]);
    assert_eq!(code, Some(64));
    assert!(text.contains("--reason typo: expected one of: null_payload, "), "{text}");
    let (code, text) = run(&["redrive", "--to", &format!("{topic}-missing")]);
    if broker.is_real() {
        assert_eq!(code, Some(69), "{text}");
        assert!(text.contains(&format!("topic {topic}-missing")), "{text}");
    }

    // A file of dead letters is verified like a shard.
    let verify = || deployment.winnowd(&["shards", "--verify"]);
    assert!(verify().status.success());
    let folder = deployment.folder.path().join("out/dead-letters");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&file).unwrap();
    let output = verify();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69));
    assert!(
        text.contains(&format!("dead-letters/{} is missing", file.file_name().unwrap().to_string_lossy())),
        "{text}"
    );
}

#[test]
fn a_stream_of_something_else_stops_the_daemon() {
    let broker = Broker::with_topic("wrong", 1);
    let deployment = Deployment::new(&broker, "dead_letters.ratio_records = 100\nwindow.max_documents = 1000");
    produce(&broker, (0..100).map(|n| (n, document(n))));
    produce(&broker, (100..200).map(|n| (n, if n % 2 == 0 { b"<xml/>".to_vec() } else { record(n - n % 4 + 3) })));
    let mut daemon = deployment.start();
    let status = wait_for("the daemon's end", || daemon.child.try_wait().unwrap());
    let log = deployment.log();
    assert_eq!(status.code(), Some(69), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("100 of the last 100 records are bad"), "{last}");
    assert!(last.contains("dead_letters.max_ratio") && last.contains(&format!("{}/0/199", broker.topic)), "{last}");
    assert_eq!(deployment.totals().n_records, 0, "the window is not published");

    // Whoever has looked and wants to go on says so.
    let config = std::fs::read_to_string(&deployment.config).unwrap();
    std::fs::write(&deployment.config, format!("{config}\ndead_letters.max_ratio = 1.0\n")).unwrap();
    let daemon = deployment.start();
    wait_decided(&deployment, 200);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, 200)]));
    assert_eq!(published.dead_letters.len(), 100);
}
