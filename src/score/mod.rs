//! Numbers for a document: n-gram distributions, the model fitted from them, and the log importance weight (DSIR); weights
//! from training losses. Pure.

mod adaptive;
mod distribution;
mod importance;
mod loss_weight;
mod model;

pub use adaptive::{DecayedCounts, DecayedCountsError, SelectedVersion, VersionedWeight, WeightVersion};
pub use distribution::{DEFAULT_SMOOTHING, NgramCounts, NgramTally, Probabilities, TargetDistribution, kl_divergence};
pub use importance::{ImportanceWeight, Score};
pub use loss_weight::{
    LossRange, LossStrategy, LossWeight, LossWeightError, LossWeightSettings, NonFiniteLoss, SettingMistake,
    TemperatureDecay, TemperatureSchedule,
};
pub use model::{Model, ModelError, ModelId, Provenance, Side, Target};
