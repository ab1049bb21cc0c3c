//! Text kernels for AVX-512.

use core::arch::x86_64::*;

use crate::features::kernels::text::{BLOCK, BlockOperations, Masks, NeedsFullLowercase, Places, cut_blocks};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt")]
pub(in crate::features::kernels) fn cut(
    text: &str,
    out: &mut [u8],
    base: usize,
    places: &mut Places,
) -> Result<(), NeedsFullLowercase> {
    cut_blocks(text, out, base, places, Avx512(()))
}

/// Made in [`cut`] only, which runs where the processor has the instruction set.
#[derive(Clone, Copy)]
struct Avx512(());

impl BlockOperations for Avx512 {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
        // SAFETY: as said of this type.
        unsafe { classify(block, lowered) }
    }

    #[inline(always)]
    fn store(self, bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize {
        // SAFETY: as said of this type.
        unsafe { store(bits, base, out) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
#[inline]
fn classify(block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
    // SAFETY: 64 bytes are read of an array of 64.
    let bytes = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
    let within = |bytes: __m512i, first: u8, last: u8| {
        let from_first = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
        _mm512_cmple_epu8_mask(from_first, _mm512_set1_epi8((last - first) as i8))
    };
    let is_upper = within(bytes, b'A', b'Z');
    let lower = _mm512_mask_add_epi8(bytes, is_upper, bytes, _mm512_set1_epi8(0x20));
    // SAFETY: 64 bytes are written to an array of 64.
    unsafe { _mm512_storeu_si512(lowered.as_mut_ptr().cast(), lower) };
    let underscore = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'_' as i8));
    Masks {
        word: within(lower, b'a', b'z') | within(bytes, b'0', b'9') | underscore,
        space: within(bytes, 0x09, 0x0D) | within(bytes, 0x1C, 0x20),
        lead: _mm512_cmpge_epu8_mask(bytes, _mm512_set1_epi8(0xC0u8 as i8)),
    }
}

const IOTA: [u8; BLOCK] = {
    let mut iota = [0; BLOCK];
    let mut i = 0;
    while i < BLOCK {
        iota[i] = i as u8;
        i += 1;
    }
    iota
};

/// Writes the positions of the bits, lowest first.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
#[inline]
fn store(bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize {
    // SAFETY: 64 bytes are read of an array of 64.
    let iota = unsafe { _mm512_loadu_si512(IOTA.as_ptr().cast()) };
    let positions = _mm512_maskz_compress_epi8(bits, iota);
    let base = _mm512_set1_epi32(base as i32);
    let n = bits.count_ones() as usize;
    let (quarters, _) = out.as_chunks_mut::<16>();
    store16(_mm512_castsi512_si128(positions), base, &mut quarters[0]);
    if n > 16 {
        store16(_mm512_extracti32x4_epi32::<1>(positions), base, &mut quarters[1]);
        if n > 32 {
            store16(_mm512_extracti32x4_epi32::<2>(positions), base, &mut quarters[2]);
            store16(_mm512_extracti32x4_epi32::<3>(positions), base, &mut quarters[3]);
        }
    }
    n
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store16(positions: __m128i, base: __m512i, out: &mut [u32; 16]) {
    let places = _mm512_add_epi32(_mm512_cvtepu8_epi32(positions), base);
    // SAFETY: 64 bytes are written to an array of 16 numbers of 4 bytes.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), places) };
}
