//! Buckets of the `reference` hash: SHA-256 of each n-gram.

use std::ops::Range;

use sha2::{Digest, Sha256};

pub(super) fn buckets(
    lowered: &str,
    tokens: &[Range<usize>],
    max_n: u8,
    n_buckets: u32,
    ngram: &mut Vec<u8>,
    out: &mut Vec<u32>,
) {
    let hash = BucketHash::new(n_buckets);
    for last in 0..tokens.len() {
        for n in 1..=usize::from(max_n).min(last + 1) {
            ngram.clear();
            for range in &tokens[last + 1 - n..=last] {
                if !ngram.is_empty() {
                    ngram.push(b' ');
                }
                ngram.extend_from_slice(&lowered.as_bytes()[range.clone()]);
            }
            out.push(hash.bucket(ngram));
        }
    }
}

/// `int(SHA-256(bytes)) mod buckets`: the 256-bit digest as eight big-endian words, each times 2^(32 k) mod buckets.
struct BucketHash {
    buckets: u64,
    powers: [u64; 8],
}

impl BucketHash {
    fn new(buckets: u32) -> Self {
        let buckets = u64::from(buckets);
        let mut powers = [1 % buckets; 8];
        for k in (0..7).rev() {
            powers[k] = powers[k + 1] * ((1u64 << 32) % buckets) % buckets;
        }
        BucketHash { buckets, powers }
    }

    fn bucket(&self, bytes: &[u8]) -> u32 {
        let digest = Sha256::digest(bytes);
        let (words, _) = digest.as_chunks::<4>();
        // Eight products below 2^32 * 2^24 (see `Featuriser::MAX_BUCKETS`) fit 64 bits without a reduction between.
        let sum: u64 =
            words.iter().zip(self.powers).map(|(word, power)| u64::from(u32::from_be_bytes(*word)) * power).sum();
        (sum % self.buckets) as u32
    }
}
