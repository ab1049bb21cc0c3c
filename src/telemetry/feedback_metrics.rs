//! Metrics of the loop back from trainers.

use std::collections::BTreeMap;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::LateGauge;
use super::metrics::{counter, counters, gauge, register};
use crate::feedback::{FeedbackSummary, LossOutcome};
use crate::record::BadReportReason;

/// Sources whose losses are metrics; `/status` has all that are told apart.
const MAX_LOSS_SOURCES: usize = 20;

pub struct FeedbackMetrics {
    pub losses: IntCounterVec,
    pub reports: IntCounter,
    pub bad_reports: IntCounterVec,
    pub restarts: IntCounter,
    pub lag: IntGauge,
    pub version: IntGauge,
    pub match_ratio: LateGauge,
    pub loss: GaugeVec,
    pub prediction_error: GaugeVec,
    pub explained: LateGauge,
    pub quota: GaugeVec,
}

impl FeedbackMetrics {
    pub fn new(r: &Registry) -> Self {
        FeedbackMetrics {
            losses: counters(
                r,
                "feedback_losses_total",
                "Losses of documents that this process has taken from reports of trainers, by what became of them.",
                "outcome",
                &LossOutcome::all().map(LossOutcome::as_str).collect::<Vec<_>>(),
            ),
            reports: counter(r, "feedback_reports_total", "Reports of trainers taken by this process."),
            bad_reports: counters(
                r,
                "feedback_bad_reports_total",
                "Records of the losses' topic that are no reports, by reason.",
                "reason",
                &BadReportReason::ALL.map(BadReportReason::as_str),
            ),
            restarts: counter(
                r,
                "feedback_restarts_total",
                "Beginnings at the checkpoints of the losses' topic after an error.",
            ),
            lag: gauge(r, "feedback_lag_records", "Records of the losses' topic that are not taken yet."),
            version: gauge(r, "feedback_version", "Version of what is learnt from feedback, in force."),
            match_ratio: LateGauge::new(
                r,
                "feedback_match_ratio",
                "Losses that counted, over those and the ones of unknown documents, since the pipeline began.",
            ),
            loss: register(
                r,
                GaugeVec::new(
                    Opts::new("winnowd_feedback_loss_nats", "Losses a token by source: the largest sources only."),
                    &["source", "point"],
                ),
            ),
            prediction_error: register(
                r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_feedback_prediction_error_nats",
                        "How far losses were off what was expected before they were learnt.",
                    ),
                    &["kind"],
                ),
            ),
            explained: LateGauge::new(
                r,
                "feedback_explained_ratio",
                "R-squared of the expected losses, each before it was learnt.",
            ),
            quota: register(
                r,
                GaugeVec::new(
                    Opts::new("winnowd_feedback_quota_ratio", "Share of a source by its losses."),
                    &["source"],
                ),
            ),
        }
    }

    /// Shows the version in force.
    pub fn show_version(&self, version: i64, quotas: &BTreeMap<String, f64>) {
        self.version.set(version);
        self.quota.reset();
        for (source, share) in quotas {
            self.quota.with_label_values(&[source]).set(*share);
        }
    }

    /// Shows what was learnt.
    pub fn show(&self, learnt: &FeedbackSummary) {
        self.match_ratio.show(learnt.match_ratio);
        self.loss.reset();
        for source in learnt.sources.iter().take(MAX_LOSS_SOURCES) {
            for (point, loss) in [("q10", source.q10), ("median", source.median), ("q90", source.q90)] {
                if let Some(loss) = loss {
                    self.loss.with_label_values(&[source.source.as_str(), point]).set(loss);
                }
            }
        }
        let expected = &learnt.expected_loss;
        let errors = [("absolute", expected.mean_absolute_error), ("squared", expected.root_mean_squared_error)];
        for (kind, error) in errors {
            if let Some(error) = error {
                self.prediction_error.with_label_values(&[kind]).set(error);
            }
        }
        self.explained.show(expected.explained);
    }
}
