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

const WORD: u8 = 1;
const SPACE: u8 = 2;
const LEAD: u8 = 4;

/// What each byte is. ASCII white space is Python's: tab to carriage return, the four separators, the space.
const BYTE_CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' => WORD,
            0x09..=0x0D | 0x1C..=0x20 => SPACE,
            0xC0..=0xFF => LEAD,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

fn classify(block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks {
    *lowered = *block;
    lowered.make_ascii_lowercase();
    let mut masks = Masks::default();
    for (i, &byte) in block.iter().enumerate() {
        let class = BYTE_CLASSES[byte as usize];
        masks.word |= u64::from(class & 1) << i;
        masks.space |= u64::from(class >> 1 & 1) << i;
        masks.lead |= u64::from(class >> 2) << i;
    }
    masks
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
