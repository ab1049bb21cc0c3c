//! From a text to hashed n-grams: lower-case, word-punct tokens, n-grams, buckets. Pure.
//!
//! In: `&str`. Out: the token count and one bucket per n-gram, in a fixed order. A [`Featuriser`] is part of a model;
//! weights of two models with different featurisers cannot be compared.

mod fast;
mod lowercase;
mod reference;
mod tables;
mod tokens;

use serde::{Deserialize, Serialize};

pub use lowercase::lowercase_into;
pub use tokens::{CharClass, char_class, for_each_token};

/// How texts become buckets. Stored in the model; models with different featurisers cannot be mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Featuriser {
    #[serde(rename = "name")]
    pub hash: NgramHash,
    /// Longest n-gram, in tokens.
    pub max_n: u8,
    pub buckets: u32,
}

/// How an n-gram becomes a bucket. A closed set; a changed function would be a new member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NgramHash {
    /// The published DSIR package (`data-selection` 1.0.3, Xie et al. 2023): the SHA-256 of the n-gram's UTF-8, its
    /// tokens joined by one space, as one big-endian integer, modulo the number of buckets.
    #[serde(rename = "reference")]
    Reference,
    /// A multiplicative hash of the same tokens, built up so that an n-gram costs one multiplication more than the one
    /// that is a token shorter.
    #[serde(rename = "fast_v1")]
    Fast,
}

impl NgramHash {
    pub fn as_str(self) -> &'static str {
        match self {
            NgramHash::Reference => "reference",
            NgramHash::Fast => "fast",
        }
    }
}

impl Default for Featuriser {
    /// The package's defaults: uni- and bigrams in 10,000 buckets.
    fn default() -> Self {
        Featuriser { hash: NgramHash::Reference, max_n: 2, buckets: 10_000 }
    }
}

/// Buffers of one thread, reused from text to text.
#[derive(Debug, Default)]
pub struct Scratch {
    lowered: String,
    tokens: Vec<std::ops::Range<usize>>,
    ngram: Vec<u8>,
    buckets: Vec<u32>,
}

impl Featuriser {
    pub const MAX_N: u8 = 8;
    pub const MAX_BUCKETS: u32 = 1 << 24;

    /// The package's settings with the hash of choice.
    pub fn with_hash(hash: NgramHash) -> Self {
        Featuriser { hash, ..Featuriser::default() }
    }

    /// The featuriser itself, or what is wrong with its settings.
    pub fn validated(self) -> Result<Self, String> {
        let Featuriser { max_n, buckets, .. } = self;
        if !(1..=Self::MAX_N).contains(&max_n) {
            return Err(format!("n-grams of up to {max_n} tokens: must be 1 to {}", Self::MAX_N));
        }
        if !(2..=Self::MAX_BUCKETS).contains(&buckets) {
            return Err(format!("{buckets} buckets: must be 2 to {}", Self::MAX_BUCKETS));
        }
        Ok(self)
    }

    /// N-grams of a text with so many tokens.
    pub fn n_ngrams(&self, n_tokens: u32) -> u64 {
        (0..u32::from(self.max_n)).map(|longer| u64::from(n_tokens.saturating_sub(longer))).sum()
    }

    /// Calls `chunk` with the buckets of the text's n-grams, one per n-gram, a bounded number at a time, and returns the
    /// number of tokens.
    ///
    /// Order: by the n-gram's last token, shorter n-grams first. It is fixed because floating-point sums over the
    /// buckets depend on it in their last bits; where one chunk ends and the next begins means nothing.
    pub fn for_each_chunk(&self, text: &str, scratch: &mut Scratch, mut chunk: impl FnMut(&[u32])) -> u32 {
        let Scratch { lowered, tokens, ngram, buckets } = scratch;
        lowered.clear();
        tokens.clear();
        buckets.clear();
        lowercase_into(text, lowered);
        for_each_token(lowered, |token| tokens.push(token));
        match self.hash {
            NgramHash::Reference => reference::buckets(lowered, tokens, self.max_n, self.buckets, ngram, buckets),
            NgramHash::Fast => fast::buckets(lowered, tokens, self.max_n, self.buckets, buckets),
        }
        chunk(buckets);
        tokens.len() as u32
    }
}

#[cfg(test)]
mod tests;
