//! Buckets of the `fast` hash, version 1.
//!
//! A token's hash is a sum of its 8-byte words, each times an odd constant of its place, plus its length times another
//! (multilinear hashing: Dietzfelbinger et al. 1997; Lemire and Kaser 2014), then mixed. The hash of an n-gram is the hash
//! of the n-gram without its last token, times a constant, plus the hash of that token, mixed again. The bucket is the
//! upper half of the hash, scaled to the number of buckets.
//!
//! ```text
//! w_0, w_1, …     the token's bytes as little-endian 64-bit words, the last one filled up with zeros
//! token           mix(length · LENGTH + Σ_i w_i · (WORD + 2 i STEP))           (mod 2^64)
//! ngram_1(i)      token(i)
//! ngram_n(i)      mix(ngram_{n-1}(i - 1) · JOIN + token(i))
//! mix(x)          (x ⊕ x >> 32) · MIX
//! bucket          (ngram >> 32) · buckets >> 32
//! ```

use super::kernels::{TextKernel, Tokens, fast_buckets};
use super::{Featuriser, short_token};

pub(super) const LENGTH: u64 = 0x9E37_79B9_7F4A_7C15;
pub(super) const WORD: u64 = 0xD6E8_FEB8_6659_FD93;
/// Twice the step of the definition above.
pub(super) const WORD_STEP: u64 = 0xA076_1D64_78BD_642Fu64.wrapping_mul(2);
pub(super) const JOIN: u64 = 0xE703_7ED1_A0B4_28DB;
pub(super) const MIX: u64 = 0x8EBC_6AF0_9C88_C6E3;

/// Fills `out` with the buckets of all n-grams whose last token is not one of the first `n_context`, from the place on that
/// it returns.
pub(super) fn buckets(
    kernel: TextKernel,
    tokens: &Tokens,
    n_context: usize,
    max_n: u8,
    n_buckets: u32,
    out: &mut Vec<u32>,
) -> usize {
    if max_n == 2
        && let Some(first) = fast_buckets(kernel, tokens, n_context, n_buckets, out)
    {
        return first;
    }
    if max_n == 2 {
        return uni_and_bigrams(tokens, n_context, n_buckets, out);
    }
    out.clear();
    ngrams(tokens, n_context, max_n, n_buckets, out);
    0
}

/// The usual case, for any processor.
fn uni_and_bigrams(tokens: &Tokens, n_context: usize, n_buckets: u32, out: &mut Vec<u32>) -> usize {
    let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
    // Per token its unigram and the bigram that ends in it.
    out.resize(2 * starts.len(), 0);
    let mut previous = 0;
    for ((&start, &end), pair) in starts.iter().zip(ends).zip(out.as_chunks_mut::<2>().0) {
        let token = token_hash(padded, start as usize, end as usize);
        *pair = [bucket(token, n_buckets), bucket(join(previous, token), n_buckets)];
        previous = token;
    }
    if n_context > 0 || starts.is_empty() {
        return 2 * n_context;
    }
    // The first token has no bigram: its unigram takes that place.
    out[1] = out[0];
    1
}

fn ngrams(tokens: &Tokens, n_context: usize, max_n: u8, n_buckets: u32, out: &mut Vec<u32>) {
    let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
    // Hashes of the n-grams that end at the previous token, shorter ones first.
    let mut previous = [0u64; Featuriser::MAX_N as usize];
    for (i, (&start, &end)) in starts.iter().zip(ends).enumerate() {
        let token = token_hash(padded, start as usize, end as usize);
        let mut hashes = [token; Featuriser::MAX_N as usize];
        let n_lengths = usize::from(max_n).min(i + 1);
        for n in 1..n_lengths {
            hashes[n] = join(previous[n - 1], token);
        }
        if i >= n_context {
            out.extend(hashes[..n_lengths].iter().map(|&hash| bucket(hash, n_buckets)));
        }
        previous = hashes;
    }
}

#[inline(always)]
fn mix(x: u64) -> u64 {
    (x ^ x >> 32).wrapping_mul(MIX)
}

#[inline(always)]
fn token_hash(padded: &[u8], start: usize, end: usize) -> u64 {
    let len = end - start;
    let [low, high] = short_token(padded, start, len);
    let sum = (len as u64).wrapping_mul(LENGTH);
    let sum = sum.wrapping_add(low.wrapping_mul(WORD)).wrapping_add(high.wrapping_mul(WORD.wrapping_add(WORD_STEP)));
    mix(sum.wrapping_add(if len > 16 { long_token_sum(&padded[start..end]) } else { 0 }))
}

/// What the words of a token beyond the second add to its sum.
#[cold]
pub(super) fn long_token_sum(token: &[u8]) -> u64 {
    let mut sum = 0u64;
    let mut factor = WORD.wrapping_add(WORD_STEP.wrapping_mul(2));
    for word in token[16..].chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        sum = sum.wrapping_add(u64::from_le_bytes(bytes).wrapping_mul(factor));
        factor = factor.wrapping_add(WORD_STEP);
    }
    sum
}

#[inline(always)]
fn join(shorter: u64, token: u64) -> u64 {
    mix(shorter.wrapping_mul(JOIN).wrapping_add(token))
}

#[inline(always)]
fn bucket(hash: u64, n_buckets: u32) -> u32 {
    (((hash >> 32) * u64::from(n_buckets)) >> 32) as u32
}
