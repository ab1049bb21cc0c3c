//! SHA-256 of many short n-grams, as buckets: they wait in lanes until a whole group can be digested at once.

use sha2::{Digest, Sha256};

use super::{DigestKernel, DigestSet};

/// N-grams that are digested together.
pub(super) const LANES: usize = 16;
/// Bytes of a SHA-256 block.
const BLOCK: usize = 64;
/// A lane holds a block, and room behind it for copies of whole words that reach too far.
const LANE: usize = 2 * BLOCK;
/// The longest message of one block: a byte marks its end, eight give its length.
pub(super) const MAX_SHORT: usize = BLOCK - 9;
/// Copies are made in pieces of this many bytes.
const PIECE: usize = 16;

/// Blocks of messages up to [`MAX_SHORT`] bytes, padded as SHA-256 wants it.
#[derive(Debug)]
pub(super) struct Lanes {
    bytes: Box<[[u8; LANE]; LANES]>,
    used: usize,
}

/// Turns n-grams into buckets: the 256-bit digest, as one big-endian integer, modulo the number of buckets.
#[derive(Debug)]
pub struct Digests {
    kernel: DigestKernel,
    modulus: Modulus,
    lanes: Lanes,
    /// Where the bucket of each lane goes, and what remembers it.
    waiting: [(usize, Option<u32>); LANES],
}

/// Σ_k word_k · 2^(32 (7 - k)) modulo the number of buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modulus {
    pub buckets: u64,
    /// 2^(32 (7 - k)) modulo the number of buckets.
    pub powers: [u64; 8],
}

impl Modulus {
    fn new(buckets: u32) -> Self {
        let buckets = u64::from(buckets);
        let mut powers = [1 % buckets; 8];
        for k in (0..7).rev() {
            powers[k] = powers[k + 1] * ((1u64 << 32) % buckets) % buckets;
        }
        Modulus { buckets, powers }
    }

    pub fn of_digest(&self, words: &[u32; 8]) -> u32 {
        // Eight products below 2^32 * 2^24 (see `Featuriser::MAX_BUCKETS`) fit 64 bits without a reduction between.
        let sum: u64 = words.iter().zip(self.powers).map(|(&word, power)| u64::from(word) * power).sum();
        (sum % self.buckets) as u32
    }

    #[cold]
    pub fn of_message(&self, message: &[u8]) -> u32 {
        let digest = Sha256::digest(message);
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(digest.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        self.of_digest(&words)
    }
}

impl Lanes {
    fn new() -> Self {
        Lanes { bytes: Box::new([[0; LANE]; LANES]), used: 0 }
    }

    /// The padded message of a lane.
    pub fn block(&self, lane: usize) -> &[u8; BLOCK] {
        let (blocks, _) = self.bytes[lane].as_chunks::<BLOCK>();
        &blocks[0]
    }
}

impl Digests {
    pub fn new(kernel: DigestKernel, buckets: u32) -> Self {
        let waiting = [(0, None); LANES];
        Digests { kernel, modulus: Modulus::new(buckets), lanes: Lanes::new(), waiting }
    }

    /// Whether this is what would be made with these settings.
    pub fn is_for(&self, kernel: DigestKernel, buckets: u32) -> bool {
        self.kernel == kernel && self.modulus.buckets == u64::from(buckets)
    }

    /// Writes the buckets of all bigrams of neighbouring tokens into every second place of `out`: that of tokens `i` and
    /// `i + 1` into `out[2 i]`. The tokens are places in `padded`, where a byte stands before the first and at least 64
    /// behind the last.
    pub fn bigrams(&mut self, padded: &[u8], starts: &[u32], ends: &[u32], out: &mut [u32]) {
        debug_assert!(self.lanes.used == 0, "n-grams wait");
        #[cfg(target_arch = "x86_64")]
        if self.kernel.0 == DigestSet::Avx512 {
            // SAFETY: a kernel for an instruction set is only made when the processor has it.
            unsafe { super::x86::avx512_sha::bigrams(padded, starts, ends, &self.modulus, out) };
            return;
        }
        for (i, (starts, ends)) in starts.windows(2).zip(ends.windows(2)).enumerate() {
            let tokens = starts.iter().copied().zip(ends.iter().copied());
            self.add(padded, tokens, 2 * i, None, out, &mut |_, _| ());
        }
        self.finish(out, &mut |_, _| ());
    }

    /// Digests the n-gram of `tokens` (places in `padded`, which goes on for at least 64 bytes behind the last one) into
    /// `out[place]`, now or later. `done` learns of every `Some(note)` with its bucket.
    #[inline]
    pub fn add(
        &mut self,
        padded: &[u8],
        tokens: impl Iterator<Item = (u32, u32)> + Clone,
        place: usize,
        note: Option<u32>,
        out: &mut [u32],
        done: &mut impl FnMut(u32, u32),
    ) {
        let lane = &mut self.lanes.bytes[self.lanes.used];
        let mut n = 0;
        for (start, end) in tokens.clone() {
            let (start, end) = (start as usize, end as usize);
            if n > 0 {
                lane[n] = b' ';
                n += 1;
            }
            let len = end - start;
            if n + len > MAX_SHORT {
                let long: Vec<&[u8]> = tokens.map(|(start, end)| &padded[start as usize..end as usize]).collect();
                let bucket = self.modulus.of_message(&long.join(&b' '));
                out[place] = bucket;
                if let Some(note) = note {
                    done(note, bucket);
                }
                return;
            }
            for piece in (0..len).step_by(PIECE) {
                lane[n + piece..n + piece + PIECE].copy_from_slice(&padded[start + piece..start + piece + PIECE]);
            }
            n += len;
        }
        lane[n] = 0x80;
        lane[n + 1..n + 1 + BLOCK].fill(0);
        lane[BLOCK - 2..BLOCK].copy_from_slice(&(8 * n as u16).to_be_bytes());
        self.waiting[self.lanes.used] = (place, note);
        self.lanes.used += 1;
        if self.lanes.used == LANES {
            self.finish(out, done);
        }
    }

    /// Digests what waits.
    #[inline]
    pub fn finish(&mut self, out: &mut [u32], done: &mut impl FnMut(u32, u32)) {
        if self.lanes.used == 0 {
            return;
        }
        let buckets = self.buckets();
        for (&(place, note), bucket) in self.waiting[..self.lanes.used].iter().zip(buckets) {
            out[place] = bucket;
            if let Some(note) = note {
                done(note, bucket);
            }
        }
        self.lanes.used = 0;
    }

    /// Buckets of all lanes; those of unused lanes mean nothing.
    fn buckets(&self) -> [u32; LANES] {
        match self.kernel.0 {
            DigestSet::Portable => {
                let mut buckets = [0; LANES];
                for (lane, bucket) in buckets.iter_mut().enumerate().take(self.lanes.used) {
                    let block = self.lanes.block(lane);
                    let n = usize::from(u16::from_be_bytes([block[BLOCK - 2], block[BLOCK - 1]]) / 8);
                    *bucket = self.modulus.of_message(&block[..n]);
                }
                buckets
            }
            // SAFETY: a kernel for an instruction set is only made when the processor has it.
            #[cfg(target_arch = "x86_64")]
            DigestSet::ShaExtensions => unsafe {
                super::x86::sha::buckets(&self.lanes, self.lanes.used, &self.modulus)
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            DigestSet::Avx512 => unsafe { super::x86::avx512_sha::buckets(&self.lanes, &self.modulus) },
        }
    }
}
