//! Selecting against what was already selected: in windows, each weighed against the selection of the windows before it.
//!
//! One pass over the n-grams that the first pass has kept. The same selection on one core or many: weights of a window are
//! sums that no thread shares, and what is added to the counts are whole numbers.
//!
//! With `--selector coverage` what a document *is* stays what it is: cut-off, shares of sources, strata and their budgets are
//! those of the whole input, by fields or by weights against raw. Only who is taken of a stratum is decided window by window,
//! against what was selected so far.

mod drawing;
mod windows;

use std::collections::VecDeque;

use anyhow::Context;

use super::covered::{self, Strata};
use super::draw::{self, Draw, Drawn};
use super::featurise::Featurised;
use super::methods::Coverage;
use super::scores::Scores;
use super::spool::{Place, Spool};
use super::{SelectionPlan, Temperature};
use crate::cli::UsageError;
use crate::cli::files::Files;
use crate::cli::progress::Progress;
use crate::features::BucketWidth;
use crate::record::TopicPartition;
use crate::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts, Probabilities, Target};
use crate::select::{BudgetRounding, CoveragePlan, Covered, Noise, Schedule, budgets};
use drawing::{Cells, Drawing};

pub use windows::{Windows, WindowsReport};

/// Documents that a thread takes at once.
const PIECE: usize = 256;
/// How much of what will be selected the prior comes to. Less corrects more wildly at first; with more, a small target is
/// left before it is found (`benches/quality --sweep`).
const PRIOR_SHARE: f64 = 0.1;

/// How what was selected is weighed against.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Correction {
    /// λ of the geometric mixture with the raw distribution.
    pub share: f64,
    /// The raw distribution counts as if it had been selected in so many n-grams; by default [`PRIOR_SHARE`] of the selection.
    pub prior_ngrams: Option<u64>,
    /// Candidates between two corrections, or several of them with more than one round.
    pub window: usize,
    pub rounds: u32,
    /// What was selected so many n-grams ago counts half.
    pub half_life_ngrams: Option<u64>,
    /// Windows whose selection is not seen yet by the next one.
    pub lag: usize,
    /// Whether windows are made of the documents in the order of the seed, or of the files.
    pub is_shuffled: bool,
}

/// The n-grams of all documents, to be found by number.
struct Ngrams<'a> {
    spool: &'a Spool,
    width: BucketWidth,
    /// Where those of each document lie; those of the last end at the last.
    places: Vec<Place>,
}

impl<'a> Ngrams<'a> {
    fn of(featurised: &'a Featurised) -> Self {
        let Featurised { scores, featuriser, spool, kept } = featurised;
        let width = BucketWidth::of(featuriser.buckets);
        let mut places = Vec::with_capacity(scores.len());
        for (chunk, place) in kept.iter().enumerate() {
            let end = scores.chunks.get(chunk + 1).map_or(scores.len(), |next| *next as usize);
            let mut start = place.start;
            for n_tokens in &scores.n_tokens[scores.chunks[chunk] as usize..end] {
                let len = featuriser.n_ngrams(*n_tokens) as usize * width.bytes();
                places.push(Place { start, len });
                start += len as u64;
            }
        }
        Ngrams { spool, width, places }
    }

    fn read(&self, document: u32, packed: &mut Vec<u8>) -> anyhow::Result<()> {
        let read = self.spool.read(self.places[document as usize], packed);
        read.context("the n-grams that were kept cannot be read")
    }
}

/// What a target has selected so far, and the weights against it.
struct Against<'a> {
    target: Probabilities,
    raw: &'a Probabilities,
    smoothing: f64,
    correction: &'a Correction,
    selected: DecayedCounts,
    /// Of windows whose selection is not seen yet, the oldest first: at most `correction.lag`.
    unseen: VecDeque<NgramCounts>,
}

impl<'a> Against<'a> {
    fn of_targets(model: &Model, raw: &'a Probabilities, correction: &'a Correction, prior_ngrams: u64) -> Vec<Self> {
        let of = |target: &Target| Against {
            target: target.side.counts.probabilities(),
            raw,
            smoothing: model.smoothing,
            correction,
            selected: DecayedCounts::prior(model.featuriser, raw, prior_ngrams),
            unseen: VecDeque::new(),
        };
        model.targets.iter().map(of).collect()
    }

    fn weight(&self) -> ImportanceWeight {
        let (selected, share) = (self.selected.probabilities(), self.correction.share);
        let denominator = [(1.0 - share, self.raw), (share, &selected)];
        let denominator = if share == 1.0 { &denominator[1..] } else { &denominator[..] };
        ImportanceWeight::against(*self.selected.featuriser(), &self.target, denominator, self.smoothing)
    }

    /// What a round has selected: seen by the next one, or later.
    fn add(&mut self, counts: NgramCounts) {
        self.unseen.push_back(counts);
        while self.unseen.len() > self.correction.lag {
            if let Some(counts) = self.unseen.pop_front() {
                self.selected.add(&counts, self.correction.half_life_ngrams);
            }
        }
    }
}

/// Selects, window by window.
pub fn draw(
    mut featurised: Featurised,
    model: &Model,
    plan: &SelectionPlan,
    correction: &Correction,
    coverage: Option<&Coverage>,
    files: &Files,
) -> anyhow::Result<(Scores, Draw)> {
    let Temperature::Fixed(temperature) = plan.temperature else {
        let problem = "--temperature auto: weights against what was selected change as it grows; give a number";
        return Err(UsageError(problem.to_owned()).into());
    };
    let of_targets = ImportanceWeight::of_targets(model);
    if let Some(coverage) = coverage {
        covered::check(model, plan, coverage)?;
        if coverage.looks_at_weight() {
            let weights = against_raw(&featurised, plan, &of_targets, files)?;
            featurised.scores.weights = weights;
        }
    }
    let (requested, settings) = draw::settings(&featurised.scores, model, plan, temperature)?;
    let scores = &featurised.scores;
    let all = draw::candidates(scores, plan);
    let planned = match coverage {
        None => None,
        Some(coverage) => {
            let without_number = covered::without_number(scores, plan, &all)?;
            Some((covered::planned(scores, model, plan, coverage, &settings, (requested, &all)), without_number))
        }
    };
    let mut candidates = all.clone();
    if let Some((CoveragePlan { cut, .. }, _)) = &planned {
        candidates.retain(|document| cut.binary_search(document).is_err());
    }
    let cells = match &planned {
        None => Cells::of_pools(schedules(scores, &candidates, model, plan, requested)),
        Some((planned, _)) => Cells::of_strata(planned, scores.len()),
    };
    if correction.is_shuffled {
        shuffle(&mut candidates, plan.seed);
    }
    let raw = model.raw.counts.probabilities();
    let prior_ngrams = correction.prior_ngrams.unwrap_or_else(|| prior_ngrams(scores, &candidates, model, requested));
    let against = Against::of_targets(model, &raw, correction, prior_ngrams);
    let ngrams = Ngrams::of(&featurised);
    let windows = Windows::new(scores.len(), plan.writes_decisions || !plan.explain.is_empty());
    let mut drawing = Drawing::new(
        ngrams,
        scores,
        model,
        (settings, draw::noise(plan.seed)),
        correction.rounds,
        against,
        cells,
        windows,
    );
    drawing.others(&others(scores, plan, &candidates), &of_targets, files)?;
    let progress = Progress::of_documents("select", candidates.len() as u64);
    for window in candidates.chunks(correction.window) {
        drawing.window(window, files)?;
        progress.add(window.len() as u64, 0);
    }
    progress.finish();
    candidates.sort_unstable();
    let (competed, mut draw) = drawing.finish(requested, all.len() as u64);
    let against_raw = std::mem::replace(&mut featurised.scores.weights, competed);
    featurised.scores.n_targets = model.targets.len();
    let scores = featurised.scores;
    draw.correction = Some(Correction { prior_ngrams: Some(prior_ngrams), ..*correction });
    draw.judged.candidates = candidates;
    if let (Some((planned, without_number)), Some(coverage)) = (planned, coverage) {
        let CoveragePlan { cut, cut_at, pools, shortfall, .. } = planned;
        draw.drawn = Drawn::Strata(Strata {
            covered: Covered { cut, cut_at, pools, shortfall, ..Covered::default() },
            coverage: coverage.clone(),
            without_number,
            against_raw: if coverage.looks_at_weight() { Some(against_raw) } else { None },
        });
    }
    Ok((scores, draw))
}

/// The weights of all documents that are long enough against the raw distribution, for a model's only target.
fn against_raw(
    featurised: &Featurised,
    plan: &SelectionPlan,
    of_targets: &[ImportanceWeight],
    files: &Files,
) -> anyhow::Result<Vec<f64>> {
    let scores = &featurised.scores;
    let documents: Vec<u32> =
        (0..scores.len() as u32).filter(|&document| scores.is_long_enough(document, plan.min_tokens)).collect();
    let weighed = weigh(&Ngrams::of(featurised), &documents, of_targets, files)?;
    let mut weights = scores.weights.clone();
    documents.iter().zip(weighed).for_each(|(document, weight)| weights[*document as usize] = weight);
    Ok(weights)
}

/// Documents that are long enough and in no window: they were cut off, or lack a number.
fn others(scores: &Scores, plan: &SelectionPlan, in_windows: &[u32]) -> Vec<u32> {
    let mut is_in_window = vec![false; scores.len()];
    in_windows.iter().for_each(|document| is_in_window[*document as usize] = true);
    let is_other =
        |&document: &u32| scores.is_long_enough(document, plan.min_tokens) && !is_in_window[document as usize];
    (0..scores.len() as u32).filter(is_other).collect()
}

/// [`PRIOR_SHARE`] of the n-grams of as many documents as are to be selected.
fn prior_ngrams(scores: &Scores, candidates: &[u32], model: &Model, requested: u64) -> u64 {
    let n_ngrams = |&document: &u32| model.featuriser.n_ngrams(scores.n_tokens[document as usize]);
    let total: u64 = candidates.iter().map(n_ngrams).sum();
    let share = requested as f64 / (candidates.len() as f64).max(1.0);
    ((PRIOR_SHARE * share * total as f64) as u64).max(1)
}

/// The order of the seed.
fn shuffle(documents: &mut [u32], seed: u64) {
    let order = Noise::new(seed, &TopicPartition::new("order of files", 0));
    let mut keyed: Vec<(f64, u32)> = documents.iter().map(|&d| (order.sampling(d.into()), d)).collect();
    keyed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    documents.iter_mut().zip(keyed).for_each(|(slot, (_, document))| *slot = document);
}

/// One for each pool: how many of its candidates the targets may choose.
fn schedules(
    scores: &Scores,
    candidates: &[u32],
    model: &Model,
    plan: &SelectionPlan,
    requested: u64,
) -> Vec<Schedule> {
    let mut sizes = vec![0; plan.sources.len() + 1];
    candidates.iter().for_each(|&document| sizes[scores.pool(document)] += 1);
    let shares: Vec<f64> = model.targets.iter().map(|target| target.proportion).collect();
    let budgets = budgets(requested, &draw::pool_shares(plan), &shares, &sizes, BudgetRounding::Nearest);
    sizes.iter().zip(budgets).map(|(size, of_targets)| Schedule::new(*size, of_targets)).collect()
}

/// The weights of documents for all targets, one document after the other.
fn weigh(
    ngrams: &Ngrams<'_>,
    documents: &[u32],
    weights: &[ImportanceWeight],
    files: &Files,
) -> anyhow::Result<Vec<f64>> {
    let mut weighed = Vec::with_capacity(documents.len() * weights.len());
    files.in_order(
        0..documents.len().div_ceil(PIECE),
        files.states(Vec::new),
        |packed, piece| {
            let documents = &documents[piece * PIECE..documents.len().min((piece + 1) * PIECE)];
            let mut of_piece = Vec::with_capacity(documents.len() * weights.len());
            for document in documents {
                ngrams.read(*document, packed)?;
                for weight in weights {
                    let mut sum = 0.0;
                    ngrams.width.for_each_chunk(packed, |buckets| sum = weight.add(sum, buckets));
                    of_piece.push(sum);
                }
            }
            Ok(of_piece)
        },
        |of_piece| {
            weighed.extend(of_piece);
            Ok(())
        },
    )?;
    Ok(weighed)
}
