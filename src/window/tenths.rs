//! Which tenth of all weights a weight belongs to.

/// The tenth that a weight belongs to: as many tenths of all lie below it.
pub(super) struct Tenths {
    /// The weights above which the tenths after the lowest begin.
    last_below: Vec<f64>,
}

impl Tenths {
    pub fn of(mut log_weights: Vec<f64>) -> Self {
        let n = log_weights.len();
        let mut from = 0;
        // As for quantiles: what stands from a rank on is at least as large.
        let mut at_rank = |rank: usize| {
            let (_, weight, _) = log_weights[from..].select_nth_unstable_by(rank - from, f64::total_cmp);
            let weight = *weight;
            from = rank;
            weight
        };
        // Tenth t begins where t · n / 10 lie below.
        let last_below = (1..10).filter(|_| n > 0).map(|t: usize| at_rank((t * n).div_ceil(10) - 1)).collect();
        Tenths { last_below }
    }

    pub fn of_weight(&self, log_weight: f64) -> u8 {
        self.last_below.partition_point(|last| last.total_cmp(&log_weight).is_lt()) as u8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tenth_is_how_many_tenths_lie_below(weights in proptest::collection::vec(prop_oneof![-3.0f64..3.0, (-3i32..3).prop_map(f64::from)], 1..60)) {
            let tenths = Tenths::of(weights.clone());
            for weight in &weights {
                let below = weights.iter().filter(|other| other.total_cmp(weight).is_lt()).count();
                prop_assert_eq!(usize::from(tenths.of_weight(*weight)), 10 * below / weights.len());
            }
        }
    }
}
