//! What tokens and buckets are, for tests: `tests/fuzz` includes this file too.

use sha2::{Digest, Sha256};

use super::{Featuriser, NgramHash, for_each_token, lowercase_into};

/// The definition, written for reading: lower-case, cut, join, hash, one n-gram after the other.
pub fn specification(featuriser: &Featuriser, text: &str) -> (u32, Vec<u32>) {
    let mut lowered = String::new();
    lowercase_into(text, &mut lowered);
    let mut tokens = Vec::new();
    for_each_token(&lowered, |range| tokens.push(&lowered[range]));
    let buckets = (0..tokens.len())
        .flat_map(|last| (1..=usize::from(featuriser.max_n).min(last + 1)).map(move |n| last + 1 - n..=last))
        .map(|ngram| match featuriser.hash {
            NgramHash::Reference => reference_bucket(&tokens[ngram], featuriser.buckets),
            NgramHash::Fast => fast_bucket(&tokens[ngram], featuriser.buckets),
        });
    (tokens.len() as u32, buckets.collect())
}

fn reference_bucket(ngram: &[&str], buckets: u32) -> u32 {
    let digest = Sha256::digest(ngram.join(" "));
    digest.iter().fold(0u64, |rest, &byte| (rest * 256 + u64::from(byte)) % u64::from(buckets)) as u32
}

fn fast_bucket(ngram: &[&str], buckets: u32) -> u32 {
    let mix = |x: u64| (x ^ x >> 32).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
    let token = |token: &str| {
        let words = token.as_bytes().chunks(8).map(|c| c.iter().rev().fold(0u64, |w, &b| w << 8 | u64::from(b)));
        let factor = |i: u64| 0xD6E8_FEB8_6659_FD93u64.wrapping_add((2 * i).wrapping_mul(0xA076_1D64_78BD_642F));
        let length = (token.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mix(words.zip(0..).fold(length, |sum, (word, i)| sum.wrapping_add(word.wrapping_mul(factor(i)))))
    };
    let join = |shorter: u64, next: u64| mix(shorter.wrapping_mul(0xE703_7ED1_A0B4_28DB).wrapping_add(next));
    let hash = ngram.iter().map(|t| token(t)).reduce(join).unwrap();
    ((u128::from(hash >> 32) * u128::from(buckets)) >> 32) as u32
}
