//! Documents: owned, or still borrowing from their record.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::TopicPartition;
use super::decode::Key;

/// One training example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub id: String,
    pub text: String,
    pub source: Option<String>,
    /// Milliseconds since 1970 UTC: the document's own, else the record's.
    pub timestamp_ms: Option<i64>,
    /// The record's other fields, as one JSON object with their bytes unchanged; `None` when there are none.
    pub metadata: Option<String>,
}

impl Document {
    /// Bytes that it holds on to.
    pub fn size_bytes(&self) -> usize {
        let optional = |s: &Option<String>| s.as_ref().map_or(0, String::len);
        size_of::<Document>() + self.id.len() + self.text.len() + optional(&self.source) + optional(&self.metadata)
    }
}

impl Document {
    /// The same, borrowed, with what is known of it beside; without its other fields unless they are wanted.
    pub fn borrowed<'a>(
        &'a self,
        at: &'a TopicPartition,
        offset: i64,
        loss: Option<f64>,
        with_members: bool,
    ) -> DocumentRef<'a> {
        let metadata = self.metadata.as_deref().filter(|_| with_members);
        // It was made by [`DocumentRef::metadata`].
        let members =
            metadata.map(|json| serde_json::from_str::<Members<'_>>(json).map_or(Vec::new(), |members| members.0));
        DocumentRef {
            own_id: Some(Cow::Borrowed(&self.id)),
            at,
            offset,
            text: Cow::Borrowed(&self.text),
            source: self.source.as_deref().map(Cow::Borrowed),
            timestamp_ms: self.timestamp_ms,
            loss,
            given_losses: [None; 2],
            members: members.unwrap_or_default(),
        }
    }
}

/// The members of a JSON object, in their order, whatever stands twice: name, and the bytes of the value.
#[derive(Debug)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a str)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    members.push((Cow::Owned(name), map.next_value::<&RawValue>()?.get()));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A document that borrows from its record: enough to score it, and to make a [`Document`] of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentRef<'a> {
    /// Its own id; without one its position stands in, see [`DocumentRef::id`].
    pub own_id: Option<Cow<'a, str>>,
    pub at: &'a TopicPartition,
    pub offset: i64,
    pub text: Cow<'a, str>,
    pub source: Option<Cow<'a, str>>,
    /// Milliseconds since 1970 UTC: the document's own, else the record's.
    pub timestamp_ms: Option<i64>,
    /// Of a proxy model, in nats; above that of a reference, where one is named. Finite.
    pub loss: Option<f64>,
    /// The two numbers that it comes of, as they stand in the record: the proxy model's, and the reference's.
    pub given_losses: [Option<f64>; 2],
    /// The record's other fields: name, and the bytes of the value.
    pub members: Vec<(Cow<'a, str>, &'a str)>,
}

impl DocumentRef<'_> {
    pub fn id(&self) -> Cow<'_, str> {
        match &self.own_id {
            Some(id) => Cow::Borrowed(id),
            None => Cow::Owned(self.at.position(self.offset)),
        }
    }

    /// What one of the other fields says in a word: a string, or a number or boolean as JSON writes it. Nothing where it is missing, null, a
    /// list or an object. A field that stands twice counts as it stands last.
    pub fn word(&self, field: &str) -> Option<Cow<'_, str>> {
        let (_, json) = self.members.iter().rev().find(|(name, _)| name == field)?;
        match json.as_bytes().first()? {
            b'"' => serde_json::from_str(json).ok().map(|Key(word)| word),
            b'n' | b'[' | b'{' => None,
            _ => Some(Cow::Borrowed(json)),
        }
    }

    /// The other fields as one JSON object, their bytes unchanged: numbers keep their digits.
    pub fn metadata(&self) -> Option<String> {
        let mut object = String::new();
        for (name, raw_value) in &self.members {
            object.push(if object.is_empty() { '{' } else { ',' });
            object.push_str(&serde_json::Value::from(&**name).to_string());
            object.push(':');
            object.push_str(raw_value);
        }
        (!object.is_empty()).then(|| object + "}")
    }

    pub fn to_document(&self) -> Document {
        Document {
            id: self.id().into_owned(),
            text: self.text.clone().into_owned(),
            source: self.source.as_deref().map(str::to_owned),
            timestamp_ms: self.timestamp_ms,
            metadata: self.metadata(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Decoder, TextScratch};

    #[test]
    fn a_borrowed_document_is_the_one_that_was_read() {
        let at = TopicPartition::new("docs", 1);
        let record = br#"{"id":"x","text":"\u00fc","b":1.50,"a":{"\"":[null]},"b":"twice","source":"web"}"#;
        let mut scratch = TextScratch::default();
        let read = Decoder::for_files().decode_ref(Some(record), &at, 7, Some(5), &mut scratch).unwrap();
        let document = read.to_document();
        assert_eq!(document.borrowed(&at, 7, None, true), read);
        assert!(document.borrowed(&at, 7, None, false).members.is_empty());
    }

    #[test]
    fn a_field_says_one_word_or_nothing() {
        let at = TopicPartition::new("docs", 1);
        let record = r#"{"text":"x","s": "d\u0065 \"","é":"é","e":"","i":-5,"f":1.50,"b":true,"z":null,"l":["a"],"o":{"a":1},
            "twice":"a","twice":"b","bad":"\ud800","source":"web"}"#;
        let mut scratch = TextScratch::default();
        let read = Decoder::for_files().decode_ref(Some(record.as_bytes()), &at, 7, None, &mut scratch).unwrap();
        for (field, word) in
            [("s", "de \""), ("é", "é"), ("e", ""), ("i", "-5"), ("f", "1.50"), ("b", "true"), ("twice", "b")]
        {
            assert_eq!(read.word(field).as_deref(), Some(word), "{field}");
        }
        // What the decoder takes is no other field.
        for field in ["z", "l", "o", "bad", "none", "source", "text"] {
            assert_eq!(read.word(field), None, "{field}");
        }
    }
}
