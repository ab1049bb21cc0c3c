//! What a window remembers of every document, whether or not it can still be selected.

use crate::score::{NgramCounts, Score};
use crate::select::{Noise, SelectorSettings, SourceCounts};

/// A dozen bytes a candidate and two count vectors; no allocation of its own for a document.
#[derive(Debug)]
pub(super) struct Statistics {
    /// Of all documents.
    pub raw: NgramCounts,
    /// Of a random sample of the same share as the selection, which the selection is compared with.
    pub baseline: NgramCounts,
    baseline_share: f64,
    pub sources: SourceCounts,
    /// Total log weights and lengths of the candidates, in order.
    pub log_weights: Vec<f64>,
    pub n_tokens: Vec<u32>,
}

impl Statistics {
    pub fn new(buckets: usize, selector: &SelectorSettings) -> Self {
        Statistics {
            raw: NgramCounts::zero(buckets),
            baseline: NgramCounts::zero(buckets),
            baseline_share: selector.fraction.as_f64(),
            sources: SourceCounts::default(),
            log_weights: Vec::new(),
            n_tokens: Vec::new(),
        }
    }

    /// Counts a document; `each_chunk` is called with what takes its buckets.
    pub fn count(
        &mut self,
        offset: i64,
        source: Option<&str>,
        noise: &Noise,
        each_chunk: impl FnOnce(&mut dyn FnMut(&[u32])),
    ) {
        self.sources.document(source);
        if noise.in_baseline(offset, self.baseline_share) {
            each_chunk(&mut |buckets| {
                self.raw.add_buckets(buckets);
                self.baseline.add_buckets(buckets);
            });
        } else {
            each_chunk(&mut |buckets| self.raw.add_buckets(buckets));
        }
    }

    /// Remembers a candidate and gives its number, from 0.
    pub fn candidate(&mut self, score: &Score, total_log_weight: f64) -> usize {
        self.log_weights.push(total_log_weight);
        self.n_tokens.push(score.n_tokens);
        self.log_weights.len() - 1
    }

    pub fn held_bytes(&self) -> usize {
        2 * size_of_val(self.raw.as_slice())
            + self.sources.held_bytes()
            + self.log_weights.capacity() * size_of::<f64>()
            + self.n_tokens.capacity() * size_of::<u32>()
    }
}
