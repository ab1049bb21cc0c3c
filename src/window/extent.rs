//! How far a window has come towards its limits. What closes it stands in the index of its records, so that it is known which
//! window each record will belong to before any is decoded.

use super::{CloseReason, WindowPolicy};

/// What the records of a window come to, as far as that can close it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    first_timestamp_ms: Option<i64>,
    pub(super) n_records: u64,
    pub(super) payload_bytes: u64,
}

impl Extent {
    pub fn add(&mut self, timestamp_ms: Option<i64>, payload_bytes: u64) {
        self.first_timestamp_ms = self.first_timestamp_ms.or(timestamp_ms);
        self.n_records += 1;
        self.payload_bytes += payload_bytes;
    }

    pub fn n_records(&self) -> u64 {
        self.n_records
    }

    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Whether a record with this timestamp is too late, so that the window must be closed first.
    pub fn closes_before(&self, timestamp_ms: Option<i64>, policy: &WindowPolicy) -> bool {
        match (self.first_timestamp_ms, timestamp_ms) {
            (Some(first), Some(now)) => now.saturating_sub(first) > policy.max_age_ms,
            _ => false,
        }
    }

    /// Whether the window is full.
    pub fn closes_now(&self, policy: &WindowPolicy) -> Option<CloseReason> {
        if self.n_records >= policy.max_documents {
            Some(CloseReason::Documents)
        } else if self.payload_bytes >= policy.max_bytes {
            Some(CloseReason::Bytes)
        } else {
            None
        }
    }
}

/// Follows the records of a partition that have not been decoded yet.
#[derive(Debug, Clone, Copy)]
pub struct Forecast {
    extent: Extent,
    n_closed: usize,
}

impl Forecast {
    /// From a window that has come so far.
    pub fn from(extent: Extent) -> Self {
        Forecast { extent, n_closed: 0 }
    }

    /// The window that the next record will belong to: 0 is the one that is open now, 1 the one after it.
    pub fn next(&mut self, timestamp_ms: Option<i64>, payload_bytes: u64, policy: &WindowPolicy) -> usize {
        if self.extent.closes_before(timestamp_ms, policy) {
            self.close();
        }
        let window = self.n_closed;
        self.extent.add(timestamp_ms, payload_bytes);
        if self.extent.closes_now(policy).is_some() {
            self.close();
        }
        window
    }

    fn close(&mut self) {
        *self = Forecast { extent: Extent::default(), n_closed: self.n_closed + 1 };
    }
}
