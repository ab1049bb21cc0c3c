//! A window over strata whose edges were known when it opened: documents compete as they come, and only those are held that may still
//! be selected.

use std::sync::Arc;

use super::candidates::{Candidate, Choice, Chosen, Deciding};
use super::columns;
use super::covered::{NeededNumbers, summary};
use crate::score::Score;
use crate::select::{
    BudgetRounding, ChosenFor, CoverageSelector, CoveredWindow, Criterion, Division, EdgeTally, FixedEdges,
    QuantileSketch, SelectorSettings, StratumReservoirs,
};

#[derive(Debug)]
pub(super) struct OnePassCandidates {
    reservoirs: StratumReservoirs<Candidate>,
    needed: NeededNumbers,
    /// Whether importance is the weight, and whether the cut-off looks at that; `None`: there is no cut-off.
    is_weight: bool,
    cutoff_is_weight: Option<bool>,
    /// Whether weights decide nothing within a stratum.
    is_uniform: bool,
    /// Total log weights of every candidate for the targets but the first, whose the statistics have.
    other_log_weights: Vec<Vec<f64>>,
    /// Those of the candidate that is offered.
    totals: Vec<f64>,
    /// What it adds to the sketches of the stream.
    of_cutoff: QuantileSketch,
    of_pools: Vec<QuantileSketch>,
}

impl OnePassCandidates {
    /// From which at most `at_most` will be chosen.
    pub fn new(
        division: &Arc<Division>,
        edges: &Arc<FixedEdges>,
        coverage: &CoverageSelector,
        selector: &SelectorSettings,
        at_most: u64,
    ) -> Self {
        let is_weight = |criterion: &Criterion| *criterion == Criterion::Weight;
        OnePassCandidates {
            reservoirs: StratumReservoirs::new(division.clone(), edges.clone(), at_most),
            needed: NeededNumbers::of(coverage),
            is_weight: is_weight(&coverage.importance),
            cutoff_is_weight: coverage.settings.cutoff.map(|_| is_weight(&coverage.cutoff_by)),
            is_uniform: selector.is_uniform(),
            other_log_weights: vec![Vec::new(); division.n_targets() - 1],
            totals: Vec::new(),
            of_cutoff: QuantileSketch::default(),
            of_pools: vec![QuantileSketch::default(); division.n_pools()],
        }
    }

    /// See [`NeededNumbers::accept`].
    pub fn accepts(&mut self, numbers: &[f64; 2]) -> bool {
        self.needed.accept(numbers)
    }

    /// Takes a candidate, with the key that a total log weight makes; gives those that can no longer be chosen to `out`.
    pub fn offer(
        &mut self,
        offset: i64,
        candidate: Candidate,
        [importance, cutoff]: [f64; 2],
        of_score: impl Fn(&Score) -> f64,
        key: impl Fn(f64) -> f64,
        mut out: impl FnMut(Candidate),
    ) {
        let totals = &mut self.totals;
        totals.clear();
        totals.extend(candidate.total_log_weights(of_score));
        self.other_log_weights.iter_mut().zip(&totals[1..]).for_each(|(weights, total)| columns::push(weights, *total));
        if let Some(is_weight) = self.cutoff_is_weight {
            let score = if is_weight { totals[0] } else { cutoff };
            self.of_cutoff.add(score);
            if self.reservoirs.cuts(score) {
                return out(candidate);
            }
        }
        let importance = if self.is_weight { totals[0] } else { importance };
        let pool = candidate.pool_in(self.reservoirs.division());
        self.of_pools[pool].add(importance);
        // One document has one noise, whichever target looks at it.
        let key = |target: usize| key(if self.is_uniform { 0.0 } else { totals[target] });
        self.reservoirs.offer((pool, offset), importance, key, candidate, out);
    }

    /// Beside the documents.
    pub fn held_bytes(&self) -> usize {
        self.reservoirs.held_bytes()
            + self.other_log_weights.iter().map(columns::held_bytes).sum::<usize>()
            + self.of_cutoff.held_bytes()
            + self.of_pools.iter().map(QuantileSketch::held_bytes).sum::<usize>()
    }

    pub fn choose(self, by: &Deciding<'_>) -> Choice {
        let Deciding { selector, noise, from, n_documents, log_weights, .. } = *by;
        let OnePassCandidates { reservoirs, needed, other_log_weights, of_cutoff, of_pools, .. } = self;
        let coverage = selector.coverage.as_ref().expect("the window was opened for a coverage selector");
        let (division, version) = (reservoirs.division().clone(), reservoirs.edges().of);
        let count = selector.fraction.of(n_documents, noise.rounding(from));
        let rounding = BudgetRounding::Random { noise, from };
        let CoveredWindow { chosen, n_cut, covered } = reservoirs.select(count, rounding, coverage.strata_rounding);
        let chances = covered.chances(coverage.strata_rounding, &division, selector.fraction, n_documents);
        let to_candidate = |chosen: ChosenFor<Candidate>| {
            let ChosenFor { offset, pool: cell, target, key, item: candidate } = chosen;
            let number = candidate.number;
            let total = |target: usize| match target.checked_sub(1) {
                None => log_weights[number as usize],
                Some(other) => other_log_weights[other][number as usize],
            };
            let probability =
                covered.inclusion_probability(selector, coverage.settings.within, cell, Some(target), total);
            // Whether anything of its stratum is chosen at all may have been left to chance.
            let (target, inclusion_probability) = (target as u32, chances[cell] * probability);
            (Chosen { number, offset, target, key, inclusion_probability, ratio: 1.0 }, candidate)
        };
        let (chosen, candidates) = chosen.into_iter().map(to_candidate).unzip();
        Choice {
            chosen,
            candidates,
            threshold: None,
            turns: Vec::new(),
            coverage: Some(summary(&division, &covered, needed.n_without, n_cut, Some(version))),
            sensitivity: None,
            clusters: None,
            edges: Some(EdgeTally::new(&division, of_cutoff, of_pools)),
            targets: division.targets().to_vec(),
            other_log_weights,
        }
    }
}
