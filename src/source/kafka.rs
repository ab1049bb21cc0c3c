//! The Kafka consumer on a thread of its own: it polls without pause, so that the group is never lost to slow work.
//!
//! In: subscribed topics, a byte-bounded queue, and [`Assignments`] to ask where to begin. Out: [`SourceEvent`]s in
//! order. Promises: a partition begins exactly at the offset its claim names (set inside the assignment callback, never
//! by a later seek); when the queue stays full, partitions are paused while polling goes on; the thread ends after
//! [`SourceEvent::Failed`] or [`KafkaSource::stop`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::queue::{Closed, QueueSender};
use super::settings::{consumer_config, without_value};
use super::{Assigned, Assignments, Batch, PartitionLag, Record, SourceError, SourceEvent, SourceLimits};
use crate::config::{KafkaConfig, StartPolicy};
use crate::record::TopicPartition;

const BATCH_BYTES: usize = 1 << 20;
const BATCH_RECORDS: usize = 1000;
/// How long a batch may wait to be filled.
const LINGER: Duration = Duration::from_millis(20);
/// How long the poll loop may wait for room in the queue before it pauses the partitions and goes on polling.
const PATIENCE: Duration = Duration::from_secs(1);
/// For requests that find start offsets.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

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
        let context =
            PollContext { assignments, start: kafka.start, stop: stop.clone(), state: Mutex::new(State::default()) };
        let consumer: BaseConsumer<PollContext> =
            consumer_config(kafka, bootstrap, limits).create_with_context(context).map_err(client_error)?;
        let topics: Vec<&str> = kafka.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(client_error)?;
        let (mirror, to_mirror) = mpsc::channel();
        let (ended_sender, ended) = mpsc::channel();
        let poller = Poller {
            consumer,
            queue,
            to_mirror,
            heartbeat,
            pending: Batch::default(),
            pending_since: None,
            ends: Vec::new(),
            paused: false,
            seen_generation: 0,
        };
        std::thread::Builder::new()
            .name("kafka-poll".into())
            .spawn(move || {
                let heartbeat = poller.heartbeat.clone();
                poller.run();
                heartbeat.rest();
                // Dropping the consumer leaves the group, which can take its time or hang; `stop` waits only so long.
                drop(ended_sender);
            })
            .map_err(|e| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: e.to_string() })?;
        Ok(KafkaSource { stop, mirror, ended })
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

/// What callbacks and the poll loop share. Both run on the polling thread.
struct PollContext {
    assignments: Arc<dyn Assignments>,
    start: StartPolicy,
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Partitions that we own, by topic and number.
    owned: HashMap<Arc<str>, HashMap<i32, Owned>>,
    /// Raised with every rebalance.
    generation: u64,
    failure: Option<SourceError>,
    last_error: Option<(String, Instant)>,
}

#[derive(Clone)]
struct Owned {
    at: TopicPartition,
    owner_epoch: i64,
    next_offset: i64,
}

impl PollContext {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_over(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions: Vec<_> =
            list.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect();
        if self.stop.load(Ordering::Relaxed) {
            // Leaving: a claim now would fence whoever comes next.
            return;
        }
        // An empty assignment counts too: the group was joined, and there are more workers than partitions.
        let resolve = |at: &TopicPartition| resolve_start(consumer, self.start, at);
        match self.assignments.assigned(&partitions, &resolve) {
            Ok(assigned) => {
                let mut state = self.state();
                for Assigned { at, owner_epoch, next_offset } in assigned {
                    let set = list
                        .find_partition(&at.topic, at.partition)
                        .map(|mut e| e.set_offset(Offset::Offset(next_offset)));
                    if !matches!(set, Some(Ok(()))) {
                        let problem = format!("offset {next_offset} cannot be set");
                        state.failure = Some(SourceError::Claim { partitions: at.to_string(), problem });
                    }
                    let owned = Owned { at: at.clone(), owner_epoch, next_offset };
                    state.owned.entry(at.topic.clone()).or_default().insert(at.partition, owned);
                }
            }
            // The loop ends before a record of these partitions is looked at.
            Err(error) => self.state().failure = Some(error),
        }
    }

    fn give_up(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let mut given_up = Vec::new();
        {
            let mut state = self.state();
            for element in list.elements() {
                let of_topic = state.owned.get_mut(element.topic());
                given_up.extend(of_topic.and_then(|t| t.remove(&element.partition())).map(|owned| owned.at));
            }
        }
        if !given_up.is_empty() && !self.stop.load(Ordering::Relaxed) {
            self.assignments.revoked(&given_up, consumer.assignment_lost());
        }
    }

    /// Logs an error unless it is the same as the last one, which repeats every few seconds while a broker is away.
    fn log_error(&self, error: String) {
        let mut state = self.state();
        let repeated =
            state.last_error.as_ref().is_some_and(|(last, at)| *last == error && at.elapsed().as_secs() < 60);
        if !repeated {
            tracing::warn!("kafka: {error}");
            state.last_error = Some((error, Instant::now()));
        }
    }
}

impl ClientContext for PollContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                self.log_error(format!("{facility}: {message}"));
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", "{facility}: {message}");
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "librdkafka", "{facility}: {message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let of_topic = |topic: &rdkafka::statistics::Topic| {
            let name: Arc<str> = topic.topic.as_str().into();
            let known = topic.partitions.values().filter(|p| p.partition >= 0 && p.ls_offset >= 0);
            known
                .map(|p| PartitionLag { at: TopicPartition::new(name.clone(), p.partition), end_offset: p.ls_offset })
                .collect::<Vec<_>>()
        };
        self.assignments.lag(statistics.topics.values().flat_map(of_topic).collect());
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Reaching the end of a partition is an event of the poll loop, not an error.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        self.log_error(format!("{error}: {reason}"));
    }
}

impl ConsumerContext for PollContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.state().generation += 1;
        match rebalance {
            Rebalance::Assign(list) => self.take_over(consumer, list),
            Rebalance::Revoke(list) => self.give_up(consumer, list),
            Rebalance::Error(error) => self.log_error(format!("rebalance: {error}")),
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result {
            self.log_error(format!("offsets were not mirrored to the group: {error}"));
        }
    }
}

fn resolve_start<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    start: StartPolicy,
    at: &TopicPartition,
) -> Result<i64, SourceError> {
    let failed = |e: KafkaError| SourceError::StartOffset { at: at.clone(), problem: e.to_string() };
    let watermarks = || consumer.fetch_watermarks(&at.topic, at.partition, REQUEST_TIMEOUT).map_err(failed);
    match start {
        StartPolicy::Earliest => Ok(watermarks()?.0),
        StartPolicy::Latest => Ok(watermarks()?.1),
        StartPolicy::Timestamp(ms) => {
            let mut times = TopicPartitionList::new();
            times.add_partition_offset(&at.topic, at.partition, Offset::Offset(ms)).map_err(failed)?;
            let found = consumer.offsets_for_times(times, REQUEST_TIMEOUT).map_err(failed)?;
            match found.find_partition(&at.topic, at.partition).map(|e| (e.error(), e.offset())) {
                Some((Ok(()), Offset::Offset(offset))) => Ok(offset),
                Some((Err(e), _)) => Err(failed(e)),
                // No record is that late: begin with what comes.
                _ => Ok(watermarks()?.1),
            }
        }
    }
}

struct Poller {
    consumer: BaseConsumer<PollContext>,
    queue: QueueSender,
    to_mirror: mpsc::Receiver<Vec<(TopicPartition, i64)>>,
    heartbeat: PollHeartbeat,
    pending: Batch,
    pending_since: Option<Instant>,
    /// Partitions that reached their end; told after what is pending has been sent.
    ends: Vec<i32>,
    paused: bool,
    /// Of the assignment that was last paused or resumed.
    seen_generation: u64,
}

impl Poller {
    fn run(mut self) {
        let stop = self.consumer.context().stop.clone();
        while !stop.load(Ordering::Relaxed) {
            self.heartbeat.beat();
            match self.round() {
                Ok(None) => {}
                Ok(Some(failure)) => {
                    stop.store(true, Ordering::Relaxed);
                    let _ = self.queue.control(SourceEvent::Failed(failure));
                }
                Err(Closed) => stop.store(true, Ordering::Relaxed),
            }
        }
    }

    /// One poll and what follows from it. Gives the error that ends the source.
    fn round(&mut self) -> Result<Option<SourceError>, Closed> {
        let wait = if self.pending.is_empty() { Duration::from_millis(100) } else { LINGER };
        let problem = match self.consumer.poll(wait) {
            Some(Ok(message)) => {
                take_record(&message, self.consumer.context(), &mut self.pending);
                None
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        if let Some(failure) = problem.and_then(|error| self.on_error(&error)) {
            return Ok(Some(failure));
        }
        if let Some(failure) = self.consumer.context().state().failure.take() {
            return Ok(Some(failure));
        }
        let is_full = self.pending.size_bytes() >= BATCH_BYTES || self.pending.len() >= BATCH_RECORDS;
        if !self.pending.is_empty() {
            let since = *self.pending_since.get_or_insert_with(Instant::now);
            if is_full || since.elapsed() >= LINGER {
                self.send_pending()?;
            }
        }
        if self.pending.is_empty() {
            self.tell_ends()?;
        }
        self.pause_or_resume();
        self.mirror_offsets();
        Ok(None)
    }

    /// Tells which partitions have been read to their ends, and how far that is. Everything before has been sent.
    ///
    /// The client's position has passed what it handed over and what it keeps to itself: records of aborted
    /// transactions and transaction markers. So what lies between our position and the client's is no document.
    fn tell_ends(&mut self) -> Result<(), Closed> {
        let ends = std::mem::take(&mut self.ends);
        if ends.is_empty() {
            return Ok(());
        }
        let positions = match self.consumer.position() {
            Ok(positions) => positions,
            Err(e) => {
                self.consumer.context().log_error(format!("positions are unknown: {e}"));
                return Ok(());
            }
        };
        let mut reached = Vec::new();
        let mut state = self.consumer.context().state();
        for owned in state.owned.values_mut().flat_map(HashMap::values_mut).filter(|o| ends.contains(&o.at.partition)) {
            let position = positions.find_partition(&owned.at.topic, owned.at.partition).map(|e| e.offset());
            if let Some(Offset::Offset(position)) = position {
                owned.next_offset = owned.next_offset.max(position);
            }
            reached.push(Assigned {
                at: owned.at.clone(),
                owner_epoch: owned.owner_epoch,
                next_offset: owned.next_offset,
            });
        }
        drop(state);
        self.queue.control(SourceEvent::ReachedEnd(reached))
    }

    /// Sends what is pending, if there comes to be room for it.
    fn send_pending(&mut self) -> Result<(), Closed> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let patience = if self.paused { Duration::ZERO } else { PATIENCE };
        match self.queue.batch(std::mem::take(&mut self.pending), patience)? {
            None => self.pending_since = None,
            Some(batch) => self.pending = batch,
        }
        Ok(())
    }

    /// A batch that could not be sent pauses everything; partitions that are assigned meanwhile too.
    fn pause_or_resume(&mut self) {
        let is_stuck = self.pending_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let generation = self.consumer.context().state().generation;
        let is_new = std::mem::replace(&mut self.seen_generation, generation) != generation;
        if is_stuck && (is_new || !self.paused) {
            self.on_assignment("paused", |consumer, all| consumer.pause(all));
            self.paused = true;
        } else if !is_stuck && (is_new || self.paused) && self.queue.is_half_empty() {
            // Also after a rebalance: a partition that was paused when it went comes back paused.
            self.on_assignment("resumed", |consumer, all| consumer.resume(all));
            self.paused = false;
        } else if is_new {
            // Not yet half empty: look again in the next round.
            self.paused = true;
        }
    }

    fn on_assignment(
        &self,
        what: &str,
        act: impl FnOnce(&BaseConsumer<PollContext>, &TopicPartitionList) -> Result<(), KafkaError>,
    ) {
        let result = self.consumer.assignment().and_then(|all| act(&self.consumer, &all));
        match result {
            Ok(()) => tracing::debug!("kafka: partitions {what}"),
            Err(e) => self.consumer.context().log_error(format!("partitions cannot be {what}: {e}")),
        }
    }

    /// Gives the error that ends the source; others are logged, the client goes on by itself.
    fn on_error(&mut self, error: &KafkaError) -> Option<SourceError> {
        match error {
            KafkaError::PartitionEOF(partition) => {
                self.ends.push(*partition);
            }
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                return Some(self.lost_offset());
            }
            // The client skips what it cannot read and goes on behind it. To us that would be a gap without a record.
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::NotImplemented | RDKafkaErrorCode::BadCompression,
            ) => {
                let problem = format!("a batch of records cannot be read ({error}); nothing behind it is decided");
                return Some(SourceError::Client { bootstrap: "consumer".into(), problem });
            }
            KafkaError::MessageConsumptionFatal(_) => {
                let problem = error.to_string();
                return Some(SourceError::Client { bootstrap: "consumer".into(), problem });
            }
            _ => self.consumer.context().log_error(error.to_string()),
        }
        None
    }

    /// The client does not say which partition it was, so each is compared with what the broker holds.
    fn lost_offset(&self) -> SourceError {
        let owned: Vec<Owned> = {
            let state = self.consumer.context().state();
            state.owned.values().flat_map(HashMap::values).cloned().collect()
        };
        let lost = owned.iter().find_map(|o| {
            let (low, high) = self.consumer.fetch_watermarks(&o.at.topic, o.at.partition, REQUEST_TIMEOUT).ok()?;
            let offset = o.next_offset;
            (!(low..=high).contains(&offset)).then(|| SourceError::OffsetLost { at: o.at.clone(), offset, low, high })
        });
        lost.unwrap_or_else(|| SourceError::Client {
            bootstrap: "consumer".into(),
            problem: "an offset was out of range and is not any more; starting again".into(),
        })
    }

    fn mirror_offsets(&self) {
        let mut newest = TopicPartitionList::new();
        for (at, offset) in self.to_mirror.try_iter().flatten() {
            // A later offset of the same partition replaces the earlier one.
            let set = match newest.find_partition(&at.topic, at.partition) {
                Some(mut element) => element.set_offset(Offset::Offset(offset)),
                None => newest.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset)),
            };
            if let Err(e) = set {
                self.consumer.context().log_error(format!("offset {offset} of {at} was not mirrored: {e}"));
            }
        }
        if newest.count() > 0
            && let Err(e) = self.consumer.commit(&newest, CommitMode::Async)
        {
            self.consumer.context().log_error(format!("offsets were not mirrored to the group: {e}"));
        }
    }
}

fn take_record(message: &rdkafka::message::BorrowedMessage<'_>, context: &PollContext, pending: &mut Batch) {
    let mut state = context.state();
    let owned = state.owned.get_mut(message.topic()).and_then(|t| t.get_mut(&message.partition()));
    // A message of a partition that was just given up: its next owner reads it again.
    let Some(owned) = owned else { return };
    owned.next_offset = message.offset() + 1;
    pending.push(Record {
        at: &owned.at,
        owner_epoch: owned.owner_epoch,
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        payload: message.payload(),
    });
}
