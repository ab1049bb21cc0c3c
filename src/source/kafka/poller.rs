//! The poll loop: records into batches, batches into the queue; pauses, ends of partitions, errors.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::PollHeartbeat;
use super::brokers::plain;
use super::context::{Owned, PollContext, REQUEST_TIMEOUT, is_of_connection};
use super::parts::push_parts;
use crate::config::KafkaConfig;
use crate::record::{Parts, RecordPart, TopicPartition};
use crate::source::queue::{Closed, Only, QueueSender};
use crate::source::{Assigned, Batch, LostOffset, Record, SourceError, SourceEvent};

pub(super) const BATCH_BYTES: usize = 2 << 20;
pub(super) const BATCH_RECORDS: usize = 2000;
/// How long a batch may wait to be filled.
const LINGER: Duration = Duration::from_millis(20);
/// Records after which the poll loop looks at everything else again.
const ROUND_RECORDS: usize = 64;
/// How long the poll loop may wait for room in the queue before it pauses the partitions and goes on polling.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Poller {
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
    /// What alone is read, as it was last looked at.
    only: Only,
    topics: Vec<String>,
    /// Wanted of every record beside its value.
    parts: Vec<RecordPart>,
    /// Set by whoever wants this member to leave the group and to join it again.
    rejoin: Arc<AtomicBool>,
}

impl Poller {
    pub(super) fn new(
        consumer: BaseConsumer<PollContext>,
        queue: QueueSender,
        to_mirror: mpsc::Receiver<Vec<(TopicPartition, i64)>>,
        heartbeat: PollHeartbeat,
        kafka: &KafkaConfig,
        rejoin: Arc<AtomicBool>,
    ) -> Self {
        let (pending, pending_since, ends) = (Batch::default(), None, Vec::new());
        Poller {
            consumer,
            queue,
            to_mirror,
            heartbeat,
            pending,
            pending_since,
            ends,
            paused: false,
            seen_generation: 0,
            only: Only::default(),
            topics: kafka.topics.clone(),
            parts: kafka.parts.clone(),
            rejoin,
        }
    }

    pub(super) fn run(mut self) {
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

    /// Some records and what follows from them. Gives the error that ends the source.
    fn round(&mut self) -> Result<Option<SourceError>, Closed> {
        if let Some(failure) = self.take_records().and_then(|error| self.on_error(&error)) {
            return Ok(Some(failure));
        }
        if let Some(failure) = self.consumer.context().state().failure.take() {
            return Ok(Some(failure));
        }
        if !self.pending.is_empty() {
            let since = *self.pending_since.get_or_insert_with(Instant::now);
            if self.is_full() || since.elapsed() >= LINGER {
                self.send_pending()?;
            }
        }
        if self.pending.is_empty() {
            self.tell_ends()?;
        }
        self.pause_or_resume();
        self.mirror_offsets();
        if self.rejoin.swap(false, Ordering::Relaxed) {
            self.leave_and_join();
        }
        Ok(None)
    }

    /// Makes the group rebalance. A static member that joins again, or ends, gets back what it had and changes nothing; one
    /// that unsubscribes leaves (librdkafka sends a LeaveGroup then), and joins as a new one. Its partitions are drained as at
    /// any revocation; the client subscribes once they are given up.
    fn leave_and_join(&self) {
        self.consumer.unsubscribe();
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        if let Err(e) = self.consumer.subscribe(&topics) {
            // A worker without a subscription would be idle for ever.
            let problem = format!("the group was left and cannot be joined again: {e}");
            self.consumer.context().state().failure =
                Some(SourceError::Client { bootstrap: "consumer".into(), problem });
        }
    }

    fn is_full(&self) -> bool {
        self.pending.size_bytes() >= BATCH_BYTES || self.pending.len() >= BATCH_RECORDS
    }

    /// Waits for a record, and takes it and those that are there already. Gives what the client says instead of a record.
    ///
    /// Locks, clocks and look-ups are once a round: together they take as long as the client's own work. A rebalance ends the
    /// round, because the poll that carries it out gives no record.
    fn take_records(&mut self) -> Option<KafkaError> {
        let mut wait = if self.pending.is_empty() { Duration::from_millis(100) } else { LINGER };
        let mut run: Option<Owned> = None;
        let mut problem = None;
        for _ in 0..ROUND_RECORDS {
            let message = match self.consumer.poll(wait) {
                Some(Ok(message)) => message,
                other => {
                    problem = other.and_then(Result::err);
                    break;
                }
            };
            wait = Duration::ZERO;
            let (topic, partition) = (message.topic(), message.partition());
            if !run.as_ref().is_some_and(|run| run.at.partition == partition && *run.at.topic == *topic) {
                let context = self.consumer.context();
                context.passed(run.take());
                // A message of a partition that was just given up: its next owner reads it again.
                run = context.owned(topic, partition);
            }
            if let Some(run) = &mut run {
                run.next_offset = message.offset() + 1;
                self.pending.push(Record {
                    at: &run.at,
                    owner_epoch: run.owner_epoch,
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis(),
                    payload: message.payload(),
                    parts: Parts::default(),
                });
                push_parts(&mut self.pending, &self.parts, &message);
            }
            if self.is_full() {
                break;
            }
        }
        self.consumer.context().passed(run);
        problem
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
            None => {
                self.pending_since = None;
                self.pending = self.queue.empty_batch();
            }
            Some(batch) => self.pending = batch,
        }
        Ok(())
    }

    /// A batch that could not be sent pauses everything; partitions that are assigned meanwhile too.
    fn pause_or_resume(&mut self) {
        let is_stuck = self.pending_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let generation = self.consumer.context().state().generation;
        let mut is_new = std::mem::replace(&mut self.seen_generation, generation) != generation;
        let only = self.queue.only();
        if only.version != self.only.version {
            self.only = only;
            is_new = true;
            if self.only.partition.is_some() {
                // At once: what comes meanwhile is too much.
                self.on_assignment("paused, but for one", |consumer, all| consumer.pause(all));
                self.paused = true;
            }
        }
        if is_stuck && (is_new || !self.paused) {
            self.on_assignment("paused", |consumer, all| consumer.pause(all));
            self.paused = true;
        } else if !is_stuck && (is_new || self.paused) && self.queue.is_half_empty() {
            // Also after a rebalance: a partition that was paused when it went comes back paused.
            let only = self.only.partition.as_ref();
            self.on_assignment("resumed", |consumer, all| match only {
                None => consumer.resume(all),
                Some(at) => resume_only(consumer, all, at),
            });
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
            KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::FencedInstanceId) => {
                let problem = "another member of the group has the same kafka.instance_id, or the group gave this worker's \
                               place away while it did not hear from it";
                return Some(SourceError::Client { bootstrap: "consumer".into(), problem: problem.into() });
            }
            KafkaError::MessageConsumptionFatal(_) => {
                let problem = plain(&error.to_string());
                return Some(SourceError::Client { bootstrap: "consumer".into(), problem });
            }
            // Told of otherwise: see `PollContext::error`; a fatal error follows.
            KafkaError::MessageConsumption(RDKafkaErrorCode::FencedInstanceId) => {}
            KafkaError::MessageConsumption(code) if is_of_connection(*code) => {}
            KafkaError::MessageConsumption(code) => self.consumer.context().log_error(plain(&code.to_string())),
            _ => self.consumer.context().log_error(plain(&error.to_string())),
        }
        None
    }

    /// The client does not say which partition it was, so each is compared with what the broker holds.
    fn lost_offset(&self) -> SourceError {
        let owned: Vec<Owned> = {
            let state = self.consumer.context().state();
            state.owned.values().flat_map(HashMap::values).cloned().collect()
        };
        let lost = owned.into_iter().filter_map(|Owned { at, owner_epoch, next_offset: offset }| {
            let (low, high) = self.consumer.fetch_watermarks(&at.topic, at.partition, REQUEST_TIMEOUT).ok()?;
            let lost = LostOffset { at, owner_epoch, offset, low, high };
            (!(low..=high).contains(&offset)).then_some(lost)
        });
        match lost.collect::<Vec<_>>() {
            none if none.is_empty() => SourceError::Client {
                bootstrap: "consumer".into(),
                problem: "an offset was out of range and is not any more; starting again".into(),
            },
            lost => SourceError::OffsetsLost(lost),
        }
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

/// Pauses all partitions but one.
fn resume_only(
    consumer: &BaseConsumer<PollContext>,
    all: &TopicPartitionList,
    at: &TopicPartition,
) -> Result<(), KafkaError> {
    let (mut others, mut one) = (TopicPartitionList::new(), TopicPartitionList::new());
    for element in all.elements() {
        let is_one = element.topic() == &*at.topic && element.partition() == at.partition;
        let list = if is_one { &mut one } else { &mut others };
        list.add_partition(element.topic(), element.partition());
    }
    consumer.pause(&others)?;
    // It may just have been given up: then nothing is read until the worker hears of it.
    if one.count() > 0 { consumer.resume(&one) } else { Ok(()) }
}
