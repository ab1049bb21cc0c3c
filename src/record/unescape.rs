//! The rest of a JSON string, unescaped in one pass: word by word on any processor, which is the specification, or 64 bytes at a time
//! without a branch for an escape where there is AVX-512.

#[cfg(target_arch = "x86_64")]
mod avx512;

/// How strings are unescaped; a value for an instruction set is only made where the processor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unescaper(Kernel);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Unescaper {
    /// So many bytes more than the payload the output must have: whole words and blocks are copied.
    pub const SLACK_BYTES: usize = 64;

    /// Those that this processor can run, the slowest first; the first one is the specification.
    pub fn available() -> impl Iterator<Item = Self> {
        let kernels = [
            Some(Kernel::Portable),
            #[cfg(target_arch = "x86_64")]
            avx512::is_available().then_some(Kernel::Avx512),
        ];
        kernels.into_iter().flatten().map(Unescaper)
    }

    /// Unescapes the string whose first byte stands at `from` to the beginning of `out`. Gives the place behind its closing quote
    /// and the length in `out`; nothing if it does not end or is no JSON. The bytes outside escapes are taken as they are.
    #[inline]
    pub fn unescape(self, bytes: &[u8], from: usize, out: &mut [u8]) -> Option<(usize, usize)> {
        match self.0 {
            Kernel::Portable => portable(bytes, from, out, 0),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => avx512::unescape(bytes, from, out),
        }
    }
}

impl Default for Unescaper {
    /// The fastest.
    fn default() -> Self {
        Self::available().last().unwrap_or(Unescaper(Kernel::Portable))
    }
}

/// Bytes that are looked at together.
const WORD: usize = 16;

/// How many bytes of a word stand before the first one that ends a string, begins an escape, or must not stand in a string; `WORD` if
/// none does.
#[inline]
fn plain_bytes(word: &[u8; WORD]) -> usize {
    let half = |at: usize| specials(u64::from_le_bytes(std::array::from_fn(|i| word[at + i])));
    // Both at once, so that neither waits for the other.
    match (half(0), half(8)) {
        (0, second) => 8 + second.trailing_zeros() as usize / 8,
        (first, _) => first.trailing_zeros() as usize / 8,
    }
}

/// The highest bit of each such byte of half a word, exact up to and with the first one.
#[inline]
fn specials(half: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let below = |half: u64, limit: u8| half.wrapping_sub(ONES * u64::from(limit)) & !half;
    let equal = |byte: u8| below(half ^ (ONES * u64::from(byte)), 1);
    (equal(b'"') | equal(b'\\') | below(half, 0x20)) & HIGHS
}

/// Goes on at `from`, with `to` bytes written.
fn portable(bytes: &[u8], mut from: usize, out: &mut [u8], mut to: usize) -> Option<(usize, usize)> {
    loop {
        // Whole words are copied; what follows the first special byte is overwritten by what comes next.
        while let Some(word) = bytes.get(from..).and_then(<[u8]>::first_chunk) {
            *out.get_mut(to..)?.first_chunk_mut()? = *word;
            let plain = plain_bytes(word);
            from += plain;
            to += plain;
            if plain < WORD {
                break;
            }
        }
        match *bytes.get(from)? {
            b'\\' => (from, to) = escape(bytes, from, out, to)?,
            b'"' => return Some((from + 1, to)),
            0x00..0x20 => return None,
            // The last bytes of the payload are no whole word.
            byte => {
                *out.get_mut(to)? = byte;
                from += 1;
                to += 1;
            }
        }
    }
}

/// The escape whose backslash stands at `from`.
#[inline]
fn escape(bytes: &[u8], from: usize, out: &mut [u8], to: usize) -> Option<(usize, usize)> {
    let escaped = *bytes.get(from + 1)?;
    let character = SHORT_ESCAPES[usize::from(escaped)];
    if character != 0 {
        *out.get_mut(to)? = character;
        return Some((from + 2, to + 1));
    }
    if escaped != b'u' {
        return None;
    }
    let (character, length) = unicode_escape(&bytes[from + 2..])?;
    Some((from + 2 + length, to + character.encode_utf8(out.get_mut(to..to + 4)?).len()))
}

/// By the byte after the backslash; 0 of those that are no escape, or a longer one.
const SHORT_ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let pairs = *b"n\nt\tr\rb\x08f\x0c//\"\"\\\\";
    let mut i = 0;
    while i < pairs.len() {
        table[pairs[i] as usize] = pairs[i + 1];
        i += 2;
    }
    table
};

/// Four hexadecimal digits, or a surrogate pair of them.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let first = hex4(bytes)?;
    if let Some(character) = char::from_u32(first) {
        return Some((character, 4));
    }
    let second = bytes.get(4..)?.strip_prefix(b"\\u").and_then(hex4)?;
    let character = char::decode_utf16([first as u16, second as u16]).next()?.ok()?;
    Some((character, 10))
}

fn hex4(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.first_chunk::<4>()?;
    digits.iter().try_fold(0, |value, &digit| Some(value << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a kernel makes of a payload whose string begins at `from`.
    fn with(kernel: Unescaper, payload: &[u8], from: usize) -> Option<(usize, Vec<u8>)> {
        // What a longer text left there must not matter.
        let mut out = vec![b'"'; payload.len() + Unescaper::SLACK_BYTES];
        let (end, length) = kernel.unescape(payload, from, &mut out)?;
        Some((end, out[..length].to_vec()))
    }

    fn parts() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => "[a-z ]{0,90}".prop_map(String::into_bytes),
            4 => r#"(\\[nrtbf/"\\]){1,5}"#.prop_map(String::into_bytes),
            2 => r"(\\u00[0-9a-fA-F]{2}){1,3}".prop_map(String::into_bytes),
            1 => Just(br"\ud83d\ude00".to_vec()),
            2 => "[α-ω漢]{1,9}".prop_map(String::into_bytes),
            1 => r#"\\?["x\x00-\x1f]"#.prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
            1 => Just(br"\".to_vec()),
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Whether the string ends or not, at every alignment, in good ones and in broken ones.
        #[test]
        fn all_kernels_do_the_same(before in 0usize..70, string in parts(), behind in parts(), ends in any::<bool>()) {
            let end: &[u8] = if ends { b"\"" } else { b"" };
            let payload = [&vec![b'\\'; before], string.as_slice(), end, &behind].concat();
            let expected = with(Unescaper(Kernel::Portable), &payload, before);
            for kernel in Unescaper::available() {
                prop_assert_eq!(&with(kernel, &payload, before), &expected, "{:?}", kernel);
            }
        }
    }

    /// An escape, good or bad, at every place of a block, and the string's end at every place behind it.
    #[test]
    fn escapes_are_found_at_every_place() {
        for escape in
            [r"\n", r"\\", r#"\""#, r"\\\\\\", r#"\\\""#, r"\u00e9\u4e2d", r"\ud83d\ude00", r"\x", r"\u12", "\n"]
        {
            for before in 0..130 {
                let string = format!(r#"{}{escape}"#, "é".repeat(before / 2) + &"a".repeat(before % 2));
                for behind in [0, 1, 3, 60, 61, 62, 63, 64, 130] {
                    let payload = format!(r#"{string}{}","x":1}}"#, "b".repeat(behind));
                    let end = string.len() + behind;
                    let expected = serde_json::from_str::<String>(&format!("\"{}\"", &payload[..end])).ok();
                    for kernel in Unescaper::available() {
                        let found = with(kernel, payload.as_bytes(), 0);
                        let expected = expected.as_ref().map(|text| (end + 1, text.clone().into_bytes()));
                        assert_eq!(found, expected, "{kernel:?}: {payload}");
                    }
                }
            }
        }
    }

    #[test]
    fn special_bytes_are_found_at_every_place() {
        for byte in 0..=255u8 {
            let is_special = byte == b'"' || byte == b'\\' || byte < 0x20;
            for place in 0..WORD {
                for filler in [b'a', 0x7F, 0x80, 0xFF, b'!', b'#', b'[', b']', 0x20] {
                    let mut word = [filler; WORD];
                    word[place] = byte;
                    assert_eq!(plain_bytes(&word), if is_special { place } else { WORD }, "{word:?}");
                }
            }
        }
    }
}
