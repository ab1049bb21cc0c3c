//! Sixty-four bytes at a time: escapes of two bytes become one by a table and a compression, so only a string's end and the long
//! escapes, `\u`, are branches.
//!
//! # Safety
//!
//! `unsafe` is of two kinds here.
//! - *The call of the function for the instruction set.* It happens for `Kernel::Avx512`, which is made only where
//!   [`is_available`] has asked the processor.
//! - *Unaligned loads and stores* of 64 bytes, from and to references to arrays of 64 bytes.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use super::{SHORT_ESCAPES, escape, portable};

const BLOCK: usize = 64;

/// Intel since Ice Lake, AMD since Zen 4.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

pub(super) fn unescape(bytes: &[u8], from: usize, out: &mut [u8]) -> Option<(usize, usize)> {
    // SAFETY: the processor has been asked, as said above.
    unsafe { blocks(bytes, from, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
fn blocks(bytes: &[u8], mut from: usize, out: &mut [u8]) -> Option<(usize, usize)> {
    let mut to = 0;
    while let Some(block) = bytes.get(from..).and_then(<[u8]>::first_chunk) {
        let (read, written) = unescape_block(block, out.get_mut(to..)?.first_chunk_mut()?);
        to += written;
        // A branch, so that the next block need not wait for what is found in this one.
        if read == BLOCK {
            from += BLOCK;
            continue;
        }
        from += read;
        match bytes[from] {
            b'"' => return Some((from + 1, to)),
            b'\\' => (from, to) = escape(bytes, from, out, to)?,
            _ => return None,
        }
        // Where one character is a long escape, its neighbours often are.
        while let Some([b'\\', b'u']) = bytes.get(from..).and_then(<[u8]>::first_chunk) {
            (from, to) = escape(bytes, from, out, to)?;
        }
    }
    portable(bytes, from, out, to)
}

/// Bytes by their lower seven bits, as one permutation of two registers finds them.
const TABLE: [[u8; BLOCK]; 2] = {
    let mut table = [[0; BLOCK]; 2];
    let mut i = 0;
    while i < 2 * BLOCK {
        table[i / BLOCK][i % BLOCK] = SHORT_ESCAPES[i];
        i += 1;
    }
    table
};

/// Gives how many bytes were read, all up to the string's end, a byte that must not stand in it, or an escape that is long, unknown or
/// cut off; and how many were written.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt")]
#[inline]
fn unescape_block(block: &[u8; BLOCK], out: &mut [u8; BLOCK]) -> (usize, usize) {
    // SAFETY: 64 bytes are read of arrays of 64.
    let [bytes, low, high] =
        [block, &TABLE[0], &TABLE[1]].map(|array| unsafe { _mm512_loadu_si512(array.as_ptr().cast()) });
    let backslashes = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'\\' as i8));
    let quotes = _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(b'"' as i8));
    let controls = _mm512_cmplt_epu8_mask(bytes, _mm512_set1_epi8(0x20));
    let begins = if backslashes & backslashes << 1 == 0 { backslashes } else { beginnings(backslashes) };
    let escaped = begins << 1;
    let characters = _mm512_permutex2var_epi8(low, bytes, high);
    let unknown = (_mm512_testn_epi8_mask(characters, characters) | _mm512_movepi8_mask(bytes)) & escaped;
    let stops = quotes & !escaped | controls | unknown >> 1 | begins & 1 << (BLOCK - 1);
    let read = stops.trailing_zeros();
    let written = _bzhi_u64(u64::MAX, read) & !begins;
    let unescaped = _mm512_maskz_compress_epi8(written, _mm512_mask_blend_epi8(escaped, bytes, characters));
    // SAFETY: 64 bytes are written to an array of 64.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), unescaped) };
    (read as usize, written.count_ones() as usize)
}

/// The backslashes that begin an escape, where some stand side by side: the first of each run, and every second one after it.
#[cold]
fn beginnings(backslashes: u64) -> u64 {
    let (mut begins, mut left) = (0, backslashes);
    while left != 0 {
        let first = left & left.wrapping_neg();
        begins |= first;
        left &= !(first | first << 1);
    }
    begins
}
