//! The state that health and status pages show, filled by the pipeline.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::logbook::now_ms;
use super::{History, Metrics, OpenWindowStatus, ShardStatus, Step, WeightsStatus, WindowLimits};
use crate::catalog::{Gap, Totals};
use crate::feedback::FeedbackSummary;
use crate::record::TopicPartition;
use crate::score::{BatchWeights, Why};
use crate::select::{AcceptanceBySource, Quantiles, SketchVersion};
use crate::source::PollHeartbeat;
use crate::window::{SpreadSummary, WindowSummary};

/// Gaps that `/status` shows; `winnowd offsets show` has all.
const MAX_GAPS: usize = 20;

/// Shared by the pipeline and the HTTP server.
pub struct Telemetry {
    pub metrics: Metrics,
    pub heartbeat: PollHeartbeat,
    /// What flowed lately, for the page.
    pub history: History,
    status: Mutex<Status>,
    started: Instant,
    started_at_ms: u64,
    /// A poll loop silent for longer is dead.
    max_poll_silence: Duration,
}

/// What `/status` answers.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    pub pipeline: String,
    pub model: String,
    /// Who this worker is where it claims partitions.
    pub owner: String,
    /// Of the configuration without secrets and without what tells workers apart: the same for all workers of a pipeline.
    pub config_digest: String,
    /// Version of the raw distribution in force; `null` where it is pinned.
    pub raw_version: Option<i64>,
    /// Version of the counts of what was selected that documents are weighed against; `null` where they are not.
    pub selected_version: Option<i64>,
    /// Version of the stream's clusters; `null` where windows find their own.
    pub clusters_version: Option<i64>,
    /// Version of the sketches for edges of strata, taken from 1,000 documents on; `null` where windows cut their own.
    pub edges: Option<SketchVersion>,
    pub readiness: Readiness,
    pub totals: Totals,
    #[serde(serialize_with = "partitions_as_list")]
    pub partitions: BTreeMap<TopicPartition, PartitionStatus>,
    /// Partitions of the topics that nobody in the group owned when this worker looked last.
    pub unowned: Vec<TopicPartition>,
    /// Offsets that are never decided: the gaps noted last, at the last beginning at the checkpoints.
    pub gaps: Vec<Gap>,
    /// Path of the newest shard.
    pub last_shard: Option<String>,
    /// The last shards that this worker has published, newest first.
    pub shards: VecDeque<ShardStatus>,
    pub window_limits: Option<WindowLimits>,
    /// What a person should change: draws that have collapsed, until they recover.
    pub warning: Option<String>,
    /// The window closed last, with its diagnostics.
    pub last_window: Option<WindowSummary>,
    /// Of the last window with candidates, by target.
    pub weights: Vec<WeightsStatus>,
    /// Shares of sources that the configuration wants.
    pub shares: BTreeMap<String, f64>,
    /// Documents and selected ones by source, of the windows closed since the last beginning at the checkpoints.
    pub sources: AcceptanceBySource,
    /// How well the selection covers the documents of the windows that were measured; `null` before the first one.
    pub coverage: Option<CoverageStatus>,
    /// What the selection lacks most: the largest parts of KL(target ‖ selected), of the same windows.
    pub lacking: Vec<Lack>,
    /// The same for each of several targets; nothing of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetStatus>,
    /// The global batch that was weighed last, by request or from the topic.
    pub last_batch: Option<BatchStatus>,
    /// What trainers reported; `null` where they are not listened to.
    pub feedback: Option<FeedbackStatus>,
    /// Documents on disk that wait for their window to be decided; nothing where the selector holds what it can select.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolStatus>,
    /// The last error that ended a session, until a publication succeeds.
    pub last_error: Option<String>,
}

/// What one of several targets has selected, of the windows closed since the last beginning at the checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetStatus {
    pub target: String,
    pub n_selected: u64,
    /// KL(this target ‖ stream) − KL(this target ‖ what it selected), in nats.
    pub kl_reduction: Option<f64>,
    /// The largest parts of KL(this target ‖ what it selected).
    pub lacking: Vec<Lack>,
}

/// Means over the windows that were measured since the last beginning at the checkpoints. The window measured last has its own
/// numbers beside them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CoverageStatus {
    pub n_windows: u64,
    /// Distance of a document to the nearest selected one, and to the nearest of as many random ones. Lower covers better.
    pub auc_pr: f64,
    pub auc_pr_of_random: f64,
    pub last_window: SpreadSummary,
}

/// A global batch of a trainer, without its samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchStatus {
    pub run_id: String,
    pub step: u64,
    pub strategy: &'static str,
    pub temperature: Option<f64>,
    pub by: &'static str,
    pub why: &'static str,
    pub n_samples: usize,
    pub n_bad: usize,
    pub n_missing_ranks: usize,
    pub effective_sample_size: f64,
    /// Of the weights, times the number of samples.
    pub weights: Option<Quantiles>,
}

/// The loop back from trainers.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FeedbackStatus {
    /// In force.
    pub version: i64,
    /// Of that version.
    pub quotas: BTreeMap<String, f64>,
    /// Everything that was taken, at the last transaction of this process.
    pub learnt: Option<FeedbackSummary>,
    /// Why nothing is taken, until something is.
    pub problem: Option<String>,
}

/// Documents of open windows on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SpoolStatus {
    pub bytes: u64,
    pub max_bytes: u64,
    pub files: u64,
    /// Partitions that are not read until another one's window is decided.
    pub paused_partitions: u64,
}

/// A bucket of which the selection has too little.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lack {
    pub bucket: u32,
    /// The target's frequent n-grams in the bucket, where the model kept them.
    pub ngrams: Vec<String>,
    /// Its part of the divergence: p_target · (log p_target − log p_selected).
    pub nats: f64,
}

/// All must be true for `/readyz`.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Readiness {
    pub migrated: bool,
    pub catalog_reachable: bool,
    pub store_writable: bool,
    /// A scratch file waits for room.
    pub disk_full: bool,
    /// No broker answers.
    pub brokers_away: bool,
    /// A batch waits for a schema.
    pub registry_away: bool,
    pub joined_group: bool,
}

impl Readiness {
    /// Name of a check, whether it is fine, and what to say where it is not.
    pub fn checks(&self) -> [(&'static str, bool, &'static str); 7] {
        [
            ("schema", self.migrated, "catalog schema is not up to date"),
            ("catalog", self.catalog_reachable, "catalog is not reachable"),
            ("store", self.store_writable, "store cannot be written to"),
            ("disk", !self.disk_full, "disk of the scratch folder is full"),
            ("brokers", !self.brokers_away, "no broker of kafka.bootstrap answers"),
            (
                "registry",
                !self.registry_away,
                "schema registry does not give the schemas of records that wait for them",
            ),
            ("group", self.joined_group, "no partitions assigned by the consumer group yet"),
        ]
    }

    pub fn missing(&self) -> Vec<&'static str> {
        self.checks().into_iter().filter(|(_, fine, _)| !fine).map(|(_, _, problem)| problem).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct PartitionStatus {
    /// Counts the owners; the catalog takes nothing from an earlier one.
    pub owner_epoch: i64,
    /// Next offset to be read into a window.
    pub consumed: i64,
    /// Next offset after everything published.
    pub published: i64,
    pub end_offset: Option<i64>,
    /// `null` while it has no records.
    pub window: Option<OpenWindowStatus>,
}

fn partitions_as_list<S: serde::Serializer>(
    partitions: &BTreeMap<TopicPartition, PartitionStatus>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row<'a> {
        #[serde(flatten)]
        at: &'a TopicPartition,
        #[serde(flatten)]
        status: &'a PartitionStatus,
    }
    serializer.collect_seq(partitions.iter().map(|(at, status)| Row { at, status }))
}

impl Telemetry {
    pub fn new(pipeline: &str, max_poll_silence: Duration) -> Self {
        let status = Status { pipeline: pipeline.to_owned(), ..Status::default() };
        Telemetry {
            metrics: Metrics::default(),
            heartbeat: PollHeartbeat::default(),
            history: History::default(),
            status: Mutex::new(status),
            started: Instant::now(),
            started_at_ms: now_ms(),
            max_poll_silence,
        }
    }

    pub fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All metrics, in the text format of Prometheus.
    pub fn render_metrics(&self) -> String {
        let readiness = self.status().readiness;
        self.metrics.render(&readiness)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Milliseconds since 1970: tells one process from the one after it.
    pub fn started_at_ms(&self) -> u64 {
        self.started_at_ms
    }

    /// What is wrong with the poll loop, if anything. Never depends on an outside system.
    pub fn poll_problem(&self) -> Option<String> {
        // Before its first round the process is starting up, which the startup probe bounds.
        let age = self.heartbeat.age()?;
        let limit = self.max_poll_silence;
        (age > limit).then(|| {
            format!("the poll loop has been silent for {} s, allowed are {} s", age.as_secs(), limit.as_secs())
        })
    }

    /// Recomputes the lag of every partition from what is known of it.
    pub fn update_lag(&self) {
        let status = self.status();
        for (at, partition) in &status.partitions {
            let Some(end) = partition.end_offset else { continue };
            let number = at.partition.to_string();
            for (until, offset) in [("consumed", partition.consumed), ("published", partition.published)] {
                self.metrics.lag.with_label_values(&[&*at.topic, &number, until]).set((end - offset).max(0));
            }
        }
    }

    /// Stops showing partitions that this worker does not own any more.
    pub fn forget(&self, partitions: &[TopicPartition]) {
        let mut status = self.status();
        for at in partitions {
            status.partitions.remove(at);
            for until in ["consumed", "published"] {
                // Absent when the partition's end was never heard of.
                let _ = self.metrics.lag.remove_label_values(&[&*at.topic, &at.partition.to_string(), until]);
            }
        }
    }

    /// Stops showing partitions of these topics that nobody owns.
    pub fn forget_unowned(&self, topics: &[String]) {
        self.status().unowned.clear();
        for topic in topics {
            self.metrics.unowned_partitions.with_label_values(&[topic]).set(0);
            self.metrics.unowned_lag.with_label_values(&[topic]).set(0);
        }
    }

    /// Says that a step of a publication fails, and why.
    pub fn stalled(&self, step: Step, problem: String) {
        self.metrics.publish_failures.with_label_values(&[step.as_str()]).inc();
        self.metrics.publish_stalled.with_label_values(&[step.as_str()]).set(1);
        let mut status = self.status();
        status.last_error = Some(problem);
        match step {
            Step::Write => status.readiness.disk_full = true,
            Step::Upload => status.readiness.store_writable = false,
            Step::Stage | Step::Commit => status.readiness.catalog_reachable = false,
        }
    }

    /// Says that a step of a publication works (again).
    pub fn works(&self, step: Step) {
        self.metrics.publish_stalled.with_label_values(&[step.as_str()]).set(0);
        let readiness = &mut self.status().readiness;
        match step {
            Step::Write => readiness.disk_full = false,
            Step::Upload => readiness.store_writable = true,
            Step::Stage | Step::Commit => readiness.catalog_reachable = true,
        }
    }

    /// Says that records wait for the schema registry, and why; `None`: not any more.
    pub fn registry_away(&self, problem: Option<String>) {
        self.metrics.schemas.stalled.set(problem.is_some().into());
        let mut status = self.status();
        status.readiness.registry_away = problem.is_some();
        if problem.is_some() {
            status.last_error = problem;
        }
    }

    /// Shows a batch that was given weights.
    pub fn weighed(&self, batch: &BatchWeights, by: &'static str, why: Why) {
        let metrics = &self.metrics.losses;
        metrics.batches.with_label_values(&[by, why.as_str()]).inc();
        metrics.samples.inc_by(batch.n_samples as u64);
        metrics.missing_ranks.inc_by(batch.missing_ranks.len() as u64);
        for bad in &batch.bad {
            metrics.bad_losses.with_label_values(&[bad.reason]).inc();
        }
        let weights = Quantiles::of(batch.multiples());
        if let Some(weights) = &weights {
            metrics.effective_sample_ratio.set(batch.effective_sample_size / batch.n_samples as f64);
            for (point, value) in weights.named() {
                metrics.weight.with_label_values(&[point]).set(value);
            }
        }
        self.status().last_batch = Some(BatchStatus {
            run_id: batch.run_id.clone(),
            step: batch.step,
            strategy: batch.strategy,
            temperature: batch.temperature,
            by,
            why: why.as_str(),
            n_samples: batch.n_samples,
            n_bad: batch.n_bad,
            n_missing_ranks: batch.missing_ranks.len(),
            effective_sample_size: batch.effective_sample_size,
            weights,
        });
    }

    /// `n_errors`: that have come since the last call.
    pub fn show_spool(&self, spool: SpoolStatus, n_errors: u64) {
        let metrics = &self.metrics;
        metrics.spool_bytes.set(spool.bytes as i64);
        metrics.spool_max_bytes.set(spool.max_bytes as i64);
        metrics.spool_files.set(spool.files as i64);
        metrics.spool_paused_partitions.set(spool.paused_partitions as i64);
        metrics.spool_errors.inc_by(n_errors);
        self.status().spool = Some(spool);
    }

    /// At the end of a session everything that waited is gone.
    pub fn forget_spool(&self, n_errors: u64) {
        let spool = self.status().spool;
        if let Some(SpoolStatus { max_bytes, .. }) = spool {
            self.show_spool(SpoolStatus { max_bytes, ..SpoolStatus::default() }, n_errors);
        }
    }

    /// Shows the newest of the catalog's gaps.
    pub fn set_gaps(&self, mut gaps: Vec<Gap>) {
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.noted_at_ms));
        gaps.truncate(MAX_GAPS);
        self.status().gaps = gaps;
    }

    /// Shows what selection takes of feedback.
    pub fn set_feedback_version(&self, version: i64, quotas: &BTreeMap<String, f64>) {
        self.metrics.feedback.show_version(version, quotas);
        let mut status = self.status();
        let feedback = status.feedback.get_or_insert_default();
        (feedback.version, feedback.quotas) = (version, quotas.clone());
    }

    /// Shows what was learnt.
    pub fn set_feedback(&self, learnt: FeedbackSummary) {
        self.metrics.feedback.show(&learnt);
        let mut status = self.status();
        let feedback = status.feedback.get_or_insert_default();
        (feedback.learnt, feedback.problem) = (Some(learnt), None);
    }

    /// Shows the catalog's sums.
    pub fn set_totals(&self, totals: Totals) {
        self.status().totals = totals;
        let documents = &self.metrics.catalog_documents;
        documents.with_label_values(&["selected"]).set(totals.n_selected);
        documents.with_label_values(&["rejected"]).set(totals.n_rejected);
        documents.with_label_values(&["dead_letter"]).set(totals.n_dead_letters);
        self.metrics.catalog_shards.set(totals.n_shards);
    }
}
