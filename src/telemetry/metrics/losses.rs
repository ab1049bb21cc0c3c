//! Metrics of losses that trainers send, and of the weights that they get.

use super::*;
use crate::record::{BadLossReason, BadReportReason};
use crate::score::{Taken, Why};
use crate::telemetry::weights::Outcome;

pub struct LossMetrics {
    pub requests: IntCounterVec,
    pub request_seconds: Histogram,
    pub reports: IntCounterVec,
    pub bad_reports: IntCounterVec,
    pub bad_losses: IntCounterVec,
    pub batches: IntCounterVec,
    pub samples: IntCounter,
    pub missing_ranks: IntCounter,
    pub failures: IntCounter,
    pub pending_steps: IntGauge,
    pub pending_bytes: IntGauge,
    pub effective_sample_ratio: LateGauge,
    pub weight: GaugeVec,
}

/// A report that was not decoded, or came too late for anybody.
pub const BAD: &str = "bad";
pub const STALE: &str = "stale";

impl LossMetrics {
    pub fn new(r: &Registry) -> Self {
        let taken: Vec<_> = Taken::ALL.iter().map(|taken| taken.as_str()).chain([BAD, STALE]).collect();
        let ways: Vec<_> = Why::ALL.iter().map(|why| why.as_str()).collect();
        let batches =
            Opts::new("winnowd_weighed_batches_total", "Global batches that got weights, and why at that moment.");
        let batches = register(r, IntCounterVec::new(batches, &["by", "why"]));
        for way in &ways {
            batches.with_label_values(&["topic", way]);
        }
        batches.with_label_values(&["http", Why::Complete.as_str()]);
        let buckets = vec![0.000_25, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0, 10.0];
        let seconds =
            HistogramOpts::new("winnowd_weights_request_seconds", "Time of POST /v1/weights.").buckets(buckets);
        let multiples = Opts::new(
            "winnowd_sample_weight",
            "Quantiles of the weights of the batch weighed last, times its samples.",
        );
        let weight = register(r, GaugeVec::new(multiples, &["point"]));
        LossMetrics {
            requests: counters(
                r,
                "weights_requests_total",
                "Requests for weights, by outcome.",
                "outcome",
                &Outcome::ALL.map(Outcome::as_str),
            ),
            request_seconds: register(r, Histogram::with_opts(seconds)),
            reports: counters(
                r,
                "loss_reports_total",
                "Reports read from losses.topic, by what became of them: late ones came after the answer.",
                "outcome",
                &taken,
            ),
            bad_reports: counters(
                r,
                "bad_loss_reports_total",
                "Reports in losses.topic that could not be read, by reason.",
                "reason",
                &BadReportReason::ALL.map(BadReportReason::as_str),
            ),
            bad_losses: counters(
                r,
                "bad_losses_total",
                "Samples of weighed batches whose loss could not be used, by reason.",
                "reason",
                &BadLossReason::ALL.map(BadLossReason::as_str),
            ),
            batches,
            samples: counter(r, "weighed_samples_total", "Samples of the batches that got weights."),
            missing_ranks: counter(r, "missing_ranks_total", "Ranks that were not there when their step was answered."),
            failures: counter(
                r,
                "weights_topic_failures_total",
                "Failures to read losses.topic or to write losses.weights_topic; both are tried again.",
            ),
            pending_steps: gauge(r, "pending_loss_steps", "Steps that wait for the reports of further ranks."),
            pending_bytes: gauge(r, "pending_loss_bytes", "Bytes of the reports that wait."),
            effective_sample_ratio: LateGauge::new(
                r,
                "batch_effective_sample_ratio",
                "Effective sample size of the weights of the batch weighed last, over its samples.",
            ),
            weight,
        }
    }
}
