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

/// See [`Digests::uni_and_bigrams`](crate::features::kernels::digests::Digests::uni_and_bigrams).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(in crate::features::kernels) fn uni_and_bigrams(
    padded: &[u8],
    starts: &[u32],
    ends: &[u32],
    [unigrams, bigrams]: [&[u32]; 2],
    modulus: &Modulus,
    Waiting { tiny, longer }: &mut Waiting,
    out: &mut [u32],
) {
    let token = |i: u32| starts[i as usize] as usize..ends[i as usize] as usize;
    let mut unigrams = unigrams.chunks(STRIDE);
    let mut bigrams = bigrams.chunks(STRIDE);
    loop {
        let (some_unigrams, some_bigrams) = (unigrams.next().unwrap_or_default(), bigrams.next().unwrap_or_default());
        if some_unigrams.is_empty() && some_bigrams.is_empty() {
            return;
        }
        (tiny.n, longer.n) = (0, 0);
        for &i in some_unigrams {
            let Range { start, end } = token(i);
            tiny.push(tiny_unigram(padded, start, end - start), end - start, 2 * i);
            longer.push(end - start, 2 * i, tiny);
        }
        for &i in some_bigrams {
            let (first, second) = (token(i - 1), token(i));
            let total = first.len() + 1 + second.len();
            tiny.push(tiny_bigram(padded, first, second), total, 2 * i + 1);
            longer.push(total, 2 * i + 1, tiny);
        }
        tiny.digest(modulus, out);
        for group in longer.places[..longer.n].chunks(LANES) {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (row, &place) in rows.iter_mut().zip(group) {
                let i = place / 2;
                *row = match place % 2 {
                    0 => unigram_block(padded, token(i).start, token(i).end),
                    _ => bigram_block(padded, token(i - 1), token(i)),
                };
            }
            let buckets = buckets_of_rows(rows, modulus);
            for (&place, bucket) in group.iter().zip(buckets) {
                out[place as usize] = match place % 2 {
                    0 => bucket_of_unigram(&padded[token(place / 2)], modulus).unwrap_or(bucket),
                    _ => {
                        let (first, second) = (&padded[token(place / 2 - 1)], &padded[token(place / 2)]);
                        bucket_of_bigram(first, second, modulus).unwrap_or(bucket)
                    }
                };
            }
        }
    }
}

/// Of a token that is too long for a block.
fn bucket_of_unigram(token: &[u8], modulus: &Modulus) -> Option<u32> {
    (token.len() > MAX_SHORT).then(|| modulus.of_message(token))
}

/// Of two tokens that are.
fn bucket_of_bigram(first: &[u8], second: &[u8], modulus: &Modulus) -> Option<u32> {
    (first.len() + 1 + second.len() > MAX_SHORT).then(|| modulus.of_message(&[first, second].join(&b' ')))
}

/// N-grams that are looked at together.
const STRIDE: usize = 512;
/// The longest message that fits four words with the byte that marks its end.
const MAX_TINY: usize = 15;

/// What is to be digested.
#[derive(Debug)]
pub(in crate::features::kernels) struct Waiting {
    tiny: TinyMessages,
    longer: LongerMessages,
}

impl Waiting {
    pub fn new() -> Box<Self> {
        Box::new(Waiting {
            tiny: TinyMessages {
                blocks: [[0; 16]; 2 * STRIDE],
                lengths: [0; 2 * STRIDE],
                places: [0; 2 * STRIDE],
                n: 0,
            },
            longer: LongerMessages { places: [0; 2 * STRIDE], n: 0 },
        })
    }
}

/// Messages of up to [`MAX_TINY`] bytes: of their blocks only four words and the length are not zero, which spares a good
/// part of the way into the lanes and of the message schedule.
#[derive(Debug)]
struct TinyMessages {
    blocks: [[u8; 16]; 2 * STRIDE],
    /// In bits, each where the lane of its message will be.
    lengths: [u32; 2 * STRIDE],
    places: [u32; 2 * STRIDE],
    n: usize,
}

/// Where the buckets of all others go.
#[derive(Debug)]
struct LongerMessages {
    places: [u32; 2 * STRIDE],
    n: usize,
}

impl LongerMessages {
    /// Takes the last message from `tiny` if it is too long for it. That cannot be predicted, so it is no branch.
    #[inline(always)]
    fn push(&mut self, len: usize, place: u32, tiny: &mut TinyMessages) {
        let is_longer = usize::from(len > MAX_TINY);
        tiny.n -= is_longer;
        self.places[self.n % (2 * STRIDE)] = place;
        self.n += is_longer;
    }
}

impl TinyMessages {
    /// Adds a message whose bucket goes to `place`. At most twice [`STRIDE`] of them fit.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    fn push(&mut self, block: __m128i, len: usize, place: u32) {
        let n = self.n % (2 * STRIDE);
        // SAFETY: 16 bytes are written to an array of 16.
        unsafe { _mm_storeu_si128(self.blocks[n].as_mut_ptr().cast(), block) };
        self.lengths[n / LANES * LANES + lane_of(n % LANES)] = 8 * len as u32;
        self.places[n] = place;
        self.n = n + 1;
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    #[inline]
    fn digest(&self, modulus: &Modulus, out: &mut [u32]) {
        let groups = self.blocks.as_chunks::<LANES>().0.iter().zip(self.lengths.as_chunks::<LANES>().0);
        for ((blocks, lengths), places) in groups.zip(self.places[..self.n].chunks(LANES)) {
            let buckets = buckets_of_digest(digest16_tiny(tiny_words(blocks), words_of(lengths)), modulus);
            for (m, &place) in places.iter().enumerate() {
                out[place as usize] = buckets[lane_of(m)];
            }
        }
    }
}

/// Where [`tiny_words`] puts message `m`: rows and columns of four by four change places.
#[inline(always)]
fn lane_of(m: usize) -> usize {
    4 * (m % 4) + m / 4
}

/// The message of a token, marked at its end; of one that is longer than [`MAX_TINY`], anything.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2")]
#[inline]
fn tiny_unigram(padded: &[u8], start: usize, len: usize) -> __m128i {
    let kept = _bzhi_u32(u32::MAX, len as u32) as u16;
    let block = _mm_maskz_mov_epi8(kept, load16(padded, start));
    _mm_mask_mov_epi8(block, (1u32 << (len % 32)) as u16, _mm_set1_epi8(0x80u8 as i8))
}

/// The same of two tokens with a space between them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi2")]
#[inline]
fn tiny_bigram(padded: &[u8], first: Range<usize>, second: Range<usize>) -> __m128i {
    let len = first.len().min(MAX_TINY - 1);
    let total = (len + 1 + second.len()).min(MAX_TINY);
    let is_first = _bzhi_u32(u32::MAX, len as u32);
    let is_second = _bzhi_u32(u32::MAX, total as u32) & !is_first;
    // The second token stands behind the first, so at most the byte before the text is touched; the byte before it is made
    // a space.
    let block = _mm_maskz_mov_epi8(is_first as u16, load16(padded, first.start));
    let block = _mm_mask_mov_epi8(block, is_second as u16, load16(padded, second.start - len - 1));
    let block = _mm_mask_mov_epi8(block, 1 << len, _mm_set1_epi8(b' ' as i8));
    _mm_mask_mov_epi8(block, 1 << total, _mm_set1_epi8(0x80u8 as i8))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load16(padded: &[u8], start: usize) -> __m128i {
    let Some(bytes) = padded[start..].first_chunk::<16>() else { unreachable!("tokens are followed by padding") };
    // SAFETY: 16 bytes are read of an array of 16.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn words_of(words: &[u32; LANES]) -> __m512i {
    // SAFETY: 64 bytes are read of an array of 16 numbers of 4 bytes.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// The first four words of sixteen messages, message `m` in lane [`lane_of`]`(m)`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn tiny_words(blocks: &[[u8; 16]; LANES]) -> [__m512i; 4] {
    let big_endian = big_endian();
    let mut rows = [_mm512_setzero_si512(); 4];
    for (row, four) in rows.iter_mut().zip(blocks.as_flattened().as_chunks::<64>().0) {
        *row = _mm512_shuffle_epi8(load(four), big_endian);
    }
    let (low, high) = (_mm512_unpacklo_epi32(rows[0], rows[1]), _mm512_unpackhi_epi32(rows[0], rows[1]));
    let (low2, high2) = (_mm512_unpacklo_epi32(rows[2], rows[3]), _mm512_unpackhi_epi32(rows[2], rows[3]));
    [
        _mm512_unpacklo_epi64(low, low2),
        _mm512_unpackhi_epi64(low, low2),
        _mm512_unpacklo_epi64(high, high2),
        _mm512_unpackhi_epi64(high, high2),
    ]
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
    buckets_of_digest(digest16(message_words(rows)), modulus)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
#[inline]
fn buckets_of_digest(digest: [__m512i; 8], modulus: &Modulus) -> [u32; LANES] {
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

/// Turns the bytes of every word round.
#[target_feature(enable = "avx512f")]
#[inline]
fn big_endian() -> __m512i {
    _mm512_broadcast_i32x4(_mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203))
}

/// Word w of every message in vector w: a transposition of sixteen rows of sixteen words.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn message_words(mut rows: [__m512i; LANES]) -> [__m512i; 16] {
    let big_endian = big_endian();
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

/// One step of the compression (FIPS 180-4, 6.2.2), whose input is h + K_t + W_t.
#[target_feature(enable = "avx512f")]
#[inline]
fn step(state: &mut [__m512i; 8], input: __m512i) {
    const CHOOSE: i32 = 0xCA;
    const MAJORITY: i32 = 0xE8;
    let [a, b, c, d, e, f, g, _] = *state;
    let sigma1 = _mm512_ternarylogic_epi32::<XOR3>(
        _mm512_ror_epi32::<6>(e),
        _mm512_ror_epi32::<11>(e),
        _mm512_ror_epi32::<25>(e),
    );
    let choose = _mm512_ternarylogic_epi32::<CHOOSE>(e, f, g);
    let t1 = _mm512_add_epi32(_mm512_add_epi32(input, choose), sigma1);
    let sigma0 = _mm512_ternarylogic_epi32::<XOR3>(
        _mm512_ror_epi32::<2>(a),
        _mm512_ror_epi32::<13>(a),
        _mm512_ror_epi32::<22>(a),
    );
    let majority = _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c);
    *state = [_mm512_add_epi32(_mm512_add_epi32(t1, majority), sigma0), a, b, c, _mm512_add_epi32(d, t1), e, f, g];
}

const XOR3: i32 = 0x96;

#[target_feature(enable = "avx512f")]
#[inline]
fn small_sigma0(word: __m512i) -> __m512i {
    let (r7, r18) = (_mm512_ror_epi32::<7>(word), _mm512_ror_epi32::<18>(word));
    _mm512_ternarylogic_epi32::<XOR3>(r7, r18, _mm512_srli_epi32::<3>(word))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn small_sigma1(word: __m512i) -> __m512i {
    let (r17, r19) = (_mm512_ror_epi32::<17>(word), _mm512_ror_epi32::<19>(word));
    _mm512_ternarylogic_epi32::<XOR3>(r17, r19, _mm512_srli_epi32::<10>(word))
}

/// Steps `t` to `t + 15` with sixteen words of the schedule.
macro_rules! sixteen_steps {
    ($state:ident, $w:ident, $t:expr, $($i:literal)*) => {
        $(
            let constant = _mm512_set1_epi32(ROUND[$t + $i] as i32);
            let input = _mm512_add_epi32(_mm512_add_epi32($state[7], $w[$i]), constant);
            step(&mut $state, input);
        )*
    };
}

/// Word t + 16 takes the place of word t. Written out: with an index that is only known at run time the words would live
/// in memory, each of them waiting for the store of another.
macro_rules! extend {
    ($w:ident, $($i:literal)*) => {
        $({
            let sigmas = _mm512_add_epi32(small_sigma0($w[($i + 1) % 16]), small_sigma1($w[($i + 14) % 16]));
            $w[$i] = _mm512_add_epi32(_mm512_add_epi32($w[$i], $w[($i + 9) % 16]), sigmas);
        })*
    };
}

/// The eight words of sixteen digests of one block each.
#[target_feature(enable = "avx512f")]
#[inline]
fn digest16(mut w: [__m512i; 16]) -> [__m512i; 8] {
    let initial = INITIAL.map(|word| _mm512_set1_epi32(word as i32));
    let mut state = initial;
    sixteen_steps!(state, w, 0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for t in [16, 32, 48] {
        extend!(w, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        sixteen_steps!(state, w, t, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    sums(state, initial)
}

/// The same of blocks of which only the first four words and the last one, the length, are not zero.
#[target_feature(enable = "avx512f")]
#[inline]
fn digest16_tiny([w0, w1, w2, w3]: [__m512i; 4], w15: __m512i) -> [__m512i; 8] {
    let initial = INITIAL.map(|word| _mm512_set1_epi32(word as i32));
    let mut state = initial;
    macro_rules! steps {
        ($($t:literal $word:expr),*) => {
            $(
                let constant = _mm512_add_epi32(state[7], _mm512_set1_epi32(ROUND[$t] as i32));
                step(&mut state, $word.map_or(constant, |word| _mm512_add_epi32(constant, word)));
            )*
        };
    }
    let zero = None::<__m512i>;
    steps!(0 Some(w0), 1 Some(w1), 2 Some(w2), 3 Some(w3), 4 zero, 5 zero, 6 zero, 7 zero);
    steps!(8 zero, 9 zero, 10 zero, 11 zero, 12 zero, 13 zero, 14 zero, 15 Some(w15));
    // Words 16 to 31, without the terms that are zero.
    let add = |a, b| _mm512_add_epi32(a, b);
    let w16 = add(small_sigma0(w1), w0);
    let w17 = add(add(small_sigma1(w15), small_sigma0(w2)), w1);
    let w18 = add(add(small_sigma1(w16), small_sigma0(w3)), w2);
    let w19 = add(small_sigma1(w17), w3);
    let w20 = small_sigma1(w18);
    let w21 = small_sigma1(w19);
    let w22 = add(small_sigma1(w20), w15);
    let w23 = add(small_sigma1(w21), w16);
    let w24 = add(small_sigma1(w22), w17);
    let w25 = add(small_sigma1(w23), w18);
    let w26 = add(small_sigma1(w24), w19);
    let w27 = add(small_sigma1(w25), w20);
    let w28 = add(small_sigma1(w26), w21);
    let w29 = add(small_sigma1(w27), w22);
    let w30 = add(add(small_sigma1(w28), w23), small_sigma0(w15));
    let w31 = add(add(small_sigma1(w29), w24), add(small_sigma0(w16), w15));
    let mut w = [w16, w17, w18, w19, w20, w21, w22, w23, w24, w25, w26, w27, w28, w29, w30, w31];
    sixteen_steps!(state, w, 16, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for t in [32, 48] {
        extend!(w, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        sixteen_steps!(state, w, t, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
    sums(state, initial)
}

#[target_feature(enable = "avx512f")]
#[inline]
fn sums(mut state: [__m512i; 8], initial: [__m512i; 8]) -> [__m512i; 8] {
    for (word, initial) in state.iter_mut().zip(initial) {
        *word = _mm512_add_epi32(*word, initial);
    }
    state
}
