//! Text kernels for AVX2.

use core::arch::x86_64::*;

use crate::features::kernels::portable::store;
use crate::features::kernels::text::{BLOCK, BlockOperations, Masks, NeedsFullLowercase, Places, cut_blocks};

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(in crate::features::kernels) fn cut(
    text: &str,
    out: &mut [u8],
    base: usize,
    places: &mut Places,
) -> Result<(), NeedsFullLowercase> {
    cut_blocks(text, out, base, places, Avx2(()))
}

/// Made in [`cut`] only, which runs where the processor has the instruction set.
#[derive(Clone, Copy)]
struct Avx2(());

impl BlockOperations for Avx2 {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
        // SAFETY: as said of this type.
        unsafe { classify(block, lowered) }
    }

    #[inline(always)]
    fn store(self, bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize {
        store(bits, base, out)
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn classify(block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
    let (halves, _) = block.as_chunks::<32>();
    let (lowered, _) = lowered.as_chunks_mut::<32>();
    let low = classify_half(&halves[0], &mut lowered[0]);
    let high = classify_half(&halves[1], &mut lowered[1]);
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Masks { word: join(low[0], high[0]), space: join(low[1], high[1]), lead: join(low[2], high[2]) }
}

/// Word, space and lead masks of 32 bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn classify_half(block: &[u8; 32], lowered: &mut [u8; 32]) -> [u32; 3] {
    // SAFETY: 32 bytes are read of an array of 32.
    let bytes = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
    let within = |bytes: __m256i, first: u8, last: u8| {
        let from_first = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first as i8));
        _mm256_cmpeq_epi8(_mm256_min_epu8(from_first, _mm256_set1_epi8((last - first) as i8)), from_first)
    };
    let is_upper = within(bytes, b'A', b'Z');
    let lower = _mm256_or_si256(bytes, _mm256_and_si256(is_upper, _mm256_set1_epi8(0x20)));
    // SAFETY: 32 bytes are written to an array of 32.
    unsafe { _mm256_storeu_si256(lowered.as_mut_ptr().cast(), lower) };
    let word = _mm256_or_si256(
        _mm256_or_si256(within(lower, b'a', b'z'), within(bytes, b'0', b'9')),
        _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(b'_' as i8)),
    );
    let space = _mm256_or_si256(within(bytes, 0x09, 0x0D), within(bytes, 0x1C, 0x20));
    // First bytes of longer characters are 0xC0 and above; as signed numbers, from -64 to -1.
    let lead = _mm256_and_si256(_mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(-65)), bytes);
    [word, space, lead].map(|mask| _mm256_movemask_epi8(mask) as u32)
}
