//! What people see of the feedback of a pipeline: on `/status`, and as metrics.

use std::collections::BTreeMap;

use serde::Serialize;

use super::statistics::LossStatistics;
use crate::score::{Calibration, Evaluation};

/// Everything, since the pipeline began.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FeedbackSummary {
    pub epoch: i64,
    pub n_reports: u64,
    pub n_bad_reports: u64,
    /// Since the pipeline began, by what became of them.
    pub losses: BTreeMap<String, u64>,
    pub match_ratio: Option<f64>,
    /// By losses, most first.
    pub sources: Vec<SourceSummary>,
    pub n_losses_of_other_sources: u64,
    /// Tenths of their windows by total log weight, the lowest first.
    pub mean_loss_by_stratum: Vec<Option<f64>>,
    pub expected_loss: PredictorSummary,
    pub quotas: BTreeMap<String, f64>,
}

/// Losses of a source, the late ones before all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceSummary {
    /// Empty: documents without a source.
    pub source: String,
    pub n_losses: u64,
    pub mean: Option<f64>,
    pub deviation: Option<f64>,
    /// Estimated for all documents of the stream.
    pub stream_mean: Option<f64>,
    /// How many documents that estimate is worth.
    pub stream_effective_size: Option<f64>,
    pub q10: Option<f64>,
    pub median: Option<f64>,
    pub q90: Option<f64>,
}

impl SourceSummary {
    pub(super) fn of(source: String, statistics: &LossStatistics) -> Self {
        SourceSummary {
            source,
            n_losses: statistics.n_observed,
            mean: statistics.mean(),
            deviation: statistics.variance().map(f64::sqrt),
            stream_mean: statistics.stream_mean(),
            stream_effective_size: statistics.stream_effective_size(),
            q10: statistics.quantile(0.1),
            median: statistics.quantile(0.5),
            q90: statistics.quantile(0.9),
        }
    }
}

/// How well losses were predicted before they were learnt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PredictorSummary {
    pub mean_absolute_error: Option<f64>,
    pub root_mean_squared_error: Option<f64>,
    /// R², against the mean of what had been seen.
    pub explained: Option<f64>,
    /// By tenths of the predictions.
    pub calibration: Vec<Calibration>,
}

impl PredictorSummary {
    pub(super) fn of(evaluation: &Evaluation) -> Self {
        PredictorSummary {
            mean_absolute_error: evaluation.mean_absolute_error(),
            root_mean_squared_error: evaluation.root_mean_squared_error(),
            explained: evaluation.explained(),
            calibration: evaluation.calibration(),
        }
    }
}
