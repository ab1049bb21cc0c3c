//! Batches in, closed windows out: the thread that scores records and keeps the windows of every owned partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::adaptive::{InForce, version_of, version_of_edges};
use super::idleness::Idleness;
use super::memory::InFlight;
use super::publisher::ToPublisher;
use super::quality::Quality;
use super::scoring::{Destinations, ScoredBatch, Scorer};
use super::spooling::{Spooling, Waiting};
use super::{DaemonError, Shared, schemas};
use crate::config::DeadLetterConfig;
use crate::record::{Reject, TopicPartition};
use crate::score::{Score, VersionedWeight};
use crate::select::{Division, FixedEdges, Noise, StreamClusters, Unit};
use crate::sink::{SinkError, Spool};
use crate::source::{Assigned, Batch, QueueReceiver, SourceError, SourceEvent};
use crate::telemetry::PartitionStatus;
use crate::window::{CloseReason, Forecast, OpenWindow, Opening, ScoredRecord, SpooledRow, WindowTally};

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
    /// Rows that wait for their window cannot be written or read.
    SpoolFailed(SinkError),
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
    scorer: Scorer,
    partitions: BTreeMap<TopicPartition, Partition>,
    quality: Quality,
    in_force: watch::Receiver<InForce>,
    /// How windows are divided that open from now on.
    division: Arc<Division>,
    /// What they take of the clusters of the stream, where that is wanted.
    clusters: Option<StreamClusters>,
    /// And of its sketches.
    edges: Option<Arc<FixedEdges>>,
    dead_letters: DeadLetterRatio,
    spooling: Spooling,
    /// Ends of partitions that were told.
    n_ends: u64,
}

struct Partition {
    owner_epoch: i64,
    noise: Noise,
    window: OpenWindow,
    /// Rows of the window that wait on disk; `None` until there is one.
    spool: Option<Spool>,
    idleness: Idleness,
}

impl Worker {
    pub fn new(
        shared: Arc<Shared>,
        queue: QueueReceiver,
        publisher: mpsc::Sender<ToPublisher>,
        in_flight: Arc<InFlight>,
        in_force: watch::Receiver<InForce>,
        spooling: Spooling,
    ) -> Self {
        let quality = Quality::new(&shared.model.model, &shared.config.selector.quotas);
        let InForce { division, clusters, edges, .. } = in_force.borrow().clone();
        let mut scorer = Scorer::new(shared.config.decoder.clone(), shared.config.dead_letters.payload_bytes);
        scorer.filter_by(shared.filter.clone());
        if shared.config.selector.unit == Unit::Tokens {
            scorer.count_with(shared.columns.tokenizer().cloned());
        }
        Worker {
            shared,
            queue,
            publisher,
            in_flight,
            scorer,
            partitions: BTreeMap::new(),
            quality,
            in_force,
            division,
            clusters,
            edges,
            dead_letters: DeadLetterRatio::default(),
            spooling,
            n_ends: 0,
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
                Err(_elapsed) => self.close_idle().and_then(|()| self.relieve_spool()),
                Ok(None) => Err(WorkerEnd::Disconnected),
                Ok(Some(event)) => self.on_event(event, runtime, stopped).and_then(|()| self.close_idle()),
            };
            if let Err(end) = result {
                return end;
            }
            self.quality.show_if_due(&self.shared);
            self.show_memory();
        }
    }

    fn on_event(
        &mut self,
        event: SourceEvent,
        runtime: &Handle,
        stopped: &watch::Receiver<bool>,
    ) -> Result<(), WorkerEnd> {
        match event {
            SourceEvent::Batch(batch) => {
                let schemas = runtime.block_on(schemas::of_batch(&self.shared, &batch, stopped.clone()));
                // Nothing of it is decided when the session ends first.
                self.scorer.read_with(schemas.ok_or(WorkerEnd::Disconnected)?);
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
                    self.n_ends += 1;
                    partition.idleness.on_end(self.n_ends, now);
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
            spool: None,
            idleness: Idleness::new(self.spooling.reading(&at)),
        };
        let status = PartitionStatus {
            owner_epoch,
            consumed: next_offset,
            published: next_offset,
            end_offset: None,
            window: None,
        };
        self.shared.telemetry.status().partitions.insert(at.clone(), status);
        self.partitions.insert(at, partition);
        self.show_partitions();
    }

    fn on_batch(&mut self, batch: &Batch) -> Result<(), WorkerEnd> {
        let shared = self.shared.clone();
        let timer = shared.telemetry.metrics.score_seconds.start_timer();
        let in_force = self.in_force.borrow_and_update().clone();
        let newest = in_force.weight.clone();
        self.open_with(in_force);
        let scored = self.scorer.score(batch, self.destinations(batch, &newest));
        timer.observe_duration();
        let ScoredBatch { records, of_records, weights, mut tallies } = scored;
        self.show_records(records.iter().flatten());
        for (i, (record, number)) in records.into_iter().zip(of_records).enumerate() {
            // Otherwise the partition was revoked after this record had been read: its next owner decides it.
            if let (Some(record), Some(number)) = (record, number) {
                let at = batch.get(i).at;
                let looked_at = self.dead_letters.observe(at, &record, &shared.config.dead_letters);
                looked_at.map_err(WorkerEnd::Fatal)?;
                // With the first record of a window come the counts of all.
                let counts = std::mem::take(&mut tallies[number as usize]);
                self.on_record(at, record, &weights[number as usize], counts)?;
            }
        }
        self.show_consumed();
        // Of all windows together, and before it is looked at what they hold.
        let spools = self.partitions.values_mut().filter_map(|partition| partition.spool.as_mut());
        Spool::write(spools).map_err(WorkerEnd::SpoolFailed)?;
        self.relieve_spool()?;
        self.relieve_memory()
    }

    /// Opens windows so from now on, also those that still wait for their first record.
    fn open_with(&mut self, InForce { division, clusters, edges, .. }: InForce) {
        if division.version() == self.division.version()
            && version_of(&clusters) == version_of(&self.clusters)
            && version_of_edges(&edges) == version_of_edges(&self.edges)
        {
            return;
        }
        (self.division, self.clusters, self.edges) = (division, clusters, edges);
        let waiting = self.partitions.iter().filter(|(_, partition)| partition.window.is_empty());
        let waiting: Vec<_> = waiting.map(|(at, partition)| (at.clone(), partition.window.next_offset())).collect();
        for (at, from) in waiting {
            let window = self.open_window(&at, from);
            self.partitions.entry(at).and_modify(|partition| partition.window = window);
        }
    }

    /// The windows that the records will belong to, and what each is scored with: what it has pinned, else the newest.
    fn destinations(&self, batch: &Batch, newest: &Arc<VersionedWeight>) -> Destinations<'_> {
        let config = &self.shared.config;
        let mut destinations = Destinations::new(&config.selector, &config.window, batch);
        let owned = batch.partitions().iter().map(|(at, owner_epoch)| {
            let partition = self.partitions.get(at).filter(|p| p.owner_epoch == *owner_epoch)?;
            Some((partition, Forecast::from(partition.window.extent()), None))
        });
        let mut owned: Vec<_> = owned.collect();
        for i in 0..batch.len() {
            let record = batch.get(i);
            let payload_bytes = batch.payload_bytes(i);
            let number = owned[batch.partition_of(i)].as_mut().map(|(partition, forecast, last)| {
                let nth = forecast.next(record.timestamp_ms, payload_bytes, &config.window);
                let number = last.filter(|(last, _)| *last == nth).map_or_else(
                    || {
                        let open = (nth == 0).then_some(&partition.window);
                        let weight = open.and_then(OpenWindow::pinned).unwrap_or(newest).clone();
                        match open {
                            Some(window) => destinations.open(window, weight, &partition.noise),
                            None => destinations.coming(&self.division, weight, &partition.noise),
                        }
                    },
                    |(_, number)| number,
                );
                *last = Some((nth, number));
                number
            });
            destinations.record(number, payload_bytes);
        }
        destinations
    }

    fn show_records<'a>(&self, records: impl Iterator<Item = &'a ScoredRecord>) {
        let (mut n_records, mut n_bytes, mut n_tokens) = (0, 0, 0);
        let mut refused: BTreeMap<u16, u64> = BTreeMap::new();
        for record in records {
            n_records += 1;
            n_bytes += record.payload_bytes;
            n_tokens += record.outcome.as_ref().map_or(0, |document| u64::from(document.score.n_tokens));
            if let Ok(document) = &record.outcome
                && let Some(clause) = document.refused_by
            {
                *refused.entry(clause).or_default() += 1;
            }
        }
        self.show_refused(refused);
        let metrics = &self.shared.telemetry.metrics;
        metrics.consumed_records.inc_by(n_records);
        metrics.consumed_bytes.inc_by(n_bytes);
        metrics.scored_tokens.inc_by(n_tokens);
    }

    /// By clause of the filter.
    fn show_refused(&self, refused: BTreeMap<u16, u64>) {
        let Some(filter) = &self.shared.filter else { return };
        let labels: Vec<&str> = filter.labels().collect();
        let counter = &self.shared.telemetry.metrics.filtered_documents;
        for (clause, n) in refused {
            counter.with_label_values(&[labels[usize::from(clause)]]).inc_by(n);
        }
    }

    fn show_consumed(&self) {
        for (at, partition) in &self.partitions {
            self.shared.telemetry.show_window(at, &partition.window);
        }
    }

    /// `counts`: of documents of its window that have been counted.
    fn on_record(
        &mut self,
        at: &TopicPartition,
        record: ScoredRecord,
        scored_with: &Arc<VersionedWeight>,
        counts: Vec<WindowTally>,
    ) -> Result<(), WorkerEnd> {
        let policy = self.shared.config.window;
        let Some(mut partition) = self.partitions.get_mut(at) else { return Ok(()) };
        let expected = partition.window.next_offset();
        if record.offset < expected {
            return Err(WorkerEnd::OutOfOrder(format!(
                "partition {at}: offset {} came after {expected}",
                record.offset
            )));
        }
        partition.idleness.on_record();
        if partition.window.extent().closes_before(record.record_timestamp_ms, &policy) {
            self.close(at, CloseReason::Age)?;
            let Some(same) = self.partitions.get_mut(at) else { return Ok(()) };
            partition = same;
        }
        self.scorer.count(counts, &mut partition.window);
        let waits = partition.window.push(record, scored_with, &self.shared.config.selector, &partition.noise);
        if let Some(row) = waits {
            self.spooling.push(&mut partition.spool, &row);
        }
        match partition.window.extent().closes_now(&policy) {
            Some(reason) => self.close(at, reason),
            None => Ok(()),
        }
    }

    fn close_idle(&mut self) -> Result<(), WorkerEnd> {
        let (timeout, now) = (self.shared.config.idle_timeout, Instant::now());
        let is_idle = |p: &Partition| !p.window.is_empty() && p.idleness.is_beyond(timeout, now);
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
                topic = &*at.topic,
                partition = at.partition,
                "open windows hold {} MB of {} MB: closing the one of partition {at} early; raise memory.budget or lower \
                 window.max_documents",
                open >> 20,
                limit >> 20
            );
            self.close(&at, CloseReason::Memory)?;
        }
    }

    /// Keeps documents that wait within their share of the disk: beyond most of it one partition alone is read, until windows
    /// that are decided give room back. Only what was read before can be too much all the same: then it is waited for the
    /// publisher and for files that are being deleted, and if that does not help the fullest window closes early.
    fn relieve_spool(&mut self) -> Result<(), WorkerEnd> {
        while self.spooling.is_beyond_budget() {
            if self.publisher.is_closed() {
                return Err(WorkerEnd::Disconnected);
            }
            // The last of it may have come back between the two looks.
            if self.await_freed() || !self.spooling.is_beyond_budget() {
                continue;
            }
            let fullest =
                waiting(&self.partitions).filter(|waiting| waiting.bytes > 0).max_by_key(|waiting| waiting.bytes);
            let Some(at) = fullest.map(|waiting| waiting.at.clone()) else { break };
            tracing::warn!(
                topic = &*at.topic,
                partition = at.partition,
                "documents of open windows take more than spool.max_bytes: closing the window of partition {at} early; raise \
                 spool.max_bytes or lower window.max_documents"
            );
            self.close(&at, CloseReason::Spool)?;
        }
        let waiting = waiting(&self.partitions);
        if let Some(only) = self.spooling.next(waiting) {
            self.queue.read_only(only);
            let now = Instant::now();
            for (at, partition) in &mut self.partitions {
                partition.idleness.is_read(self.spooling.reading(at), now);
            }
        }
        Ok(())
    }

    fn close(&mut self, at: &TopicPartition, reason: CloseReason) -> Result<(), WorkerEnd> {
        let Some(partition) = self.partitions.get(at) else { return Ok(()) };
        let next = self.open_window(at, partition.window.next_offset());
        let Some(partition) = self.partitions.get_mut(at) else { return Ok(()) };
        let (owner_epoch, noise) = (partition.owner_epoch, partition.noise.clone());
        let mut window = std::mem::replace(&mut partition.window, next);
        self.shared.telemetry.show_window(at, &partition.window);
        let (waiting, held_bytes) = (partition.spool.take(), window.held_bytes());
        let selector = &self.shared.config.selector;
        let points = |numbers: &[u32], look: &mut dyn FnMut(&Score, &[f32])| match &waiting {
            Some(spool) => spool.points(numbers, look),
            None => Ok(()),
        };
        window.place(selector, &noise, points).map_err(WorkerEnd::SpoolFailed)?;
        let mut spool = None;
        let rows = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| {
            self.await_room(waiting.as_ref(), numbers.len());
            self.spooling.keep(waiting, numbers, look).map(|kept| spool = kept)
        };
        let closed = window.close_with(reason, selector, &noise, &self.shared.model.target, rows);
        let closed = closed.map_err(WorkerEnd::SpoolFailed)?;
        let held_bytes = match &spool {
            Some(spool) => closed.held_bytes() + spool.held_bytes(),
            None => held_bytes + closed.selected_counts_bytes(),
        };
        self.quality.observe(&closed, &self.shared);
        self.in_flight.add(held_bytes);
        self.send(ToPublisher::Window { window: Box::new(closed), spool, owner_epoch, held_bytes })
    }

    /// Whether room on disk comes back without a window being closed: from the publisher, or of files that are being deleted,
    /// which takes seconds. Then it has waited for a moment.
    fn await_freed(&self) -> bool {
        if self.in_flight.bytes() > 0 {
            self.in_flight.wait(TICK);
            return true;
        }
        let is_coming = self.spooling.is_room_coming();
        if is_coming {
            std::thread::sleep(TICK);
        }
        is_coming
    }

    /// What a window selects is written beside all of its rows. Until there is room for that, what windows before it have selected
    /// goes into the shard, and their files are deleted.
    fn await_room(&self, spool: Option<&Spool>, n_selected: usize) {
        let Some(spool) = spool else { return };
        while !self.spooling.has_room_to_keep(spool, n_selected) && !self.publisher.is_closed() && self.await_freed() {}
    }

    fn open_window(&self, at: &TopicPartition, from: i64) -> OpenWindow {
        let config = &self.shared.config;
        let buckets = self.shared.model.model.featuriser.buckets as usize;
        let (clusters, edges) = (self.clusters.as_ref(), self.edges.as_ref());
        let opening = Opening { division: &self.division, clusters, edges, buckets };
        OpenWindow::new(at.clone(), from, &config.window, &config.selector, opening)
    }

    fn send(&self, message: ToPublisher) -> Result<(), WorkerEnd> {
        self.publisher.blocking_send(message).map_err(|_| WorkerEnd::Disconnected)
    }

    fn open_bytes(&self) -> usize {
        let of_partition = |p: &Partition| p.window.held_bytes() + p.spool.as_ref().map_or(0, Spool::held_bytes);
        let clusters: BTreeMap<i64, usize> =
            self.partitions.values().filter_map(|p| p.window.clusters_held()).collect();
        self.partitions.values().map(of_partition).sum::<usize>() + clusters.values().sum::<usize>()
    }

    fn show_partitions(&self) {
        self.shared.telemetry.metrics.assigned_partitions.set(self.partitions.len() as i64);
    }

    fn show_memory(&self) {
        let held = &self.shared.telemetry.metrics.held_bytes;
        held.with_label_values(&["queue"]).set(self.queue.queued_bytes() as i64);
        self.spooling.show(&self.shared.telemetry, self.partitions.len());
        held.with_label_values(&["windows"]).set((self.open_bytes() + self.in_flight.bytes()) as i64);
    }
}

/// Windows with documents on disk.
fn waiting(partitions: &BTreeMap<TopicPartition, Partition>) -> impl Iterator<Item = Waiting<'_>> {
    partitions.iter().filter_map(|(at, partition)| {
        let Partition { window, spool, idleness, .. } = partition;
        let (bytes, is_at_end, last_end) = (spool.as_ref()?.bytes(), idleness.is_at_end(), idleness.last_end());
        Some(Waiting { at, from: window.from(), bytes, is_at_end, last_end })
    })
}
