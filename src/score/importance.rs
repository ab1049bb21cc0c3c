//! The log importance weight of DSIR (Xie et al. 2023, "Data Selection for Language Models via Importance Resampling").

use crate::features::{BucketList, Featuriser, NgramHash, Scratch};

use super::{Model, Probabilities};

/// What scoring says of one text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    pub n_tokens: u32,
    /// Σ over n-grams of log(p_target + ε) − log(p_raw + ε), in nats; 0 for a text without tokens.
    pub log_importance_weight: f64,
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
        let (target, raw) = (target.as_slice(), raw.as_slice());
        assert_eq!((target.len(), raw.len()), (featuriser.buckets as usize, featuriser.buckets as usize));
        let log_ratios = target.iter().zip(raw).map(|(t, r)| (t + smoothing).ln() - (r + smoothing).ln());
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
        Score { n_tokens, log_importance_weight }
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
            LogRatios::Doubles(ratios) => buckets.iter().fold(sum, |sum, &bucket| sum + ratios[bucket as usize]),
            // Exact: a sum of multiples of 2^-26 below 2^27.
            LogRatios::FixedPoint(ratios) => {
                sum + buckets.iter().map(|&bucket| i64::from(ratios[bucket as usize])).sum::<i64>() as f64 / FIXED_POINT
            }
        }
    }
}
