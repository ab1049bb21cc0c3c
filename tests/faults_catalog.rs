//! A Postgres that restarts, hangs, loses connections or the answer to a COMMIT, under workers that nobody restarts.
//!
//! Needs an Apache Kafka (`KAFKA_BOOTSTRAP`), and a Postgres that it can start itself: without them it says that it is skipped.
//! `WINNOWD_TEST_STORM` repeats every fault ten times as often, `WINNOWD_TEST_SEED` the moments of faults.

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

const PARTITIONS: i32 = 4;
/// Many publications.
const EXTRA: &str = "window.max_documents = 50\nshard.max_rows = 20";
/// COMMIT in Postgres' protocol, version 3: a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

fn times(n: usize) -> usize {
    if std::env::var_os("WINNOWD_TEST_STORM").is_some() { 10 * n } else { n }
}

/// A Kafka topic and a Postgres server; `None`, and a word about it, where one of them cannot be had.
fn servers(name: &str) -> Option<(Broker, PostgresServer)> {
    if std::env::var_os("KAFKA_BOOTSTRAP").is_none() {
        eprintln!("skipped: KAFKA_BOOTSTRAP names no Apache Kafka");
        return None;
    }
    Some((Broker::with_topic(name, PARTITIONS), PostgresServer::start()?))
}

/// Feeds while a fault is there, so that publications meet it; gives how long the recovery took.
fn recover(patient: &mut Patient, longest: &mut Duration) {
    let began = Instant::now();
    patient.feed(200);
    patient.wait_well();
    *longest = began.elapsed().max(*longest);
}

/// Restarts the server again and again under publications.
fn restart(patient: &mut Patient, server: &PostgresServer, mode: &str) -> (usize, Duration) {
    let mut longest = Duration::ZERO;
    for _ in 0..times(3) {
        patient.feed(500);
        server.stop(mode);
        server.start_again();
        recover(patient, &mut longest);
    }
    (times(3), longest)
}

/// Leaves the server down until the worker has said so.
fn be_down(patient: &mut Patient, server: &PostgresServer) -> (usize, Duration) {
    let log_end = patient.deployment.log().len();
    server.stop("fast");
    patient.feed(500);
    patient.wait_stalled("stage", "catalog is not reachable");
    patient.wait_says("; trying again in ", log_end);
    server.start_again();
    let mut longest = Duration::ZERO;
    recover(patient, &mut longest);
    (1, longest)
}

/// The server says nothing for ten seconds, and until the worker has said so; connections stay open.
fn be_silent(patient: &mut Patient, stop: &dyn Fn(), resume: &dyn Fn()) -> (usize, Duration) {
    let (log_end, began) = (patient.deployment.log().len(), Instant::now());
    stop();
    patient.feed(500);
    let is_stalled = |step| patient.daemon.metric(&format!("winnowd_publish_stalled{{step=\"{step}\"}}")) == 1.0;
    wait_for("a stalled publication", || ["stage", "commit"].into_iter().any(is_stalled).then_some(()));
    patient.wait_unready("catalog is not reachable");
    patient.wait_says("no answer", log_end);
    wait_for("ten seconds", || (began.elapsed() >= Duration::from_secs(10)).then_some(()));
    assert_eq!(patient.daemon.get("/healthz").0, 200, "the poll loop lives on");
    resume();
    let mut longest = Duration::ZERO;
    recover(patient, &mut longest);
    (1, longest)
}

/// Ends connections at random moments.
fn end_connections(patient: &mut Patient, random: &mut Random, end: &dyn Fn() -> usize) -> (usize, Duration) {
    let mut ended = 0;
    while ended < times(30) {
        patient.feed(300);
        // The moment is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        ended += end();
    }
    let mut longest = Duration::ZERO;
    recover(patient, &mut longest);
    (ended, longest)
}

#[test]
fn a_catalog_that_goes_away_loses_and_repeats_nothing() {
    let Some((broker, server)) = servers("catalog") else { return };
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut patient = Patient::new(Deployment::on_server(&broker, EXTRA, &server), broker);
    patient.feed(1_000);
    patient.wait_well();
    let (proxy, patient_now) = (&server.proxy, &mut patient);
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'winnowd'";
    let mut rows = vec![
        ("Postgres restarts politely", restart(patient_now, &server, "fast")),
        ("Postgres restarts after a crash", restart(patient_now, &server, "immediate")),
        ("Postgres is down", be_down(patient_now, &server)),
        (
            "Postgres sleeps (SIGSTOP) for more than 10 s",
            be_silent(patient_now, &|| server.signal("STOP"), &|| server.signal("CONT")),
        ),
        (
            "the network to Postgres swallows everything for more than 10 s",
            be_silent(patient_now, &|| proxy.set(Network::BlackHole), &|| proxy.set(Network::Passes)),
        ),
        ("connections to Postgres are reset", end_connections(patient_now, &mut random, &|| proxy.cut())),
        (
            "connections are ended by pg_terminate_backend",
            end_connections(patient_now, &mut random, &|| server.execute(terminate) as usize),
        ),
    ];
    proxy.set(Network::Slow(Duration::from_millis(100)));
    let mut longest = Duration::ZERO;
    recover(patient_now, &mut longest);
    proxy.set(Network::Passes);
    rows.push(("the network to Postgres is slow (0.1 s each way)", (1, longest)));

    let log = patient.deployment.log();
    let foreign = ["pool timed out", "on-release", "slow statement", "WARN terminating connection"];
    assert!(!foreign.iter().any(|words| log.contains(words)), "{log}");
    let (_, sent) = patient.discharge_undisturbed();
    rows.iter().for_each(|(name, (injected, recovery))| report_fault(name, *injected, sent, *recovery));
}

/// The connection is gone and nobody knows whether the transaction happened: the shard's own state tells.
#[test]
fn a_commit_without_an_answer_is_settled_by_the_state_of_its_shard() {
    let Some((broker, server)) = servers("commit") else { return };
    let mut patient = Patient::new(Deployment::on_server(&broker, EXTRA, &server), broker);
    patient.feed(1_000);
    patient.wait_well();
    let (unknown, happened) = ("reading its state back", "the COMMIT without an answer had happened");
    let count = |patient: &Patient, says: &str| patient.deployment.log().matches(says).count();
    let moments = [
        ("COMMIT is cut off before Postgres has it", Moment::Before),
        ("COMMIT is cut off while Postgres works on it", Moment::Within),
        ("the answer to COMMIT is lost", Moment::Answered),
    ];
    for (name, moment) in moments {
        let (unknown_before, happened_before) = (count(&patient, unknown), count(&patient, happened));
        let (before, began, n) = (server.proxy.injected(), Instant::now(), times(20));
        for i in 1..=n {
            server.proxy.cut_at(COMMIT, moment, 1);
            // A full window of each partition, and with their selections a full shard.
            patient.feed(200);
            wait_for(name, || (server.proxy.injected() >= before + i).then_some(()));
            wait_for("the outcome", || (patient.decided() == patient.sent).then_some(()));
        }
        let mut longest = Duration::ZERO;
        recover(&mut patient, &mut longest);
        let n_unknown = count(&patient, unknown) - unknown_before;
        let n_happened = count(&patient, happened) - happened_before;
        println!(
            "{name}: {n} cut in {:.1} s, {n_unknown} unknown, {n_happened} had happened",
            began.elapsed().as_secs_f64()
        );
        assert_eq!(server.proxy.injected() - before, n);
        match moment {
            Moment::Before => assert_eq!((n_unknown, n_happened), (n, 0), "none has happened"),
            // Who is first, Postgres or the end of the connection, is not ours to say.
            Moment::Within => assert_eq!(n_unknown, n),
            Moment::Answered => assert_eq!((n_unknown, n_happened), (n, n), "all have happened"),
        }
        report_fault(name, n, patient.sent, longest);
    }
    patient.discharge_undisturbed();
}

/// Nothing comes, so nothing is published: the worker must find out by itself.
#[test]
fn an_idle_worker_notices_a_catalog_that_has_gone_and_what_others_publish() {
    let Some((broker, server)) = servers("idle") else { return };
    let mut patient = Patient::new(Deployment::on_server(&broker, EXTRA, &server), broker);
    patient.feed(1_000);
    patient.wait_well();
    let sums = "winnowd_catalog_documents{decision=\"selected\"}";
    let selected = patient.daemon.metric(sums);
    assert!(selected > 0.0);
    server.execute("UPDATE pipelines SET n_selected = n_selected + 7");
    wait_for("what another worker has published", || (patient.daemon.metric(sums) == selected + 7.0).then_some(()));
    server.execute("UPDATE pipelines SET n_selected = n_selected - 7");

    let unreachable = "catalog is not reachable";
    server.stop("fast");
    wait_for(unreachable, || {
        let (code, body) = patient.daemon.get("/readyz");
        (code == 503 && body.contains(unreachable)).then_some(())
    });
    assert_eq!(patient.daemon.get("/healthz").0, 200, "the poll loop lives on");
    let began = Instant::now();
    server.start_again();
    patient.wait_well();
    let log = patient.deployment.log();
    assert!(
        log.contains("nothing can be published until it is there") && log.contains("the catalog answers again"),
        "{log}"
    );
    let recovery = began.elapsed();
    let (_, sent) = patient.discharge_undisturbed();
    report_fault("Postgres is down while nothing comes", 1, sent, recovery);
}

#[test]
fn a_catalog_that_is_down_at_the_start_is_an_error_that_names_it() {
    let Some((broker, server)) = servers("down") else { return };
    server.stop("fast");
    // The way past the proxy, where nobody listens.
    let output = Deployment::with(&broker, EXTRA, Some(&server.url), None).run_to_end();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("catalog `postgres://") && said.contains("Connection refused"), "{said}");
    assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    // The same without a word from the network.
    let deployment = Deployment::on_server(&broker, EXTRA, &server);
    server.proxy.set(Network::BlackHole);
    let output = deployment.run_to_end();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("catalog `postgres://") && said.contains("no answer within"), "{said}");
    server.proxy.set(Network::Passes);
    server.start_again();
    let began = Instant::now();
    let mut patient = Patient::new(deployment, broker);
    patient.feed(200);
    patient.wait_well();
    let (_, sent) = patient.discharge_undisturbed();
    report_fault("Postgres is down at the start (exit code 69)", 2, sent, began.elapsed());
}

/// Locks taken in another order than everybody's: Postgres ends the transaction that has waited longest, the worker's.
#[test]
fn a_publication_that_loses_a_deadlock_is_tried_again() {
    let Some((broker, server)) = servers("deadlock") else { return };
    let mut patient = Patient::new(Deployment::on_server(&broker, EXTRA, &server), broker);
    patient.feed(1_000);
    patient.wait_well();
    let mut longest = Duration::ZERO;
    for n in 1..=times(2) {
        let log_end = patient.deployment.log().len();
        block_on(async {
            let mut stranger = server.begin().await;
            stranger.execute("SET LOCAL deadlock_timeout = '60s'").await;
            stranger.execute("UPDATE pipelines SET name = name").await;
            patient.feed(200);
            // The publication has its checkpoints and waits for the pipeline.
            stranger.until_waited_for().await;
            stranger.execute("UPDATE checkpoints SET owner = owner").await;
            stranger.rollback().await;
        });
        patient.wait_says("deadlock detected", log_end);
        recover(&mut patient, &mut longest);
        assert_eq!(patient.deployment.log().matches("deadlock detected").count(), n);
    }
    let (_, sent) = patient.discharge_undisturbed();
    report_fault("deadlocks", times(2), sent, longest);
}

/// Three workers, whose connections are ended at random; nobody restarts them.
#[test]
fn a_fleet_whose_connections_to_the_catalog_are_cut_decides_every_position_once() {
    let Some((broker, server)) = servers("cut-fleet") else { return };
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let deployment = Deployment::on_server(&broker, EXTRA, &server);
    let workers: Vec<_> = (0..3).map(|i| deployment.start_worker(&format!("worker-{i}"))).collect();
    let producer = broker.producer();
    let (mut sent, mut ended, mut produced) = (0, 0, BTreeMap::<i32, i64>::new());
    while ended < times(40) {
        for _ in 0..500 {
            let partition = random.below(PARTITIONS as u64) as i32;
            producer.send(partition, Some(&document(sent)));
            *produced.entry(partition).or_default() += 1;
            sent += 1;
        }
        producer.flush();
        // The moment is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(random.below(500)));
        ended += server.proxy.cut();
    }
    let began = Instant::now();
    wait_for("all to be decided", || (deployment.totals().n_records as u64 >= sent).then_some(()));
    let recovery = began.elapsed();
    for worker in workers {
        assert_eq!(worker.get("/healthz").0, 200);
        assert_eq!(worker.stop(), Some(0));
    }
    deployment.published().assert_exactly_once(&produced);
    report_fault("connections of three workers to Postgres are reset", ended, sent, recovery);
}
