//! The best so far of a stream of keyed items, and no more than can still be chosen.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Keeps the `capacity + 1` items with the highest keys: the most that can be chosen, and the one that sets the
/// threshold. Equal keys rank by offset, lower first, so the outcome does not depend on the order of arrival.
#[derive(Debug)]
pub struct Reservoir<T> {
    capacity: usize,
    heap: BinaryHeap<Ranked<T>>,
}

/// One chosen item.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen<T> {
    pub offset: i64,
    pub key: f64,
    pub item: T,
}

/// The items chosen, by ascending offset.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection<T> {
    pub chosen: Vec<Chosen<T>>,
    /// The highest key that was not chosen; `None` when every candidate was.
    pub threshold: Option<f64>,
}

#[derive(Debug)]
struct Ranked<T>(Chosen<T>);

impl<T> Reservoir<T> {
    /// A reservoir from which at most `capacity` items will be chosen.
    pub fn new(capacity: usize) -> Self {
        Reservoir { capacity, heap: BinaryHeap::new() }
    }

    /// Offers an item; gives back the one that can no longer be chosen, which may be the item itself.
    ///
    /// # Panics
    /// If the key is not a number: scores are sums of finite numbers.
    pub fn offer(&mut self, offset: i64, key: f64, item: T) -> Option<T> {
        assert!(!key.is_nan(), "the key of offset {offset} is not a number");
        self.heap.push(Ranked(Chosen { offset, key, item }));
        if self.heap.len() > self.capacity + 1 { self.heap.pop().map(|worst| worst.0.item) } else { None }
    }

    /// Whether an item with this key might be held: spares making items that would come back at once.
    pub fn might_hold(&self, key: f64) -> bool {
        self.heap.len() <= self.capacity || self.heap.peek().is_none_or(|worst| key >= worst.0.key)
    }

    /// From now on at most `capacity` items will be chosen; gives back those that no longer can be.
    pub fn narrow(&mut self, capacity: usize) -> Vec<T> {
        self.capacity = self.capacity.min(capacity);
        let n_out = self.heap.len().saturating_sub(self.capacity + 1);
        (0..n_out).filter_map(|_| self.heap.pop()).map(|worst| worst.0.item).collect()
    }

    /// What it holds, best first.
    pub fn into_ranked(self) -> Vec<Chosen<T>> {
        self.heap.into_sorted_vec().into_iter().map(|ranked| ranked.0).collect()
    }

    /// Takes the items of another reservoir for as many: the outcome is that of one to which all were offered.
    pub fn merge(&mut self, other: Reservoir<T>) {
        for Ranked(Chosen { offset, key, item }) in other.heap {
            self.offer(offset, key, item);
        }
    }

    /// The best `capacity`, by ascending offset.
    pub fn into_items(self) -> Vec<Chosen<T>> {
        let capacity = self.capacity;
        self.select(capacity).chosen
    }

    /// Chooses the best `k`.
    ///
    /// # Panics
    /// If `k` is above the capacity: candidates that it would need are gone.
    pub fn select(self, k: usize) -> Selection<T> {
        assert!(k <= self.capacity, "{k} chosen of a reservoir for {}", self.capacity);
        let mut ranked = self.heap.into_sorted_vec();
        let threshold = ranked.get(k).map(|first_out| first_out.0.key);
        ranked.truncate(k);
        let mut chosen: Vec<_> = ranked.into_iter().map(|r| r.0).collect();
        chosen.sort_unstable_by_key(|c| c.offset);
        Selection { chosen, threshold }
    }
}

/// Best first: `BinaryHeap` pops the greatest, which is the worst candidate.
impl<T> Ord for Ranked<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.key.total_cmp(&self.0.key).then(self.0.offset.cmp(&other.0.offset))
    }
}

impl<T> PartialOrd for Ranked<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Ranked<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Ranked<T> {}
