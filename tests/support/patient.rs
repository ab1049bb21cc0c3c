//! A worker that nobody restarts, and that is fed while it suffers.

use std::collections::BTreeMap;

use super::{Broker, DaemonProcess, Deployment, Random, TestProducer, document, wait_for};

pub struct Patient {
    pub broker: Broker,
    pub deployment: Deployment,
    pub daemon: DaemonProcess,
    pub sent: u64,
    pub produced: BTreeMap<i32, i64>,
}

impl Patient {
    pub fn new(deployment: Deployment, broker: Broker) -> Self {
        let daemon = deployment.start();
        Patient { broker, deployment, daemon, sent: 0, produced: BTreeMap::new() }
    }

    /// Returns when the broker has them all.
    pub fn feed(&mut self, n: u64) {
        let producer = self.broker.producer();
        for _ in 0..n {
            self.send(&producer, &document(self.sent));
        }
        producer.flush();
    }

    /// Documents of this size that hardly compress.
    pub fn feed_large(&mut self, n: u64, bytes: usize) {
        let producer = self.broker.producer();
        for _ in 0..n {
            let mut random = Random::new(self.sent);
            let word = |_| format!("{:06x} ", random.below(1 << 24));
            let text: String = (0..bytes / 7).map(word).collect();
            self.send(&producer, serde_json::json!({ "id": self.sent, "text": text }).to_string().as_bytes());
        }
        producer.flush();
    }

    pub fn send(&mut self, producer: &TestProducer, payload: &[u8]) {
        let partition = (self.sent % self.broker.partitions as u64) as i32;
        producer.send(partition, Some(payload));
        *self.produced.entry(partition).or_default() += 1;
        self.sent += 1;
    }

    pub fn decided(&self) -> u64 {
        self.deployment.totals().n_records as u64
    }

    /// Waits until everything is decided, trainers see all of it, and the worker says that it is well.
    pub fn wait_well(&self) {
        wait_for("all to be decided", || (self.decided() >= self.sent).then_some(()));
        wait_for("readiness", || (self.daemon.get("/readyz").0 == 200).then_some(()));
        let steps = ["write", "stage", "upload", "commit"];
        let stalled = steps.map(|step| format!("winnowd_publish_stalled{{step=\"{step}\"}}"));
        for series in stalled.into_iter().chain(["winnowd_manifest_behind".to_owned()]) {
            wait_for(&series, || (self.daemon.metric(&series) == 0.0).then_some(()));
        }
    }

    /// Waits until the worker sees nothing more to read or to publish.
    pub fn wait_caught_up(&self) {
        wait_for("no lag", || {
            let (_, metrics) = self.daemon.get("/metrics");
            let lags: Vec<_> = metrics.lines().filter(|line| line.starts_with("winnowd_lag_records{")).collect();
            let n = 2 * self.broker.partitions as usize;
            (lags.len() == n && lags.iter().all(|lag| lag.ends_with(" 0"))).then_some(())
        });
    }

    /// Waits until the worker says that a step of publication stalls, and what a person has to see to.
    pub fn wait_stalled(&self, step: &str, readiness: &str) {
        let series = format!("winnowd_publish_stalled{{step=\"{step}\"}}");
        wait_for(&series, || (self.daemon.metric(&series) == 1.0).then_some(()));
        self.wait_unready(readiness);
    }

    /// Waits until the worker says what a person has to see to, while its poll loop lives on.
    pub fn wait_unready(&self, readiness: &str) {
        wait_for(readiness, || {
            let (code, body) = self.daemon.get("/readyz");
            (code == 503 && body.contains(readiness)).then_some(())
        });
        assert_eq!(self.daemon.get("/healthz").0, 200, "the poll loop lives on");
    }

    /// Waits until the log says this behind a place.
    pub fn wait_says(&self, says: &str, behind: usize) {
        wait_for(says, || self.deployment.log()[behind..].contains(says).then_some(()));
    }

    /// The worker ends politely; then nothing may be missing or there twice.
    pub fn discharge(self) -> (Deployment, u64) {
        assert_eq!(self.daemon.stop(), Some(0));
        self.deployment.published().assert_exactly_once(&self.produced);
        assert_one_line_each(&self.deployment.log());
        (self.deployment, self.sent)
    }

    /// The same of one that did not have to begin again.
    pub fn discharge_undisturbed(self) -> (Deployment, u64) {
        assert_eq!(self.daemon.metric("winnowd_session_restarts_total"), 0.0, "it did not have to begin again");
        self.discharge()
    }
}

/// Whatever servers answer, each message is one line that begins with its time.
pub fn assert_one_line_each(log: &str) {
    let torn = log.lines().find(|line| !line.starts_with("20"));
    assert_eq!(torn, None, "in:\n{log}");
    let longest = log.lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 1_200, "a line has {longest} bytes");
}
