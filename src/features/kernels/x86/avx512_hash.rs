//! The `fast` hash of uni- and bigrams for AVX-512: eight tokens at a time.

use core::arch::x86_64::*;

use crate::features::fast::{JOIN, LENGTH, MIX, WORD, WORD_STEP, long_token_sum};
use crate::features::kernels::text::Tokens;
use crate::features::short_token;

/// Tokens whose words are gathered before they are hashed: far enough ahead that stores are done when they are loaded.
const BATCH: usize = 64;
const VECTOR: usize = 8;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(in crate::features::kernels) fn buckets(
    tokens: &Tokens,
    n_context: usize,
    n_buckets: u32,
    out: &mut Vec<u32>,
) -> usize {
    let (padded, starts, ends) = (tokens.padded_bytes(), tokens.starts(), tokens.ends());
    let n = starts.len();
    // A unigram and a bigram for every token, those of the context and one without a token before it among them.
    out.resize(2 * n.next_multiple_of(BATCH), 0);
    let mut words = [[0u64; 2]; BATCH];
    let mut lens = [0u64; BATCH];
    let mut extra = [0u64; BATCH];
    let mut before = _mm512_setzero_si512();
    for (batch, out) in out.as_chunks_mut::<{ 2 * BATCH }>().0.iter_mut().enumerate() {
        let first = batch * BATCH;
        let batch_starts = &starts[first..n.min(first + BATCH)];
        let batch_ends = &ends[first..n.min(first + BATCH)];
        let mut longest = 0;
        for (i, (&start, &end)) in batch_starts.iter().zip(batch_ends).enumerate() {
            let len = (end - start) as usize;
            words[i] = short_token(padded, start as usize, len);
            lens[i] = len as u64;
            longest = longest.max(len);
        }
        let has_long = longest > 16;
        if has_long {
            for (i, (&start, &end)) in batch_starts.iter().zip(batch_ends).enumerate() {
                let token = &padded[start as usize..end as usize];
                extra[i] = if token.len() > 16 { long_token_sum(token) } else { 0 };
            }
        }
        let groups = words.as_chunks::<VECTOR>().0.iter().zip(lens.as_chunks::<VECTOR>().0);
        let groups = groups.zip(extra.as_chunks::<VECTOR>().0).zip(out.as_chunks_mut::<{ 2 * VECTOR }>().0);
        for (((words, lens), extra), out) in groups {
            let extra = if has_long { load(extra) } else { _mm512_setzero_si512() };
            let token = token_hashes(words, load(lens), extra);
            // The token before each: the last of the vector before, then all but the last of this one.
            let previous = _mm512_alignr_epi64::<7>(token, before);
            before = token;
            let bigram = mix(_mm512_add_epi64(_mm512_mullo_epi64(previous, constant(JOIN)), token));
            let scale = constant(n_buckets.into());
            let unigram_bucket = _mm512_srli_epi64::<32>(_mm512_mul_epu32(_mm512_srli_epi64::<32>(token), scale));
            let bigram_bucket = _mm512_mul_epu32(_mm512_srli_epi64::<32>(bigram), scale);
            // Unigrams in the lower halves, bigrams in the upper ones: in memory one after the other.
            let pairs = _mm512_mask_blend_epi32(0xAAAA, unigram_bucket, bigram_bucket);
            // SAFETY: 64 bytes are written to an array of 16 numbers of 4 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs) };
        }
    }
    out.truncate(2 * n);
    if n == 0 || n_context > 0 {
        return 2 * n_context;
    }
    // The first token has no bigram: its unigram takes that place.
    out[1] = out[0];
    1
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(numbers: &[u64; VECTOR]) -> __m512i {
    // SAFETY: 64 bytes are read of an array of 8 numbers of 8 bytes.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn constant(number: u64) -> __m512i {
    _mm512_set1_epi64(number as i64)
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn mix(x: __m512i) -> __m512i {
    _mm512_mullo_epi64(_mm512_xor_si512(x, _mm512_srli_epi64::<32>(x)), constant(MIX))
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn token_hashes(words: &[[u64; 2]; VECTOR], lens: __m512i, extra: __m512i) -> __m512i {
    let (halves, _) = words.as_flattened().as_chunks::<VECTOR>();
    let (first, second) = (load(&halves[0]), load(&halves[1]));
    let low = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), second);
    let high = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), second);
    let sum = _mm512_add_epi64(
        _mm512_add_epi64(_mm512_mullo_epi64(low, constant(WORD)), _mm512_mullo_epi64(lens, constant(LENGTH))),
        _mm512_add_epi64(_mm512_mullo_epi64(high, constant(WORD.wrapping_add(WORD_STEP))), extra),
    );
    mix(sum)
}
