//! From a text to hashed n-grams: lower-case, word-punct tokens, n-grams, buckets. Pure.
//!
//! In: `&str`. Out: the token count and one bucket per n-gram, in a fixed order. A [`Featuriser`] is part of a model;
//! weights of two models with different featurisers cannot be compared.

mod fast;
mod kernels;
mod list;
mod lowercase;
mod memo;
mod projection;
mod reference;
mod tables;
mod tokens;

use serde::{Deserialize, Serialize};

use kernels::Tokens;
pub use kernels::{DigestKernel, TextKernel};
pub use list::{BucketList, BucketWidth};
pub use lowercase::lowercase_into;
pub use projection::{PointScratch, Projection};
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
    text_kernel: TextKernel,
    digest_kernel: DigestKernel,
    tokens: Tokens,
    reference: Option<reference::ReferenceHash>,
    buckets: Vec<u32>,
    /// Where the buckets of the last chunk begin.
    first: usize,
}

impl Scratch {
    /// With other than the fastest kernels, for comparisons.
    pub fn with_kernels(text_kernel: TextKernel, digest_kernel: DigestKernel) -> Self {
        Scratch { text_kernel, digest_kernel, ..Scratch::default() }
    }

    /// The buckets that [`Featuriser::for_each_chunk`] has given last: all of a text that is no longer than
    /// [`Featuriser::CHUNK_BYTES`]. Those of a longer one may be gone.
    pub fn last_chunk(&self) -> &[u32] {
        &self.buckets[self.first..]
    }

    /// More than this is given back after a text that could not be cut: every thread would hold it as long as it lives.
    const KEPT_BYTES: usize = 4 << 20;

    fn held_bytes(&self) -> usize {
        self.tokens.held_bytes() + self.buckets.capacity() * size_of::<u32>()
    }

    fn give_back(&mut self) {
        if self.held_bytes() > Self::KEPT_BYTES {
            self.tokens = Tokens::default();
            self.buckets = Vec::new();
            self.first = 0;
        }
    }
}

impl Featuriser {
    pub const MAX_N: u8 = 8;
    pub const MAX_BUCKETS: u32 = 1 << 24;
    /// The buckets of a shorter text come in one chunk.
    pub const CHUNK_BYTES: usize = SEGMENT_BYTES;

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
    pub fn for_each_chunk(&self, text: &str, scratch: &mut Scratch, chunk: impl FnMut(&[u32])) -> u32 {
        self.for_each_chunk_of(text, SEGMENT_BYTES, scratch, chunk)
    }

    /// The bucket of one n-gram, given as its tokens with spaces between; `None` if it has none or too many.
    pub fn bucket_of(&self, ngram: &str, scratch: &mut Scratch) -> Option<u32> {
        let mut last = None;
        let n_tokens = self.for_each_chunk(ngram, scratch, |buckets| last = buckets.last().copied().or(last));
        last.filter(|_| n_tokens <= u32::from(self.max_n))
    }

    /// [`Featuriser::for_each_chunk`] with other places to cut at.
    #[cfg(fuzzing)]
    pub fn for_each_chunk_of_segments(
        &self,
        text: &str,
        segment_bytes: usize,
        scratch: &mut Scratch,
        chunk: impl FnMut(&[u32]),
    ) -> u32 {
        self.for_each_chunk_of(text, segment_bytes, scratch, chunk)
    }

    fn for_each_chunk_of(
        &self,
        text: &str,
        segment_bytes: usize,
        scratch: &mut Scratch,
        mut chunk: impl FnMut(&[u32]),
    ) -> u32 {
        let mut n_tokens = 0;
        scratch.buckets.clear();
        scratch.first = 0;
        // The last tokens of the segment before, which n-grams of the next one begin with.
        let mut context: Vec<String> = Vec::new();
        let mut segments = segments(text, segment_bytes).peekable();
        while let Some(segment) = segments.next() {
            let n_context = context.len();
            let Scratch { text_kernel, tokens, .. } = scratch;
            tokens.set(*text_kernel, &context, segment);
            n_tokens += (tokens.len() - n_context) as u32;
            if segments.peek().is_some() {
                let first = tokens.len().saturating_sub(usize::from(self.max_n) - 1);
                context =
                    (first..tokens.len()).map(|i| String::from_utf8_lossy(tokens.token(i)).into_owned()).collect();
            }
            scratch.first = self.hash(n_context, scratch);
            chunk(scratch.last_chunk());
        }
        if text.len() > Self::CHUNK_BYTES {
            scratch.give_back();
        }
        n_tokens
    }

    /// Fills `scratch.buckets` with those of the n-grams of `scratch.tokens` that do not end in the context, from the
    /// place on that it returns.
    fn hash(&self, n_context: usize, scratch: &mut Scratch) -> usize {
        let Scratch { text_kernel, digest_kernel, tokens, reference, buckets, .. } = scratch;
        match self.hash {
            NgramHash::Reference => {
                if !reference.as_ref().is_some_and(|r| r.is_for(*digest_kernel, self.buckets)) {
                    *reference = None;
                }
                let reference =
                    reference.get_or_insert_with(|| reference::ReferenceHash::new(*digest_kernel, self.buckets));
                reference.buckets(tokens, n_context, self.max_n, buckets)
            }
            NgramHash::Fast => fast::buckets(*text_kernel, tokens, n_context, self.max_n, self.buckets, buckets),
        }
    }
}

/// Bytes after which a text is cut where it can be, so that buffers stay small.
const SEGMENT_BYTES: usize = 32 << 10;

/// Cuts a text into pieces of at least so many bytes, behind ASCII white space if there is any near, otherwise wherever
/// [`may_cut`] allows it.
fn segments(text: &str, least_bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        // It stands behind a byte of ASCII, so that no character is cut.
        let (segment, tail) = rest.split_at(segment_end(rest.as_bytes(), least_bytes));
        rest = tail;
        (!segment.is_empty()).then_some(segment)
    })
}

fn segment_end(text: &[u8], least_bytes: usize) -> usize {
    let Some(tail) = text.get(least_bytes..) else { return text.len() };
    let near = &tail[..tail.len().min(least_bytes)];
    if let Some(space) = near.iter().position(|&byte| is_space(byte)) {
        return least_bytes + space + 1;
    }
    let cut = tail.windows(2).position(|pair| may_cut(pair[0], pair[1]));
    cut.map_or(text.len(), |last| least_bytes + last + 1)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Whether a text may be cut between two bytes that follow each other: no token goes on there, and lower-casing sees the
/// same. Only its rule of the final sigma looks at neighbours: from a sigma to the next character that it does not ignore,
/// and the end of a text is to it as one without case. So one of the two bytes must be without case and not ignored: no
/// look that comes so far goes beyond it, and one that ends at the cut instead finds no case, either.
fn may_cut(left: u8, right: u8) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_other = |byte: u8| byte.is_ascii_punctuation() && byte != b'_';
    let is_end = |byte: u8| !byte.is_ascii_alphabetic() && !matches!(byte, b'\'' | b'.' | b':' | b'^' | b'`');
    let changes_class = (is_word(left) && is_other(right)) || (is_other(left) && is_word(right));
    is_space(left) || (changes_class && (is_end(left) || is_end(right)))
}

/// The first sixteen bytes of a token as two little-endian words, zeros behind its end.
#[inline(always)]
fn short_token(padded: &[u8], start: usize, len: usize) -> [u64; 2] {
    let Some(bytes) = padded[start..].first_chunk::<16>() else { unreachable!("tokens are followed by padding") };
    let [low_mask, high_mask] = SHORT_MASKS[len.min(16)];
    let bytes = u128::from_le_bytes(*bytes);
    [bytes as u64 & low_mask, (bytes >> 64) as u64 & high_mask]
}

/// Keeps the first so many bytes of two words.
const SHORT_MASKS: [[u64; 2]; 17] = {
    let mut masks = [[0; 2]; 17];
    let mut len = 1;
    while len <= 16 {
        let mask = u128::MAX >> (128 - 8 * len);
        masks[len] = [mask as u64, (mask >> 64) as u64];
        len += 1;
    }
    masks
};

#[cfg(test)]
mod tests;
