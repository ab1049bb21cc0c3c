//! What the page shows beside the rest of the status: windows while they fill, weights of the last one, the last shards.

use std::collections::VecDeque;

use serde::Serialize;

use super::Telemetry;
use super::logbook::now_ms;
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::select::WeightHistogram;
use crate::window::{OpenWindow, WindowPolicy};

/// Shards that `/status` shows; `winnowd shards` has all.
const MAX_SHARDS: usize = 10;

/// When windows close by their content: see [`WindowPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WindowLimits {
    pub max_documents: u64,
    pub max_bytes: u64,
    pub max_age_ms: i64,
}

impl From<WindowPolicy> for WindowLimits {
    fn from(WindowPolicy { max_documents, max_bytes, max_age_ms }: WindowPolicy) -> Self {
        WindowLimits { max_documents, max_bytes, max_age_ms }
    }
}

/// A window that still takes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OpenWindowStatus {
    pub from: i64,
    pub n_records: u64,
    pub payload_bytes: u64,
    /// When its first record was taken, in milliseconds since 1970 by the clock of this worker.
    pub opened_at_ms: u64,
}

impl OpenWindowStatus {
    /// `before`: what was shown of the partition until now. `None` of a window without records.
    pub fn of(window: &OpenWindow, before: Option<OpenWindowStatus>) -> Option<Self> {
        let (from, extent) = (window.from(), window.extent());
        (extent.n_records() > 0).then(|| OpenWindowStatus {
            from,
            n_records: extent.n_records(),
            payload_bytes: extent.payload_bytes(),
            opened_at_ms: before.filter(|before| before.from == from).map_or_else(now_ms, |before| before.opened_at_ms),
        })
    }
}

/// The total log weights of the candidates of the window closed last, for one target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightsStatus {
    /// `null`: the model's only one.
    pub target: Option<String>,
    #[serde(flatten)]
    pub histogram: WeightHistogram,
    /// The weight whose key is the threshold without noise: of documents with it a draw selects 63 %. Where sources
    /// have shares, that of the pool of all others; `null` where nothing was left.
    pub threshold: Option<f64>,
}

/// A published shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardStatus {
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    pub n_windows: usize,
    pub published_at_ms: u64,
}

impl Telemetry {
    /// Shows a shard that this worker has published.
    pub fn show_shard(&self, manifest: &ShardManifest) {
        let Some(path) = manifest.path.clone() else { return };
        let (rows, bytes, n_windows) = (manifest.rows, manifest.bytes, manifest.windows.len());
        let mut status = self.status();
        status.last_shard = Some(path.clone());
        put_first(&mut status.shards, ShardStatus { path, rows, bytes, n_windows, published_at_ms: now_ms() });
    }

    /// Shows how far the open window of a partition has come.
    pub fn show_window(&self, at: &TopicPartition, window: &OpenWindow) {
        if let Some(shown) = self.status().partitions.get_mut(at) {
            shown.consumed = window.next_offset();
            shown.window = OpenWindowStatus::of(window, shown.window);
        }
    }
}

fn put_first(shards: &mut VecDeque<ShardStatus>, shard: ShardStatus) {
    shards.truncate(MAX_SHARDS - 1);
    shards.push_front(shard);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_shards_are_shown_first() {
        let mut shards = VecDeque::new();
        for rows in 0..25 {
            let path = format!("shards/{rows}.parquet");
            put_first(&mut shards, ShardStatus { path, rows, bytes: 1, n_windows: 1, published_at_ms: 1 });
        }
        let rows: Vec<_> = shards.iter().map(|shard| shard.rows).collect();
        assert_eq!(rows, [24, 23, 22, 21, 20, 19, 18, 17, 16, 15]);
    }
}
