//! The log importance weight of DSIR (Xie et al. 2023, "Data Selection for Language Models via Importance Resampling").

use crate::features::{Featuriser, Scratch};

use super::{Model, distribution::SMOOTHING};

/// What scoring says of one text.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    pub n_tokens: u32,
    /// Σ over n-grams of log(p_target + ε) − log(p_raw + ε), in nats; 0 for a text without tokens.
    pub log_importance_weight: f64,
}

/// Scores texts against one model: a log ratio per bucket, ready to be summed.
#[derive(Debug, Clone)]
pub struct ImportanceWeight {
    featuriser: Featuriser,
    log_ratio: Vec<f64>,
}

impl ImportanceWeight {
    pub fn new(model: &Model) -> Self {
        let log_ratio = model.target.probabilities().zip(model.raw.probabilities());
        ImportanceWeight {
            featuriser: model.featuriser,
            log_ratio: log_ratio.map(|(target, raw)| (target + SMOOTHING).ln() - (raw + SMOOTHING).ln()).collect(),
        }
    }

    pub fn score(&self, text: &str, scratch: &mut Scratch) -> Score {
        let mut log_importance_weight = 0.0;
        let n_tokens = self
            .featuriser
            .for_each_bucket(text, scratch, |bucket| log_importance_weight += self.log_ratio[bucket as usize]);
        Score { n_tokens, log_importance_weight }
    }

    /// The same of a text whose buckets are known, in their order.
    pub fn score_buckets(&self, n_tokens: u32, buckets: &[u32]) -> Score {
        let log_importance_weight = buckets.iter().map(|&bucket| self.log_ratio[bucket as usize]).sum();
        Score { n_tokens, log_importance_weight }
    }
}
