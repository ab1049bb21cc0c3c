//! The loss that a trainer can be expected to have on a document, from its n-grams: a linear regression learnt from the losses of
//! published documents, one at a time. Pure.
//!
//! A document's features are the shares of its n-grams by bucket, so they sum to 1, and each bucket's weight is what its n-grams
//! add to the mean loss: the prediction is the mean of the weights over the n-grams, plus a bias that follows the mean loss.
//!
//! Why AdaGrad with a ridge (Duchi, Hazan & Singer 2011): features differ in frequency by five orders of magnitude, and the rate of
//! each bucket must follow its own; a second-order method needs the square of 10,000 buckets; FTRL-proximal is AdaGrad plus zeros,
//! and zeros are of no use in a table that is dense anyway. A step moves a prediction by at most the rate, so no single loss can
//! throw the model. What was learnt fades by a half-life: the trainer moves on.
//!
//! Losses are of selected documents, predictions of all: each observation weighs 1 / its inclusion probability, up to a bound,
//! relative to the mean of that. Only a sample of a document's n-grams is kept until its loss comes: learning from a sample is
//! dropout, which adds a ridge of its own (Wager, Wang & Liang 2013) and leaves no bias in what is learnt.
//!
//! The state is a function of the observations in their order, bit for bit.

mod bytes;
mod evaluation;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use bytes::PredictorError;
pub use evaluation::{Calibration, Evaluation};

use crate::features::{BucketList, Featuriser};

/// Larger tables are folded to so many buckets, modulo: the state is written with every batch of feedback, and two bytes are
/// enough for an n-gram that is kept.
pub const MAX_PREDICTOR_BUCKETS: u32 = 1 << 16;
/// Of a step, in root mean squared errors: so the same losses in another unit are learnt alike, and steps become smaller as errors do.
/// On the bundled sample, with the losses of a bigram model, 0.3 explains 28 % of the variance, 1 explains 48 % and 2 explains 58 %;
/// of pure noise they learn 1, 4 and 12 % too much.
const RATE: f64 = 1.0;
/// How much of the weights is left after as many observations as the half-life, by the ridge alone.
const RIDGE_KEPT: f64 = 0.9;
/// Weights fade and rates recover every so many observations, not at each: all buckets are touched.
const REST: u64 = 256;
/// 1 / inclusion probability is taken up to here: rare documents must not make the steps of all others small.
const MAX_IMPORTANCE: f64 = 8.0;

/// One version of what is expected, to score with.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpectedLoss {
    /// Of the n-grams that it knows.
    featuriser: Featuriser,
    bias: f64,
    weights: Arc<[f64]>,
}

/// A version of the predictor, and how much it says in a document's total log weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExpectedLossVersion {
    pub version: i64,
    /// Of the expected loss in nats a token.
    pub coefficient: f64,
}

impl ExpectedLoss {
    pub fn featuriser(&self) -> &Featuriser {
        &self.featuriser
    }

    /// Whether it rests on any loss. The bias follows their mean, which is 0 for losses of 0 alone: then there was nothing to learn.
    pub fn has_learnt(&self) -> bool {
        self.bias != 0.0
    }

    /// `sum` and the weights of further n-grams, in their order: the same however a document is cut in pieces.
    pub fn add(&self, sum: f64, buckets: &[u32]) -> f64 {
        buckets.iter().fold(sum, |sum, &bucket| sum + self.weights[fold(bucket)])
    }

    /// What is expected of a document with so many n-grams and this sum.
    pub fn of_sum(&self, sum: f64, n_ngrams: u64) -> f64 {
        self.bias + sum / n_ngrams.max(1) as f64
    }

    pub fn of_list(&self, list: &BucketList) -> f64 {
        let (mut sum, mut n) = (0.0, 0);
        list.for_each_chunk(|buckets| {
            sum = self.add(sum, buckets);
            n += buckets.len() as u64;
        });
        self.of_sum(sum, n)
    }
}

/// What is learnt, and how well it has predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct LossPredictor {
    weights: Vec<f64>,
    /// Sums of squared gradients.
    squares: Vec<f64>,
    half_life: f64,
    numbers: Numbers,
}

/// All but the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Numbers {
    featuriser: Featuriser,
    n_observed: u64,
    bias: f64,
    /// Decayed number of observations.
    weight: f64,
    /// Mean of the bounded 1 / inclusion probability.
    importance: f64,
    evaluation: Evaluation,
}

impl LossPredictor {
    /// For the n-grams of a featuriser; `half_life` in observations, above 0.
    pub fn new(featuriser: &Featuriser, half_life: f64) -> Self {
        let buckets = n_buckets(featuriser);
        let numbers = Numbers {
            featuriser: *featuriser,
            n_observed: 0,
            bias: 0.0,
            weight: 0.0,
            importance: 0.0,
            evaluation: Evaluation::default(),
        };
        LossPredictor { weights: vec![0.0; buckets], squares: vec![0.0; buckets], half_life, numbers }
    }

    pub fn featuriser(&self) -> &Featuriser {
        &self.numbers.featuriser
    }

    pub fn n_observed(&self) -> u64 {
        self.numbers.n_observed
    }

    /// How well it has predicted what it had not yet learnt.
    pub fn evaluation(&self) -> &Evaluation {
        &self.numbers.evaluation
    }

    /// What it expects now.
    pub fn expected(&self) -> ExpectedLoss {
        let Numbers { featuriser, bias, .. } = self.numbers;
        ExpectedLoss { featuriser, bias, weights: self.weights.as_slice().into() }
    }

    pub fn set_half_life(&mut self, half_life: f64) {
        self.half_life = half_life;
    }

    /// Predicts the loss of a document from (a sample of) its n-grams, notes how far that was off, then learns it. A document
    /// without n-grams teaches the bias alone. Gives the prediction.
    pub fn observe(&mut self, ngrams: &BucketList, loss: f64, inclusion_probability: f64) -> f64 {
        let kept = (-1.0 / self.half_life).exp2();
        let importance = (1.0 / inclusion_probability).clamp(1.0, MAX_IMPORTANCE);
        let numbers = &mut self.numbers;
        numbers.n_observed += 1;
        numbers.weight = numbers.weight * kept + 1.0;
        numbers.importance += (importance - numbers.importance) / numbers.weight;
        let relative = importance / numbers.importance;

        let (mut sum, mut buckets) = (0.0, Vec::new());
        ngrams.for_each_chunk(|chunk| {
            sum = chunk.iter().fold(sum, |sum, &bucket| sum + self.weights[fold(bucket)]);
            buckets.extend_from_slice(chunk);
        });
        let n_ngrams = buckets.len().max(1) as f64;
        let is_first = numbers.n_observed == 1;
        let predicted = if is_first { loss } else { numbers.bias + sum / n_ngrams };
        if !is_first {
            numbers.evaluation.observe(predicted, numbers.bias, loss, kept);
        }
        let error = loss - predicted;
        numbers.bias += (loss - numbers.bias) * (relative / numbers.weight).min(1.0);
        // This error is among them: it must not make its own step long.
        let rate = RATE * self.numbers.evaluation.root_mean_squared_error().unwrap_or_default();
        self.learn(buckets, relative * error / n_ngrams, rate);
        if self.numbers.n_observed.is_multiple_of(REST) {
            self.fade();
        }
        predicted
    }

    /// One step of AdaGrad. The gradient of a bucket is `each` times its n-grams in the document.
    fn learn(&mut self, mut buckets: Vec<u32>, each: f64, rate: f64) {
        if each == 0.0 {
            return;
        }
        buckets.sort_unstable();
        for same in buckets.chunk_by(|a, b| a == b) {
            let (bucket, gradient) = (fold(same[0]), same.len() as f64 * each);
            self.squares[bucket] += gradient * gradient;
            self.weights[bucket] += rate * gradient / self.squares[bucket].sqrt();
        }
    }

    fn fade(&mut self) {
        let share = REST as f64 / self.half_life;
        let (ridge, forgotten) = (RIDGE_KEPT.powf(share), (-share).exp2());
        self.weights.iter_mut().for_each(|weight| *weight *= ridge);
        self.squares.iter_mut().for_each(|sum| *sum *= forgotten);
    }
}

/// Of a table.
fn n_buckets(featuriser: &Featuriser) -> usize {
    featuriser.buckets.min(MAX_PREDICTOR_BUCKETS) as usize
}

/// The place of a bucket in a table.
fn fold(bucket: u32) -> usize {
    (bucket % MAX_PREDICTOR_BUCKETS) as usize
}

/// At most `most` n-grams of a document: one of every stretch of equal length, which one by a hash of its place, so that neither a
/// part of the text nor a kind of n-gram (uni- and bigrams take turns) is preferred.
pub fn sample_ngrams(all: &[u32], most: usize) -> BucketList {
    let mut list = BucketList::new(MAX_PREDICTOR_BUCKETS);
    let n = all.len();
    if n <= most {
        all.iter().for_each(|&bucket| list.extend(&[bucket % MAX_PREDICTOR_BUCKETS]));
        return list;
    }
    for i in 0..most {
        let (from, to) = (i * n / most, (i + 1) * n / most);
        let noise = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (n as u64);
        let noise = noise.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32;
        list.extend(&[all[from + noise as usize % (to - from)] % MAX_PREDICTOR_BUCKETS]);
    }
    list
}

#[cfg(test)]
mod tests;
