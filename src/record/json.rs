//! JSON that is written from other formats: the fields of a record that travel along.

use std::borrow::Cow;
use std::io;

use serde::Serialize;

use super::{Reject, RejectReason};

/// Values one behind the other, up to a limit; reused from record to record.
#[derive(Debug, Default)]
pub(super) struct JsonBuffer {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl JsonBuffer {
    /// Of a larger one the memory is given back.
    const KEPT_BYTES: usize = 4 << 20;

    /// Empties it.
    pub fn begin(&mut self, max_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(Self::KEPT_BYTES);
        self.max_bytes = max_bytes;
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets what was written since it had this length.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Appends a value.
    pub fn push(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Reject> {
        serde_json::to_writer(&mut *self, value).map_err(|e| self.reject(&e))
    }

    /// Appends a number; as a string where JSON has none like it.
    pub fn push_number(&mut self, number: impl Into<f64> + Serialize + Copy) -> Result<(), Reject> {
        match number.into() {
            finite if finite.is_finite() => self.push(&number),
            nan if nan.is_nan() => self.push("NaN"),
            infinite => self.push(if infinite > 0.0 { "Infinity" } else { "-Infinity" }),
        }
    }

    /// Appends what is JSON already.
    pub fn push_raw(&mut self, json: &str) -> Result<(), Reject> {
        io::Write::write_all(self, json.as_bytes()).map_err(|e| self.reject(&e))
    }

    fn reject<E: std::error::Error>(&self, error: &E) -> Reject {
        let detail = format!("its fields as JSON have more than {} bytes: {error}", self.max_bytes);
        Reject::new(RejectReason::TooLarge, detail)
    }

    pub fn as_str(&self) -> &str {
        simdutf8::basic::from_utf8(&self.bytes).expect("only strings were written")
    }

    /// Cuts it into values, each with its name and where it ends.
    pub fn split<'a>(&'a self, ends: Vec<(Cow<'a, str>, usize)>) -> Vec<(Cow<'a, str>, &'a str)> {
        let json = self.as_str();
        let mut start = 0;
        let value = |(name, end)| (name, &json[std::mem::replace(&mut start, end)..end]);
        ends.into_iter().map(value).collect()
    }
}

impl io::Write for JsonBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max_bytes - self.bytes.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
