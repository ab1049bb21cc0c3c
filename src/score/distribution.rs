//! Bucketed n-gram counts and the distributions they stand for.

use crate::features::{BucketList, Featuriser, Scratch};

/// Added to each probability before its logarithm is taken; the default is the published package's.
pub const DEFAULT_SMOOTHING: f64 = 1e-8;

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
        featuriser.for_each_chunk(text, scratch, |buckets| self.add_buckets(buckets))
    }

    pub fn add_buckets(&mut self, buckets: &[u32]) {
        for &bucket in buckets {
            self.0[bucket as usize] += 1;
        }
    }

    /// Counts the n-grams of a text whose buckets were kept.
    pub fn add_list(&mut self, list: &BucketList) {
        list.for_each_chunk(|buckets| self.add_buckets(buckets));
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
    pub fn probabilities(&self) -> Probabilities {
        let total = (self.total() as f64).max(1.0);
        Probabilities(self.0.iter().map(|&count| count as f64 / total).collect())
    }
}

/// Counts of some texts on their way to others: half as wide as [`NgramCounts`], so that they stay in a core's own cache. Of
/// fewer than 2^32 n-grams.
#[derive(Debug, Clone)]
pub struct NgramTally {
    counts: Vec<u32>,
    is_empty: bool,
}

impl NgramTally {
    pub fn zero(buckets: usize) -> Self {
        NgramTally { counts: vec![0; buckets], is_empty: true }
    }

    pub fn add_buckets(&mut self, buckets: &[u32]) {
        self.is_empty = false;
        for &bucket in buckets {
            self.counts[bucket as usize] += 1;
        }
    }

    /// # Panics
    /// If the two have different numbers of buckets.
    pub fn add_to(&self, counts: &mut NgramCounts) {
        assert_eq!(self.counts.len(), counts.0.len(), "counts of different featurisers cannot be added");
        if !self.is_empty {
            counts.0.iter_mut().zip(&self.counts).for_each(|(sum, &count)| *sum += u64::from(count));
        }
    }

    pub fn clear(&mut self) {
        if !self.is_empty {
            self.counts.fill(0);
            self.is_empty = true;
        }
    }

    pub fn buckets(&self) -> usize {
        self.counts.len()
    }
}

/// A distribution over the buckets: one probability each. They sum to 1, or to 0 when nothing was counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Probabilities(Vec<f64>);

impl Probabilities {
    /// `weights` over their sum; all zero when they are.
    pub fn from_weights(mut weights: Vec<f64>) -> Self {
        let total: f64 = weights.iter().sum();
        if total > 0.0 {
            weights.iter_mut().for_each(|w| *w /= total);
        }
        Probabilities(weights)
    }

    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// Σ_t share_t · p_t, for shares that sum to 1.
    ///
    /// # Panics
    /// If there are no parts, or they have different numbers of buckets.
    pub fn mixture(parts: &[(f64, Probabilities)]) -> Probabilities {
        let mut mixed = vec![0.0; parts[0].1.0.len()];
        for (share, part) in parts {
            assert_eq!(mixed.len(), part.0.len(), "distributions of different featurisers cannot be mixed");
            mixed.iter_mut().zip(&part.0).for_each(|(m, p)| *m += share * p);
        }
        Probabilities(mixed)
    }
}

/// Kullback–Leibler divergence KL(p ‖ q) over the buckets, in nats, `smoothing` added to both sides as in the package.
///
/// # Panics
/// If the two have different numbers of buckets.
pub fn kl_divergence(p: &Probabilities, q: &Probabilities, smoothing: f64) -> f64 {
    assert_eq!(p.0.len(), q.0.len(), "divergence between distributions of different featurisers");
    p.0.iter().zip(&q.0).map(|(p, q)| p * ((p + smoothing).ln() - (q + smoothing).ln())).sum()
}

/// What a model wants, as a yardstick for selections.
#[derive(Debug, Clone)]
pub struct TargetDistribution {
    featuriser: Featuriser,
    probabilities: Probabilities,
    smoothing: f64,
    /// Σ p ln(p + smoothing).
    negative_entropy: f64,
    /// Of a mixture of several targets: each of them.
    parts: Vec<TargetDistribution>,
}

impl TargetDistribution {
    pub fn new(featuriser: Featuriser, probabilities: Probabilities, smoothing: f64) -> Self {
        let negative_entropy = probabilities.0.iter().map(|p| p * (p + smoothing).ln()).sum();
        TargetDistribution { featuriser, probabilities, smoothing, negative_entropy, parts: Vec::new() }
    }

    /// The same, and the targets that it is a mixture of.
    pub fn mixture_of(self, parts: Vec<TargetDistribution>) -> Self {
        TargetDistribution { parts, ..self }
    }

    /// Several targets, in the model's order; nothing of one.
    pub fn parts(&self) -> &[TargetDistribution] {
        &self.parts
    }

    pub fn featuriser(&self) -> &Featuriser {
        &self.featuriser
    }

    pub fn probabilities(&self) -> &Probabilities {
        &self.probabilities
    }

    /// KL(target ‖ counts) in nats, as [`kl_divergence`] has it.
    ///
    /// # Panics
    /// If there are not as many counts as buckets.
    pub fn divergence_from(&self, counts: &NgramCounts) -> f64 {
        assert_eq!(self.probabilities.0.len(), counts.0.len(), "divergence from counts of another featuriser");
        let total = (counts.total() as f64).max(1.0);
        let log = |count: u64| (count as f64 / total + self.smoothing).ln();
        // Most counts of a window are small and come again and again: their logarithms are taken once.
        let mut logs = [f64::NAN; 1024];
        let cross_entropy = self.probabilities.0.iter().zip(&counts.0).map(|(p, &count)| {
            let known = logs.get_mut(usize::try_from(count).unwrap_or(usize::MAX));
            p * known.map_or_else(
                || log(count),
                |known| {
                    if known.is_nan() {
                        *known = log(count);
                    }
                    *known
                },
            )
        });
        self.negative_entropy - cross_entropy.sum::<f64>()
    }

    /// The `n` buckets with the largest parts of KL(target ‖ counts) above 0, in nats, largest first: what the counts lack.
    ///
    /// # Panics
    /// If there are not as many counts as buckets.
    pub fn largest_parts(&self, counts: &NgramCounts, n: usize) -> Vec<(u32, f64)> {
        assert_eq!(self.probabilities.0.len(), counts.0.len(), "divergence from counts of another featuriser");
        let total = (counts.total() as f64).max(1.0);
        let ratio = |p: f64, count: u64| (p + self.smoothing).ln() - (count as f64 / total + self.smoothing).ln();
        let part = |(bucket, (p, &count)): (usize, (&f64, &u64))| (bucket as u32, p * ratio(*p, count));
        let parts = self.probabilities.0.iter().zip(&counts.0).enumerate().map(part);
        let mut parts: Vec<(u32, f64)> = parts.filter(|(_, nats)| *nats > 0.0).collect();
        let by_size = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if parts.len() > n && n > 0 {
            parts.select_nth_unstable_by(n - 1, by_size);
        }
        parts.truncate(n);
        parts.sort_unstable_by(by_size);
        parts
    }
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
            let (p, q) = (p.probabilities(), q.probabilities());
            prop_assert_eq!(kl_divergence(&p, &p, DEFAULT_SMOOTHING), 0.0);
            prop_assert!(kl_divergence(&p, &q, DEFAULT_SMOOTHING) > -1e-6);
        }

        #[test]
        fn remembered_logarithms_change_nothing(p in counts(), q in proptest::collection::vec(0u64..3_000, 16)) {
            prop_assume!(p.total() > 0);
            let (p, q) = (p.probabilities(), NgramCounts::from_vec(q));
            let target = TargetDistribution::new(Featuriser::default(), p.clone(), 1e-6);
            let expected = kl_divergence(&p, &q.probabilities(), 1e-6);
            prop_assert!((target.divergence_from(&q) - expected).abs() < 1e-12);
        }

        #[test]
        fn the_largest_parts_are_those_of_the_divergence(p in counts(), q in counts(), n in 0usize..20) {
            prop_assume!(p.total() > 0);
            let target = TargetDistribution::new(Featuriser::default(), p.probabilities(), 1e-6);
            let all = target.largest_parts(&q, 16);
            prop_assert!(all.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert_eq!(&target.largest_parts(&q, n)[..], &all[..n.min(all.len())]);
            let lacking: f64 = all.iter().map(|(_, nats)| nats).sum();
            prop_assert!(lacking >= target.divergence_from(&q) - 1e-12, "what there is too much of only takes away");
        }

        #[test]
        fn a_mixture_is_a_distribution(p in counts(), q in counts(), share in 0.0f64..1.0) {
            prop_assume!(p.total() > 0 && q.total() > 0);
            let parts = [(share, p.probabilities()), (1.0 - share, q.probabilities())];
            let sum: f64 = Probabilities::mixture(&parts).as_slice().iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-12, "{}", sum);
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
            let (mut tallied, mut tally) = (NgramCounts::zero(10_000), NgramTally::zero(10_000));
            for text in &texts {
                let mut one = NgramCounts::zero(10_000);
                prop_assert_eq!(all.add_text(text, &featuriser, &mut scratch), one.add_text(text, &featuriser, &mut scratch));
                merged.merge(&one);
                featuriser.for_each_chunk(text, &mut scratch, |buckets| tally.add_buckets(buckets));
                tally.add_to(&mut tallied);
                tally.clear();
            }
            prop_assert_eq!(&all, &merged);
            prop_assert_eq!(&all, &tallied);
        }
    }
}
