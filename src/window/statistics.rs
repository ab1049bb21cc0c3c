//! What a window remembers of every document, whether or not it can still be selected.

use super::columns;
use crate::score::{NgramCounts, NgramTally, Score};
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

    /// Counts the n-grams of a document; `each_chunk` is called with what takes its buckets.
    pub fn count(&mut self, offset: i64, noise: &Noise, each_chunk: impl FnOnce(&mut dyn FnMut(&[u32]))) {
        if noise.in_baseline(offset, self.baseline_share) {
            each_chunk(&mut |buckets| {
                self.raw.add_buckets(buckets);
                self.baseline.add_buckets(buckets);
            });
        } else {
            each_chunk(&mut |buckets| self.raw.add_buckets(buckets));
        }
    }

    /// Takes what was counted beside it.
    pub fn add(&mut self, WindowTally { sampled, others }: &WindowTally) {
        sampled.add_to(&mut self.raw);
        others.add_to(&mut self.raw);
        sampled.add_to(&mut self.baseline);
    }

    /// Remembers a candidate and gives its number, from 0.
    pub fn candidate(&mut self, score: &Score, total_log_weight: f64) -> u32 {
        columns::push(&mut self.log_weights, total_log_weight);
        columns::push(&mut self.n_tokens, score.n_tokens);
        self.log_weights.len() as u32 - 1
    }

    pub fn held_bytes(&self) -> usize {
        2 * size_of_val(self.raw.as_slice())
            + self.sources.held_bytes()
            + columns::held_bytes(&self.log_weights)
            + columns::held_bytes(&self.n_tokens)
    }
}

/// N-grams of documents of one window, counted beside it: by one thread, of the records of one batch.
#[derive(Debug)]
pub struct WindowTally {
    /// Of the documents in the random sample.
    sampled: NgramTally,
    others: NgramTally,
}

impl WindowTally {
    pub fn zero(buckets: usize) -> Self {
        WindowTally { sampled: NgramTally::zero(buckets), others: NgramTally::zero(buckets) }
    }

    /// Where the n-grams of a document are counted.
    pub fn of_document(&mut self, offset: i64, selector: &SelectorSettings, noise: &Noise) -> &mut NgramTally {
        let is_sampled = noise.in_baseline(offset, selector.fraction.as_f64());
        if is_sampled { &mut self.sampled } else { &mut self.others }
    }

    pub fn clear(&mut self) {
        self.sampled.clear();
        self.others.clear();
    }

    pub fn buckets(&self) -> usize {
        self.others.buckets()
    }
}
