//! Bucketed n-gram counts and the distributions they stand for.

use crate::features::{Featuriser, Scratch};

/// Added to each probability before its logarithm is taken, as in the published package.
pub const SMOOTHING: f64 = 1e-8;

/// How often each bucket occurred. Additive: counts of two sets of documents add up to the counts of their union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NgramCounts(Vec<u64>);

impl NgramCounts {
    pub fn zero(buckets: usize) -> Self {
        NgramCounts(vec![0; buckets])
    }

    pub fn from_vec(counts: Vec<u64>) -> Self {
        NgramCounts(counts)
    }

    /// Counts the n-grams of one text and returns its number of tokens.
    pub fn add_text(&mut self, text: &str, featuriser: &Featuriser, scratch: &mut Scratch) -> u32 {
        featuriser.for_each_bucket(text, scratch, |bucket| self.0[bucket as usize] += 1)
    }

    pub fn add_bucket(&mut self, bucket: u32) {
        self.0[bucket as usize] += 1;
    }

    /// # Panics
    /// If the two have different numbers of buckets: they would come from different featurisers.
    pub fn merge(&mut self, other: &NgramCounts) {
        assert_eq!(self.0.len(), other.0.len(), "counts of different featurisers cannot be added");
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            *a += b;
        }
    }

    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }

    /// Number of n-grams counted.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Counts over their sum; all zero when nothing was counted.
    pub fn probabilities(&self) -> impl Iterator<Item = f64> {
        let total = (self.total() as f64).max(1.0);
        self.0.iter().map(move |&count| count as f64 / total)
    }
}

/// Kullback–Leibler divergence KL(p ‖ q) over the buckets, in nats, both sides smoothed as in the package.
///
/// # Panics
/// If the two have different numbers of buckets.
pub fn kl_divergence(p: &NgramCounts, q: &NgramCounts) -> f64 {
    assert_eq!(p.0.len(), q.0.len(), "divergence between counts of different featurisers");
    p.probabilities().zip(q.probabilities()).map(|(p, q)| p * ((p + SMOOTHING).ln() - (q + SMOOTHING).ln())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts() -> impl Strategy<Value = NgramCounts> {
        proptest::collection::vec(0u64..1000, 16).prop_map(NgramCounts::from_vec)
    }

    proptest! {
        #[test]
        fn divergence_is_zero_on_itself_and_not_negative(p in counts(), q in counts()) {
            prop_assume!(p.total() > 0 && q.total() > 0);
            prop_assert_eq!(kl_divergence(&p, &p), 0.0);
            prop_assert!(kl_divergence(&p, &q) > -1e-6);
        }

        #[test]
        fn merging_commutes(a in counts(), b in counts()) {
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.merge(&b);
            ba.merge(&a);
            prop_assert_eq!(ab.total(), a.total() + b.total());
            prop_assert_eq!(ab, ba);
        }

        #[test]
        fn counting_texts_one_by_one_or_merged_is_the_same(texts in proptest::collection::vec(any::<String>(), 0..5)) {
            let featuriser = Featuriser::default();
            let mut scratch = Scratch::default();
            let (mut all, mut merged) = (NgramCounts::zero(10_000), NgramCounts::zero(10_000));
            for text in &texts {
                let mut one = NgramCounts::zero(10_000);
                prop_assert_eq!(all.add_text(text, &featuriser, &mut scratch), one.add_text(text, &featuriser, &mut scratch));
                merged.merge(&one);
            }
            prop_assert_eq!(all, merged);
        }
    }
}
