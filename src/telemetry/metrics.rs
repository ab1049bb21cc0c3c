//! Every metric with its name, help and labels; those of several targets and of feedback stand in their own files. No label takes
//! values from the data, but for the sources of feedback, of which there are few.

mod late;
mod losses;
mod schemas;
mod selector;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::feedback_metrics::FeedbackMetrics;
use super::process::ProcessMetrics;
use super::status::Readiness;
use super::target_metrics::TargetMetrics;
use super::traces::SPANS;
use crate::record::RejectReason;
use crate::window::CloseReason;
pub use late::LateGauge;
pub use losses::{BAD, LossMetrics, STALE};
pub use schemas::SchemaMetrics;
pub use selector::SelectorMetrics;

/// The steps of a publication that take time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Into the scratch file; what is timed is its end.
    Write,
    Stage,
    Upload,
    Commit,
}

impl Step {
    pub const ALL: [Step; 4] = [Step::Write, Step::Stage, Step::Upload, Step::Commit];

    pub fn as_str(self) -> &'static str {
        match self {
            Step::Write => "write",
            Step::Stage => "stage",
            Step::Upload => "upload",
            Step::Commit => "commit",
        }
    }
}

/// Counters count what this process did, so after a crash some records are counted again; `winnowd_catalog_*` are
/// the catalog's own sums, exact across restarts.
pub struct Metrics {
    registry: Registry,
    pub consumed_records: IntCounter,
    pub consumed_bytes: IntCounter,
    pub scored_tokens: IntCounter,
    pub score_seconds: Histogram,
    pub decided: IntCounterVec,
    pub filtered_documents: IntCounterVec,
    pub failed_columns: IntCounterVec,
    pub published_tokens: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub dead_letters_forwarded: IntCounter,
    pub forward_failures: IntCounter,
    pub windows_closed: IntCounterVec,
    pub published_shards: IntCounter,
    pub published_rows: IntCounter,
    pub published_bytes: IntCounter,
    pub held_out_rows: IntCounter,
    pub publish_seconds: HistogramVec,
    pub publish_failures: IntCounterVec,
    pub publish_stalled: IntGaugeVec,
    pub fenced: IntCounter,
    pub manifest_failures: IntCounter,
    pub manifest_behind: IntGauge,
    pub session_restarts: IntCounter,
    pub skipped_offsets: IntCounter,
    pub rebalances: IntCounterVec,
    pub assigned_partitions: IntGauge,
    pub lag: IntGaugeVec,
    pub unowned_partitions: IntGaugeVec,
    pub unowned_lag: IntGaugeVec,
    pub orphaned_partitions: IntCounter,
    pub held_bytes: IntGaugeVec,
    pub spool_bytes: IntGauge,
    pub spool_max_bytes: IntGauge,
    pub spool_files: IntGauge,
    pub spool_paused_partitions: IntGauge,
    pub spool_errors: IntCounter,
    pub documents_without_number: IntCounter,
    pub documents_without_embedding: IntCounterVec,
    pub window_centres: LateGauge,
    pub window_weight_ratio: LateGauge,
    pub memory_budget_bytes: IntGauge,
    pub catalog_documents: IntGaugeVec,
    pub catalog_shards: IntGauge,
    pub window_kl_reduction: LateGauge,
    pub window_random_kl_reduction: LateGauge,
    pub kl_reduction: LateGauge,
    pub window_effective_sample_ratio: LateGauge,
    pub window_log_weight: GaugeVec,
    pub window_weight_length_correlation: LateGauge,
    pub window_top_k_overlap_ratio: LateGauge,
    pub collapsed_windows: IntCounter,
    pub target_divergence: GaugeVec,
    pub window_coverage_distance: GaugeVec,
    pub coverage_distance: GaugeVec,
    pub window_source_entropy: GaugeVec,
    pub raw_version: IntGauge,
    pub selected_version: IntGauge,
    pub clusters_version: IntGauge,
    pub edges_documents: IntGauge,
    pub raw_drift: LateGauge,
    pub window_raw_drift: LateGauge,
    pub ready: IntGauge,
    pub ready_check: IntGaugeVec,
    process: ProcessMetrics,
    /// Of the whole process.
    pub spans: IntCounterVec,
    pub of_targets: TargetMetrics,
    pub losses: LossMetrics,
    pub schemas: SchemaMetrics,
    pub selector: SelectorMetrics,
    pub feedback: FeedbackMetrics,
}

pub const DECISIONS: [&str; 3] = ["selected", "rejected", "dead_letter"];

impl Default for Metrics {
    fn default() -> Self {
        let r = Registry::new();
        let seconds = |least: f64, n| prometheus::exponential_buckets(least, 4.0, n).expect("valid buckets");
        let info = gauges(&r, "build_info", "Always 1; names the version.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Metrics {
            consumed_records: counter(&r, "consumed_records_total", "Records read from Kafka by this process."),
            consumed_bytes: counter(&r, "consumed_bytes_total", "Payload bytes read from Kafka by this process."),
            scored_tokens: counter(&r, "scored_tokens_total", "Tokens of all documents that were scored."),
            score_seconds: register(
                &r,
                Histogram::with_opts(
                    HistogramOpts::new("winnowd_score_seconds", "Time to decode and score one batch of records.")
                        .buckets(seconds(0.000_25, 8)),
                ),
            ),
            decided: counters(
                &r,
                "decided_documents_total",
                "Documents decided and published by this process.",
                "decision",
                &DECISIONS,
            ),
            filtered_documents: counters(
                &r,
                "filtered_documents_total",
                "Documents read that documents.filter refuses, by the first clause that is not true.",
                "clause",
                &[],
            ),
            failed_columns: counters(
                &r,
                "failed_columns_total",
                "Values of further columns that are null because an expression or the tokenizer fails on the document, by column.",
                "column",
                &[],
            ),
            published_tokens: counters(
                &r,
                "published_tokens_total",
                "Tokens in the rows that this process has published for training, by the tokenizer that counts them.",
                "tokenizer",
                &[],
            ),
            dead_letters: counters(
                &r,
                "dead_letters_total",
                "Dead letters published by this process, by reason.",
                "reason",
                &RejectReason::ALL.map(RejectReason::as_str),
            ),
            dead_letters_forwarded: counter(
                &r,
                "dead_letters_forwarded_total",
                "Dead letters sent to dead_letters.topic by this process.",
            ),
            forward_failures: counter(
                &r,
                "dead_letter_forward_failures_total",
                "Failed tries to send dead letters to their topic; they are tried again.",
            ),
            windows_closed: counters(
                &r,
                "windows_closed_total",
                "Windows closed, by what closed them.",
                "reason",
                &CloseReason::ALL.map(CloseReason::as_str),
            ),
            published_shards: counter(&r, "published_shards_total", "Shards published by this process."),
            published_rows: counter(&r, "published_rows_total", "Rows of the shards published by this process."),
            published_bytes: counter(&r, "published_bytes_total", "Bytes of the shards published by this process."),
            held_out_rows: counter(&r, "held_out_rows_total", "Rows held out of training, published by this process."),
            publish_seconds: register(
                &r,
                HistogramVec::new(
                    HistogramOpts::new("winnowd_publish_seconds", "Time of each step of a publication.")
                        .buckets(seconds(0.001, 9)),
                    &["step"],
                ),
            ),
            publish_failures: counters(
                &r,
                "publish_failures_total",
                "Failed tries of a publication's steps; they are tried again.",
                "step",
                &Step::ALL.map(Step::as_str),
            ),
            publish_stalled: gauges(
                &r,
                "publish_stalled",
                "1 while the last try of a publication's step has failed: nothing is published until it succeeds.",
                &["step"],
            ),
            fenced: counter(
                &r,
                "fenced_publications_total",
                "Publications given up because another worker had taken a partition over.",
            ),
            manifest_failures: counter(
                &r,
                "manifest_failures_total",
                "Failed writes of manifest.jsonl; the next one catches up.",
            ),
            manifest_behind: gauge(
                &r,
                "manifest_behind",
                "1 while manifest.jsonl lacks a shard that is published: trainers do not see it yet.",
            ),
            session_restarts: counter(
                &r,
                "session_restarts_total",
                "Times this process dropped its open windows and began again at the checkpoints.",
            ),
            skipped_offsets: counter(
                &r,
                "skipped_offsets_total",
                "Offsets that retention had removed before they were decided, skipped by this process.",
            ),
            rebalances: counters(
                &r,
                "rebalances_total",
                "Changes of this worker's partitions.",
                "kind",
                &["assigned", "revoked", "lost"],
            ),
            assigned_partitions: gauge(&r, "assigned_partitions", "Partitions that this worker owns."),
            lag: gauges(
                &r,
                "lag_records",
                "Offsets between the end of a partition and what this worker has consumed or published.",
                &["topic", "partition", "until"],
            ),
            unowned_partitions: gauges(
                &r,
                "unowned_partitions",
                "Partitions of a topic that nobody in the group owned when this worker looked last.",
                &["topic"],
            ),
            unowned_lag: gauges(
                &r,
                "unowned_lag_records",
                "Offsets of those between the catalog's checkpoints and the ends of the partitions.",
                &["topic"],
            ),
            orphaned_partitions: counter(
                &r,
                "orphaned_partitions_total",
                "Partitions without an owner for which this worker made the group share its partitions out anew.",
            ),
            held_bytes: gauges(&r, "held_bytes", "Memory held, by the part that holds it.", &["part"]),
            spool_bytes: gauge(&r, "spool_bytes", "On disk, documents that wait for their window to be decided."),
            spool_max_bytes: gauge(&r, "spool_max_bytes", "Configured bound on them."),
            spool_files: gauge(&r, "spool_files", "Files of documents that wait, one for each open window."),
            spool_paused_partitions: gauge(
                &r,
                "spool_paused_partitions",
                "Partitions that are not read until another one's window is decided, for want of disk.",
            ),
            spool_errors: counter(
                &r,
                "spool_errors_total",
                "Files of documents that wait which could not be made, written or read.",
            ),
            documents_without_number: counter(
                &r,
                "documents_without_number_total",
                "Documents that a coverage selection cannot select: they lack its number.",
            ),
            documents_without_embedding: counters(
                &r,
                "documents_without_embedding_total",
                "Documents that a sensitivity selection cannot select: they have no embedding, or one of other dimensions.",
                "reason",
                &["missing", "dimensions"],
            ),
            window_centres: LateGauge::new(
                &r,
                "window_centres",
                "Centres of the last window that was drawn by sensitivity.",
            ),
            window_weight_ratio: LateGauge::new(
                &r,
                "window_weight_ratio",
                "What weights of the last window that was drawn by sensitivity were multiplied by, of its pools the one farthest from 1.",
            ),
            memory_budget_bytes: gauge(&r, "memory_budget_bytes", "Configured memory budget."),
            catalog_documents: gauges(
                &r,
                "catalog_documents",
                "Documents decided by this pipeline since it began, as the catalog has them.",
                &["decision"],
            ),
            catalog_shards: gauge(
                &r,
                "catalog_shards",
                "Shards published by this pipeline since it began, as the catalog has them.",
            ),
            window_kl_reduction: LateGauge::new(
                &r,
                "window_kl_reduction_nats",
                "KL(target, all) - KL(target, selected) of the last window with a selection.",
            ),
            kl_reduction: LateGauge::new(
                &r,
                "kl_reduction_nats",
                "KL(target, all) - KL(target, selected) over all windows closed since the last beginning at the checkpoints.",
            ),
            window_random_kl_reduction: LateGauge::new(
                &r,
                "window_random_kl_reduction_nats",
                "The same of a random sample of as many documents: what a selection must beat.",
            ),
            window_effective_sample_ratio: LateGauge::new(
                &r,
                "window_effective_sample_ratio",
                "Effective sample size of the last window's weights, over its candidates.",
            ),
            window_log_weight: register(
                &r,
                GaugeVec::new(
                    Opts::new("winnowd_window_log_weight_nats", "Quantiles of the last window's log weights."),
                    &["point"],
                ),
            ),
            window_weight_length_correlation: LateGauge::new(
                &r,
                "window_weight_length_correlation",
                "Pearson's correlation of log weight and length in the last window.",
            ),
            window_top_k_overlap_ratio: LateGauge::new(
                &r,
                "window_top_k_overlap_ratio",
                "Share of the last window's selection that plain top-k takes as well.",
            ),
            collapsed_windows: counter(
                &r,
                "collapsed_windows_total",
                "Windows whose draw was no sample: its effective size was below a tenth of what was selected.",
            ),
            target_divergence: register(
                &r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_target_divergence_nats",
                        "KL(target, stream) and KL(target, selected) of all windows since the beginning at the checkpoints.",
                    ),
                    &["of"],
                ),
            ),
            window_coverage_distance: register(
                &r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_window_coverage_distance",
                        "Mean distance of a document of the last window that was measured to the nearest selected one, and to the \
                         nearest of as many random ones: from 0 to the root of 2, lower covers better.",
                    ),
                    &["to"],
                ),
            ),
            coverage_distance: register(
                &r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_coverage_distance",
                        "The same, the mean over all windows measured since the last beginning at the checkpoints.",
                    ),
                    &["to"],
                ),
            ),
            window_source_entropy: register(
                &r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_window_source_entropy_nats",
                        "Entropy over the sources of the last window that was measured: of all documents, and of the selected ones.",
                    ),
                    &["of"],
                ),
            ),
            raw_version: gauge(
                &r,
                "raw_version",
                "Version of the adaptive raw distribution in force; 0 where it is pinned.",
            ),
            selected_version: gauge(
                &r,
                "selected_version",
                "Version of the counts of what was selected in force; 0 where documents are weighed against raw.",
            ),
            clusters_version: gauge(
                &r,
                "clusters_version",
                "Version of the stream's clusters in force; 0 where windows find their own.",
            ),
            edges_documents: gauge(
                &r,
                "edges_documents",
                "Documents that the stream's edges of strata rest on, taken from 1,000 on; 0 where windows cut their own.",
            ),
            raw_drift: LateGauge::new(
                &r,
                "raw_drift_nats",
                "KL(adaptive raw distribution, the one fitted in the model); absent where it is pinned.",
            ),
            window_raw_drift: LateGauge::new(
                &r,
                "window_raw_drift_nats",
                "KL(all n-grams of the last windows with 500 documents together, raw distribution fitted in the model), less what chance makes of so few.",
            ),
            ready: gauge(&r, "ready", "1 while /readyz says so: every check is 1."),
            ready_check: gauges(&r, "ready_check", "What /readyz is made of: 1 where nothing is missing.", &["check"]),
            process: ProcessMetrics::new(&r),
            spans: register(&r, Ok(SPANS.clone())),
            of_targets: TargetMetrics::new(&r),
            losses: LossMetrics::new(&r),
            schemas: SchemaMetrics::new(&r),
            selector: SelectorMetrics::new(&r),
            feedback: FeedbackMetrics::new(&r),
            registry: r,
        };
        for part in ["queue", "windows", "shard"] {
            metrics.held_bytes.with_label_values(&[part]);
        }
        for decision in DECISIONS {
            metrics.catalog_documents.with_label_values(&[decision]);
        }
        for step in Step::ALL {
            metrics.publish_seconds.with_label_values(&[step.as_str()]);
            metrics.publish_stalled.with_label_values(&[step.as_str()]);
        }
        metrics
    }
}

impl Metrics {
    /// In the text format of Prometheus.
    pub(super) fn render(&self, readiness: &Readiness) -> String {
        self.ready.set(readiness.missing().is_empty().into());
        for (check, is_fine, _) in readiness.checks() {
            self.ready_check.with_label_values(&[check]).set(is_fine.into());
        }
        self.process.refresh();
        TextEncoder::new().encode_to_string(&self.registry.gather()).expect("registered metrics are consistent")
    }
}

pub(super) fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("names and labels are valid");
    registry.register(Box::new(metric.clone())).expect("every metric has a name of its own");
    metric
}

pub(super) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(format!("winnowd_{name}"), help))
}

pub(super) fn counters(registry: &Registry, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
    let counters = register(registry, IntCounterVec::new(Opts::new(format!("winnowd_{name}"), help), &[label]));
    for value in values {
        counters.with_label_values(&[value]);
    }
    counters
}

pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(format!("winnowd_{name}"), help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(format!("winnowd_{name}"), help), labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_that_can_be_known_starts_at_zero() {
        let text = Metrics::default().render(&Readiness::default());
        for expected in [
            "winnowd_decided_documents_total{decision=\"dead_letter\"} 0",
            "winnowd_dead_letters_total{reason=\"null_payload\"} 0",
            "winnowd_windows_closed_total{reason=\"idle\"} 0",
            "winnowd_publish_seconds_count{step=\"commit\"} 0",
            "winnowd_publish_stalled{step=\"write\"} 0",
            "winnowd_fenced_publications_total 0",
            "winnowd_skipped_offsets_total 0",
            "winnowd_orphaned_partitions_total 0",
            "winnowd_weighed_batches_total{by=\"topic\",why=\"deadline\"} 0",
            "winnowd_weights_requests_total{outcome=\"conflict\"} 0",
            "winnowd_loss_reports_total{outcome=\"late\"} 0",
            "winnowd_bad_losses_total{reason=\"not_finite\"} 0",
            "winnowd_build_info{version=",
            "winnowd_registry_requests_total{outcome=\"failed\"} 0",
            "winnowd_dead_letters_total{reason=\"unknown_schema\"} 0",
            "winnowd_feedback_losses_total{outcome=\"unknown_id\"} 0",
            "winnowd_feedback_losses_total{outcome=\"not_finite\"} 0",
            "winnowd_feedback_bad_reports_total{reason=\"malformed_json\"} 0",
        ] {
            assert!(text.contains(expected), "`{expected}` is not in:\n{text}");
        }
        assert!(!text.contains("winnowd_by_target"), "one target has no series of several");
    }

    #[test]
    fn what_nobody_knows_yet_has_no_series_instead_of_a_zero() {
        let metrics = Metrics::default();
        let text = metrics.render(&Readiness::default());
        for unknown in
            ["winnowd_window_", "winnowd_kl_reduction", "winnowd_batch_", "winnowd_sample_weight", "_match_ratio"]
        {
            assert!(!text.contains(unknown), "`{unknown}` is in:\n{text}");
        }
        metrics.window_kl_reduction.set(-0.5);
        metrics.raw_drift.show(Some(0.25));
        let text = metrics.render(&Readiness::default());
        assert!(
            text.contains("\nwinnowd_window_kl_reduction_nats -0.5\n")
                && text.contains("\nwinnowd_raw_drift_nats 0.25\n"),
            "{text}"
        );
        metrics.raw_drift.show(None);
        assert!(!metrics.render(&Readiness::default()).contains("winnowd_raw_drift_nats"));
    }

    #[test]
    fn readiness_is_a_metric_of_each_check_and_of_all() {
        let metrics = Metrics::default();
        let text = metrics.render(&Readiness { migrated: true, catalog_reachable: true, ..Readiness::default() });
        for expected in [
            "ready 0",
            "ready_check{check=\"catalog\"} 1",
            "ready_check{check=\"store\"} 0",
            "ready_check{check=\"disk\"} 1",
        ] {
            assert!(text.contains(&format!("\nwinnowd_{expected}\n")), "`{expected}` is not in:\n{text}");
        }
        let all = Readiness {
            migrated: true,
            catalog_reachable: true,
            store_writable: true,
            joined_group: true,
            ..Readiness::default()
        };
        assert!(metrics.render(&all).contains("\nwinnowd_ready 1\n"));
    }
}
