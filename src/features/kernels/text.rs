//! Text → lower-cased bytes and the places of its tokens, 64 bytes at a time.

use super::super::lowercase::{lower_char, lowercase_into};
use super::super::tokens::{CharClass, Characters};
use super::{TextKernel, TextSet, portable};

/// Bytes that are looked at together.
pub(super) const BLOCK: usize = 64;
/// Zeros behind the lowered text, so that a token can be read in whole words.
const PADDING: usize = BLOCK;

/// A lower-cased text with the places of its tokens. Reused from text to text.
#[derive(Debug, Default)]
pub struct Tokens {
    /// A byte, the lowered text, [`PADDING`] zeros, and then whatever stood there before.
    bytes: Vec<u8>,
    /// Where the lowered text ends.
    len: usize,
    places: Places,
}

/// Where tokens begin and end. Both vectors are longer than what is in use, so that whole vectors can be stored.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub starts: Vec<u32>,
    pub ends: Vec<u32>,
    pub n_starts: usize,
    pub n_ends: usize,
}

/// What a block of 64 bytes is made of, a bit a byte, the first byte lowest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Masks {
    /// ASCII letters, digits and the underscore.
    pub word: u64,
    /// ASCII white space.
    pub space: u64,
    /// First bytes of characters that are not ASCII.
    pub lead: u64,
}

/// The text holds a character whose lower case depends on its neighbours or has another length.
pub(super) struct NeedsFullLowercase;

impl Tokens {
    pub fn len(&self) -> usize {
        self.places.n_ends
    }

    /// The lowered bytes of a token.
    pub fn token(&self, i: usize) -> &[u8] {
        &self.bytes[self.places.starts[i] as usize..self.places.ends[i] as usize]
    }

    /// A byte, the lowered text and at least 64 bytes more: places of tokens are places in here.
    pub fn padded_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn starts(&self) -> &[u32] {
        &self.places.starts[..self.len()]
    }

    pub fn ends(&self) -> &[u32] {
        &self.places.ends[..self.len()]
    }

    /// Bytes of memory that wait for the next text.
    pub fn held_bytes(&self) -> usize {
        let places = self.places.starts.capacity() + self.places.ends.capacity();
        self.bytes.capacity() + places * size_of::<u32>()
    }

    /// Makes these the tokens of `context`, which is lower-cased already, and of `text`.
    pub fn set(&mut self, kernel: TextKernel, context: &[String], text: &str) {
        self.len = 1;
        self.places.n_starts = 0;
        self.places.n_ends = 0;
        for token in context {
            self.places.reserve();
            self.places.push_start(self.len);
            self.make_room(token.len() + 1);
            self.bytes[self.len..self.len + token.len()].copy_from_slice(token.as_bytes());
            self.len += token.len();
            self.places.push_end(self.len);
            self.bytes[self.len] = b' ';
            self.len += 1;
        }
        let (from, n_tokens) = (self.len, self.places.n_ends);
        if self.append(kernel, text).is_err() {
            let mut lowered = String::new();
            lowercase_into(text, &mut lowered);
            (self.len, self.places.n_starts, self.places.n_ends) = (from, n_tokens, n_tokens);
            let lowered_twice = self.append(kernel, &lowered);
            debug_assert!(lowered_twice.is_ok(), "lower case stays as it is");
        }
        let len = self.len;
        self.bytes[len..len + PADDING].fill(0);
    }

    fn make_room(&mut self, more: usize) {
        let wanted = self.len + more + 2 * PADDING;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
    }

    fn append(&mut self, kernel: TextKernel, text: &str) -> Result<(), NeedsFullLowercase> {
        self.make_room(text.len());
        let Tokens { bytes, len, places } = self;
        match kernel.0 {
            TextSet::Portable => portable::cut(text, &mut bytes[*len..], *len, places),
            // SAFETY: a kernel for an instruction set is only made when the processor has it.
            #[cfg(target_arch = "x86_64")]
            TextSet::Avx2 => unsafe { super::x86::avx2::cut(text, &mut bytes[*len..], *len, places) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            TextSet::Avx512 => unsafe { super::x86::avx512::cut(text, &mut bytes[*len..], *len, places) },
        }?;
        self.len += text.len();
        Ok(())
    }
}

impl Places {
    /// Makes room for the starts and ends of a block.
    pub fn reserve(&mut self) {
        let wanted = self.n_starts + 2 * BLOCK;
        if self.starts.len() < wanted {
            self.starts.resize(2 * wanted, 0);
            self.ends.resize(2 * wanted, 0);
        }
    }

    fn push_start(&mut self, at: usize) {
        self.starts[self.n_starts] = at as u32;
        self.n_starts += 1;
    }

    fn push_end(&mut self, at: usize) {
        self.ends[self.n_ends] = at as u32;
        self.n_ends += 1;
    }
}

/// What an instruction set does for [`cut_blocks`].
pub(super) trait BlockOperations: Copy {
    /// Lowers the ASCII letters of a block on its way to the output, and says what it is made of.
    fn classify(self, block: &[u8; BLOCK], lowered: &mut [u8; BLOCK]) -> Masks;

    /// Writes the positions of a mask's bits, lowest first, `base` added, and returns their number. What stands behind
    /// them in `out` afterwards means nothing.
    fn store(self, bits: u64, base: u32, out: &mut [u32; BLOCK]) -> usize;
}

/// Cuts a text with the operations of an instruction set; to be called from a function for that instruction set, into
/// which all of it is inlined.
///
/// `out` takes the lowered text, beginning at its first byte, which is number `base` of the whole; it has room for a
/// block more.
#[inline(always)]
pub(super) fn cut_blocks(
    text: &str,
    out: &mut [u8],
    base: usize,
    places: &mut Places,
    operations: impl BlockOperations,
) -> Result<(), NeedsFullLowercase> {
    let bytes = text.as_bytes();
    // Class of the byte before the block: one of these is 1, or none at a space.
    let (mut after_word, mut after_other) = (0u64, 0u64);
    let mut at = 0;
    while at < bytes.len() {
        let mut tail = [0u8; BLOCK];
        let (block, mut n) = match bytes[at..].first_chunk::<BLOCK>() {
            Some(block) => (block, BLOCK),
            None => {
                let rest = &bytes[at..];
                tail[..rest.len()].copy_from_slice(rest);
                (&tail, rest.len())
            }
        };
        let Some(lowered) = out[at..].first_chunk_mut::<BLOCK>() else {
            unreachable!("the output has room for a block")
        };
        let mut masks = operations.classify(block, lowered);
        if masks.lead != 0 {
            n = add_other_scripts(&text[at..], lowered, n, &mut masks)?;
        }
        let inside = u64::MAX >> (BLOCK - n);
        let word = masks.word & inside;
        let other = !(masks.word | masks.space) & inside;
        let (before_word, before_other) = (word << 1 | after_word, other << 1 | after_other);
        let starts = (word & !before_word) | (other & !before_other);
        let ends = ((before_word & !word) | (before_other & !other)) & inside;
        places.reserve();
        let position = (base + at) as u32;
        let Places { starts: start_places, ends: end_places, n_starts, n_ends } = places;
        if let (Some(start_room), Some(end_room)) =
            (start_places[*n_starts..].first_chunk_mut(), end_places[*n_ends..].first_chunk_mut())
        {
            *n_starts += operations.store(starts, position, start_room);
            *n_ends += operations.store(ends, position, end_room);
        }
        after_word = word >> (n - 1) & 1;
        after_other = other >> (n - 1) & 1;
        at += n;
    }
    if after_word | after_other != 0 {
        places.reserve();
        places.push_end(base + bytes.len());
    }
    Ok(())
}

/// Adds the characters of a block that are not ASCII to its masks, and lowers them. Returns how many bytes of the block
/// are whole characters.
#[inline(never)]
fn add_other_scripts(
    text: &str,
    lowered: &mut [u8; BLOCK],
    n: usize,
    masks: &mut Masks,
) -> Result<usize, NeedsFullLowercase> {
    let characters = Characters::table();
    let mut leads = masks.lead;
    while leads != 0 {
        let at = leads.trailing_zeros() as usize;
        leads &= leads - 1;
        let Some(c) = text[at..].chars().next() else { break };
        let len = c.len_utf8();
        if at + len > n {
            return Ok(at);
        }
        let mut properties = characters.properties(c);
        if properties.has_lower_case() {
            let lower = match c {
                'Σ' | 'İ' => return Err(NeedsFullLowercase),
                _ => lower_char(c),
            };
            if lower.len_utf8() != len {
                return Err(NeedsFullLowercase);
            }
            lower.encode_utf8(&mut lowered[at..at + len]);
            properties = characters.properties(lower);
        }
        let run = ((1 << len) - 1) << at;
        match properties.class() {
            CharClass::Word => masks.word |= run,
            CharClass::Space => masks.space |= run,
            CharClass::Other => {}
        }
    }
    Ok(n)
}
