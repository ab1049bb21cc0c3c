//! Divides a selection among sources and targets, and fills every part with its best documents. Pure.
//!
//! Sources with a share of their own are pools; all other documents together are one more. A pool's documents are chosen
//! by the targets in turn, each from what the targets before it have left, so that no document is chosen twice
//! (`separate_targets` of the published package). What one part cannot fill goes to the others: exactly the requested
//! number is selected whenever so many documents may be chosen.

use std::cmp::Ordering;

use super::Noise;
use super::apportion::{Rounding, apportion};
use super::chances::add_turn;

/// How budgets become whole numbers.
#[derive(Debug, Clone, Copy)]
pub enum BudgetRounding<'a> {
    /// As near as can be, over all pools together: for files, which are selected from once.
    Nearest,
    /// At random, by the noise of the window from this offset: one of many, each of which a small part must not go empty.
    Random { noise: &'a Noise, from: i64 },
}

impl BudgetRounding<'_> {
    /// Of the shares of the pools.
    pub fn of_pools(self) -> Rounding {
        match self {
            BudgetRounding::Nearest => Rounding::Nearest,
            BudgetRounding::Random { noise, from } => Rounding::Random(noise.pool_rounding(from)),
        }
    }
}

/// One target's choice from one pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    pub pool: usize,
    pub target: usize,
    pub count: u64,
    /// The highest key that it did not choose; `None` when nothing was left, or it had nothing to choose.
    pub threshold: Option<f64>,
    /// The lowest key that it did choose; `None` when it chose nothing.
    pub lowest: Option<f64>,
    /// The document whose key the threshold is, by its number or offset.
    pub first_out: Option<i64>,
    /// How many turns later in the same pool that one was chosen; `None`: never.
    pub taken_after: Option<usize>,
}

/// A chosen document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pick {
    /// Its number among all documents.
    pub document: u32,
    /// The target that chose it, and the key by which it did.
    pub target: usize,
    pub key: f64,
}

/// Chosen documents by number, and the turns in which they were chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BudgetedSelection {
    pub picks: Vec<Pick>,
    pub turns: Vec<Turn>,
}

/// How many documents every target chooses from every pool: `count` in all, or all that are `available`.
pub fn budgets(
    count: u64,
    pool_shares: &[f64],
    target_shares: &[f64],
    available: &[u64],
    rounding: BudgetRounding<'_>,
) -> Vec<Vec<u64>> {
    let pools = apportion(count, pool_shares, available, rounding.of_pools());
    // A document may be chosen for any target, so no target falls short before the pool is empty.
    let among_targets =
        |budget: u64, rounding| apportion(budget, target_shares, &vec![budget; target_shares.len()], rounding);
    match rounding {
        BudgetRounding::Nearest => {
            let of_targets = among_targets(pools.iter().sum(), Rounding::Nearest);
            split_among_targets(&pools, &of_targets)
        }
        BudgetRounding::Random { noise, from } => {
            let at_random = |pool: usize| Rounding::Random(noise.target_rounding(from, pool));
            pools.into_iter().enumerate().map(|(pool, budget)| among_targets(budget, at_random(pool))).collect()
        }
    }
}

/// Every budget in parts for the targets, which come to `of_targets` in all: what rounding denies a target in one part it gets in
/// the next.
pub(super) fn split_among_targets(budgets: &[u64], of_targets: &[u64]) -> Vec<Vec<u64>> {
    let total: u64 = budgets.iter().sum();
    let mut left = of_targets.to_vec();
    let mut done = 0;
    let of_budget = |&budget: &u64| {
        done += budget;
        let behind = |(whole, left): (&u64, &u64)| {
            let due = *whole as f64 * done as f64 / total.max(1) as f64;
            (due - (whole - left) as f64).max(0.0)
        };
        let behind: Vec<f64> = of_targets.iter().zip(&left).map(behind).collect();
        let parts = apportion(budget, &behind, &left, Rounding::Nearest);
        left.iter_mut().zip(&parts).for_each(|(left, part)| *left -= part);
        parts
    };
    budgets.iter().map(of_budget).collect()
}

/// The same, begun at the budget that the document at this part (`uniform`, in (0, 1)) of all belongs to, and round to
/// it: what begins at the first budget gives the same target the same budgets of a document in every selection.
pub(super) fn split_among_targets_from(uniform: f64, budgets: &[u64], of_targets: &[u64]) -> Vec<Vec<u64>> {
    let total: u64 = budgets.iter().sum();
    let document = (uniform * total as f64) as u64;
    let mut up_to = 0;
    let holds_it = |budget: &u64| {
        up_to += budget;
        up_to > document
    };
    let first = budgets.iter().position(holds_it).unwrap_or(0);
    let (before, after) = budgets.split_at(first);
    let mut parts = split_among_targets(&[after, before].concat(), of_targets);
    parts.rotate_right(first);
    parts
}

/// In: the documents that may be chosen, by pool; how many each target chooses from each pool; the key of a document for a
/// target. Out: the documents that are selected.
///
/// The best keys are chosen; of equal ones the document with the lower number.
pub fn select_within_budgets(
    mut pools: Vec<Vec<u32>>,
    budgets: &[Vec<u64>],
    key: impl Fn(u32, usize) -> f64,
) -> BudgetedSelection {
    let mut selection = BudgetedSelection::default();
    for (pool, (documents, of_targets)) in pools.iter_mut().zip(budgets).enumerate() {
        for (target, &count) in of_targets.iter().enumerate() {
            selection.take_turn(pool, target, documents, count, |document| key(document, target));
        }
    }
    selection.picks.sort_unstable_by_key(|pick| pick.document);
    selection
}

impl BudgetedSelection {
    /// One target's choice: moves the `count` best of `documents` to the picks, which are in no order then.
    pub fn take_turn(
        &mut self,
        pool: usize,
        target: usize,
        documents: &mut Vec<u32>,
        count: u64,
        key: impl Fn(u32) -> f64,
    ) {
        let n_before = self.picks.len();
        let first_out = take_best(documents, count as usize, key, |document, key| {
            self.picks.push(Pick { document, target, key });
        });
        let chosen = &self.picks[n_before..];
        let turn = Turn {
            pool,
            target,
            count,
            threshold: first_out.map(|(_, key)| key),
            lowest: chosen.iter().map(|pick| pick.key).reduce(f64::min),
            first_out: first_out.map(|(document, _)| document.into()),
            taken_after: None,
        };
        add_turn(&mut self.turns, turn, |document| chosen.iter().any(|pick| i64::from(pick.document) == document));
    }

    /// The turns of one pool, where they are in the order of the pools.
    pub fn turns_of(&self, pool: usize) -> &[Turn] {
        let turns = &self.turns[self.turns.partition_point(|turn| turn.pool < pool)..];
        &turns[..turns.partition_point(|turn| turn.pool == pool)]
    }
}

/// Spreads the budgets of the targets evenly over the documents of a pool, which come in windows.
#[derive(Debug, Clone)]
pub struct Schedule {
    documents: u64,
    budgets: Vec<u64>,
    /// What is due is rounded down after this was added, as a fraction below 1; `None`: it is rounded up.
    phase: Option<(u64, u64)>,
    /// Documents of the windows before.
    seen: u64,
    taken: Vec<u64>,
}

impl Schedule {
    /// # Panics
    /// If the budgets come to more than there are documents.
    pub fn new(documents: u64, budgets: Vec<u64>) -> Self {
        assert!(budgets.iter().sum::<u64>() <= documents, "more is to be chosen than there is");
        let taken = vec![0; budgets.len()];
        Schedule { documents, budgets, phase: None, seen: 0, taken }
    }

    /// After s of d documents ⌊s · budget / d + phase⌋ are chosen. Schedules of other phases round at other documents.
    ///
    /// # Panics
    /// If the budgets come to more than there are documents, or the phase is not from 0 to below 1.
    pub fn staggered(documents: u64, budgets: Vec<u64>, phase: (u64, u64)) -> Self {
        assert!(phase.0 < phase.1, "a phase of {} / {}", phase.0, phase.1);
        Schedule { phase: Some(phase), ..Schedule::new(documents, budgets) }
    }

    /// How many each target chooses in round `round` of `rounds`, counted from 1, of a window of so many documents: never
    /// more than are left of it. After the last window the budgets are spent.
    pub fn take(&mut self, window: u64, round: u32, rounds: u32) -> Vec<u64> {
        let (round, rounds) = (u128::from(round), u128::from(rounds));
        let whole = u128::from(self.documents) * rounds;
        let seen = u128::from(self.seen) * rounds + u128::from(window) * round;
        if round == rounds {
            self.seen += window;
        }
        if whole == 0 {
            return vec![0; self.budgets.len()];
        }
        let due = |budget: u64| u128::from(budget) * seen;
        let all_due = due(self.budgets.iter().sum());
        // Whichever way it is rounded, always the same: so no window owes more than it has, and after the last nothing is left.
        let total = match self.phase {
            None => all_due.div_ceil(whole),
            Some((part, of)) => (all_due * u128::from(of) + whole * u128::from(part)) / (whole * u128::from(of)),
        } as u64;
        let count = total - self.taken.iter().sum::<u64>();
        let left: Vec<u64> = self.budgets.iter().zip(&self.taken).map(|(budget, taken)| budget - taken).collect();
        let behind = |(budget, taken): (&u64, &u64)| (due(*budget) as f64 / whole as f64 - *taken as f64).max(0.0);
        let behind: Vec<f64> = self.budgets.iter().zip(&self.taken).map(behind).collect();
        let counts = apportion(count, &behind, &left, Rounding::Nearest);
        self.taken.iter_mut().zip(&counts).for_each(|(taken, count)| *taken += count);
        counts
    }
}

/// Removes the `count` best of `documents` and gives the best that is left, with its key. There may be very many
/// documents: keys alone are held, and are made again.
fn take_best(
    documents: &mut Vec<u32>,
    count: usize,
    key: impl Fn(u32) -> f64,
    mut taken: impl FnMut(u32, f64),
) -> Option<(u32, f64)> {
    if count == 0 {
        return None;
    }
    if count >= documents.len() {
        documents.drain(..).for_each(|document| taken(document, key(document)));
        return None;
    }
    let mut keys: Vec<f64> = documents.iter().map(|&document| key(document)).collect();
    let threshold = *keys.select_nth_unstable_by(count, |a, b| b.total_cmp(a)).1;
    drop(keys);
    let (mut n_taken, mut equal) = (0, Vec::new());
    documents.retain(|&document| {
        let key = key(document);
        let order = key.total_cmp(&threshold);
        match order {
            Ordering::Greater => {
                n_taken += 1;
                taken(document, key);
            }
            Ordering::Equal => equal.push(document),
            Ordering::Less => {}
        }
        order.is_lt()
    });
    equal.sort_unstable();
    let left = equal.split_off(count - n_taken);
    equal.into_iter().for_each(|document| taken(document, threshold));
    // At least that whose key is the threshold.
    let first_out = left[0];
    documents.extend(left);
    Some((first_out, threshold))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As files have it: the nearest whole numbers.
    fn select(
        count: u64,
        pools: Vec<Vec<u32>>,
        pool_shares: &[f64],
        target_shares: &[f64],
        key: impl Fn(u32, usize) -> f64,
    ) -> BudgetedSelection {
        let available: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
        let budgets = budgets(count, pool_shares, target_shares, &available, BudgetRounding::Nearest);
        select_within_budgets(pools, &budgets, key)
    }

    proptest! {
        #[test]
        fn one_pool_and_target_is_a_full_sort(keys in proptest::collection::vec(-5i32..5, 0..80), count in 0u64..100, rotate in 0usize..80) {
            let mut documents: Vec<u32> = (0..keys.len() as u32).collect();
            let mut sorted = documents.clone();
            sorted.sort_by_key(|&d| (-keys[d as usize], d));
            let threshold = if count == 0 { None } else { sorted.get(count as usize).map(|&d| f64::from(keys[d as usize])) };
            sorted.truncate(count as usize);
            sorted.sort_unstable();
            // The order in which documents come does not matter.
            let middle = rotate.min(documents.len());
            documents.rotate_left(middle);
            let selection = select(count, vec![documents], &[1.0], &[1.0], |d, _| f64::from(keys[d as usize]));
            prop_assert_eq!(selection.picks.iter().map(|p| p.document).collect::<Vec<_>>(), sorted);
            prop_assert_eq!(selection.turns[0].threshold, threshold);
        }

        #[test]
        fn a_schedule_spends_its_budgets_evenly(
            windows in proptest::collection::vec(0u64..300, 1..20),
            shares in proptest::collection::vec(0.0f64..1.0, 1..4),
            share in 0.0f64..=1.0,
            rounds in 1u32..4,
            phase in proptest::option::of((0u64..100, 100u64..200)),
        ) {
            let documents: u64 = windows.iter().sum();
            let budget = (documents as f64 * share) as u64;
            let budgets = apportion(budget, &shares, &vec![budget; shares.len()], Rounding::Nearest);
            let mut schedule = match phase {
                None => Schedule::new(documents, budgets.clone()),
                Some(phase) => Schedule::staggered(documents, budgets.clone(), phase),
            };
            let (mut taken, mut seen) = (vec![0; shares.len()], 0);
            for window in windows {
                let mut left = window;
                for round in 1..=rounds {
                    let counts = schedule.take(window, round, rounds);
                    let n: u64 = counts.iter().sum();
                    prop_assert!(n <= left, "{} of {}", n, left);
                    left -= n;
                    taken.iter_mut().zip(counts).for_each(|(taken, count)| *taken += count);
                }
                seen += window;
                for (taken, budget) in taken.iter().zip(&budgets) {
                    let due = *budget as f64 * seen as f64 / documents.max(1) as f64;
                    prop_assert!((*taken as f64 - due).abs() <= 2.0, "{} of {} after {}", taken, due, seen);
                }
            }
            prop_assert_eq!(taken, budgets);
        }

        #[test]
        fn budgets_are_kept_and_nothing_is_chosen_twice(
            keys in proptest::collection::vec((0usize..3, -9f64..9.0, -9f64..9.0), 0..200),
            count in 0u64..250,
            share in 0.05f64..0.95,
        ) {
            let mut pools = vec![Vec::new(); 3];
            keys.iter().enumerate().for_each(|(d, (pool, ..))| pools[*pool].push(d as u32));
            let sizes: Vec<u64> = pools.iter().map(|p| p.len() as u64).collect();
            let key = |d: u32, target: usize| if target == 0 { keys[d as usize].1 } else { keys[d as usize].2 };
            let shares = [0.5, 0.3, 0.2];
            let selection = select(count, pools, &shares, &[share, 1.0 - share], key);

            let documents: Vec<u32> = selection.picks.iter().map(|p| p.document).collect();
            prop_assert!(documents.is_sorted_by(|a, b| a < b), "a document was chosen twice");
            prop_assert_eq!(documents.len() as u64, count.min(keys.len() as u64));
            let budgets = apportion(count, &shares, &sizes, Rounding::Nearest);
            for (pool, budget) in budgets.into_iter().enumerate() {
                let of_pool = |p: &&Pick| keys[p.document as usize].0 == pool;
                let chosen = selection.picks.iter().filter(of_pool).count() as u64;
                prop_assert_eq!(chosen, budget);
                let first = selection.picks.iter().filter(of_pool).filter(|p| p.target == 0).count() as f64;
                // Half a document of this pool, of those before it and of all.
                prop_assert!((first - chosen as f64 * share).abs() <= 1.5 + 1e-9, "{} of {}", first, chosen);
            }
            // A document is chosen exactly if it beats the threshold of some turn. What that would be if it were not
            // there is another question: see `chances`.
            for (d, (pool, ..)) in keys.iter().enumerate() {
                let beats = selection.turns.iter().any(|t| {
                    t.pool == *pool && t.count > 0 && t.threshold.is_none_or(|threshold| key(d as u32, t.target) > threshold)
                });
                prop_assert_eq!(beats, documents.binary_search(&(d as u32)).is_ok());
            }
        }

        /// However many pools there are and however small they are.
        #[test]
        fn targets_get_the_nearest_whole_numbers_over_all_pools(
            pools in proptest::collection::vec((0.001f64..1.0, 0u64..40), 1..60),
            shares in proptest::collection::vec(0.01f64..1.0, 1..5),
            count in 0u64..600,
        ) {
            let (pool_shares, available): (Vec<f64>, Vec<u64>) = pools.into_iter().unzip();
            let budgets = budgets(count, &pool_shares, &shares, &available, BudgetRounding::Nearest);
            let of_pools: Vec<u64> = budgets.iter().map(|of_targets| of_targets.iter().sum()).collect();
            prop_assert_eq!(&of_pools, &apportion(count, &pool_shares, &available, Rounding::Nearest));
            let total: u64 = of_pools.iter().sum();
            let of_targets: Vec<u64> =
                (0..shares.len()).map(|target| budgets.iter().map(|of_pool| of_pool[target]).sum()).collect();
            prop_assert_eq!(of_targets, apportion(total, &shares, &vec![total; shares.len()], Rounding::Nearest));
        }
    }

    /// Half a document of each pool is not always the first target's.
    #[test]
    fn no_target_goes_without_where_pools_are_small() {
        let of_targets = |count: u64, n_pools: usize| {
            let nearest = BudgetRounding::Nearest;
            let budgets = budgets(count, &vec![1.0; n_pools], &[0.5, 0.5], &vec![100; n_pools], nearest);
            [0, 1].map(|target| budgets.iter().map(|of_pool| of_pool[target]).sum::<u64>())
        };
        assert_eq!([of_targets(100, 20), of_targets(20, 20), of_targets(60, 20)], [[50, 50], [10, 10], [30, 30]]);
    }
}
