//! Batches in, closed windows out: the thread that scores records and keeps the windows of every owned partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::memory::InFlight;
use super::publisher::ToPublisher;
use super::quality::Quality;
use super::{DaemonError, Shared, score_batch};
use crate::config::DeadLetterConfig;
use crate::record::{Reject, TopicPartition};
use crate::score::{VersionedWeight, WeightVersion};
use crate::select::Noise;
use crate::source::{Assigned, Batch, QueueReceiver, SourceError, SourceEvent};
use crate::telemetry::PartitionStatus;
use crate::window::{CloseReason, OpenWindow, ScoredRecord};

/// How often idle windows are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Why the worker ended.
#[derive(Debug)]
pub(super) enum WorkerEnd {
    /// The source or the publisher has gone; they know why.
    Disconnected,
    SourceFailed(SourceError),
    /// Offsets came in an order that must not be.
    OutOfOrder(String),
    /// A person must settle it.
    Fatal(DaemonError),
}

/// Dead letters among the records since it was last looked at.
#[derive(Default)]
struct DeadLetterRatio {
    n_records: u64,
    n_dead_letters: u64,
    /// The last dead letter.
    last: String,
}

impl DeadLetterRatio {
    fn observe(
        &mut self,
        at: &TopicPartition,
        record: &ScoredRecord,
        limits: &DeadLetterConfig,
    ) -> Result<(), DaemonError> {
        self.n_records += 1;
        if let Err(letter) = &record.outcome {
            self.n_dead_letters += 1;
            let Reject { reason, detail } = &letter.reject;
            self.last = format!("{at}/{}, {}: {detail}", letter.offset, reason.as_str());
        }
        if self.n_records < limits.ratio_records {
            return Ok(());
        }
        let DeadLetterRatio { n_records, n_dead_letters, last } = std::mem::take(self);
        let max_ratio = limits.max_ratio;
        match n_dead_letters as f64 > max_ratio * n_records as f64 {
            true => Err(DaemonError::TooManyDeadLetters { n_dead_letters, n_records, max_ratio, last }),
            false => Ok(()),
        }
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    queue: QueueReceiver,
    publisher: mpsc::Sender<ToPublisher>,
    in_flight: Arc<InFlight>,
    partitions: BTreeMap<TopicPartition, Partition>,
    quality: Quality,
    weights: watch::Receiver<Arc<VersionedWeight>>,
    dead_letters: DeadLetterRatio,
}

struct Partition {
    owner_epoch: i64,
    noise: Noise,
    window: OpenWindow,
    /// Since when the end of the partition has been reached and nothing came.
    idle_since: Option<Instant>,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        queue: QueueReceiver,
        publisher: mpsc::Sender<ToPublisher>,
        in_flight: Arc<InFlight>,
        weights: watch::Receiver<Arc<VersionedWeight>>,
    ) -> Self {
        let quality = Quality::new(&shared.model.model);
        Worker {
            shared,
            queue,
            publisher,
            in_flight,
            partitions: BTreeMap::new(),
            quality,
            weights,
            dead_letters: DeadLetterRatio::default(),
        }
    }

    /// Works until the source or the publisher ends, or the session does.
    pub fn run(mut self, runtime: &Handle, stopped: &watch::Receiver<bool>) -> WorkerEnd {
        loop {
            if *stopped.borrow() {
                return WorkerEnd::Disconnected;
            }
            let next = runtime.block_on(async { tokio::time::timeout(TICK, self.queue.next()).await });
            let result = match next {
                Err(_elapsed) => self.close_idle(),
                Ok(None) => Err(WorkerEnd::Disconnected),
                Ok(Some(event)) => self.on_event(event).and_then(|()| self.close_idle()),
            };
            if let Err(end) = result {
                return end;
            }
            self.show_memory();
        }
    }

    fn on_event(&mut self, event: SourceEvent) -> Result<(), WorkerEnd> {
        match event {
            SourceEvent::Batch(batch) => {
                self.on_batch(&batch)?;
                self.queue.release(batch);
            }
            SourceEvent::Assigned(assigned) => assigned.into_iter().for_each(|a| self.on_assigned(a)),
            SourceEvent::Revoked { partitions, lost, done } => {
                for at in &partitions {
                    self.partitions.remove(at);
                }
                self.shared.telemetry.forget(&partitions);
                self.show_partitions();
                let message = if lost { ToPublisher::Lost(partitions) } else { ToPublisher::Flush(done) };
                self.send(message)?;
            }
            SourceEvent::ReachedEnd(ends) => {
                let now = Instant::now();
                for Assigned { at, owner_epoch, next_offset } in ends {
                    let partition = self.partitions.get_mut(&at).filter(|p| p.owner_epoch == owner_epoch);
                    let Some(partition) = partition else { continue };
                    partition.idle_since = Some(now);
                    if next_offset > partition.window.next_offset() {
                        partition.window.advance_to(next_offset);
                    }
                }
                self.show_consumed();
            }
            SourceEvent::Failed(error) => return Err(WorkerEnd::SourceFailed(error)),
        }
        Ok(())
    }

    fn on_assigned(&mut self, Assigned { at, owner_epoch, next_offset }: Assigned) {
        let partition = Partition {
            owner_epoch,
            noise: Noise::new(self.shared.config.selector.seed, &at),
            window: self.open_window(&at, next_offset),
            idle_since: None,
        };
        let status = PartitionStatus { consumed: next_offset, published: next_offset, end_offset: None };
        self.shared.telemetry.status().partitions.insert(at.clone(), status);
        self.partitions.insert(at, partition);
        self.show_partitions();
    }

    fn on_batch(&mut self, batch: &Batch) -> Result<(), WorkerEnd> {
        let shared = self.shared.clone();
        let timer = shared.telemetry.metrics.score_seconds.start_timer();
        let weight = self.weights.borrow_and_update().clone();
        let kept_bytes = shared.config.dead_letters.payload_bytes;
        let weights = self.weights_of(batch, &weight);
        let of_record = |i: usize| weights.get(i).unwrap_or(&weight);
        let scored = score_batch(batch, &shared.config.decoder, kept_bytes, |i| &of_record(i).weight);
        timer.observe_duration();
        for (i, record) in scored.into_iter().enumerate() {
            let seen = batch.get(i);
            let owned = self.partitions.get(seen.at).is_some_and(|p| p.owner_epoch == seen.owner_epoch);
            // Otherwise the partition was revoked after this record had been read: its next owner decides it.
            if owned {
                let looked_at = self.dead_letters.observe(seen.at, &record, &shared.config.dead_letters);
                looked_at.map_err(WorkerEnd::Fatal)?;
                self.on_record(seen.at, record, of_record(i), &weight)?;
            }
        }
        self.show_consumed();
        self.relieve_memory()
    }

    /// What each record is scored with: by what its window has pinned, so that it need not be scored again. Nothing where
    /// the model alone makes the weights.
    fn weights_of(&self, batch: &Batch, newest: &Arc<VersionedWeight>) -> Vec<Arc<VersionedWeight>> {
        if newest.version == WeightVersion::default() {
            return Vec::new();
        }
        let pinned = |at| self.partitions.get(at).and_then(|partition| partition.window.pinned());
        (0..batch.len()).map(|i| pinned(batch.get(i).at).unwrap_or(newest).clone()).collect()
    }

    fn show_consumed(&self) {
        let mut status = self.shared.telemetry.status();
        for (at, partition) in &self.partitions {
            if let Some(shown) = status.partitions.get_mut(at) {
                shown.consumed = partition.window.next_offset();
            }
        }
    }

    fn on_record(
        &mut self,
        at: &TopicPartition,
        record: ScoredRecord,
        scored_with: &Arc<VersionedWeight>,
        newest: &Arc<VersionedWeight>,
    ) -> Result<(), WorkerEnd> {
        let metrics = &self.shared.telemetry.metrics;
        metrics.consumed_records.inc();
        metrics.consumed_bytes.inc_by(record.payload_bytes);
        if let Ok(document) = &record.outcome {
            metrics.scored_tokens.inc_by(document.score.n_tokens.into());
        }
        let policy = self.shared.config.window;
        let selector = self.shared.config.selector;
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        let expected = partition.window.next_offset();
        if record.offset < expected {
            return Err(WorkerEnd::OutOfOrder(format!(
                "partition {at}: offset {} came after {expected}",
                record.offset
            )));
        }
        partition.idle_since = None;
        if partition.window.closes_before(record.record_timestamp_ms, &policy) {
            self.close(at, CloseReason::Age)?;
        }
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        partition.window.pin(newest);
        partition.window.push(record, scored_with, &selector, &partition.noise);
        match partition.window.closes_now(&policy) {
            Some(reason) => self.close(at, reason),
            None => Ok(()),
        }
    }

    fn close_idle(&mut self) -> Result<(), WorkerEnd> {
        let timeout = self.shared.config.idle_timeout;
        let is_idle = |p: &Partition| !p.window.is_empty() && p.idle_since.is_some_and(|t| t.elapsed() >= timeout);
        let idle: Vec<_> = self.partitions.iter().filter(|(_, p)| is_idle(p)).map(|(at, _)| at.clone()).collect();
        idle.iter().try_for_each(|at| self.close(at, CloseReason::Idle))
    }

    /// Keeps windows within their share of the memory: waits for the publisher, and if that does not help, closes the
    /// largest window early. Its extent is recorded, so a replay repeats it.
    fn relieve_memory(&mut self) -> Result<(), WorkerEnd> {
        let limit = self.shared.limits.window_bytes;
        loop {
            let open = self.open_bytes();
            if open + self.in_flight.bytes() <= limit {
                return Ok(());
            }
            if self.publisher.is_closed() {
                return Err(WorkerEnd::Disconnected);
            }
            if self.in_flight.bytes() > 0 {
                self.in_flight.wait(TICK);
                continue;
            }
            let largest = self.partitions.iter().filter(|(_, p)| !p.window.is_empty());
            let Some(at) = largest.max_by_key(|(_, p)| p.window.held_bytes()).map(|(at, _)| at.clone()) else {
                return Ok(());
            };
            tracing::warn!(
                "open windows hold {} MB of {} MB: closing the one of partition {at} early; raise memory.budget or lower \
                 window.max_documents",
                open >> 20,
                limit >> 20
            );
            self.close(&at, CloseReason::Memory)?;
        }
    }

    fn close(&mut self, at: &TopicPartition, reason: CloseReason) -> Result<(), WorkerEnd> {
        let Some(partition) = self.partitions.get(at) else { return Ok(()) };
        let next = self.open_window(at, partition.window.next_offset());
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        let (owner_epoch, noise) = (partition.owner_epoch, partition.noise.clone());
        let window = std::mem::replace(&mut partition.window, next);
        let held_bytes = window.held_bytes();
        let closed = window.close(reason, &self.shared.config.selector, &noise, &self.shared.model.target);
        self.quality.observe(&closed, &self.shared);
        self.in_flight.add(held_bytes);
        self.send(ToPublisher::Window { window: Box::new(closed), owner_epoch, held_bytes })
    }

    fn open_window(&self, at: &TopicPartition, from: i64) -> OpenWindow {
        let config = &self.shared.config;
        OpenWindow::new(
            at.clone(),
            from,
            &config.window,
            &config.selector,
            self.shared.model.model.featuriser.buckets as usize,
        )
    }

    fn send(&self, message: ToPublisher) -> Result<(), WorkerEnd> {
        self.publisher.blocking_send(message).map_err(|_| WorkerEnd::Disconnected)
    }

    fn open_bytes(&self) -> usize {
        self.partitions.values().map(|p| p.window.held_bytes()).sum()
    }

    fn show_partitions(&self) {
        self.shared.telemetry.metrics.assigned_partitions.set(self.partitions.len() as i64);
    }

    fn show_memory(&self) {
        let held = &self.shared.telemetry.metrics.held_bytes;
        held.with_label_values(&["queue"]).set(self.queue.queued_bytes() as i64);
        held.with_label_values(&["windows"]).set((self.open_bytes() + self.in_flight.bytes()) as i64);
    }
}
