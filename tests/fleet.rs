//! Several workers on one topic, one catalog and one folder of shards, killed, stopped and started at random; then every window
//! that they published is decided again and compared.
//!
//! Needs a Postgres (`POSTGRES_URL`) and an Apache Kafka (`KAFKA_BOOTSTRAP`): without them it says that it is skipped. Shards go
//! to S3 (`S3_ENDPOINT`), or else to a folder.
//! `WINNOWD_TEST_STORM=MINUTES` makes the storm longer, `WINNOWD_TEST_SEED` repeats its faults.

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

const WORKERS: usize = 3;
const PARTITIONS: i32 = 12;
/// Documents that a long storm brings at least.
const STORM_DOCUMENTS: u64 = 1_000_000;

/// What a worker slot is at.
enum Worker {
    Runs(DaemonProcess),
    /// Stopped (SIGSTOP) until then.
    Sleeps(DaemonProcess, Instant),
    Gone,
}

#[derive(Debug, Default)]
struct Faults {
    kills: u32,
    terminations: u32,
    zombies: u32,
}

fn name(slot: usize) -> String {
    format!("worker-{slot}")
}

/// One fault for a random worker; one that is gone comes back. Zombies sleep longer than the session timeout of six seconds:
/// the group has given their partitions away when they wake up.
fn disturb(
    deployment: &Deployment,
    workers: &mut [Worker],
    random: &mut Random,
    longest_sleep_seconds: u64,
    faults: &mut Faults,
) {
    let slot = random.below(workers.len() as u64) as usize;
    workers[slot] = match std::mem::replace(&mut workers[slot], Worker::Gone) {
        Worker::Gone => Worker::Runs(deployment.start_worker(&name(slot))),
        sleeping @ Worker::Sleeps(..) => sleeping,
        Worker::Runs(daemon) => match random.below(10) {
            0..7 => {
                daemon.kill_9();
                faults.kills += 1;
                Worker::Gone
            }
            7..9 => {
                assert_eq!(daemon.stop(), Some(0), "SIGTERM is polite");
                faults.terminations += 1;
                Worker::Gone
            }
            _ => {
                daemon.signal("STOP");
                faults.zombies += 1;
                let seconds = 10 + random.below(longest_sleep_seconds - 9);
                Worker::Sleeps(daemon, Instant::now() + Duration::from_secs(seconds))
            }
        },
    };
}

/// Zombies whose time has come wake up.
fn wake(workers: &mut [Worker], all: bool) {
    for worker in workers {
        *worker = match std::mem::replace(worker, Worker::Gone) {
            Worker::Sleeps(daemon, until) if all || until <= Instant::now() => {
                daemon.signal("CONT");
                Worker::Runs(daemon)
            }
            other => other,
        };
    }
}

#[test]
fn a_fleet_decides_every_position_once_whatever_happens_to_its_workers() {
    let Some(database) = Database::create() else { return };
    let broker = Broker::with_topic("fleet", PARTITIONS);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster cannot balance a group of several members");
        return;
    }
    let minutes: u64 = std::env::var("WINNOWD_TEST_STORM").ok().and_then(|m| m.parse().ok()).unwrap_or(0);
    let storm = if minutes == 0 { Duration::from_secs(45) } else { Duration::from_secs(60 * minutes) };
    let (least_documents, longest_sleep_seconds) = if minutes == 0 { (0, 12) } else { (STORM_DOCUMENTS, 40) };
    let extra = "window.max_documents = 500\nshard.max_rows = 2000";
    // Shards go to S3 where there is one.
    let deployment = Deployment::with(&broker, extra, Some(&database.url), Bucket::create());
    let seed = random_seed();
    println!("WINNOWD_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut faults = Faults::default();
    let mut workers: Vec<Worker> =
        (0..WORKERS).map(|slot| Worker::Runs(deployment.start_worker(&name(slot)))).collect();

    let mut produced: BTreeMap<i32, i64> = BTreeMap::new();
    let producer = broker.producer();
    let (began, mut sent) = (Instant::now(), 0u64);
    // On a machine so slow that nobody was killed by then, until somebody is.
    while began.elapsed() < storm || sent < least_documents || faults.kills == 0 {
        for _ in 0..2_000 + random.below(4_000) {
            let partition = random.below(PARTITIONS as u64) as i32;
            producer.send(partition, Some(&document(sent)));
            *produced.entry(partition).or_default() += 1;
            sent += 1;
        }
        producer.flush();
        disturb(&deployment, &mut workers, &mut random, longest_sleep_seconds, &mut faults);
        wake(&mut workers, false);
        // The moment of the next fault is the input of this test, not a way to wait.
        std::thread::sleep(Duration::from_millis(200 + random.below(1_000)));
    }

    wake(&mut workers, true);
    for (slot, worker) in workers.iter_mut().enumerate() {
        if let Worker::Gone = worker {
            *worker = Worker::Runs(deployment.start_worker(&name(slot)));
        }
    }
    let calm = Instant::now();
    wait_for("all documents to be decided", || (deployment.totals().n_records as u64 >= sent).then_some(()));
    let recovery = calm.elapsed();
    for worker in workers {
        if let Worker::Runs(daemon) = worker {
            assert_eq!(daemon.stop(), Some(0));
        }
    }
    let published = deployment.published();
    published.assert_exactly_once(&produced);
    let Faults { kills, terminations, zombies } = faults;
    for (fault, injected) in [("kill -9", kills), ("SIGTERM", terminations), ("stopped and woken", zombies)] {
        report_fault(&format!("storm of three workers: {fault}"), injected as usize, sent, recovery);
    }

    let output = deployment.winnowd(&["replay", "--verify"]);
    let (told, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{told}{log}");
    print!("{told}");
    let all =
        format!("{} windows are the same to the last bit, 0 differ, 0 cannot be verified", published.windows.len());
    assert!(told.contains(&all), "{all}:\n{told}");
}

/// Three workers on partitions that are lost to retention or to a new topic; `None`, and a word about it, without the servers.
fn three_workers_to_be(name: &str) -> Option<(Broker, Database, Deployment)> {
    let database = Database::create()?;
    let broker = Broker::with_topic(name, 6);
    if !broker.is_real() {
        eprintln!("skipped: the in-process cluster cannot balance a group of several members");
        return None;
    }
    let extra = "kafka.on_lost_offset = \"skip\"\nwindow.max_documents = 100";
    let deployment = Deployment::with(&broker, extra, Some(&database.url), None);
    Some((broker, database, deployment))
}

fn start_all(deployment: &Deployment) -> Vec<DaemonProcess> {
    (0..WORKERS).map(|slot| deployment.start_worker(&name(slot))).collect()
}

/// Spread evenly over the partitions.
fn produce(broker: &Broker, n: u64) {
    let producer = broker.producer();
    (0..n).for_each(|i| producer.send((i % broker.partitions as u64) as i32, Some(&document(i))));
    producer.flush();
}

fn wait_decided(deployment: &Deployment, n: i64) {
    wait_for("all to be decided", || (deployment.totals().n_records >= n).then_some(()));
}

#[test]
fn a_fleet_records_each_gap_of_retention_once() {
    let Some((broker, _database, deployment)) = three_workers_to_be("fleet-gaps") else { return };
    produce(&broker, 1_800);
    let workers = start_all(&deployment);
    wait_decided(&deployment, 1_800);
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
    produce(&broker, 1_800);
    for (partition, offset) in [(0, 400), (2, 450), (5, 600)] {
        broker.delete_before(partition, offset);
    }
    let skipped = 100 + 150 + 300;
    let workers = start_all(&deployment);
    wait_decided(&deployment, 3_600 - skipped);
    // In the middle of the stream, too: nothing that was read is lost or decided twice.
    produce(&broker, 600);
    wait_decided(&deployment, 4_200 - skipped);
    let told: f64 = workers.iter().map(|worker| worker.metric("winnowd_skipped_offsets_total")).sum();
    assert_eq!((told as i64, deployment.gaps().len()), (skipped, 3));
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
    deployment.assert_covered(&[700; 6]);
}

#[test]
fn a_fleet_whose_topic_was_made_again_ends_and_decides_nothing_of_it() {
    let Some((broker, _database, deployment)) = three_workers_to_be("fleet-recreated") else { return };
    produce(&broker, 600);
    let workers = start_all(&deployment);
    wait_decided(&deployment, 600);
    workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(0)));
    broker.recreate_topic();
    produce(&broker, 1_200);
    for (slot, mut worker) in start_all(&deployment).into_iter().enumerate() {
        let status = wait_for("the end of a worker", || worker.child.try_wait().unwrap());
        let log = std::fs::read_to_string(deployment.worker_log(&name(slot))).unwrap();
        assert_eq!(status.code(), Some(69), "{log}");
        assert!(log.contains("was deleted and made again"), "{log}");
    }
    assert_eq!((deployment.totals().n_records, deployment.gaps().len()), (600, 0));
}
