//! The loops that see every byte, in several versions: one that runs anywhere and is the specification, and others for
//! instruction sets that the processor is asked for at run time. All give the same tokens and buckets, bit for bit.
//!
//! | stage | anywhere | AVX2 | AVX-512 | SHA extensions |
//! | --- | --- | --- | --- | --- |
//! | lower-case and cut into tokens, 64 bytes at a time | one byte after another | masks | masks, compressed stores | |
//! | `fast` hash | token by token | token by token | eight tokens at a time | |
//! | SHA-256 of short n-grams | the `sha2` crate | | sixteen at a time | four at a time |
//!
//! # Safety
//!
//! `unsafe` stands here, in `record::unescape::avx512` and in `source::kafka::topic_id` only; here it is of three kinds.
//! - *Calls of functions for an instruction set.* They happen in `match` arms on [`TextKernel`] and [`DigestKernel`], whose
//!   values for an instruction set are only made by [`TextKernel::available`] and [`DigestKernel::available`], after the
//!   processor said that it has it.
//! - *Unaligned loads and stores.* They happen in functions that take references to arrays of exactly the size that is
//!   read or written, so bounds are checked by whoever makes the reference.
//! - *Hints.* [`prefetch`] takes a reference and changes nothing but what the caches hold.

#![allow(unsafe_code)]

mod digests;
mod portable;
mod text;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use digests::Digests;
pub(super) use text::Tokens;

/// How texts are lowered, cut and hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextKernel(TextSet);

/// How SHA-256 is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestKernel(DigestSet);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextSet {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DigestSet {
    Portable,
    #[cfg(target_arch = "x86_64")]
    ShaExtensions,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Fills `out` with the buckets of the uni- and bigrams of the `fast` hash, from the place on that it returns; `None` if this
/// kernel has no way of its own.
pub(super) fn fast_buckets(
    kernel: TextKernel,
    tokens: &Tokens,
    n_context: usize,
    n_buckets: u32,
    out: &mut Vec<u32>,
) -> Option<usize> {
    match kernel.0 {
        // SAFETY: a kernel for an instruction set is only made when the processor has it.
        #[cfg(target_arch = "x86_64")]
        TextSet::Avx512 => Some(unsafe { x86::avx512_hash::buckets(tokens, n_context, n_buckets, out) }),
        _ => None,
    }
}

/// Says that this will be read soon.
#[inline(always)]
pub(super) fn prefetch<T>(what: &T) {
    // SAFETY: it only is a hint, on an address that is valid.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(what).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}

impl TextKernel {
    /// Those that this processor can run, the slowest first; the first one is the specification.
    pub fn available() -> Vec<Self> {
        let mut kernels = vec![TextKernel(TextSet::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx2() {
                kernels.push(TextKernel(TextSet::Avx2));
            }
            if x86::has_avx512() {
                kernels.push(TextKernel(TextSet::Avx512));
            }
        }
        kernels
    }

    pub fn as_str(self) -> &'static str {
        match self.0 {
            TextSet::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            TextSet::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            TextSet::Avx512 => "avx512",
        }
    }
}

impl DigestKernel {
    /// Those that this processor can run, the slowest first; the first one is the specification.
    pub fn available() -> Vec<Self> {
        let mut kernels = vec![DigestKernel(DigestSet::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_sha() {
                kernels.push(DigestKernel(DigestSet::ShaExtensions));
            }
            if x86::has_avx512() {
                kernels.push(DigestKernel(DigestSet::Avx512));
            }
        }
        kernels
    }

    pub fn as_str(self) -> &'static str {
        match self.0 {
            DigestSet::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            DigestSet::ShaExtensions => "sha-extensions",
            #[cfg(target_arch = "x86_64")]
            DigestSet::Avx512 => "avx512",
        }
    }
}

impl Default for TextKernel {
    /// The fastest.
    fn default() -> Self {
        Self::available().pop().unwrap_or(TextKernel(TextSet::Portable))
    }
}

impl Default for DigestKernel {
    /// The fastest.
    fn default() -> Self {
        Self::available().pop().unwrap_or(DigestKernel(DigestSet::Portable))
    }
}
