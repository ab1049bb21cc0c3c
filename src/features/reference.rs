//! Buckets of the `reference` hash: SHA-256 of each n-gram.

use super::kernels::{DigestKernel, Digests, Tokens};
use super::short_token;

/// Digests, and a memory of the tokens that come all the time. It never changes a result, only saves its computation.
#[derive(Debug)]
pub(super) struct ReferenceHash {
    digests: Digests,
    memo: Memo,
}

impl ReferenceHash {
    pub fn new(kernel: DigestKernel, n_buckets: u32) -> Self {
        ReferenceHash { digests: Digests::new(kernel, n_buckets), memo: Memo::new() }
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

    /// The usual case: no bigram waits for another, so they are digested in order.
    fn uni_and_bigrams(&mut self, tokens: &Tokens, n_context: usize, out: &mut Vec<u32>) -> usize {
        let ReferenceHash { digests, memo } = self;
        let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
        // Per token its unigram and the bigram that ends in it; the first token has no bigram.
        out.resize(2 * starts.len(), 0);
        if starts.is_empty() {
            return 0;
        }
        if starts.len() > 1 {
            digests.bigrams(padded, starts, ends, &mut out[3..]);
        }
        for (i, (&start, &end)) in starts.iter().zip(ends).enumerate().skip(n_context) {
            match memo.look_up(padded, start as usize, (end - start) as usize) {
                Lookup::Known(bucket) => out[2 * i] = bucket,
                Lookup::Unknown(slot) => {
                    let token = [(start, end)].into_iter();
                    digests.add(padded, token, 2 * i, slot, out, &mut |slot, bucket| memo.remember(slot, bucket));
                }
            }
        }
        digests.finish(out, &mut |slot, bucket| memo.remember(slot, bucket));
        if n_context > 0 {
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
                let tokens = starts[first..=last].iter().copied().zip(ends[first..=last].iter().copied());
                digests.add(padded, tokens, place, None, out, &mut |_, _| ());
                place += 1;
            }
        }
        digests.finish(out, &mut |_, _| ());
        out.truncate(place);
    }
}

const MEMO_BITS: u32 = 14;
const MEMO_SLOTS: usize = 1 << MEMO_BITS;
/// A slot whose bucket is still being computed.
const UNKNOWN: u32 = u32::MAX;
/// The longest token that is remembered; longer ones are rare.
const MEMO_TOKEN: usize = 15;

/// Buckets of recent short tokens, one to a slot. English text finds nine tokens in ten here.
#[derive(Debug)]
struct Memo {
    /// The token's bytes, and its length in the last one.
    keys: Vec<[u64; 2]>,
    buckets: Vec<u32>,
}

enum Lookup {
    Known(u32),
    /// With the slot that wants to know.
    Unknown(Option<u32>),
}

impl Memo {
    fn new() -> Self {
        Memo { keys: vec![[0; 2]; MEMO_SLOTS], buckets: vec![UNKNOWN; MEMO_SLOTS] }
    }

    #[inline]
    fn look_up(&mut self, padded: &[u8], start: usize, len: usize) -> Lookup {
        if len > MEMO_TOKEN {
            return Lookup::Unknown(None);
        }
        let [low, high] = short_token(padded, start, len);
        let key = [low, high | (len as u64) << 56];
        let hash = (low ^ key[1].rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let slot = (hash >> (64 - MEMO_BITS)) as usize;
        if self.keys[slot] == key && self.buckets[slot] != UNKNOWN {
            return Lookup::Known(self.buckets[slot]);
        }
        self.keys[slot] = key;
        self.buckets[slot] = UNKNOWN;
        Lookup::Unknown(Some(slot as u32))
    }

    fn remember(&mut self, slot: u32, bucket: u32) {
        self.buckets[slot as usize] = bucket;
    }
}
