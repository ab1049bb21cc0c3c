//! The best so far for every pool and target of a divided selection, and no more than can still be chosen. Pure.
//!
//! What [`super::select_within_budgets`] chooses from all candidates at once, this chooses from those that it has kept:
//! targets in turn, no document twice. A pool keeps for each target as many as the targets up to that one can choose
//! together, and the one that sets the threshold; a document stays as long as any target of its pool keeps it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::chances::add_turn;
use super::{Chosen, Division, Reservoir, Turn};

/// When it is looked again at what pools, or strata, can still give.
#[derive(Debug)]
pub(super) struct Narrowing {
    least: u64,
    n_offered: u64,
    next: u64,
}

#[derive(Debug)]
pub struct BudgetedReservoirs<T> {
    division: Arc<Division>,
    /// Of all that will be chosen.
    at_most: u64,
    /// Candidates that have come, by pool.
    sizes: Vec<u64>,
    /// Pool by pool, one for each target.
    reservoirs: Vec<Reservoir<Arc<T>>>,
    narrowing: Narrowing,
    /// Of the candidate that is offered, for every target.
    keys: Vec<f64>,
}

/// One chosen item, with the pool that it came from and the target that chose it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChosenFor<T> {
    pub offset: i64,
    pub pool: usize,
    pub target: usize,
    pub key: f64,
    pub item: T,
}

impl<T> BudgetedReservoirs<T> {
    /// From which at most `at_most` items will be chosen.
    pub fn new(division: Arc<Division>, at_most: u64) -> Self {
        let sizes = vec![0; division.n_pools()];
        let of_pool = |most: u64| division.most_up_to_targets(most).into_iter().map(|n| Reservoir::new(n as usize));
        let reservoirs = division.most(at_most, &sizes).into_iter().flat_map(of_pool).collect();
        let (narrowing, keys) = (Narrowing::of_parts(sizes.len()), Vec::new());
        BudgetedReservoirs { division, at_most, sizes, reservoirs, narrowing, keys }
    }

    pub fn division(&self) -> &Division {
        &self.division
    }

    /// Candidates that have come, by pool.
    pub fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// Offers an item with its key for every target; gives those that can no longer be chosen, itself perhaps among them, to
    /// `out`.
    ///
    /// # Panics
    /// If a key is not a number.
    pub fn offer(&mut self, pool: usize, offset: i64, key: impl Fn(usize) -> f64, item: T, mut out: impl FnMut(T)) {
        self.sizes[pool] += 1;
        let n_targets = self.division.n_targets();
        self.keys.clear();
        self.keys.extend((0..n_targets).map(key));
        let reservoirs = &mut self.reservoirs[pool * n_targets..][..n_targets];
        offer_to_targets(reservoirs, offset, &self.keys, item, &mut out);
        if self.narrowing.is_due() {
            self.narrow(out);
        }
    }

    /// Lets go of what can no longer be chosen since other pools have candidates enough.
    fn narrow(&mut self, mut out: impl FnMut(T)) {
        let most = self.division.most(self.at_most, &self.sizes);
        for (reservoirs, most) in self.reservoirs.chunks_mut(self.division.n_targets()).zip(most) {
            for (reservoir, most) in reservoirs.iter_mut().zip(self.division.most_up_to_targets(most)) {
                reservoir.narrow(most as usize).into_iter().filter_map(Arc::into_inner).for_each(&mut out);
            }
        }
    }

    /// Chooses; `budgets` are those of [`Division::budgets`], rounded at random, for the sizes of the pools. Gives what is
    /// chosen by ascending offset, and the turns: pool by pool, one for each target.
    ///
    /// # Panics
    /// If they come to more than `at_most`: candidates that they would need are gone.
    pub fn select(self, budgets: &[Vec<u64>]) -> (Vec<ChosenFor<T>>, Vec<Turn>) {
        let n_chosen: u64 = budgets.iter().flatten().sum();
        assert!(n_chosen <= self.at_most, "{n_chosen} chosen of reservoirs for {}", self.at_most);
        take_turns(self.reservoirs, budgets)
    }
}

impl Narrowing {
    /// A look costs as much as there are parts.
    pub fn of_parts(n_parts: usize) -> Self {
        let least = (n_parts as u64).max(64);
        Narrowing { least, n_offered: 0, next: least }
    }

    /// Whether it is, with one candidate more. Looks are the rarer the more have come: what is held for nothing meanwhile
    /// remains a small share.
    pub fn is_due(&mut self) -> bool {
        self.n_offered += 1;
        let is_due = self.n_offered >= self.next;
        if is_due {
            self.next = self.n_offered + (self.n_offered / 256).min(1024).max(self.least);
        }
        is_due
    }
}

/// Offers an item to the reservoirs of all targets, with its key for each; what none of them holds any more goes to `out`.
pub(super) fn offer_to_targets<T>(
    reservoirs: &mut [Reservoir<Arc<T>>],
    offset: i64,
    keys: &[f64],
    item: T,
    mut out: impl FnMut(T),
) {
    let might_hold = |(reservoir, key): (&Reservoir<Arc<T>>, &f64)| {
        assert!(!key.is_nan(), "the key of offset {offset} is not a number");
        reservoir.might_hold(*key)
    };
    // Most are not held by any: they need not be shared.
    if !reservoirs.iter().zip(keys).any(might_hold) {
        return out(item);
    }
    let item = Arc::new(item);
    for (reservoir, key) in reservoirs.iter_mut().zip(keys) {
        let beaten = reservoir.offer(offset, *key, item.clone());
        beaten.and_then(Arc::into_inner).into_iter().for_each(&mut out);
    }
    Arc::into_inner(item).into_iter().for_each(&mut out);
}

/// Targets choose in turn, pool by pool, from reservoirs that hold enough for all up to each.
pub(super) fn take_turns<T>(
    reservoirs: Vec<Reservoir<Arc<T>>>,
    budgets: &[Vec<u64>],
) -> (Vec<ChosenFor<T>>, Vec<Turn>) {
    let (mut chosen, mut turns) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    let counts = budgets.iter().enumerate();
    let counts = counts.flat_map(|(pool, of_targets)| of_targets.iter().enumerate().map(move |(t, n)| (pool, t, *n)));
    for (reservoir, (pool, target, count)) in reservoirs.into_iter().zip(counts) {
        let mut left = reservoir.into_ranked().into_iter().filter(|candidate| !taken.contains(&candidate.offset));
        let best: Vec<Chosen<Arc<T>>> = left.by_ref().take(count as usize).collect();
        let first_out = left.next().filter(|_| count > 0).map(|first_out| (first_out.offset, first_out.key));
        drop(left);
        let turn = Turn {
            pool,
            target,
            count,
            threshold: first_out.map(|(_, key)| key),
            lowest: best.last().map(|worst| worst.key),
            first_out: first_out.map(|(offset, _)| offset),
            taken_after: None,
        };
        add_turn(&mut turns, turn, |offset| best.iter().any(|best| best.offset == offset));
        taken.extend(best.iter().map(|best| best.offset));
        let of_turn = |Chosen { offset, key, item }| ChosenFor { offset, pool, target, key, item };
        chosen.extend(best.into_iter().map(of_turn));
    }
    chosen.sort_unstable_by_key(|chosen| chosen.offset);
    let only = |ChosenFor { offset, pool, target, key, item }| {
        let item = Arc::into_inner(item).expect("all reservoirs are gone");
        ChosenFor { offset, pool, target, key, item }
    };
    (chosen.into_iter().map(only).collect(), turns)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::features::Featuriser;
    use crate::record::TopicPartition;
    use crate::score::{Model, NgramCounts, Side, Target};
    use crate::select::{BudgetRounding, Noise, Quotas, select_within_budgets};

    const N_TARGETS: usize = 3;
    const SOURCES: [&str; 4] = ["", "a", "b", "c"];

    fn division(sources: &[f64], targets: &[f64]) -> Arc<Division> {
        let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
        let featuriser = Featuriser { buckets: 2, ..Featuriser::default() };
        let one = Model::of_one_target(featuriser, side(), side()).unwrap();
        let total: f64 = targets.iter().sum();
        let target =
            |(i, share): (usize, &f64)| Target { name: format!("t{i}"), proportion: share / total, side: side() };
        let model = Model { targets: targets.iter().enumerate().map(target).collect(), ..one };
        let total: f64 = sources.iter().sum();
        let named = SOURCES[1..].iter().zip(&sources[1..]);
        let sources: BTreeMap<_, _> = named.map(|(name, share)| ((*name).to_owned(), share / total)).collect();
        Arc::new(Division::of(&Quotas { sources, ..Quotas::default() }, &model))
    }

    #[derive(Debug, Clone)]
    struct Candidate {
        pool: usize,
        keys: [f64; N_TARGETS],
    }

    /// Keys are few, so that many are equal.
    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let key = || prop_oneof![(-5i32..5).prop_map(f64::from), -5.0f64..5.0];
        let one = (0usize..4, [key(), key(), key()]).prop_map(|(pool, keys)| Candidate { pool, keys });
        proptest::collection::vec(one, 0..400)
    }

    /// What is held of all that were offered in this order; the offsets that were given back are not chosen any more.
    fn offered(
        division: &Arc<Division>,
        at_most: u64,
        candidates: &[Candidate],
        order: &[usize],
    ) -> (BudgetedReservoirs<usize>, usize) {
        let mut reservoirs = BudgetedReservoirs::new(division.clone(), at_most);
        let mut held = 0usize;
        for &i in order {
            held += 1;
            let Candidate { pool, keys } = &candidates[i];
            reservoirs.offer(*pool, i as i64, |target| keys[target], i, |_| held -= 1);
        }
        (reservoirs, held)
    }

    proptest! {
        /// Whatever the order, the division and the number: as if the whole window had been there at once.
        #[test]
        fn what_is_kept_is_enough(
            candidates in candidates(),
            (sources, targets) in (proptest::collection::vec(0.01f64..1.0, 4), proptest::collection::vec(0.01f64..1.0, 1..=N_TARGETS)),
            has_rest in any::<bool>(),
            at_most in 0u64..450,
            share_chosen in 0.0f64..=1.0,
            from in 0i64..1 << 40,
            seed in any::<u64>(),
        ) {
            let mut sources = sources;
            if !has_rest {
                sources[0] = 0.0;
            }
            let division = division(&sources, &targets);
            let count = (at_most as f64 * share_chosen) as u64;
            let mut order: Vec<usize> = (0..candidates.len()).collect();
            order.sort_by_key(|i| (*i as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23));
            let (reservoirs, held) = offered(&division, at_most, &candidates, &order);

            let mut pools = vec![Vec::new(); 4];
            candidates.iter().enumerate().for_each(|(i, candidate)| pools[candidate.pool].push(i as u32));
            let sizes: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
            prop_assert_eq!(reservoirs.sizes(), &sizes[..]);
            let noise = Noise::new(seed, &TopicPartition::new("t", 0));
            let budgets = division.budgets(count, &sizes, BudgetRounding::Random { noise: &noise, from });
            let expected = select_within_budgets(pools, &budgets, |i, target| candidates[i as usize].keys[target]);
            let (chosen, turns) = reservoirs.select(&budgets);

            prop_assert_eq!(chosen.len() as u64, count.min(candidates.len() as u64), "as many as with one target");
            prop_assert_eq!(&turns, &expected.turns);
            let found: Vec<_> = chosen.iter().map(|c| (c.item as u32, c.target, c.key)).collect();
            prop_assert_eq!(found, expected.picks.iter().map(|p| (p.document, p.target, p.key)).collect::<Vec<_>>());
            prop_assert!(chosen.iter().all(|c| c.pool == candidates[c.item].pool && c.offset == c.item as i64));
            // At the worst every reservoir holds others.
            let most: u64 = sizes.iter().map(|size| (*size).min(targets.len() as u64 * (at_most + 1))).sum();
            prop_assert!(held as u64 <= most, "{held} held, {most} at the most");
        }
    }

    /// Pools with candidates enough hold about what they will give, not what they might have given alone.
    #[test]
    fn no_more_is_held_than_can_still_be_chosen() {
        let candidate =
            |i: usize| Candidate { pool: i % 4, keys: [0, 1, 2].map(|t| ((i * 7919 + t * 104_729) % 10_007) as f64) };
        let candidates: Vec<_> = (0..8_000).map(candidate).collect();
        let order: Vec<usize> = (0..candidates.len()).collect();
        let (_, held) = offered(&division(&[0.25; 4], &[1.0]), 800, &candidates, &order);
        assert!((800..=4 * 203).contains(&held), "{held} held where 800 can be chosen");
        // The first of two targets chooses half, the second from as many more.
        let (_, held) = offered(&division(&[0.25; 4], &[0.5, 0.5]), 800, &candidates, &order);
        assert!((800..=4 * (104 + 203)).contains(&held), "{held} held for two targets");
        // A pool that stays empty leaves its share to the others.
        let three: Vec<usize> = order.into_iter().filter(|i| i % 4 != 2).collect();
        let (reservoirs, held) = offered(&division(&[0.25; 4], &[1.0]), 800, &candidates, &three);
        assert!((800..=3 * 269).contains(&held), "{held} held");
        let budgets = reservoirs.division().budgets(800, reservoirs.sizes(), BudgetRounding::Nearest);
        assert_eq!(reservoirs.select(&budgets).0.len(), 800);
    }
}
