//! Buckets of the uni- and bigrams that come all the time, remembered so that they need not be digested again.
//!
//! A short token that is remembered has a number, which is never given to another one; a bigram is known by the numbers of
//! its tokens, so that it takes eight bytes, bucket included, whatever its tokens are. That makes room in a core's caches
//! for many of them. Numbers run out after a million tokens that were new: then everything is forgotten.

use super::kernels::prefetch;
use super::short_token;

/// Up to 15 bytes of a token, and their number in the sixteenth.
type Key = [u64; 2];

/// Of tokens that are too long to be remembered. No other key is equal to it, nor to that of an empty place: they have a
/// length in their last byte.
const NO_KEY: Key = [1, 0];
const MAX_BYTES: usize = 15;

/// Buckets are below 2^24, see `Featuriser::MAX_BUCKETS`.
const BUCKET_BITS: u32 = 24;
const NUMBER_BITS: u32 = 20;
/// Numbers of tokens are below it, and above 0.
const END_OF_NUMBERS: u64 = (1 << NUMBER_BITS) - 1;
/// In the value of a token: its bucket is not known yet.
const PENDING: u64 = 1 << 63;
/// A value that no n-gram has.
const NEVER: u64 = u64::MAX;

const UNIGRAM_SETS: usize = 1 << 14;
const BIGRAMS: usize = 1 << 17;

#[derive(Debug, Clone, Copy, Default)]
#[repr(align(32))]
struct Token {
    key: Key,
    /// Its bucket, above that its number, and [`PENDING`].
    value: u64,
}

/// Two tokens, one cache line. New ones take the second place and get the first when they are met again, so that
/// tokens which come once push none out that come often.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Token; 2]);

#[derive(Debug)]
pub(super) struct Memo {
    unigrams: Box<[Set; UNIGRAM_SETS]>,
    /// The numbers of two tokens and, below, the bucket.
    bigrams: Box<[u64; BIGRAMS]>,
    next_number: u64,
    /// Of the token before.
    previous: u64,
    missed_unigrams: Missed<Key>,
    missed_bigrams: Missed<u64>,
    work: Box<Work>,
}

/// What is known of the tokens that are looked up together, and room for places that are fetched for nothing.
#[derive(Debug)]
struct Work {
    keys: [Key; Memo::STRIDE],
    places: [u32; Memo::STRIDE + AHEAD],
    values: [u64; Memo::STRIDE],
    bigrams: [u64; Memo::STRIDE + AHEAD],
}

/// So many tokens ahead memory is fetched: it takes a few hundred cycles where it comes from far away.
const AHEAD: usize = 24;

/// Tokens whose n-gram was not found, with its key.
#[derive(Debug)]
struct Missed<K> {
    tokens: [u32; Memo::STRIDE],
    keys: [K; Memo::STRIDE],
    n: usize,
}

impl<K: Copy + Default> Missed<K> {
    fn new() -> Self {
        Missed { tokens: [0; Memo::STRIDE], keys: [K::default(); Memo::STRIDE], n: 0 }
    }

    /// Does not branch on whether it is missed: that cannot be predicted.
    #[inline(always)]
    fn note(&mut self, token: usize, key: K, is_missed: bool) {
        let n = self.n % Memo::STRIDE;
        self.tokens[n] = token as u32;
        self.keys[n] = key;
        self.n += usize::from(is_missed);
    }

    fn tokens(&self) -> &[u32] {
        &self.tokens[..self.n]
    }
}

impl Memo {
    /// Tokens after which what was not found has to be digested, to be remembered from then on.
    pub const STRIDE: usize = 512;

    pub fn new() -> Self {
        Memo {
            unigrams: boxed(Set::default()),
            bigrams: boxed(NEVER),
            next_number: 1,
            previous: 0,
            missed_unigrams: Missed::new(),
            missed_bigrams: Missed::new(),
            work: Box::new(Work {
                keys: [Key::default(); Memo::STRIDE],
                places: [0; Memo::STRIDE + AHEAD],
                values: [0; Memo::STRIDE],
                bigrams: [0; Memo::STRIDE + AHEAD],
            }),
        }
    }

    /// A new text: its first token has none before it.
    pub fn begin(&mut self) {
        self.previous = 0;
    }

    /// Writes the buckets that are known to `out`, two for every token, and notes which are not. `first` is the number of
    /// the first token in its text; at most [`Memo::STRIDE`] of them at a time.
    pub fn look_up(&mut self, padded: &[u8], starts: &[u32], ends: &[u32], first: usize, out: &mut [u32]) {
        if self.next_number + Self::STRIDE as u64 > END_OF_NUMBERS {
            self.forget();
        }
        // Each loop does one thing for all tokens, branches on nothing that it finds, and fetches ahead: so the memory works on
        // many of them at once.
        let Work { keys, places, values, bigrams } = &mut *self.work;
        let n = starts.len();
        for (((&start, &end), key), place) in starts.iter().zip(ends).zip(&mut *keys).zip(&mut *places) {
            *key = self::key(padded, start as usize, end as usize);
            *place = unigram_place(*key) as u32;
        }
        places[n..n + AHEAD].fill(0);
        self.missed_unigrams.n = 0;
        for i in 0..n {
            prefetch(&self.unigrams[places[i + AHEAD] as usize % UNIGRAM_SETS]);
            let key = keys[i];
            let Set([first, second]) = &self.unigrams[places[i] as usize % UNIGRAM_SETS];
            values[i] = if first.key == key { first.value } else { second.value };
            // Those that do not stand in the first place have a second look.
            self.missed_unigrams.note(i, key, first.key != key);
        }
        for j in 0..std::mem::take(&mut self.missed_unigrams.n) {
            let (i, key) = (self.missed_unigrams.tokens[j], self.missed_unigrams.keys[j]);
            let value = unigram(&mut self.unigrams[unigram_place(key)], key, &mut self.next_number);
            values[i as usize] = value;
            self.missed_unigrams.note(first + i as usize, key, value >= PENDING);
        }
        let mut previous = self.previous;
        for (&value, bigram) in values[..n].iter().zip(&mut *bigrams) {
            let number = value >> BUCKET_BITS & END_OF_NUMBERS;
            *bigram = previous << NUMBER_BITS | number;
            previous = number;
        }
        bigrams[n..n + AHEAD].fill(0);
        self.missed_bigrams.n = 0;
        for (i, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate().take(n) {
            prefetch(&self.bigrams[bigram_place(bigrams[i + AHEAD])]);
            let both = bigrams[i];
            let bigram = self.bigrams[bigram_place(both)];
            self.missed_bigrams.note(first + i, both, bigram >> BUCKET_BITS != both);
            *pair = [bucket(values[i]), bucket(bigram)];
        }
        self.previous = previous;
        // The first token of a text ends no bigram.
        if first == 0 && self.missed_bigrams.tokens().first() == Some(&0) {
            self.missed_bigrams.tokens.copy_within(1..self.missed_bigrams.n, 0);
            self.missed_bigrams.keys.copy_within(1..self.missed_bigrams.n, 0);
            self.missed_bigrams.n -= 1;
        }
    }

    /// Numbers of the tokens whose own buckets have to be computed, and of those that end a bigram whose bucket has to be.
    pub fn missed(&self) -> [&[u32]; 2] {
        [self.missed_unigrams.tokens(), self.missed_bigrams.tokens()]
    }

    /// Takes the buckets of what was not found, from two for every token of the text.
    pub fn remember(&mut self, buckets: &[u32]) {
        let Missed { tokens, keys, n } = &self.missed_unigrams;
        for (&token, &key) in tokens.iter().zip(keys).take(*n) {
            let set = &mut self.unigrams[unigram_place(key)].0;
            if let Some(known) = set.iter_mut().find(|known| known.key == key) {
                let number = known.value >> BUCKET_BITS & END_OF_NUMBERS;
                known.value = number << BUCKET_BITS | u64::from(buckets[2 * token as usize]);
            }
        }
        let Missed { tokens, keys, n } = &self.missed_bigrams;
        for (&token, &both) in tokens.iter().zip(keys).take(*n) {
            if both >> NUMBER_BITS != 0 && both & END_OF_NUMBERS != 0 {
                let bucket = u64::from(buckets[2 * token as usize + 1]);
                self.bigrams[bigram_place(both)] = both << BUCKET_BITS | bucket;
            }
        }
    }

    #[cold]
    fn forget(&mut self) {
        self.unigrams.fill(Set::default());
        self.bigrams.fill(NEVER);
        self.next_number = 1;
        self.previous = 0;
    }
}

/// The value of a token that does not stand in the first place; it is remembered from now on if it can be.
fn unigram(Set([first, second]): &mut Set, key: Key, next_number: &mut u64) -> u64 {
    // It may have come to stand there since it was looked for.
    if first.key == key {
        return first.value;
    }
    if second.key == key {
        std::mem::swap(first, second);
        return first.value;
    }
    if key == NO_KEY {
        return PENDING;
    }
    *second = Token { key, value: PENDING | *next_number << BUCKET_BITS };
    *next_number += 1;
    second.value
}

#[inline(always)]
fn key(padded: &[u8], start: usize, end: usize) -> Key {
    let len = end - start;
    let [low, high] = short_token(padded, start, len);
    if len <= MAX_BYTES { [low, high | (len as u64) << 56] } else { NO_KEY }
}

#[inline(always)]
fn bucket(value: u64) -> u32 {
    value as u32 & ((1 << BUCKET_BITS) - 1)
}

#[inline(always)]
fn unigram_place([low, high]: Key) -> usize {
    let hash = low.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(high.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    (hash >> (64 - UNIGRAM_SETS.ilog2())) as usize
}

#[inline(always)]
fn bigram_place(both: u64) -> usize {
    (both.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - BIGRAMS.ilog2())) as usize
}

/// An array that is too large for the stack.
fn boxed<T: Clone, const N: usize>(value: T) -> Box<[T; N]> {
    match vec![value; N].into_boxed_slice().try_into() {
        Ok(array) => array,
        Err(_) => unreachable!("it has N members"),
    }
}
