//! From a text to hashed n-grams: lower-case, word-punct tokens, n-grams, buckets. Pure.
//!
//! In: `&str`. Out: the token count and one bucket per n-gram, in a fixed order. A [`Featuriser`] is part of a model;
//! weights of two models with different featurisers cannot be compared.

mod lowercase;
mod ngrams;
mod tables;
mod tokens;

use serde::{Deserialize, Serialize};

pub use lowercase::lowercase_into;
pub use tokens::{CharClass, char_class, for_each_token};

/// How texts become buckets. Stored in the model; a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Featuriser {
    /// The published DSIR package (`data-selection` 1.0.3, Xie et al. 2023): bucket = SHA-256 of the n-gram's UTF-8,
    /// as one big-endian integer, modulo `buckets`; n-grams of 1 to `max_n` tokens joined by one space.
    Reference { max_n: u8, buckets: u32 },
}

impl Default for Featuriser {
    /// The package's defaults: uni- and bigrams in 10,000 buckets.
    fn default() -> Self {
        Featuriser::Reference { max_n: 2, buckets: 10_000 }
    }
}

/// Buffers of one thread, reused from text to text.
#[derive(Debug, Default)]
pub struct Scratch {
    lowered: String,
    /// The last `max_n` tokens, as ranges of `lowered`.
    recent: std::collections::VecDeque<std::ops::Range<usize>>,
    ngram: Vec<u8>,
}

impl Featuriser {
    pub const MAX_N: u8 = 8;
    pub const MAX_BUCKETS: u32 = 1 << 24;

    /// The featuriser itself, or what is wrong with its settings.
    pub fn validated(self) -> Result<Self, String> {
        let Featuriser::Reference { max_n, buckets } = self;
        if !(1..=Self::MAX_N).contains(&max_n) {
            return Err(format!("n-grams of up to {max_n} tokens: must be 1 to {}", Self::MAX_N));
        }
        if !(2..=Self::MAX_BUCKETS).contains(&buckets) {
            return Err(format!("{buckets} buckets: must be 2 to {}", Self::MAX_BUCKETS));
        }
        Ok(self)
    }

    pub fn buckets(&self) -> usize {
        let Featuriser::Reference { buckets, .. } = self;
        *buckets as usize
    }

    /// Calls `bucket` once per n-gram and returns the number of tokens.
    ///
    /// Order: by the n-gram's last token, shorter n-grams first. It is fixed because floating-point sums over the
    /// buckets depend on it in their last bits.
    pub fn for_each_bucket(&self, text: &str, scratch: &mut Scratch, bucket: impl FnMut(u32)) -> u32 {
        let Featuriser::Reference { max_n, buckets } = *self;
        ngrams::reference_buckets(text, max_n, buckets, scratch, bucket)
    }
}

#[cfg(test)]
mod tests;
