//! What is kept of the windows: which document was in which, and what was selected of them by which thresholds.

use serde::Serialize;

use crate::cli::select::SelectionPlan;
use crate::cli::select::draw::{Draw, Drawn};
use crate::score::Model;
use crate::select::Turn;

/// Turns that the report lists, and that are kept unless documents are explained.
const TURNS: usize = 10_000;

/// One target's choice from the documents of a cell (a pool, or a stratum of one) that are in a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowTurn {
    /// From 0.
    pub window: u32,
    /// From 1.
    pub round: u32,
    /// As many it could choose from.
    pub documents: u64,
    /// Its `pool` is the cell.
    pub turn: Turn,
}

pub struct Windows {
    count: u32,
    /// By the number of the document. Empty unless documents are explained.
    of_document: Vec<u32>,
    /// In the order of the picks of the draw.
    pub rounds_of_picks: Vec<u32>,
    /// By window, then by cell.
    turns: Vec<WindowTurn>,
    /// Turns that were not kept.
    left_out: u64,
}

impl Windows {
    pub fn new(n_documents: usize, is_explained: bool) -> Self {
        let of_document = if is_explained { vec![u32::MAX; n_documents] } else { Vec::new() };
        Windows { count: 0, of_document, rounds_of_picks: Vec::new(), turns: Vec::new(), left_out: 0 }
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// The next window; its turns by cell.
    pub fn add(&mut self, documents: &[u32], turns: Vec<WindowTurn>) {
        if self.of_document.is_empty() {
            let room = TURNS.saturating_sub(self.turns.len()).min(turns.len());
            self.left_out += (turns.len() - room) as u64;
            self.turns.extend_from_slice(&turns[..room]);
        } else {
            documents.iter().for_each(|document| self.of_document[*document as usize] = self.count);
            self.turns.extend(turns);
        }
        self.count += 1;
    }

    /// The turn that selected a document of this cell, or else the last one that could have. `round`: in which it was.
    pub fn turn(&self, document: u32, cell: usize, target: usize, round: Option<u32>) -> Option<&WindowTurn> {
        let window = *self.of_document.get(document as usize)?;
        let from = self.turns.partition_point(|turn| (turn.window, turn.turn.pool) < (window, cell));
        let of_cell = self.turns[from..].iter().take_while(|turn| (turn.window, turn.turn.pool) == (window, cell));
        of_cell.filter(|turn| turn.turn.target == target && round.is_none_or(|round| turn.round == round)).last()
    }
}

/// In `report.json`.
#[derive(Debug, Serialize)]
pub struct WindowsReport {
    count: u32,
    /// What was selected of each, in their order: the first 10,000 turns.
    turns: Vec<TurnReport>,
    turns_left_out: u64,
}

#[derive(Debug, Serialize)]
struct TurnReport {
    window: u32,
    round: u32,
    /// `null`: all sources, or values of `--quota-field`, without a share of their own.
    source: Option<String>,
    /// Only with strata.
    stratum: Option<usize>,
    target: String,
    /// As many it chose from, and as many it chose.
    documents: u64,
    budget: u64,
    /// The highest key that it did not choose.
    threshold: Option<f64>,
}

impl WindowsReport {
    pub fn of(draw: &Draw, plan: &SelectionPlan, model: &Model) -> Option<Self> {
        let windows = draw.windows.as_ref()?;
        let n_strata = match &draw.drawn {
            Drawn::Strata(strata) => Some(strata.coverage.settings.strata as usize),
            Drawn::Weights | Drawn::Sensitivities(_) | Drawn::Tokens(_) => None,
        };
        let report = |WindowTurn { window, round, documents, turn }: &WindowTurn| {
            let pool = turn.pool / n_strata.unwrap_or(1);
            TurnReport {
                window: *window,
                round: *round,
                source: pool.checked_sub(1).map(|source| plan.sources[source].0.clone()),
                stratum: n_strata.map(|n| turn.pool % n),
                target: model.targets[turn.target].name.clone(),
                documents: *documents,
                budget: turn.count,
                threshold: turn.threshold,
            }
        };
        let turns: Vec<_> = windows.turns.iter().take(TURNS).map(report).collect();
        let turns_left_out = windows.left_out + (windows.turns.len() - turns.len()) as u64;
        Some(WindowsReport { count: windows.count, turns, turns_left_out })
    }
}
