//! Kafka brokers of a test's own, to be stopped, killed and paused: one behind a proxy, or a cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::{TcpProxy, wait_for};

/// Started by `tests/services/kafka`; killed when dropped.
pub struct KafkaServers {
    folder: tempfile::TempDir,
    pub bootstrap: String,
    n: usize,
}

impl KafkaServers {
    /// Brokers of which one may be missing: topics have that many replicas. `None`, and a word about it, where there is no
    /// Apache Kafka.
    pub fn cluster(n: usize) -> Option<Self> {
        is_installed().then(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let bootstrap = kafka(&["start-cluster", &folder.path().to_string_lossy(), &n.to_string()]);
            KafkaServers { folder, bootstrap, n }
        })
    }

    /// One broker, and a proxy whose clients never see another way to it.
    pub fn behind_proxy() -> Option<(Self, TcpProxy)> {
        is_installed().then(|| {
            let (folder, proxy) = (tempfile::tempdir().expect("a folder"), TcpProxy::start());
            let port = proxy.address().port().to_string();
            let addresses = kafka(&["start", &folder.path().to_string_lossy(), &port]);
            let (bootstrap, proxied) = addresses.split_once(' ').expect("two addresses");
            proxy.forward_to(proxied);
            (KafkaServers { bootstrap: bootstrap.to_owned(), folder, n: 1 }, proxy)
        })
    }

    /// How many copies a topic has.
    pub fn replicas(&self) -> i32 {
        self.n as i32
    }

    /// Of the broker with this number, from 1.
    fn folder(&self, broker: i32) -> PathBuf {
        if self.n == 1 { self.folder.path().to_owned() } else { self.folder.path().join(broker.to_string()) }
    }

    /// Politely: it hands its partitions over first.
    pub fn stop(&self, broker: i32) {
        kafka(&["stop", &self.folder(broker).to_string_lossy()]);
    }

    /// After `stop`, or `signal` with `KILL`; returns when it is a part of the cluster again.
    pub fn start(&self, broker: i32) {
        kafka(&["start", &self.folder(broker).to_string_lossy()]);
    }

    /// `KILL` (returns when it has ended), `STOP` or `CONT`.
    pub fn signal(&self, broker: i32, name: &str) {
        kafka(&["signal", &self.folder(broker).to_string_lossy(), name]);
    }

    /// The leader of each partition of a topic, as far as there is one; `None` where nobody answers. Those who are not
    /// `asked` need not be alive.
    pub fn leaders(&self, topic: &str, asked: &[i32]) -> Option<BTreeMap<i32, i32>> {
        let all: Vec<&str> = self.bootstrap.split(',').collect();
        let asked: Vec<&str> = asked.iter().map(|&broker| all[broker as usize - 1]).collect();
        let mut config = ClientConfig::new();
        let client: BaseConsumer = config.set("bootstrap.servers", asked.join(",")).create().expect("a client");
        let metadata = client.fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
        let partitions = metadata.topics().first()?.partitions();
        Some(partitions.iter().filter(|p| p.leader() > 0).map(|p| (p.id(), p.leader())).collect())
    }

    /// Waits until every replica of a topic, and of what the group has committed, is in sync: then one broker may be missing.
    pub fn wait_in_sync(&self, topic: &str) {
        let mut config = ClientConfig::new();
        let client: BaseConsumer = config.set("bootstrap.servers", &self.bootstrap).create().expect("a client");
        wait_for("replicas in sync", || {
            let metadata = client.fetch_metadata(None, Duration::from_secs(5)).ok()?;
            let looked_at = metadata.topics().iter().filter(|t| [topic, "__consumer_offsets"].contains(&t.name()));
            let mut partitions = looked_at.flat_map(|t| t.partitions());
            partitions.all(|p| p.isr().len() == self.n && p.leader() > 0).then_some(())
        });
    }

    /// Waits until others than this broker lead all partitions of a topic.
    pub fn wait_led_by_others(&self, topic: &str, partitions: i32, broker: i32) {
        let others: Vec<i32> = (1..=self.n as i32).filter(|&other| other != broker).collect();
        wait_for("other leaders", || {
            let leaders = self.leaders(topic, &others)?;
            (leaders.len() == partitions as usize && leaders.values().all(|&leader| leader != broker)).then_some(())
        });
    }
}

impl Drop for KafkaServers {
    fn drop(&mut self) {
        for broker in 1..=self.n as i32 {
            let folder = self.folder(broker);
            // One that has ended already cannot be killed.
            let _ = Command::new(SCRIPT).arg("signal").arg(folder).arg("KILL").output();
        }
    }
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/services/kafka");

/// Whether tests run on Apache Kafka, and brokers of their own can be started. With CI=true one goes with the other.
fn is_installed() -> bool {
    if std::env::var_os("KAFKA_BOOTSTRAP").is_none() {
        eprintln!("skipped: KAFKA_BOOTSTRAP names no Apache Kafka");
        return false;
    }
    let is_installed = Command::new(SCRIPT).arg("installed").status().expect("the script runs").success();
    assert!(
        is_installed || std::env::var("CI").as_deref() != Ok("true"),
        "not installed: tests/services/kafka install"
    );
    if !is_installed {
        eprintln!("skipped: brokers of a test's own need `tests/services/kafka install`");
    }
    is_installed
}

fn kafka(arguments: &[&str]) -> String {
    super::service(SCRIPT, arguments)
}
