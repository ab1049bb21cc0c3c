//! The specification of the text kernels, for any processor.

use super::text::{BLOCK, BlockOperations, Masks, NeedsFullLowercase, Places, cut_blocks};

pub(super) fn cut(text: &str, out: &mut [u8], base: usize, places: &mut Places) -> Result<(), NeedsFullLowercase> {
    cut_blocks(text, out, base, places, Portable)
}

#[derive(Clone, Copy)]
struct Portable;

impl BlockOperations for Portable {
    #[inline(always)]
    fn classify(self, block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
        classify(block, lowered)
    }

    #[inline(always)]
    fn store(self, bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize {
        store(bits, base, out)
    }
}

/// Byte by byte without branches, so that a compiler can take many bytes at a time.
fn classify(block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
    let (mut word, mut space, mut lead) = ([0; BLOCK], [0; BLOCK], [0; BLOCK]);
    for (i, &byte) in block.iter().enumerate() {
        let within = |first: u8, last: u8| byte.wrapping_sub(first) <= last - first;
        let is_upper = within(b'A', b'Z');
        lowered[i] = byte | u8::from(is_upper) << 5;
        word[i] = u8::from(is_upper | within(b'a', b'z') | within(b'0', b'9') | (byte == b'_'));
        // Python's: tab to carriage return, the four separators, the space.
        space[i] = u8::from(within(0x09, 0x0D) | within(0x1C, 0x20));
        lead[i] = u8::from(byte >= 0xC0);
    }
    Masks { word: bits(&word), space: bits(&space), lead: bits(&lead) }
}

/// Bit i is byte i, which is 0 or 1.
fn bits(bytes: &[u8; BLOCK]) -> u64 {
    // The multiplication brings byte i of eight to bit 56 + i.
    let gather = |eight: &[u8; 8]| u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    let (eights, _) = bytes.as_chunks::<8>();
    eights.iter().rev().fold(0, |bits, eight| bits << 8 | gather(eight))
}

/// Writes the positions of the bits, lowest first.
#[inline(always)]
pub(super) fn store(mut bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize {
    let n = bits.count_ones() as usize;
    for place in out.iter_mut().take(n) {
        *place = base + bits.trailing_zeros();
        bits &= bits - 1;
    }
    n
}
