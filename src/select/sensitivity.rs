//! Sensitivity sampling: documents are drawn by how much the loss of the whole depends on them, of which the losses of a few
//! are enough to know. Pure.
//!
//! In: a point for every document (an embedding), and the losses of some. Out: a sample with weights, whose weighted sums
//! stand for those of all documents.
//!
//! After Axiotis et al., "Data-Efficient Learning via Clustering-Based Sensitivity Sampling" (ICML 2024): with k centres
//! that are documents, and their losses l(c),
//!
//! ```text
//! s(x) = l(c(x)) + Λ · dist(x, c(x))^z        c(x) the centre that is nearest to x
//! Λ    = mean l(c(x)) / mean dist^z           so that both terms have equal mass (where the paper gives no value)
//! s    → (1 − γ) s + γ · mean s               so that no weight is above n / (γ m)
//! ```
//!
//! The paper draws m documents with replacement with probabilities s / S and weights S / (m s). Here it is priority
//! sampling (Duffield, Lund and Thorup 2007), without replacement: with u uniform in (0, 1) the m largest s / u are
//! selected, τ is the largest that is not, and a document weighs max(1, τ / s). Sums weighted so are unbiased; what is
//! known, S, is then made exact by a common factor (a ratio estimator).

mod centres;
mod means;
mod selector;

use serde::{Deserialize, Serialize};

use super::{BudgetedSelection, Rounding, apportion};

pub(super) use centres::squared_distance;
pub use centres::{CentreSettings, Centres, CentresError, SamplePoint};
pub use means::{ClusterAddition, ClusterMeans, ClusterTally, ClusterVersion, StreamClusters};
pub use selector::{CentresFrom, LossSource, SensitivitySelector};

/// γ: share of the scores that is the same for all documents.
pub const DEFAULT_FLOOR: f64 = 0.1;
pub const DEFAULT_CENTRES: usize = 256;
pub const MAX_CENTRES: usize = 65_536;
/// z.
pub const DEFAULT_EXPONENT: u32 = 2;

/// How much depends on a document.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The number of the nearest centre.
    pub centre: u32,
    pub distance: f64,
    /// l(c) + Λ · dist^z.
    pub score: f64,
}

/// Mixes scores with their mean, so that none is far below it; gives their sum, which stays. Scores that are all 0 become 1:
/// nothing tells the documents apart.
///
/// # Panics
/// If the floor is not a share, or a score is negative or not finite.
pub fn with_floor(scores: &mut [f64], floor: f64) -> f64 {
    assert!((0.0..=1.0).contains(&floor), "a floor of {floor}");
    assert!(scores.iter().all(|score| score.is_finite() && *score >= 0.0), "a score is negative or not finite");
    let mean = scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    let mixed = |score: f64| if mean > 0.0 { (1.0 - floor) * score + floor * mean } else { 1.0 };
    scores.iter_mut().for_each(|score| *score = mixed(*score));
    scores.iter().sum()
}

/// A priority sample of every pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SensitivitySelection {
    /// Keys and thresholds are logarithms of s / u.
    pub selection: BudgetedSelection,
    pub pools: Vec<SensitivityPool>,
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SensitivityPool {
    pub documents: u64,
    pub selected: u64,
    /// S: Σ s of all its documents.
    pub total: f64,
    /// log τ; `null` where all documents are selected.
    pub threshold: Option<f64>,
    /// S / Σ w s: what makes the weighted sum of the scores exact.
    pub ratio: f64,
}

/// In: documents by pool, the share of every pool and how those are rounded, the score of a document (above 0) and its uniform
/// number in (0, 1). Out: `count` of them, or all if there are fewer. Of equal keys the document with the lower number is selected.
///
/// # Panics
/// If a pool has no share.
pub fn select_by_sensitivity(
    count: u64,
    mut pools: Vec<Vec<u32>>,
    pool_shares: &[f64],
    rounding: Rounding,
    score: impl Fn(u32) -> f64,
    uniform: impl Fn(u32) -> f64,
) -> SensitivitySelection {
    let available: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
    let budgets = apportion(count, pool_shares, &available, rounding);
    let mut drawn = SensitivitySelection { shortfall: count - budgets.iter().sum::<u64>(), ..Default::default() };
    // As many as there will be, and no room for more.
    drawn.selection.picks.reserve_exact(budgets.iter().sum::<u64>() as usize);
    for (pool, (documents, budget)) in pools.iter_mut().zip(budgets).enumerate() {
        // In one order, whatever theirs was: the last bits of sums depend on it.
        documents.sort_unstable();
        let total = documents.iter().map(|&document| score(document)).sum();
        let n_documents = documents.len() as u64;
        let first = drawn.selection.picks.len();
        drawn.selection.take_turn(pool, 0, documents, budget, |document| score(document).ln() - uniform(document).ln());
        let picks = &mut drawn.selection.picks[first..];
        picks.sort_unstable_by_key(|pick| pick.document);
        let threshold = drawn.selection.turns.last().and_then(|turn| turn.threshold);
        let weighed = |document| score(document) * plain_weight(score(document), threshold);
        let weighted: f64 = picks.iter().map(|pick| weighed(pick.document)).sum();
        let ratio = if weighted > 0.0 { total / weighted } else { 1.0 };
        drawn.pools.push(SensitivityPool { documents: n_documents, selected: budget, total, threshold, ratio });
    }
    drawn.selection.picks.sort_unstable_by_key(|pick| pick.document);
    drawn
}

/// max(1, τ / s).
fn plain_weight(score: f64, threshold: Option<f64>) -> f64 {
    threshold.map_or(1.0, |threshold| (threshold - score.ln()).exp().max(1.0))
}

impl SensitivityPool {
    /// Chance of a document with this score, given the threshold: min(1, s / τ).
    pub fn inclusion_probability(&self, score: f64) -> f64 {
        if self.selected == 0 { 0.0 } else { plain_weight(score, self.threshold).recip() }
    }

    /// What a selected document stands for in weighted sums.
    pub fn sample_weight(&self, score: f64) -> f64 {
        self.ratio * plain_weight(score, self.threshold)
    }
}

#[cfg(test)]
mod tests;
