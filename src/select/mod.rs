//! Picks the documents of a window: Gumbel top-k on the log importance weight, plain top-k, spread over strata of their
//! difficulty, or by how much a loss depends on them. Pure.
//!
//! In: scored documents, one by one. Out: the chosen ones with their inclusion probabilities. The order of arrival and
//! the way documents are batched never matter: the noise of a document is a function of the seed and its position.

mod acceptance;
mod apportion;
mod budget;
mod chances;
mod coverage;
mod diagnostics;
mod filter;
mod fraction;
mod histogram;
mod holdout;
mod noise;
mod quotas;
mod reservoir;
mod reservoirs;
mod sensitivity;
mod spread;
mod tokens;

use serde::{Deserialize, Serialize};

use crate::features::Featuriser;
use crate::score::{LossTerm, Score};

pub use acceptance::{AcceptanceBySource, SourceAcceptance, SourceCounts};
pub use apportion::{Rounding, apportion};
pub use budget::{BudgetRounding, BudgetedSelection, Pick, Schedule, Turn, budgets, select_within_budgets};
pub use chances::chance_in_turns;
pub use coverage::{
    CoveragePlan, CoverageRequest, CoverageSelector, CoverageSettings, Covered, CoveredPool, CoveredWindow, Criterion,
    Cutoff, DEFAULT_CLIP, DEFAULT_STRATA, DocumentScores, EdgeSketches, EdgeTally, Edges, EdgesFrom, EdgesVersion,
    FixedCutoff, FixedEdges, MIN_SKETCHED, PlannedCell, QuantileSketch, QuantileSketchError, SketchVersion,
    StrataRounding, Stratum, StratumReservoirs, Tail, Within, plan_coverage, select_coverage, warning_of_weight,
    water_fill,
};
pub use diagnostics::{
    Diagnostics, JudgedDraw, Quantiles, effective_sample_size, is_collapsed, temperature_for_effective_sample_size,
    top_k_overlap, weight_length_correlation,
};
pub use filter::{FieldType, FilterSettings};
pub use fraction::Fraction;
pub use histogram::WeightHistogram;
pub use holdout::is_held_out;
pub use noise::Noise;
pub use quotas::{Division, Quotas, pool_shares_of};
pub use reservoir::{Chosen, Reservoir, Selection};
pub use reservoirs::{BudgetedReservoirs, ChosenFor};
pub use sensitivity::{
    CentreSettings, Centres, CentresError, CentresFrom, ClusterAddition, ClusterMeans, ClusterTally, ClusterVersion,
    DEFAULT_CENTRES, DEFAULT_EXPONENT, DEFAULT_FLOOR, LossSource, MAX_CENTRES, SamplePoint, Sensitivity,
    SensitivityPool, SensitivitySelection, SensitivitySelector, StreamClusters, select_by_sensitivity, with_floor,
};
pub use spread::NearestDistances;
pub use tokens::{RankedDocument, TokenPool, Unit, token_budgets};

/// How keys are made from log importance weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SelectorKind {
    /// Gumbel top-k: resampling without replacement in proportion to the importance weights
    /// (Xie et al. 2023, section 3; Kool et al. 2019).
    ImportanceResampling,
    /// The highest weights, without noise.
    TopK,
}

impl SelectorKind {
    pub const NAMES: [&str; 2] = ["importance_resampling", "top_k"];

    pub fn as_str(self) -> &'static str {
        match self {
            SelectorKind::ImportanceResampling => Self::NAMES[0],
            SelectorKind::TopK => Self::NAMES[1],
        }
    }
}

/// What is selected of a window. Recorded with every shard, so that a selection can be repeated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelectorSettings {
    pub kind: SelectorKind,
    /// Share of a window's documents, or of their tokens, that is kept.
    pub fraction: Fraction,
    /// What it and the shares of sources are counted in. The tokens are those of the tokenizer that is recorded beside it, or else
    /// word-punct tokens.
    #[serde(default, skip_serializing_if = "Unit::is_documents")]
    pub unit: Unit,
    /// Log weights are divided by it: above 1 flattens them towards a uniform sample. Finite, above 0.
    pub temperature: f64,
    /// Whether documents compete by the mean log weight of their n-grams instead of the sum, which dwarfs the noise and
    /// punishes length.
    #[serde(default)]
    pub length_normalise: bool,
    /// Documents with fewer tokens are never chosen.
    pub min_tokens: u32,
    pub seed: u64,
    /// How the selection of a window is divided among sources and targets.
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
    /// What the documents' own losses add to the log weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<LossTerm>,
    /// Documents of which it is not true are never chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterSettings>,
    /// Share of all ids whose documents go to the validation split where they are chosen; `None`: there is no such split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<Fraction>,
    /// Documents of a window from which it is measured how well the selection covers them; 0: it is not. It decides nothing, and
    /// is recorded since the outcome is.
    #[serde(default)]
    pub coverage_sample: u32,
    /// Spreads the selection over strata, inside which `kind` decides; `None`: the highest keys of the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageSelector>,
    /// Draws documents by how much a loss depends on them, and not by `kind`; `None`: the keys decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivitySelector>,
}

impl SelectorSettings {
    /// What a document competes with: its log importance weight, or the mean of that over its n-grams, and what its own loss
    /// and the one that is expected of it add. Keys, probabilities and diagnostics are made from it; shards keep the log
    /// importance weight itself.
    pub fn total_log_weight(&self, score: &Score, featuriser: &Featuriser) -> f64 {
        let of_loss = self.loss.map_or(0.0, |term| term.added(score.loss));
        self.text_log_weight(score, featuriser) + of_loss + score.expected_loss_weight
    }

    /// The part of it that its n-grams have.
    pub fn text_log_weight(&self, score: &Score, featuriser: &Featuriser) -> f64 {
        if self.length_normalise {
            score.log_importance_weight / featuriser.n_ngrams(score.n_tokens).max(1) as f64
        } else {
            score.log_importance_weight
        }
    }

    /// Whether the document with this id is held out of training.
    pub fn is_held_out(&self, id: &str) -> bool {
        self.holdout.is_some_and(|share| is_held_out(id, share))
    }

    /// Whether the weights say nothing of which documents are selected.
    pub fn is_uniform(&self) -> bool {
        let is_uniform = |coverage: &CoverageSelector| coverage.settings.within == Within::Uniform;
        self.sensitivity.is_some() || self.coverage.as_ref().is_some_and(is_uniform)
    }

    /// Its name, which is not that of its kind where that decides nothing, or only inside strata.
    pub fn name(&self) -> &'static str {
        match (&self.coverage, &self.sensitivity) {
            (None, None) => self.kind.as_str(),
            (Some(_), _) => "coverage",
            (None, Some(_)) => "sensitivity",
        }
    }

    /// What the numbers are that sketches of the stream are of, where strata take their edges from these.
    pub fn sketched_numbers(&self, model: &str) -> Option<String> {
        let weight = if self.length_normalise { format!("a n-gram by {model}") } else { format!("by {model}") };
        let numbers = self.coverage.as_ref()?.numbers(&weight)?;
        // Pools of another field may have the same names.
        let pools = self.quotas.field.as_ref().map(|field| format!(" by {field}"));
        Some(numbers + &pools.unwrap_or_default())
    }

    /// Whether there may be windows of which nobody can say what is selected before all their documents have come, so that these wait
    /// elsewhere.
    pub fn sees_whole_windows(&self) -> bool {
        self.coverage.is_some() || self.sensitivity.is_some() || self.unit == Unit::Tokens
    }

    /// The key by which documents are ranked, highest first.
    pub fn key(&self, noise: &Noise, offset: i64, total_log_weight: f64) -> f64 {
        let scaled = total_log_weight / self.temperature;
        match self.kind {
            SelectorKind::ImportanceResampling => scaled + noise.gumbel(offset),
            SelectorKind::TopK => scaled,
        }
    }

    /// Probability that a document is chosen, given the threshold (the highest key that was not chosen):
    /// `1 - exp(-exp(w / T - threshold))`. It is 1 when everything was chosen, and for top-k.
    pub fn inclusion_probability(&self, total_log_weight: f64, threshold: Option<f64>) -> f64 {
        match (self.kind, threshold) {
            (SelectorKind::ImportanceResampling, Some(threshold)) => {
                -(-(total_log_weight / self.temperature - threshold).exp()).exp_m1()
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests;
