//! Word-punct tokens: maximal runs of word characters, or of characters that are neither word nor space.
//!
//! This is NLTK's `WordPunctTokenizer` (`\w+|[^\w\s]+`) with Python 3.11's character classes, which neither Rust's
//! standard library nor the `regex` crate shares (combining marks, for one, are not word characters here).

use std::sync::LazyLock;

use super::lowercase::has_lower_case;
use super::tables::CHAR_CLASSES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CharClass {
    Other,
    Word,
    Space,
}

/// Properties of the characters of the basic multilingual plane, one byte each: what lies above is rare enough for a
/// search.
static BASIC_PLANE: LazyLock<Box<[u8; 0x1_0000]>> = LazyLock::new(|| {
    let mut properties = Box::new([CharClass::Other as u8; 0x1_0000]);
    for &(first, last, class) in CHAR_CLASSES.iter().filter(|&&(first, ..)| first < 0x1_0000) {
        properties[first as usize..=last.min(0xFFFF) as usize].fill(class as u8);
    }
    for code in 0..0x1_0000 {
        if char::from_u32(code).is_some_and(has_lower_case) {
            properties[code as usize] |= HAS_LOWER_CASE;
        }
    }
    properties
});

const HAS_LOWER_CASE: u8 = 4;

/// What the kernels want to know of a character.
#[derive(Debug, Clone, Copy)]
pub(super) struct CharProperties(u8);

impl CharProperties {
    pub fn class(self) -> CharClass {
        match self.0 & 3 {
            c if c == CharClass::Word as u8 => CharClass::Word,
            c if c == CharClass::Space as u8 => CharClass::Space,
            _ => CharClass::Other,
        }
    }

    /// Lower-casing changes it.
    pub fn has_lower_case(self) -> bool {
        self.0 & HAS_LOWER_CASE != 0
    }
}

/// The table of [`CharProperties`], looked up once a block instead of once a character.
#[derive(Clone, Copy)]
pub(super) struct Characters(&'static [u8; 0x1_0000]);

impl Characters {
    pub fn table() -> Self {
        Characters(&BASIC_PLANE)
    }

    #[inline(always)]
    pub fn properties(self, c: char) -> CharProperties {
        match self.0.get(c as usize) {
            Some(&properties) => CharProperties(properties),
            None => CharProperties(class_by_search(c) as u8 | if has_lower_case(c) { HAS_LOWER_CASE } else { 0 }),
        }
    }
}

pub fn char_class(c: char) -> CharClass {
    Characters::table().properties(c).class()
}

#[cold]
fn class_by_search(c: char) -> CharClass {
    let code = c as u32;
    let i = CHAR_CLASSES.partition_point(|&(first, ..)| first <= code);
    match i.checked_sub(1).map(|i| CHAR_CLASSES[i]) {
        Some((_, last, class)) if code <= last => class,
        _ => CharClass::Other,
    }
}

/// Calls `token` with the byte range of every token of `text`, in order. The text is taken as it is: lower-case first.
pub fn for_each_token(text: &str, mut token: impl FnMut(std::ops::Range<usize>)) {
    let characters = Characters::table();
    let mut current = CharClass::Space;
    let mut start = 0;
    for (at, c) in text.char_indices() {
        let class = characters.properties(c).class();
        if class != current {
            if current != CharClass::Space {
                token(start..at);
            }
            start = at;
            current = class;
        }
    }
    if current != CharClass::Space {
        token(start..text.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        for_each_token(text, |range| out.push(&text[range]));
        out
    }

    #[test]
    fn classes_equal_the_published_table() {
        let table = include_str!("../../tests/reference/char_classes.tsv");
        let mut expected = vec![CharClass::Other; 0x11_0000];
        for line in table.lines().skip(1) {
            let mut fields = line.split('\t');
            let mut code = || usize::from_str_radix(fields.next().unwrap(), 16).unwrap();
            let (first, last) = (code(), code());
            let class = if fields.next() == Some("word") { CharClass::Word } else { CharClass::Space };
            expected[first..=last].fill(class);
        }
        for c in (0..=0x10FFFF).filter_map(char::from_u32) {
            assert_eq!(char_class(c), expected[c as usize], "U+{:04X}", c as u32);
        }
    }

    proptest! {
        #[test]
        fn tokens_cover_everything_but_space_and_never_touch(text in any::<String>()) {
            let joined: String = tokens(&text).concat();
            let unspaced: String = text.chars().filter(|&c| char_class(c) != CharClass::Space).collect();
            prop_assert_eq!(joined, unspaced);
            let mut previous: Option<std::ops::Range<usize>> = None;
            for_each_token(&text, |range| {
                let class = |s: &str| s.chars().map(char_class).fold(None, |all: Option<CharClass>, c| {
                    assert!(all.is_none_or(|a| a == c), "a token mixes classes");
                    Some(c)
                });
                let own = class(&text[range.clone()]);
                if let Some(p) = previous.take() && p.end == range.start {
                    assert_ne!(class(&text[p]), own, "neighbours of one class are one token");
                }
                previous = Some(range);
            });
        }
    }
}
