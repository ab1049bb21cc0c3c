//! Lower-casing exactly as Python 3.11's `str.lower` (Unicode 14), whatever Unicode version Rust's own library follows.

use super::tables::{LOWERCASE_RUNS, SIGMA_CONTEXTS};

/// How a character acts beside a capital sigma (Unicode's `Cased` and `Case_Ignorable` properties; a character that has
/// both counts as ignorable, as in Python).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaContext {
    Cased,
    Ignorable,
}

/// Appends the lower-cased `text` to `out`. The byte length can change.
pub fn lowercase_into(text: &str, out: &mut String) {
    out.reserve(text.len());
    let mut rest = text;
    // Runs of ASCII are the common case even in most non-English text, and need no table.
    while !rest.is_empty() {
        let ascii = rest.bytes().position(|b| !b.is_ascii()).unwrap_or(rest.len());
        let start = out.len();
        out.push_str(&rest[..ascii]);
        out[start..].make_ascii_lowercase();
        rest = &rest[ascii..];
        let Some(c) = rest.chars().next() else { break };
        match c {
            'Σ' => out.push(lower_sigma(text, text.len() - rest.len())),
            'İ' => out.push_str("i\u{307}"),
            _ => out.push(lower_char(c)),
        }
        rest = &rest[c.len_utf8()..];
    }
}

/// Whether lower-casing changes the character.
pub(super) fn has_lower_case(c: char) -> bool {
    c == 'İ' || lower_char(c) != c
}

/// The lower case of a character for itself; that of Σ depends on its neighbours, that of İ is two characters.
pub(super) fn lower_char(c: char) -> char {
    let code = c as u32;
    let run = LOWERCASE_RUNS.partition_point(|&(first, ..)| first <= code);
    if let Some(&(first, last, step, delta)) = run.checked_sub(1).and_then(|i| LOWERCASE_RUNS.get(i))
        && code <= last
        && (code - first).is_multiple_of(step)
    {
        return char::from_u32(code.wrapping_add_signed(delta)).unwrap_or(c);
    }
    c
}

/// A capital sigma at byte `at` is final when a cased letter stands before it and none after it, looking through
/// ignorable characters on both sides.
fn lower_sigma(text: &str, at: usize) -> char {
    let is_cased = |mut chars: &mut dyn Iterator<Item = char>| {
        (&mut chars).map(sigma_context).find(|c| *c != Some(SigmaContext::Ignorable)) == Some(Some(SigmaContext::Cased))
    };
    let before = is_cased(&mut text[..at].chars().rev());
    let after = is_cased(&mut text[at + 'Σ'.len_utf8()..].chars());
    if before && !after { 'ς' } else { 'σ' }
}

fn sigma_context(c: char) -> Option<SigmaContext> {
    let code = c as u32;
    let i = SIGMA_CONTEXTS.partition_point(|&(first, ..)| first <= code).checked_sub(1)?;
    let (_, last, context) = SIGMA_CONTEXTS[i];
    (code <= last).then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lower(text: &str) -> String {
        let mut out = String::new();
        lowercase_into(text, &mut out);
        out
    }

    #[test]
    fn special_cases_follow_python() {
        assert_eq!(lower("İSTANBUL"), "i\u{307}stanbul");
        assert_eq!(lower("ΟΔΥΣΣΕΥΣ"), "οδυσσευς");
        assert_eq!(lower("ΑΣ."), "ας.");
        assert_eq!(lower("ΑΣ.Α"), "ασ.α");
        assert_eq!(lower("Σ"), "σ");
        assert_eq!(lower("ẞ DŽ Ω"), "ß dž ω");
    }

    #[test]
    fn code_points_newer_than_unicode_14_have_no_case() {
        // U+A7CB (Unicode 16) lower-cases to U+0264 in newer libraries.
        assert_eq!(lower("\u{A7CB}"), "\u{A7CB}");
    }

    #[test]
    fn differs_from_the_standard_library_only_where_unicode_is_newer() {
        let differing =
            (0..=0x10FFFF).filter_map(char::from_u32).filter(|c| lower(&c.to_string()) != c.to_string().to_lowercase());
        for c in differing {
            assert_eq!(lower(&c.to_string()), c.to_string(), "U+{:04X} has a case of its own in Unicode 14", c as u32);
        }
    }

    proptest! {
        #[test]
        fn equals_the_standard_library_on_long_settled_scripts(text in "[a-zA-Z0-9 .'’ΑΒΓΣασςÄÖÜäöüßА-яİı]{0,40}") {
            prop_assert_eq!(lower(&text), text.to_lowercase());
        }

        #[test]
        fn spans_are_lowered_alike_when_no_context_is_involved(a in "[^Σ]*", b in "[^Σ]*") {
            prop_assert_eq!(lower(&format!("{a}{b}")), lower(&a) + &lower(&b));
        }
    }
}
