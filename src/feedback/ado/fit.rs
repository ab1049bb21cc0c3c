//! The power law of a source's losses: L(n) = e^ε + e^a / n^α.
//!
//! Objective of the released code: Σ Huber(log L − logsumexp(a − α ln n, ε)), δ = 0.001, and penalties that keep the three numbers in
//! bounds. It has kinks and flat valleys; here the grid of the code is looked at, and the best places of it are gone down
//! from by Nelder & Mead's simplex, which needs no derivative.

use serde::{Deserialize, Serialize};

use super::LEAST_EXPONENT;

const DELTA: f64 = 1e-3;
/// Places of the grid that are gone down from.
const STARTS: usize = 8;
const STEPS: usize = 400;
const RESTARTS: usize = 3;

/// One fitted law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PowerLaw {
    /// ε: the logarithm of the loss that is never learnt.
    pub log_floor: f64,
    pub log_scale: f64,
    pub exponent: f64,
}

type Place = [f64; 3];

impl PowerLaw {
    /// From (n, loss) with n and losses above 0; `None` if nothing finite comes of it.
    pub fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let logs: Vec<(f64, f64)> = points.iter().map(|(n, loss)| (n.ln(), loss.ln())).collect();
        if logs.is_empty() || !logs.iter().all(|(n, loss)| n.is_finite() && loss.is_finite()) {
            return None;
        }
        let objective = |place: &Place| {
            let value = objective(place, &logs);
            if value.is_nan() { f64::INFINITY } else { value }
        };
        let halves = |from: i32, to: i32| (from..=to).map(|half| f64::from(half) / 2.0);
        let mut grid: Vec<(f64, Place)> = Vec::new();
        for log_scale in halves(-4, 10) {
            for log_floor in halves(-4, 3) {
                for tenth in 0..=7 {
                    let place = [log_scale, f64::from(tenth) / 10.0, log_floor];
                    grid.push((objective(&place), place));
                }
            }
        }
        grid.sort_by(|a, b| a.0.total_cmp(&b.0));
        let ends = grid.iter().take(STARTS).map(|(_, start)| descend(*start, &objective));
        let (value, [log_scale, exponent, log_floor]) = ends.min_by(|a, b| a.0.total_cmp(&b.0))?;
        value.is_finite().then_some(PowerLaw { log_floor, log_scale, exponent })
    }

    pub fn loss(&self, n: f64) -> f64 {
        self.log_floor.exp() + self.above_floor(n)
    }

    fn above_floor(&self, n: f64) -> f64 {
        (self.log_scale - self.exponent * n.ln()).exp()
    }

    /// How fast the loss falls at n, with every n: max(α, 0.05) (L(n) − e^ε) / n.
    pub fn slope(&self, n: f64) -> f64 {
        self.exponent.max(LEAST_EXPONENT) * self.above_floor(n) / n
    }
}

#[cfg(test)]
impl PowerLaw {
    pub(in crate::feedback) fn objective(&self, points: &[(f64, f64)]) -> f64 {
        let logs: Vec<_> = points.iter().map(|(n, loss)| (n.ln(), loss.ln())).collect();
        objective(&[self.log_scale, self.exponent, self.log_floor], &logs)
    }
}

/// Of (a, α, ε), for the logarithms of n and of the loss.
fn objective([log_scale, exponent, log_floor]: &Place, logs: &[(f64, f64)]) -> f64 {
    let residual = |(log_n, log_loss): &(f64, f64)| {
        let power = log_scale - exponent * log_n;
        let (small, large) = (power.min(*log_floor), power.max(*log_floor));
        let residual = (log_loss - (large + (small - large).exp().ln_1p())).abs();
        if residual <= DELTA { 0.5 * residual * residual } else { DELTA * (residual - 0.5 * DELTA) }
    };
    logs.iter().map(residual).sum::<f64>() + (exponent - 0.8).max(0.0) - exponent.min(0.001)
        + (log_scale - 6.5).max(0.0)
        - (log_floor - 0.5).min(0.0)
}

/// Down from a place, with a fresh simplex now and then: one that has become flat goes nowhere.
fn descend(start: Place, objective: &impl Fn(&Place) -> f64) -> (f64, Place) {
    let mut best = (objective(&start), start);
    for size in [0.2, 0.05, 0.01].into_iter().take(RESTARTS) {
        let end = simplex(best.1, size, objective);
        if end.0 <= best.0 {
            best = end;
        }
    }
    best
}

fn simplex(start: Place, size: f64, objective: &impl Fn(&Place) -> f64) -> (f64, Place) {
    let at = |place: Place| (objective(&place), place);
    let mut corners = vec![at(start)];
    for axis in 0..3 {
        let mut place = start;
        place[axis] += size;
        corners.push(at(place));
    }
    for _ in 0..STEPS {
        corners.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (best, worst) = (corners[0], corners[3]);
        if (worst.0 - best.0).abs() <= 1e-13 * (1.0 + best.0.abs()) {
            break;
        }
        let centre: Place = std::array::from_fn(|axis| corners[..3].iter().map(|c| c.1[axis]).sum::<f64>() / 3.0);
        let along = |by: f64| at(std::array::from_fn(|axis| centre[axis] + by * (worst.1[axis] - centre[axis])));
        let reflected = along(-1.0);
        let next = if reflected.0 < best.0 {
            let expanded = along(-2.0);
            if expanded.0 < reflected.0 { expanded } else { reflected }
        } else if reflected.0 < corners[2].0 {
            reflected
        } else {
            along(if reflected.0 < worst.0 { -0.5 } else { 0.5 })
        };
        if next.0 < worst.0 {
            corners[3] = next;
        } else {
            for corner in &mut corners[1..] {
                *corner = at(std::array::from_fn(|axis| 0.5 * (best.1[axis] + corner.1[axis])));
            }
        }
    }
    corners.sort_by(|a, b| a.0.total_cmp(&b.0));
    corners[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_law_is_found_again_from_its_points() {
        for (log_floor, log_scale, exponent) in [(0.6, 3.0, 0.3), (0.9, 4.0, 0.5), (0.7, 2.0, 0.2)] {
            let law = PowerLaw { log_floor, log_scale, exponent };
            let points: Vec<_> = (1..=60).map(|i| (f64::from(i) * 1e5, law.loss(f64::from(i) * 1e5))).collect();
            let found = PowerLaw::fit(&points).unwrap();
            for (n, loss) in points {
                assert!((found.loss(n) / loss - 1.0).abs() < 2e-3, "{found:?} instead of {law:?}");
            }
        }
    }

    #[test]
    fn what_is_no_history_has_no_law() {
        assert_eq!(PowerLaw::fit(&[]), None);
        assert_eq!(PowerLaw::fit(&[(0.0, 1.0)]), None);
        assert_eq!(PowerLaw::fit(&[(1.0, f64::NAN), (2.0, 1.0)]), None);
        assert_eq!(PowerLaw::fit(&[(1.0, 0.0), (2.0, 1.0)]), None);
    }
}
