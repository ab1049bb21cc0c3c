//! The Kafka consumer on a thread of its own: it polls without pause, so that the group is never lost to slow work.
//!
//! In: subscribed topics, a byte-bounded queue, and [`Assignments`] to ask where to begin. Out: [`SourceEvent`]s in
//! order. Promises: a partition begins exactly at the offset its claim names (set inside the assignment callback, never
//! by a later seek); when the queue stays full, partitions are paused while polling goes on; the thread ends after
//! [`SourceEvent::Failed`] or [`KafkaSource::stop`]. A second thread looks for partitions that nobody in the group owns, and has
//! this member leave and join again, so that somebody does.

mod brokers;
mod context;
mod group_reader;
mod group_watch;
mod ownership;
mod poller;
mod producer;
mod range;
mod topic_id;
mod topics;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::queue::QueueSender;
use super::settings::{consumer_config, without_value};
use super::{Assignments, SourceError, SourceLimits};
use crate::config::{Bootstrap, KafkaConfig};
use crate::record::TopicPartition;
pub(super) use brokers::plain;
use context::PollContext;
pub(super) use context::resolve_start;
pub use group_reader::{GroupReader, PlacedRecord};
use group_watch::GroupWatch;
use poller::Poller;
pub use producer::{OutgoingRecord, TopicWriter};
pub use range::RangeReader;
pub(super) use topic_id::topic_id;
pub use topics::create_topic;

/// When the poll loop was last seen alive.
#[derive(Clone, Default)]
pub struct PollHeartbeat(Arc<AtomicI64>);

impl PollHeartbeat {
    fn beat(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
        self.0.store(now, Ordering::Relaxed);
    }

    /// The loop has ended on purpose: until the next one begins, silence means nothing.
    fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Since the last round of the loop; `None` before the first.
    pub fn age(&self) -> Option<Duration> {
        let last = self.0.load(Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
        (last > 0).then(|| Duration::from_millis(now.saturating_sub(last).max(0) as u64))
    }
}

/// Commits offsets to the consumer group.
#[derive(Clone)]
pub struct OffsetMirror(mpsc::Sender<Vec<(TopicPartition, i64)>>);

impl OffsetMirror {
    pub fn commit(&self, offsets: Vec<(TopicPartition, i64)>) {
        // An ended thread has nobody to mirror for.
        let _ = self.0.send(offsets);
    }
}

/// A running consumer.
pub struct KafkaSource {
    stop: Arc<AtomicBool>,
    mirror: mpsc::Sender<Vec<(TopicPartition, i64)>>,
    ended: mpsc::Receiver<()>,
    /// Dropped to end the other thread.
    _watching: mpsc::Sender<()>,
}

impl KafkaSource {
    /// Starts the polling thread.
    pub fn start(
        kafka: &KafkaConfig,
        bootstrap: &str,
        limits: SourceLimits,
        queue: QueueSender,
        assignments: Arc<dyn Assignments>,
        heartbeat: PollHeartbeat,
    ) -> Result<Self, SourceError> {
        let client_error =
            |e: KafkaError| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: without_value(&e) };
        let stop = Arc::new(AtomicBool::new(false));
        let context = PollContext::new(assignments.clone(), kafka.start, stop.clone());
        let consumer: BaseConsumer<PollContext> =
            consumer_config(kafka, bootstrap, limits).create_with_context(context).map_err(client_error)?;
        let topics: Vec<&str> = kafka.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(client_error)?;
        let (mirror, to_mirror) = mpsc::channel();
        let (ended_sender, ended) = mpsc::channel();
        let rejoin = Arc::new(AtomicBool::new(false));
        let (watching, watched) = mpsc::channel();
        // The in-process cluster does not tell of its groups.
        if !kafka.ownership_interval.is_zero() && !matches!(kafka.bootstrap, Bootstrap::Embedded { .. }) {
            let watch = GroupWatch::open(kafka, bootstrap, assignments, rejoin.clone())?;
            spawn("kafka-group", bootstrap, move || watch.run(&watched))?;
        }
        let poller = Poller::new(consumer, queue, to_mirror, heartbeat.clone(), (kafka.topics.clone(), rejoin));
        spawn("kafka-poll", bootstrap, move || {
            poller.run();
            heartbeat.rest();
            // Dropping the consumer leaves the group, which can take its time or hang; `stop` waits only so long.
            drop(ended_sender);
        })?;
        Ok(KafkaSource { stop, mirror, ended, _watching: watching })
    }

    /// Takes offsets to be committed to the group, for lag tools. Failures are logged and otherwise ignored: the
    /// catalog decides.
    pub fn mirror(&self) -> OffsetMirror {
        OffsetMirror(self.mirror.clone())
    }

    /// Ends polling and leaves the group; false if that took longer than `deadline`.
    pub fn stop(self, deadline: Duration) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        matches!(self.ended.recv_timeout(deadline), Err(mpsc::RecvTimeoutError::Disconnected))
    }
}

fn spawn(name: &str, bootstrap: &str, run: impl FnOnce() + Send + 'static) -> Result<(), SourceError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    let failed = |e: std::io::Error| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: e.to_string() };
    spawned.map(drop).map_err(failed)
}
