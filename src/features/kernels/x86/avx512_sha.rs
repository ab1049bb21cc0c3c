//! SHA-256 for AVX-512: sixteen one-block messages, one in each 32-bit lane.

use core::arch::x86_64::*;
use core::ops::Range;

use super::{INITIAL, ROUND};
use crate::features::kernels::digests::{LANES, Lanes, MAX_SHORT, Modulus};

/// Buckets of the messages that wait in the lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(in crate::features::kernels) fn buckets(lanes: &Lanes, modulus: &Modulus) -> [u32; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (lane, row) in rows.iter_mut().enumerate() {
        *row = load(lanes.block(lane));
    }
    buckets_of_rows(rows, modulus)
}

/// See [`Digests::unigrams`](crate::features::kernels::digests::Digests::unigrams).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(in crate::features::kernels) fn unigrams(
    padded: &[u8],
    starts: &[u32],
    ends: &[u32],
    which: &[u32],
    modulus: &Modulus,
    out: &mut [u32],
) {
    for group in which.chunks(LANES) {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, &i) in rows.iter_mut().zip(group) {
            *row = unigram_block(padded, starts[i as usize] as usize, ends[i as usize] as usize);
        }
        let buckets = buckets_of_rows(rows, modulus);
        for (&i, bucket) in group.iter().zip(buckets) {
            let i = i as usize;
            let len = ends[i] - starts[i];
            out[2 * i] = if len as usize <= MAX_SHORT {
                bucket
            } else {
                modulus.of_message(&padded[starts[i] as usize..ends[i] as usize])
            };
        }
    }
}

/// See [`Digests::bigrams`](crate::features::kernels::digests::Digests::bigrams).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(in crate::features::kernels) fn bigrams(
    padded: &[u8],
    starts: &[u32],
    ends: &[u32],
    which: &[u32],
    modulus: &Modulus,
    out: &mut [u32],
) {
    let token = |i: usize| starts[i] as usize..ends[i] as usize;
    for group in which.chunks(LANES) {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, &i) in rows.iter_mut().zip(group) {
            *row = bigram_block(padded, token(i as usize - 1), token(i as usize));
        }
        let buckets = buckets_of_rows(rows, modulus);
        for (&i, bucket) in group.iter().zip(buckets) {
            let (first, second) = (token(i as usize - 1), token(i as usize));
            out[2 * i as usize + 1] = if first.len() + 1 + second.len() <= MAX_SHORT {
                bucket
            } else {
                modulus.of_message(&[&padded[first], &padded[second]].join(&b' '))
            };
        }
    }
}

/// The padded message of a token; of one that is too long for a block, anything.
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
#[inline]
fn unigram_block(padded: &[u8], start: usize, end: usize) -> __m512i {
    let len = (end - start).min(MAX_SHORT);
    let Some(bytes) = padded[start..].first_chunk() else { unreachable!("tokens are followed by padding") };
    finished(_mm512_maskz_mov_epi8(_bzhi_u64(u64::MAX, len as u32), load(bytes)), len)
}

/// The same of two tokens with a space between them.
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
#[inline]
fn bigram_block(padded: &[u8], first: Range<usize>, second: Range<usize>) -> __m512i {
    let len = first.len().min(MAX_SHORT - 1);
    let total = (len + 1 + second.len()).min(MAX_SHORT);
    let is_first = _bzhi_u64(u64::MAX, len as u32);
    let is_second = _bzhi_u64(u64::MAX, total as u32) & (u64::MAX << (len + 1));
    // The second token stands behind the first, so at most the byte before the text is touched.
    let shifted = second.start - len - 1;
    let (Some(first), Some(second)) = (padded[first.start..].first_chunk(), padded[shifted..].first_chunk()) else {
        unreachable!("tokens are followed by padding")
    };
    let block = _mm512_maskz_mov_epi8(is_first, load(first));
    let block = _mm512_mask_mov_epi8(block, is_second, load(second));
    finished(_mm512_mask_mov_epi8(block, 1 << len, _mm512_set1_epi8(b' ' as i8)), total)
}

/// Marks the end of a message of `len` bytes and adds its length in bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn finished(block: __m512i, len: usize) -> __m512i {
    let block = _mm512_mask_mov_epi8(block, 1 << len, _mm512_set1_epi8(0x80u8 as i8));
    let bits = (8 * len as u32).swap_bytes();
    _mm512_mask_mov_epi32(block, 1 << 15, _mm512_set1_epi32(bits as i32))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(block: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are read of an array of 64.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
#[inline]
fn buckets_of_rows(rows: [__m512i; LANES], modulus: &Modulus) -> [u32; LANES] {
    let digest = digest16(message_words(rows));
    // The digest modulo the buckets: a sum of words times powers, in 64-bit lanes for even and for odd messages.
    let mut even = _mm512_setzero_si512();
    let mut odd = _mm512_setzero_si512();
    for (word, power) in digest.into_iter().zip(modulus.powers) {
        let power = _mm512_set1_epi64(power as i64);
        even = _mm512_add_epi64(even, _mm512_mul_epu32(word, power));
        odd = _mm512_add_epi64(odd, _mm512_mul_epu32(_mm512_srli_epi64::<32>(word), power));
    }
    let mut buckets = [0; LANES];
    if modulus.buckets <= 1 << 16 {
        let remainders =
            _mm512_or_si512(remainder(even, modulus.buckets), _mm512_slli_epi64::<32>(remainder(odd, modulus.buckets)));
        // SAFETY: 64 bytes are written to an array of 16 numbers of 4 bytes.
        unsafe { _mm512_storeu_si512(buckets.as_mut_ptr().cast(), remainders) };
    } else {
        let mut sums = [[0u64; 8]; 2];
        for (out, sum) in sums.iter_mut().zip([even, odd]) {
            // SAFETY: 64 bytes are written to an array of 8 numbers of 8 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
        }
        for (i, bucket) in buckets.iter_mut().enumerate() {
            *bucket = (sums[i % 2][i / 2] % modulus.buckets) as u32;
        }
    }
    buckets
}

/// `x` modulo `m`, for x below 2^51: the quotient by doubles is off by one at most.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn remainder(x: __m512i, m: u64) -> __m512i {
    let quotient = _mm512_mul_pd(_mm512_cvtepu64_pd(x), _mm512_set1_pd(1.0 / m as f64));
    let m = _mm512_set1_epi64(m as i64);
    let rest = _mm512_sub_epi64(x, _mm512_mullo_epi64(_mm512_cvttpd_epi64(quotient), m));
    let too_low = _mm512_cmplt_epi64_mask(rest, _mm512_setzero_si512());
    let rest = _mm512_mask_add_epi64(rest, too_low, rest, m);
    let too_high = _mm512_cmpge_epi64_mask(rest, m);
    _mm512_mask_sub_epi64(rest, too_high, rest, m)
}

/// Word w of every message in vector w: a transposition of sixteen rows of sixteen words.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn message_words(mut rows: [__m512i; LANES]) -> [__m512i; 16] {
    let big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203));
    for row in &mut rows {
        *row = _mm512_shuffle_epi8(*row, big_endian);
    }
    // Words, then pairs of words, then quarters of a row change places between neighbouring rows.
    let mut pairs = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
            fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // fours[4 i + w], quarter q: word 4 q + w of messages 4 i to 4 i + 3.
    let mut words = [_mm512_setzero_si512(); 16];
    for w in 0..4 {
        let [a, b, c, d] = [fours[w], fours[4 + w], fours[8 + w], fours[12 + w]];
        let (ab_low, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
        let (cd_low, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
        words[w] = _mm512_shuffle_i32x4::<0x88>(ab_low, cd_low);
        words[4 + w] = _mm512_shuffle_i32x4::<0xDD>(ab_low, cd_low);
        words[8 + w] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        words[12 + w] = _mm512_shuffle_i32x4::<0xDD>(ab_high, cd_high);
    }
    words
}

/// The eight words of sixteen digests (FIPS 180-4, 6.2.2).
#[target_feature(enable = "avx512f")]
#[inline]
fn digest16(mut w: [__m512i; 16]) -> [__m512i; 8] {
    const CHOOSE: i32 = 0xCA;
    const MAJORITY: i32 = 0xE8;
    const XOR3: i32 = 0x96;
    let initial = INITIAL.map(|word| _mm512_set1_epi32(word as i32));
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = initial;
    macro_rules! round {
        ($a:ident, $b:ident, $c:ident, $d:ident, $e:ident, $f:ident, $g:ident, $h:ident, $t:expr, $w:expr) => {{
            let input = _mm512_add_epi32(_mm512_add_epi32($h, $w), _mm512_set1_epi32(ROUND[$t] as i32));
            let sigma1 = _mm512_ternarylogic_epi32::<XOR3>(
                _mm512_ror_epi32::<6>($e),
                _mm512_ror_epi32::<11>($e),
                _mm512_ror_epi32::<25>($e),
            );
            let choose = _mm512_ternarylogic_epi32::<CHOOSE>($e, $f, $g);
            let t1 = _mm512_add_epi32(_mm512_add_epi32(input, choose), sigma1);
            let sigma0 = _mm512_ternarylogic_epi32::<XOR3>(
                _mm512_ror_epi32::<2>($a),
                _mm512_ror_epi32::<13>($a),
                _mm512_ror_epi32::<22>($a),
            );
            let majority = _mm512_ternarylogic_epi32::<MAJORITY>($a, $b, $c);
            $d = _mm512_add_epi32($d, t1);
            $h = _mm512_add_epi32(_mm512_add_epi32(t1, majority), sigma0);
        }};
    }
    macro_rules! eight_rounds {
        ($t:expr, $i:expr) => {
            round!(a, b, c, d, e, f, g, h, $t, w[$i]);
            round!(h, a, b, c, d, e, f, g, $t + 1, w[$i + 1]);
            round!(g, h, a, b, c, d, e, f, $t + 2, w[$i + 2]);
            round!(f, g, h, a, b, c, d, e, $t + 3, w[$i + 3]);
            round!(e, f, g, h, a, b, c, d, $t + 4, w[$i + 4]);
            round!(d, e, f, g, h, a, b, c, $t + 5, w[$i + 5]);
            round!(c, d, e, f, g, h, a, b, $t + 6, w[$i + 6]);
            round!(b, c, d, e, f, g, h, a, $t + 7, w[$i + 7]);
        };
    }
    // Word t + 16 takes the place of word t. Written out: with an index that is only known at run time the words would
    // live in memory, each of them waiting for the store of another.
    macro_rules! extend {
        ($($i:literal)*) => {
            $({
                let (near, far) = (w[($i + 1) % 16], w[($i + 14) % 16]);
                let s0 = _mm512_ternarylogic_epi32::<XOR3>(
                    _mm512_ror_epi32::<7>(near),
                    _mm512_ror_epi32::<18>(near),
                    _mm512_srli_epi32::<3>(near),
                );
                let s1 = _mm512_ternarylogic_epi32::<XOR3>(
                    _mm512_ror_epi32::<17>(far),
                    _mm512_ror_epi32::<19>(far),
                    _mm512_srli_epi32::<10>(far),
                );
                w[$i] = _mm512_add_epi32(_mm512_add_epi32(w[$i], w[($i + 9) % 16]), _mm512_add_epi32(s0, s1));
            })*
        };
    }
    eight_rounds!(0, 0);
    eight_rounds!(8, 8);
    for t in [16, 32, 48] {
        extend!(0 1 2 3 4 5 6 7);
        eight_rounds!(t, 0);
        extend!(8 9 10 11 12 13 14 15);
        eight_rounds!(t + 8, 8);
    }
    let mut digest = [a, b, c, d, e, f, g, h];
    for (word, initial) in digest.iter_mut().zip(initial) {
        *word = _mm512_add_epi32(*word, initial);
    }
    digest
}
