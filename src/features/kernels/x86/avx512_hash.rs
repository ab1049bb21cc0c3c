//! The `fast` hash of uni- and bigrams for AVX-512: eight tokens at a time.

use core::arch::x86_64::*;

use crate::features::fast::{JOIN, LENGTH, MIX, WORD, WORD_STEP, long_token_sum};
use crate::features::kernels::text::Tokens;

/// Tokens whose words are copied before they are hashed: far enough ahead that stores are done when they are loaded.
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
    let mut before = _mm512_setzero_si512();
    for (batch, out) in out.as_chunks_mut::<{ 2 * BATCH }>().0.iter_mut().enumerate() {
        let first = batch * BATCH;
        let (last_starts, last_ends);
        let (starts, ends) = match (starts[first..].first_chunk::<BATCH>(), ends[first..].first_chunk::<BATCH>()) {
            (Some(starts), Some(ends)) => (starts, ends),
            _ => {
                (last_starts, last_ends) = (filled(&starts[first..]), filled(&ends[first..]));
                (&last_starts, &last_ends)
            }
        };
        for (words, &start) in words.iter_mut().zip(starts) {
            let bytes = padded[start as usize..].first_chunk::<16>();
            let Some(bytes) = bytes else { unreachable!("tokens are followed by padding") };
            let bytes = u128::from_le_bytes(*bytes);
            *words = [bytes as u64, (bytes >> 64) as u64];
        }
        let words = words.as_chunks::<VECTOR>().0.iter();
        let places = starts.as_chunks::<VECTOR>().0.iter().zip(ends.as_chunks::<VECTOR>().0);
        for ((words, (starts, ends)), out) in words.zip(places).zip(out.as_chunks_mut::<{ 2 * VECTOR }>().0) {
            let lens = _mm512_cvtepu32_epi64(_mm256_sub_epi32(load_places(ends), load_places(starts)));
            let is_long = _mm512_cmpgt_epu64_mask(lens, constant(16));
            let extra = if is_long == 0 { _mm512_setzero_si512() } else { load(&of_long(padded, starts, ends)) };
            let token = token_hashes(words, lens, extra);
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

/// So many places, and after them the first one of all, where no token is.
fn filled(places: &[u32]) -> [u32; BATCH] {
    let mut filled = [0; BATCH];
    filled[..places.len()].copy_from_slice(places);
    filled
}

/// What the words beyond the second add to the sums of those that have some.
#[cold]
fn of_long(padded: &[u8], starts: &[u32; VECTOR], ends: &[u32; VECTOR]) -> [u64; VECTOR] {
    std::array::from_fn(|i| {
        let token = &padded[starts[i] as usize..ends[i] as usize];
        if token.len() > 16 { long_token_sum(token) } else { 0 }
    })
}

#[target_feature(enable = "avx512f,avx512vl")]
#[inline]
fn load_places(places: &[u32; VECTOR]) -> __m256i {
    // SAFETY: 32 bytes are read of an array of 8 numbers of 4 bytes.
    unsafe { _mm256_loadu_si256(places.as_ptr().cast()) }
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

/// `words`: the first sixteen bytes of each, with whatever follows its end.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn token_hashes(words: &[[u64; 2]; VECTOR], lens: __m512i, extra: __m512i) -> __m512i {
    let (halves, _) = words.as_flattened().as_chunks::<VECTOR>();
    let (first, second) = (load(&halves[0]), load(&halves[1]));
    let low = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), second);
    let high = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15), second);
    // Ones from the end of the token on: shifted by 64 bits or more, nothing is left of them.
    let (ones, bits) = (_mm512_set1_epi64(-1), _mm512_slli_epi64::<3>(lens));
    let beyond_first = _mm512_sub_epi64(_mm512_max_epu64(bits, constant(64)), constant(64));
    let low = _mm512_andnot_si512(_mm512_sllv_epi64(ones, bits), low);
    let high = _mm512_andnot_si512(_mm512_sllv_epi64(ones, beyond_first), high);
    let sum = _mm512_add_epi64(
        _mm512_add_epi64(_mm512_mullo_epi64(low, constant(WORD)), _mm512_mullo_epi64(lens, constant(LENGTH))),
        _mm512_add_epi64(_mm512_mullo_epi64(high, constant(WORD.wrapping_add(WORD_STEP))), extra),
    );
    mix(sum)
}
