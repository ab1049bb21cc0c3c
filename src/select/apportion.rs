//! Divides a number of documents in proportion to shares, as far as there are documents. Pure.

/// How parts become whole numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rounding {
    /// Largest remainders: as near as can be, the first of equals first. For one selection, whose rounding nobody notices.
    Nearest,
    /// By a number in (0, 1), drawn at random: each part is its due on average, and never a whole document away from it
    /// (systematic sampling; Madow & Madow 1944). For many small selections, of which a small part must not always go empty.
    Random(f64),
}

/// `total` in whole parts that are in proportion to `shares` as nearly as can be, none above what is `available`; what
/// the full parts leave goes to the others by their shares, and at last to those whose share is 0. The parts sum to
/// `total`, or to all that is available.
///
/// # Panics
/// If the two have different lengths.
pub fn apportion(total: u64, shares: &[f64], available: &[u64], rounding: Rounding) -> Vec<u64> {
    let Filled { mut parts, left, open } = fill(total, shares, available);
    match rounding {
        Rounding::Nearest => nearest(left, &open, &mut parts),
        Rounding::Random(uniform) => at_random(left, &open, available, uniform, &mut parts),
    }
    parts
}

/// The same before it is rounded: what each part is on average with [`Rounding::Random`].
pub fn dues(total: u64, shares: &[f64], available: &[u64]) -> Vec<f64> {
    let Filled { parts, left, open } = fill(total, shares, available);
    let mut dues: Vec<f64> = parts.iter().map(|&part| part as f64).collect();
    open.iter().for_each(|&(i, share)| dues[i] = share * left as f64);
    dues
}

/// The parts that are full, and what is left for the others.
struct Filled {
    /// Full, or still 0.
    parts: Vec<u64>,
    left: u64,
    /// The others with their shares of what is left, which sum to 1; none where nothing is left.
    open: Vec<(usize, f64)>,
}

fn fill(total: u64, shares: &[f64], available: &[u64]) -> Filled {
    assert_eq!(shares.len(), available.len(), "every part has a share");
    let mut parts = vec![0; shares.len()];
    let mut left = total.min(available.iter().sum());
    let mut open: Vec<usize> = (0..shares.len()).filter(|&i| available[i] > 0).collect();
    while left > 0 {
        let sum: f64 = open.iter().map(|&i| shares[i]).sum();
        let share = |i: usize| {
            if sum > 0.0 {
                shares[i] / sum
            } else {
                available[i] as f64 / open.iter().map(|&j| available[j] as f64).sum::<f64>()
            }
        };
        let (full, rest): (Vec<_>, Vec<_>) = open.iter().partition(|&&i| share(i) * left as f64 >= available[i] as f64);
        if full.is_empty() {
            return Filled { parts, left, open: rest.into_iter().map(|i| (i, share(i))).collect() };
        }
        for i in full {
            parts[i] = available[i].min(left);
            left -= parts[i];
        }
        open = rest;
    }
    Filled { parts, left, open: Vec::new() }
}

/// Each gets the whole part of its due, and those with the largest rest one more, the first of equals first.
fn nearest(total: u64, open: &[(usize, f64)], parts: &mut [u64]) {
    let due = |share: f64| share * total as f64;
    let mut left = total;
    for &(i, share) in open {
        // Not more than there is, should the shares round up.
        parts[i] = (due(share) as u64).min(left);
        left -= parts[i];
    }
    let mut by_rest = open.to_vec();
    by_rest.sort_by(|a, b| due(b.1).fract().total_cmp(&due(a.1).fract()));
    for &(i, _) in by_rest.iter().cycle().take(left as usize) {
        parts[i] += 1;
    }
}

/// The dues lie one after the other on a line, on which a document is given out at every whole number beyond `1 - uniform`.
fn at_random(total: u64, open: &[(usize, f64)], available: &[u64], uniform: f64, parts: &mut [u64]) {
    let (mut given, mut sum) = (0, 0.0);
    for (n, &(i, share)) in open.iter().enumerate() {
        sum += share;
        let up_to = if n + 1 == open.len() { total } else { ((sum * total as f64 + uniform) as u64).min(total) };
        // Not more than there is, should the sum be rounded.
        parts[i] = up_to.saturating_sub(given).min(available[i]);
        given += parts[i];
    }
    for &(i, _) in open {
        let room = (total - given).min(available[i] - parts[i]);
        parts[i] += room;
        given += room;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts() -> impl Strategy<Value = Vec<(f64, u64)>> {
        proptest::collection::vec((prop_oneof![Just(0.0), 0.01f64..1.0], 0u64..500), 1..8)
    }

    fn rounding() -> impl Strategy<Value = Rounding> {
        prop_oneof![Just(Rounding::Nearest), (0.0f64..1.0).prop_map(Rounding::Random)]
    }

    proptest! {
        #[test]
        fn parts_sum_up_and_fit(parts in parts(), total in 0u64..3_000, rounding in rounding()) {
            let (shares, available): (Vec<f64>, Vec<u64>) = parts.into_iter().unzip();
            let given = apportion(total, &shares, &available, rounding);
            prop_assert_eq!(given.iter().sum::<u64>(), total.min(available.iter().sum()));
            prop_assert!(given.iter().zip(&available).all(|(g, a)| g <= a), "{:?} of {:?}", given, available);
            let dues = dues(total, &shares, &available);
            prop_assert!(given.iter().zip(&dues).all(|(&g, due)| (g as f64 - due).abs() < 1.0 + 1e-9), "{given:?}: {dues:?}");
        }

        #[test]
        fn enough_for_all_gives_every_part_its_share(shares in proptest::collection::vec(0.01f64..1.0, 1..8), total in 0u64..100_000, rounding in rounding()) {
            let given = apportion(total, &shares, &vec![total; shares.len()], rounding);
            let sum: f64 = shares.iter().sum();
            for (given, share) in given.iter().zip(&shares) {
                prop_assert!((*given as f64 - total as f64 * share / sum).abs() <= 1.0, "{} of {}", given, total);
            }
        }

        /// Averaged over evenly spread numbers, each part is its due.
        #[test]
        fn at_random_each_part_is_its_due_on_average(parts in parts(), total in 0u64..50) {
            const DRAWS: u32 = 1_000;
            let (shares, available): (Vec<f64>, Vec<u64>) = parts.into_iter().unzip();
            let dues = dues(total, &shares, &available);
            let mut sums = vec![0u64; shares.len()];
            for draw in 0..DRAWS {
                let rounding = Rounding::Random((f64::from(draw) + 0.5) / f64::from(DRAWS));
                sums.iter_mut().zip(apportion(total, &shares, &available, rounding)).for_each(|(sum, part)| *sum += part);
            }
            for (sum, due) in sums.iter().zip(&dues) {
                let mean = *sum as f64 / f64::from(DRAWS);
                prop_assert!((mean - due).abs() <= 2.0 / f64::from(DRAWS) + 1e-9, "{mean} instead of {due}");
            }
        }

        /// What a pool can get at most is known before its window is complete: others only grow.
        #[test]
        fn a_part_gets_no_more_when_others_have_more(parts in parts(), grown in proptest::collection::vec(0u64..300, 8), total in 0u64..1_000, less in 0u64..500) {
            let (shares, available): (Vec<f64>, Vec<u64>) = parts.into_iter().unzip();
            for part in 0..shares.len() {
                let mut before = available.clone();
                before[part] = 1 << 62;
                let after: Vec<u64> = available.iter().zip(&grown).enumerate().map(|(i, (a, g))| if i == part { *a } else { a + g }).collect();
                let most = dues(total, &shares, &before)[part];
                let due = dues(total.saturating_sub(less), &shares, &after)[part];
                prop_assert!(due <= most + 1e-9, "{due} after {most}");
            }
        }
    }

    #[test]
    fn what_one_part_cannot_fill_goes_to_the_others() {
        for rounding in [Rounding::Nearest, Rounding::Random(0.3), Rounding::Random(0.7)] {
            let apportion = |total, shares: &[f64], available: &[u64]| apportion(total, shares, available, rounding);
            assert_eq!(apportion(10, &[0.6, 0.4], &[100, 100]), [6, 4]);
            assert_eq!(apportion(10, &[0.6, 0.4], &[2, 100]), [2, 8]);
            assert_eq!(apportion(10, &[1.0, 0.0], &[2, 100]), [2, 8]);
            assert_eq!(apportion(10, &[1.0, 0.0], &[100, 100]), [10, 0]);
            assert_eq!(apportion(10, &[0.5, 0.5], &[2, 3]), [2, 3]);
            assert_eq!(apportion(0, &[1.0], &[9]), [0]);
        }
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0], &[9, 9, 9], Rounding::Nearest), [4, 3, 3]);
        assert_eq!(apportion(10, &[1.0, 1.0, 1.0], &[9, 9, 9], Rounding::Random(0.5)), [3, 4, 3]);
    }
}
