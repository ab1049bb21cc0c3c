//! Where the weights of a window's candidates lie, and where those of the selected ones. Pure.

use serde::Serialize;

/// So many that the shape shows and each bin has documents.
const BINS: usize = 40;

/// Candidates by total log weight (see [`super::SelectorSettings::total_log_weight`]) in bins of equal width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightHistogram {
    /// The least and the highest weight: the edges of the first and the last bin. In nats.
    pub low: f64,
    pub high: f64,
    /// Documents in each bin, lowest first, and the selected ones of them.
    pub candidates: Vec<u64>,
    pub selected: Vec<u64>,
}

impl WeightHistogram {
    /// `selected` are indices into the weights, in any order. `None` of nothing, and where a weight is not finite.
    ///
    /// # Panics
    /// If an index is beyond the weights.
    pub fn of(log_weights: &[f64], selected: &[usize]) -> Option<Self> {
        let widen = |(low, high): (f64, f64), w: &f64| (low.min(*w), high.max(*w));
        let (low, high) = log_weights.iter().fold((f64::INFINITY, f64::NEG_INFINITY), widen);
        if log_weights.iter().any(|w| !w.is_finite()) || log_weights.is_empty() {
            return None;
        }
        // The halves do not overflow where the whole would.
        let half_width = (high / 2.0 - low / 2.0).max(f64::MIN_POSITIVE);
        let bin = |w: f64| ((((w / 2.0 - low / 2.0) / half_width) * BINS as f64) as usize).min(BINS - 1);
        let mut of = WeightHistogram { low, high, candidates: vec![0; BINS], selected: vec![0; BINS] };
        log_weights.iter().for_each(|w| of.candidates[bin(*w)] += 1);
        selected.iter().for_each(|i| of.selected[bin(log_weights[*i])] += 1);
        Some(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_is_in_the_bin_of_its_weight() {
        let weights: Vec<f64> = (0..=80).map(|i| f64::from(i) / 2.0 - 10.0).collect();
        let of = WeightHistogram::of(&weights, &[80, 79, 0]).expect("weights");
        assert_eq!((of.low, of.high), (-10.0, 30.0));
        assert_eq!(of.candidates[..39], [2; 39]);
        // The upper edge belongs to the last one.
        assert_eq!((of.candidates[39], of.selected[39], of.selected[0]), (3, 2, 1));
        assert_eq!(of.selected.iter().sum::<u64>(), 3);
    }

    #[test]
    fn equal_huge_and_broken_weights_are_no_trouble() {
        let equal = WeightHistogram::of(&[2.5; 7], &[1]).expect("weights");
        assert_eq!((equal.candidates.iter().sum::<u64>(), equal.candidates[0], equal.selected[0]), (7, 7, 1));
        let huge = WeightHistogram::of(&[f64::MIN, 0.0, f64::MAX], &[]).expect("weights");
        assert_eq!((huge.candidates[0], huge.candidates[20], huge.candidates[39]), (1, 1, 1));
        assert_eq!(WeightHistogram::of(&[], &[]), None);
        assert_eq!(WeightHistogram::of(&[1.0, f64::NAN], &[]), None);
    }
}
