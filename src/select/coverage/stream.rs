//! The one-pass form: strata with edges that are known before the documents come.

use serde::{Deserialize, Serialize};

use super::super::{Reservoir, Selection};
use super::{Cutoff, Edges, QuantileSketch, Stratum, Tail, water_fill};

/// A cut-off at a score that is known before the documents come. Of documents with just this score all go, of which
/// [`select_coverage`](super::select_coverage) removes no more than its rate allows: where no others share the score of the
/// last one that it removes, both remove the same.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FixedCutoff {
    pub tail: Tail,
    /// A number: the score of the last document that goes.
    pub at: f64,
}

impl FixedCutoff {
    /// Where the cut-off of as many scores as were sketched lies, to within the sketch's error; `None` if it would remove
    /// nothing.
    pub fn of_sketch(sketch: &QuantileSketch, cutoff: Cutoff) -> Option<Self> {
        // As in the exact form: a part of a document is none.
        let last = cutoff.rate.of(sketch.len(), 1.0).checked_sub(1)?;
        let rank = match cutoff.tail {
            Tail::Low => last,
            Tail::High => sketch.len() - 1 - last,
        };
        Some(FixedCutoff { tail: cutoff.tail, at: sketch.at_rank(rank)? })
    }

    pub fn removes(&self, score: f64) -> bool {
        match self.tail {
            Tail::Low => score <= self.at,
            Tail::High => score >= self.at,
        }
    }
}

/// A count and a reservoir for every stratum. Holds at most k · (m + 1) items, and equals
/// [`select_coverage`](super::select_coverage) with the same edges: budgets depend on the counts, and a stratum never gives
/// more than the m that are selected in all.
///
/// Parts of a window may be offered to several of these, which are then merged: the order and the division of the
/// documents do not matter.
#[derive(Debug)]
pub struct StratumReservoirs<T> {
    edges: Edges,
    capacity: usize,
    cutoff: Option<FixedCutoff>,
    cut: u64,
    documents: Vec<u64>,
    reservoirs: Vec<Reservoir<T>>,
}

/// What a stratum gave, and what it was.
#[derive(Debug, Clone, PartialEq)]
pub struct StratumSelection<T> {
    pub stratum: Stratum,
    pub selection: Selection<T>,
}

/// A selection of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct CoveredWindow<T> {
    pub strata: Vec<StratumSelection<T>>,
    /// Documents that the cut-off removed.
    pub cut: u64,
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
}

impl<T> StratumReservoirs<T> {
    /// For a selection of at most `capacity`.
    pub fn new(edges: Edges, capacity: usize) -> Self {
        let reservoirs = (0..edges.n_strata()).map(|_| Reservoir::new(capacity)).collect();
        let documents = vec![0; edges.n_strata()];
        StratumReservoirs { edges, capacity, cutoff: None, cut: 0, documents, reservoirs }
    }

    /// The same after a cut-off, which must be known before the first document.
    pub fn with_cutoff(self, cutoff: Option<FixedCutoff>) -> Self {
        StratumReservoirs { cutoff, ..self }
    }

    /// Offers a document unless its score for the cut-off removes it; gives back the item that can no longer be selected, which
    /// may be this one.
    ///
    /// # Panics
    /// If a score or the key is not a number.
    pub fn offer_unless_cut(
        &mut self,
        offset: i64,
        cutoff_score: f64,
        importance: f64,
        key: f64,
        item: T,
    ) -> Option<T> {
        assert!(!cutoff_score.is_nan(), "the score of offset {offset} for the cut-off is not a number");
        if self.cutoff.is_some_and(|cutoff| cutoff.removes(cutoff_score)) {
            self.cut += 1;
            return Some(item);
        }
        self.offer(offset, importance, key, item)
    }

    /// Offers a document that no cut-off looks at; gives back the item that can no longer be selected, which may be this one.
    ///
    /// # Panics
    /// If importance or key is not a number.
    pub fn offer(&mut self, offset: i64, importance: f64, key: f64, item: T) -> Option<T> {
        let stratum = self.edges.stratum(importance);
        self.documents[stratum] += 1;
        self.reservoirs[stratum].offer(offset, key, item)
    }

    /// Whether a document might be held: spares making items that would come back at once.
    pub fn might_hold(&self, importance: f64, key: f64) -> bool {
        self.reservoirs[self.edges.stratum(importance)].might_hold(key)
    }

    /// Adds another part of the window.
    ///
    /// # Panics
    /// If it has other edges, another capacity or another cut-off.
    pub fn merge(&mut self, other: StratumReservoirs<T>) {
        let form = |of: &Self| (of.edges, of.capacity, of.cutoff);
        assert_eq!(form(self), form(&other), "parts of different windows");
        self.cut += other.cut;
        self.documents.iter_mut().zip(&other.documents).for_each(|(mine, documents)| *mine += documents);
        self.reservoirs.iter_mut().zip(other.reservoirs).for_each(|(mine, other)| mine.merge(other));
    }

    /// Selects `count` documents, or all if there are fewer.
    ///
    /// # Panics
    /// If `count` is above the capacity.
    pub fn select(self, count: usize) -> CoveredWindow<T> {
        let budgets = water_fill(count as u64, &self.documents);
        let shortfall = count as u64 - budgets.iter().sum::<u64>();
        let of_stratum = |((documents, budget), reservoir): ((u64, u64), Reservoir<T>)| StratumSelection {
            stratum: Stratum { documents, budget },
            selection: reservoir.select(budget as usize),
        };
        let strata = self.documents.into_iter().zip(budgets).zip(self.reservoirs).map(of_stratum).collect();
        CoveredWindow { strata, cut: self.cut, shortfall }
    }
}
