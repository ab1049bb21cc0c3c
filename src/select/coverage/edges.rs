//! Strata of equal width.

use serde::{Deserialize, Serialize};

use super::QuantileSketch;

/// Bands of equal width between two scores. What lies beyond an end belongs to the band there, so every score has one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Edges {
    low: f64,
    high: f64,
    strata: u32,
}

impl Edges {
    /// # Panics
    /// If there are no strata, or the ends are not finite or the wrong way round.
    pub fn new(low: f64, high: f64, strata: u32) -> Self {
        assert!(strata > 0, "there must be a stratum");
        assert!(low.is_finite() && high.is_finite() && low <= high, "strata cannot reach from {low} to {high}");
        Edges { low, high, strata }
    }

    /// Between the smallest and the largest score, or with `clip` between the scores with that share of all beyond them, by
    /// nearest rank. Where that would leave no width the clip does not count: most scores are the same number, and the
    /// others are what can be told apart. `None` without scores.
    ///
    /// # Panics
    /// If a score is not finite.
    pub fn of(mut scores: Vec<f64>, strata: u32, clip: f64) -> Option<Self> {
        assert!(scores.iter().all(|score| score.is_finite()), "an importance is not finite");
        let last = scores.len().checked_sub(1)?;
        let rank = (clip * last as f64).round() as usize;
        let mut at = |rank: usize| *scores.select_nth_unstable_by(rank, f64::total_cmp).1;
        let (low, high) = (at(rank), at(last - rank));
        let (low, high) = if low == high { (at(0), at(last)) } else { (low, high) };
        Some(Edges::new(low, high, strata))
    }

    /// The same of scores that were sketched: each end is off by the sketch's error.
    pub fn of_sketch(sketch: &QuantileSketch, strata: u32, clip: f64) -> Option<Self> {
        let last = sketch.len().checked_sub(1)?;
        let rank = (clip * last as f64).round() as u64;
        let at = |rank| sketch.at_rank(rank);
        let (low, high) = (at(rank)?, at(last - rank)?);
        let (low, high) = if low == high { (at(0)?, at(last)?) } else { (low, high) };
        Some(Edges::new(low, high, strata))
    }

    /// The stratum of a score, from 0: ⌊(s − low) · k / (high − low)⌋, the highest score in the last one. Equal scores
    /// are in one stratum; if all are equal, in the first.
    ///
    /// # Panics
    /// If the score is not a number.
    pub fn stratum(&self, score: f64) -> usize {
        assert!(!score.is_nan(), "an importance is not a number");
        let Edges { low, high, strata } = *self;
        if score <= low || low == high {
            return 0;
        }
        if score >= high {
            return strata as usize - 1;
        }
        let k = f64::from(strata);
        // Multiplied first: of whole numbers the quotient is then rounded right, and no score slips over an edge.
        let (above, width) = ((score - low) * k, high - low);
        let (above, width) = if above.is_finite() && width.is_finite() {
            (above, width)
        } else {
            // Scores near the end of what numbers can say. The power of two changes no digit of them.
            const SMALL: f64 = 1.0 / (1u64 << 40) as f64;
            ((score * SMALL - low * SMALL) * k, high * SMALL - low * SMALL)
        };
        ((above / width) as usize).min(strata as usize - 1)
    }

    /// Where a stratum begins and ends, as far as numbers can say it.
    pub fn bounds(&self, stratum: usize) -> (f64, f64) {
        let at = |edge: usize| {
            let share = edge as f64 / f64::from(self.strata);
            self.low * (1.0 - share) + self.high * share
        };
        (at(stratum), at(stratum + 1))
    }

    pub fn range(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    pub fn n_strata(&self) -> usize {
        self.strata as usize
    }
}
