//! What operators do and see: retention gaps, offsets, replays. On `KAFKA_BOOTSTRAP`, or else the in-process cluster in a process
//! of its own, which can do a part.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Output;

use support::*;
use winnowd::catalog::GapReason;

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

/// Standard output and error of a command that ended with this code.
fn said(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
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
    wait_for("gaps", || (deployment.gaps().len() == 2).then_some(()));
    let found = deployment.gaps();
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
        deployment.assert_covered(&[700; 3]);
    }
}

/// Retention takes records that were read and wait for publication, and the ones behind them: the gap begins at the checkpoint.
#[test]
fn a_gap_behind_unpublished_records_begins_at_the_checkpoint() {
    let broker = Broker::with_topic("skip-read", 1);
    if !broker.is_real() {
        println!("the in-process cluster deletes no records on demand");
        return;
    }
    let extra = "kafka.on_lost_offset = \"skip\"\nwindow.max_documents = 500\nwindow.idle_timeout = \"1h\"\n\
                 kafka.session_timeout = \"30s\"";
    let deployment = Deployment::new(&broker, extra);
    let toml = std::fs::read_to_string(&deployment.config).unwrap();
    let toml = toml.replacen("window.idle_timeout = \"1s\"\n", "", 1);
    std::fs::write(&deployment.config, toml).unwrap();
    let daemon = deployment.start();
    produce(&broker, 0, 300);
    wait_for("the records to be read", || (daemon.metric("winnowd_consumed_records_total") == 300.0).then_some(()));
    daemon.signal("STOP");
    // Its fetch that waits at the end comes back empty: as one does that began later and waits longer.
    broker.wait_for_empty_fetch(0, 300);
    produce(&broker, 300, 800);
    broker.delete_before(0, 450);
    daemon.signal("CONT");
    wait_decided(&deployment, 500);
    let found = deployment.gaps();
    assert_eq!(found.iter().map(|gap| (gap.interval.from, gap.interval.to)).collect::<Vec<_>>(), [(0, 450)]);
    let log = deployment.log();
    assert!(log.contains("its checkpoint does not stand at the lost offset 300"), "{log}");
    assert_eq!(daemon.metric("winnowd_skipped_offsets_total"), 450.0);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(deployment.published().windows[0].interval.from, 450);
}

/// A topic that was deleted and made again is another one, wherever its log ends: no policy goes on there.
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
    // A restart finds the same topic, and whoever reads it anew the new one.
    run_until(&deployment, 500);
    broker.recreate_topic();
    for more in [200, 700] {
        // Behind the end of the log, and within it: offsets that look right and name other documents.
        produce(&broker, 0, more);
        let mut daemon = deployment.start();
        let status = wait_for("the end of the daemon", || daemon.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(69), "{}", deployment.log());
    }
    let log = deployment.log();
    let expected = format!("topic `{}` was deleted and made again: its id is `", broker.topic);
    assert_eq!(log.matches(&expected).count(), 2, "{log}");
    assert!(log.contains("go on under a new pipeline.name"), "{log}");
    assert_eq!((deployment.totals().n_records, deployment.gaps().len()), (500, 0));

    let show = said(&deployment.winnowd(&["offsets", "show"]), 0);
    assert!(show.contains(&expected), "{show}");
    let reset = said(&deployment.winnowd(&["offsets", "reset", "--to", "latest", "--dry-run"]), 64);
    assert!(reset.contains(&expected), "{reset}");
    let (replay, counts) = verified(&deployment, &[], 0);
    assert_eq!(counts, [0, 0, 5], "{replay}");
    assert!(replay.contains("its topic was deleted and made again"), "{replay}");

    // What the message says.
    let toml = std::fs::read_to_string(&deployment.config).unwrap();
    let toml = toml.replace("pipeline.name = \"test\"", "pipeline.name = \"next\"").replace("/out\"", "/next\"");
    std::fs::write(&deployment.config, toml).unwrap();
    let daemon = deployment.start();
    wait_for("the new pipeline", || {
        (daemon.metric("winnowd_catalog_documents{decision=\"selected\"}") == 90.0).then_some(())
    });
    assert_eq!(daemon.stop(), Some(0));
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
    assert_eq!(deployment.gaps(), [], "it stayed where it was");

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
    assert_eq!(deployment.gaps(), []);
    let moved = json_lines(&reset(&["--to", "latest", "--partition", "1", "--json"]));
    assert_eq!(
        (moved.len(), &moved[0]["act"], &moved[0]["from"], &moved[0]["to"]),
        (1, &"skip".into(), &300.into(), &500.into())
    );
    assert!(said(&reset(&["--to", "offset:350"]), 0).contains("/1: 500 → 350, back over offsets that are not decided"));
    let found: Vec<_> =
        deployment.gaps().iter().map(|gap| (gap.at.partition, gap.interval.from, gap.interval.to)).collect();
    assert_eq!(found, [(0, 300, 350), (1, 300, 350)]);
    assert!(deployment.gaps().iter().all(|gap| gap.reason == GapReason::Reset));
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

/// What `replay --verify` says at its end, after it has ended with this code.
fn verified(deployment: &Deployment, arguments: &[&str], code: i32) -> (String, [u64; 3]) {
    let said = said(&deployment.winnowd(&[&["replay", "--verify"], arguments].concat()), code);
    let line =
        said.lines().find(|line| line.contains("are the same to the last bit")).unwrap_or_else(|| panic!("{said}"));
    let numbers: Vec<u64> = line.split([' ', ';']).filter_map(|word| word.parse().ok()).collect();
    let first = [numbers[0], numbers[1], numbers[2]];
    (said, first)
}

/// Every published window is decided again as it was: whichever way it was closed, with bad records and control records in
/// it, whatever the configuration says of selection now.
#[test]
fn published_windows_are_the_same_when_they_are_decided_again() {
    let broker = Broker::with_topic("replay", 3);
    let extra = "window.max_documents = 150\nselection.fraction = 0.3\nshard.max_rows = 100";
    let database = Database::create().filter(|_| broker.is_real());
    let store = Bucket::create().filter(|_| broker.is_real());
    let deployment = Deployment::with(&broker, extra, database.as_ref().map(|database| &database.url), store);
    let mut n_records = 0;
    if broker.is_real() {
        // Aborted records and markers, at the beginning, in the middle and at the end of windows.
        let transactional = broker.transactional_producer();
        for (round, commit) in [false, true, false, true, false].into_iter().enumerate() {
            transactional.transaction(commit, |producer| {
                (0..70).for_each(|i| producer.send(0, Some(&document(10_000 + 100 * round as u64 + i))));
            });
            n_records += if commit { 70 } else { 0 };
        }
    }
    produce(&broker, 0, 3_000);
    let producer = broker.producer();
    let long = serde_json::json!({ "text": "query night ".repeat(30_000) }).to_string();
    for bad in [&b"{"[..], br#"{"text":1}"#, br#"{"text":"too short"}"#, long.as_bytes()] {
        (0..3).for_each(|partition| producer.send(partition, Some(bad)));
    }
    producer.flush();
    n_records += 3_012;
    run_until(&deployment, n_records);
    produce(&broker, 3_000, 100);
    n_records += 100;
    run_until(&deployment, n_records);

    let published = deployment.published();
    let n_windows = published.windows.len() as u64;
    let reasons: std::collections::BTreeSet<_> = published.windows.iter().map(|w| w.closed_by.as_str()).collect();
    assert!(reasons.contains("documents") && reasons.contains("idle"), "{reasons:?}");
    // What is selected from now on is something else.
    let toml = std::fs::read_to_string(&deployment.config).unwrap();
    std::fs::write(&deployment.config, toml.replace("selection.seed = 7", "selection.seed = 8")).unwrap();
    let (said_all, all) = verified(&deployment, &[], 0);
    println!("{}", said_all.trim());
    assert_eq!(all, [n_windows, 0, 0], "{said_all}");
    assert!(said_all.contains(&format!("{n_records} records were decided again")), "{said_all}");
    assert!(said_all.contains(&format!("{} rows compared", published.rows.len())), "{said_all}");
    let of_partition = published.windows.iter().filter(|w| w.at.partition == 1).count() as u64;
    assert_eq!(verified(&deployment, &["--partition", "1"], 0).1, [of_partition, 0, 0]);
    let between = published.windows.iter().filter(|w| w.interval.to > 200 && w.interval.from < 400).count() as u64;
    assert_eq!(verified(&deployment, &["--from", "200", "--to", "400"], 0).1, [between, 0, 0]);

    let window = published.windows.iter().find(|w| w.at.partition == 2 && w.n_selected > 0).unwrap();
    assert_eq!(verified(&deployment, &["--window", &window.id()], 0).1, [1, 0, 0]);
    let shown = json_lines(&deployment.winnowd(&["replay", "--window", &window.id(), "--json"]));
    let mut rows: Vec<_> = published.rows.iter().filter(|row| row.window == window.id()).collect();
    rows.sort_by_key(|row| row.offset);
    let selected = shown[0]["selected"].as_array().unwrap();
    assert_eq!((selected.len(), selected.len() as u64), (rows.len(), window.n_selected));
    for (row, again) in rows.iter().zip(selected) {
        assert_eq!((again["id"].as_str(), again["offset"].as_i64()), (Some(&*row.id), Some(row.offset)));
        assert_eq!(again["inclusion_probability"].as_f64(), Some(row.inclusion_probability));
    }
    let table = said(&deployment.winnowd(&["replay", "--window", &window.id()]), 0);
    assert!(table.contains(&format!("{} selected", rows.len())) && table.contains(&rows[0].id), "{table}");
    let unknown = said(&deployment.winnowd(&["replay", "--window", &format!("{}/0/0-7", broker.topic)]), 64);
    assert!(unknown.contains("has published no window"), "{unknown}");
    assert!(said(&deployment.winnowd(&["replay"]), 64).contains("--verify"));
}

/// The same where windows are closed by the time of their records, and the other selector weighs means.
#[test]
fn windows_of_other_policies_are_the_same_too() {
    let broker = Broker::with_topic("replay-policies", 2);
    let extra = "window.max_age = \"1s\"\nwindow.max_bytes = \"50KiB\"\nselection.selector = \"top_k\"\n\
                 selection.length_normalise = true\nselection.temperature = 0.3";
    let deployment = Deployment::new(&broker, extra);
    // Time between records is what this is about: many at once, and some a little later.
    let producer = broker.producer();
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    for i in 0..1_000 {
        let timestamp_ms = now_ms - if i < 900 { 1_500 } else { 0 };
        producer.send_at((i % 2) as i32, Some(&document(i)), Some(timestamp_ms));
    }
    producer.flush();
    run_until(&deployment, 1_000);
    let windows = deployment.published().windows;
    let reasons: std::collections::BTreeSet<_> = windows.iter().map(|window| window.closed_by.as_str()).collect();
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), ["age", "bytes", "idle"]);
    let (said, counts) = verified(&deployment, &[], 0);
    assert_eq!(counts, [windows.len() as u64, 0, 0], "{said}");
}

/// Changes one row of a shard by the last bit of its weight, and gives its id.
fn tamper(path: &std::path::Path) -> String {
    use arrow::array::{Array, ArrayRef, Float64Array, StringArray};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let file = std::fs::File::open(path).unwrap();
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().collect();
    let mut writer = parquet::arrow::ArrowWriter::try_new(
        std::fs::File::create(path).unwrap(),
        winnowd::sink::schema(&[], &[]),
        None,
    )
    .unwrap();
    let mut id = None;
    for batch in batches {
        let batch = batch.unwrap();
        let column = batch.schema().index_of("log_importance_weight").unwrap();
        let weights = batch.column(column).as_any().downcast_ref::<Float64Array>().unwrap();
        let mut weights: Vec<f64> = weights.values().to_vec();
        let ids = batch.column_by_name("id").unwrap().as_any().downcast_ref::<StringArray>().unwrap();
        let last = batch.num_rows() - 1;
        if id.is_none() {
            weights[last] = f64::from_bits(weights[last].to_bits() ^ 1);
            id = Some(ids.value(last).to_owned());
        }
        let mut columns = batch.columns().to_vec();
        columns[column] = std::sync::Arc::new(Float64Array::from(weights)) as ArrayRef;
        writer.write(&arrow::record_batch::RecordBatch::try_new(batch.schema(), columns).unwrap()).unwrap();
    }
    writer.close().unwrap();
    id.unwrap()
}

#[test]
fn a_bit_that_differs_a_missing_shard_and_deleted_records_are_told_apart() {
    let broker = Broker::with_topic("tamper", 2);
    let deployment = Deployment::new(&broker, "window.max_documents = 100\nshard.max_rows = 30");
    produce(&broker, 0, 1_200);
    run_until(&deployment, 1_200);
    assert_eq!(verified(&deployment, &[], 0).1, [12, 0, 0]);

    let manifest = std::fs::read_to_string(deployment.folder.path().join("out/manifest.jsonl")).unwrap();
    let shards: Vec<winnowd::manifest::ManifestEntry> =
        manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shard = deployment.folder.path().join("out").join(&shards[1].path);
    let id = tamper(&shard);
    let (said, counts) = verified(&deployment, &[], 69);
    assert_eq!(counts, [11, 1, 0], "{said}");
    assert!(said.contains("log importance weight: published "), "{said}");
    assert_eq!(said.matches(": published ").count(), 1, "only {id} differs: {said}");
    let first_line = said.lines().next().unwrap();
    assert!(first_line.ends_with(" differs:"), "differences come first: {said}");

    std::fs::remove_file(&shard).unwrap();
    let (said, counts) = verified(&deployment, &[], 69);
    let n_lost = shards[1].windows.len() as u64;
    assert_eq!(counts, [12 - n_lost, n_lost, 0], "{said}");
    assert!(said.contains(&format!("{} is missing", shards[1].path)), "{said}");

    if broker.is_real() {
        broker.delete_before(0, 250);
        let is_first = |window: &str| ["/0/0-100", "/0/100-200", "/0/200-300"].iter().any(|id| window.ends_with(id));
        let n_lost = shards[1].windows.iter().filter(|window| !is_first(window)).count() as u64;
        let (said, counts) = verified(&deployment, &[], if n_lost > 0 { 69 } else { 0 });
        assert_eq!(counts, [9 - n_lost, n_lost, 3], "{said}");
        assert!(
            said.contains("/0/200-300 cannot be verified:\n  its records are deleted: the log holds 250..600"),
            "{said}"
        );
    }
}

/// Windows of an adaptive raw distribution are decided again with the version that they name, as long as that is kept.
#[test]
fn windows_are_decided_again_with_the_counts_that_they_name() {
    let broker = Broker::with_topic("versions", 2);
    let adaptive = |history: &str| {
        let extra = format!(
            "model.raw = \"adaptive\"\nmodel.raw_half_life_ngrams = 20000\nmodel.raw_prior_ngrams = 10000\n\
             model.raw_history_bytes = \"{history}\"\nwindow.max_documents = 100\nshard.max_rows = 20"
        );
        Deployment::new(&broker, &extra)
    };
    produce(&broker, 0, 4_000);
    let deployment = adaptive("16MiB");
    run_until(&deployment, 4_000);
    let windows = deployment.published().windows;
    let versions: std::collections::BTreeSet<_> = windows.iter().map(|window| window.raw_version).collect();
    assert!(versions.len() > 1 && !versions.contains(&None), "{versions:?}");
    let (said, counts) = verified(&deployment, &[], 0);
    assert_eq!(counts, [windows.len() as u64, 0, 0], "{said}");

    let deployment = adaptive("1B");
    run_until(&deployment, 4_000);
    let (said, counts) = verified(&deployment, &[], 0);
    assert!(counts[2] > 0 && counts[1] == 0, "{said}");
    assert!(said.contains("of the raw distribution is forgotten (model.raw_history_bytes)"), "{said}");
}

/// 256 MB of records in 64 windows: what is held does not grow with the stream.
#[test]
fn a_replay_holds_one_window() {
    let broker = Broker::with_topic("replay-memory", 4);
    if !broker.is_real() {
        println!("the in-process cluster keeps 5 MiB a partition");
        return;
    }
    let n_documents = 64_000;
    let producer = broker.producer();
    let filler = "thou query night table ".repeat(160);
    for i in 0..n_documents {
        let text = format!("{} {filler}", (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        producer.send(i % 4, Some(serde_json::json!({ "id": i, "text": text }).to_string().as_bytes()));
    }
    producer.flush();
    let deployment = Deployment::new(&broker, "window.max_documents = 1000\nshard.max_age = \"5s\"");
    run_until(&deployment, n_documents as u64);
    let mut replay = winnowd_command()
        .args(["replay", "--verify", "-c"])
        .arg(&deployment.config)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = wait_for("the replay", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", replay.id())).unwrap_or_default();
        let kilobytes =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = kilobytes.unwrap_or(0u64).max(peak);
        replay.try_wait().unwrap()
    });
    let said = std::io::read_to_string(replay.stdout.take().unwrap()).unwrap();
    println!("{}; peak resident size {} MiB", said.trim(), peak >> 10);
    assert!(status.success() && said.starts_with("64 windows are the same to the last bit, 0 differ"), "{said}");
    assert!(peak < 160 << 10, "{} MiB", peak >> 10);
}
