//! Quantiles of positive numbers in bounded memory: logarithmic bins (Masson, Rim & Lee 2019, "DDSketch"). Pure.
//!
//! Every quantile is right to 5 % of its value. Bins add up, so sketches merge, and weights may decay: this is what a daemon keeps
//! of the losses of every source, in 128 bins and few bytes. [`crate::select::QuantileSketch`] cannot fade, and takes more room:
//! it counts numbers of any sign to 0.4 %, the same on every machine, because strata are cut by it.

use serde::{Deserialize, Serialize};

/// Each bin ends at 1.1 times its beginning: its middle is at most 1/21 of a value away from it.
const RATIO: f64 = 1.1;
const LEAST: f64 = 1e-3;
/// From 0.001 to 181; what lies beyond counts in the outermost bin.
const BINS: usize = 128;

/// Weights by bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u8, f64)>", into = "Vec<(u8, f64)>")]
pub struct FadingSketch {
    bins: Vec<f64>,
}

impl Default for FadingSketch {
    fn default() -> Self {
        FadingSketch { bins: vec![0.0; BINS] }
    }
}

/// Only the bins that hold something: losses of one source lie close together.
impl From<FadingSketch> for Vec<(u8, f64)> {
    fn from(sketch: FadingSketch) -> Self {
        (0u8..).zip(sketch.bins).filter(|(_, weight)| *weight > 0.0).collect()
    }
}

/// Nothing else is a weight, or is written again.
impl TryFrom<Vec<(u8, f64)>> for FadingSketch {
    type Error = String;

    fn try_from(held: Vec<(u8, f64)>) -> Result<Self, String> {
        let mut sketch = FadingSketch::default();
        for (bin, weight) in held {
            let sum = &mut sketch.bins[usize::from(bin).min(BINS - 1)];
            *sum += weight;
            if !(weight >= 0.0 && sum.is_finite()) {
                return Err(format!("bin {bin} of a sketch has weight {weight}"));
            }
        }
        Ok(sketch)
    }
}

impl FadingSketch {
    pub fn add(&mut self, value: f64, weight: f64) {
        self.bins[bin(value)] += weight;
    }

    /// Multiplies all weights.
    pub fn scale(&mut self, by: f64) {
        self.bins.iter_mut().for_each(|weight| *weight *= by);
    }

    pub fn merge(&mut self, other: &FadingSketch) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
    }

    pub fn total(&self) -> f64 {
        self.bins.iter().sum()
    }

    /// The number below which a share `q` of the weight lies; `None` of nothing.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = q.clamp(0.0, 1.0) * self.total();
        let mut below = 0.0;
        let reached = |weight: &f64| {
            below += weight;
            *weight > 0.0 && below >= wanted
        };
        // Sums of the same numbers in the same order: the last bin that holds something reaches the total.
        self.bins.iter().position(reached).map(middle)
    }

    /// Share of the weight below a value, half of that in its own bin among it; 0 of nothing.
    pub fn rank(&self, value: f64) -> f64 {
        let bin = bin(value);
        let below = self.bins[..bin].iter().sum::<f64>() + 0.5 * self.bins[bin];
        below / self.total().max(f64::MIN_POSITIVE)
    }
}

/// What is no number counts as the smallest.
fn bin(value: f64) -> usize {
    ((value / LEAST).max(1.0).ln() / RATIO.ln()).ceil().min(BINS as f64 - 1.0) as usize
}

fn middle(bin: usize) -> f64 {
    LEAST * RATIO.powi(bin as i32) * 2.0 / (RATIO + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(values: &[f64]) -> FadingSketch {
        let mut sketch = FadingSketch::default();
        values.iter().for_each(|value| sketch.add(*value, 1.0));
        sketch
    }

    proptest! {
        #[test]
        fn quantiles_are_right_to_five_percent_and_parts_merge(
            mut values in proptest::collection::vec(0.0011f64..180.0, 1..300), q in 0.0f64..=1.0, cut in 0usize..300,
        ) {
            let whole = sketch(&values);
            let cut = cut.min(values.len());
            let mut parts = sketch(&values[..cut]);
            parts.merge(&sketch(&values[cut..]));
            prop_assert_eq!(&parts, &whole);
            values.sort_by(f64::total_cmp);
            let exact = values[((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
            let found = whole.quantile(q).unwrap();
            prop_assert!((found / exact - 1.0).abs() <= 0.05, "{} instead of {}", found, exact);
            let json = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<FadingSketch>(&json).unwrap(), whole);
        }

        #[test]
        fn any_number_has_a_bin(value in proptest::num::f64::ANY) {
            let mut sketch = sketch(&[value]);
            sketch.scale(0.5);
            prop_assert_eq!(sketch.total(), 0.5);
            prop_assert!(sketch.quantile(0.5).unwrap().is_finite() && sketch.rank(value) == 0.5);
        }
    }

    #[test]
    fn what_is_no_weight_is_not_read() {
        for json in ["[[3,-1.0]]", "[[3,1e308],[3,1e308]]"] {
            assert!(serde_json::from_str::<FadingSketch>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert_eq!((FadingSketch::default().quantile(0.5), FadingSketch::default().rank(1.0)), (None, 0.0));
    }
}
