//! A selection that grows window by window.

use std::collections::BTreeMap;

use super::windows::{WindowTurn, Windows};
use super::{Against, Ngrams, weigh};
use crate::cli::files::Files;
use crate::cli::select::draw::{self, Draw, Drawn, Judged};
use crate::cli::select::scores::Scores;
use crate::score::{ImportanceWeight, Model, NgramCounts};
use crate::select::{BudgetedSelection, CoveragePlan, Noise, Schedule, SelectorSettings, Turn, chance_in_turns};

/// Documents that compete with one another: those of a pool, or of a stratum of one.
pub struct Cells {
    /// By the number of the document; empty where pools are the cells.
    of_document: Vec<u32>,
    schedules: Vec<Schedule>,
}

impl Cells {
    /// One schedule for each pool.
    pub fn of_pools(schedules: Vec<Schedule>) -> Self {
        Cells { of_document: Vec::new(), schedules }
    }

    pub fn of_strata(plan: &CoveragePlan, n_documents: usize) -> Self {
        let mut of_document = vec![u32::MAX; n_documents];
        for (number, cell) in (0..).zip(&plan.cells) {
            cell.documents.iter().for_each(|document| of_document[*document as usize] = number);
        }
        Cells { of_document, schedules: plan.schedules() }
    }

    fn of(&self, scores: &Scores, document: u32) -> usize {
        self.of_document.get(document as usize).map_or_else(|| scores.pool(document), |cell| *cell as usize)
    }
}

pub struct Drawing<'a> {
    ngrams: Ngrams<'a>,
    scores: &'a Scores,
    model: &'a Model,
    settings: SelectorSettings,
    noise: Noise,
    rounds: u32,
    /// One for each target.
    against: Vec<Against<'a>>,
    cells: Cells,
    selection: BudgetedSelection,
    /// Of the documents that were selected, in the order of the selection: chance and round.
    probabilities: Vec<f64>,
    rounds_of_picks: Vec<u32>,
    windows: Windows,
    /// By cell.
    chosen_from: Vec<ChosenFrom>,
    /// Of every document the weights by which it was last looked at, one for each target.
    competed: Vec<f64>,
}

/// How many documents of a cell there are, and how many of them stood in windows in which any of it was chosen: where it may
/// choose less often than there are windows, the others had no chance.
#[derive(Debug, Clone, Copy, Default)]
struct ChosenFrom {
    documents: u64,
    in_choosing_windows: u64,
}

impl ChosenFrom {
    /// Chance to stand in such a window, where the order is one by chance.
    fn chance(self) -> f64 {
        self.in_choosing_windows as f64 / self.documents as f64
    }
}

/// The documents of a window, sorted, and what each of its rounds says of them.
struct Window {
    documents: Vec<u32>,
    /// Those that are left, by cell.
    cells: BTreeMap<usize, Vec<u32>>,
    /// Documents of each cell before the first round.
    sizes: BTreeMap<usize, u64>,
    /// Of each round: the weights of all documents for all targets.
    rounds: Vec<Vec<f64>>,
    turns: Vec<WindowTurn>,
}

impl Window {
    fn number(&self, document: u32) -> usize {
        self.documents.partition_point(|&d| d < document)
    }

    /// Those of a cell, where all are sorted by it.
    fn turns_of(&self, cell: usize) -> &[WindowTurn] {
        let of_cell = &self.turns[self.turns.partition_point(|turn| turn.turn.pool < cell)..];
        &of_cell[..of_cell.partition_point(|turn| turn.turn.pool == cell)]
    }
}

impl<'a> Drawing<'a> {
    #[allow(clippy::too_many_arguments, reason = "all that a draw needs, and each of it once")]
    pub fn new(
        ngrams: Ngrams<'a>,
        scores: &'a Scores,
        model: &'a Model,
        (settings, noise): (SelectorSettings, Noise),
        rounds: u32,
        against: Vec<Against<'a>>,
        cells: Cells,
        windows: Windows,
    ) -> Self {
        let competed = vec![f64::NAN; scores.len() * against.len()];
        let selection = BudgetedSelection::default();
        let chosen_from = vec![ChosenFrom::default(); cells.schedules.len()];
        let (probabilities, rounds_of_picks) = (Vec::new(), Vec::new());
        Drawing {
            ngrams,
            scores,
            model,
            settings,
            noise,
            rounds,
            against,
            cells,
            selection,
            probabilities,
            rounds_of_picks,
            windows,
            chosen_from,
            competed,
        }
    }

    /// Documents that are in no window have their weights against raw.
    pub fn others(&mut self, documents: &[u32], weights: &[ImportanceWeight], files: &Files) -> anyhow::Result<()> {
        let weighed = weigh(&self.ngrams, documents, weights, files)?;
        for (document, weights) in documents.iter().zip(weighed.chunks(self.against.len())) {
            self.competed[*document as usize * weights.len()..][..weights.len()].copy_from_slice(weights);
        }
        Ok(())
    }

    pub fn window(&mut self, documents: &[u32], files: &Files) -> anyhow::Result<()> {
        let mut cells = BTreeMap::<usize, Vec<u32>>::new();
        for &document in documents {
            cells.entry(self.cells.of(self.scores, document)).or_default().push(document);
        }
        let sizes = cells.iter().map(|(cell, documents)| (*cell, documents.len() as u64)).collect();
        let mut documents = documents.to_vec();
        documents.sort_unstable();
        let mut window = Window { documents, cells, sizes, rounds: Vec::new(), turns: Vec::new() };
        let first_pick = self.selection.picks.len();
        for round in 1..=self.rounds {
            self.round(&mut window, round, files)?;
        }
        window.turns.sort_by_key(|turn| turn.turn.pool);
        for (&cell, &size) in &window.sizes {
            let has_chosen = window.turns_of(cell).iter().any(|turn| turn.turn.count > 0);
            let of_cell = &mut self.chosen_from[cell];
            of_cell.documents += size;
            of_cell.in_choosing_windows += if has_chosen { size } else { 0 };
        }
        self.probabilities(&window, first_pick);
        self.windows.add(&window.documents, window.turns);
        Ok(())
    }

    /// Weighs the window against what is seen of the selection, and selects what is due.
    fn round(&mut self, window: &mut Window, round: u32, files: &Files) -> anyhow::Result<()> {
        let n_targets = self.against.len();
        let weights: Vec<ImportanceWeight> = self.against.iter().map(Against::weight).collect();
        let weighed = weigh(&self.ngrams, &window.documents, &weights, files)?;
        let first_pick = self.selection.picks.len();
        let mut cells = std::mem::take(&mut window.cells);
        for (&cell, left) in &mut cells {
            let counts = self.cells.schedules[cell].take(window.sizes[&cell], round, self.rounds);
            let mut n_left = Vec::with_capacity(n_targets);
            for (target, count) in counts.into_iter().enumerate() {
                let key = |document: u32| {
                    let weight = weighed[window.number(document) * n_targets + target];
                    let total = draw::total_weight(self.scores, self.model, &self.settings, document, weight);
                    self.settings.key(&self.noise, i64::from(document), total)
                };
                n_left.push(left.len() as u64);
                self.selection.take_turn(cell, target, left, count, key);
            }
            let number = self.windows.count();
            let turns = self.selection.turns.drain(..).zip(n_left);
            let of_window = |(turn, documents): (Turn, u64)| WindowTurn { window: number, round, documents, turn };
            window.turns.extend(turns.map(of_window));
        }
        let picks = &self.selection.picks[first_pick..];
        self.rounds_of_picks.extend(picks.iter().map(|_| round));
        for (target, against) in self.against.iter_mut().enumerate() {
            let mut counts = NgramCounts::zero(self.model.featuriser.buckets as usize);
            let mut packed = Vec::new();
            for pick in picks.iter().filter(|pick| pick.target == target) {
                self.ngrams.read(pick.document, &mut packed)?;
                self.ngrams.width.for_each_chunk(&packed, |buckets| counts.add_buckets(buckets));
            }
            against.add(counts);
        }
        let left = cells.values().flatten().copied();
        for document in left.chain(picks.iter().map(|pick| pick.document)) {
            let (here, there) = (window.number(document) * n_targets, document as usize * n_targets);
            self.competed[there..there + n_targets].copy_from_slice(&weighed[here..here + n_targets]);
        }
        window.cells = cells;
        window.rounds.push(weighed);
        Ok(())
    }

    /// Chances of the picks of a window, given that it is one in which their cell chooses: [`ChosenFrom`] has the chance of
    /// that. They are exact where it has one round, see [`chance_in_turns`]. Of several rounds the best counts, and that
    /// cannot be exact: what a round chooses changes the weights of the next, so that what those would have chosen without
    /// a document is not known. Their thresholds stand for it.
    fn probabilities(&mut self, window: &Window, first_pick: usize) {
        let n_targets = self.against.len();
        let picks = self.selection.picks[first_pick..].iter().zip(&self.rounds_of_picks[first_pick..]);
        for (pick, &round_of_pick) in picks {
            // Every round has a turn for each target.
            let in_round = |turns: &[WindowTurn]| {
                let round = turns[0].round;
                let total = |target: usize| {
                    let weight = window.rounds[round as usize - 1][window.number(pick.document) * n_targets + target];
                    draw::total_weight(self.scores, self.model, &self.settings, pick.document, weight)
                };
                let turns: Vec<Turn> = turns.iter().map(|turn| turn.turn).collect();
                let chosen_by = (round == round_of_pick).then_some(pick.target);
                chance_in_turns(&self.settings, &turns, chosen_by, total)
            };
            let cell = self.cells.of(self.scores, pick.document);
            let of_rounds = window.turns_of(cell).chunks(n_targets);
            self.probabilities.push(of_rounds.map(in_round).fold(0.0, f64::max));
        }
    }

    /// The weights by which documents competed, and the draw, which is not told yet which did.
    pub fn finish(self, requested: u64, candidates: u64) -> (Vec<f64>, Draw) {
        let Drawing { mut selection, mut probabilities, rounds_of_picks, mut windows, cells, chosen_from, .. } = self;
        for (probability, pick) in probabilities.iter_mut().zip(&selection.picks) {
            *probability *= chosen_from[cells.of(self.scores, pick.document)].chance();
        }
        let of_picks = probabilities.into_iter().zip(rounds_of_picks);
        let mut chosen: Vec<_> = selection.picks.into_iter().zip(of_picks).collect();
        chosen.sort_unstable_by_key(|(pick, _)| pick.document);
        let of_picks: Vec<(f64, u32)>;
        (selection.picks, of_picks) = chosen.into_iter().unzip();
        let (probabilities, rounds) = of_picks.into_iter().unzip();
        windows.rounds_of_picks = rounds;
        let draw = Draw {
            judged: Judged { kind: self.settings.kind, candidates: Vec::new() },
            settings: self.settings,
            noise: self.noise,
            requested,
            candidates,
            selection,
            drawn: Drawn::Weights,
            probabilities: Some(probabilities),
            correction: None,
            windows: Some(windows),
        };
        (self.competed, draw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::select::corrected::{Correction, shuffle};
    use crate::cli::select::spool::{Place, Spool};
    use crate::features::{BucketWidth, Featuriser};
    use crate::score::Side;
    use crate::select::{Quotas, SelectorKind, Unit};

    const DOCUMENTS: u32 = 2_000;
    const WINDOW: usize = 10;
    const COUNT: u64 = 20;

    fn settings(seed: u64) -> SelectorSettings {
        SelectorSettings {
            kind: SelectorKind::ImportanceResampling,
            fraction: "1".parse().unwrap(),
            unit: Unit::Documents,
            temperature: 1.0,
            length_normalise: false,
            min_tokens: 0,
            seed,
            quotas: Quotas::default(),
            loss: None,
            filter: None,
            holdout: None,
            coverage_sample: 0,
            coverage: None,
            sensitivity: None,
        }
    }

    /// One document of every tenth window is selected, and stands for those of the others, too: on average the weights sum to the
    /// number of documents.
    #[test]
    fn weights_stand_for_windows_in_which_nothing_is_selected() {
        const SEEDS: u64 = 300;
        let featuriser = Featuriser { buckets: 2, ..Featuriser::default() };
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let model = Model::of_one_target(featuriser, side(), side()).unwrap();
        let raw = model.raw.counts.probabilities();
        // Without n-grams all weigh the same.
        let n = DOCUMENTS as usize;
        let scores = Scores { n_targets: 1, weights: vec![0.0; n], n_tokens: vec![1; n], ..Scores::default() };
        let spool = Spool::new([tempfile::tempfile()].into_iter(), 1);
        let files = Files::of_one_thread();
        let correction = Correction {
            share: 1.0,
            prior_ngrams: None,
            window: WINDOW,
            rounds: 1,
            half_life_ngrams: None,
            lag: 0,
            is_shuffled: true,
        };
        let (mut sum, mut squares) = (0.0, 0.0);
        for seed in 0..SEEDS {
            let places = vec![Place { start: 0, len: 0 }; n];
            let mut drawing = Drawing::new(
                Ngrams { spool: &spool, width: BucketWidth::of(featuriser.buckets), places },
                &scores,
                &model,
                (settings(seed), draw::noise(seed)),
                correction.rounds,
                Against::of_targets(&model, &raw, &correction, 100),
                Cells::of_pools(vec![Schedule::new(DOCUMENTS.into(), vec![COUNT])]),
                Windows::new(n, false),
            );
            let mut documents: Vec<u32> = (0..DOCUMENTS).collect();
            shuffle(&mut documents, seed);
            for window in documents.chunks(WINDOW) {
                drawing.window(window, &files).unwrap();
            }
            let (_, draw) = drawing.finish(COUNT, DOCUMENTS.into());
            let probabilities = draw.probabilities.unwrap();
            assert_eq!(probabilities.len() as u64, COUNT);
            assert!(probabilities.iter().all(|p| *p > 0.0 && *p <= 0.1), "{probabilities:?}");
            let estimate: f64 = probabilities.iter().map(|p| p.recip()).sum();
            sum += estimate;
            squares += estimate * estimate;
        }
        let mean = sum / SEEDS as f64;
        let limit = 4.0 * ((squares / SEEDS as f64 - mean * mean) / SEEDS as f64).sqrt();
        let bias = mean - f64::from(DOCUMENTS);
        assert!(bias.abs() < limit, "{mean} of {DOCUMENTS} documents, {limit} could be chance");
    }
}
