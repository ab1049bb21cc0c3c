//! A window that is spread over strata: their edges are known when all documents have come, so that only numbers are held
//! until then, and the documents wait elsewhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Choice, Chosen, Deciding};
use super::columns::{self, Offsets};
use crate::record::Document;
use crate::score::Score;
use crate::select::{
    BudgetRounding, CoverageRequest, CoverageSelector, CoverageSettings, Covered, Criterion, Division, DocumentScores,
    EdgeTally, Edges, EdgesFrom, FixedCutoff, FixedEdges, Fraction, Pick, QuantileSketch, SelectorSettings,
    SketchVersion, Stratum, select_coverage,
};

/// What deciding allocates for a candidate meanwhile, at most: its number in its pool and its stratum, or among those that are cut
/// off, and one of its scores.
const DECIDING_BYTES: usize = 2 * size_of::<u32>() + size_of::<f64>();
/// And for one that is chosen.
pub(super) const CHOSEN_BYTES: usize = size_of::<Pick>() + size_of::<Chosen>();

/// What is left of a document that waits outside of its window, and comes back if it is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SpooledRow {
    pub document: Document,
    pub score: Score,
    /// See [`super::ScoredDocument::other_weights`].
    pub other_weights: Vec<f64>,
    /// See [`super::ScoredDocument::point`]; empty where there is none.
    pub point: Vec<f32>,
}

/// How a window was spread over strata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoverageSummary {
    /// Documents that are long enough but lack a number. They are rejected.
    pub n_without_number: u64,
    /// Documents that the cut-off removed, and the score of the last one; where that was known before, it is what all reach that go.
    pub n_cut: u64,
    pub cut_at: Option<f64>,
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
    /// One of all documents, or one a pool where sources, or values of another field, have shares.
    pub pools: Vec<PoolStrata>,
    /// The sketches of the stream that edges and cut-off were taken from when it opened; `None`: from its own documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edges: Option<SketchVersion>,
}

impl CoverageSummary {
    /// What it took of the stream when it opened, as it is recorded.
    pub fn fixed_edges(&self, settings: &CoverageSettings) -> Option<FixedEdges> {
        let cutoff = settings.cutoff.zip(self.cut_at).map(|(cutoff, at)| FixedCutoff { tail: cutoff.tail, at });
        let edges = |pool: &PoolStrata| pool.range.map(|(low, high)| Edges::new(low, high, settings.strata));
        Some(FixedEdges { of: self.edges?, cutoff, pools: self.pools.iter().map(edges).collect::<Option<_>>()? })
    }
}

/// The strata of one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolStrata {
    /// The source, or value of [`crate::select::Quotas::field`], that is a pool of its own; `None`: the pool of all others.
    pub source: Option<String>,
    /// Where the first stratum begins and the last one ends; `None` of a pool without documents, unless it was known before.
    pub range: Option<(f64, f64)>,
    /// Those that have documents.
    pub strata: Vec<StratumSummary>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StratumSummary {
    /// From 0 on.
    pub stratum: u32,
    /// After the cut-off.
    pub n_documents: u64,
    pub n_selected: u64,
    /// For each target in turn the highest key that it left; `None` when nothing was left, or nothing was to be chosen.
    pub thresholds: Vec<Option<f64>>,
}

/// Numbers of the candidates, by number; the total log weights for the first target are among the window's statistics.
#[derive(Debug)]
pub(super) struct CoveredCandidates {
    division: Arc<Division>,
    fraction: Fraction,
    needed: NeededNumbers,
    /// Which of a document's numbers are held: no field twice.
    held: [bool; 2],
    offsets: Offsets,
    /// Importance and score of the cut-off: empty where that is the weight, not wanted, or the other one.
    numbers: [Vec<f64>; 2],
    /// Empty where there is only one.
    pools: Vec<u16>,
    other_log_weights: Vec<Vec<f64>>,
}

/// Which of its numbers a document must have, and how many lack one.
#[derive(Debug)]
pub(super) struct NeededNumbers {
    needed: [bool; 2],
    pub n_without: u64,
}

impl NeededNumbers {
    pub fn of(coverage: &CoverageSelector) -> Self {
        NeededNumbers { needed: coverage.fields().map(|field| field.is_some()), n_without: 0 }
    }

    /// Whether a document has the numbers that it needs; counts it if not.
    pub fn accept(&mut self, numbers: &[f64; 2]) -> bool {
        let lacks = self.needed.iter().zip(numbers).any(|(needed, number)| *needed && !number.is_finite());
        self.n_without += u64::from(lacks);
        !lacks
    }
}

impl CoveredCandidates {
    pub fn new(division: &Arc<Division>, coverage: &CoverageSelector, selector: &SelectorSettings) -> Self {
        let [importance, cutoff] = coverage.fields();
        CoveredCandidates {
            fraction: selector.fraction,
            needed: NeededNumbers::of(coverage),
            held: [importance.is_some(), cutoff.is_some() && cutoff != importance],
            offsets: Offsets::default(),
            numbers: [Vec::new(), Vec::new()],
            pools: Vec::new(),
            other_log_weights: vec![Vec::new(); division.n_targets() - 1],
            division: division.clone(),
        }
    }

    /// See [`NeededNumbers::accept`].
    pub fn accepts(&mut self, numbers: &[f64; 2]) -> bool {
        self.needed.accept(numbers)
    }

    /// Keeps the numbers of the next candidate, and gives the rest away.
    pub fn take(
        &mut self,
        offset: i64,
        candidate: Candidate,
        numbers: [f64; 2],
        of_score: impl Fn(&Score) -> f64,
    ) -> SpooledRow {
        let totals = candidate.total_log_weights(of_score).skip(1);
        self.other_log_weights.iter_mut().zip(totals).for_each(|(weights, total)| columns::push(weights, total));
        if self.division.n_pools() > 1 {
            columns::push(&mut self.pools, candidate.pool_in(&self.division) as u16);
        }
        let Candidate { document, score, other_weights, .. } = candidate;
        self.offsets.push(offset);
        let held = self.numbers.iter_mut().zip(self.held).zip(numbers);
        held.filter(|((_, held), _)| *held).for_each(|((kept, _), number)| columns::push(kept, number));
        SpooledRow { document, score, other_weights, point: Vec::new() }
    }

    /// What is held, and what deciding takes beside it. The documents never come back all together.
    pub fn held_bytes(&self) -> usize {
        let n = self.offsets.len();
        self.numbers.iter().chain(&self.other_log_weights).map(columns::held_bytes).sum::<usize>()
            + self.offsets.held_bytes()
            + columns::held_bytes(&self.pools)
            + n * DECIDING_BYTES
            + self.fraction.at_most(n as u64) as usize * CHOSEN_BYTES
    }

    pub fn choose(self, by: &Deciding<'_>) -> Choice {
        let Deciding { selector, noise, from, n_documents, log_weights, .. } = *by;
        let coverage = selector.coverage.as_ref().expect("the window was opened for a coverage selector");
        let total = |document: u32, target: usize| match target.checked_sub(1) {
            None => log_weights[document as usize],
            Some(other) => self.other_log_weights[other][document as usize],
        };
        let is_uniform = selector.is_uniform();
        let key = |document: u32, target: usize| {
            let weight = if is_uniform { 0.0 } else { total(document, target) };
            selector.key(noise, self.offsets.get(document), weight)
        };
        let value = |criterion: &Criterion, which: usize, document: u32| match criterion {
            Criterion::Weight => total(document, 0),
            Criterion::Field(_) => self.numbers[which][document as usize],
        };
        let importance = |document| value(&coverage.importance, 0, document);
        let of_cutoff = usize::from(self.held[1]);
        let cutoff = |document| value(&coverage.cutoff_by, of_cutoff, document);
        let pool_of = |document: u32| self.pools.get(document as usize).map_or(0, |pool| usize::from(*pool));
        let pools = self.by_pool(pool_of);
        let request = CoverageRequest {
            count: selector.fraction.of(n_documents, noise.rounding(from)),
            settings: coverage.settings,
            pool_shares: self.division.pool_shares(),
            target_shares: self.division.target_shares(),
            rounding: BudgetRounding::Random { noise, from },
            strata_rounding: coverage.strata_rounding,
        };
        let scores = DocumentScores { cutoff: &cutoff, importance: &importance, key: &key };
        let mut covered = select_coverage(&request, pools, &scores);
        let picks = std::mem::take(&mut covered.selection.picks);
        let chances = covered.chances(coverage.strata_rounding, &self.division, selector.fraction, n_documents);
        let chosen = picks.into_iter().map(|Pick { document: number, target, key }| {
            let pool = pool_of(number);
            let cell = covered.cell(pool, importance(number)).expect("a chosen document has a stratum");
            let of_target = |target| total(number, target);
            let probability =
                covered.inclusion_probability(selector, coverage.settings.within, cell, Some(target), of_target);
            let offset = self.offsets.get(number);
            // Whether anything of its stratum is chosen at all may have been left to chance.
            let (target, inclusion_probability) = (target as u32, chances[cell] * probability);
            Chosen { number, offset, target, key, inclusion_probability, ratio: 1.0 }
        });
        let is_sketched = coverage.edges_from == EdgesFrom::Stream;
        let edges = is_sketched.then(|| {
            let has_cutoff = coverage.settings.cutoff.is_some();
            self.tally(&covered.cut, has_cutoff.then_some(&cutoff), &importance, &pool_of)
        });
        let n_cut = covered.cut.len() as u64;
        Choice {
            chosen: chosen.collect(),
            candidates: Vec::new(),
            threshold: None,
            turns: Vec::new(),
            coverage: Some(summary(&self.division, &covered, self.needed.n_without, n_cut, None)),
            sensitivity: None,
            clusters: None,
            edges,
            targets: self.division.targets().to_vec(),
            other_log_weights: self.other_log_weights,
        }
    }

    /// Candidates of each pool, and no room for more.
    fn by_pool(&self, pool_of: impl Fn(u32) -> usize) -> Vec<Vec<u32>> {
        let documents = 0..self.offsets.len() as u32;
        if self.division.n_pools() == 1 {
            return vec![documents.collect()];
        }
        let mut sizes = vec![0; self.division.n_pools()];
        documents.clone().for_each(|document| sizes[pool_of(document)] += 1);
        let mut pools: Vec<_> = sizes.into_iter().map(Vec::with_capacity).collect();
        documents.for_each(|document| pools[pool_of(document)].push(document));
        pools
    }

    /// What sketches of the stream are made of. `cut`: by ascending numbers.
    fn tally(
        &self,
        cut: &[u32],
        cutoff: Option<&impl Fn(u32) -> f64>,
        importance: &impl Fn(u32) -> f64,
        pool_of: &impl Fn(u32) -> usize,
    ) -> EdgeTally {
        let mut of_cutoff = QuantileSketch::default();
        let mut pools = vec![QuantileSketch::default(); self.division.n_pools()];
        let mut cut = cut.iter().peekable();
        for document in 0..self.offsets.len() as u32 {
            cutoff.iter().for_each(|cutoff| of_cutoff.add(cutoff(document)));
            if cut.next_if_eq(&&document).is_none() {
                pools[pool_of(document)].add(importance(document));
            }
        }
        EdgeTally::new(&self.division, of_cutoff, pools)
    }
}

pub(super) fn summary(
    division: &Division,
    covered: &Covered,
    n_without_number: u64,
    n_cut: u64,
    edges: Option<SketchVersion>,
) -> CoverageSummary {
    let of_pool = |(pool, strata): (usize, &crate::select::CoveredPool)| {
        let occupied = strata.strata.iter().enumerate().filter(|(_, stratum)| stratum.documents > 0);
        let of_stratum = |(number, stratum): (usize, &Stratum)| {
            let cell = pool * strata.strata.len() + number;
            StratumSummary {
                stratum: number as u32,
                n_documents: stratum.documents,
                n_selected: stratum.budget,
                thresholds: covered.selection.turns_of(cell).iter().map(|turn| turn.threshold).collect(),
            }
        };
        PoolStrata {
            source: division.source_of(pool).map(str::to_owned),
            range: strata.edges.map(|edges| edges.range()),
            strata: occupied.map(of_stratum).collect(),
        }
    };
    CoverageSummary {
        n_without_number,
        n_cut,
        cut_at: covered.cut_at,
        shortfall: covered.shortfall,
        pools: covered.pools.iter().enumerate().map(of_pool).collect(),
        edges,
    }
}
