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

use std::ops::Range;

const LENGTH: u64 = 0x9E37_79B9_7F4A_7C15;
const WORD: u64 = 0xD6E8_FEB8_6659_FD93;
const STEP: u64 = 0xA076_1D64_78BD_642F;
const JOIN: u64 = 0xE703_7ED1_A0B4_28DB;
const MIX: u64 = 0x8EBC_6AF0_9C88_C6E3;

pub(super) fn buckets(lowered: &str, tokens: &[Range<usize>], max_n: u8, n_buckets: u32, out: &mut Vec<u32>) {
    // Hashes of the n-grams that end at the previous token, shorter ones first.
    let mut previous = [0u64; super::Featuriser::MAX_N as usize];
    for (i, range) in tokens.iter().enumerate() {
        let token = token_hash(&lowered.as_bytes()[range.clone()]);
        let mut hashes = [token; super::Featuriser::MAX_N as usize];
        for n in 1..usize::from(max_n).min(i + 1) {
            hashes[n] = join(previous[n - 1], token);
        }
        out.extend(hashes[..usize::from(max_n).min(i + 1)].iter().map(|&hash| bucket(hash, n_buckets)));
        previous = hashes;
    }
}

fn mix(x: u64) -> u64 {
    (x ^ x >> 32).wrapping_mul(MIX)
}

fn token_hash(token: &[u8]) -> u64 {
    let mut sum = (token.len() as u64).wrapping_mul(LENGTH);
    let mut factor = WORD;
    for word in token.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        sum = sum.wrapping_add(u64::from_le_bytes(bytes).wrapping_mul(factor));
        factor = factor.wrapping_add(STEP.wrapping_mul(2));
    }
    mix(sum)
}

fn join(shorter: u64, token: u64) -> u64 {
    mix(shorter.wrapping_mul(JOIN).wrapping_add(token))
}

fn bucket(hash: u64, n_buckets: u32) -> u32 {
    (((hash >> 32) * u64::from(n_buckets)) >> 32) as u32
}
