//! A store that fails and disks that are full, under a worker that nobody restarts.
//!
//! The store takes part where `S3_ENDPOINT` names one; small disks are mounted where the test may mount.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::*;
use winnowd::config::CatalogUrl;

/// See [`support::embedded_broker_process`]: a part of the other tests, not a test.
#[test]
fn embedded_broker_process() {
    support::embedded_broker_process();
}

const PARTITIONS: i32 = 4;

/// One kind of fault.
struct Case {
    name: &'static str,
    fault: Fault,
    method: &'static str,
    path: &'static str,
    /// Heals by itself after so many; else it lasts until the worker has said what is wrong.
    n: Option<usize>,
    /// What the log then says.
    says: &'static str,
}

const SHARDS: &str = "/shards/";
const MANIFEST: &str = "manifest.jsonl";

fn lasting(name: &'static str, fault: Fault, method: &'static str, path: &'static str, says: &'static str) -> Case {
    Case { name, fault, method, path, n: None, says }
}

fn passing(name: &'static str, fault: Fault, method: &'static str, path: &'static str, n: usize) -> Case {
    Case { name, fault, method, path, n: Some(n), says: "" }
}

#[test]
fn a_store_that_fails_loses_and_repeats_nothing() {
    let Some((bucket, proxy)) = Bucket::behind_proxy() else { return };
    let broker = Broker::with_topic("store", PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: on Apache Kafka only, where it takes a minute and not several");
        return;
    }
    let deployment = Deployment::with(&broker, "window.max_documents = 50\nshard.max_rows = 20", None, Some(bucket));
    let mut patient = Patient::new(deployment, broker);
    patient.feed(1_000);
    patient.wait_well();
    let slow = Fault::Slow(Duration::from_millis(1_500));
    let cases = [
        lasting("store answers 500", Fault::Status(500), "", "", "500 Internal Server Error"),
        lasting("store answers 503 to writes", Fault::Status(503), "PUT", "", "503 Service Unavailable"),
        lasting("store answers 429 to shards", Fault::Status(429), "PUT", SHARDS, "429 Too Many Requests"),
        lasting("credentials are revoked (403)", Fault::Status(403), "", "", "InvalidAccessKeyId"),
        lasting("store answers 412 to shards", Fault::Status(412), "PUT", SHARDS, "PreconditionFailed"),
        passing("store answers 412 to the manifest", Fault::Status(412), "PUT", MANIFEST, 3),
        passing("store is slow (3 s an answer)", slow, "", "", 5),
        passing("answers are truncated", Fault::Truncated, "", "", 12),
        passing("the manifest is refused (403)", Fault::Status(403), "", MANIFEST, 2),
        passing("the manifest is truncated when read", Fault::Truncated, "GET", MANIFEST, 4),
        passing("connections end before a request", Fault::CutBefore, "", "", 12),
        passing("connections end within a write", Fault::CutWithin, "PUT", "", 12),
        passing("answers to shards are lost", Fault::LostAnswer, "PUT", SHARDS, 12),
        passing("answers to the manifest are lost", Fault::LostAnswer, "PUT", MANIFEST, 4),
    ];
    let mut rows = Vec::new();
    for Case { name, fault, method, path, n, says } in cases {
        let (before, decided, log_end) = (proxy.injected(), patient.decided(), patient.deployment.log().len());
        proxy.inject(fault, method, path, n.unwrap_or(usize::MAX));
        patient.feed(1_000);
        if let Some(n) = n {
            wait_for(name, || {
                // Shards go on coming until every fault has happened.
                if patient.decided() == patient.sent {
                    patient.feed(50);
                }
                (proxy.injected() >= before + n).then_some(())
            });
        } else {
            let failures = "winnowd_publish_failures_total{step=\"upload\"}";
            let enough = patient.daemon.metric(failures) + 2.0;
            patient.wait_stalled("upload", "store cannot be written to");
            wait_for(failures, || (patient.daemon.metric(failures) >= enough).then_some(()));
            let log = wait_for(says, || {
                let log = patient.deployment.log().split_off(log_end);
                log.contains(says).then_some(log)
            });
            assert!(log.contains("; trying again in "), "{name}:\n{log}");
            assert!(patient.decided() < decided + 1_000, "{name}: nothing is published meanwhile");
        }
        let began = Instant::now();
        proxy.heal();
        patient.wait_well();
        rows.push((name, proxy.injected() - before, began.elapsed()));
    }
    let (_, sent) = patient.discharge_undisturbed();
    rows.iter().for_each(|(name, injected, recovery)| report_fault(name, *injected, sent, *recovery));
}

/// Credentials that are wrong at the start are no reason to end: somebody is about to put them right.
#[test]
fn a_worker_that_the_store_refuses_at_the_start_says_so_and_begins_by_itself() {
    let Some((bucket, proxy)) = Bucket::behind_proxy() else { return };
    let broker = Broker::with_topic("refused", PARTITIONS);
    let deployment = Deployment::with(&broker, "window.max_documents = 50\nshard.max_rows = 20", None, Some(bucket));
    proxy.inject(Fault::Status(403), "", "", usize::MAX);
    let mut patient = Patient::new(deployment, broker);
    patient.feed(200);
    let restarts = "winnowd_session_restarts_total";
    wait_for(restarts, || (patient.daemon.metric(restarts) >= 1.0).then_some(()));
    let (code, body) = patient.daemon.get("/readyz");
    assert!(code == 503 && body.contains("store cannot be written to"), "{code}: {body}");
    assert_eq!(patient.daemon.get("/healthz").0, 200);
    let log = patient.deployment.log();
    assert!(log.contains("403 Forbidden") && log.contains("beginning again at the checkpoints in "), "{log}");
    assert_one_line_each(&log);
    let began = Instant::now();
    proxy.heal();
    patient.wait_well();
    let recovery = began.elapsed();
    assert_eq!(patient.daemon.stop(), Some(0));
    patient.deployment.published().assert_exactly_once(&patient.produced);
    report_fault("credentials are refused at the start", proxy.injected(), patient.sent, recovery);
}

/// Files beyond one part go up in several requests, and what is left of an upload that failed is cleared away.
#[test]
fn an_upload_in_parts_that_fails_begins_again_and_leaves_nothing() {
    let Some((bucket, proxy)) = Bucket::behind_proxy() else { return };
    let broker = Broker::with_topic("parts", PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster does not keep enough for a shard of several parts");
        return;
    }
    let extra = "selection.fraction = 1.0\nwindow.max_documents = 5\nshard.max_age = \"1h\"\nshard.max_rows = 20";
    let deployment = Deployment::with(&broker, extra, None, Some(bucket));
    let mut patient = Patient::new(deployment, broker);
    let cases = [
        passing("an upload in parts cannot begin", Fault::Status(500), "POST", "?uploads", 3),
        passing("connections end within a part", Fault::CutWithin, "PUT", "partNumber=1", 2),
        passing("a part is refused (403)", Fault::Status(403), "PUT", "partNumber=2", 2),
        passing("the last answer of an upload in parts is lost", Fault::LostAnswer, "POST", "uploadId", 1),
        passing("an upload cannot be looked at", Fault::Status(503), "HEAD", SHARDS, 8),
    ];
    let mut rows = Vec::new();
    for Case { name, fault, method, path, n, .. } in cases {
        let n = n.unwrap();
        let (before, began) = (proxy.injected(), Instant::now());
        proxy.inject(fault, method, path, n);
        patient.feed_large(20, 1_500_000);
        patient.wait_well();
        assert_eq!(proxy.injected() - before, n, "{name}");
        rows.push((name, n, began.elapsed()));
    }
    // The two refused parts: what had gone up before them is cleared away.
    assert!(proxy.requests("DELETE", "uploadId") >= 2);
    let (_, sent) = patient.discharge_undisturbed();
    rows.iter().for_each(|(name, injected, recovery)| report_fault(name, *injected, sent, *recovery));
}

/// A file system of its own, in memory, gone when dropped.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// `None`, and a word about it, where nothing may be mounted. With CI=true root must be able to.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={size},mode=755");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "winnowd-test"]).arg(folder).output();
        let problem = match mount {
            Ok(output) if output.status.success() => return Some(SmallDisk { folder: folder.to_owned() }),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => e.to_string(),
        };
        let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        assert!(!is_root || std::env::var("CI").as_deref() != Ok("true"), "mounting a small disk: {problem}");
        eprintln!("skipped: a small disk cannot be mounted: {problem}");
        None
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.folder.join("filler")).unwrap();
        for piece in [vec![0; 1 << 16], vec![0; 1]] {
            let full = loop {
                if let Err(e) = filler.write_all(&piece) {
                    break e;
                }
            };
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.folder.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the worker may still have files open when the test fails.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

/// Fills a disk again and again under a worker, the last time until after its end. `stalls`: whether it says that it is stalled.
fn fill_often(
    name: &str,
    mut patient: Patient,
    disk: &SmallDisk,
    stalls: &dyn Fn(&Patient) -> bool,
    says: &str,
) -> Deployment {
    // The in-process cluster takes seconds for every start.
    let times = if patient.broker.is_real() { 3 } else { 1 };
    patient.feed_large(200, 2_000);
    patient.wait_well();
    let mut longest = Duration::ZERO;
    for time in 1..=times {
        let log_end = patient.deployment.log().len();
        disk.fill();
        wait_for("the worker to stall", || {
            if !stalls(&patient) && patient.decided() == patient.sent {
                patient.feed_large(400, 2_000);
            }
            stalls(&patient).then_some(())
        });
        // More than it takes to fill everything up to the paused partitions.
        patient.feed_large(2_000, 2_000);
        assert_eq!(patient.daemon.get("/healthz").0, 200, "the poll loop lives on");
        wait_for(says, || patient.deployment.log()[log_end..].contains(says).then_some(()));
        assert!(patient.decided() < patient.sent);
        if time == times {
            assert_eq!(patient.daemon.metric("winnowd_session_restarts_total"), 0.0, "it did not have to begin again");
            assert_eq!(patient.daemon.stop(), Some(0), "a full disk does not hold the end up");
            disk.empty();
            patient.daemon = patient.deployment.start();
        } else {
            disk.empty();
        }
        let began = Instant::now();
        patient.wait_well();
        longest = longest.max(began.elapsed());
    }
    let (deployment, sent) = patient.discharge_undisturbed();
    report_fault(name, times, sent, longest);
    deployment
}

fn is_stalled(patient: &Patient, step: &str, readiness: &str) -> bool {
    let (code, body) = patient.daemon.get("/readyz");
    patient.daemon.metric(&format!("winnowd_publish_stalled{{step=\"{step}\"}}")) == 1.0
        && code == 503
        && body.contains(readiness)
}

const LARGE: &str = "selection.fraction = 1.0\nwindow.max_documents = 100\nshard.row_group_rows = 1024";

#[test]
fn a_full_scratch_disk_pauses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "16m") else { return };
    let broker = Broker::with_topic("full-scratch", PARTITIONS);
    let extra = format!("{LARGE}\nsink.scratch_dir = \"{}\"", folder.path().display());
    let patient = Patient::new(Deployment::new(&broker, &extra), broker);
    let stalls = |patient: &Patient| is_stalled(patient, "write", "disk of the scratch folder is full");
    fill_often("full disk: scratch files", patient, &disk, &stalls, "nothing is read or published until there is room");
}

/// A selection of files does not wait for room: whoever asked for it is there to be told.
#[test]
fn a_full_disk_ends_a_selection_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), "1m") else { return };
    let mut input = File::create(folder.path().join("raw.jsonl")).unwrap();
    for n in 0..1_000u64 {
        // Nothing that compresses well.
        let word = |i: u64| format!("{:x} ", (n * 300 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        writeln!(input, "{{\"text\":\"{}\"}}", (0..300).map(word).collect::<String>()).unwrap();
    }
    drop(input);
    for format in ["jsonl", "parquet"] {
        let output = Command::new(env!("CARGO_BIN_EXE_winnowd"))
            .args(["select", "--input", "raw.jsonl", "--target", "raw.jsonl", "--count", "1000", "--min-tokens", "1"])
            .args(["--format", format, "--out", "disk/out"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{format}: {said}");
        assert!(said.contains("--out `disk/out` cannot be written: No space left on device"), "{said}");
        assert!(said.contains("free space in `") && said.contains("/disk`, or name another --out"), "{said}");
        assert_eq!(std::fs::read_dir(&disk.folder).unwrap().count(), 0, "something was left behind");
    }
}

/// That of documents that wait for their window to be decided.
#[test]
fn a_full_spool_disk_pauses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "16m") else { return };
    let broker = Broker::with_topic("full-spool", PARTITIONS);
    let extra = format!(
        "window.max_documents = 200\nselection.selector = \"coverage\"\nselection.importance = \"weight\"\nspool.folder = \"{}\"",
        folder.path().display()
    );
    let patient = Patient::new(Deployment::new(&broker, &extra), broker);
    let stalls = |patient: &Patient| is_stalled(patient, "write", "disk of the scratch folder is full");
    fill_often("full disk: spool", patient, &disk, &stalls, "nothing is read or published until there is room");
}

#[test]
fn a_full_disk_of_the_shards_pauses_and_loses_nothing() {
    let broker = Broker::with_topic("full-sink", PARTITIONS);
    let deployment = Deployment::new(&broker, LARGE);
    let out = deployment.folder.path().join("out");
    let Some(disk) = SmallDisk::mount(&out, "64m") else { return };
    let patient = Patient::new(deployment, broker);
    let stalls = |patient: &Patient| is_stalled(patient, "upload", "store cannot be written to");
    let _kept = fill_often(
        "full disk: shards",
        patient,
        &disk,
        &stalls,
        "No space left on device (os error 28); trying again in",
    );
    let left: Vec<_> = std::fs::read_dir(out.join("shards")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".parquet")), "pieces are left: {left:?}");
}

#[test]
fn a_full_disk_of_the_catalog_pauses_and_loses_nothing() {
    let broker = Broker::with_topic("full-catalog", PARTITIONS);
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "16m") else { return };
    let catalog = CatalogUrl::Sqlite(folder.path().join("catalog.db"));
    let patient = Patient::new(Deployment::with_catalog(&broker, LARGE, catalog), broker);
    let stalls = |patient: &Patient| {
        ["stage", "commit"].iter().any(|step| is_stalled(patient, step, "catalog is not reachable"))
    };
    fill_often("full disk: catalog", patient, &disk, &stalls, "database or disk is full");
}

/// Shards have room and the manifest has none: publication goes on, and trainers see all of it later.
#[test]
fn a_full_disk_of_the_manifest_holds_up_only_the_manifest() {
    let broker = Broker::with_topic("full-manifest", PARTITIONS);
    let deployment = Deployment::new(&broker, "window.max_documents = 50\nshard.max_rows = 20");
    let out = deployment.folder.path().join("out");
    let Some(disk) = SmallDisk::mount(&out, "1m") else { return };
    let elsewhere = deployment.folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, out.join("shards")).unwrap();
    let mut patient = Patient::new(deployment, broker);
    patient.feed(1_000);
    patient.wait_well();
    disk.fill();
    let is_behind = |daemon: &DaemonProcess| {
        ["manifest_behind", "manifest_failures_total"].iter().all(|m| daemon.metric(&format!("winnowd_{m}")) >= 1.0)
    };
    wait_for("the manifest to fall behind", || {
        patient.feed(200);
        wait_for("all to be decided", || (patient.decided() >= patient.sent).then_some(()));
        is_behind(&patient.daemon).then_some(())
    });
    assert!(std::fs::read(out.join("manifest.jsonl")).unwrap().ends_with(b"\n"), "half a line is taken back");
    let log = patient.deployment.log();
    assert!(
        log.contains("manifest.jsonl or a side file is behind") && log.contains("No space left on device"),
        "{log}"
    );
    let began = Instant::now();
    disk.empty();
    patient.wait_well();
    let recovery = began.elapsed();
    let (_, sent) = patient.discharge_undisturbed();
    report_fault("full disk: manifest", 1, sent, recovery);
}
