//! The daemon as a process against a broker: `KAFKA_BOOTSTRAP`, or else the in-process cluster in a process of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use support::*;
use winnowd::catalog::{Access, Catalog, SqlCatalog};

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

/// Waits until the catalog has decided `n` records.
fn wait_decided(deployment: &Deployment, n: u64) {
    wait_for("all documents to be decided", || (deployment.totals().n_records as u64 >= n).then_some(()));
}

/// Sends `n` documents round-robin, counted from `first`, and gives the records of each partition.
fn produce(broker: &Broker, first: u64, n: u64) -> BTreeMap<i32, i64> {
    let producer = broker.producer();
    let mut counts = BTreeMap::new();
    for i in first..first + n {
        let partition = (i % broker.partitions as u64) as i32;
        producer.send(partition, Some(&document(i)));
        *counts.entry(partition).or_default() += 1;
    }
    producer.flush();
    counts
}

fn add(total: &mut BTreeMap<i32, i64>, more: BTreeMap<i32, i64>) {
    more.into_iter().for_each(|(partition, n)| *total.entry(partition).or_default() += n);
}

#[test]
fn every_position_is_decided_once_however_often_the_daemon_is_killed() {
    let broker = Broker::with_topic("kills", 8);
    // The in-process cluster takes seconds for every rejoin and keeps 5 MiB a partition.
    // So many that in no partition whole windows hold what is there at a kill.
    let (kills, n_documents) = if broker.is_real() { (25, 200_000) } else { (4, 21_000) };
    let deployment = Deployment::new(&broker, "window.max_documents = 500\nshard.max_rows = 2000");
    let seed = random_seed();
    println!("{kills} kills, WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let chunk = n_documents / (kills + 1);
    let mut produced = BTreeMap::new();
    for kill in 0..kills {
        let daemon = deployment.start_without_end();
        add(&mut produced, produce(&broker, kill * chunk, chunk));
        // The moment of the fault is the input of this test, not a way to wait. Every other kill finds the daemon reading.
        if kill % 2 == 0 {
            let has_read = || (daemon.metric("winnowd_consumed_records_total") > 0.0).then_some(());
            wait_for("the daemon to read", has_read);
        }
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        daemon.kill_9();
        let decided = deployment.totals().n_records as u64;
        assert!(decided < (kill + 1) * chunk, "the kill met the daemon at work: {decided} documents are decided");
    }
    add(&mut produced, produce(&broker, kills * chunk, n_documents - kills * chunk));
    let daemon = deployment.start();
    wait_decided(&deployment, n_documents);
    let decisions = [("selected", 0), ("rejected", 1), ("dead_letter", 2)];
    let totals = deployment.totals();
    let expected = [totals.n_selected, totals.n_rejected, totals.n_dead_letters];
    for (decision, i) in decisions {
        let series = format!("winnowd_catalog_documents{{decision=\"{decision}\"}}");
        wait_for(&series, || (daemon.metric(&series) as i64 == expected[i]).then_some(()));
    }
    assert_eq!(daemon.stop(), Some(0));
    deployment.published().assert_exactly_once(&produced);
}

#[test]
fn the_same_stream_gives_the_same_selection() {
    let broker = Broker::with_topic("same", 4);
    let n_documents = 12_000;
    let produced = produce(&broker, 0, n_documents);
    let policy = "window.max_documents = 400\nselection.fraction = 0.15";
    let small = "\nkafka.properties.\"max.partition.fetch.bytes\" = 4000\nkafka.properties.\"queued.min.messages\" = 100\nshard.max_rows = 100";
    let runs = [("", 0u64), (small, 3)].map(|(extra, kills)| {
        let deployment = Deployment::new(&broker, &format!("{policy}{extra}"));
        for kill in 1..=kills {
            let daemon = deployment.start();
            wait_decided(&deployment, kill * n_documents / (kills + 1));
            daemon.kill_9();
        }
        let daemon = deployment.start();
        wait_decided(&deployment, n_documents);
        assert_eq!(daemon.stop(), Some(0));
        let published = deployment.published();
        published.assert_exactly_once(&produced);
        let mut rows = published.rows;
        rows.sort_by_key(|row| (row.partition, row.offset));
        rows
    });
    assert_eq!(runs[0].len() as u64, n_documents * 15 / 100, "the fraction is exact for whole windows");
    assert!(runs[0].iter().all(|r| r.sample_weight == 1.0 / r.inclusion_probability && r.inclusion_probability > 0.0));
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn bad_records_become_dead_letters_and_the_stream_goes_on() {
    const KEPT_BYTES: usize = 64 << 10;
    let broker = Broker::with_topic("bad", 2);
    let (limit, large) = if broker.is_real() { (16 << 20, 20 << 20) } else { (100 << 10, 200 << 10) };
    let extra = format!(
        "documents.max_bytes = \"{limit}B\"\ndead_letters.payload_bytes = \"{KEPT_BYTES}B\"\nselection.fraction = 1.0"
    );
    let deployment = Deployment::new(&broker, &extra);
    let huge = serde_json::json!({ "id": "huge", "text": "x ".repeat(large / 2) }).to_string();
    let bad: [(Option<&[u8]>, Option<&str>); 9] = [
        (Some(br#"{"id":"a","text":"cut off"#), Some("malformed_json")),
        (Some(br#"{"text":["not","a","string"]}"#), Some("invalid_field")),
        (Some(br#"{"id":{"a":1},"text":"x"}"#), Some("invalid_field")),
        (Some(b"{\"text\":\"\xc3\x28\"}"), Some("invalid_utf8")),
        (Some(b"[1,2,3]"), Some("not_an_object")),
        (Some(br#"{"id":"no text"}"#), Some("missing_text")),
        (Some(huge.as_bytes()), Some("too_large")),
        (None, Some("null_payload")),
        // Not a dead letter: a document without tokens, rejected as too short.
        (Some(br#"{"id":"empty","text":""}"#), None),
    ];
    let producer = broker.producer();
    let mut expected = Vec::new();
    for (i, (payload, reason)) in bad.iter().enumerate() {
        producer.send(0, Some(&document(i as u64)));
        producer.send(0, *payload);
        expected.extend(reason.map(|reason| (2 * i as i64 + 1, reason.to_owned())));
    }
    producer.send(1, Some(&document(99)));
    producer.flush();

    let daemon = deployment.start();
    wait_decided(&deployment, 2 * bad.len() as u64 + 1);
    let metric = |reason: &str| daemon.metric(&format!("winnowd_dead_letters_total{{reason=\"{reason}\"}}"));
    wait_for("the metric", || (metric("invalid_field") == 2.0 && metric("null_payload") == 1.0).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    published.assert_exactly_once(&BTreeMap::from([(0, 2 * bad.len() as i64), (1, 1)]));
    let letters: Vec<_> = published.dead_letters.iter().map(|l| (l.offset, l.reason.clone())).collect();
    assert_eq!(letters, expected);
    for letter in &published.dead_letters {
        let payload = bad[letter.offset as usize / 2].0;
        let is_large = letter.reason == "too_large";
        assert_eq!(letter.is_whole(), !is_large, "{letter:?}");
        assert_eq!(letter.payload_bytes, payload.map_or(0, <[u8]>::len) as i64);
        let kept = payload.map(|payload| &payload[..payload.len().min(KEPT_BYTES)]);
        assert_eq!(letter.payload.as_deref(), kept, "payloads are kept as they came, large ones in part");
    }
    assert_eq!(published.rows.len(), bad.len() + 1, "all good documents are selected, the empty one is not");
    assert!(published.dead_letters.iter().all(|l| !l.detail.is_empty() && l.detail.len() < 300));
}

#[test]
fn endpoints_tell_the_state_and_sigterm_is_polite() {
    let broker = Broker::with_topic("http", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 100");
    let daemon = deployment.start();
    assert_eq!(daemon.get("/healthz"), (200, "ok\n".to_owned()));
    wait_for("readiness", || (daemon.get("/readyz").0 == 200).then_some(()));
    produce(&broker, 0, 1000);
    wait_decided(&deployment, 1000);
    // The catalog has it first.
    let status = wait_for("both partitions to be shown as published", || {
        let (code, status) = daemon.get("/status");
        assert_eq!(code, 200);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        (0..2).all(|i| status["partitions"][i]["published"] == 500).then_some(status)
    });
    assert_eq!(status["pipeline"], "test");
    assert_eq!(daemon.get("/nothing").0, 404);
    let (_, metrics) = daemon.get("/metrics");
    check_metrics(&metrics);
    for step in ["write", "stage", "upload", "commit"] {
        let times = format!("winnowd_publish_seconds_count{{step=\"{step}\"}}");
        wait_for("the time of each step", || (daemon.metric(&times) >= 1.0).then_some(()));
    }

    let second = deployment.try_start().err().expect("SQLite serves one process");
    assert!(second.contains("is in use by another process"), "{second}");

    assert_eq!(daemon.stop(), Some(0));
    // Nothing was given up, or left to the end of the grace.
    let log = deployment.log();
    assert!(!log.contains("did not finish within") && !log.contains("still busy"), "{log}");
    let list = deployment.winnowd(&["shards", "--json"]);
    let first: serde_json::Value = serde_json::from_slice(list.stdout.split(|&b| b == b'\n').next().unwrap()).unwrap();
    assert_eq!((&first["sequence"], first["windows"][0]["n_records"].as_u64()), (&1.into(), Some(100)));
    check_diagnostics(&first, &status);
}

/// What the manifest of a shard and `/status` say of windows of a hundred documents from three sources in turn.
fn check_diagnostics(manifest: &serde_json::Value, status: &serde_json::Value) {
    for window in manifest["windows"].as_array().unwrap().iter().chain([&status["last_window"]]) {
        let diagnostics = &window["diagnostics"];
        assert_eq!((&diagnostics["n_candidates"], &diagnostics["n_selected"]), (&100.into(), &10.into()), "{window}");
        let number = |name: &str| diagnostics[name].as_f64().unwrap_or_else(|| panic!("no {name} in {window}"));
        let size = number("effective_sample_size");
        assert!((1.0..=100.0).contains(&size) && number("effective_sample_share") == size / 100.0, "{window}");
        assert!((0.0..=1.0).contains(&number("top_k_overlap")), "{window}");
        let weights = &diagnostics["log_weights"];
        assert!(weights["min"].as_f64() < weights["median"].as_f64(), "{window}");
        assert!(weights["median"].as_f64() < weights["max"].as_f64(), "{window}");
        // All documents have 24 tokens.
        assert_eq!(diagnostics["weight_length_correlation"], serde_json::Value::Null);
        assert_eq!(diagnostics["is_collapsed"], false, "{window}");
        assert!(window["kl_reduction"].as_f64() > window["random_kl_reduction"].as_f64(), "{window}");
        assert_eq!(window.get("raw_version"), None);
    }
    let sum = |of: &serde_json::Value, what: &str| {
        of["sources"]["sources"].as_array().unwrap().iter().map(|source| source[what].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((sum(status, "documents"), sum(status, "selected")), (1000, 100), "{status}");
    let n_windows = manifest["windows"].as_array().unwrap().len() as u64;
    assert_eq!((sum(manifest, "documents"), sum(manifest, "selected")), (100 * n_windows, 10 * n_windows));
    let first = &status["sources"]["sources"][0];
    assert_eq!((&first["source"], &first["documents"]), (&"s0".into(), &334.into()), "{status}");
    assert_eq!((&status["raw_version"], &status["warning"]), (&serde_json::Value::Null, &serde_json::Value::Null));
}

/// Weights that leave nothing to chance are warned of, once, with the way out.
#[test]
fn a_collapsed_draw_is_warned_of_once() {
    let broker = Broker::with_topic("collapse", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 500\nselection.temperature = 0.01");
    let daemon = deployment.start();
    produce(&broker, 0, 4_000);
    wait_decided(&deployment, 4_000);
    assert_eq!(daemon.metric("winnowd_collapsed_windows_total"), 8.0);
    assert!(daemon.metric("winnowd_window_effective_sample_ratio") < 0.02);
    assert!(daemon.metric("winnowd_window_top_k_overlap_ratio") > 0.95);
    let weight = |point: &str| daemon.metric(&format!("winnowd_window_log_weight_nats{{point=\"{point}\"}}"));
    assert!(weight("min") < weight("p25") && weight("p25") < weight("p75") && weight("p75") < weight("max"));
    let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
    let warning = status["warning"].as_str().unwrap().to_owned();
    assert_eq!(daemon.stop(), Some(0));
    let log = deployment.log();
    assert_eq!(log.matches("the sample has collapsed").count(), 1, "{log}");
    assert!(warning.contains("50 of 500 documents") && log.contains(&warning), "{warning}");
    let (_, suggested) = warning.split_once("`selection.temperature = ").unwrap();
    let suggested = suggested.split_once('`').unwrap().0;

    // What the warning says helps.
    let deployment =
        Deployment::new(&broker, &format!("window.max_documents = 500\nselection.temperature = {suggested}"));
    let daemon = deployment.start();
    wait_decided(&deployment, 4_000);
    assert_eq!(daemon.metric("winnowd_collapsed_windows_total"), 0.0);
    let share = daemon.metric("winnowd_window_effective_sample_ratio");
    // A tenth of the window that was warned of; others have another heaviest document.
    assert!((0.03..0.5).contains(&share), "{share}");
    assert_eq!(daemon.stop(), Some(0));
    assert!(!deployment.log().contains("collapsed"), "{}", deployment.log());
}

/// By promtool, where it is installed.
fn check_metrics(metrics: &str) {
    use std::io::Write;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    match promtool {
        Ok(mut child) => {
            child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
        }
        Err(e) => println!("promtool was not run: {e}"),
    }
}

#[test]
fn memory_stays_within_the_budget() {
    let broker = Broker::with_topic("memory", 32);
    // 4 kB each: 1 GB on a real broker, as much as the in-process cluster keeps otherwise.
    let n_documents: u64 = if broker.is_real() { 256_000 } else { 32_000 };
    let producer = broker.producer();
    let filler = "thou query night table ".repeat(160);
    for i in 0..n_documents {
        let text = format!("{} {filler}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let payload = serde_json::json!({ "id": i, "text": text }).to_string();
        producer.send((i % 32) as i32, Some(payload.as_bytes()));
    }
    producer.flush();
    let deployment = Deployment::new(&broker, "memory.budget = \"256MiB\"\nshard.max_age = \"5s\"");
    let daemon = deployment.start();
    wait_decided(&deployment, n_documents);
    let peak = daemon.peak_memory();
    println!("peak resident size {} MiB", peak >> 20);
    assert!(peak < (256 + 150) << 20, "{} MiB with a budget of 256 MiB", peak >> 20);
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_bad_configuration_ends_with_64_and_every_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[selection]\nfraction = 2\n[kafka]\nbotstrap = \"x\"\n[http]\nlisten = \"nowhere\"\n")
        .unwrap();
    for command in ["run", "check", "migrate", "shards"] {
        let output = winnowd(&[command, "-c", &file.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{command}: {said}");
        for expected in
            ["3 mistakes", "`selection.fraction` = `2`", "`kafka.botstrap` = `x`", "`http.listen` = `nowhere`"]
        {
            assert!(said.contains(expected), "{command}: {said}");
        }
    }
    std::fs::write(&file, "[kafka.properties]\n\"no.such.setting\" = \"x\"\n").unwrap();
    let output = winnowd(&["run", "-c", &file.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(64) && said.contains("`kafka.properties.no.such.setting`"), "{said}");
    let output = winnowd(&["run"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`model.path` = ``: must be set"));
    assert_eq!(winnowd(&["run", "--no-such-option"]).status.code(), Some(64));
    assert_eq!(winnowd(&["--version"]).status.code(), Some(0));
}

#[test]
fn fit_check_and_migrate_work_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("target.jsonl"), "{\"text\":\"select from table\"}\n").unwrap();
    let raw = zstd::encode_all(&b"{\"text\":\"king of the night\"}\n{\"text\":\"query\"}\n"[..], 1).unwrap();
    std::fs::write(path("raw.jsonl.zst"), raw).unwrap();
    let fit =
        winnowd(&["fit", "--target", &path("target.jsonl"), "--raw", &path("raw.jsonl.zst"), "--out", &path("m.wnw")]);
    let said = String::from_utf8_lossy(&fit.stdout).into_owned();
    assert!(fit.status.success() && said.contains("raw         2 documents, 8 n-grams"), "{said}");
    std::fs::write(
        path("c.toml"),
        format!("model.path = \"{}\"\ncatalog.url = \"sqlite://{}\"", path("m.wnw"), path("c.db")),
    )
    .unwrap();
    let check = winnowd(&["check", "-c", &path("c.toml")]);
    assert!(String::from_utf8_lossy(&check.stdout).contains("1 target and 2 raw documents"), "{check:?}");
    // Strata of the weight are warned of, by who checks and by who starts: this one ends at a catalog without a schema.
    let strata = "[selection]\nselector = \"coverage\"\nimportance = \"weight\"";
    let of_weight = format!(
        "model.path = \"{}\"\ncatalog.url = \"sqlite://{}\"\ncatalog.migrate = false\n{strata}",
        path("m.wnw"),
        path("w.db")
    );
    std::fs::write(path("w.toml"), of_weight).unwrap();
    let warning = "`selection.importance = weight` spreads the selection over all weights";
    let checked = winnowd(&["check", "-c", &path("w.toml")]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains(&format!("WARNING: {warning}")), "{checked:?}");
    let started = winnowd(&["run", "-c", &path("w.toml")]);
    assert!(!started.status.success() && String::from_utf8_lossy(&started.stderr).contains(warning), "{started:?}");
    let migrate = || String::from_utf8_lossy(&winnowd(&["migrate", "-c", &path("c.toml")]).stdout).into_owned();
    assert!(migrate().contains("16 migrations applied"));
    assert!(migrate().contains("is up to date"));

    std::fs::write(path("m.wnw"), "not a model").unwrap();
    let check = winnowd(&["check", "-c", &path("c.toml")]);
    assert_eq!(check.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&check.stderr).contains("not a model"), "{check:?}");
    let fit = winnowd(&["fit", "--target", &path("none.jsonl"), "--raw", &path("none.jsonl"), "--out", &path("m.wnw")]);
    assert_eq!(fit.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&fit.stderr).contains("none.jsonl"), "{fit:?}");
}

#[test]
fn the_demo_selects_what_was_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo").to_string_lossy().into_owned();
    for _ in 0..2 {
        let output = winnowd(&["demo", "--out", &out]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("1905 records in") && said.contains("3 dead letters"), "{said}");
        let nats = |line: &str| -> f64 {
            let line = said.lines().find(|l| l.contains(line)).unwrap();
            line.split_whitespace().rev().nth(1).unwrap().parse().unwrap()
        };
        assert!(nats("this selection") > nats("random, same size") + 0.1, "{said}");
    }
    let listed = winnowd(&["shards", "-c", &format!("{out}/winnowd.toml")]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains(".parquet"), "{listed:?}");
    std::fs::write(format!("{out}/precious"), "").unwrap();
    let refused = winnowd(&["demo", "--out", &out]);
    assert_eq!(refused.status.code(), Some(64));
}

/// Another member joins the group, takes partitions away without deciding anything, and goes; the daemon gets them back.
#[test]
fn partitions_that_go_and_come_back_are_decided_once() {
    let broker = Broker::with_topic("rival", 4);
    let deployment = Deployment::new(&broker, "window.max_documents = 300\nselection.fraction = 0.5");
    let daemon = deployment.start();
    let mut produced = produce(&broker, 0, 4_000);
    for round in 1..=2u64 {
        wait_for("all partitions", || (daemon.metric("winnowd_assigned_partitions") == 4.0).then_some(()));
        let rival = broker.rival(&deployment);
        wait_for("partitions of the rival", || {
            rival.poll(Duration::from_millis(50));
            (rival.assignment().expect("an assignment").count() > 0).then_some(())
        });
        add(&mut produced, produce(&broker, round * 4_000, 4_000));
        // Its polls keep it in the group; nothing of it is ever committed.
        for _ in 0..20 {
            rival.poll(Duration::from_millis(20));
        }
        rival.unsubscribe();
        drop(rival);
    }
    wait_decided(&deployment, 12_000);
    assert!(daemon.metric("winnowd_rebalances_total{kind=\"revoked\"}") >= 1.0, "{}", deployment.log());
    assert_eq!(daemon.metric("winnowd_fenced_publications_total"), 0.0, "drained partitions are not fenced");
    assert_eq!(daemon.metric("winnowd_session_restarts_total"), 0.0, "{}", deployment.log());
    assert_eq!(daemon.stop(), Some(0));
    deployment.published().assert_exactly_once(&produced);
}

/// Retention removes offsets that were never decided: the daemon ends and says so, it never jumps.
#[test]
fn a_retention_gap_is_an_error_and_never_a_silent_jump() {
    let broker = Broker::with_topic("gap", 1);
    let deployment = Deployment::new(&broker, "window.max_documents = 100");
    produce(&broker, 0, 1_000);
    let daemon = deployment.start();
    wait_decided(&deployment, 1_000);
    assert_eq!(daemon.stop(), Some(0));
    produce(&broker, 1_000, 1_000);
    if broker.is_real() {
        broker.delete_before(0, 1_500);
    } else {
        // Beyond the 5 MiB that the in-process cluster keeps.
        let producer = broker.producer();
        let filler = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
        (0..80).for_each(|_| producer.send(0, Some(filler.as_bytes())));
        producer.flush();
    }
    let mut daemon = deployment.start();
    let status = wait_for("the end of the daemon", || daemon.child.try_wait().expect("a status"));
    assert_eq!(status.code(), Some(69), "{}", deployment.log());
    let log = deployment.log();
    assert!(log.contains("/0: offset 1000 is not in the log, which holds "), "{log}");
    assert_eq!(deployment.totals().n_records, 1_000);
}

#[test]
fn a_partition_begins_where_the_start_policy_says_and_only_once() {
    let broker = Broker::with_topic("start", 1);
    produce(&broker, 0, 500);
    let deployment = Deployment::new(&broker, "kafka.start = \"latest\"\nwindow.max_documents = 50");
    let daemon = deployment.start();
    wait_for("the group", || (daemon.get("/readyz").0 == 200).then_some(()));
    daemon.kill_9();
    // The end was stored when the partition was taken over first: what came since belongs to us.
    produce(&broker, 500, 100);
    let daemon = deployment.start();
    wait_decided(&deployment, 100);
    assert_eq!(daemon.stop(), Some(0));
    let windows = deployment.published().windows;
    assert_eq!((windows[0].interval.from, windows.last().unwrap().interval.to), (500, 600));

    if broker.is_real() {
        // The in-process cluster cannot look offsets up by time.
        let deployment = Deployment::new(&broker, "kafka.start = \"2001-01-01T00:00:00Z\"\nwindow.max_documents = 50");
        let daemon = deployment.start();
        wait_decided(&deployment, 600);
        assert_eq!(daemon.stop(), Some(0));
        let deployment = Deployment::new(&broker, "kafka.start = \"2101-01-01T00:00:00Z\"\nwindow.max_documents = 50");
        let daemon = deployment.start();
        wait_for("the group", || (daemon.get("/readyz").0 == 200).then_some(()));
        produce(&broker, 600, 10);
        wait_decided(&deployment, 10);
        // The manifest follows the transaction.
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(deployment.published().windows[0].interval.from, 600);
    }
}

/// The scratch folder cannot be written for a while: nothing is published, nothing is lost, and it goes on by itself.
#[test]
fn a_scratch_folder_that_goes_away_and_comes_back_loses_nothing() {
    let broker = Broker::with_topic("scratch", 2);
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("here");
    std::fs::create_dir(&folder).unwrap();
    let extra = format!("window.max_documents = 100\nsink.scratch_dir = \"{}\"", folder.display());
    let deployment = Deployment::new(&broker, &extra);
    let daemon = deployment.start();
    let mut produced = produce(&broker, 0, 1_000);
    wait_decided(&deployment, 1_000);
    std::fs::remove_dir_all(&folder).unwrap();
    add(&mut produced, produce(&broker, 1_000, 1_000));
    let restarts = || daemon.metric("winnowd_session_restarts_total");
    wait_for("a new beginning", || (restarts() >= 1.0).then_some(()));
    let (_, status) = daemon.get("/status");
    assert!(status.contains("scratch file in"), "{status}");
    std::fs::create_dir(&folder).unwrap();
    wait_decided(&deployment, 2_000);
    assert_eq!(daemon.stop(), Some(0));
    deployment.published().assert_exactly_once(&produced);
}

/// A manifest of another pipeline, or of a catalog that was lost, is never overwritten.
#[test]
fn check_connect_names_everything_that_cannot_be_used() {
    let broker = Broker::with_topic("connect", 2);
    let deployment = Deployment::new(&broker, "");
    let sound = deployment.winnowd(&["check", "--connect"]);
    let said = String::from_utf8_lossy(&sound.stdout);
    assert!(sound.status.success(), "{said}");
    for part in [&format!("kafka      {} (2 partitions)", broker.topic), "will be created", "writes conditionally"] {
        assert!(said.contains(part), "`{said}` does not say `{part}`");
    }
    assert!(!deployment.folder.path().join("catalog.db").exists());

    let toml = std::fs::read_to_string(&deployment.config).unwrap();
    let out = format!("{}/out", deployment.folder.path().display());
    let broken =
        toml.replace(&format!("\"{}\"", broker.topic), "\"no-such-topic\"").replace(&out, "/proc/no-such-folder");
    std::fs::write(&deployment.config, broken).unwrap();
    std::fs::write(deployment.folder.path().join("catalog.db"), "no database at all, but long enough".repeat(9))
        .unwrap();
    let failed = deployment.winnowd(&["check", "--connect"]);
    let said = String::from_utf8_lossy(&failed.stdout);
    assert_eq!(failed.status.code(), Some(69), "{said}");
    for part in ["there is no topic `no-such-topic`", "catalog    FAILED", "not a database", "store      FAILED"] {
        assert!(said.contains(part), "`{said}` does not say `{part}`");
    }
}

#[test]
fn orphans_are_collected_and_damaged_shards_are_named() {
    let broker = Broker::with_topic("gc", 1);
    let deployment = Deployment::new(&broker, "");
    let produced = produce(&broker, 0, 300);
    let daemon = deployment.start();
    wait_decided(&deployment, 300);
    let while_running = deployment.winnowd(&["gc", "--grace", "0s"]);
    assert_eq!(while_running.status.code(), Some(64), "SQLite serves one process");
    assert_eq!(daemon.stop(), Some(0));

    // As a crash between upload and commit leaves it; and a file that is none of ours.
    let shards = deployment.folder.path().join("out/shards");
    for name in ["orphan.parquet", "foreign.parquet"] {
        std::fs::write(shards.join(name), "x").unwrap();
    }
    block_on(async {
        let catalog = SqlCatalog::open(&deployment.catalog, Access::Write).await.unwrap();
        catalog.stage("test", "orphan", Some("shards/orphan.parquet")).await.unwrap();
        catalog.close().await;
    });
    let gc = |grace: &str| {
        let output = deployment.winnowd(&["gc", "--grace", grace]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(gc("1h").starts_with("0 objects deleted, of 0 shards"));
    assert!(gc("0s").contains("deleted shards/orphan.parquet"));
    assert!(gc("0s").starts_with("0 objects deleted, of 1 shards"));
    assert!(!shards.join("orphan.parquet").exists() && shards.join("foreign.parquet").exists());
    deployment.published().assert_exactly_once(&produced);

    let verify = || deployment.winnowd(&["shards", "--verify"]);
    let sound = verify();
    assert!(sound.status.success() && String::from_utf8_lossy(&sound.stdout).contains("are what the catalog says"));
    let manifest = std::fs::read_to_string(deployment.folder.path().join("out/manifest.jsonl")).unwrap();
    let first: winnowd::manifest::ManifestEntry = serde_json::from_str(manifest.lines().next().unwrap()).unwrap();
    let file = deployment.folder.path().join("out").join(&first.path);
    let mut content = std::fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    let said = |content: Option<&[u8]>| {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let output = verify();
        assert_eq!(output.status.code(), Some(69));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(said(Some(&content)).contains(&format!("{} has another digest", first.path)));
    assert!(said(Some(b"torn")).contains(&format!("has 4 bytes, not {}", first.bytes)));
    assert!(said(None).contains("is missing"));
}

#[test]
fn a_foreign_manifest_is_refused() {
    let broker = Broker::with_topic("foreign", 1);
    let deployment = Deployment::new(&broker, "");
    let out = deployment.folder.path().join("out");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("manifest.jsonl"), "{\"sequence\":1}\n").unwrap();
    let mut daemon = deployment.try_start().expect("it starts before it looks");
    let status = wait_for("the end of the daemon", || daemon.child.try_wait().expect("a status"));
    assert_eq!(status.code(), Some(64));
    assert!(deployment.log().contains("lists shards that this catalog does not know"), "{}", deployment.log());
    assert_eq!(std::fs::read_to_string(out.join("manifest.jsonl")).unwrap(), "{\"sequence\":1}\n");
}

/// Transaction markers and aborted records occupy offsets at the very end; they are passed, and the lag reaches zero.
#[test]
fn control_records_are_stepped_over() {
    let broker = Broker::with_topic("control", 1);
    if !broker.is_real() {
        println!("the in-process cluster has no transaction markers");
        return;
    }
    let deployment = Deployment::new(&broker, "window.max_documents = 50\nselection.fraction = 1.0");
    let daemon = deployment.start();
    let transactional = broker.transactional_producer();
    for (round, commit) in [true, false, true, false].into_iter().enumerate() {
        transactional.transaction(commit, |producer| {
            (0..25).for_each(|i| producer.send(0, Some(&document(100 * round as u64 + i))));
        });
    }
    // 4 × (25 records and a marker).
    let published = |daemon: &DaemonProcess| {
        let status: serde_json::Value = serde_json::from_str(&daemon.get("/status").1).unwrap();
        status["partitions"][0]["published"].as_i64()
    };
    wait_for("progress past the last marker", || (published(&daemon) == Some(104)).then_some(()));
    let lag =
        "winnowd_lag_records{partition=\"0\",topic=\"TOPIC\",until=\"published\"}".replace("TOPIC", &broker.topic);
    wait_for("no lag", || (daemon.get("/metrics").1.contains(&lag) && daemon.metric(&lag) == 0.0).then_some(()));
    assert_eq!(daemon.stop(), Some(0));
    let published = deployment.published();
    assert_eq!((published.totals.n_records, published.rows.len()), (50, 50));
    assert_eq!(published.windows.last().unwrap().interval.to, 104);
}
