//! How well losses were predicted before they were learnt: progressive validation (Blum, Kalai & Langford 1999).

use serde::{Deserialize, Serialize};

use crate::score::FadingSketch;

/// Decayed sums over the observations, each predicted before it was learnt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    weight: f64,
    absolute: f64,
    squared: f64,
    /// Of the mean predictor, which knew the same losses.
    squared_of_mean: f64,
    predictions: FadingSketch,
    tenths: [Tenth; 10],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Tenth {
    weight: f64,
    predicted: f64,
    observed: f64,
}

/// One tenth of the predictions, the lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Calibration {
    pub predicted: f64,
    pub observed: f64,
}

impl Evaluation {
    pub(super) fn observe(&mut self, predicted: f64, mean: f64, loss: f64, kept: f64) {
        for sum in [&mut self.weight, &mut self.absolute, &mut self.squared, &mut self.squared_of_mean] {
            *sum *= kept;
        }
        self.weight += 1.0;
        self.absolute += (loss - predicted).abs();
        self.squared += (loss - predicted).powi(2);
        self.squared_of_mean += (loss - mean).powi(2);
        let tenth = ((10.0 * self.predictions.rank(predicted)) as usize).min(9);
        self.predictions.scale(kept);
        self.predictions.add(predicted, 1.0);
        for Tenth { weight, predicted, observed } in &mut self.tenths {
            (*weight, *predicted, *observed) = (*weight * kept, *predicted * kept, *observed * kept);
        }
        let Tenth { weight, predicted: sum, observed } = &mut self.tenths[tenth];
        *weight += 1.0;
        *sum += predicted;
        *observed += loss;
    }

    /// Mean absolute error, in nats; `None` before there are predictions, like all of these.
    pub fn mean_absolute_error(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.absolute / self.weight)
    }

    /// Root of the mean squared error, in nats.
    pub fn root_mean_squared_error(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| (self.squared / self.weight).sqrt())
    }

    /// R²: 1 − squared error over that of predicting the mean of what had been seen. Below 0 it is of no use.
    pub fn explained(&self) -> Option<f64> {
        (self.squared_of_mean > 0.0).then(|| 1.0 - self.squared / self.squared_of_mean)
    }

    /// Predicted against observed, by tenths of the predictions; those that hold less than a hundredth of them say nothing.
    pub fn calibration(&self) -> Vec<Calibration> {
        let held = self.tenths.iter().filter(|tenth| tenth.weight > 0.01 * self.weight);
        held.map(|t| Calibration { predicted: t.predicted / t.weight, observed: t.observed / t.weight }).collect()
    }
}
