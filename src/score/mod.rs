//! Numbers for a document: n-gram distributions, the model fitted from them, and the log importance weight (DSIR). Pure.

mod adaptive;
mod distribution;
mod importance;
mod model;

pub use adaptive::{DecayedCounts, DecayedCountsError, SelectedVersion, VersionedWeight, WeightVersion};
pub use distribution::{DEFAULT_SMOOTHING, NgramCounts, Probabilities, TargetDistribution, kl_divergence};
pub use importance::{ImportanceWeight, Score};
pub use model::{Model, ModelError, ModelId, Provenance, Side, Target};
