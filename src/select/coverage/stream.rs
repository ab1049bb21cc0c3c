//! The one-pass form: strata with edges that are known before the documents come.

use super::super::{Reservoir, Selection};
use super::{Edges, Stratum, water_fill};

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
    /// How many documents fewer than requested there are.
    pub shortfall: u64,
}

impl<T> StratumReservoirs<T> {
    /// For a selection of at most `capacity`.
    pub fn new(edges: Edges, capacity: usize) -> Self {
        let reservoirs = (0..edges.n_strata()).map(|_| Reservoir::new(capacity)).collect();
        StratumReservoirs { edges, capacity, documents: vec![0; edges.n_strata()], reservoirs }
    }

    /// Offers a document; gives back the item that can no longer be selected, which may be this one.
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
    /// If it has other edges or another capacity.
    pub fn merge(&mut self, other: StratumReservoirs<T>) {
        assert_eq!((self.edges, self.capacity), (other.edges, other.capacity), "parts of different windows");
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
        CoveredWindow { strata, shortfall }
    }
}
