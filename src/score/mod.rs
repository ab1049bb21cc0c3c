//! Numbers for a document: n-gram distributions, the model fitted from them, and the log importance weight (DSIR); weights
//! from training losses, and the losses to be expected. Pure.

mod adaptive;
mod distribution;
mod drift;
mod expected_loss;
mod importance;
mod loss_batch;
mod loss_term;
mod loss_weight;
mod model;
mod sketch;

pub use adaptive::{DecayedCounts, DecayedCountsError, SelectedVersion, VersionedWeight, WeightVersion};
pub use distribution::{DEFAULT_SMOOTHING, NgramCounts, NgramTally, Probabilities, TargetDistribution, kl_divergence};
pub use drift::DriftMeter;
pub use expected_loss::{
    Calibration, Evaluation, ExpectedLoss, ExpectedLossVersion, LossPredictor, MAX_PREDICTOR_BUCKETS, PredictorError,
    sample_ngrams,
};
pub use importance::{ImportanceWeight, Score};
pub use loss_batch::{
    Assembled, Assembly, AssemblySettings, BadSample, BatchError, BatchWeights, Entered, GlobalBatch, KnownSteps,
    RankSamples, SampleWeight, StepKey, Taken, Why,
};
pub use loss_term::LossTerm;
pub use loss_weight::{
    LossRange, LossStrategy, LossWeight, LossWeightError, LossWeightSettings, NonFiniteLoss, SettingMistake,
    TemperatureDecay, TemperatureSchedule,
};
pub use model::{AllInputs, Model, ModelError, ModelId, Provenance, Side, Target};
pub use sketch::FadingSketch;
