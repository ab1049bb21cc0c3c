//! How losses become weights, and what is wrong with such settings.

use std::fmt;

use serde::{Deserialize, Serialize};

/// All there is to choose. The defaults are the published ones, with a cap and a range that the paper's code lacks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeightSettings {
    pub strategy: LossStrategy,
    pub temperature: TemperatureSchedule,
    pub range: LossRange,
    /// Largest weight, in multiples of the mean weight: c of the bound c/M, at least 1. `None`: no bound. Weights above it
    /// are cut to it and the others scaled up alike, which is the projection by KL divergence.
    ///
    /// The paper's theory assumes 2, which its code does not enforce. Weights of `lin_upper`, `quadratic` and `extremes`
    /// are below 2/M by themselves from the temperature 1 / ln 2 = 1.443 on.
    pub cap: Option<f64>,
    pub non_finite: NonFiniteLoss,
}

/// Which losses count for more. A closed set; a changed function would be a new member.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LossStrategy {
    /// All alike, 1/M. (The published code calls another thing uniform: f = h, which prefers high losses.)
    Uniform,
    /// f = min(h + 1, 1): the less, the lower the loss is below the middle of the range; alike above it. The paper's best.
    LinUpper,
    /// f = 1 − h²: medium losses.
    Quadratic,
    /// f = |h|: low and high losses.
    Extremes,
    /// f = loss in nats, without normalisation (IR-DRO, Chen et al. 2024): the weights that maximise
    /// Σ w · loss − λ · KL(w ‖ equal weights), where λ is the temperature, in nats. Losses beyond the range count as its
    /// ends; `min_max` is the published form.
    KlDro,
    /// Equal weights, 1/(αM), for the worst share α of the losses and none for the others: the weights of which Σ w · loss
    /// is the conditional value at risk (Rockafellar & Uryasev 2002). Where αM is not whole, the last of them gets what is
    /// left of 1; samples of equal loss get equal weights. Of range and temperature only the burn-in matters.
    Cvar {
        /// α, above 0 and up to 1.
        share: f64,
    },
}

impl LossStrategy {
    pub const NAMES: [&str; 6] = ["uniform", "lin_upper", "quadratic", "extremes", "kl_dro", "cvar"];

    pub fn as_str(self) -> &'static str {
        match self {
            LossStrategy::Uniform => Self::NAMES[0],
            LossStrategy::LinUpper => Self::NAMES[1],
            LossStrategy::Quadratic => Self::NAMES[2],
            LossStrategy::Extremes => Self::NAMES[3],
            LossStrategy::KlDro => Self::NAMES[4],
            LossStrategy::Cvar { .. } => Self::NAMES[5],
        }
    }
}

/// The temperature r by training step, counted from 0: towards infinity weights are equal, towards 0 the most preferred
/// samples get all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemperatureSchedule {
    /// So many first steps have equal weights, while losses say little yet. Published: 1,000 of 20,000.
    pub burn_in_steps: u64,
    /// r of the step after them. Published: 1 for 124 million parameters, 0.4 for more.
    pub initial: f64,
    /// `None`: it stays.
    pub decay: Option<TemperatureDecay>,
}

/// floor + (initial − floor) · 2^(−steps after the burn-in / half-life).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemperatureDecay {
    pub half_life_steps: u64,
    pub floor: f64,
}

impl TemperatureSchedule {
    /// r of a step; `None` while weights are equal.
    pub fn at(&self, step: u64) -> Option<f64> {
        let steps = step.checked_sub(self.burn_in_steps)?;
        Some(match self.decay {
            None => self.initial,
            Some(TemperatureDecay { half_life_steps, floor }) => {
                floor + (self.initial - floor) * (-(steps as f64) / half_life_steps as f64).exp2()
            }
        })
    }
}

/// What is a low and what a high loss. Losses beyond count as the ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LossRange {
    /// The lowest and the highest, as published. One corrupt document of very high loss then takes a large weight and makes
    /// all others alike.
    MinMax,
    /// The quantiles `tail` and 1 − `tail`, each a loss that occurs: of M sorted losses, those at the nearest rank,
    /// ⌊tail · (M − 1) + ½⌋ places from either end. With the default of 0.01, those are the lowest and the highest of up to
    /// 50 losses.
    Quantiles {
        /// From 0 to 0.25.
        tail: f64,
    },
}

impl LossRange {
    /// Losses beyond each end, of so many.
    pub(super) fn cut(self, n_losses: usize) -> usize {
        match self {
            LossRange::MinMax => 0,
            LossRange::Quantiles { tail } => (tail * n_losses.saturating_sub(1) as f64 + 0.5) as usize,
        }
    }
}

/// What becomes of samples whose loss is infinite or no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFiniteLoss {
    /// The batch has no weights: something went wrong where the losses were made.
    Error,
    /// They get 1/M each, and the others share the rest.
    Uniform,
    /// They get nothing, as if they were not in the batch.
    Zero,
}

impl NonFiniteLoss {
    pub const NAMES: [&str; 3] = ["error", "uniform", "zero"];

    pub fn as_str(self) -> &'static str {
        match self {
            NonFiniteLoss::Error => Self::NAMES[0],
            NonFiniteLoss::Uniform => Self::NAMES[1],
            NonFiniteLoss::Zero => Self::NAMES[2],
        }
    }
}

impl Default for LossWeightSettings {
    fn default() -> Self {
        LossWeightSettings {
            strategy: LossStrategy::LinUpper,
            temperature: TemperatureSchedule::default(),
            range: LossRange::Quantiles { tail: 0.01 },
            cap: Some(2.0),
            non_finite: NonFiniteLoss::Error,
        }
    }
}

impl Default for TemperatureSchedule {
    fn default() -> Self {
        TemperatureSchedule { burn_in_steps: 1_000, initial: 1.0, decay: None }
    }
}

/// One setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingMistake {
    /// Dotted, as it is serialised: `temperature.initial`.
    pub key: &'static str,
    pub value: String,
    pub problem: String,
}

impl fmt::Display for SettingMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SettingMistake { key, value, problem } = self;
        write!(f, "`{key}` = `{value}`: {problem}")
    }
}

impl LossWeightSettings {
    /// The settings themselves, or every mistake in them.
    pub fn validated(self) -> Result<Self, Vec<SettingMistake>> {
        let mut mistakes = Vec::new();
        let mut expect = |fine: bool, key, value: f64, problem: &str| {
            if !fine {
                mistakes.push(SettingMistake { key, value: value.to_string(), problem: problem.to_owned() });
            }
        };
        let above_zero = |number: f64| number.is_finite() && number > 0.0;
        let TemperatureSchedule { initial, decay, .. } = self.temperature;
        expect(above_zero(initial), "temperature.initial", initial, "expected a number above 0");
        if let Some(TemperatureDecay { half_life_steps, floor }) = decay {
            let key = "temperature.decay.half_life_steps";
            expect(half_life_steps > 0, key, half_life_steps as f64, "expected at least 1 step");
            let key = "temperature.decay.floor";
            expect(above_zero(floor), key, floor, "expected a number above 0");
            let rises = above_zero(floor) && above_zero(initial) && floor > initial;
            expect(!rises, key, floor, &format!("is above temperature.initial ({initial})"));
        }
        if let LossRange::Quantiles { tail } = self.range {
            expect((0.0..=0.25).contains(&tail), "range.quantiles.tail", tail, "expected a number from 0 to 0.25");
        }
        let cap = self.cap.unwrap_or(1.0);
        let is_cap = cap.is_finite() && cap >= 1.0;
        expect(
            is_cap,
            "cap",
            cap,
            "expected a number of at least 1: weights that sum to 1 cannot all be below the mean",
        );
        if let LossStrategy::Cvar { share } = self.strategy {
            let is_share = share > 0.0 && share <= 1.0 && (1.0 / share).is_finite();
            expect(is_share, "strategy.cvar.share", share, "expected a number above 0 and up to 1");
            let contradicts = self.cap.is_some() && is_cap && is_share && cap < 1.0 / share;
            let problem = format!("cvar gives its worst samples up to {} times the mean (1 / share)", 1.0 / share);
            expect(!contradicts, "cap", cap, &problem);
        }
        if mistakes.is_empty() { Ok(self) } else { Err(mistakes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_by_their_names_and_anything_else_is_refused() {
        let read = |json: &str| serde_json::from_str::<LossWeightSettings>(json);
        assert_eq!(read("{}").unwrap(), LossWeightSettings::default());
        assert!(LossWeightSettings::default().validated().is_ok());
        let all = r#"{"strategy":{"cvar":{"share":0.5}},"temperature":{"burn_in_steps":5,"initial":1.0,"decay":{"half_life_steps":7,"floor":0.5}},"range":{"quantiles":{"tail":0.05}},"cap":null,"non_finite":"zero"}"#;
        assert_eq!(serde_json::to_string(&read(all).unwrap()).unwrap(), all);
        for name in LossStrategy::NAMES {
            let value = if name == "cvar" { r#"{"cvar":{"share":0.5}}"#.to_owned() } else { format!("\"{name}\"") };
            assert_eq!(serde_json::from_str::<LossStrategy>(&value).unwrap().as_str(), name);
        }
        for name in NonFiniteLoss::NAMES {
            assert_eq!(serde_json::from_str::<NonFiniteLoss>(&format!("\"{name}\"")).unwrap().as_str(), name);
        }
        for wrong in [
            r#"{"strategy":"upper"}"#,
            r#"{"delta":1}"#,
            r#"{"temperature":{"r":1}}"#,
            r#"{"strategy":{"cvar":{"share":0.5,"of":1}}}"#,
            r#"{"range":{"quantiles":{}}}"#,
            r#"{"temperature":{"decay":{"half_life_steps":7}}}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mistakes = |settings: LossWeightSettings| -> Vec<String> {
            settings.validated().unwrap_err().iter().map(ToString::to_string).collect()
        };
        let decay = |half_life_steps, floor| Some(TemperatureDecay { half_life_steps, floor });
        let settings = LossWeightSettings {
            strategy: LossStrategy::Cvar { share: 1.5 },
            temperature: TemperatureSchedule { burn_in_steps: 0, initial: -1.0, decay: decay(0, f64::NAN) },
            range: LossRange::Quantiles { tail: 0.3 },
            cap: Some(0.5),
            non_finite: NonFiniteLoss::Zero,
        };
        assert_eq!(
            mistakes(settings),
            [
                "`temperature.initial` = `-1`: expected a number above 0",
                "`temperature.decay.half_life_steps` = `0`: expected at least 1 step",
                "`temperature.decay.floor` = `NaN`: expected a number above 0",
                "`range.quantiles.tail` = `0.3`: expected a number from 0 to 0.25",
                "`cap` = `0.5`: expected a number of at least 1: weights that sum to 1 cannot all be below the mean",
                "`strategy.cvar.share` = `1.5`: expected a number above 0 and up to 1",
            ]
        );
        let rising = TemperatureSchedule { burn_in_steps: 0, initial: 0.5, decay: decay(10, 0.75) };
        let settings = LossWeightSettings {
            strategy: LossStrategy::Cvar { share: 0.1 },
            temperature: rising,
            ..Default::default()
        };
        assert_eq!(
            mistakes(settings),
            [
                "`temperature.decay.floor` = `0.75`: is above temperature.initial (0.5)",
                "`cap` = `2`: cvar gives its worst samples up to 10 times the mean (1 / share)",
            ]
        );
        let settings = |strategy, initial| LossWeightSettings {
            strategy,
            temperature: TemperatureSchedule { initial, ..Default::default() },
            cap: None,
            ..Default::default()
        };
        for number in [0.0, f64::INFINITY, f64::NAN] {
            assert_eq!(mistakes(settings(LossStrategy::LinUpper, number)).len(), 1, "temperature {number}");
            assert_eq!(mistakes(settings(LossStrategy::Cvar { share: number }, 1.0)).len(), 1, "share {number}");
            let capped = LossWeightSettings { cap: Some(number), ..Default::default() };
            assert_eq!(mistakes(capped).len(), 1, "cap {number}");
        }
    }

    #[test]
    fn robust_ends_begin_with_fifty_one_losses() {
        let LossWeightSettings { range, .. } = LossWeightSettings::default();
        assert_eq!([0, 1, 50, 51, 150, 151, 1_024].map(|n| range.cut(n)), [0, 0, 0, 1, 1, 2, 10]);
    }
}
