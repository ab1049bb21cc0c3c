//! The loop back: reports of trainers from their topic into the catalog, each once.
//!
//! It has a consumer group and sessions of its own, so that whatever is wrong with feedback never holds documents up. A session begins
//! at the catalog's checkpoints of the losses' topic; any error that is not settled by waiting ends it, and the next one begins there
//! again: a COMMIT without an answer, too, which the checkpoint then tells the outcome of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::assignments::Claims;
use crate::catalog::{Advance, CatalogError, FeedbackRequest, GapReason};
use crate::checkpoint::{Interval, Progress};
use crate::config::{FeedbackConfig, KafkaConfig, StartPolicy};
use crate::record::{BadReport, LossReport, TopicPartition};
use crate::source::{
    Assigned, Assignments, Batch, KafkaSource, LostOffset, OffsetMirror, PartitionLag, PollHeartbeat, QueueReceiver,
    QueueSender, SourceError, SourceEvent, SourceLimits, Unowned, queue,
};

/// Of reports that wait to be taken, and again of those that were fetched: they are small beside documents.
const QUEUE_BYTES: usize = 4 << 20;
/// Until what failed is tried again, and at most.
const RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// After so long a session counts as one that worked.
const SOUND: Duration = Duration::from_secs(60);
/// For leaving the group.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// Takes reports until `shutdown` turns true; at once over where trainers are not listened to.
pub(super) async fn run(shared: Arc<Shared>, mut shutdown: watch::Receiver<bool>) {
    let Some(config) = shared.config.feedback.clone() else { return };
    let mut wait = RETRY;
    loop {
        let began = Instant::now();
        let Err(problem) = session(&shared, &config, shutdown.clone()).await else { return };
        wait = if began.elapsed() > SOUND { RETRY } else { (2 * wait).min(MAX_RETRY) };
        tracing::warn!(
            "losses are not taken: {problem}; beginning again at the checkpoints of topic {} in {:.1} s",
            config.topic,
            wait.as_secs_f64()
        );
        shared.telemetry.metrics.feedback.restarts.inc();
        shared.telemetry.status().feedback.get_or_insert_default().problem = Some(problem);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// Ends without an error by a shutdown only.
async fn session(
    shared: &Arc<Shared>,
    config: &FeedbackConfig,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), String> {
    let Shared { catalog, model, .. } = &**shared;
    let pipeline = &shared.config.pipeline;
    let begin = async {
        catalog.register(pipeline, &model.id, &model.bytes).await?;
        catalog.begin_feedback(pipeline, &model.model.featuriser, &config.settings).await?;
        catalog.feedback_summary(pipeline).await
    };
    if let Some(learnt) = begin.await.map_err(|e| e.to_string())? {
        shared.telemetry.set_feedback(learnt);
    }
    let kafka = KafkaConfig {
        topics: vec![config.topic.clone()],
        group: format!("{}-feedback", shared.config.kafka.group),
        // Losses that were reported before are of documents that may still be known.
        start: StartPolicy::Earliest,
        parts: Vec::new(),
        ..shared.config.kafka.clone()
    };
    let (sender, receiver) = queue(QUEUE_BYTES);
    let claims = Claims { shared: shared.clone(), runtime: Handle::current(), shutdown: shutdown.clone() };
    let lags = Arc::new(std::sync::Mutex::default());
    let topic = config.topic.clone();
    let assignments = Arc::new(FeedbackAssignments { claims, queue: sender.clone(), lags: lags.clone(), topic });
    let limits = SourceLimits { prefetch_bytes: QUEUE_BYTES, fetch_bytes: QUEUE_BYTES };
    let source = KafkaSource::start(&kafka, &shared.bootstrap, limits, sender, assignments, PollHeartbeat::default());
    let source = source.map_err(|e| e.to_string())?;
    let mut taker = Taker {
        shared: shared.clone(),
        config: config.clone(),
        queue: receiver,
        mirror: source.mirror(),
        lags,
        owned: BTreeMap::new(),
        pending: Pending::default(),
    };
    let end = tokio::select! {
        biased;
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
        end = taker.run() => Err(end),
    };
    // What is pending is dropped and read again.
    drop(taker);
    let left = tokio::task::spawn_blocking(move || source.stop(LEAVE_DEADLINE)).await.unwrap_or(false);
    if !left {
        tracing::info!("kafka: the group of the losses' topic could not be left in time; going on without");
    }
    match end {
        Ok(()) => Ok(()),
        Err(End::Restart(problem)) => Err(problem),
        Err(End::Lost(lost)) => Err(settle(shared, lost).await),
    }
}

enum End {
    Restart(String),
    Lost(Vec<LostOffset>),
}

/// Losses that retention has removed are gone, and not worth stopping for: the gap is recorded and passed over.
async fn settle(shared: &Shared, lost: Vec<LostOffset>) -> String {
    for lost in lost {
        if !lost.is_before_log() {
            return lost.to_string();
        }
        let LostOffset { at, owner_epoch, offset, low, .. } = lost;
        let interval = Interval { from: offset, to: low };
        match shared.catalog.skip(&shared.config.pipeline, &at, interval, owner_epoch, GapReason::Retention).await {
            Ok(()) | Err(CatalogError::Fenced { .. }) => {}
            Err(e) => return e.to_string(),
        }
    }
    "retention has removed reports before they were taken, which is recorded as a gap".to_owned()
}

/// Ends of the partitions of the losses' topic.
type Lags = Arc<std::sync::Mutex<BTreeMap<TopicPartition, i64>>>;

struct FeedbackAssignments {
    claims: Claims,
    queue: QueueSender,
    lags: Lags,
    topic: String,
}

impl Assignments for FeedbackAssignments {
    fn assigned(
        &self,
        partitions: &[TopicPartition],
        topic_ids: &BTreeMap<Arc<str>, String>,
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError> {
        let assigned = self.claims.take_over(partitions, topic_ids, resolve)?;
        // A closed queue means that the session is ending; nothing is read then.
        let _ = self.queue.control(SourceEvent::Assigned(assigned.clone()));
        Ok(assigned)
    }

    fn revoked(&self, partitions: &[TopicPartition], lost: bool) {
        for at in partitions {
            tracing::info!("partition {at}: {}", if lost { "lost" } else { "revoked" });
        }
        self.claims.drain(&self.queue, partitions, lost);
    }

    fn lag(&self, lags: Vec<PartitionLag>) {
        let mut ends = self.lags.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ends.extend(lags.into_iter().map(|lag| (lag.at, lag.end_offset)));
    }

    /// The consumer of documents says so.
    fn brokers_answer(&self, _: bool) {}

    fn unowned(&self, unowned: &[Unowned], to_mend: &[TopicPartition]) {
        self.claims.show_unowned(std::slice::from_ref(&self.topic), unowned, to_mend);
    }
}

/// Reports that are taken together next.
#[derive(Default)]
struct Pending {
    progress: Progress,
    reports: Vec<LossReport>,
    n_bad_reports: u64,
    n_losses: u64,
    since: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Owned {
    owner_epoch: i64,
    next_offset: i64,
}

struct Taker {
    shared: Arc<Shared>,
    config: FeedbackConfig,
    queue: QueueReceiver,
    mirror: OffsetMirror,
    lags: Lags,
    owned: BTreeMap<TopicPartition, Owned>,
    pending: Pending,
}

impl Taker {
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.round().await {
                return end;
            }
        }
    }

    async fn round(&mut self) -> Result<(), End> {
        let due = self.pending.since.map(|since| since + self.config.interval);
        let next = match due {
            Some(due) => tokio::time::timeout_at(due, self.queue.next()).await,
            None => Ok(self.queue.next().await),
        };
        match next {
            Err(_elapsed) => self.flush().await?,
            Ok(None) => return Err(End::Restart("the polling thread ended".to_owned())),
            Ok(Some(event)) => self.on_event(event).await?,
        }
        if due.is_some_and(|due| due <= Instant::now()) {
            self.flush().await?;
        }
        self.show_lag();
        Ok(())
    }

    async fn on_event(&mut self, event: SourceEvent) -> Result<(), End> {
        match event {
            SourceEvent::Batch(batch) => {
                self.on_batch(&batch).await?;
                self.queue.release(batch);
            }
            SourceEvent::Assigned(assigned) => {
                for Assigned { at, owner_epoch, next_offset } in assigned {
                    self.owned.insert(at, Owned { owner_epoch, next_offset });
                }
            }
            SourceEvent::Revoked { partitions, lost, done } => {
                if lost {
                    return Err(End::Restart("the group has given the partitions away".to_owned()));
                }
                self.flush().await?;
                self.owned.retain(|at, _| !partitions.contains(at));
                // Nobody waits any more when the drain deadline has passed.
                let _ = done.send(());
            }
            SourceEvent::ReachedEnd(ends) => {
                for Assigned { at, owner_epoch, next_offset } in ends {
                    let owned = self.owned.get(&at).filter(|owned| owned.owner_epoch == owner_epoch);
                    if owned.is_some_and(|owned| owned.next_offset < next_offset) {
                        self.advance(&at, next_offset)?;
                    }
                }
            }
            SourceEvent::Failed(SourceError::OffsetsLost(lost)) => return Err(End::Lost(lost)),
            SourceEvent::Failed(error) => return Err(End::Restart(error.to_string())),
        }
        Ok(())
    }

    async fn on_batch(&mut self, batch: &Batch) -> Result<(), End> {
        for i in 0..batch.len() {
            let record = batch.get(i);
            let owned = self.owned.get(record.at).filter(|owned| owned.owner_epoch == record.owner_epoch);
            // Otherwise the partition was revoked after this record had been read: its next owner takes it.
            let Some(owned) = owned else { continue };
            if record.offset < owned.next_offset {
                let (at, offset, expected) = (record.at, record.offset, owned.next_offset);
                return Err(End::Restart(format!("partition {at}: offset {offset} came after {expected}")));
            }
            self.advance(record.at, record.offset + 1)?;
            match self.config.decoder.decode(record.payload) {
                Ok(report) => {
                    self.pending.n_losses += report.n_entries() as u64;
                    self.pending.reports.push(report);
                }
                Err(bad) => self.on_bad_report(record.at, record.offset, &bad),
            }
            if self.pending.n_losses >= self.config.batch_losses {
                self.flush().await?;
            }
        }
        Ok(())
    }

    fn on_bad_report(&mut self, at: &TopicPartition, offset: i64, bad: &BadReport) {
        self.pending.n_bad_reports += 1;
        let metric = self.shared.telemetry.metrics.feedback.bad_reports.with_label_values(&[bad.reason.as_str()]);
        // The first of a kind is told of; the metric says how many followed.
        if metric.get() == 0 {
            tracing::warn!("{at}/{offset} is no report of losses ({}): {bad}", bad.reason.as_str());
        }
        metric.inc();
    }

    fn advance(&mut self, at: &TopicPartition, to: i64) -> Result<(), End> {
        let Some(owned) = self.owned.get_mut(at) else { return Ok(()) };
        let interval = Interval { from: owned.next_offset, to };
        self.pending.progress.append(at, interval).map_err(|e| End::Restart(e.to_string()))?;
        owned.next_offset = to;
        self.pending.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Takes everything pending in one transaction, however long the catalog is away.
    async fn flush(&mut self) -> Result<(), End> {
        let Pending { progress, reports, n_bad_reports, .. } = std::mem::take(&mut self.pending);
        if progress.is_empty() {
            return Ok(());
        }
        let epoch = |at: &TopicPartition| self.owned.get(at).map_or(0, |owned| owned.owner_epoch);
        let advance =
            |(at, interval): (&TopicPartition, _)| Advance { at: at.clone(), interval, owner_epoch: epoch(at) };
        let advances: Vec<Advance> = progress.iter().map(advance).collect();
        let request = FeedbackRequest {
            pipeline: &self.shared.config.pipeline,
            advances: &advances,
            reports: &reports,
            n_bad_reports,
            settings: self.config.settings,
        };
        let mut wait = RETRY;
        let taken = loop {
            match self.shared.catalog.take_feedback(&request).await {
                Ok(taken) => break taken,
                Err(e @ CatalogError::Unavailable { .. }) => {
                    tracing::warn!("losses wait: {e}; trying again in {:.1} s", wait.as_secs_f64());
                    tokio::time::sleep(wait).await;
                    wait = (2 * wait).min(MAX_RETRY);
                }
                Err(e) => return Err(End::Restart(e.to_string())),
            }
        };
        let telemetry = &self.shared.telemetry;
        telemetry.metrics.feedback.reports.inc_by(reports.len() as u64);
        for (outcome, n) in &taken.outcomes {
            telemetry.metrics.feedback.losses.with_label_values(&[outcome.as_str()]).inc_by(*n);
        }
        telemetry.set_feedback(taken.summary);
        self.mirror.commit(advances.into_iter().map(|advance| (advance.at, advance.interval.to)).collect());
        Ok(())
    }

    fn show_lag(&self) {
        let ends = self.lags.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lag = self.owned.iter().map(|(at, owned)| ends.get(at).map_or(0, |end| (end - owned.next_offset).max(0)));
        let pending = self.pending.reports.len() as i64 + self.pending.n_bad_reports as i64;
        self.shared.telemetry.metrics.feedback.lag.set(lag.sum::<i64>() + pending);
    }
}
