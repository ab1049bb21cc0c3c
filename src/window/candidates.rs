//! What can still be selected of a window: one reservoir, or one for each part where quotas or several targets divide it.

use super::columns;
use super::covered::CoveredCandidates;
use super::one_pass::OnePassCandidates;
use super::sensitive::SensitiveCandidates;
use super::tokens::TokenCandidates;
use super::{CoverageSummary, Opening, SensitivitySummary, TurnSummary};
use crate::features::BucketList;
use crate::record::Document;
use crate::score::Score;
use crate::select::{
    self, BudgetRounding, BudgetedReservoirs, ChosenFor, ClusterAddition, Division, EdgeTally, Noise, Reservoir,
    SelectorSettings, Turn, Unit, chance_in_turns,
};

#[derive(Debug)]
pub(super) struct Candidate {
    pub document: Document,
    pub score: Score,
    /// See [`super::ScoredDocument::other_weights`].
    pub other_weights: Vec<f64>,
    /// See [`super::ScoredDocument::pool`].
    pub pool: Option<u16>,
    pub buckets: Option<BucketList>,
    /// Among the candidates of the window.
    pub number: u32,
}

impl Candidate {
    pub fn size_bytes(&self) -> usize {
        size_of::<Candidate>()
            + self.document.size_bytes()
            + self.other_weights.len() * size_of::<f64>()
            + self.buckets.as_ref().map_or(0, BucketList::held_bytes)
    }

    /// See [`super::ScoredDocument::pool_in`].
    pub fn pool_in(&self, division: &Division) -> usize {
        super::pool_of(division, self.document.source.as_deref(), self.pool)
    }

    /// What it competes with for every target, in order: the only place where weights become what keys, probabilities and
    /// diagnostics are made from.
    pub fn total_log_weights(&self, of_score: impl Fn(&Score) -> f64) -> impl Iterator<Item = f64> {
        let others = self.other_weights.iter().map(|&weight| Score { log_importance_weight: weight, ..self.score });
        std::iter::once(self.score).chain(others).map(move |score| of_score(&score))
    }
}

/// All of them compete for one target, or each pool for targets in turn.
#[derive(Debug)]
pub(super) enum Candidates {
    Whole(Reservoir<Candidate>),
    Divided(Box<Divided>),
    /// Each of the strata, whose edges are known.
    OnePass(Box<OnePassCandidates>),
    /// Only numbers are held; the documents wait elsewhere until all have come.
    Covered(Box<CoveredCandidates>),
    /// So are these.
    Sensitive(Box<SensitiveCandidates>),
    Tokens(Box<TokenCandidates>),
}

#[derive(Debug)]
pub(super) struct Divided {
    reservoirs: BudgetedReservoirs<Candidate>,
    /// Total log weights of every candidate for the targets but the first, whose the statistics have.
    other_log_weights: Vec<Vec<f64>>,
    /// Those of the candidate that is offered.
    totals: Vec<f64>,
}

/// What a window is decided by, beside its candidates.
pub(super) struct Deciding<'a> {
    pub selector: &'a SelectorSettings,
    pub noise: &'a Noise,
    /// Its first offset.
    pub from: i64,
    pub n_documents: u64,
    /// Of all its documents, as they count in budgets.
    pub n_tokens: u64,
    /// Total log weights of every candidate for the first target.
    pub log_weights: &'a [f64],
}

/// The candidates that are chosen, by ascending offset.
pub(super) struct Choice {
    pub chosen: Vec<Chosen>,
    /// Of each chosen one, unless it waits elsewhere: then nothing of any.
    pub candidates: Vec<Candidate>,
    /// See [`super::WindowSummary`].
    pub threshold: Option<f64>,
    pub turns: Vec<TurnSummary>,
    /// Total log weights of every candidate for the targets but the first.
    pub other_log_weights: Vec<Vec<f64>>,
    /// Names of several targets; nothing of one.
    pub targets: Vec<String>,
    pub coverage: Option<CoverageSummary>,
    pub sensitivity: Option<SensitivitySummary>,
    /// What it adds to the clusters of the stream, and to its sketches.
    pub clusters: Option<ClusterAddition>,
    pub edges: Option<EdgeTally>,
}

/// What is decided of a candidate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen {
    /// Among the candidates of the window.
    pub number: u32,
    pub offset: i64,
    pub target: u32,
    pub key: f64,
    pub inclusion_probability: f64,
    /// What 1 / its inclusion probability is multiplied by to be its sample weight.
    pub ratio: f64,
}

impl Candidates {
    /// From which at most `at_most` will be chosen.
    pub fn new(opening: Opening<'_>, at_most: u64, selector: &SelectorSettings) -> Self {
        let Opening { division, clusters, edges, .. } = opening;
        if let (Some(coverage), Some(edges)) = (&selector.coverage, edges) {
            let one_pass = OnePassCandidates::new(division, edges, coverage, selector, at_most);
            return Candidates::OnePass(Box::new(one_pass));
        }
        if let Some(coverage) = &selector.coverage {
            return Candidates::Covered(Box::new(CoveredCandidates::new(division, coverage, selector)));
        }
        if let Some(sensitivity) = &selector.sensitivity {
            let candidates = SensitiveCandidates::new(division, sensitivity, selector.fraction, clusters);
            return Candidates::Sensitive(Box::new(candidates));
        }
        if selector.unit == Unit::Tokens {
            return Candidates::Tokens(Box::new(TokenCandidates::new(division)));
        }
        if division.is_whole() {
            return Candidates::Whole(Reservoir::new(at_most as usize));
        }
        Candidates::Divided(Box::new(Divided {
            other_log_weights: vec![Vec::new(); division.n_targets() - 1],
            reservoirs: BudgetedReservoirs::new(division.clone(), at_most),
            totals: Vec::new(),
        }))
    }

    /// Takes one, with the key that a total log weight makes; gives those that can no longer be chosen to `out`.
    pub fn offer(
        &mut self,
        offset: i64,
        candidate: Candidate,
        total_log_weight: f64,
        of_score: impl Fn(&Score) -> f64,
        key: impl Fn(f64) -> f64,
        out: impl FnMut(Candidate),
    ) {
        match self {
            Candidates::Whole(reservoir) => {
                reservoir.offer(offset, key(total_log_weight), candidate).into_iter().for_each(out);
            }
            Candidates::Divided(divided) => divided.offer(offset, candidate, of_score, key, out),
            Candidates::OnePass(_) | Candidates::Covered(_) | Candidates::Sensitive(_) | Candidates::Tokens(_) => {
                unreachable!("these documents wait elsewhere, or have further numbers")
            }
        }
    }

    /// See [`super::OpenWindow::might_select`].
    pub fn might_hold(&self, key: f64) -> bool {
        match self {
            Candidates::Whole(reservoir) => reservoir.might_hold(key),
            Candidates::Divided(_) | Candidates::OnePass(_) => true,
            Candidates::Covered(_) | Candidates::Sensitive(_) | Candidates::Tokens(_) => true,
        }
    }

    /// Whether the documents are not here, so that they have to be shown when it is decided.
    pub fn wait_elsewhere(&self) -> bool {
        match self {
            Candidates::Whole(_) | Candidates::Divided(_) | Candidates::OnePass(_) => false,
            Candidates::Covered(_) | Candidates::Sensitive(_) | Candidates::Tokens(_) => true,
        }
    }

    /// Bytes of what is remembered of every candidate, chosen or not, and of what deciding them will take.
    pub fn held_bytes(&self) -> usize {
        match self {
            Candidates::Whole(_) => 0,
            Candidates::Divided(divided) => divided.other_log_weights.iter().map(columns::held_bytes).sum(),
            Candidates::OnePass(one_pass) => one_pass.held_bytes(),
            Candidates::Covered(covered) => covered.held_bytes(),
            Candidates::Sensitive(sensitive) => sensitive.held_bytes(),
            Candidates::Tokens(in_tokens) => in_tokens.held_bytes(),
        }
    }

    pub fn choose(self, by: &Deciding<'_>) -> Choice {
        match self {
            Candidates::Whole(reservoir) => whole(reservoir, by),
            Candidates::Divided(divided) => divided.choose(by),
            Candidates::OnePass(one_pass) => one_pass.choose(by),
            Candidates::Covered(covered) => covered.choose(by),
            Candidates::Sensitive(sensitive) => sensitive.choose(by),
            Candidates::Tokens(in_tokens) => in_tokens.choose(by),
        }
    }
}

fn whole(candidates: Reservoir<Candidate>, by: &Deciding<'_>) -> Choice {
    let Deciding { selector, noise, from, n_documents, log_weights, .. } = *by;
    let k = selector.fraction.of(n_documents, noise.rounding(from)) as usize;
    let selection = candidates.select(k);
    let threshold = selection.threshold;
    // Whether there is a selection at all was left to chance where the share is less than one document.
    let chance = (selector.fraction.as_f64() * n_documents as f64).min(1.0);
    let chosen = selection.chosen.into_iter().map(|select::Chosen { offset, key, item: candidate }| {
        let probability = selector.inclusion_probability(log_weights[candidate.number as usize], threshold);
        let inclusion_probability = chance * probability;
        (Chosen { number: candidate.number, offset, target: 0, key, inclusion_probability, ratio: 1.0 }, candidate)
    });
    let (chosen, candidates) = chosen.unzip();
    Choice {
        chosen,
        candidates,
        threshold,
        turns: Vec::new(),
        other_log_weights: Vec::new(),
        targets: Vec::new(),
        coverage: None,
        sensitivity: None,
        clusters: None,
        edges: None,
    }
}

impl Divided {
    fn offer(
        &mut self,
        offset: i64,
        candidate: Candidate,
        of_score: impl Fn(&Score) -> f64,
        key: impl Fn(f64) -> f64,
        out: impl FnMut(Candidate),
    ) {
        let totals = &mut self.totals;
        totals.clear();
        totals.extend(candidate.total_log_weights(of_score));
        self.other_log_weights.iter_mut().zip(&totals[1..]).for_each(|(weights, total)| columns::push(weights, *total));
        let pool = candidate.pool_in(self.reservoirs.division());
        // One document has one noise, whichever target looks at it.
        self.reservoirs.offer(pool, offset, |target| key(totals[target]), candidate, out);
    }

    fn choose(self, by: &Deciding<'_>) -> Choice {
        let Deciding { selector, noise, from, n_documents, log_weights, .. } = *by;
        let Divided { reservoirs, other_log_weights, .. } = self;
        let count = selector.fraction.of(n_documents, noise.rounding(from));
        let sizes = reservoirs.sizes().to_vec();
        let division = reservoirs.division().clone();
        let budgets = division.budgets(count, &sizes, BudgetRounding::Random { noise, from });
        let chances = division.chances(selector.fraction, n_documents, &sizes);
        let summary = |turn: &Turn| TurnSummary {
            source: division.source_of(turn.pool).map(str::to_owned),
            target: division.targets().get(turn.target).cloned(),
            n_candidates: sizes[turn.pool],
            n_selected: turn.count,
            threshold: turn.threshold,
            tokens: None,
        };
        let n_targets = division.n_targets();
        let (chosen, turns) = reservoirs.select(&budgets);
        let log_weight = |target: usize, number: u32| match target.checked_sub(1) {
            None => log_weights[number as usize],
            Some(other) => other_log_weights[other][number as usize],
        };
        let to_candidate = |chosen: ChosenFor<Candidate>| {
            let ChosenFor { offset, pool, target, key, item: candidate } = chosen;
            let of_pool = &turns[pool * n_targets..][..n_targets];
            let of_target = |target| log_weight(target, candidate.number);
            // Whether anything of its pool is chosen at all may have been left to chance.
            let inclusion_probability = chances[pool] * chance_in_turns(selector, of_pool, Some(target), of_target);
            let target = target as u32;
            (Chosen { number: candidate.number, offset, target, key, inclusion_probability, ratio: 1.0 }, candidate)
        };
        let (chosen, candidates) = chosen.into_iter().map(to_candidate).unzip();
        let turns = turns.iter().map(summary).collect();
        let targets = division.targets().to_vec();
        Choice {
            chosen,
            candidates,
            threshold: None,
            turns,
            other_log_weights,
            targets,
            coverage: None,
            sensitivity: None,
            clusters: None,
            edges: None,
        }
    }
}
