//! Losses of one group of documents, a source or a stratum, remembered exponentially.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::score::FadingSketch;

/// Sources that are told apart; those that come later are counted together.
pub const MAX_SOURCES: usize = 32;
/// Longer names are data, not names.
const MAX_NAME_BYTES: usize = 256;
/// 1 / inclusion probability is taken up to here: beyond, one document would be the whole estimate.
const MAX_IMPORTANCE: f64 = 1_000.0;

/// Decayed sums. Those of two disjoint sets of observations add up.
///
/// The plain ones say what the trainer sees. Those of the stream weigh each document by 1 / its inclusion probability (the ratio
/// estimator of Hájek 1971): what the trainer would see on all documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossStatistics {
    /// Never decays.
    pub n_observed: u64,
    weight: f64,
    sum: f64,
    squares: f64,
    stream_weight: f64,
    stream_weight_squares: f64,
    stream_sum: f64,
    sketch: FadingSketch,
}

impl LossStatistics {
    /// `kept`: what an older observation counts beside this one.
    pub fn observe(&mut self, loss: f64, inclusion_probability: f64, kept: f64) {
        let importance = (1.0 / inclusion_probability).clamp(1.0, MAX_IMPORTANCE);
        self.scale(kept);
        self.n_observed += 1;
        self.weight += 1.0;
        self.sum += loss;
        self.squares += loss * loss;
        self.stream_weight += importance;
        self.stream_weight_squares += importance * importance;
        self.stream_sum += importance * loss;
        self.sketch.add(loss, 1.0);
    }

    fn scale(&mut self, kept: f64) {
        let LossStatistics { weight, sum, squares, stream_weight, stream_sum, .. } = self;
        for number in [weight, sum, squares, stream_weight, stream_sum] {
            *number *= kept;
        }
        self.stream_weight_squares *= kept * kept;
        self.sketch.scale(kept);
    }

    pub fn merge(&mut self, other: &LossStatistics) {
        self.n_observed += other.n_observed;
        self.weight += other.weight;
        self.sum += other.sum;
        self.squares += other.squares;
        self.stream_weight += other.stream_weight;
        self.stream_weight_squares += other.stream_weight_squares;
        self.stream_sum += other.stream_sum;
        self.sketch.merge(&other.sketch);
    }

    /// Observations that are remembered, the decayed ones in part.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// `None` of nothing, like all of these.
    pub fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    pub fn variance(&self) -> Option<f64> {
        Some((self.squares / self.weight - self.mean()?.powi(2)).max(0.0))
    }

    /// The mean over all documents of the stream, estimated from the selected ones.
    pub fn stream_mean(&self) -> Option<f64> {
        (self.stream_weight > 0.0).then(|| self.stream_sum / self.stream_weight)
    }

    /// How many equally weighted documents that estimate is worth (Kish 1965).
    pub fn stream_effective_size(&self) -> Option<f64> {
        (self.stream_weight > 0.0).then(|| self.stream_weight.powi(2) / self.stream_weight_squares)
    }

    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.sketch.quantile(q)
    }
}

/// The name under which a source is counted among these; `None`: with those that are not told apart. Documents without a source
/// have the empty name.
pub(super) fn name_among<'s, T>(known: &BTreeMap<String, T>, source: Option<&'s str>) -> Option<&'s str> {
    let name = source.unwrap_or_default();
    (known.contains_key(name) || (known.len() < MAX_SOURCES && name.len() <= MAX_NAME_BYTES)).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn losses() -> impl Strategy<Value = Vec<(f64, f64)>> {
        proptest::collection::vec((0.01f64..20.0, 0.01f64..1.0), 1..100)
    }

    fn statistics(losses: &[(f64, f64)], kept: f64) -> LossStatistics {
        let mut statistics = LossStatistics::default();
        losses.iter().for_each(|(loss, probability)| statistics.observe(*loss, *probability, kept));
        statistics
    }

    fn close(a: Option<f64>, b: Option<f64>) -> bool {
        (a.unwrap() - b.unwrap()).abs() < 1e-9
    }

    proptest! {
        #[test]
        fn they_are_what_their_definitions_say(losses in losses(), half_life in 1.0f64..100.0) {
            let found = statistics(&losses, (-1.0 / half_life).exp2());
            let age = |i: usize| (losses.len() - 1 - i) as f64;
            let sums = |weight: &dyn Fn(usize) -> f64, x: &dyn Fn(f64) -> f64| -> f64 {
                losses.iter().enumerate().map(|(i, (loss, _))| weight(i) * x(*loss)).sum()
            };
            let plain = |i: usize| (-age(i) / half_life).exp2();
            let stream = |i: usize| plain(i) / losses[i].1;
            let mean = sums(&plain, &|x| x) / sums(&plain, &|_| 1.0);
            prop_assert!(close(found.mean(), Some(mean)));
            let variance = sums(&plain, &|x| (x - mean).powi(2)) / sums(&plain, &|_| 1.0);
            prop_assert!((found.variance().unwrap() - variance).abs() < 1e-7);
            prop_assert!(close(found.stream_mean(), Some(sums(&stream, &|x| x) / sums(&stream, &|_| 1.0))));
            let size = sums(&stream, &|_| 1.0).powi(2) / sums(&|i| stream(i).powi(2), &|_| 1.0);
            prop_assert!((found.stream_effective_size().unwrap() - size).abs() < 1e-6);
            prop_assert_eq!(found.n_observed, losses.len() as u64);
        }

        #[test]
        fn parts_add_up(losses in losses(), cut in 0usize..100) {
            let cut = cut.min(losses.len());
            let (whole, mut parts) = (statistics(&losses, 1.0), statistics(&losses[..cut], 1.0));
            parts.merge(&statistics(&losses[cut..], 1.0));
            prop_assert!(close(parts.mean(), whole.mean()) && close(parts.stream_mean(), whole.stream_mean()));
            prop_assert_eq!((parts.n_observed, parts.quantile(0.5)), (whole.n_observed, whole.quantile(0.5)));
        }
    }

    /// Losses that grow with the chance of being selected: their plain mean is that of the selection, and off.
    #[test]
    fn the_mean_of_the_stream_is_found_from_a_selection_of_it() {
        let mut statistics = LossStatistics::default();
        let (mut all, mut n, mut state) = (0.0, 0.0, 1u64);
        for _ in 0..200_000 {
            let mut uniform = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let (loss, drawn) = (1.0 + 4.0 * uniform(), uniform());
            let probability = 0.02 * loss * loss;
            (all, n) = (all + loss, n + 1.0);
            if drawn < probability {
                statistics.observe(loss, probability, 1.0);
            }
        }
        let (truth, plain, found) = (all / n, statistics.mean().unwrap(), statistics.stream_mean().unwrap());
        println!("mean loss {truth:.3}, of the selection {plain:.3}, estimated from it {found:.3}");
        assert!(plain - truth > 0.5 && (found - truth).abs() < 0.03);
    }
}
