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
///
/// Tokens are given as places in `padded`, where a byte stands before the first token and at least 64 behind the last.
#[derive(Debug)]
pub struct Digests {
    kernel: DigestKernel,
    modulus: Modulus,
    lanes: Lanes,
    /// Where the bucket of each lane goes.
    places: [usize; LANES],
    #[cfg(target_arch = "x86_64")]
    waiting: Box<super::x86::avx512_sha::Waiting>,
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
        Digests {
            kernel,
            modulus: Modulus::new(buckets),
            lanes: Lanes::new(),
            places: [0; LANES],
            #[cfg(target_arch = "x86_64")]
            waiting: super::x86::avx512_sha::Waiting::new(),
        }
    }

    /// Whether this is what would be made with these settings.
    pub fn is_for(&self, kernel: DigestKernel, buckets: u32) -> bool {
        self.kernel == kernel && self.modulus.buckets == u64::from(buckets)
    }

    /// Writes buckets into `out`: for each of `unigrams` that of token `i` into `out[2 i]`, for each of `bigrams` that of
    /// tokens `i - 1` and `i` into `out[2 i + 1]`.
    pub fn uni_and_bigrams(
        &mut self,
        padded: &[u8],
        starts: &[u32],
        ends: &[u32],
        [unigrams, bigrams]: [&[u32]; 2],
        out: &mut [u32],
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.kernel.0 == DigestSet::Avx512 {
            let (ngrams, Digests { modulus, waiting, .. }) = ([unigrams, bigrams], self);
            // SAFETY: a kernel for an instruction set is only made when the processor has it.
            unsafe { super::x86::avx512_sha::uni_and_bigrams(padded, starts, ends, ngrams, modulus, waiting, out) };
            return;
        }
        for i in unigrams.iter().map(|&i| i as usize) {
            self.add(padded, &starts[i..=i], &ends[i..=i], 2 * i, out);
        }
        for i in bigrams.iter().map(|&i| i as usize) {
            self.add(padded, &starts[i - 1..=i], &ends[i - 1..=i], 2 * i + 1, out);
        }
        self.finish(out);
    }

    /// Digests the n-gram of some tokens into `out[place]`, now or later.
    pub fn add(&mut self, padded: &[u8], starts: &[u32], ends: &[u32], place: usize, out: &mut [u32]) {
        let tokens = || starts.iter().zip(ends).map(|(&start, &end)| start as usize..end as usize);
        let lane = &mut self.lanes.bytes[self.lanes.used];
        let mut n = 0;
        for token in tokens() {
            if n > 0 {
                lane[n] = b' ';
                n += 1;
            }
            if n + token.len() > MAX_SHORT {
                let long: Vec<&[u8]> = tokens().map(|token| &padded[token]).collect();
                out[place] = self.modulus.of_message(&long.join(&b' '));
                return;
            }
            for piece in (0..token.len()).step_by(PIECE) {
                let from = token.start + piece;
                lane[n + piece..n + piece + PIECE].copy_from_slice(&padded[from..from + PIECE]);
            }
            n += token.len();
        }
        lane[n] = 0x80;
        lane[n + 1..n + 1 + BLOCK].fill(0);
        lane[BLOCK - 2..BLOCK].copy_from_slice(&(8 * n as u16).to_be_bytes());
        self.places[self.lanes.used] = place;
        self.lanes.used += 1;
        if self.lanes.used == LANES {
            self.finish(out);
        }
    }

    /// Digests what waits.
    pub fn finish(&mut self, out: &mut [u32]) {
        if self.lanes.used == 0 {
            return;
        }
        let buckets = self.buckets();
        for (&place, bucket) in self.places[..self.lanes.used].iter().zip(buckets) {
            out[place] = bucket;
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
