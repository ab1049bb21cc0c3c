//! Weights for the topic: reports of ranks in, answers out, at least once.
//!
//! A weight is valid for its step only, and an answer is a function of its reports. So a crash costs at most that reports are
//! read again and a step is answered again, with the same weights if all its ranks are read again; the trainer takes the first
//! answer of a step. Nothing here touches the catalog or the documents, and no failure here stops them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use super::Shared;
use crate::record::{BadReport, LossDecoder, TopicPartition};
use crate::score::{Assembled, Assembly, BatchWeights, LossWeight, Taken};
use crate::source::{GroupReader, OutgoingRecord, PlacedRecord, SourceError, TopicWriter};
use crate::telemetry::{BAD, STALE};

/// After a failure, until the next try.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest wait for a report: deadlines are looked at as often.
const TICK: Duration = Duration::from_millis(50);
/// Offsets of reports that were only read, and of steps that were answered in between.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Answers what is in `losses.topic` until the daemon ends.
pub(super) struct TopicWeights {
    shared: Arc<Shared>,
    topic: String,
    weights_topic: String,
    weigh: LossWeight,
    decoder: LossDecoder,
}

/// The answer for a step that gets no weights.
#[derive(Serialize)]
struct NoWeights<'a> {
    run_id: &'a str,
    step: u64,
    error: String,
}

impl TopicWeights {
    /// `None` unless both topics are configured.
    pub fn of(shared: &Arc<Shared>) -> Option<Self> {
        let losses = &shared.config.losses;
        Some(TopicWeights {
            topic: losses.topic.clone()?,
            weights_topic: losses.weights_topic.clone()?,
            weigh: LossWeight::new(shared.config.loss_weight.settings).expect("the configuration was checked"),
            decoder: losses.decoder(),
            shared: shared.clone(),
        })
    }

    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let this = Arc::new(self);
        loop {
            let (serving, until) = (this.clone(), stopped.clone());
            let served = tokio::task::spawn_blocking(move || serving.serve(&|| !*until.borrow())).await;
            let problem = match served {
                Ok(Ok(())) => return,
                _ if *stopped.borrow() => return,
                Ok(Err(e)) => e.to_string(),
                Err(e) => e.to_string(),
            };
            this.shared.telemetry.metrics.losses.failures.inc();
            tracing::warn!("weights for {}: {problem}; trying again in {} s", this.weights_topic, PATIENCE.as_secs());
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }

    /// From the committed offsets until nobody wants more, or something fails. What waited then is read again.
    fn serve(&self, is_wanted: &dyn Fn() -> bool) -> Result<(), SourceError> {
        let Shared { config, bootstrap, telemetry, .. } = &*self.shared;
        let writer = TopicWriter::connect(&config.kafka, bootstrap)?;
        writer.check(&self.weights_topic)?;
        let reader =
            GroupReader::open(&config.kafka, bootstrap, &format!("{}-weights", config.kafka.group), &self.topic)?;
        let mut assembly = Assembly::new(config.losses.assembly(config.loss_weight.remembered_steps));
        let mut offsets = Offsets::default();
        let began = Instant::now();
        while is_wanted() {
            let record = reader.poll(TICK)?;
            let now_ms = began.elapsed().as_millis() as i64;
            let revoked = reader.revoked();
            assembly.forget(&revoked);
            offsets.forget(&revoked);
            if let Some(record) = record {
                self.take(&mut assembly, &record, now_ms);
                offsets.passed(record.at, record.offset);
            }
            let mut n_answers = 0;
            while let Some(assembled) = assembly.next_batch(now_ms) {
                self.answer(&writer, assembled)?;
                n_answers += 1;
            }
            if n_answers > 0 {
                // Also while the daemon ends, which waits for it, but not for long: what is sent and not committed is answered again.
                self.count_refused(writer.flush(&|| true)?);
            }
            let metrics = &telemetry.metrics.losses;
            metrics.pending_steps.set(assembly.n_pending() as i64);
            metrics.pending_bytes.set(assembly.pending_bytes() as i64);
            if let Some(offsets) = offsets.due(&assembly, n_answers > 0) {
                reader.commit(offsets.iter().map(|(at, offset)| (at, *offset)), false)?;
            }
        }
        let last = offsets.safe(&assembly);
        reader.commit(last.iter().map(|(at, offset)| (at, *offset)), true)
    }

    fn take(&self, assembly: &mut Assembly, record: &PlacedRecord, now_ms: i64) {
        let metrics = &self.shared.telemetry.metrics.losses;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64);
        let stale_after_ms = self.shared.config.losses.stale_after.as_millis() as i64;
        let is_stale = record.timestamp_ms.is_some_and(|ms| now.saturating_sub(ms) > stale_after_ms);
        let outcome = match self.decoder.decode(record.payload.as_deref()) {
            Err(BadReport { reason, detail }) => {
                metrics.bad_reports.with_label_values(&[reason.as_str()]).inc();
                tracing::debug!("report {}: {}: {detail}", record.at.position(record.offset), reason.as_str());
                BAD
            }
            Ok(_) if is_stale => STALE,
            Ok(report) => {
                let (run_id, step, rank) = (report.run_id.clone(), report.step, report.rank);
                let taken = assembly.take(report, &record.at, record.offset, now_ms);
                if matches!(taken, Taken::OtherLosses | Taken::OtherWorld) {
                    let what = taken.as_str();
                    tracing::debug!("report of rank {rank}, step {step} of run `{run_id}`: {what}: left out");
                }
                taken.as_str()
            }
        };
        metrics.reports.with_label_values(&[outcome]).inc();
    }

    fn answer(&self, writer: &TopicWriter, Assembled { batch, why }: Assembled) -> Result<(), SourceError> {
        let (run_id, step) = (batch.run_id.clone(), batch.step);
        let answer = match BatchWeights::of(&self.weigh, batch) {
            Ok(weights) => {
                self.shared.telemetry.weighed(&weights, "topic", why);
                serde_json::to_vec(&weights)
            }
            Err(e) => serde_json::to_vec(&NoWeights { run_id: &run_id, step, error: e.to_string() }),
        };
        let payload = answer.expect("an answer has string keys");
        let (topic, key, payload) = (&*self.weights_topic, Some(run_id.as_bytes()), Some(&*payload));
        writer.send(OutgoingRecord { topic, key, payload, timestamp_ms: None, headers: &[] }, &|| true)
    }

    fn count_refused(&self, n_refused: u64) {
        if n_refused > 0 {
            self.shared.telemetry.metrics.losses.failures.inc_by(n_refused);
            tracing::warn!("topic {} does not take {n_refused} answers: too large", self.weights_topic);
        }
    }
}

/// How far the partitions were read, and what of it is committed.
#[derive(Default)]
struct Offsets {
    next: BTreeMap<TopicPartition, i64>,
    committed: BTreeMap<TopicPartition, i64>,
    last_commit: Option<Instant>,
}

impl Offsets {
    fn passed(&mut self, at: TopicPartition, offset: i64) {
        self.next.insert(at, offset + 1);
    }

    fn forget(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.next.remove(at);
            self.committed.remove(at);
        }
    }

    /// Before everything that waits.
    fn safe(&self, assembly: &Assembly) -> BTreeMap<TopicPartition, i64> {
        let safe = |(at, next): (&TopicPartition, &i64)| (at.clone(), assembly.safe_offset(at, *next));
        self.next.iter().map(safe).collect()
    }

    /// What is to be committed, if it is time.
    fn due(&mut self, assembly: &Assembly, is_urgent: bool) -> Option<BTreeMap<TopicPartition, i64>> {
        if !is_urgent && self.last_commit.is_some_and(|last| last.elapsed() < COMMIT_INTERVAL) {
            return None;
        }
        let safe = self.safe(assembly);
        if safe == self.committed {
            return None;
        }
        self.last_commit = Some(Instant::now());
        self.committed = safe.clone();
        Some(safe)
    }
}
