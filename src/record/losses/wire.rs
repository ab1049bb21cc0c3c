//! The JSON of a report, read in one pass: every value that is there, of whatever type, so that a wrong one is an entry's
//! mistake and not the parser's.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{BadReport, BadReportReason};
use crate::record::decode::{Key, Scalar};

/// The fields of a report. Null is absent.
#[derive(Debug, Default)]
pub struct Wire<'a> {
    pub run_id: Scalar<'a>,
    pub step: Scalar<'a>,
    pub rank: Scalar<'a>,
    pub world_size: Scalar<'a>,
    pub selection_epoch: Scalar<'a>,
    pub manifest_sequence: Scalar<'a>,
    pub losses: List<Row<'a>>,
    pub doc_ids: List<Scalar<'a>>,
    pub loss_sum: List<Scalar<'a>>,
    pub tokens: List<Scalar<'a>>,
}

/// An array, of which so many items are kept as are allowed.
#[derive(Debug, Default, PartialEq)]
pub enum List<T> {
    #[default]
    Absent,
    Items {
        items: Vec<T>,
        n_items: usize,
    },
    /// Anything else.
    Other,
}

/// An entry of `losses`.
#[derive(Debug, PartialEq)]
pub enum Row<'a> {
    Object {
        id: Scalar<'a>,
        loss: Scalar<'a>,
        n_tokens: Scalar<'a>,
    },
    /// No object, or one with a field twice.
    Malformed,
}

impl<'a> Wire<'a> {
    /// The outer error is the parser's, the inner one ours.
    pub fn parse(json: &'a str, max_items: usize) -> serde_json::Result<Result<Self, BadReport>> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let wire = deserializer.deserialize_map(WireVisitor { max_items })?;
        deserializer.end()?;
        Ok(wire)
    }
}

struct WireVisitor {
    max_items: usize,
}

impl<'de> Visitor<'de> for WireVisitor {
    type Value = Result<Wire<'de>, BadReport>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        const NAMES: [&str; 10] = [
            "run_id",
            "step",
            "rank",
            "world_size",
            "selection_epoch",
            "manifest_sequence",
            "losses",
            "doc_ids",
            "loss_sum",
            "tokens",
        ];
        let max_items = self.max_items;
        let mut wire = Wire::default();
        let mut seen = [false; NAMES.len()];
        let mut twice = None;
        while let Some(Key(key)) = map.next_key()? {
            let Some(place) = NAMES.iter().position(|name| *name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            match place {
                0 => wire.run_id = map.next_value()?,
                1 => wire.step = map.next_value()?,
                2 => wire.rank = map.next_value()?,
                3 => wire.world_size = map.next_value()?,
                4 => wire.selection_epoch = map.next_value()?,
                5 => wire.manifest_sequence = map.next_value()?,
                6 => wire.losses = map.next_value_seed(ListSeed::new(max_items))?,
                7 => wire.doc_ids = map.next_value_seed(ListSeed::new(max_items))?,
                8 => wire.loss_sum = map.next_value_seed(ListSeed::new(max_items))?,
                _ => wire.tokens = map.next_value_seed(ListSeed::new(max_items))?,
            }
            if std::mem::replace(&mut seen[place], true) {
                twice = Some(NAMES[place]);
            }
        }
        Ok(match twice {
            None => Ok(wire),
            Some(name) => {
                let detail = format!("field `{name}` stands twice in the report");
                Err(BadReport::new(BadReportReason::DuplicateField, detail))
            }
        })
    }
}

struct ListSeed<T> {
    max_items: usize,
    of: PhantomData<T>,
}

impl<T> ListSeed<T> {
    fn new(max_items: usize) -> Self {
        ListSeed { max_items, of: PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for ListSeed<T> {
    type Value = List<T>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<List<T>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListSeed<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
        let mut items = Vec::new();
        while items.len() < self.max_items {
            match seq.next_element()? {
                Some(item) => items.push(item),
                None => return Ok(List::Items { n_items: items.len(), items }),
            }
        }
        let mut n_items = items.len();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            n_items += 1;
        }
        Ok(List::Items { items, n_items })
    }
    fn visit_unit<E>(self) -> Result<List<T>, E> {
        Ok(List::Absent)
    }
    fn visit_bool<E>(self, _: bool) -> Result<List<T>, E> {
        Ok(List::Other)
    }
    fn visit_i64<E>(self, _: i64) -> Result<List<T>, E> {
        Ok(List::Other)
    }
    fn visit_u64<E>(self, _: u64) -> Result<List<T>, E> {
        Ok(List::Other)
    }
    fn visit_f64<E>(self, _: f64) -> Result<List<T>, E> {
        Ok(List::Other)
    }
    fn visit_str<E>(self, _: &str) -> Result<List<T>, E> {
        Ok(List::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<List<T>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(List::Other)
    }
}

impl<'de> Deserialize<'de> for Row<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RowVisitor)
    }
}

struct RowVisitor;

impl<'de> Visitor<'de> for RowVisitor {
    type Value = Row<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row<'de>, A::Error> {
        let [mut id, mut loss, mut n_tokens] = [Scalar::Null, Scalar::Null, Scalar::Null];
        let mut seen = [false; 3];
        let mut is_malformed = false;
        while let Some(Key(key)) = map.next_key()? {
            let (place, slot) = match &*key {
                "id" => (0, &mut id),
                "loss" => (1, &mut loss),
                "n_tokens" => (2, &mut n_tokens),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *slot = map.next_value()?;
            is_malformed |= std::mem::replace(&mut seen[place], true);
        }
        Ok(if is_malformed { Row::Malformed } else { Row::Object { id, loss, n_tokens } })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Row<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Row::Malformed)
    }
    fn visit_unit<E>(self) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
    fn visit_str<E>(self, _: &str) -> Result<Row<'de>, E> {
        Ok(Row::Malformed)
    }
}

/// What stands for a number that is not finite: the largest double, which no loss is.
const NOT_FINITE: &str = "1.7976931348623157e308";

/// The same JSON with numbers in place of what JSON lacks or doubles do not hold: `NaN`, `Infinity`, `-Infinity`, 1e999.
/// What is within strings stays.
pub fn spell_out(json: &str) -> String {
    let bytes = json.as_bytes();
    let mut out = String::with_capacity(json.len());
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match bytes[at] {
            b'"' => {
                at += string_length(rest);
                continue;
            }
            b'N' if rest.starts_with(b"NaN") => 3,
            b'I' if rest.starts_with(b"Infinity") => 8,
            b'-' if rest.starts_with(b"-Infinity") => 9,
            b'-' | b'0'..=b'9' => {
                let length = rest.iter().take_while(|b| b"+-.eE0123456789".contains(b)).count();
                if !json[at..at + length].parse().is_ok_and(f64::is_infinite) {
                    at += length;
                    continue;
                }
                length
            }
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(&json[copied..at]);
        out.push_str(NOT_FINITE);
        at += length;
        copied = at;
    }
    out.push_str(&json[copied..]);
    out
}

/// Of a string that begins with its quote, the bytes up to and with the other one.
fn string_length(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}
