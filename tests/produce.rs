//! `winnowd produce`: files in a topic are what `winnowd run` reads; it says how far it came, and what is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

fn produce(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_winnowd")).arg("produce").args(arguments).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn jsonl(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(|n| [document(n), b"\n".to_vec()].concat()).collect()
}

/// How many records a topic has ever had.
fn records(broker: &Broker, topic: &str) -> u64 {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &broker.bootstrap).set("group.id", "ends").create().unwrap();
    let timeout = Duration::from_secs(30);
    let metadata = consumer.fetch_metadata(Some(topic), timeout).unwrap();
    let end = |partition: i32| consumer.fetch_watermarks(topic, partition, timeout).unwrap().1;
    metadata.topics()[0].partitions().iter().map(|p| end(p.id()) as u64).sum()
}

#[test]
fn what_is_produced_is_what_the_daemon_decides() {
    let broker = Broker::with_topic("produce", 3);
    let deployment = Deployment::new(&broker, "documents.max_bytes = \"1MiB\"");
    let n = if broker.is_real() { 20_000 } else { 2_000 };
    let folder = deployment.folder.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    // Several frames in one file, and several files.
    let frames = [jsonl(0..n / 4), jsonl(n / 4..n / 2)].map(|part| zstd::encode_all(&part[..], 1).unwrap());
    std::fs::write(folder.join("a.jsonl.zst"), frames.concat()).unwrap();
    std::fs::write(folder.join("b.jsonl"), jsonl(n / 2..n)).unwrap();
    let (path, config) = (folder.to_str().unwrap(), deployment.config.to_str().unwrap());
    let output = produce(&["--input", path, "-c", config]);
    let (code, text) = said(&output);
    assert_eq!(code, Some(0), "{text}");
    let shown = n.to_string();
    let shown =
        if n > 9_999 { format!("{},{}", &shown[..2], &shown[2..]) } else { format!("{},{}", &shown[..1], &shown[1..]) };
    assert!(text.contains(&format!("{shown} documents, ")) && text.contains("3 partitions"), "{text}");

    // The lines as they are, each under its id.
    let reader = broker.reader(&broker.topic);
    let mut seen = BTreeSet::new();
    wait_for("all records", || {
        while let Some(record) = reader.next() {
            let payload = record.payload.unwrap();
            let parsed: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            let id = parsed["id"].as_str().unwrap().to_owned();
            assert_eq!(payload, document(id[1..].parse().unwrap()));
            assert_eq!(record.key.as_deref(), Some(id.as_bytes()));
            assert!(seen.insert(id), "twice");
        }
        (seen.len() as u64 == n).then_some(())
    });

    let daemon = deployment.start();
    wait_for("all documents", || (deployment.totals().n_records as u64 == n).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert!(published.dead_letters.is_empty() && !published.rows.is_empty());
    let ids: BTreeSet<_> = published.rows.iter().map(|row| row.id.clone()).collect();
    assert!(ids.len() == published.rows.len() && ids.is_subset(&seen));
}

#[test]
fn fields_and_types_become_those_of_the_pipeline() {
    let broker = Broker::with_topic("produce-csv", 1);
    let extra =
        "documents.text_field = \"body\"\ndocuments.filter = \"n > 0\"\ndocuments.filter_fields.n = \"integer\"";
    let deployment = Deployment::new(&broker, extra);
    let csv = deployment.folder.path().join("docs.csv");
    std::fs::write(&csv, "key,content,n,note\r\nx,\"two\nlines, \"\"quoted\"\"\",7,\r\n,plain,-1,007\r\n").unwrap();
    let (path, config) = (csv.to_str().unwrap(), deployment.config.to_str().unwrap());
    let output = produce(&["--input", path, "-c", config, "--text-field", "content", "--id-field", "key"]);
    assert_eq!(said(&output).0, Some(0), "{}", said(&output).1);
    let reader = broker.reader(&broker.topic);
    let next = || wait_for("a record", || reader.next());
    let (first, second) = (next(), next());
    let parsed = |record: &ReadRecord| -> serde_json::Value {
        serde_json::from_slice(record.payload.as_ref().unwrap()).unwrap()
    };
    assert_eq!(parsed(&first), serde_json::json!({ "id": "x", "body": "two\nlines, \"quoted\"", "n": 7 }));
    assert_eq!(parsed(&second), serde_json::json!({ "body": "plain", "n": -1, "note": "007" }));
    assert_eq!((first.key.as_deref(), second.key), (Some(&b"x"[..]), None));
}

#[test]
fn mistakes_are_told() {
    let broker = Broker::with_topic("produce-mistakes", 1);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
        folder.path().join(name).to_str().unwrap().to_owned()
    };
    let bad = write("bad.jsonl", &[jsonl(0..10), b"{\"id\":1}\n".to_vec(), jsonl(11..20)].concat());
    let to = ["--topic", broker.topic.as_str(), "--bootstrap", broker.bootstrap.as_str()];
    let with = |more: &[&str]| said(&produce(&[&to[..], more].concat()));

    let (code, text) = with(&["--input", &bad]);
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("line 11: missing_text") && text.contains("the first 0 documents"), "{text}");
    assert_eq!(records(&broker, &broker.topic), 0, "a chunk with a mistake is not sent");
    let (code, text) = with(&["--input", &bad, "--skip-bad-lines"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("19 documents, ") && text.contains("1 bad lines passed over"), "{text}");
    assert_eq!(records(&broker, &broker.topic), 19);

    let good = write("good.jsonl", &jsonl(0..5));
    let (code, text) = with(&["--input", &good, "--skip", "3"]);
    assert_eq!((code, records(&broker, &broker.topic)), (Some(0), 21), "{text}");
    let (code, text) = said(&produce(&["--input", &good, "--topic", "nowhere", "--bootstrap", &broker.bootstrap]));
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("there is no topic `nowhere`") && text.contains("--partitions N"), "{text}");
    if broker.is_real() {
        let new = format!("{}-new", broker.topic);
        let made = ["--input", &good, "--topic", &new, "--bootstrap", &broker.bootstrap, "--partitions", "4"];
        let (code, text) = said(&produce(&made));
        assert_eq!((code, records(&broker, &new)), (Some(0), 5), "{text}");
        assert!(text.contains("in the 4 partitions"), "{text}");
    }
    let (code, text) = said(&produce(&["--input", &good, "--topic", "t", "--bootstrap", "127.0.0.1:1"]));
    assert_eq!(code, Some(69), "{text}");
    let (code, text) = said(&produce(&["--input", &good, "--bootstrap", &broker.bootstrap]));
    assert!(code == Some(64) && text.contains("--topic"), "{text}");
    let (code, text) = with(&["--input", "/nowhere/*.jsonl"]);
    assert!(code == Some(64) && text.contains("no file matches"), "{text}");
}

/// Writes documents into a pipe until nobody reads it any more.
fn feed(pipe: &Path, far: &std::sync::mpsc::Sender<()>) {
    const FAR: usize = 4 << 20;
    let mut pipe = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
    let mut bytes = 0;
    for n in 0.. {
        let line = jsonl(n..n + 1);
        if pipe.write_all(&line).is_err() {
            return;
        }
        if bytes < FAR && bytes + line.len() >= FAR {
            let _ = far.send(());
        }
        bytes += line.len();
        assert!(bytes < 4 << 30, "nobody stops reading");
    }
}

#[test]
fn ctrl_c_says_how_far_it_came_and_skip_goes_on_there() {
    let broker = Broker::with_topic("produce-interrupted", 2);
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let child = Command::new(env!("CARGO_BIN_EXE_winnowd"))
        .args(["produce", "--topic", &broker.topic, "--bootstrap", &broker.bootstrap, "--input"])
        .arg(&pipe)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (far, is_far) = std::sync::mpsc::channel();
    let feeding = std::thread::spawn(move || feed(&pipe, &far));
    is_far.recv_timeout(DEADLINE).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (code, text) = said(&child.wait_with_output().unwrap());
    feeding.join().unwrap();
    assert_eq!(code, Some(130), "{text}");
    let (_, skip) = text.split_once("--skip ").unwrap_or_else(|| panic!("{text}"));
    let n: u64 = skip.split_whitespace().next().unwrap().parse().unwrap();
    assert!(n > 1_000 && text.contains(&format!("up to line {n} of")), "{text}");
    assert_eq!(records(&broker, &broker.topic), n, "{text}");

    let all = folder.path().join("all.jsonl");
    std::fs::write(&all, jsonl(0..n + 100)).unwrap();
    let skip = n.to_string();
    let to = ["--topic", &broker.topic, "--bootstrap", &broker.bootstrap, "--skip", &skip];
    let (code, text) = said(&produce(&[&["--input", all.to_str().unwrap()], &to[..]].concat()));
    assert_eq!((code, records(&broker, &broker.topic)), (Some(0), n + 100), "{text}");
}
