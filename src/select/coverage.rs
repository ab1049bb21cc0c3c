//! Coverage-centric selection: easy and hard documents get equal shares of the selection. Pure.
//!
//! In: a number for every document that says how hard it is (its importance: a loss, a perplexity, EL2N, the score of a
//! classifier), and how many are to be selected. Out: a selection that is spread over the whole range of that number.
//!
//! After Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (ICLR 2023), in one order:
//!
//! 1. *Cut-off.* A share β of the documents goes, those with the lowest or highest scores: noise, or what is off target.
//! 2. *Quota.* The number wanted is divided among the sources, by their shares; what one cannot fill goes to the others.
//! 3. *Strata.* The importance of each source's documents is cut into k bands of equal width ([`Edges`]).
//! 4. *Budgets.* From the smallest stratum on, each gets an equal share of what is left, or all that it has
//!    ([`water_fill`]). In windows, of which there are many, the water level is rounded at random ([`StrataRounding`]):
//!    a window that selects fewer documents than it has strata would else give nothing to the small ones, always the
//!    same.
//! 5. *Noise.* Inside a stratum the best keys are selected: uniform noise, or Gumbel noise on the log weights.
//!
//! Edges are those of the documents at hand, or were taken from a stream before they came, as was the score of the cut-off: then each
//! document is looked at once ([`StratumReservoirs`]).
//!
//! The published code loses the highest scores when all are negative, selects nothing when all are 0, and gives fewer
//! documents than were asked for without a word. Here every score has a stratum, and what is missing is said.

mod edges;
mod follow;
mod plan;
mod rounding;
mod selector;
mod sketch;
mod stream;

use serde::{Deserialize, Serialize};

use super::{BudgetRounding, BudgetedSelection, Division, Fraction, SelectorSettings, chance_in_turns};

pub use edges::Edges;
pub use follow::{EdgeSketches, EdgeTally, EdgesVersion, MIN_SKETCHED};
pub use plan::{CoveragePlan, PlannedCell, plan_coverage};
pub use rounding::StrataRounding;
pub use selector::{CoverageSelector, Criterion, EdgesFrom, warning_of_weight};
pub use sketch::{QuantileSketch, QuantileSketchError};
pub use stream::{CoveredWindow, FixedCutoff, FixedEdges, SketchVersion, StratumReservoirs};

/// Strata, as the paper has them.
pub const DEFAULT_STRATA: u32 = 50;
/// Share of the documents at each end of the importance that does not widen the strata: one outlier would otherwise put
/// nearly all documents into one stratum, which is uniform sampling.
pub const DEFAULT_CLIP: f64 = 0.005;

/// How a selection is spread over the importance of its documents.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CoverageSettings {
    /// At least 1.
    pub strata: u32,
    pub cutoff: Option<Cutoff>,
    pub within: Within,
    /// Share of the documents at each end that is put into the outermost strata without widening them: 0 to below 0.5.
    pub clip: f64,
}

/// What is removed before anything is selected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cutoff {
    /// β: share of the documents that may be selected; a part of a document is none.
    pub rate: Fraction,
    pub tail: Tail,
}

impl Cutoff {
    /// What is left to select from, if that is less than `fraction` of the documents: then all of it is selected.
    pub fn leaves_less_than(self, fraction: Fraction) -> Option<Fraction> {
        self.rate.rest().filter(|left| fraction.is_above(*left))
    }
}

/// The end of the scores that a cut-off removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    Low,
    High,
}

/// How documents compete inside a stratum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Within {
    /// All alike.
    Uniform,
    /// Gumbel top-k on the total log weight.
    Weighted,
}

/// `total` over strata of these sizes: from the smallest on (of equal ones the first), each gets an equal share of what is
/// left, rounded down, or all that it has. Sums to `total`, or to all that there is.
pub fn water_fill(total: u64, sizes: &[u64]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&stratum| (sizes[stratum], stratum));
    let mut budgets = vec![0; sizes.len()];
    let mut left = total;
    for (n_before, stratum) in order.into_iter().enumerate() {
        let share = left / (sizes.len() - n_before) as u64;
        budgets[stratum] = sizes[stratum].min(share);
        left -= budgets[stratum];
    }
    budgets
}

/// What is to be selected, and by which shares.
#[derive(Debug, Clone, Copy)]
pub struct CoverageRequest<'a> {
    pub count: u64,
    pub settings: CoverageSettings,
    /// One for each pool of documents (a source, or all that have no share of their own).
    pub pool_shares: &'a [f64],
    pub target_shares: &'a [f64],
    /// Of the budgets of pools and targets.
    pub rounding: BudgetRounding<'a>,
    /// Of those of strata, where the others are rounded at random.
    pub strata_rounding: StrataRounding,
}

/// What is known of a document, by its number. No number may be NaN: documents without one are rejected before.
pub struct DocumentScores<'a> {
    pub cutoff: &'a dyn Fn(u32) -> f64,
    pub importance: &'a dyn Fn(u32) -> f64,
    /// For a target. With [`Within::Uniform`] it must be noise alone.
    pub key: &'a dyn Fn(u32, usize) -> f64,
}

/// A selection with its strata.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Covered {
    /// Documents that the cut-off removed, by number.
    pub cut: Vec<u32>,
    /// The score of the last one that was removed: those that stay are on its other side, or equal and earlier.
    pub cut_at: Option<f64>,
    pub pools: Vec<CoveredPool>,
    /// A turn's `pool` is a cell: see [`Covered::cell`].
    pub selection: BudgetedSelection,
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
}

/// The strata of one pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CoveredPool {
    /// `None` of a pool without documents.
    pub edges: Option<Edges>,
    pub strata: Vec<Stratum>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stratum {
    /// After the cut-off.
    pub documents: u64,
    /// As many are selected.
    pub budget: u64,
}

/// Selects in the order that this module's head describes. Of equal keys, and at the cut-off of equal scores, the document
/// with the lower number is kept; the order in which documents come never matters.
///
/// # Panics
/// If a pool has no share, or a score is not a number.
pub fn select_coverage(request: &CoverageRequest<'_>, pools: Vec<Vec<u32>>, scores: &DocumentScores<'_>) -> Covered {
    let plan = plan_coverage(request, pools, scores.cutoff, scores.importance);
    let CoveragePlan { cut, cut_at, pools, cells, shortfall } = plan;
    let mut selection = BudgetedSelection::default();
    for (cell, PlannedCell { mut documents, budgets }) in cells.into_iter().enumerate() {
        for (target, count) in budgets.into_iter().enumerate() {
            selection.take_turn(cell, target, &mut documents, count, |document| (scores.key)(document, target));
        }
    }
    selection.picks.sort_unstable_by_key(|pick| pick.document);
    Covered { cut, cut_at, pools, selection, shortfall }
}

impl Covered {
    /// The number of a document's stratum among those of all pools; `None` where its pool has no documents.
    pub fn cell(&self, pool: usize, importance: f64) -> Option<usize> {
        let CoveredPool { edges, strata } = self.pools.get(pool)?;
        edges.map(|edges| pool * strata.len() + edges.stratum(importance))
    }

    pub fn stratum(&self, cell: usize) -> Option<Stratum> {
        let n_strata = self.pools.first()?.strata.len();
        self.pools.get(cell / n_strata)?.strata.get(cell % n_strata).copied()
    }

    /// Chance of a document of this cell to be selected, given the budgets: b / n of a stratum that is drawn from
    /// uniformly, otherwise by the turns of the stratum (see [`chance_in_turns`]). Where the budgets were left to
    /// chance it is to be multiplied by that of [`Covered::chances`]. `selected_by`: the target that selected it.
    /// `total_log_weight` is that for a target.
    pub fn inclusion_probability(
        &self,
        settings: &SelectorSettings,
        within: Within,
        cell: usize,
        selected_by: Option<usize>,
        total_log_weight: impl Fn(usize) -> f64,
    ) -> f64 {
        let Some(Stratum { documents, budget }) = self.stratum(cell) else { return 0.0 };
        if within == Within::Uniform {
            return budget as f64 / documents.max(1) as f64;
        }
        chance_in_turns(settings, self.selection.turns_of(cell), selected_by, total_log_weight)
    }

    /// Chance that anything is selected of each cell, see [`StrataRounding::chances`].
    pub fn chances(
        &self,
        rounding: StrataRounding,
        division: &Division,
        fraction: Fraction,
        n_documents: u64,
    ) -> Vec<f64> {
        let sizes_of = |pool: &CoveredPool| pool.strata.iter().map(|stratum| stratum.documents).collect();
        let sizes: Vec<Vec<u64>> = self.pools.iter().map(sizes_of).collect();
        rounding.chances(division, fraction, n_documents, &sizes).concat()
    }

    /// Strata of all pools that have documents, and those of them that something is selected from.
    pub fn occupied(&self) -> (u64, u64) {
        let strata = || self.pools.iter().flat_map(|pool| &pool.strata);
        let count = |is: fn(&&Stratum) -> bool| strata().filter(is).count() as u64;
        (count(|stratum| stratum.documents > 0), count(|stratum| stratum.budget > 0))
    }
}

#[cfg(test)]
mod tests;
