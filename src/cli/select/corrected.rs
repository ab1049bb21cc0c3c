//! Selecting against what was already selected: in windows, each weighed against the selection of the windows before it.
//!
//! One pass over the n-grams that the first pass has kept. The same selection on one core or many: weights of a window are
//! sums that no thread shares, and what is added to the counts are whole numbers.

use std::collections::VecDeque;

use anyhow::Context;

use super::draw::{self, Draw, Drawn};
use super::featurise::Featurised;
use super::scores::Scores;
use super::spool::{Place, Spool};
use super::{SelectionPlan, Temperature};
use crate::cli::UsageError;
use crate::cli::files::Files;
use crate::cli::progress::Progress;
use crate::features::BucketWidth;
use crate::record::TopicPartition;
use crate::score::{DecayedCounts, ImportanceWeight, Model, NgramCounts, Probabilities, Target};
use crate::select::{BudgetedSelection, Noise, Rounding, Schedule, SelectorSettings, Turn, budgets};

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
    files: &Files,
) -> anyhow::Result<(Scores, Draw)> {
    let Temperature::Fixed(temperature) = plan.temperature else {
        let problem = "--temperature auto: weights against what was selected change as it grows; give a number";
        return Err(UsageError(problem.to_owned()).into());
    };
    let (requested, settings) = draw::settings(&featurised.scores, model, plan, temperature)?;
    let mut candidates = draw::candidates(&featurised.scores, plan);
    if correction.is_shuffled {
        shuffle(&mut candidates, plan.seed);
    }
    let raw = model.raw.counts.probabilities();
    let scores = &featurised.scores;
    let prior_ngrams = correction.prior_ngrams.unwrap_or_else(|| prior_ngrams(scores, &candidates, model, requested));
    let mut drawing = Drawing {
        ngrams: Ngrams::of(&featurised),
        scores,
        model,
        settings,
        noise: draw::noise(plan.seed),
        files,
        rounds: correction.rounds,
        against: Against::of_targets(model, &raw, correction, prior_ngrams),
        schedules: schedules(scores, &candidates, model, plan, requested),
        selection: BudgetedSelection::default(),
        probabilities: Vec::new(),
        competed: vec![f64::NAN; scores.len() * model.targets.len()],
    };
    let progress = Progress::new("select", candidates.len() as u64);
    for window in candidates.chunks(correction.window) {
        drawing.window(window)?;
        progress.add(window.len() as u64, window.len() as u64);
    }
    progress.finish();
    candidates.sort_unstable();
    let (competed, mut draw) = drawing.finish(requested, &candidates);
    featurised.scores.weights = competed;
    featurised.scores.n_targets = model.targets.len();
    let scores = featurised.scores;
    draw.correction = Some(Correction { prior_ngrams: Some(prior_ngrams), ..*correction });
    draw.diagnostics = draw::diagnostics(&scores, model, &draw.settings, &candidates, &draw.selection);
    Ok((scores, draw))
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
    let nearest = Rounding::Nearest;
    let budgets = budgets(requested, &draw::pool_shares(plan), &shares, &sizes, nearest, |_| nearest);
    sizes.iter().zip(budgets).map(|(size, of_targets)| Schedule::new(*size, of_targets)).collect()
}

/// A selection that grows window by window.
struct Drawing<'a> {
    ngrams: Ngrams<'a>,
    scores: &'a Scores,
    model: &'a Model,
    settings: SelectorSettings,
    noise: Noise,
    files: &'a Files,
    rounds: u32,
    /// One for each target.
    against: Vec<Against<'a>>,
    /// One for each pool.
    schedules: Vec<Schedule>,
    selection: BudgetedSelection,
    /// Of the documents that were selected, in the order of the selection.
    probabilities: Vec<f64>,
    /// Of every document the weights by which it was last looked at, one for each target.
    competed: Vec<f64>,
}

/// The documents of a window, sorted, and what each of its rounds says of them.
struct Window {
    documents: Vec<u32>,
    /// Of each round: the weights of all documents for all targets.
    rounds: Vec<Vec<f64>>,
    /// Of each turn: its round.
    round_of_turn: Vec<usize>,
}

impl Window {
    fn number(&self, document: u32) -> usize {
        self.documents.partition_point(|&d| d < document)
    }
}

impl Drawing<'_> {
    fn window(&mut self, documents: &[u32]) -> anyhow::Result<()> {
        let mut pools = vec![Vec::new(); self.schedules.len()];
        documents.iter().for_each(|&document| pools[self.scores.pool(document)].push(document));
        let sizes: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
        let mut documents = documents.to_vec();
        documents.sort_unstable();
        let mut window = Window { documents, rounds: Vec::new(), round_of_turn: Vec::new() };
        let first_pick = self.selection.picks.len();
        for round in 1..=self.rounds {
            self.round(&mut window, &mut pools, &sizes, round)?;
        }
        self.probabilities(&window, first_pick);
        Ok(())
    }

    /// Weighs the window against what is seen of the selection, and selects what is due.
    fn round(&mut self, window: &mut Window, pools: &mut [Vec<u32>], sizes: &[u64], round: u32) -> anyhow::Result<()> {
        let n_targets = self.against.len();
        let weights: Vec<ImportanceWeight> = self.against.iter().map(Against::weight).collect();
        let weighed = weigh(&self.ngrams, &window.documents, &weights, self.files)?;
        let first_pick = self.selection.picks.len();
        for (pool, documents) in pools.iter_mut().enumerate() {
            let counts = self.schedules[pool].take(sizes[pool], round, self.rounds);
            for (target, count) in counts.into_iter().enumerate() {
                let key = |document: u32| {
                    let weight = weighed[window.number(document) * n_targets + target];
                    let total = draw::total_weight(self.scores, self.model, &self.settings, document, weight);
                    self.settings.key(&self.noise, i64::from(document), total)
                };
                self.selection.take_turn(pool, target, documents, count, key);
                window.round_of_turn.push(window.rounds.len());
            }
        }
        let picks = &self.selection.picks[first_pick..];
        for (target, against) in self.against.iter_mut().enumerate() {
            let mut counts = NgramCounts::zero(self.model.featuriser.buckets as usize);
            let mut packed = Vec::new();
            for pick in picks.iter().filter(|pick| pick.target == target) {
                self.ngrams.read(pick.document, &mut packed)?;
                self.ngrams.width.for_each_chunk(&packed, |buckets| counts.add_buckets(buckets));
            }
            against.add(counts);
        }
        let left = pools.iter().flatten().copied();
        for document in left.chain(picks.iter().map(|pick| pick.document)) {
            let (here, there) = (window.number(document) * n_targets, document as usize * n_targets);
            self.competed[there..there + n_targets].copy_from_slice(&weighed[here..here + n_targets]);
        }
        window.rounds.push(weighed);
        Ok(())
    }

    /// Chances of the picks of a window. All turns look at the same noise: a document is selected exactly if it beats the most
    /// favourable of them.
    fn probabilities(&mut self, window: &Window, first_pick: usize) {
        let n_targets = self.against.len();
        for pick in &self.selection.picks[first_pick..] {
            let of_turn = |(turn, round): (&Turn, &usize)| {
                let weight = window.rounds[*round][window.number(pick.document) * n_targets + turn.target];
                let total = draw::total_weight(self.scores, self.model, &self.settings, pick.document, weight);
                self.settings.inclusion_probability(total, turn.threshold)
            };
            let pool = self.scores.pool(pick.document);
            let turns = self.selection.turns.iter().zip(&window.round_of_turn);
            let of_pool = turns.filter(|(turn, _)| turn.pool == pool && turn.count > 0);
            self.probabilities.push(of_pool.map(of_turn).fold(0.0, f64::max));
        }
        self.selection.turns.clear();
    }

    /// The weights by which documents competed, and the draw, of which the diagnostics wait for them.
    fn finish(self, requested: u64, candidates: &[u32]) -> (Vec<f64>, Draw) {
        let Drawing { mut selection, probabilities, .. } = self;
        let mut chosen: Vec<_> = selection.picks.into_iter().zip(probabilities).collect();
        chosen.sort_unstable_by_key(|(pick, _)| pick.document);
        let probabilities;
        (selection.picks, probabilities) = chosen.into_iter().unzip();
        let draw = Draw {
            settings: self.settings,
            noise: self.noise,
            requested,
            candidates: candidates.len() as u64,
            selection,
            drawn: Drawn::Weights,
            probabilities: Some(probabilities),
            correction: None,
            diagnostics: Vec::new(),
        };
        (self.competed, draw)
    }
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
