//! Records in Avro, Protobuf and plain text: the documents that JSON would make of them, whatever the registry and the daemon suffer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::*;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// What schema `id` is: the second has one field more, and others in another order.
fn avro_schema(id: u32) -> Value {
    let optional = json!(["null", "string"]);
    let fields = match id {
        1 => json!([
            { "name": "id", "type": "string" },
            { "name": "source", "type": optional },
            { "name": "text", "type": "string" },
            { "name": "n", "type": "long" },
        ]),
        _ => json!([
            { "name": "lang", "type": optional, "default": null },
            { "name": "text", "type": "string" },
            { "name": "n", "type": "long" },
            { "name": "source", "type": optional },
            { "name": "id", "type": "string" },
        ]),
    };
    json!({ "schema": json!({ "type": "record", "name": "Document", "fields": fields }).to_string() })
}

fn long(n: i64, out: &mut Vec<u8>) {
    let mut bits = (n << 1 ^ n >> 63) as u64;
    while bits >= 0x80 {
        out.push(bits as u8 | 0x80);
        bits >>= 7;
    }
    out.push(bits as u8);
}

/// `document(n)`, by schema `id`.
fn avro(n: u64, id: u32) -> Vec<u8> {
    let document: Value = serde_json::from_slice(&document(n)).unwrap();
    let string = |name: &str, out: &mut Vec<u8>| {
        let text = document[name].as_str().unwrap();
        long(text.len() as i64, out);
        out.extend(text.as_bytes());
    };
    let mut out = [&[0][..], &id.to_be_bytes()].concat();
    let second = |out: &mut Vec<u8>| long(1, out);
    match id {
        1 => {
            string("id", &mut out);
            second(&mut out);
            string("source", &mut out);
            string("text", &mut out);
            long(n as i64, &mut out);
        }
        _ => {
            long(0, &mut out);
            string("text", &mut out);
            long(n as i64, &mut out);
            second(&mut out);
            string("source", &mut out);
            string("id", &mut out);
        }
    }
    out
}

const ALL: &str = "selection.fraction = 1.0\nwindow.max_documents = 40\nshard.max_rows = 20\n";

fn of_registry(format: &str, registry: &TestRegistry) -> String {
    let url = registry.url();
    format!(
        "{ALL}documents.format = \"{format}\"\ndocuments.registry.url = \"{url}\"\ndocuments.registry.max_backoff = \"250ms\"\n"
    )
}

fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("the publication", || (deployment.totals().n_records >= n as i64).then_some(()));
}

/// Ids, each with its weight.
fn weights(published: &Published) -> BTreeMap<String, f64> {
    published.rows.iter().map(|row| (row.id.clone(), row.log_importance_weight)).collect()
}

fn assert_replayed(deployment: &Deployment) {
    let verified = deployment.winnowd(&["replay", "--verify"]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains(" 0 differ, 0 cannot be verified"), "{said}{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn two_schemas_in_one_topic_are_decided_once_through_kills_and_as_their_json() {
    let broker = Broker::with_topic("avro", 2);
    let registry = TestRegistry::start();
    [1, 2].into_iter().for_each(|id| registry.add(id, avro_schema(id)));
    let deployment = Deployment::new(&broker, &of_registry("avro", &registry));
    let n = if broker.is_real() { 3_000 } else { 600 };
    let kills = if broker.is_real() { 4 } else { 1 };
    // Every tenth is bad, each in its way.
    let bad = |n: u64| match n / 10 % 4 {
        0 => (avro(n, 1)[..20].to_vec(), "malformed_avro"),
        1 => (avro(n, 77), "unknown_schema"),
        2 => (document(n), "no_schema_id"),
        _ => (avro(n, 3), "unusable_schema"),
    };
    registry.add(3, json!({ "schema": "syntax = \"proto3\";", "schemaType": "PROTOBUF" }));
    let producer = broker.producer();
    let mut expected = BTreeMap::new();
    for i in 0..n {
        let payload = if i % 10 == 9 { bad(i).0 } else { avro(i, 1 + (i % 3 == 0) as u32) };
        producer.send((i % 2) as i32, Some(&payload));
        if i % 10 == 9 {
            expected.insert((i % 2, i / 2), bad(i).1);
        }
    }
    producer.flush();
    for kill in 1..=kills {
        let daemon = deployment.start();
        wait_decided(&deployment, kill * n / (kills + 1));
        daemon.kill_9();
    }
    let daemon = deployment.start();
    wait_decided(&deployment, n);
    assert_eq!(daemon.stop(), Some(0));
    // Once by each process, however many records name it.
    assert!((1..=kills as usize + 1).contains(&registry.n_asked("/schemas/ids/1")));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, n as i64 / 2), (1, n as i64 / 2)]));
    let found = published.dead_letters.iter();
    let found: BTreeMap<_, _> =
        found.map(|letter| ((letter.at.partition as u64, letter.offset as u64), letter.reason.as_str())).collect();
    assert_eq!(found, expected);
    assert_replayed(&deployment);

    // The same in JSON, which is read without any of that.
    let plain = Broker::with_topic("plain", 2);
    let of_json = Deployment::new(&plain, ALL);
    let producer = plain.producer();
    (0..n).filter(|i| i % 10 != 9).for_each(|i| producer.send((i % 2) as i32, Some(&document(i))));
    producer.flush();
    let daemon = of_json.start();
    wait_decided(&of_json, n - n / 10);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(weights(&published), weights(&of_json.published()));
}

#[test]
fn a_registry_that_is_away_delays_records_and_loses_none() {
    let broker = Broker::with_topic("away", 1);
    let registry = TestRegistry::start();
    [1, 2].into_iter().for_each(|id| registry.add(id, avro_schema(id)));
    registry.set_mood(RegistryMood::Down);
    let deployment = Deployment::new(&broker, &of_registry("avro", &registry));
    let producer = broker.producer();
    let send = |from: u64, to: u64, id: u32| {
        (from..to).for_each(|n| producer.send(0, Some(&avro(n, id))));
        producer.flush();
    };
    send(0, 100, 1);
    let daemon = deployment.start();
    let stalled = |daemon: &DaemonProcess| {
        wait_for("the registry to be missed", || {
            let (code, text) = daemon.get("/readyz");
            (code == 503 && text.contains("schema registry")).then_some(())
        });
        assert_eq!(daemon.metric("winnowd_registry_stalled"), 1.0);
        assert_eq!(daemon.get("/healthz").0, 200);
    };
    stalled(&daemon);
    assert!(daemon.metric("winnowd_registry_requests_total{outcome=\"failed\"}") >= 1.0);
    assert_eq!(deployment.totals().n_records, 0);
    registry.set_mood(RegistryMood::Well);
    wait_decided(&deployment, 100);
    wait_for("readiness", || (daemon.get("/readyz").0 == 200).then_some(()));
    assert_eq!(daemon.metric("winnowd_registry_stalled"), 0.0);

    // A schema that is known needs no registry; one that is not waits, also where a proxy says that there is nothing.
    for (mood, id) in [(RegistryMood::Failing, 1), (RegistryMood::Elsewhere, 2)] {
        registry.set_mood(mood);
        let from = deployment.totals().n_records as u64;
        send(from, from + 50, id);
        if id == 1 {
            wait_decided(&deployment, from + 50);
        } else {
            stalled(&daemon);
            assert_eq!(deployment.totals().n_records as u64, from);
            // A kill while it waits, and a stop: neither takes long, nor loses anything.
            daemon.kill_9();
            break;
        }
    }
    let daemon = deployment.start();
    stalled(&daemon);
    assert_eq!(daemon.stop(), Some(0));
    let daemon = deployment.start();
    stalled(&daemon);
    registry.set_mood(RegistryMood::Well);
    wait_decided(&deployment, 200);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, 200)]));
    assert!(published.dead_letters.is_empty());
    let log = deployment.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains(" WARN ") && line.contains("registry")).collect();
    assert!(warnings.len() <= 6, "{}", warnings.join("\n"));
    assert!(log.contains("a batch of records waits for its schemas") && log.contains("going on"), "{log}");

    // Without the registry a replay says why it cannot be.
    registry.set_mood(RegistryMood::Down);
    let output = deployment.winnowd(&["replay", "--verify"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&registry.url()));
}

#[test]
fn a_registry_may_want_a_password_which_nobody_gets_to_see() {
    let broker = Broker::with_topic("password", 1);
    let registry = TestRegistry::start();
    registry.add(1, avro_schema(1));
    registry.protect("reader", "hunter2");
    let extra = format!("{}documents.registry.user = \"reader\"\n", of_registry("avro", &registry));
    let deployment = Deployment::new(&broker, &extra);
    let producer = broker.producer();
    (0..60).for_each(|n| producer.send(0, Some(&avro(n, 1))));
    producer.flush();
    let check = |password: &str| {
        let mut command = winnowd_command();
        command.args(["check", "--connect", "-c"]).arg(&deployment.config);
        let output = command.env("WINNOWD_DOCUMENTS__REGISTRY__PASSWORD", password).output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), said)
    };
    let (code, said) = check("wrong-one");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("401 Unauthorized") && !said.contains("wrong-one"), "{said}");
    let (code, said) = check("hunter2");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("answers, has schemas of JSON, PROTOBUF, AVRO"), "{said}");
    let daemon = deployment.start_with(&[("WINNOWD_DOCUMENTS__REGISTRY__PASSWORD", "hunter2")]).unwrap();
    wait_decided(&deployment, 60);
    let (_, status) = daemon.get("/status");
    assert_eq!(daemon.stop(), Some(0));
    assert!(!status.contains("hunter2") && !deployment.log().contains("hunter2"));
    assert_eq!(deployment.published().rows.len(), 60);
}

#[test]
fn a_schema_that_is_not_there_is_asked_for_again_later_and_not_for_every_record() {
    let broker = Broker::with_topic("unknown", 1);
    let registry = TestRegistry::start();
    let extra = format!("{}documents.registry.unknown_for = \"1h\"\n", of_registry("avro", &registry));
    let deployment = Deployment::new(&broker, &extra);
    let producer = broker.producer();
    let send = |from: u64, to: u64| {
        (from..to).for_each(|n| producer.send(0, Some(&avro(n, 1))));
        producer.flush();
    };
    send(0, 100);
    let daemon = deployment.start();
    wait_decided(&deployment, 100);
    // It is registered too late for these, and what is believed is believed for a while.
    registry.add(1, avro_schema(1));
    send(100, 200);
    wait_decided(&deployment, 200);
    assert_eq!(registry.n_asked("/schemas/ids/1"), 1);
    assert_eq!(daemon.stop(), Some(0));
    let daemon = deployment.start_with(&[("WINNOWD_DOCUMENTS__REGISTRY__UNKNOWN_FOR", "0s")]).unwrap();
    send(200, 300);
    wait_decided(&deployment, 300);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, 300)]));
    assert!(published.dead_letters.iter().all(|letter| letter.reason == "unknown_schema" && letter.offset < 200));
    assert_eq!((published.dead_letters.len(), published.rows.len()), (200, 100));
    // Now they can be read: what was dead can be sent again.
    let topic = broker.other_topic("again", 1);
    let output = deployment.winnowd(&["dead-letters", "redrive", "--reason", "unknown_schema", "--to", &topic]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let reader = broker.reader(&topic);
    let mut again = Vec::new();
    wait_for("all of them", || {
        again.push(reader.next()?.payload.unwrap());
        (again.len() == 200).then_some(())
    });
    again.sort();
    let mut sent: Vec<_> = (0..200).map(|n| avro(n, 1)).collect();
    sent.sort();
    assert_eq!(again, sent);
}

/// Made by `tests/schemas/make_golden.py` with Confluent's own serialisers.
#[test]
fn records_of_other_programs_are_read_with_all_that_their_schemas_refer_to() {
    const GOLDEN: &str = include_str!("schemas/golden.jsonl");
    fn add_references(registry: &TestRegistry, references: &Value, kind: &str) -> Value {
        let named = references.as_array().unwrap().iter().map(|reference| {
            let [name, subject, version, schema, inner] = [0, 1, 2, 3, 4].map(|i| &reference[i]);
            let inner = add_references(registry, inner, kind);
            let answer = json!({ "schema": schema, "schemaType": kind, "references": inner, "id": 1000 });
            registry.add_version(subject.as_str().unwrap(), version.as_i64().unwrap(), answer);
            json!({ "name": name, "subject": subject, "version": version })
        });
        named.collect()
    }
    for format in ["avro", "protobuf"] {
        let broker = Broker::with_topic(&format!("golden-{format}"), 1);
        let registry = TestRegistry::start();
        let deployment = Deployment::new(&broker, &of_registry(format, &registry));
        let producer = broker.producer();
        let (mut n, mut expected) = (0, BTreeMap::new());
        let lines = GOLDEN.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        for (i, golden) in lines.filter(|golden| golden["format"] == format).enumerate() {
            let id = 100 + i as u32;
            let kind = golden["schema_type"].as_str().unwrap();
            let references = add_references(&registry, &golden["references"], kind);
            let schema = json!({ "schema": golden["schema"], "schemaType": kind, "references": references });
            registry.add(id, schema);
            let hex = golden["payload"].as_str().unwrap();
            let mut payload: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            payload[1..5].copy_from_slice(&id.to_be_bytes());
            producer.send(0, Some(&payload));
            let own_id = match &golden["record"]["id"] {
                Value::Null => format!("{}/0/{i}", broker.topic),
                Value::String(id) => id.clone(),
                number => number.to_string(),
            };
            n += 1;
            // An empty text has too few tokens.
            if golden["record"]["text"] != "" {
                expected.insert(i as i64, own_id);
            }
        }
        producer.flush();
        let daemon = deployment.start();
        wait_decided(&deployment, n);
        assert_eq!(daemon.stop(), Some(0));
        let published = deployment.published();
        assert!(published.dead_letters.is_empty(), "{:?}", published.dead_letters);
        let found: BTreeMap<_, _> = published.rows.iter().map(|row| (row.offset, row.id.clone())).collect();
        assert_eq!(found, expected);
        assert_replayed(&deployment);
    }
}

/// A real registry (`REGISTRY_URL`, as `tests/services/registry` starts one) and a real producer, which both know nothing of us.
#[test]
fn what_confluents_serialisers_register_and_send_is_read() {
    let Ok(url) = std::env::var("REGISTRY_URL") else {
        eprintln!("skipped: REGISTRY_URL names no registry");
        return;
    };
    let modules = "confluent_kafka.schema_registry.avro, confluent_kafka.schema_registry.protobuf, fastavro";
    let Some(python) = python_of("venv-schemas", modules) else { return };
    for format in ["avro", "protobuf"] {
        let broker = Broker::with_topic(&format!("foreign-{format}"), 1);
        let extra = format!("{ALL}documents.format = \"{format}\"\ndocuments.registry.url = \"{url}\"\n");
        let deployment = Deployment::new(&broker, &extra);
        let n = 300;
        let lines: Vec<u8> = (0..n).flat_map(|n| [document(n), b"\n".to_vec()].concat()).collect();
        let input = deployment.folder.path().join("documents.jsonl");
        std::fs::write(&input, lines).unwrap();
        let mut command = std::process::Command::new(&python);
        command.args(["tests/schemas/produce.py", &broker.bootstrap, &broker.topic, &url, format]);
        let output = command.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let checked = deployment.winnowd(&["check", "--connect"]);
        assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
        let daemon = deployment.start();
        // An id that this registry has never given away.
        let producer = broker.producer();
        producer.send(0, Some(&avro(1, 0x7fff_fff0)));
        producer.flush();
        wait_decided(&deployment, n + 1);
        assert_eq!(daemon.metric("winnowd_registry_schemas"), 2.0);
        assert_eq!(daemon.stop(), Some(0));
        let published = deployment.published();
        published.assert_exactly_once(&BTreeMap::from([(0, n as i64 + 1)]));
        let letters: Vec<_> = published.dead_letters.iter().map(|letter| letter.reason.as_str()).collect();
        assert_eq!(letters, ["unknown_schema"]);
        let found: BTreeMap<_, _> = published.rows.iter().map(|row| (row.offset as u64, row.id.clone())).collect();
        assert_eq!(found, (0..n).map(|n| (n, format!("d{n}"))).collect());
        assert_replayed(&deployment);
    }
}

#[test]
fn texts_take_their_ids_from_keys_and_what_else_there_is_from_headers() {
    let broker = Broker::with_topic("texts", 1);
    let extra = format!(
        "{ALL}documents.format = \"text\"\ndocuments.text.source_header = \"from\"\ndocuments.text.source = \"elsewhere\"\n\
         documents.text.headers = [\"lang\"]\ndocuments.filter = \"lang = 'en'\"\ndocuments.filter_fields.lang = \"string\"\n"
    );
    let deployment = Deployment::new(&broker, &extra);
    let producer = broker.producer();
    let text = |n: u64| serde_json::from_slice::<Value>(&document(n)).unwrap()["text"].as_str().unwrap().to_owned();
    let n = 120;
    for i in 0..n {
        let key = format!("k{i}");
        let key = (i % 4 > 0).then_some(key.as_str());
        let from = format!("s{}", i % 3);
        let headers = [("lang", "de"), ("from", from.as_str()), ("lang", if i % 2 == 0 { "en" } else { "de" })];
        producer.send_with(0, text(i).as_bytes(), key, &headers);
    }
    producer.send_with(0, b"\xff\xfe", Some("broken"), &[]);
    producer.flush();
    let daemon = deployment.start();
    wait_decided(&deployment, n + 1);
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, n as i64 + 1)]));
    let found: BTreeMap<_, _> = published.rows.iter().map(|row| (row.offset as u64, row.id.clone())).collect();
    let id = |i: u64| if i.is_multiple_of(4) { format!("{}/0/{i}", broker.topic) } else { format!("k{i}") };
    assert_eq!(found, (0..n).filter(|i| i % 2 == 0).map(|i| (i, id(i))).collect());
    assert_eq!(published.dead_letters.len(), 1);
    assert_eq!(published.dead_letters[0].reason, "invalid_utf8");
    let query =
        "SELECT source, count(*) AS n, min(metadata) AS metadata FROM documents GROUP BY source ORDER BY source";
    let output = deployment.winnowd(&["query", query, "--format", "csv"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for source in ["s0", "s1", "s2"] {
        assert!(said.contains(&format!("{source},20,\"{{\"\"lang\"\":\"\"en\"\"}}\"")), "{said}");
    }
    assert_replayed(&deployment);
}
