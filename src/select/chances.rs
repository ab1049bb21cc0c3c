//! Inclusion probabilities where several targets compete for the documents of a pool. Pure.
//!
//! The probability of a selected document is its chance of being selected again when its own noise is drawn anew and
//! that of all others stays (Duffield, Lund and Thorup 2007): the sum of 1 / p over a selection is then right on
//! average. It is selected again exactly if for one of the targets its key is above the lowest one that this target
//! would choose without it, and all targets look at the same noise: so p is that of the most favourable of these keys.
//!
//! Without the document
//!
//! * the targets before its own choose what they chose: the lowest key that each chose;
//! * its own chooses in its place the first that it left out: the threshold;
//! * one after that chooses what it chose, unless the document that moved up is among that. Then it lacks one as well,
//!   and chooses the first that it left out: its threshold.

use super::{SelectorSettings, Turn};

/// Adds the next turn of a pool. `takes`: whether it chose a document.
pub(super) fn add_turn(turns: &mut Vec<Turn>, turn: Turn, takes: impl Fn(i64) -> bool) {
    let of_pool = turns.iter_mut().rev().take_while(|before| before.pool == turn.pool);
    for (before, after) in of_pool.zip(1..) {
        if before.taken_after.is_none() && before.first_out.is_some_and(&takes) {
            before.taken_after = Some(after);
        }
    }
    turns.push(turn);
}

/// Chance of a document to be chosen in the turns of its pool, in their order. `chosen_in`: the turn that chose it; one
/// that none chose is judged by all thresholds. `total_log_weight` is that for a target.
pub fn chance_in_turns(
    settings: &SelectorSettings,
    turns: &[Turn],
    chosen_in: Option<usize>,
    total_log_weight: impl Fn(usize) -> f64,
) -> f64 {
    keys_to_beat(turns, chosen_in)
        .map(|(target, key)| settings.inclusion_probability(total_log_weight(target), key))
        .fold(0.0, f64::max)
}

/// Of each turn that chose anything its target, and the key that the document had to beat; `None`: any would have done.
fn keys_to_beat(turns: &[Turn], chosen_in: Option<usize>) -> impl Iterator<Item = (usize, Option<f64>)> {
    // The last turn that would choose its first-out document as well, the first of them the document's own.
    let mut lacks_one = chosen_in;
    turns.iter().enumerate().filter(|(_, turn)| turn.count > 0).map(move |(number, turn)| {
        let Some(lacks) = lacks_one else { return (turn.target, turn.threshold) };
        let taken_in = turns[lacks].taken_after.map(|after| lacks + after);
        if chosen_in == Some(number) || taken_in == Some(number) {
            lacks_one = Some(number);
            return (turn.target, turn.threshold);
        }
        (turn.target, turn.lowest)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::TopicPartition;
    use crate::select::tests::settings;
    use crate::select::{BudgetedSelection, Noise, Pick, SelectorKind, select_within_budgets};

    proptest! {
        /// Keys are few, so that many are equal.
        #[test]
        fn keys_to_beat_are_what_is_chosen_without_the_document(
            documents in proptest::collection::vec((0usize..2, [-4i32..4, -4i32..4, -4i32..4]), 1..24),
            counts in proptest::collection::vec(proptest::collection::vec(0u64..4, 3), 2),
        ) {
            let key = |d: u32, target: usize| f64::from(documents[d as usize].1[target]);
            let without = |gone: Option<u32>| -> Vec<Vec<u32>> {
                let is_in = |d: &u32, pool: usize| documents[*d as usize].0 == pool && Some(*d) != gone;
                [0, 1].map(|pool| (0..documents.len() as u32).filter(|d| is_in(d, pool)).collect::<Vec<_>>()).to_vec()
            };
            let selection = select_within_budgets(without(None), &counts, key);
            for pick in &selection.picks {
                let pool = documents[pick.document as usize].0;
                let again = select_within_budgets(without(Some(pick.document)), &counts, key);
                let of_turn = |turn: &Turn| {
                    let chosen = again.picks.iter().filter(|p| {
                        documents[p.document as usize].0 == pool && p.target == turn.target
                    });
                    // It would have had a place if not all are filled.
                    (turn.target, turn.lowest.filter(|_| chosen.count() as u64 == turn.count))
                };
                let expected: Vec<_> =
                    again.turns_of(pool).iter().filter(|turn| turn.count > 0).map(of_turn).collect();
                let found: Vec<_> = keys_to_beat(selection.turns_of(pool), Some(pick.target)).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    /// The first target takes 0 and leaves 1 out, which the second takes; without 0 the first would take 1, and the
    /// second 2.
    #[test]
    fn what_moves_up_leaves_a_place_behind() {
        let keys = [[9.0, 8.0], [7.0, 6.0], [5.0, 4.0], [3.0, 2.0]];
        let select = |counts: [u64; 2]| {
            select_within_budgets(vec![vec![0, 1, 2, 3]], &[counts.to_vec()], |d, target| keys[d as usize][target])
        };
        let one_each = select([1, 1]);
        let to_beat = |selection: &BudgetedSelection, by| keys_to_beat(&selection.turns, by).collect::<Vec<_>>();
        assert_eq!(to_beat(&one_each, Some(0)), [(0, Some(7.0)), (1, Some(4.0))]);
        assert_eq!(to_beat(&one_each, Some(1)), [(0, Some(9.0)), (1, Some(4.0))]);
        // Of what nobody chose, the thresholds.
        assert_eq!(to_beat(&one_each, None), [(0, Some(7.0)), (1, Some(4.0))]);
        // Who has nothing to choose has no part in it; and where all are chosen any key will do.
        assert_eq!(to_beat(&select([0, 2]), Some(1)), [(1, Some(4.0))]);
        assert_eq!(to_beat(&select([2, 2]), Some(0)), [(0, Some(5.0)), (1, None)]);
    }

    /// 1 / p over a selection is the number of documents on average, also in small pools and for targets of unequal
    /// budgets; by the thresholds alone it would be too low.
    #[test]
    fn the_horvitz_thompson_total_of_several_targets_is_unbiased() {
        const SEEDS: u64 = 20_000;
        const DOCUMENTS: u32 = 20;
        let settings = settings(SelectorKind::ImportanceResampling);
        let weight = |d: u32, target: usize| {
            let target = target as u32;
            f64::from((7 * d + 5 * target + d * d * (target + 1)) % 5) - 2.0
        };
        for counts in [[[2, 2, 0], [2, 1, 0]], [[2, 1, 2], [1, 2, 1]]] {
            let counts = counts.map(|of_pool| of_pool.to_vec());
            let (mut sum, mut squares, mut by_thresholds) = (0.0, 0.0, 0.0);
            for seed in 0..SEEDS {
                let noise = Noise::new(seed, &TopicPartition::new("t", 0));
                let key = |d: u32, target: usize| settings.key(&noise, d.into(), weight(d, target));
                let pools = [0, 1].map(|pool| (0..DOCUMENTS).filter(|d| d % 2 == pool).collect::<Vec<u32>>()).to_vec();
                let selection = select_within_budgets(pools, &counts, key);
                let total = |chosen_in: fn(&Pick) -> Option<usize>| -> f64 {
                    let chance = |pick: &Pick| {
                        let turns = selection.turns_of(pick.document as usize % 2);
                        chance_in_turns(&settings, turns, chosen_in(pick), |target| weight(pick.document, target))
                    };
                    selection.picks.iter().map(|pick| chance(pick).recip()).sum()
                };
                let estimate = total(|pick| Some(pick.target));
                sum += estimate;
                squares += estimate * estimate;
                by_thresholds += total(|_| None);
            }
            let n = SEEDS as f64;
            let (mean, old_mean) = (sum / n, by_thresholds / n);
            let limit = 4.0 * ((squares / n - mean * mean) / n).sqrt();
            let bias = mean - f64::from(DOCUMENTS);
            assert!(bias.abs() < limit, "{counts:?}: {mean} of {DOCUMENTS} documents, {limit} could be chance");
            assert!(2.0 * limit < mean - old_mean, "{counts:?}: {old_mean} by the thresholds, {limit} could be chance");
        }
    }
}
