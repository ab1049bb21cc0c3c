//! Buckets of the `reference` hash: SHA-256 of each n-gram, computed for many at a time and only if not remembered.

use super::kernels::{DigestKernel, Digests, Tokens};
use super::short_token;

/// Digests, and a memory of the n-grams that come all the time. It never changes a result, only saves its computation.
///
/// The sizes of the memories: together they fit a core's second-level cache. Larger ones find more, more slowly.
#[derive(Debug)]
pub(super) struct ReferenceHash {
    digests: Digests,
    unigrams: Memo<{ (1 << 13) + 1 }>,
    bigrams: Memo<{ (1 << 14) + 1 }>,
}

/// Tokens after which what was not remembered is digested, and is remembered from then on.
const STRIDE: usize = 256;

impl ReferenceHash {
    pub fn new(kernel: DigestKernel, n_buckets: u32) -> Self {
        let digests = Digests::new(kernel, n_buckets);
        ReferenceHash { digests, unigrams: Memo::new(), bigrams: Memo::new() }
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
                pair[0] = self.unigrams.look_up(token.key, i);
                pair[1] = self.bigrams.look_up(token.behind(previous), i);
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

/// A token as numbers, if it is short.
#[derive(Clone, Copy, Default)]
struct Short {
    /// Up to 15 bytes and their number in the sixteenth, or [`NO_KEY`].
    key: Key,
    /// Up to 7 bytes and their number in the eighth, or 0.
    narrow: u64,
}

type Key = [u64; 2];

/// Of n-grams that are not remembered. No other key is equal to it, for they all have a length in their last byte.
const NO_KEY: Key = [1, 0];

impl Short {
    #[inline(always)]
    fn of(padded: &[u8], start: usize, len: usize) -> Self {
        let [low, high] = short_token(padded, start, len);
        let length = (len as u64) << 56;
        Short {
            key: if len <= 15 { [low, high | length] } else { NO_KEY },
            narrow: if len <= 7 { low | length } else { 0 },
        }
    }

    /// The key of the bigram with the token before. Of longer tokens one in three bigrams would be found, at the price of
    /// shifting them together for every bigram.
    #[inline(always)]
    fn behind(self, previous: Short) -> Key {
        if previous.narrow == 0 || self.narrow == 0 { NO_KEY } else { [previous.narrow, self.narrow] }
    }
}

/// Buckets of recent short n-grams, one to a slot. A look-up does not branch on its outcome: what will be found in a text
/// cannot be predicted.
///
/// `N` is a power of two, and one more for the n-grams without a key.
#[derive(Debug)]
struct Memo<const N: usize> {
    keys: Box<[Key; N]>,
    buckets: Box<[u32; N]>,
    /// What was not found since [`Memo::begin`]: the numbers of the tokens, and keys.
    missed: Box<[u32; STRIDE]>,
    missed_keys: Box<[Key; STRIDE]>,
    n_missed: usize,
}

impl<const N: usize> Memo<N> {
    fn new() -> Self {
        Memo { keys: boxed([0; 2]), buckets: boxed(0), missed: boxed(0), missed_keys: boxed([0; 2]), n_missed: 0 }
    }

    fn begin(&mut self) {
        self.n_missed = 0;
    }

    #[inline(always)]
    fn slot([low, high]: Key) -> usize {
        let hash = low.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(high.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        (hash >> (64 - N.ilog2())) as usize
    }

    /// The bucket of token `i`'s n-gram; if it is not known, any number, and `i` is noted. At most [`STRIDE`] times after a
    /// [`Memo::begin`].
    #[inline(always)]
    fn look_up(&mut self, key: Key, i: usize) -> u32 {
        let slot = Self::slot(key);
        let n = self.n_missed % STRIDE;
        self.missed[n] = i as u32;
        self.missed_keys[n] = key;
        self.n_missed += usize::from(self.keys[slot] != key);
        self.buckets[slot]
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
        for (&i, &key) in self.missed.iter().zip(self.missed_keys.iter()).take(self.n_missed) {
            let slot = if key == NO_KEY { N - 1 } else { Self::slot(key) };
            self.keys[slot] = if key == NO_KEY { [0; 2] } else { key };
            self.buckets[slot] = bucket(i as usize);
        }
    }
}

/// An array that is too large for the stack.
fn boxed<T: Clone, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("it has N members"),
    }
}
