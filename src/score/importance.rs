//! The log importance weight of DSIR (Xie et al. 2023, "Data Selection for Language Models via Importance Resampling").

use crate::features::{BucketList, Featuriser, NgramHash, Scratch};

use super::{Model, Probabilities};

/// What scoring says of one text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    pub n_tokens: u32,
    /// By the tokenizer of the configuration, where budgets are in its tokens; `None` also of a text that it fails on.
    pub counted_tokens: Option<u32>,
    /// Σ over n-grams of log(p_target + ε) − log(p_raw + ε), in nats; 0 for a text without tokens.
    pub log_importance_weight: f64,
    /// What the document itself brings along, in nats, for [`super::LossTerm`]: a loss, or by how much it is above a reference's.
    pub loss: Option<f64>,
    /// What the loss that is expected of the document adds to its total log weight: a coefficient times nats a token.
    pub expected_loss_weight: f64,
    /// That loss, in nats a token; `None` where losses are not expected, and before any was reported.
    pub expected_loss: Option<f64>,
}

impl Score {
    /// What the document takes of a budget in tokens.
    pub fn budget_tokens(&self) -> u32 {
        self.counted_tokens.unwrap_or(self.n_tokens)
    }
}

/// Scores texts against one target: a log ratio per bucket, ready to be summed.
#[derive(Debug, Clone)]
pub struct ImportanceWeight {
    featuriser: Featuriser,
    log_ratios: LogRatios,
}

/// `reference` sums doubles one after the other, as the published package's numbers want it. `fast` sums whole multiples
/// of 2⁻²⁶ nats (1.5e-8), which is exact in any order, four at a time or in one lane, and halves the table.
#[derive(Debug, Clone)]
enum LogRatios {
    Doubles(Vec<f64>),
    FixedPoint(Vec<i32>),
}

/// Units of a nat in [`LogRatios::FixedPoint`]. Log ratios are below 32 with any smoothing that is allowed.
const FIXED_POINT: f64 = (1u64 << 26) as f64;

impl ImportanceWeight {
    /// One for every target of the model, in the model's order.
    pub fn of_targets(model: &Model) -> Vec<Self> {
        let raw = model.raw.counts.probabilities();
        let of = |target: Probabilities| Self::new(model.featuriser, &target, &raw, model.smoothing);
        model.targets.iter().map(|target| of(target.side.counts.probabilities())).collect()
    }

    /// # Panics
    /// If a distribution has not one probability a bucket.
    pub fn new(featuriser: Featuriser, target: &Probabilities, raw: &Probabilities, smoothing: f64) -> Self {
        Self::against(featuriser, target, &[(1.0, raw)], smoothing)
    }

    /// With a geometric mixture in the denominator: log p_target − Σ λ · log p, for shares λ that sum to 1.
    ///
    /// # Panics
    /// If a distribution has not one probability a bucket.
    pub fn against(
        featuriser: Featuriser,
        target: &Probabilities,
        denominator: &[(f64, &Probabilities)],
        smoothing: f64,
    ) -> Self {
        let buckets = featuriser.buckets as usize;
        let parts: Vec<(f64, &[f64])> = denominator.iter().map(|(share, p)| (*share, p.as_slice())).collect();
        assert!(target.as_slice().len() == buckets && parts.iter().all(|(_, p)| p.len() == buckets));
        let log_ratios = target.as_slice().iter().enumerate().map(|(bucket, target)| {
            let log = |(share, p): &(f64, &[f64])| share * (p[bucket] + smoothing).ln();
            (target + smoothing).ln() - parts.iter().map(log).sum::<f64>()
        });
        let log_ratios = match featuriser.hash {
            NgramHash::Reference => LogRatios::Doubles(log_ratios.collect()),
            NgramHash::Fast => {
                LogRatios::FixedPoint(log_ratios.map(|ratio| (ratio * FIXED_POINT).round() as i32).collect())
            }
        };
        ImportanceWeight { featuriser, log_ratios }
    }

    pub fn featuriser(&self) -> &Featuriser {
        &self.featuriser
    }

    pub fn score(&self, text: &str, scratch: &mut Scratch) -> Score {
        let mut log_importance_weight = 0.0;
        let n_tokens = self.featuriser.for_each_chunk(text, scratch, |buckets| {
            log_importance_weight = self.add(log_importance_weight, buckets);
        });
        Score { n_tokens, log_importance_weight, ..Score::default() }
    }

    /// The weight of a text whose buckets were kept: the same number.
    pub fn of_list(&self, list: &BucketList) -> f64 {
        let mut sum = 0.0;
        list.for_each_chunk(|buckets| sum = self.add(sum, buckets));
        sum
    }

    /// `sum` and the log ratios of further n-grams. A text's weight is the same however its buckets are cut in pieces.
    pub fn add(&self, sum: f64, buckets: &[u32]) -> f64 {
        match &self.log_ratios {
            LogRatios::Doubles(ratios) => add_in_order(sum, ratios, buckets),
            // Exact: a sum of multiples of 2^-26 below 2^27.
            LogRatios::FixedPoint(ratios) => {
                sum + buckets.iter().map(|&bucket| i64::from(ratios[bucket as usize])).sum::<i64>() as f64 / FIXED_POINT
            }
        }
    }
}

/// Not inlined, so that the sum stays in a register: where it is kept by whoever cuts the text, it would go through memory at
/// every addition.
#[inline(never)]
fn add_in_order(mut sum: f64, ratios: &[f64], buckets: &[u32]) -> f64 {
    let (eights, rest) = buckets.as_chunks::<8>();
    for eight in eights {
        // Found together, added one after the other.
        let found = eight.map(|bucket| ratios[bucket as usize]);
        found.iter().for_each(|ratio| sum += ratio);
    }
    rest.iter().fold(sum, |sum, &bucket| sum + ratios[bucket as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{DEFAULT_SMOOTHING, NgramCounts};
    use proptest::prelude::*;

    fn distribution() -> impl Strategy<Value = Probabilities> {
        proptest::collection::vec(1u64..1000, 16).prop_map(|counts| NgramCounts::from_vec(counts).probabilities())
    }

    proptest! {
        #[test]
        fn a_geometric_mixture_is_the_mean_of_its_parts(target in distribution(), raw in distribution(), selected in distribution(), share in 0.0f64..1.0, buckets in proptest::collection::vec(0u32..16, 0..50)) {
            let featuriser = Featuriser { buckets: 16, ..Featuriser::default() };
            let of = |denominator: &[(f64, &Probabilities)]| {
                ImportanceWeight::against(featuriser, &target, denominator, DEFAULT_SMOOTHING).add(0.0, &buckets)
            };
            let (by_raw, by_selected) = (of(&[(1.0, &raw)]), of(&[(1.0, &selected)]));
            let mixed = of(&[(1.0 - share, &raw), (share, &selected)]);
            prop_assert!((mixed - ((1.0 - share) * by_raw + share * by_selected)).abs() < 1e-9);
            prop_assert_eq!(by_raw, ImportanceWeight::new(featuriser, &target, &raw, DEFAULT_SMOOTHING).add(0.0, &buckets));
        }
    }
}
