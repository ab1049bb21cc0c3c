//! What a replay sees of the records that somebody asks about, and of everything that they competed with.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::features::Scratch;
use crate::record::{Decoder, Reject, Schemas, TextScratch};
use crate::score::{Score, VersionedWeight};
use crate::select::{Criterion, Division, Noise, RankedDocument, SelectorSettings, Tail, TokenPool, Unit};
use crate::source::Record;
use crate::window::{ClosedWindow, OpenWindow, PlacedDocument, ScoredDocument, ScoredRecord};

/// Which records of a window are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    Offset(i64),
    /// Of which there may be several: nobody says that ids are unique.
    Id(&'a str),
}

/// A record that is asked about.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub offset: i64,
    /// `None`: it is no document.
    pub id: Option<String>,
    pub source: Option<String>,
    /// Of a dead letter that of all others.
    pub pool: usize,
    pub timestamp_ms: Option<i64>,
    pub outcome: Result<SeenDocument, Reject>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct SeenDocument {
    /// For the first target.
    pub score: Score,
    /// For every target.
    pub log_importance_weights: Vec<f64>,
    /// See [`ScoredDocument::numbers`].
    pub numbers: [f64; 2],
    /// See [`ScoredDocument::point`], and what was found by it; `None` where it does not compete.
    pub point: Option<Vec<f32>>,
    pub placed: Option<PlacedDocument>,
    /// The clause of the filter that refuses it.
    pub refused_by: Option<u16>,
}

/// Looks at every record of a window, after it was scored.
pub(super) struct Witness<'a> {
    wanted: Wanted<'a>,
    decoder: &'a Decoder,
    selector: &'a SelectorSettings,
    division: &'a Division,
    noise: &'a Noise,
    weight: Arc<VersionedWeight>,
    pub seen: Vec<Seen>,
    pub contenders: Contenders,
}

impl<'a> Witness<'a> {
    pub fn new(
        wanted: Wanted<'a>,
        decoder: &'a Decoder,
        selector: &'a SelectorSettings,
        (division, noise): (&'a Division, &'a Noise),
        weight: &Arc<VersionedWeight>,
    ) -> Self {
        let contenders = Contenders { n_targets: division.n_targets(), ..Contenders::default() };
        let weight = weight.clone();
        Witness { wanted, decoder, selector, division, noise, weight, seen: Vec::new(), contenders }
    }

    pub fn look(&mut self, record: Record<'_>, schemas: &Schemas, scored: &ScoredRecord) {
        if let Ok(document) = &scored.outcome
            && document.refused_by.is_none()
            && document.score.n_tokens >= self.selector.min_tokens
        {
            self.enter(scored.offset, document);
        }
        match self.wanted {
            Wanted::Offset(offset) if offset != scored.offset => {}
            wanted => self.see(record, schemas, scored, wanted),
        }
    }

    /// Before the window is decided.
    pub fn look_at_places(&mut self, window: &OpenWindow) {
        for Seen { offset, outcome, .. } in &mut self.seen {
            if let Ok(document) = outcome
                && let Some(point) = &document.point
            {
                document.placed = window.placed(*offset, point);
            }
        }
    }

    fn enter(&mut self, offset: i64, document: &ScoredDocument) {
        let Witness { selector, division, noise, weight, contenders, .. } = self;
        let pool = document.pool_in(division);
        let featuriser = weight.weight.featuriser();
        let key = |log_importance_weight: f64| {
            let score = Score { log_importance_weight, ..document.score };
            selector.key(noise, offset, selector.total_log_weight(&score, featuriser))
        };
        if let Some(coverage) = &selector.coverage {
            if coverage.lacks(&document.numbers) {
                return;
            }
            let value = |criterion: &Criterion, which: usize| match criterion {
                Criterion::Weight => selector.total_log_weight(&document.score, featuriser),
                Criterion::Field(_) => document.numbers[which],
            };
            contenders.importances.push(value(&coverage.importance, 0));
            if coverage.settings.cutoff.is_some() {
                contenders.cutoffs.push(value(&coverage.cutoff_by, 1));
            }
        }
        if selector.sensitivity.is_some() && document.point.is_none() {
            return;
        }
        if selector.unit == Unit::Tokens {
            contenders.n_tokens.push(document.score.budget_tokens());
        }
        let first = document.score.log_importance_weight;
        // Of several targets every candidate of the window has all weights: see `Candidates::might_hold`.
        let keys = std::iter::once(first).chain(document.other_weights.iter().copied()).map(key);
        contenders.enter(offset, pool, keys);
    }

    fn see(&mut self, record: Record<'_>, schemas: &Schemas, scored: &ScoredRecord, wanted: Wanted<'_>) {
        let Record { offset, timestamp_ms, .. } = record;
        let mut text = TextScratch::default();
        let document = self.decoder.decode_record(record.raw(), schemas, &mut text).ok();
        if let Wanted::Id(id) = wanted
            && document.as_ref().is_none_or(|document| document.id() != id)
        {
            return;
        }
        let of_document = |scored: &ScoredDocument| {
            let text = document.as_ref().map_or("", |document| &*document.text);
            let mut log_importance_weights = vec![scored.score.log_importance_weight];
            // Those of a document that cannot be selected have not been asked for so far.
            log_importance_weights.extend(self.weight.for_others(text, None, &mut Scratch::default()));
            SeenDocument {
                score: scored.score,
                log_importance_weights,
                numbers: scored.numbers,
                point: scored.point.clone(),
                placed: None,
                refused_by: scored.refused_by,
            }
        };
        self.seen.push(Seen {
            offset,
            id: document.as_ref().map(|document| document.id().into_owned()),
            source: document.as_ref().and_then(|document| document.source.as_deref().map(str::to_owned)),
            pool: scored.outcome.as_ref().map_or(0, |document| document.pool_in(self.division)),
            timestamp_ms: document.as_ref().map_or(timestamp_ms, |document| document.timestamp_ms),
            outcome: scored.outcome.as_ref().map(of_document).map_err(|letter| letter.reject.clone()),
        });
    }
}

/// The candidates of a window with what ranks them.
#[derive(Debug, Default)]
pub(super) struct Contenders {
    n_targets: usize,
    offsets: Vec<i64>,
    pools: Vec<u32>,
    /// One for each target, candidate by candidate.
    keys: Vec<f64>,
    /// What strata are bands of, of each of them; empty without any.
    importances: Vec<f64>,
    /// What a cut-off looks at, of each of them; empty without one.
    cutoffs: Vec<f64>,
    /// As they count in budgets, of each of them; empty where those are of documents.
    n_tokens: Vec<u32>,
}

impl Contenders {
    fn enter(&mut self, offset: i64, pool: usize, keys: impl Iterator<Item = f64>) {
        self.offsets.push(offset);
        self.pools.push(pool as u32);
        self.keys.extend(keys);
        assert_eq!(self.keys.len(), self.offsets.len() * self.n_targets, "a candidate has a key for each target");
    }

    pub fn len(&self) -> u64 {
        self.offsets.len() as u64
    }

    /// How many candidates a cut-off removes before one at this offset. Of equal ones it removes the later first.
    pub fn n_cut_before(&self, offset: i64, value: f64, tail: Tail) -> u64 {
        let is_before = |(&other, &at): (&f64, &i64)| match other.total_cmp(&value) {
            Ordering::Equal => at > offset,
            order => (order == Ordering::Greater) == (tail == Tail::High),
        };
        self.cutoffs.iter().zip(&self.offsets).filter(|both| is_before(*both)).count() as u64
    }

    /// The best key for a target in a pool of those of which `is_meant` is true by offset, importance, and what the
    /// cut-off looks at. It is asked of as few as can be.
    pub fn best_key(
        &self,
        target: usize,
        pool: usize,
        is_meant: impl Fn(i64, f64, Option<f64>) -> bool,
    ) -> Option<f64> {
        let mut best: Option<f64> = None;
        for number in (0..self.offsets.len()).filter(|number| self.pools[*number] as usize == pool) {
            let key = self.keys[number * self.n_targets + target];
            let cutoff = self.cutoffs.get(number).copied();
            if best.is_none_or(|best| key > best) && is_meant(self.offsets[number], self.importances[number], cutoff) {
                best = Some(key);
            }
        }
        best
    }

    /// What was decided of a pool whose budget is in tokens, and the place of the candidate at this offset.
    pub fn in_tokens(&self, offset: i64, pool: usize, budget: f64, uniform: f64) -> Option<(TokenPool, usize)> {
        let number = self.offsets.iter().position(|other| *other == offset)?;
        let of = |number: usize| RankedDocument {
            document: number as u32,
            key: self.keys[number * self.n_targets],
            n_tokens: self.n_tokens[number],
        };
        let of_pool = (0..self.offsets.len()).filter(|number| self.pools[*number] as usize == pool).map(of);
        let pool = TokenPool::new(of_pool.collect(), budget, uniform);
        let rank = pool.rank(&of(number));
        Some((pool, rank))
    }

    /// Candidates by pool.
    pub fn sizes(&self, n_pools: usize) -> Vec<u64> {
        let mut sizes = vec![0; n_pools];
        self.pools.iter().for_each(|pool| sizes[*pool as usize] += 1);
        sizes
    }

    /// The place of a candidate among those that a target could choose from its pool, from 1 on: all that the targets before it
    /// have left.
    pub fn rank(&self, offset: i64, pool: usize, target: usize, taken: &TakenBy) -> Option<u64> {
        let number = self.offsets.iter().position(|other| *other == offset)?;
        let key = |number: usize| self.keys[number * self.n_targets + target];
        let mine = key(number);
        let is_before = |&other: &usize| {
            let is_better = key(other) > mine || (key(other) == mine && self.offsets[other] < offset);
            is_better && self.pools[other] as usize == pool && taken.is_left_for(target, self.offsets[other])
        };
        Some((0..self.offsets.len()).filter(is_before).count() as u64 + 1)
    }
}

/// Which target has selected which offset, and with what inclusion probability.
pub(super) struct TakenBy(BTreeMap<i64, (usize, f64)>);

impl TakenBy {
    pub fn of(closed: &ClosedWindow) -> Self {
        TakenBy(closed.selected.iter().map(|row| (row.offset, (row.target, row.inclusion_probability))).collect())
    }

    pub fn target(&self, offset: i64) -> Option<usize> {
        self.0.get(&offset).map(|(target, _)| *target)
    }

    pub fn inclusion_probability(&self, offset: i64) -> Option<f64> {
        self.0.get(&offset).map(|(_, probability)| *probability)
    }

    /// Whether no target before this one has selected it.
    pub fn is_left_for(&self, target: usize, offset: i64) -> bool {
        self.target(offset).is_none_or(|by| by >= target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A target looks at what those before it have left, in its own pool; of equal keys the lower offset is before.
    #[test]
    fn ranks_are_those_of_the_turns() {
        let mut contenders = Contenders { n_targets: 2, ..Contenders::default() };
        for (offset, pool, keys) in
            [(10, 0, [3.0, 9.0]), (11, 0, [2.0, 1.0]), (12, 0, [2.0, 5.0]), (13, 1, [7.0, 7.0]), (14, 0, [1.0, 6.0])]
        {
            contenders.enter(offset, pool, keys.into_iter());
        }
        // The first target took 10, the second 14.
        let taken = TakenBy([(10, (0, 0.5)), (14, (1, 0.25))].into());
        let ranks = |target| [10, 11, 12, 14].map(|offset| contenders.rank(offset, 0, target, &taken).unwrap());
        assert_eq!(ranks(0), [1, 2, 3, 4]);
        assert_eq!(ranks(1)[1..], [3, 2, 1]);
        assert_eq!(contenders.rank(13, 1, 0, &taken), Some(1));
        assert_eq!(contenders.rank(99, 0, 0, &taken), None);
        assert_eq!([10, 11].map(|offset| taken.inclusion_probability(offset)), [Some(0.5), None]);
        assert_eq!((contenders.sizes(3), contenders.len()), (vec![4, 1, 0], 5));
    }

    #[test]
    fn the_best_key_is_that_of_those_that_are_meant() {
        let importances = vec![1.0, 1.0, 5.0, 1.0];
        let mut contenders = Contenders { n_targets: 2, importances, ..Contenders::default() };
        for (offset, pool, keys) in
            [(10, 0, [3.0, 9.0]), (11, 0, [2.0, 10.0]), (12, 0, [7.0, 12.0]), (13, 1, [8.0, 13.0])]
        {
            contenders.enter(offset, pool, keys.into_iter());
        }
        let is_meant =
            |offset: i64, importance: f64, cutoff: Option<f64>| offset != 10 && importance < 2.0 && cutoff.is_none();
        let best = |target| contenders.best_key(target, 0, is_meant);
        assert_eq!([0, 1].map(best), [Some(2.0), Some(10.0)]);
        assert_eq!(contenders.best_key(0, 2, is_meant), None);
    }
}
