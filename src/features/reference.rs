//! Buckets of the `reference` hash: SHA-256 of each n-gram, computed for many at a time and only if not remembered.

use super::kernels::{DigestKernel, Digests, Tokens};
use super::short_token;

/// Digests, and a memory of the n-grams that come all the time. It never changes a result, only saves its computation.
#[derive(Debug)]
pub(super) struct ReferenceHash {
    digests: Digests,
    unigrams: Memo,
    bigrams: Memo,
}

/// Slots of the memories, as powers of two: together they fit a core's second-level cache. Of mixed text in five
/// languages, 89 % of the unigrams and 48 % of the bigrams are found. Larger ones find more, more slowly.
const UNIGRAM_BITS: u32 = 13;
const BIGRAM_BITS: u32 = 14;
/// Tokens after which what was not remembered is digested, and is remembered from then on.
const STRIDE: usize = 256;

impl ReferenceHash {
    pub fn new(kernel: DigestKernel, n_buckets: u32) -> Self {
        let digests = Digests::new(kernel, n_buckets);
        ReferenceHash { digests, unigrams: Memo::new(UNIGRAM_BITS), bigrams: Memo::new(BIGRAM_BITS) }
    }

    pub fn is_for(&self, kernel: DigestKernel, n_buckets: u32) -> bool {
        self.digests.is_for(kernel, n_buckets)
    }

    /// Fills `out` with the buckets of all n-grams whose last token is not one of the first `n_context`, from the place on
    /// that it returns.
    pub fn buckets(&mut self, tokens: &Tokens, n_context: usize, max_n: u8, out: &mut Vec<u32>) -> usize {
        if max_n == 2 {
            return self.uni_and_bigrams(tokens, n_context, out);
        }
        self.ngrams(tokens, n_context, max_n, out);
        0
    }

    /// The usual case.
    fn uni_and_bigrams(&mut self, tokens: &Tokens, n_context: usize, out: &mut Vec<u32>) -> usize {
        let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
        // Per token its unigram and the bigram that ends in it; the first token has no bigram.
        out.resize(2 * starts.len(), 0);
        let mut previous = Short::default();
        for first in (0..starts.len()).step_by(STRIDE) {
            self.unigrams.begin();
            self.bigrams.begin();
            let stride = starts[first..].iter().zip(&ends[first..]).take(STRIDE).zip(first..);
            for (((&start, &end), i), pair) in stride.zip(out[2 * first..].as_chunks_mut::<2>().0) {
                let token = Short::of(padded, start as usize, (end - start) as usize);
                pair[0] = self.unigrams.look_up(token.key(), i);
                pair[1] = self.bigrams.look_up(previous.joined(token), i);
                previous = token;
            }
            if first == 0 {
                self.bigrams.forget_first();
            }
            self.digests.unigrams(padded, starts, ends, self.unigrams.missed(), out);
            self.unigrams.remember(|i| out[2 * i]);
            self.digests.bigrams(padded, starts, ends, self.bigrams.missed(), out);
            self.bigrams.remember(|i| out[2 * i + 1]);
        }
        if n_context > 0 || starts.is_empty() {
            return 2 * n_context;
        }
        // The first token has no bigram: its unigram takes that place.
        out[1] = out[0];
        1
    }

    fn ngrams(&mut self, tokens: &Tokens, n_context: usize, max_n: u8, out: &mut Vec<u32>) {
        let digests = &mut self.digests;
        let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
        let max_n = usize::from(max_n);
        // Every place is written below.
        out.resize((starts.len() - n_context) * max_n, 0);
        let mut place = 0;
        for last in n_context..starts.len() {
            for n in 1..=max_n.min(last + 1) {
                let first = last + 1 - n;
                digests.add(padded, &starts[first..=last], &ends[first..=last], place, out);
                place += 1;
            }
        }
        digests.finish(out);
        out.truncate(place);
    }
}

/// A token as a number, if it is short.
#[derive(Clone, Copy, Default)]
struct Short {
    bytes: u128,
    len: usize,
}

impl Short {
    /// The longest n-gram that is remembered: its length takes the sixteenth byte of a key.
    const MAX: usize = 15;

    #[inline(always)]
    fn of(padded: &[u8], start: usize, len: usize) -> Self {
        let [low, high] = short_token(padded, start, len);
        Short { bytes: u128::from(high) << 64 | u128::from(low), len }
    }

    /// The text and its length; no n-gram has [`Memo::NO_KEY`].
    #[inline(always)]
    fn key(self) -> u128 {
        if self.len <= Self::MAX { self.bytes | (self.len as u128) << 120 } else { Memo::NO_KEY }
    }

    /// The key of the bigram.
    #[inline(always)]
    fn joined(self, next: Short) -> u128 {
        let space = 8 * self.len as u32;
        let bytes = self.bytes | u128::from(b' ').wrapping_shl(space) | next.bytes.wrapping_shl(space + 8);
        Short { bytes, len: self.len + 1 + next.len }.key()
    }
}

/// Buckets of recent short n-grams, one to a slot. A look-up does not branch on its outcome: what will be found in a text
/// cannot be predicted.
#[derive(Debug)]
struct Memo {
    bits: u32,
    /// One more than there are slots, for n-grams without a key.
    keys: Vec<u128>,
    buckets: Vec<u32>,
    /// What was not found since [`Memo::begin`]: the number of the token, its key and slot.
    missed: Box<[u32; STRIDE]>,
    missed_keys: Box<[(u128, u32); STRIDE]>,
    n_missed: usize,
}

impl Memo {
    /// Never found: all keys that are looked up have a length, or are this one, which is never remembered.
    const NO_KEY: u128 = 1;

    fn new(bits: u32) -> Self {
        Memo {
            bits,
            keys: vec![0; (1 << bits) + 1],
            buckets: vec![0; (1 << bits) + 1],
            missed: Box::new([0; STRIDE]),
            missed_keys: Box::new([(0, 0); STRIDE]),
            n_missed: 0,
        }
    }

    fn begin(&mut self) {
        self.n_missed = 0;
    }

    /// The bucket of token `i`'s n-gram; if it is not known, any number, and `i` is noted. At most [`STRIDE`] times after a
    /// [`Memo::begin`].
    #[inline(always)]
    fn look_up(&mut self, key: u128, i: usize) -> u32 {
        let hash = (key as u64 ^ ((key >> 64) as u64).rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let slot = if key == Self::NO_KEY { 1 << self.bits } else { hash >> (64 - self.bits) };
        let n = self.n_missed.min(STRIDE - 1);
        self.missed[n] = i as u32;
        self.missed_keys[n] = (key, slot as u32);
        self.n_missed += usize::from(self.keys[slot as usize] != key);
        self.buckets[slot as usize]
    }

    /// The first token that was looked up has no such n-gram.
    fn forget_first(&mut self) {
        if self.n_missed > 0 && self.missed[0] == 0 {
            self.missed.copy_within(1.., 0);
            self.missed_keys.copy_within(1.., 0);
            self.n_missed -= 1;
        }
    }

    fn missed(&self) -> &[u32] {
        &self.missed[..self.n_missed]
    }

    /// Takes the buckets of what was not found.
    fn remember(&mut self, bucket: impl Fn(usize) -> u32) {
        for (&i, &(key, slot)) in self.missed.iter().zip(self.missed_keys.iter()).take(self.n_missed) {
            let slot = slot as usize;
            self.keys[slot] = if key == Self::NO_KEY { 0 } else { key };
            self.buckets[slot] = bucket(i as usize);
        }
    }
}
