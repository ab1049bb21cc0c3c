//! What is to be selected of every stratum, before anything is drawn.

use std::cmp::Ordering;

use super::super::{Schedule, budgets};
use super::{CoverageRequest, CoveredPool, Cutoff, Edges, Stratum, Tail};

/// All that does not depend on the keys of the documents.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CoveragePlan {
    /// As in [`Covered`](super::Covered).
    pub cut: Vec<u32>,
    pub cut_at: Option<f64>,
    pub pools: Vec<CoveredPool>,
    /// The strata of all pools, those of a pool one after the other.
    pub cells: Vec<PlannedCell>,
    pub shortfall: u64,
}

/// A stratum of a pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PlannedCell {
    /// By number, in the order in which they came.
    pub documents: Vec<u32>,
    /// As many each target selects: never more than there are documents in all.
    pub budgets: Vec<u64>,
}

/// The first four steps of the order that the module above describes.
///
/// # Panics
/// If a pool has no share, or a score is not a number.
pub fn plan_coverage(
    request: &CoverageRequest<'_>,
    mut pools: Vec<Vec<u32>>,
    cutoff: &dyn Fn(u32) -> f64,
    importance: &dyn Fn(u32) -> f64,
) -> CoveragePlan {
    let mut plan = CoveragePlan::default();
    if let Some(by) = request.settings.cutoff {
        (plan.cut, plan.cut_at) = cut_off(&mut pools, by, cutoff);
    }
    let available: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
    let CoverageRequest { count, pool_shares, target_shares, rounding, .. } = *request;
    let budgets = budgets(count, pool_shares, target_shares, &available, rounding);
    plan.shortfall = count - budgets.iter().flatten().sum::<u64>();
    for (documents, of_targets) in pools.into_iter().zip(budgets) {
        plan.add_pool(&documents, &of_targets, request, importance);
    }
    plan
}

impl CoveragePlan {
    fn add_pool(
        &mut self,
        documents: &[u32],
        of_targets: &[u64],
        request: &CoverageRequest<'_>,
        importance: &dyn Fn(u32) -> f64,
    ) {
        let n_strata = request.settings.strata;
        let scores = documents.iter().map(|&document| importance(document)).collect();
        let edges = Edges::of(scores, n_strata, request.settings.clip);
        let mut sizes = vec![0; n_strata as usize];
        let stratum_of = |document: u32| edges.map_or(0, |edges| edges.stratum(importance(document)));
        documents.iter().for_each(|document| sizes[stratum_of(*document)] += 1);
        // There may be very many: no room for more.
        let mut strata: Vec<Vec<u32>> = sizes.iter().map(|size| Vec::with_capacity(*size as usize)).collect();
        documents.iter().for_each(|document| strata[stratum_of(*document)].push(*document));
        let pool = self.pools.len();
        let (budgets, of_targets) = request.strata_rounding.budgets(pool, of_targets, &sizes, request.rounding);
        let cell = |(documents, budgets)| PlannedCell { documents, budgets };
        self.cells.extend(strata.into_iter().zip(of_targets).map(cell));
        let stratum = |(documents, budget): (u64, u64)| Stratum { documents, budget };
        self.pools.push(CoveredPool { edges, strata: sizes.into_iter().zip(budgets).map(stratum).collect() });
    }

    /// One for each cell, for documents that come in windows: each cell spends its budgets evenly over its own documents. The
    /// cells of a pool round at different documents, so that their sum is even as well, however small the budgets are.
    pub fn schedules(&self) -> Vec<Schedule> {
        let n_strata = self.pools.first().map_or(1, |pool| pool.strata.len());
        let of_pool = |cells: &[PlannedCell]| {
            let is_drawn_from = |cell: &PlannedCell| cell.budgets.iter().any(|budget| *budget > 0);
            let n = cells.iter().filter(|cell| is_drawn_from(cell)).count() as u64;
            let mut before = 0;
            let schedule = |cell: &PlannedCell| {
                let (documents, budgets) = (cell.documents.len() as u64, cell.budgets.clone());
                if !is_drawn_from(cell) {
                    return Schedule::new(documents, budgets);
                }
                before += 1;
                Schedule::staggered(documents, budgets, (2 * before - 1, 2 * n))
            };
            cells.iter().map(schedule).collect::<Vec<_>>()
        };
        self.cells.chunks(n_strata).flat_map(of_pool).collect()
    }
}

/// Takes the share of all documents out of the pools; gives them, and the score of the last one.
fn cut_off(pools: &mut [Vec<u32>], cutoff: Cutoff, score: &dyn Fn(u32) -> f64) -> (Vec<u32>, Option<f64>) {
    let mut scores: Vec<f64> = pools.iter().flatten().map(|&document| score(document)).collect();
    assert!(scores.iter().all(|score| !score.is_nan()), "a score of the cut-off is not a number");
    // A uniform number of 1 rounds down.
    let n = cutoff.rate.of(scores.len() as u64, 1.0) as usize;
    let Some(last) = n.checked_sub(1) else { return (Vec::new(), None) };
    let from_tail = |a: &f64, b: &f64| if cutoff.tail == Tail::Low { a.total_cmp(b) } else { b.total_cmp(a) };
    let cut_at = *scores.select_nth_unstable_by(last, from_tail).1;
    // Twice as much would be held otherwise.
    drop(scores);
    let (mut cut, mut equal) = (Vec::with_capacity(n), Vec::new());
    for &document in pools.iter().flatten() {
        match from_tail(&score(document), &cut_at) {
            Ordering::Less => cut.push(document),
            Ordering::Equal => equal.push(document),
            Ordering::Greater => {}
        }
    }
    // Of equal scores the later document goes.
    equal.sort_unstable();
    cut.extend_from_slice(&equal[equal.len() - (n - cut.len())..]);
    cut.sort_unstable();
    for pool in pools {
        pool.retain(|document| cut.binary_search(document).is_err());
    }
    (cut, Some(cut_at))
}
