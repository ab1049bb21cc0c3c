//! A row as bytes, in memory and on disk, and back.

use std::io;

use crate::record::Document;
use crate::score::Score;
use crate::window::SpooledRow;

/// The length of what is not there.
const ABSENT: u64 = u64::MAX;

/// The length of the row, then its parts.
pub(super) fn encode(row: &SpooledRow, out: &mut Vec<u8>) {
    let SpooledRow { document, score, other_weights, point } = row;
    let Document { id, text, source, timestamp_ms, metadata } = document;
    let begin = out.len();
    out.extend_from_slice(&[0; 8]);
    let numbers = [
        u64::from(score.n_tokens),
        score.counted_tokens.map_or(ABSENT, u64::from),
        score.log_importance_weight.to_bits(),
        u64::from(score.loss.is_some()),
        score.loss.unwrap_or_default().to_bits(),
        score.expected_loss_weight.to_bits(),
        u64::from(score.expected_loss.is_some()),
        score.expected_loss.unwrap_or_default().to_bits(),
        u64::from(timestamp_ms.is_some()),
        timestamp_ms.unwrap_or_default().cast_unsigned(),
        other_weights.len() as u64,
        point.len() as u64,
    ];
    let weights = other_weights.iter().map(|weight| weight.to_bits());
    numbers.into_iter().chain(weights).for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    point.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
    for part in [Some(id), Some(text), source.as_ref(), metadata.as_ref()] {
        out.extend_from_slice(&part.map_or(ABSENT, |part| part.len() as u64).to_le_bytes());
        out.extend_from_slice(part.map_or(&[], |part| part.as_bytes()));
    }
    let length = (out.len() - begin - 8) as u64;
    out[begin..begin + 8].copy_from_slice(&length.to_le_bytes());
}

/// Of a row.
pub(super) struct Numbers {
    pub score: Score,
    timestamp_ms: Option<i64>,
    other_weights: Vec<f64>,
    pub point: Vec<f32>,
}

/// What is left to be read.
pub(super) struct Encoded<'a>(pub &'a [u8]);

impl<'a> Encoded<'a> {
    pub fn take(&mut self, length: u64) -> io::Result<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
        let Some(length) = length else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let (taken, left) = self.0.split_at(length);
        self.0 = left;
        Ok(taken)
    }

    pub fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn real(&mut self) -> io::Result<f64> {
        self.number().map(f64::from_bits)
    }

    fn text(&mut self) -> io::Result<Option<String>> {
        let length = self.number()?;
        if length == ABSENT {
            return Ok(None);
        }
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    fn floats(&mut self, n: u64) -> io::Result<Vec<f32>> {
        let bytes = self.take(n.saturating_mul(4))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
    }

    /// What stands before the document.
    pub fn numbers(&mut self) -> io::Result<Numbers> {
        let n_tokens = self.number()? as u32;
        let counted_tokens = Some(self.number()?).filter(|n| *n != ABSENT).map(|n| n as u32);
        let log_importance_weight = self.real()?;
        let (has_loss, loss) = (self.number()? == 1, self.real()?);
        let expected_loss_weight = self.real()?;
        let (has_expected_loss, expected_loss) = (self.number()? == 1, self.real()?);
        let (has_timestamp, timestamp_ms) = (self.number()? == 1, self.number()?.cast_signed());
        let (n_others, dims) = (self.number()?, self.number()?);
        let other_weights = (0..n_others).map(|_| self.real()).collect::<io::Result<_>>()?;
        let point = self.floats(dims)?;
        let loss = has_loss.then_some(loss);
        let expected_loss = has_expected_loss.then_some(expected_loss);
        let score =
            Score { n_tokens, counted_tokens, log_importance_weight, loss, expected_loss_weight, expected_loss };
        Ok(Numbers { score, timestamp_ms: has_timestamp.then_some(timestamp_ms), other_weights, point })
    }

    pub fn row(&mut self) -> io::Result<SpooledRow> {
        let Numbers { score, timestamp_ms, other_weights, point } = self.numbers()?;
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let document = Document {
            id: self.text()?.ok_or_else(missing)?,
            text: self.text()?.ok_or_else(missing)?,
            source: self.text()?,
            timestamp_ms,
            metadata: self.text()?,
        };
        Ok(SpooledRow { document, score, other_weights, point })
    }
}
