//! A selection that grows window by window.

use std::collections::BTreeMap;

use super::windows::{WindowTurn, Windows};
use super::{Against, Ngrams, weigh};
use crate::cli::files::Files;
use crate::cli::select::SelectionPlan;
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
    /// Of every document the weights by which it was last looked at, one for each target.
    competed: Vec<f64>,
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
        plan: &SelectionPlan,
    ) -> Self {
        let competed = vec![f64::NAN; scores.len() * against.len()];
        let selection = BudgetedSelection::default();
        let windows = Windows::new(plan, scores.len());
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

    /// Chances of the picks of a window. They are exact where it has one round, see [`chance_in_turns`]. Of several
    /// rounds the best counts, and that cannot be exact: what a round chooses changes the weights of the next, so that
    /// what those would have chosen without a document is not known. Their thresholds stand for it.
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
            let of_cell = &window.turns[window.turns.partition_point(|turn| turn.turn.pool < cell)..];
            let of_cell = &of_cell[..of_cell.partition_point(|turn| turn.turn.pool == cell)];
            self.probabilities.push(of_cell.chunks(n_targets).map(in_round).fold(0.0, f64::max));
        }
    }

    /// The weights by which documents competed, and the draw, which is not told yet which did.
    pub fn finish(self, requested: u64, candidates: u64) -> (Vec<f64>, Draw) {
        let Drawing { mut selection, probabilities, rounds_of_picks, mut windows, .. } = self;
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
