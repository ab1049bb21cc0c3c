//! N-grams of the `reference` featuriser and their SHA-256 buckets.

use sha2::{Digest, Sha256};

use super::{Scratch, for_each_token, lowercase_into};

pub(super) fn reference_buckets(
    text: &str,
    max_n: u8,
    buckets: u32,
    scratch: &mut Scratch,
    mut bucket: impl FnMut(u32),
) -> u32 {
    let Scratch { lowered, recent, ngram } = scratch;
    lowered.clear();
    recent.clear();
    lowercase_into(text, lowered);
    let lowered = &*lowered;
    let hash = BucketHash::new(buckets);
    let mut n_tokens = 0u32;
    for_each_token(lowered, |token| {
        n_tokens += 1;
        bucket(hash.bucket(&lowered.as_bytes()[token.clone()]));
        if recent.len() == usize::from(max_n) {
            recent.pop_front();
        }
        recent.push_back(token);
        for n in 2..=recent.len() {
            ngram.clear();
            for range in recent.range(recent.len() - n..) {
                if !ngram.is_empty() {
                    ngram.push(b' ');
                }
                ngram.extend_from_slice(&lowered.as_bytes()[range.clone()]);
            }
            bucket(hash.bucket(ngram));
        }
    });
    n_tokens
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
