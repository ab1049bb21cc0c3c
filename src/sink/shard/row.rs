//! One row of a shard on its way into the file: borrowed from its window, or from the bytes that it waited as.

use std::borrow::Cow;

use crate::record::TopicPartition;
use crate::window::SelectedDocument;

/// What a row holds, without what all rows of the shard share.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row<'a> {
    pub text: &'a str,
    pub id: &'a str,
    pub source: Option<&'a str>,
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub n_tokens: u32,
    pub log_importance_weight: f64,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
    pub window: &'a str,
    pub metadata: Option<&'a str>,
    pub loss: Option<f64>,
    pub loss_weight: Option<f64>,
    pub expected_loss: Option<f64>,
    /// The number of the target that chose it.
    pub target: u32,
    /// For every target; nothing of one.
    pub log_importance_weights: Cow<'a, [f64]>,
    /// The values of derived columns, as bytes.
    pub derived: &'a [u8],
}

impl<'a> Row<'a> {
    pub fn of(selected: &'a SelectedDocument, at: &'a TopicPartition, window: &'a str, derived: &'a [u8]) -> Self {
        let SelectedDocument { document, score, .. } = selected;
        Row {
            text: &document.text,
            id: &document.id,
            source: document.source.as_deref(),
            topic: &at.topic,
            partition: at.partition,
            offset: selected.offset,
            timestamp_ms: document.timestamp_ms,
            n_tokens: score.n_tokens,
            log_importance_weight: score.log_importance_weight,
            selection_key: selected.selection_key,
            inclusion_probability: selected.inclusion_probability,
            sample_weight: selected.sample_weight,
            window,
            metadata: document.metadata.as_deref(),
            loss: score.loss,
            loss_weight: selected.loss_weight,
            expected_loss: score.expected_loss,
            target: selected.target as u32,
            log_importance_weights: Cow::Borrowed(&selected.log_importance_weights),
            derived,
        }
    }

    /// Bytes in the file before compression, but for what the row group has in a dictionary: a length and its bytes of a string, eight
    /// of a number.
    pub fn plain_bytes(&self) -> usize {
        let string = |s: &str| 4 + s.len();
        let numbers = [self.loss, self.loss_weight, self.expected_loss].iter().flatten().count();
        // An index or a level of what may repeat or be missing takes a byte or less.
        let few = 8;
        string(self.text)
            + string(self.id)
            + self.metadata.map_or(0, string)
            + self.derived.len()
            + self.timestamp_ms.map_or(0, |_| 8)
            // The offset, four numbers of the selection and the tokens.
            + 8 * (5 + numbers + self.log_importance_weights.len())
            + 4
            + few
    }

    fn numbers(&self) -> [f64; 4] {
        [self.log_importance_weight, self.selection_key, self.inclusion_probability, self.sample_weight]
    }

    /// Appends it as bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        let mut out = Encoder(into);
        for string in [self.text, self.id, self.topic, self.window] {
            out.string(string);
        }
        for string in [self.source, self.metadata] {
            out.optional(string, |out, string| out.string(string));
        }
        for number in self.numbers() {
            out.number(number);
        }
        for number in [self.loss, self.loss_weight, self.expected_loss] {
            out.optional(number, Encoder::number);
        }
        out.optional(self.timestamp_ms, |out, ms| out.0.extend_from_slice(&ms.to_le_bytes()));
        out.0.extend_from_slice(&self.offset.to_le_bytes());
        out.0.extend_from_slice(&self.partition.to_le_bytes());
        out.0.extend_from_slice(&self.n_tokens.to_le_bytes());
        out.0.extend_from_slice(&self.target.to_le_bytes());
        out.length(self.log_importance_weights.len());
        self.log_importance_weights.iter().for_each(|weight| out.number(*weight));
        out.bytes(self.derived);
    }

    /// The inverse; `None` of bytes that are no row.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut from = Decoder(bytes);
        let [text, id, topic, window] = [from.string()?, from.string()?, from.string()?, from.string()?];
        let [source, metadata] = [from.optional(Decoder::string)?, from.optional(Decoder::string)?];
        let [log_importance_weight, selection_key, inclusion_probability, sample_weight] =
            [from.number()?, from.number()?, from.number()?, from.number()?];
        let [loss, loss_weight, expected_loss] =
            [from.optional(Decoder::number)?, from.optional(Decoder::number)?, from.optional(Decoder::number)?];
        let timestamp_ms = from.optional(|from| from.array().map(i64::from_le_bytes))?;
        let offset = i64::from_le_bytes(from.array()?);
        let partition = i32::from_le_bytes(from.array()?);
        let [n_tokens, target] = [u32::from_le_bytes(from.array()?), u32::from_le_bytes(from.array()?)];
        let log_importance_weights = (0..from.length()?).map(|_| from.number()).collect::<Option<Vec<f64>>>()?;
        let derived = from.bytes()?;
        from.0.is_empty().then_some(Row {
            text,
            id,
            source,
            topic,
            partition,
            offset,
            timestamp_ms,
            n_tokens,
            log_importance_weight,
            selection_key,
            inclusion_probability,
            sample_weight,
            window,
            metadata,
            loss,
            loss_weight,
            expected_loss,
            target,
            log_importance_weights: Cow::Owned(log_importance_weights),
            derived,
        })
    }
}

struct Encoder<'b>(&'b mut Vec<u8>);

impl Encoder<'_> {
    fn length(&mut self, length: usize) {
        self.0.extend_from_slice(&(length as u32).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn string(&mut self, string: &str) {
        self.bytes(string.as_bytes());
    }

    fn number(&mut self, number: f64) {
        self.0.extend_from_slice(&number.to_bits().to_le_bytes());
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn length(&mut self) -> Option<usize> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn number(&mut self) -> Option<f64> {
        self.array().map(|bytes| f64::from_bits(u64::from_le_bytes(bytes)))
    }

    /// The inner one is the value.
    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.array()? {
            [0] => Some(None),
            [_] => read(self).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_back_as_they_were(
            strings in prop::array::uniform4(".{0,40}"),
            optional in prop::array::uniform2(prop::option::of(".{0,40}")),
            numbers in prop::array::uniform4(any::<f64>()),
            losses in prop::array::uniform3(prop::option::of(any::<f64>())),
            (timestamp_ms, offset, partition) in any::<(Option<i64>, i64, i32)>(),
            (n_tokens, target) in any::<(u32, u32)>(),
            weights in prop::collection::vec(any::<f64>(), 0..4),
            derived: Vec<u8>,
            cut in 0.0..1.0,
        ) {
            let row = Row {
                text: &strings[0],
                id: &strings[1],
                topic: &strings[2],
                window: &strings[3],
                source: optional[0].as_deref(),
                metadata: optional[1].as_deref(),
                log_importance_weight: numbers[0],
                selection_key: numbers[1],
                inclusion_probability: numbers[2],
                sample_weight: numbers[3],
                loss: losses[0],
                loss_weight: losses[1],
                expected_loss: losses[2],
                timestamp_ms,
                offset,
                partition,
                n_tokens,
                target,
                log_importance_weights: weights.into(),
                derived: &derived,
            };
            let mut bytes = b"before".to_vec();
            row.encode(&mut bytes);
            let bytes = &bytes[6..];
            prop_assert_eq!(Row::decode(bytes), Some(row.clone()));
            let part = &bytes[..(bytes.len() as f64 * cut) as usize];
            prop_assert_eq!(Row::decode(part), None);
        }
    }
}
