//! Selecting against what was already selected: in windows, each weighed against the selection of the windows before it.
//!
//! One pass over the n-grams that the first pass has kept. The same selection on one core or many: weights of a window are
//! sums that no thread shares, and what is added to the counts are whole numbers.

use anyhow::Context;

use super::draw::{self, Draw};
use super::featurise::Featurised;
use super::scores::Scores;
use super::spool::{Place, Spool};
use super::{SelectionPlan, Temperature};
use crate::cli::UsageError;
use crate::cli::files::Files;
use crate::cli::progress::Progress;
use crate::features::BucketWidth;
use crate::record::TopicPartition;
use crate::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts, Probabilities};
use crate::select::{BudgetedSelection, Noise, Schedule, apportion};

/// Documents that a thread takes at once.
const PIECE: usize = 256;

/// How what was selected is weighed against.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Correction {
    /// λ of the geometric mixture with the raw distribution.
    pub share: f64,
    /// The raw distribution counts as if it had been selected in so many n-grams.
    pub prior_ngrams: u64,
    /// Candidates between two corrections, or several of them with more than one round.
    pub window: usize,
    pub rounds: u32,
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
    selected: DecayedCounts,
    smoothing: f64,
    share: f64,
}

impl Against<'_> {
    fn weight(&self) -> ImportanceWeight {
        let selected = self.selected.probabilities();
        let denominator = [(1.0 - self.share, self.raw), (self.share, &selected)];
        let denominator = if self.share == 1.0 { &denominator[1..] } else { &denominator[..] };
        ImportanceWeight::against(*self.selected.featuriser(), &self.target, denominator, self.smoothing)
    }
}

/// Selects, window by window.
pub fn draw(
    mut featurised: Featurised,
    model: &Model,
    plan: &SelectionPlan,
    correction: &Correction,
    files: &Files,
) -> anyhow::Result<(Scores, Draw)> {
    let Temperature::Fixed(temperature) = plan.temperature else {
        let problem = "--temperature auto: weights against what was selected change as it grows; give a number";
        return Err(UsageError(problem.to_owned()).into());
    };
    let (requested, settings) = draw::settings(&featurised.scores, plan, temperature)?;
    let noise = draw::noise(plan.seed);
    let mut candidates = draw::candidates(&featurised.scores, plan);
    let n_candidates = candidates.len();
    if correction.is_shuffled {
        let order = Noise::new(plan.seed, &TopicPartition::new("order of files", 0));
        let mut keyed: Vec<(f64, u32)> = candidates.iter().map(|&d| (order.sampling(d.into()), d)).collect();
        keyed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        candidates.iter_mut().zip(keyed).for_each(|(slot, (_, document))| *slot = document);
    }
    let n_targets = model.targets.len();
    let mut competed = vec![f64::NAN; featurised.scores.len() * n_targets];
    let raw = model.raw.counts.probabilities();
    let mut against: Vec<Against<'_>> = model
        .targets
        .iter()
        .map(|target| Against {
            target: target.side.counts.probabilities(),
            raw: &raw,
            selected: DecayedCounts::prior(model.featuriser, &raw, correction.prior_ngrams),
            smoothing: model.smoothing,
            share: correction.share,
        })
        .collect();

    let scores = &featurised.scores;
    let ngrams = Ngrams::of(&featurised);
    let mut pool_sizes = vec![0; plan.sources.len() + 1];
    candidates.iter().for_each(|&document| pool_sizes[scores.pool(document)] += 1);
    let budgets = apportion(requested, &draw::pool_shares(plan), &pool_sizes);
    let target_shares: Vec<f64> = model.targets.iter().map(|target| target.proportion).collect();
    let mut schedules: Vec<Schedule> = pool_sizes
        .iter()
        .zip(budgets)
        .map(|(size, budget)| {
            let of_targets = apportion(budget, &target_shares, &vec![budget; n_targets]);
            Schedule::new(*size, of_targets)
        })
        .collect();

    let progress = Progress::new("select", n_candidates as u64);
    let mut selection = BudgetedSelection::default();
    let mut probabilities = Vec::new();
    for window in candidates.chunks(correction.window) {
        let mut pools = vec![Vec::new(); schedules.len()];
        window.iter().for_each(|&document| pools[scores.pool(document)].push(document));
        let sizes: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
        let mut sorted = window.to_vec();
        sorted.sort_unstable();
        let number = |document: u32| sorted.partition_point(|&d| d < document);
        let (first_pick, first_turn) = (selection.picks.len(), selection.turns.len());
        // Of each round: the weights of all documents of the window for all targets.
        let mut rounds: Vec<Vec<f64>> = Vec::new();
        let mut round_of_turn = Vec::new();
        for round in 1..=correction.rounds {
            let weights: Vec<ImportanceWeight> = against.iter().map(Against::weight).collect();
            let weighed = weigh(&ngrams, &sorted, &weights, files)?;
            let n_picks = selection.picks.len();
            for (pool, documents) in pools.iter_mut().enumerate() {
                let counts = schedules[pool].take(sizes[pool], round, correction.rounds);
                for (target, count) in counts.into_iter().enumerate() {
                    let key = |document: u32| {
                        let weight = weighed[number(document) * n_targets + target];
                        let total = draw::total_weight(scores, model, &settings, document, weight);
                        settings.key(&noise, i64::from(document), total)
                    };
                    selection.take_turn(pool, target, documents, count, key);
                    round_of_turn.push(rounds.len());
                }
            }
            let is_picked = &selection.picks[n_picks..];
            for (target, against) in against.iter_mut().enumerate() {
                let mut counts = NgramCounts::zero(model.featuriser.buckets as usize);
                let mut packed = Vec::new();
                for pick in is_picked.iter().filter(|pick| pick.target == target) {
                    ngrams.read(pick.document, &mut packed)?;
                    ngrams.width.for_each_chunk(&packed, |buckets| counts.add_buckets(buckets));
                }
                against.selected.add(&counts, None);
            }
            // A document keeps the weights by which it was last looked at.
            let left = pools.iter().flatten().copied();
            for document in left.chain(is_picked.iter().map(|pick| pick.document)) {
                let (here, there) = (number(document) * n_targets, document as usize * n_targets);
                competed[there..there + n_targets].copy_from_slice(&weighed[here..here + n_targets]);
            }
            rounds.push(weighed);
        }
        // All turns look at the same noise: a document is selected exactly if it beats the most favourable of them.
        let turns = &selection.turns[first_turn..];
        for pick in &selection.picks[first_pick..] {
            let of_turn = |(turn, round): (&crate::select::Turn, &usize)| {
                let weight = rounds[*round][number(pick.document) * n_targets + turn.target];
                let total = draw::total_weight(scores, model, &settings, pick.document, weight);
                settings.inclusion_probability(total, turn.threshold)
            };
            let pool = scores.pool(pick.document);
            let of_pool = turns.iter().zip(&round_of_turn).filter(|(turn, _)| turn.pool == pool && turn.count > 0);
            probabilities.push((pick.document, of_pool.map(of_turn).fold(0.0, f64::max)));
        }
        selection.turns.truncate(first_turn);
        progress.add(window.len() as u64, window.len() as u64);
    }
    progress.finish();
    selection.picks.sort_unstable_by_key(|pick| pick.document);
    probabilities.sort_unstable_by_key(|(document, _)| *document);
    let probabilities = probabilities.into_iter().map(|(_, probability)| probability).collect();

    candidates.sort_unstable();
    featurised.scores.weights = competed;
    featurised.scores.n_targets = n_targets;
    let scores = featurised.scores;
    let diagnostics = draw::diagnostics(&scores, model, &settings, &candidates, &selection);
    let draw = Draw {
        settings,
        noise,
        requested,
        candidates: n_candidates as u64,
        selection,
        probabilities: Some(probabilities),
        diagnostics,
    };
    Ok((scores, draw))
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
