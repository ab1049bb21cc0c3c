//! The log importance weights of a text for all targets of a model, from one pass over the text.

use crate::features::{BucketWidth, Scratch};
use crate::score::{ImportanceWeight, Model};

pub struct Weights {
    of_targets: Vec<ImportanceWeight>,
    columns: Vec<String>,
}

impl Weights {
    pub fn new(model: &Model) -> Self {
        let columns = match &model.targets[..] {
            [_] => vec!["log_importance_weight".to_owned()],
            targets => targets.iter().map(|t| format!("log_importance_weight_{}", t.name)).collect(),
        };
        Weights { of_targets: ImportanceWeight::of_targets(model), columns }
    }

    /// Number of targets.
    pub fn len(&self) -> usize {
        self.of_targets.len()
    }

    /// What the weights are called in files, one name for each target.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Calls `each` with the weight for every target of a text whose n-grams were packed in `buckets`.
    pub fn of_buckets(&self, width: BucketWidth, buckets: &[u8], mut each: impl FnMut(f64)) {
        for weight in &self.of_targets {
            let mut sum = 0.0;
            width.for_each_chunk(buckets, |chunk| sum = weight.add(sum, chunk));
            each(sum);
        }
    }

    /// Calls `each` with the weight for every target and gives the number of tokens.
    pub fn score(&self, text: &str, scratch: &mut Scratch, mut each: impl FnMut(usize, f64)) -> u32 {
        if let [weight] = &self.of_targets[..] {
            let score = weight.score(text, scratch);
            each(0, score.log_importance_weight);
            return score.n_tokens;
        }
        let mut sums = vec![0.0; self.of_targets.len()];
        let n_tokens = self.of_targets[0].featuriser().for_each_chunk(text, scratch, |buckets| {
            sums.iter_mut().zip(&self.of_targets).for_each(|(sum, weight)| *sum = weight.add(*sum, buckets));
        });
        sums.into_iter().enumerate().for_each(|(target, sum)| each(target, sum));
        n_tokens
    }
}
