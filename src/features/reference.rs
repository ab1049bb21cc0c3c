//! Buckets of the `reference` hash: SHA-256 of each n-gram, computed for many at a time and only if not remembered.

use super::kernels::{DigestKernel, Digests, Tokens};
use super::memo::Memo;

/// Digests, and a memory of the n-grams that come all the time. It never changes a result, only saves its computation.
#[derive(Debug)]
pub(super) struct ReferenceHash {
    digests: Digests,
    memo: Memo,
}

impl ReferenceHash {
    pub fn new(kernel: DigestKernel, n_buckets: u32) -> Self {
        let digests = Digests::new(kernel, n_buckets);
        ReferenceHash { digests, memo: Memo::new() }
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
        let ReferenceHash { digests, memo } = self;
        memo.begin();
        for first in (0..starts.len()).step_by(Memo::STRIDE) {
            let here = first..starts.len().min(first + Memo::STRIDE);
            memo.look_up(
                padded,
                &starts[here.clone()],
                &ends[here.clone()],
                first,
                &mut out[2 * here.start..2 * here.end],
            );
            digests.uni_and_bigrams(padded, starts, ends, memo.missed(), out);
            memo.remember(out);
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
