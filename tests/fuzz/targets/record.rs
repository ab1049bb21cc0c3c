//! Bytes as a record in JSON: every kernel makes of them what `serde_json` says that they are, document or not. Bytes as a report of
//! losses and as an embedding: an outcome, in bounded memory.

#![no_main]

use std::fmt;

use chrono::DateTime;
use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use winnowd::record::{Base64Floats, Decoder, Document, LossDecoder, TextScratch, TopicPartition, embedding};
use winnowd_fuzz::within;

/// The members of an object, in their order, also those that stand twice.
#[derive(Default)]
struct Members<'a>(Vec<(String, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members::default())
    }
}

impl<'de> Visitor<'de> for Members<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Self, M::Error> {
        while let Some(name) = map.next_key()? {
            self.0.push((name, map.next_value::<&RawValue>()?.get()));
        }
        Ok(self)
    }
}

impl Members<'_> {
    /// A value, null if it is not there; nothing if it is broken or stands twice.
    fn value(&self, name: &str) -> Option<Value> {
        let mut values = self.0.iter().filter(|(other, _)| other == name);
        match (values.next(), values.next()) {
            (None, _) => Some(Value::Null),
            (Some((_, json)), None) => serde_json::from_str(json).ok(),
            _ => None,
        }
    }

    fn others(&self) -> Option<String> {
        const NAMED: [&str; 6] = ["text", "id", "source", "timestamp", "loss", "ref"];
        let others = self.0.iter().filter(|(name, _)| !NAMED.contains(&name.as_str()));
        let others: Vec<_> = others.map(|(name, json)| format!("{}:{json}", Value::from(name.as_str()))).collect();
        (!others.is_empty()).then(|| format!("{{{}}}", others.join(",")))
    }
}

/// The document with its loss that a payload is, if it is one: by values of `serde_json`, one after the other.
fn expected(payload: &[u8]) -> Option<(Document, Option<f64>)> {
    let members: Members<'_> = serde_json::from_str(str::from_utf8(payload).ok()?).ok()?;
    let name = |name| match members.value(name)? {
        Value::Null => Some(None),
        Value::String(name) => Some(Some(name)),
        Value::Number(n) => (n.is_i64() || n.is_u64()).then(|| Some(n.to_string())),
        _ => None,
    };
    let number = |name| match members.value(name)? {
        Value::Null => Some(None),
        Value::Number(n) => Some(n.as_f64()),
        _ => None,
    };
    let Value::String(text) = members.value("text")? else { return None };
    let timestamp_ms = match members.value("timestamp")? {
        Value::Null => RECORD_TIMESTAMP_MS,
        Value::Number(n) => n.as_i64()?,
        Value::String(time) => DateTime::parse_from_rfc3339(&time).ok()?.timestamp_millis(),
        _ => return None,
    };
    let loss = number("loss")?.zip(number("ref")?).map(|(loss, reference)| loss - reference);
    let id = name("id")?.unwrap_or_else(|| "docs/3/7".to_owned());
    let source = name("source")?;
    let document = Document { id, text, source, timestamp_ms: Some(timestamp_ms), metadata: members.others() };
    loss.is_none_or(f64::is_finite).then_some((document, loss))
}

const RECORD_TIMESTAMP_MS: i64 = 5;

fuzz_target!(|payload: &[u8]| {
    let max_held = 64 * payload.len() + (1 << 16);
    let expected = expected(payload);
    let mut decoder = Decoder::for_files();
    (decoder.fields.loss, decoder.fields.reference_loss) = (Some("loss".into()), Some("ref".into()));
    let at = TopicPartition::new("docs", 3);
    for mut scratch in TextScratch::of_every_kernel() {
        let decoded =
            within(max_held, || decoder.decode_ref(Some(payload), &at, 7, Some(RECORD_TIMESTAMP_MS), &mut scratch));
        let decoded = decoded.map(|read| {
            let document = read.to_document();
            assert_eq!(document.borrowed(&at, 7, read.loss, true).members, read.members);
            (document, read.loss)
        });
        assert_eq!(decoded.as_ref().ok(), expected.as_ref(), "{decoded:?}");
    }

    let decoder = LossDecoder { max_bytes: 1 << 20, max_entries: 8 };
    if let Ok(report) = within(max_held, || decoder.decode(Some(payload))) {
        assert!(report.n_entries() <= decoder.max_entries && report.rank < report.world_size);
        assert!(report.losses.iter().all(|sample| sample.loss.is_finite() && sample.loss >= 0.0));
    }

    if let Ok(json) = str::from_utf8(payload) {
        for base64 in [Base64Floats::F16, Base64Floats::F32] {
            let numbers = within(max_held, || embedding(json, base64));
            assert!(numbers.is_none_or(|numbers| !numbers.is_empty() && numbers.iter().all(|x| x.is_finite())));
        }
    }
});
