//! Weights of the samples of a batch from their training losses: which of them should count for more, and how much. Pure.
//!
//! In: the loss of every sample and the number of the training step. Out: one weight a sample, not below zero; they sum
//! to 1, so that Σ w · loss stands where the mean loss stood. Times the number of samples they are multiples of the mean
//! weight. No gradient flows through them.
//!
//! After Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (ICLR 2025).
//! For M samples with losses l (of each the mean cross-entropy of its active tokens, in nats), low and high the ends of
//! the [`LossRange`], and r the temperature:
//!
//! ```text
//! h_i = ((l_i − low) − (high − l_i)) / max(high − low, 1e-6)     in [−1, 1]; l_i beyond an end counts as that end
//! f_i = strategy(h_i)                                            in [0, 1]
//! w_i = exp((f_i − max f) / r) / Σ_j exp((f_j − max f) / r)      then capped
//! ```
//!
//! The published form of h, 2l/D − (low + high)/D, subtracts two large numbers where the range is small; this one gives
//! exactly 0 for equal losses. The paper's δ, the width of h, is 1: it does nothing that r does not do.
//!
//! Two kin are there to compare with: `kl_dro`, which takes the loss itself for f, and r in nats; and `cvar`, which needs
//! no r.
//!
//! Weights do not depend on the order of the samples, not even in the last bit: sums run over sorted numbers.

mod settings;
mod simplex;

pub use settings::{
    LossRange, LossStrategy, LossWeightSettings, NonFiniteLoss, SettingMistake, TemperatureDecay, TemperatureSchedule,
};

/// The published floor of the range, in nats: smaller differences are the noise of single precision, and the smaller they
/// are the nearer weights come to equal ones.
const MIN_RANGE: f64 = 1e-6;

/// Weighs batches by settings that were found valid.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeight {
    settings: LossWeightSettings,
}

/// Why a batch has no weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LossWeightError {
    #[error("{} of {n_losses} losses are not finite: {}", .not_finite.len(), first_of(.not_finite))]
    NotFinite {
        n_losses: usize,
        /// Place in the batch and loss of every one, in order.
        not_finite: Vec<(usize, f64)>,
    },
    #[error("none of {n_losses} losses is finite: there is nothing that could have a weight")]
    NoneFinite { n_losses: usize },
}

/// Names as many as a line holds.
fn first_of(losses: &[(usize, f64)]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = losses.iter().take(SHOWN).map(|(place, loss)| format!("number {place} is {loss}")).collect();
    shown.join(", ") + if losses.len() > SHOWN { ", …" } else { "" }
}

impl LossWeight {
    /// # Errors
    /// Every mistake in the settings.
    pub fn new(settings: LossWeightSettings) -> Result<Self, Vec<SettingMistake>> {
        Ok(LossWeight { settings: settings.validated()? })
    }

    pub fn settings(&self) -> &LossWeightSettings {
        &self.settings
    }

    /// The weight of every sample, in the order of `losses`; none for none. Time O(M log M).
    ///
    /// M counts the samples that can have a weight: without those that [`NonFiniteLoss::Zero`] leaves out. A sample without
    /// active tokens has the loss 0/0, which is not finite.
    ///
    /// # Errors
    /// If losses are not finite and the settings call that an error, or give those no weight and there are no others.
    pub fn weights(&self, losses: &[f64], step: u64) -> Result<Vec<f64>, LossWeightError> {
        let finite: Vec<f64> = losses.iter().copied().filter(|loss| loss.is_finite()).collect();
        let n_losses = losses.len();
        let (n_counted, multiple_of_others) = match self.settings.non_finite {
            _ if finite.len() == n_losses => (n_losses, 0.0),
            NonFiniteLoss::Error => {
                let places = losses.iter().copied().enumerate();
                let not_finite = places.filter(|(_, loss)| !loss.is_finite()).collect();
                return Err(LossWeightError::NotFinite { n_losses, not_finite });
            }
            NonFiniteLoss::Zero if finite.is_empty() => return Err(LossWeightError::NoneFinite { n_losses }),
            NonFiniteLoss::Zero => (finite.len(), 0.0),
            NonFiniteLoss::Uniform => (n_losses, 1.0),
        };
        let mut multiples = self.multiples(&finite, step).into_iter();
        // Divided last: what is not above the cap c is not above c/M either, however it is rounded.
        let weigh = |loss: &f64| {
            let multiple = if loss.is_finite() { multiples.next() } else { None };
            multiple.unwrap_or(multiple_of_others) / n_counted as f64
        };
        Ok(losses.iter().map(weigh).collect())
    }

    /// The weights of finite losses, as multiples of their mean.
    fn multiples(&self, losses: &[f64], step: u64) -> Vec<f64> {
        let LossWeightSettings { strategy, temperature, range, cap, .. } = self.settings;
        let equal = || vec![1.0; losses.len()];
        let Some(temperature) = temperature.at(step) else { return equal() };
        let prefer = match (strategy, strategy.preference()) {
            (LossStrategy::Cvar { share }, _) => return simplex::worst_share(losses, share),
            (_, Some(prefer)) => prefer,
            (_, None) => return equal(),
        };
        let Some(bounds) = Bounds::of(losses, range) else { return Vec::new() };
        let preferences: Vec<f64> = losses.iter().map(|&loss| prefer(bounds, loss)).collect();
        simplex::capped_softmax(&preferences, temperature, cap)
    }
}

/// What f is of a loss.
type Preference = fn(Bounds, f64) -> f64;

impl LossStrategy {
    /// f; `None` where a loss alone says nothing.
    pub(super) fn preference(self) -> Option<Preference> {
        match self {
            LossStrategy::LinUpper => Some(|bounds, loss| (bounds.centred(loss) + 1.0).min(1.0)),
            LossStrategy::Quadratic => Some(|bounds, loss| 1.0 - bounds.centred(loss).powi(2)),
            LossStrategy::Extremes => Some(|bounds, loss| bounds.centred(loss).abs()),
            LossStrategy::KlDro => Some(Bounds::clamp),
            LossStrategy::Uniform | LossStrategy::Cvar { .. } => None,
        }
    }
}

/// What low and high losses are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub low: f64,
    pub high: f64,
}

impl Bounds {
    /// `None` of nothing.
    fn of(losses: &[f64], range: LossRange) -> Option<Self> {
        let mut losses = losses.to_vec();
        let last = losses.len().checked_sub(1)?;
        let cut = range.cut(losses.len());
        let (_, &mut low, above) = losses.select_nth_unstable_by(cut, f64::total_cmp);
        let high = match (last - cut).checked_sub(cut + 1) {
            Some(rank) => *above.select_nth_unstable_by(rank, f64::total_cmp).1,
            None => low,
        };
        Some(Bounds { low, high })
    }

    fn clamp(self, loss: f64) -> f64 {
        loss.clamp(self.low, self.high)
    }

    /// h: −1 at the low end, 0 in the middle, 1 at the high end.
    fn centred(self, loss: f64) -> f64 {
        // Halves, so that no difference of two finite losses overflows.
        let (low, high, loss) = (self.low / 2.0, self.high / 2.0, self.clamp(loss) / 2.0);
        ((loss - low) - (high - loss)) / (high - low).max(MIN_RANGE / 2.0)
    }
}

#[cfg(test)]
mod tests;
