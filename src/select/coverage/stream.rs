//! The one-pass form: strata with edges, and a cut-off with a threshold, that are known before the documents come.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::reservoirs::{Narrowing, offer_to_targets, take_turns};
use super::super::{BudgetRounding, BudgetedSelection, ChosenFor, Division, Reservoir};
use super::{Covered, CoveredPool, Cutoff, Edges, QuantileSketch, StrataRounding, Stratum, Tail};

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
    /// Where the cut-off of as many scores as were sketched lies, to within the sketch's error, such that no more of these go than
    /// its rate allows: equal scores stay together. `None` if it would remove nothing.
    pub fn of_sketch(sketch: &QuantileSketch, cutoff: Cutoff) -> Option<Self> {
        // As in the exact form: a part of a document is none.
        let most = cutoff.rate.of(sketch.len(), 1.0);
        let at = match cutoff.tail {
            Tail::Low => sketch.end_of_lowest(most),
            Tail::High => sketch.end_of_highest(most),
        };
        Some(FixedCutoff { tail: cutoff.tail, at: at? })
    }

    pub fn removes(&self, score: f64) -> bool {
        match self.tail {
            Tail::Low => score <= self.at,
            Tail::High => score >= self.at,
        }
    }
}

/// Sketches by their number in the catalog, and how many documents they remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SketchVersion {
    pub version: i64,
    pub n_documents: u64,
}

/// What a window takes of the sketches of its stream when it opens.
#[derive(Debug, Clone, PartialEq)]
pub struct FixedEdges {
    pub of: SketchVersion,
    /// `None`: nothing is cut off.
    pub cutoff: Option<FixedCutoff>,
    /// Of each pool, with the same number of strata.
    pub pools: Vec<Edges>,
}

/// Sizes and reservoirs of all strata. Equals [`select_coverage`](super::select_coverage) with the same edges and the same cut-off,
/// and holds no more than can still be selected: about as many documents for each target as are selected in all, since a stratum
/// with more than the others leave it never gives more, however many come.
#[derive(Debug)]
pub struct StratumReservoirs<T> {
    division: Arc<Division>,
    edges: Arc<FixedEdges>,
    /// Of all that will be selected.
    at_most: u64,
    n_cut: u64,
    /// Documents of every stratum, pool by pool.
    sizes: Vec<u64>,
    /// Of every stratum one for each target.
    reservoirs: Vec<Reservoir<Arc<T>>>,
    narrowing: Narrowing,
    /// Of the document that is offered, for every target.
    keys: Vec<f64>,
}

/// A selection of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct CoveredWindow<T> {
    /// By ascending offset. The pool of each is a cell, see [`Covered::cell`].
    pub chosen: Vec<ChosenFor<T>>,
    /// Documents that the cut-off removed.
    pub n_cut: u64,
    /// Strata, turns, shortfall. Documents have no numbers here: none is among those that are cut, or picked.
    pub covered: Covered,
}

impl<T> StratumReservoirs<T> {
    /// For a selection of at most so many.
    ///
    /// # Panics
    /// If the edges are of other pools.
    pub fn new(division: Arc<Division>, edges: Arc<FixedEdges>, at_most: u64) -> Self {
        assert_eq!(edges.pools.len(), division.n_pools(), "edges of other pools");
        let n_cells: usize = edges.pools.iter().map(Edges::n_strata).sum();
        let n_reservoirs = n_cells * division.n_targets();
        let reservoirs = (0..n_reservoirs).map(|_| Reservoir::new(at_most as usize)).collect();
        let (sizes, narrowing, keys) = (vec![0; n_cells], Narrowing::of_parts(n_cells), Vec::new());
        StratumReservoirs { division, edges, at_most, n_cut: 0, sizes, reservoirs, narrowing, keys }
    }

    pub fn division(&self) -> &Division {
        &self.division
    }

    pub fn edges(&self) -> &FixedEdges {
        &self.edges
    }

    /// Whether the cut-off removes a document with this score, which is then counted and must not be offered.
    pub fn cuts(&mut self, score: f64) -> bool {
        let is_cut = self.edges.cutoff.is_some_and(|cutoff| cutoff.removes(score));
        self.n_cut += u64::from(is_cut);
        is_cut
    }

    /// Offers a document with its key for every target; gives what can no longer be selected, itself perhaps among it, to `out`.
    ///
    /// # Panics
    /// If importance or a key is not a number.
    pub fn offer(
        &mut self,
        (pool, offset): (usize, i64),
        importance: f64,
        key: impl Fn(usize) -> f64,
        item: T,
        mut out: impl FnMut(T),
    ) {
        let edges = &self.edges.pools[pool];
        let cell = pool * edges.n_strata() + edges.stratum(importance);
        self.sizes[cell] += 1;
        let n_targets = self.division.n_targets();
        self.keys.clear();
        self.keys.extend((0..n_targets).map(key));
        let reservoirs = &mut self.reservoirs[cell * n_targets..][..n_targets];
        offer_to_targets(reservoirs, offset, &self.keys, item, &mut out);
        if self.narrowing.is_due() {
            self.narrow(out);
        }
    }

    /// Lets go of what can no longer be selected since other strata have documents enough.
    fn narrow(&mut self, mut out: impl FnMut(T)) {
        let most = self.division.most(self.at_most, &self.of_pools());
        let (n_strata, n_targets) = (self.n_strata(), self.division.n_targets());
        let pools = self.sizes.chunks(n_strata).zip(self.reservoirs.chunks_mut(n_strata * n_targets)).zip(most);
        for ((sizes, reservoirs), most) in pools {
            let Some(level) = level(most, sizes) else { continue };
            // One with fewer may still grow, and give all of it.
            let full = reservoirs.chunks_mut(n_targets).zip(sizes).filter(|(_, size)| **size > level);
            for reservoir in full.flat_map(|(of_targets, _)| of_targets) {
                reservoir.narrow(level as usize).into_iter().filter_map(Arc::into_inner).for_each(&mut out);
            }
        }
    }

    fn n_strata(&self) -> usize {
        self.edges.pools[0].n_strata()
    }

    /// Documents of every pool.
    fn of_pools(&self) -> Vec<u64> {
        self.sizes.chunks(self.n_strata()).map(|sizes| sizes.iter().sum()).collect()
    }

    /// Bytes of all but the items.
    pub fn held_bytes(&self) -> usize {
        size_of_val(&self.sizes[..]) + size_of_val(&self.reservoirs[..])
    }

    /// Selects so many, or all if there are fewer. `rounding`: of the shares of pools and targets; `strata_rounding`:
    /// of the budgets of strata, as in [`CoverageRequest`](super::CoverageRequest).
    ///
    /// # Panics
    /// If more than it was made for: documents that it would need are gone.
    pub fn select(self, count: u64, rounding: BudgetRounding<'_>, strata_rounding: StrataRounding) -> CoveredWindow<T> {
        assert!(count <= self.at_most, "{count} selected of strata for {}", self.at_most);
        let of_pools = self.of_pools();
        let StratumReservoirs { division, edges, n_cut, sizes, reservoirs, .. } = self;
        let budgets = division.budgets(count, &of_pools, rounding);
        let shortfall = count - budgets.iter().flatten().sum::<u64>();
        let (mut pools, mut of_cells) = (Vec::new(), Vec::new());
        let pools_of_strata = edges.pools.iter().zip(sizes.chunks(edges.pools[0].n_strata()));
        for (pool, ((edges, sizes), of_targets)) in pools_of_strata.zip(budgets).enumerate() {
            let (budgets, parts) = strata_rounding.budgets(pool, &of_targets, sizes, rounding);
            of_cells.extend(parts);
            let stratum = |(documents, budget): (&u64, u64)| Stratum { documents: *documents, budget };
            let strata = sizes.iter().zip(budgets).map(stratum).collect();
            pools.push(CoveredPool { edges: Some(*edges), strata });
        }
        let (chosen, turns) = take_turns(reservoirs, &of_cells);
        let covered = Covered {
            cut: Vec::new(),
            cut_at: edges.cutoff.map(|cutoff| cutoff.at),
            pools,
            selection: BudgetedSelection { picks: Vec::new(), turns },
            shortfall,
        };
        CoveredWindow { chosen, n_cut, covered }
    }
}

/// The most that a stratum with more documents than this can ever give, where `total` are selected of all: an equal share of what those
/// with fewer leave, which is the less the more come to them, however it is rounded. `None`: each may still give all
/// that it has.
fn level(total: u64, sizes: &[u64]) -> Option<u64> {
    let mut ascending = sizes.to_vec();
    ascending.sort_unstable();
    let mut left = total;
    for (n_before, size) in ascending.iter().enumerate() {
        let n = (ascending.len() - n_before) as u64;
        if size * n > left {
            // Rounded at random a share can be one more than its whole part, also a whole one, by the last bits of a
            // sum.
            return Some(left / n + 1);
        }
        left -= size;
    }
    None
}
