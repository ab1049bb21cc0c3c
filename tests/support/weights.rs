//! What the weights of a step must be.

use serde_json::Value;
use winnowd::score::{LossWeight, LossWeightSettings, TemperatureSchedule};

/// The defaults, but for a burn-in of ten steps.
pub const BURN_IN: &str = "loss_weight.burn_in_steps = 10";

/// What the paper's mathematics says of the same losses, with [`BURN_IN`].
pub fn expected_weights(losses: &[f64], step: u64) -> Vec<f64> {
    let temperature = TemperatureSchedule { burn_in_steps: 10, ..TemperatureSchedule::default() };
    let settings = LossWeightSettings { temperature, ..LossWeightSettings::default() };
    LossWeight::new(settings).expect("valid settings").weights(losses, step).expect("finite losses")
}

pub fn weights_of(answer: &Value) -> Vec<f64> {
    let samples = answer["weights"].as_array().expect("weights");
    samples.iter().map(|sample| sample["weight"].as_f64().expect("a number")).collect()
}
