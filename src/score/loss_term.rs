//! The log weight of a document by a loss that it brings along, such as that of a proxy model: which documents are worth reading
//! before anything is trained on them. Pure.
//!
//! In: the loss, or nothing. Out: what [`super::LossWeight`] has before it becomes a share of a batch, f(h(loss)): weights of a
//! batch are exp(f / r) / Σ exp(f / r), and a constant factor changes nothing in a draw. The coefficient stands for 1 / r, and
//! may be negative, to prefer what the strategy does not.
//!
//! The range is a setting, not that of the window. A document competes as soon as it is read, in a window that holds only what it
//! can still select, so the range must be known before the window's losses are; and a proxy model that stays as it is gives the
//! same loss the same meaning in every window, where the range of each would make an easy hour and a hard one look alike. So a
//! selection remains a function of the documents and the settings, which are recorded with it.

use serde::{Deserialize, Serialize};

use super::loss_weight::Bounds;
use super::{LossStrategy, SettingMistake};

/// How much a loss adds to the log weight of a document.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossTerm {
    /// Finite.
    pub coefficient: f64,
    /// Of those that prefer by the loss alone.
    pub strategy: LossStrategy,
    /// Low and high losses, in nats; losses beyond count as these. Finite, `low` below `high`.
    pub low: f64,
    pub high: f64,
}

impl LossTerm {
    /// Strategies that prefer one loss to another, whatever the others of the batch are.
    pub const STRATEGIES: [LossStrategy; 4] =
        [LossStrategy::LinUpper, LossStrategy::Quadratic, LossStrategy::Extremes, LossStrategy::KlDro];

    /// The term itself, or every mistake in it.
    pub fn validated(self) -> Result<Self, Vec<SettingMistake>> {
        let LossTerm { coefficient, low, high, strategy } = self;
        let mut mistakes = Vec::new();
        let mut expect = |fine: bool, key, value: String, problem: String| {
            if !fine {
                mistakes.push(SettingMistake { key, value, problem });
            }
        };
        let finite = || "expected a finite number".to_owned();
        expect(coefficient.is_finite(), "coefficient", coefficient.to_string(), finite());
        expect(low.is_finite(), "low", low.to_string(), finite());
        expect(high.is_finite(), "high", high.to_string(), finite());
        let is_range = !(low.is_finite() && high.is_finite()) || low < high;
        expect(is_range, "high", high.to_string(), format!("must be above the low loss ({low})"));
        let is_known = Self::STRATEGIES.contains(&strategy);
        let problem = "weighs no document by its own loss alone".to_owned();
        expect(is_known, "strategy", strategy.as_str().to_owned(), problem);
        if mistakes.is_empty() { Ok(self) } else { Err(mistakes) }
    }

    /// The log of the loss-based weight, before the coefficient: f of the loss. Without a loss it is the mean of f over the range,
    /// so that not to have a loss is neither good nor bad.
    pub fn log_weight(&self, loss: Option<f64>) -> f64 {
        let bounds = Bounds { low: self.low, high: self.high };
        match (loss, self.strategy) {
            (Some(loss), strategy) => strategy.preference().map_or(0.0, |prefer| prefer(bounds, loss)),
            (None, LossStrategy::LinUpper) => 0.75,
            (None, LossStrategy::Quadratic) => 2.0 / 3.0,
            (None, LossStrategy::Extremes) => 0.5,
            (None, LossStrategy::KlDro) => f64::midpoint(self.low, self.high),
            (None, LossStrategy::Uniform | LossStrategy::Cvar { .. }) => 0.0,
        }
    }

    /// What is added to the log importance weight.
    pub fn added(&self, loss: Option<f64>) -> f64 {
        self.coefficient * self.log_weight(loss)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::score::{LossRange, LossWeight, LossWeightSettings, NonFiniteLoss, TemperatureSchedule};

    fn term(strategy: LossStrategy) -> LossTerm {
        LossTerm { coefficient: 1.0, strategy, low: 1.0, high: 5.0 }
    }

    #[test]
    fn log_weights_are_the_strategies_on_a_fixed_range() {
        use LossStrategy::{Extremes, KlDro, LinUpper, Quadratic};
        let losses = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0];
        for (strategy, expected) in [
            (LinUpper, [0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
            (Quadratic, [0.0, 0.0, 0.75, 1.0, 0.75, 0.0, 0.0]),
            (Extremes, [1.0, 1.0, 0.5, 0.0, 0.5, 1.0, 1.0]),
            (KlDro, [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0]),
        ] {
            assert_eq!(losses.map(|loss| term(strategy).log_weight(Some(loss))), expected, "{strategy:?}");
            let negative = LossTerm { coefficient: -2.0, ..term(strategy) };
            assert_eq!(negative.added(Some(4.0)), -2.0 * expected[4]);
        }
    }

    /// By the midpoints of ten thousand equal parts of the range.
    #[test]
    fn without_a_loss_it_is_the_mean_over_the_range() {
        for strategy in LossTerm::STRATEGIES {
            let term = term(strategy);
            let losses = (0..10_000).map(|i| 1.0 + 4.0 * (f64::from(i) + 0.5) / 10_000.0);
            let mean = losses.map(|loss| term.log_weight(Some(loss))).sum::<f64>() / 10_000.0;
            assert!((mean - term.log_weight(None)).abs() < 1e-7, "{strategy:?}: {mean}");
        }
    }

    /// One line of what `tests/reference/make_loss_terms.py` has written.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        term: LossTerm,
        losses: Vec<f64>,
        added: Vec<f64>,
        added_without: f64,
    }

    #[test]
    fn an_independent_program_adds_the_same() {
        let mut n = 0;
        for line in include_str!("../../tests/reference/loss_terms.jsonl").lines() {
            let Case { term, losses, added, added_without } = serde_json::from_str(line).unwrap();
            let term = term.validated().unwrap();
            let size = term.coefficient.abs() * term.high.abs().max(term.low.abs()).max(1.0);
            for (loss, added) in losses.iter().zip(&added) {
                assert!((term.added(Some(*loss)) - added).abs() <= 1e-12 * size, "{line}: {loss}");
                n += 1;
            }
            assert!((term.added(None) - added_without).abs() <= 1e-9 * size, "{line}");
        }
        assert!(n > 500, "only {n} numbers were compared");
    }

    #[test]
    fn mistakes_are_told_at_once() {
        let wrong = LossTerm { coefficient: f64::NAN, strategy: LossStrategy::Uniform, low: 2.0, high: 2.0 };
        let mistakes: Vec<_> = wrong.validated().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            mistakes,
            [
                "`coefficient` = `NaN`: expected a finite number",
                "`high` = `2`: must be above the low loss (2)",
                "`strategy` = `uniform`: weighs no document by its own loss alone",
            ]
        );
        for (low, high) in [(f64::NAN, 1.0), (0.0, f64::INFINITY)] {
            assert_eq!(LossTerm { low, high, ..term(LossStrategy::LinUpper) }.validated().unwrap_err().len(), 1);
        }
        assert!(term(LossStrategy::LinUpper).validated().is_ok());
    }

    proptest! {
        /// A softmax over the documents of a batch gives the paper's weights, where the batch has the range of the term.
        #[test]
        fn they_are_logs_of_the_weights_of_a_batch(
            strategy in prop::sample::select(&LossTerm::STRATEGIES[..]),
            mut losses in prop::collection::vec(1.0f64..5.0, 0..60),
            r in 0.1f64..10.0,
        ) {
            losses.extend([1.0, 5.0]);
            let settings = LossWeightSettings {
                strategy,
                temperature: TemperatureSchedule { burn_in_steps: 0, initial: r, decay: None },
                range: LossRange::MinMax,
                cap: None,
                non_finite: NonFiniteLoss::Error,
            };
            let expected = LossWeight::new(settings).unwrap().weights(&losses, 0).unwrap();
            let term = LossTerm { coefficient: 1.0 / r, ..term(strategy) };
            let parts: Vec<f64> = losses.iter().map(|loss| (term.added(Some(*loss)) - 5.0 / r).exp()).collect();
            let sum: f64 = parts.iter().sum();
            for (part, expected) in parts.iter().zip(expected) {
                prop_assert!((part / sum - expected).abs() < 1e-12);
            }
        }
    }
}
