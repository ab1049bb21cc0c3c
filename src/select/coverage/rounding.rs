//! How the budgets of strata become whole numbers, and the chance that a stratum has one at all.

use serde::{Deserialize, Serialize};

use super::super::apportion::dues;
use super::super::budget::{split_among_targets, split_among_targets_from};
use super::super::{BudgetRounding, Division, Fraction, Rounding, apportion};
use super::water_fill;

/// How the water level of the strata of a window is rounded. Recorded with the settings: a window that was published
/// before is decided again as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrataRounding {
    /// By [`water_fill`], as in the paper: for one selection. Of many small ones the rare strata would go empty in
    /// each. What was decided before this was recorded was decided so.
    #[default]
    Down,
    /// At random: each stratum gets its level on average, and never a whole document more or less.
    Random,
}

impl StrataRounding {
    pub(super) fn is_down(&self) -> bool {
        *self == StrataRounding::Down
    }

    /// Budgets of the strata of a pool, and of each the parts of the targets, which come to `of_targets` in all. Where
    /// those of pools are not rounded at random, neither are these.
    pub(super) fn budgets(
        self,
        pool: usize,
        of_targets: &[u64],
        sizes: &[u64],
        rounding: BudgetRounding<'_>,
    ) -> (Vec<u64>, Vec<Vec<u64>>) {
        let total: u64 = of_targets.iter().sum();
        match (self, rounding) {
            (StrataRounding::Random, BudgetRounding::Random { noise, from }) => {
                let at_random = Rounding::Random(noise.stratum_rounding(from, pool));
                let budgets = apportion(total, &alike(sizes), sizes, at_random);
                let parts = split_among_targets_from(noise.target_start(from, pool), &budgets, of_targets);
                (budgets, parts)
            }
            (StrataRounding::Down, _) | (_, BudgetRounding::Nearest) => {
                let budgets = water_fill(total, sizes);
                let parts = split_among_targets(&budgets, of_targets);
                (budgets, parts)
            }
        }
    }

    /// Chance that anything is selected of each stratum of each pool of a window, over all that is rounded at random:
    /// the count, the shares of the pools, and the strata. `sizes`: documents of the strata, of which those without any
    /// may be left out.
    ///
    /// With [`StrataRounding::Down`] it is that of the pool, whatever the stratum: nobody knew better when that was
    /// recorded.
    pub fn chances(
        self,
        division: &Division,
        fraction: Fraction,
        n_documents: u64,
        sizes: &[Vec<u64>],
    ) -> Vec<Vec<f64>> {
        let of_pools: Vec<u64> = sizes.iter().map(|sizes| sizes.iter().sum()).collect();
        match self {
            StrataRounding::Down => {
                let chances = division.chances(fraction, n_documents, &of_pools);
                chances.into_iter().zip(sizes).map(|(chance, sizes)| vec![chance; sizes.len()]).collect()
            }
            StrataRounding::Random => division.mean_over_budgets(fraction, n_documents, &of_pools, |pool, budget| {
                let sizes = &sizes[pool];
                dues(budget, &alike(sizes), sizes).into_iter().map(|due| due.min(1.0)).collect()
            }),
        }
    }
}

/// Equal shares: what a full stratum leaves goes to the others alike, which is a water level.
fn alike(sizes: &[u64]) -> Vec<f64> {
    vec![1.0; sizes.len()]
}
