//! SHA-256 with the SHA extensions: four messages at a time, because one alone leaves the unit waiting for itself.

use core::arch::x86_64::*;

use super::{INITIAL, ROUND};
use crate::features::kernels::digests::{LANES, Lanes, Modulus};

const STREAMS: usize = 4;

#[target_feature(enable = "sha,sse4.1,ssse3")]
pub(in crate::features::kernels) fn buckets(lanes: &Lanes, n: usize, modulus: &Modulus) -> [u32; LANES] {
    let mut buckets = [0; LANES];
    for first in (0..n).step_by(STREAMS) {
        let digests = digests([0, 1, 2, 3].map(|i| lanes.block(first + i)));
        for (bucket, digest) in buckets[first..first + STREAMS].iter_mut().zip(&digests) {
            *bucket = modulus.of_digest(digest);
        }
    }
    buckets
}

/// Digests of four one-block messages.
#[target_feature(enable = "sha,sse4.1,ssse3")]
#[inline]
fn digests(blocks: [&[u8; 64]; STREAMS]) -> [[u32; 8]; STREAMS] {
    let big_endian = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
    // The unit wants the state as (a, b, e, f) and (c, d, g, h), the first named highest.
    let [a, b, c, d, e, f, g, h] = INITIAL.map(|word| word as i32);
    let initial = (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h));
    let mut abef = [initial.0; STREAMS];
    let mut cdgh = [initial.1; STREAMS];
    let mut words = [[_mm_setzero_si128(); 4]; STREAMS];
    for (words, block) in words.iter_mut().zip(blocks) {
        let (quarters, _) = block.as_chunks::<16>();
        for (word, quarter) in words.iter_mut().zip(quarters) {
            // SAFETY: 16 bytes are read of an array of 16.
            *word = _mm_shuffle_epi8(unsafe { _mm_loadu_si128(quarter.as_ptr().cast()) }, big_endian);
        }
    }
    let (constants, _) = ROUND.as_chunks::<4>();
    for group in 0..4 {
        for quarter in 0..4 {
            let [k0, k1, k2, k3] = constants[4 * group + quarter].map(|word| word as i32);
            let constant = _mm_set_epi32(k3, k2, k1, k0);
            for s in 0..STREAMS {
                let current = words[s][quarter];
                let sum = _mm_add_epi32(current, constant);
                cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], sum);
                abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32::<0x0E>(sum));
                if group < 3 {
                    // The word sixteen places on: from this one and the next, the one nine places on, the last two.
                    let [next, after, last] = [1, 2, 3].map(|ahead| words[s][(quarter + ahead) % 4]);
                    let partial = _mm_add_epi32(_mm_sha256msg1_epu32(current, next), _mm_alignr_epi8::<4>(last, after));
                    words[s][quarter] = _mm_sha256msg2_epu32(partial, last);
                }
            }
        }
    }
    let mut digests = [[0; 8]; STREAMS];
    for (s, digest) in digests.iter_mut().enumerate() {
        let abef = _mm_add_epi32(abef[s], initial.0);
        let cdgh = _mm_add_epi32(cdgh[s], initial.1);
        *digest = [
            _mm_extract_epi32::<3>(abef),
            _mm_extract_epi32::<2>(abef),
            _mm_extract_epi32::<3>(cdgh),
            _mm_extract_epi32::<2>(cdgh),
            _mm_extract_epi32::<1>(abef),
            _mm_extract_epi32::<0>(abef),
            _mm_extract_epi32::<1>(cdgh),
            _mm_extract_epi32::<0>(cdgh),
        ]
        .map(|word| word as u32);
    }
    digests
}
