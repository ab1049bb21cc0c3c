//! How far texts are from the distribution that a model was fitted on.

use super::{NgramCounts, Probabilities};

/// Documents that are measured together, at least. N-grams come in documents, each with words of its own, so that few documents are
/// far from any distribution, the one that they come from included: random ones of the bundled sample by 0.42 nats when they are
/// 25, 0.10 when 100, 0.05 when 200 and 0.015 when 500, after what [`DriftMeter::nats`] takes off.
const ENOUGH_DOCUMENTS: u64 = 500;

/// A fitted distribution to measure streams against.
#[derive(Debug, Clone)]
pub struct DriftMeter {
    log_fitted: Vec<f64>,
    smoothing: f64,
    /// Of windows that have too few documents to be measured yet.
    counts: NgramCounts,
    n_documents: u64,
}

impl DriftMeter {
    pub fn new(fitted: &Probabilities, smoothing: f64) -> Self {
        let log_fitted: Vec<f64> = fitted.as_slice().iter().map(|q| (q + smoothing).ln()).collect();
        DriftMeter { counts: NgramCounts::zero(log_fitted.len()), log_fitted, smoothing, n_documents: 0 }
    }

    /// Takes the counts of a window and says how far it is in nats, together with those before it that were too small to tell.
    /// `None` while all of them still are, or nothing was counted.
    ///
    /// # Panics
    /// If there are not as many counts as buckets.
    pub fn observe(&mut self, counts: &NgramCounts, n_documents: u64) -> Option<f64> {
        self.counts.merge(counts);
        self.n_documents += n_documents;
        if self.n_documents < ENOUGH_DOCUMENTS {
            return None;
        }
        let nats = self.nats(&self.counts);
        (self.counts, self.n_documents) = (NgramCounts::zero(self.log_fitted.len()), 0);
        nats
    }

    /// KL(counts ‖ fitted) in nats as [`super::kl_divergence`] has it, less (m − 1) / 2n for n n-grams in m buckets: by so much a
    /// sample of the fitted distribution itself would be off, to first order, if each n-gram came on its own (Miller 1955). `None`
    /// when nothing was counted.
    fn nats(&self, counts: &NgramCounts) -> Option<f64> {
        let n = counts.total();
        if n == 0 {
            return None;
        }
        let present = self.log_fitted.iter().zip(counts.as_slice()).filter(|&(_, &count)| count > 0);
        let (mut nats, mut m) = (0.0, 0u64);
        for (log_fitted, &count) in present {
            let p = count as f64 / n as f64;
            nats += p * ((p + self.smoothing).ln() - log_fitted);
            m += 1;
        }
        Some(nats - (m - 1) as f64 / (2.0 * n as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::kl_divergence;
    use proptest::prelude::*;

    const SMOOTHING: f64 = 1e-8;

    fn meter(fitted: &NgramCounts) -> DriftMeter {
        DriftMeter::new(&fitted.probabilities(), SMOOTHING)
    }

    proptest! {
        #[test]
        fn it_is_the_divergence_but_for_chance(
            p in proptest::collection::vec(0u64..1000, 16),
            q in proptest::collection::vec(0u64..1000, 16),
        ) {
            let (p, q) = (NgramCounts::from_vec(p), NgramCounts::from_vec(q));
            prop_assume!(p.total() > 0 && q.total() > 0);
            let m = p.as_slice().iter().filter(|count| **count > 0).count();
            let chance = (m - 1) as f64 / (2.0 * p.total() as f64);
            let expected = kl_divergence(&p.probabilities(), &q.probabilities(), SMOOTHING) - chance;
            let found = meter(&q).nats(&p).expect("n-grams");
            prop_assert!((found - expected).abs() < 1e-12, "{} {}", found, expected);
        }
    }

    /// Without the correction a small window would be a drift.
    #[test]
    fn a_small_sample_of_the_fitted_distribution_has_no_drift() {
        let buckets = 1_000;
        let fitted = NgramCounts::from_vec(vec![1_000; buckets]);
        let meter = meter(&fitted);
        let mut state = 7u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % buckets
        };
        let mut counts = vec![0; buckets];
        (0..5_000).for_each(|_| counts[draw()] += 1);
        let counts = NgramCounts::from_vec(counts);
        let plain = kl_divergence(&counts.probabilities(), &fitted.probabilities(), SMOOTHING);
        let corrected = meter.nats(&counts).expect("n-grams");
        assert!(plain > 0.08, "{plain}");
        assert!(corrected.abs() < 0.02, "{corrected}");
    }

    /// Documents with words of their own are no drift only because they come often; few of them would be one.
    #[test]
    fn small_windows_are_measured_together() {
        let kinds = 100;
        // Twenty words a document, those of its kind.
        let document =
            |counts: &mut [u64], kind: usize| counts[20 * kind..20 * (kind + 1)].iter_mut().for_each(|n| *n += 1);
        let mut all = vec![0; 20 * kinds];
        (0..kinds).for_each(|kind| document(&mut all, kind));
        let fitted = NgramCounts::from_vec(all);
        let mut meter = meter(&fitted);
        let mut window = |first: usize, n: usize| {
            let mut counts = vec![0; 20 * kinds];
            (first..first + n).for_each(|i| document(&mut counts, i % kinds));
            let counts = NgramCounts::from_vec(counts);
            (meter.nats(&counts), meter.observe(&counts, n as u64))
        };
        let seen: Vec<_> = (0..50).map(|i| window(10 * i, 10)).collect();
        assert!(seen.iter().all(|(alone, _)| alone.expect("n-grams") > 1.0), "{seen:?}");
        assert!(seen[..49].iter().all(|(_, together)| together.is_none()), "{seen:?}");
        let together = seen[49].1.expect("enough");
        assert!(together.abs() < 0.2, "{together}");
        // What was measured is gone; a large window is measured at once.
        let (alone, large) = window(0, 1000);
        assert_eq!(alone, large);
        assert_eq!(window(0, 499).1, None);
    }

    #[test]
    fn nothing_has_no_drift_and_another_stream_has() {
        let fitted = NgramCounts::from_vec(vec![900, 100]);
        assert_eq!(meter(&fitted).observe(&NgramCounts::zero(2), 1000), None);
        let other = NgramCounts::from_vec(vec![100_000, 900_000]);
        // 0.1 ln(0.1 / 0.9) + 0.9 ln(0.9 / 0.1)
        let found = meter(&fitted).nats(&other).expect("n-grams");
        assert!((found - 0.8 * 9f64.ln()).abs() < 1e-5, "{found}");
    }
}
