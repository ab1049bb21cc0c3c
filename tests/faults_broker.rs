//! Brokers that restart, die, hang or lose their leadership, and a bad network to them, under workers that nobody restarts.
//!
//! Needs an Apache Kafka (`KAFKA_BOOTSTRAP`), and its jars, to start brokers of its own: without them it says that it is skipped.
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

const PARTITIONS: i32 = 6;
/// Many publications.
const EXTRA: &str = "window.max_documents = 50\nshard.max_rows = 20";
/// Longer than the session timeout, after which the group throws a member out.
const LONG: Duration = Duration::from_secs(12);
/// After which the client, left to itself, gives up a broker that has gone silent.
const A_MINUTE: Duration = Duration::from_secs(60);

fn times(n: usize) -> usize {
    if std::env::var_os("WINNOWD_TEST_STORM").is_some() { 10 * n } else { n }
}

/// What happened, how often, and the longest time from its end until everything was decided.
#[derive(Default)]
struct Report(Vec<(&'static str, usize, Duration)>);

impl Report {
    fn add(&mut self, name: &'static str, injected: usize, recovery: Duration) {
        println!("{name}: recovered in {:.1} s", recovery.as_secs_f64());
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, n, longest)) => (*n, *longest) = (*n + injected, recovery.max(*longest)),
            None => self.0.push((name, injected, recovery)),
        }
    }

    fn print(&self, documents: u64) {
        self.0.iter().for_each(|(name, injected, recovery)| report_fault(name, *injected, documents, *recovery));
    }
}

/// Feeds a little more, and waits until all of it is decided and the worker says that it is well.
fn recover(patient: &mut Patient) -> Duration {
    let began = Instant::now();
    patient.feed(200);
    patient.wait_well();
    patient.wait_caught_up();
    began.elapsed()
}

/// What somebody is told who is woken at night.
fn assert_readable(log: &str, warnings_at_most: usize) {
    let warnings: Vec<_> = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(warnings.len() <= warnings_at_most, "{} warnings:\n{}", warnings.len(), warnings.join("\n"));
    let foreign = ["[thrd:", "_TRANSPORT", "Local: "];
    let cryptic = log.lines().find(|line| foreign.iter().any(|part| line.contains(part)));
    assert_eq!(cryptic, None, "in words that only the client's authors know");
}

/// A worker on a broker of its own, which it reaches through a proxy.
fn patient_behind_proxy(name: &str) -> Option<(Patient, KafkaServers, TcpProxy)> {
    let (servers, proxy) = KafkaServers::behind_proxy()?;
    let broker = Broker::on(&servers.bootstrap, name, PARTITIONS, 1).behind(&proxy);
    let mut patient = Patient::new(Deployment::new(&broker, EXTRA), broker);
    patient.feed(1_000);
    patient.wait_well();
    Some((patient, servers, proxy))
}

#[test]
fn a_broker_that_restarts_loses_and_repeats_nothing() {
    let Some((mut patient, servers, _proxy)) = patient_behind_proxy("restarts") else { return };
    let mut report = Report::default();

    for (name, is_polite, n) in [("the broker restarts politely", true, 1), ("kill -9 of the broker", false, 2)] {
        for _ in 0..times(n) {
            let log_end = patient.deployment.log().len();
            patient.feed(500);
            if is_polite {
                servers.stop(1);
            } else {
                servers.signal(1, "KILL");
            }
            patient.wait_unready("no broker of kafka.bootstrap answers");
            patient.wait_says("no broker answers", log_end);
            servers.start(1);
            report.add(name, 1, recover(&mut patient));
            patient.wait_says("answers again", log_end);
            assert_readable(&patient.deployment.log()[log_end..], 8);
        }
    }

    let (_, sent) = patient.discharge();
    report.print(sent);
}

#[test]
fn a_bad_network_to_the_broker_loses_and_repeats_nothing() {
    let Some((mut patient, _servers, proxy)) = patient_behind_proxy("network") else { return };
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut report = Report::default();
    let log_end = patient.deployment.log().len();
    let mut cut = 0;
    while cut < times(30) {
        patient.feed(200);
        // The moment is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(random.below(400)));
        cut += proxy.cut();
    }
    report.add("connections to the broker are reset", cut, recover(&mut patient));
    assert_readable(&patient.deployment.log()[log_end..], 8);

    for _ in 0..times(1) {
        proxy.set(Network::Slow(Duration::from_millis(100 + random.below(200))));
        report.add("the network to the broker is slow (0.1 to 0.3 s each way)", 1, recover(&mut patient));
        proxy.set(Network::Passes);
    }

    for _ in 0..times(1) {
        let log_end = patient.deployment.log().len();
        let began = Instant::now();
        proxy.set(Network::BlackHole);
        patient.feed(500);
        patient.wait_unready("no broker of kafka.bootstrap answers");
        wait_for("the silence", || (began.elapsed() >= LONG).then_some(()));
        assert_eq!(patient.daemon.get("/healthz").0, 200, "the poll loop lives on");
        proxy.set(Network::Passes);
        report.add("the network to the broker swallows everything for 12 s", 1, recover(&mut patient));
        assert_readable(&patient.deployment.log()[log_end..], 8);
    }

    let (_, sent) = patient.discharge();
    report.print(sent);
}

/// One leader after the other, each out of its own order of partitions.
fn disturb(servers: &KafkaServers, topic: &str, how: &str, random: &mut Random) -> i32 {
    servers.wait_in_sync(topic);
    let all: Vec<i32> = (1..=servers.replicas()).collect();
    let leaders = wait_for("leaders", || servers.leaders(topic, &all).filter(|l| l.len() == PARTITIONS as usize));
    let leader = leaders[&(random.below(PARTITIONS as u64) as i32)];
    match how {
        "TERM" => servers.stop(leader),
        signal => servers.signal(leader, signal),
    }
    leader
}

const LEADERS: [(&str, &str); 3] = [
    ("a leader of three brokers is stopped politely", "TERM"),
    ("kill -9 of a leader of three brokers", "KILL"),
    ("a leader sleeps (SIGSTOP) until others lead, then wakes up", "STOP"),
];

#[test]
fn leaders_that_die_or_sleep_lose_and_repeat_nothing() {
    let Some(servers) = KafkaServers::cluster(3) else { return };
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let broker = Broker::on(&servers.bootstrap, "leaders", PARTITIONS, servers.replicas());
    let topic = broker.topic.clone();
    let mut patient = Patient::new(Deployment::new(&broker, EXTRA), broker);
    patient.feed(1_000);
    patient.wait_well();
    let mut report = Report::default();
    for (name, how) in LEADERS {
        for _ in 0..times(1) {
            let log_end = patient.deployment.log().len();
            let began = Instant::now();
            let leader = disturb(&servers, &topic, how, &mut random);
            servers.wait_led_by_others(&topic, PARTITIONS, leader);
            // Everything goes on while it is away, and does not wait for it as long as the client would by itself.
            let recovery = recover(&mut patient);
            assert!(recovery < A_MINUTE, "{name}: {:.1} s", recovery.as_secs_f64());
            if how == "STOP" {
                wait_for("a long sleep", || (began.elapsed() >= LONG).then_some(()));
                servers.signal(leader, "CONT");
            } else {
                servers.start(leader);
            }
            report.add(name, 1, recovery.max(recover(&mut patient)));
            assert_readable(&patient.deployment.log()[log_end..], 8);
        }
    }
    let (_, sent) = patient.discharge();
    report.print(sent);
}

/// Three workers on Postgres, three brokers, and one of those at a time in trouble.
#[test]
fn a_fleet_outlives_its_brokers() {
    let Some(database) = Database::create() else { return };
    let Some(servers) = KafkaServers::cluster(3) else { return };
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let broker = Broker::on(&servers.bootstrap, "fleet-brokers", PARTITIONS, servers.replicas());
    let deployment = Deployment::with(&broker, EXTRA, Some(&database.url), None);
    let workers: Vec<_> = (0..3).map(|i| deployment.start_worker(&format!("worker-{i}"))).collect();
    let (mut sent, mut produced, mut report) = (0, BTreeMap::<i32, i64>::new(), Report::default());
    let mut feed = |random: &mut Random| {
        let producer = broker.producer();
        for _ in 0..2_000 {
            let partition = random.below(PARTITIONS as u64) as i32;
            producer.send(partition, Some(&document(sent)));
            *produced.entry(partition).or_default() += 1;
            sent += 1;
        }
        producer.flush();
        sent
    };
    let decide = |sent: u64| {
        let began = Instant::now();
        wait_for("all to be decided", || (deployment.totals().n_records as u64 >= sent).then_some(()));
        began.elapsed()
    };
    decide(feed(&mut random));
    for (name, how) in LEADERS {
        for _ in 0..times(1) {
            let leader = disturb(&servers, &broker.topic, how, &mut random);
            let sent = feed(&mut random);
            servers.wait_led_by_others(&broker.topic, PARTITIONS, leader);
            if how == "STOP" {
                servers.signal(leader, "CONT");
            } else {
                servers.start(leader);
            }
            report.add(name, 1, decide(sent));
        }
    }
    decide(feed(&mut random));
    for worker in workers {
        assert_eq!(worker.get("/healthz").0, 200);
        assert_eq!(worker.stop(), Some(0));
    }
    deployment.published().assert_exactly_once(&produced);
    report.print(sent);
}
