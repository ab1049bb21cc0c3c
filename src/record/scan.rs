//! The quick way through a record: the top level of an object whose strings are plain, its text unescaped in one pass.
//!
//! It takes what nearly every record is and leaves everything else (escaped keys, wrong types, fields that stand twice,
//! broken JSON) to `serde_json`, which then also words the error: it either says exactly what that would say, or nothing.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::decode::{FieldNames, Parsed, Scalar};
use super::json::JsonBuffer;
use super::unescape::Unescaper;

/// Where the text of a record is unescaped, and what is no JSON becomes some; reused from record to record by one thread.
#[derive(Debug, Default)]
pub struct TextScratch {
    text: Vec<u8>,
    unescaper: Unescaper,
    pub(super) json: JsonBuffer,
}

impl TextScratch {
    /// Of a longer text the memory is given back.
    const KEPT_BYTES: usize = 4 << 20;

    /// One for every way to unescape that this processor has.
    #[cfg(fuzzing)]
    pub fn of_every_kernel() -> Vec<Self> {
        Unescaper::available().map(|unescaper| TextScratch { unescaper, ..TextScratch::default() }).collect()
    }

    fn at_least(&mut self, bytes: usize) -> &mut [u8] {
        let wasteful = self.text.len() > Self::KEPT_BYTES && bytes <= Self::KEPT_BYTES;
        if self.text.len() < bytes || wasteful {
            self.text = vec![0; bytes.next_multiple_of(16 << 10)];
        }
        &mut self.text
    }
}

/// In: the bytes of a record. Out: its fields, or nothing if `serde_json` must look at it.
pub(super) fn scan<'a>(names: &FieldNames, payload: &'a [u8], scratch: &'a mut TextScratch) -> Option<Parsed<'a>> {
    let is = |name: &Option<String>, key: &str| name.as_deref() == Some(key);
    let mut scanner = Scanner { bytes: payload, at: 0 };
    let mut parsed = Parsed::default();
    let mut unescaped = None;
    let mut seen = [false; 5];
    scanner.expect(b'{')?;
    loop {
        scanner.expect(b'"')?;
        let key = scanner.plain_string()?;
        scanner.expect(b':')?;
        let (place, slot) = match key {
            k if k == names.text => {
                scanner.expect(b'"')?;
                let bytes = scanner.unescape(scratch)?;
                if unescaped.replace(bytes).is_some() {
                    return None;
                }
                if scanner.is_last()? {
                    break;
                }
                continue;
            }
            k if is(&names.id, k) => (0, &mut parsed.id),
            k if is(&names.source, k) => (1, &mut parsed.source),
            k if is(&names.timestamp, k) => (2, &mut parsed.timestamp),
            k if is(&names.loss, k) => (3, &mut parsed.loss),
            k if is(&names.reference_loss, k) => (4, &mut parsed.reference_loss),
            other => {
                parsed.members.push((Cow::Borrowed(other), scanner.raw_value()?));
                if scanner.is_last()? {
                    break;
                }
                continue;
            }
        };
        *slot = scanner.scalar()?;
        if std::mem::replace(&mut seen[place], true) {
            return None;
        }
        if scanner.is_last()? {
            break;
        }
    }
    scanner.skip_space();
    if scanner.at < payload.len() {
        return None;
    }
    // Escapes stand for whole characters, so the text is valid UTF-8 exactly if the bytes between them are.
    let text = simdutf8::basic::from_utf8(&scratch.text[..unescaped?]).ok()?;
    Some(Parsed { text: Scalar::String(Cow::Borrowed(text)), ..parsed })
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (*self.bytes.get(self.at)? == byte).then(|| self.at += 1)
    }

    /// Whether the object ends here; otherwise a further member follows.
    fn is_last(&mut self) -> Option<bool> {
        self.skip_space();
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        match byte {
            b',' => Some(false),
            b'}' => Some(true),
            _ => None,
        }
    }

    /// The rest of a string that has no escapes.
    fn plain_string(&mut self) -> Option<&'a str> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| is_special(b))?;
        self.at += end + 1;
        if rest[end] != b'"' {
            return None;
        }
        simdutf8::basic::from_utf8(&rest[..end]).ok()
    }

    /// Unescapes the rest of a string to the beginning of the scratch and returns the length there. The bytes outside
    /// escapes are taken as they are.
    fn unescape(&mut self, scratch: &mut TextScratch) -> Option<usize> {
        let unescaper = scratch.unescaper;
        let out = scratch.at_least(self.bytes.len() + Unescaper::SLACK_BYTES);
        let (end, length) = unescaper.unescape(self.bytes, self.at, out)?;
        self.at = end;
        Some(length)
    }

    /// A value of a named field other than the text.
    fn scalar(&mut self) -> Option<Scalar<'a>> {
        self.skip_space();
        if *self.bytes.get(self.at)? == b'"' {
            self.at += 1;
            return self.plain_string().map(|s| Scalar::String(Cow::Borrowed(s)));
        }
        match self.raw_value()? {
            "null" => Some(Scalar::Null),
            // To serde_json this is a floating-point number.
            "-0" => None,
            number if number.contains(['.', 'e', 'E']) => {
                // Of the words true and false, and of what holds numbers, nothing is a number.
                number.parse().ok().filter(|number: &f64| number.is_finite()).map(Scalar::Float)
            }
            number => number.parse::<i64>().ok().map(|n| Scalar::Integer(n.into())),
        }
    }

    /// The bytes of any value.
    fn raw_value(&mut self) -> Option<&'a str> {
        self.skip_space();
        let mut values = serde_json::Deserializer::from_slice(&self.bytes[self.at..]).into_iter::<&RawValue>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(value.get())
    }
}

/// Ends a string, begins an escape, or must not stand in one.
fn is_special(byte: u8) -> bool {
    byte == b'"' || byte == b'\\' || byte < 0x20
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Decoder;

    /// The fields of a record if the quick way takes it; what it says must then be what `serde_json` says.
    fn taken(payload: &[u8]) -> Option<bool> {
        let mut decoder = Decoder::for_files();
        (decoder.fields.loss, decoder.fields.reference_loss) = (Some("loss".into()), Some("ref".into()));
        // What a longer text left there must not matter.
        let mut scratch = TextScratch { text: vec![b'"'; 64], ..TextScratch::default() };
        let parsed = scan(&decoder.fields, payload, &mut scratch)?;
        Some(decoder.parse(payload).ok().as_ref() == Some(&parsed))
    }

    fn is_taken(payload: &[u8]) -> bool {
        taken(payload) == Some(true)
    }

    /// As producers write strings: characters as they are or as `\u` escapes.
    fn json_string(text: &str, ascii_only: bool) -> String {
        let mut json = serde_json::Value::from(text).to_string();
        if ascii_only {
            let escaped = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect();
            json = json.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect();
        }
        json
    }

    fn value() -> impl Strategy<Value = String> {
        let other =
            "null|true|-?[0-9]{1,22}|-?[0-9]\\.[0-9]{1,3}|[0-9]e[0-9]|\\[1, \"a\"\\]|\\{\"text\":\"x\"\\}|[a-z]{1,5}";
        prop_oneof![4 => (any::<String>(), any::<bool>()).prop_map(|(s, a)| json_string(&s, a)), 3 => other.prop_map(|s| s)]
    }

    fn record() -> impl Strategy<Value = Vec<u8>> {
        let name = prop_oneof!["text|id|source|timestamp|loss|ref", "[a-zé\"\\\\]{0,4}"];
        let member = (name, value(), "[ \n\t\r]{0,2}").prop_map(|(name, value, space)| {
            format!("{space}{}{space}:{space}{value}{space}", json_string(&name, false))
        });
        let text = (any::<String>(), any::<bool>()).prop_map(|(s, a)| format!("\"text\":{}", json_string(&s, a)));
        (text, proptest::collection::vec(member, 0..4), any::<prop::sample::Index>()).prop_map(
            |(text, mut members, i)| {
                members.insert(i.index(members.len() + 1), text);
                format!("{{{}}}", members.join(",")).into_bytes()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn it_says_what_serde_json_says(record in record()) {
            prop_assert_ne!(taken(&record), Some(false));
        }

        #[test]
        fn or_nothing_for_damaged_records(
            mut record in record(),
            damages in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<prop::sample::Index>()), 1..4),
        ) {
            const BYTES: &[u8] = b"\"\"\\\\u{}[],,::0d8c-+.eE n\n\x00\x1F\x7F\x80\xC3\xED\xFF";
            for (at, how, byte) in damages {
                let (at, byte) = (at.index(record.len()), BYTES[byte.index(BYTES.len())]);
                match how {
                    0 => record[at] = byte,
                    1 => record.insert(at, byte),
                    _ if record.len() > 1 => drop(record.remove(at)),
                    _ => {}
                }
                prop_assert_ne!(taken(&record), Some(false), "{}", String::from_utf8_lossy(&record));
            }
        }

        #[test]
        fn ordinary_records_are_taken(text: String, ascii_only: bool, id in "[a-z0-9-]{0,20}", number: i32, loss in -1e6f64..1e6) {
            let text = json_string(&text, ascii_only);
            for record in [
                format!(r#"{{"id":"{id}","text":{text},"source":"web"}}"#),
                format!(r#"{{ "text": {text}, "timestamp": {number}, "meta": {{"k": [1.50, null]}} }}"#),
            format!(r#"{{"text":{text},"loss":{loss:?},"ref":{number}}}"#),
            ] {
                prop_assert!(is_taken(record.as_bytes()), "{}", record);
            }
        }
    }

    #[test]
    fn traps() {
        for record in [
            r#"{"text":"\ud83d\ude00"}"#,
            r#"{"text":"a","id":null,"source":-5}"#,
            r#"{"text":"a","id":-0}"#,
            r#"{"text":"a","id":01}"#,
            r#"{"text":"a","id":9223372036854775808}"#,
            r#"{"text":"a","id":1.0}"#,
            r#"{"text":"\ud83d"}"#,
            r#"{"text":"\ud83dx"}"#,
            r#"{"text":"\ude00\ud83d"}"#,
            r#"{"text":"\u12g4"}"#,
            r#"{"text":"\u+123"}"#,
            r#"{"text":"\x"}"#,
            "{\"text\":\"\n\"}",
            r#"{"t\u0065xt":"a"}"#,
            r#"{"text":"a","text":"b"}"#,
            r#"{"text":"a","id":"b","id":"c"}"#,
            r#"{"text":"a",}"#,
            r#"{"text":"a"}}"#,
            r#"{"text":"a""id":"b"}"#,
            r#"{"text":"a","x":1 2}"#,
            r#"{"id":"b"}"#,
            "{}",
        ] {
            assert_ne!(taken(record.as_bytes()), Some(false), "{record}");
        }
        assert_ne!(taken(b"{\"text\":\"a\xC3\\u00e9\"}"), Some(false));
        assert_ne!(taken(b"{\"text\":\"a\",\"\xFF\":1}"), Some(false));
        assert!(is_taken(r#"{"text":"\ud83d\ude00"}"#.as_bytes()));
    }

    #[test]
    fn the_scratch_gives_back_what_a_long_text_took() {
        let mut scratch = TextScratch::default();
        scratch.at_least(TextScratch::KEPT_BYTES + 1);
        assert!(scratch.at_least(100).len() < TextScratch::KEPT_BYTES);
    }
}
