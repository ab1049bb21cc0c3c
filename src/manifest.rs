//! What a shard is: the facts that the catalog keeps, the shard carries in its footer, and trainers read. Pure.

mod side_files;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::score::ModelId;
use crate::select::{AcceptanceBySource, FieldType, Quantiles, SelectorSettings};
use crate::window::WindowSummary;

pub use side_files::SideFile;

/// Everything that is known of a published shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardManifest {
    pub shard: String,
    pub pipeline: String,
    /// Relative to the root of the sink; `None` when nothing was selected, so that only progress was published.
    pub path: Option<String>,
    pub rows: u64,
    pub bytes: u64,
    /// `sha256:` and hex, of the file's bytes.
    pub digest: Option<String>,
    pub model: ModelId,
    pub selector: SelectorSettings,
    /// Columns that its rows have beside those of every shard.
    #[serde(default, skip_serializing_if = "DerivedSettings::is_empty")]
    pub columns: DerivedSettings,
    /// The tokenizer that its rows were counted with, and how many tokens they have; `None`: they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<CountedTokens>,
    /// Of the log importance weights of its rows.
    pub log_importance_weights: Option<Quantiles>,
    /// Over all its windows.
    #[serde(default)]
    pub sources: AcceptanceBySource,
    pub windows: Vec<WindowSummary>,
    /// Whether its rows stand in the order of [`crate::select::Noise::shuffle`], by the seed of the selector; otherwise they stand window
    /// by window, by ascending offsets.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shuffled: bool,
    /// Published together with it, if any record was bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<DeadLetterFile>,
    /// What is held out of training, published together with it; then there is a shard as well, be it one without rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PublishedFile>,
    pub created_at_ms: i64,
}

/// Columns that are computed from the documents. They are kept as they were written: a replay computes with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DerivedSettings {
    /// Expressions in SQL by the names of their columns.
    pub columns: BTreeMap<String, String>,
    /// Fields of the record that they may name beside those of every document, and what they hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldType>,
}

impl DerivedSettings {
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// What a tokenizer has counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountedTokens {
    /// Its column is called `n_tokens_NAME`.
    pub name: String,
    /// `sha256:` and hex, of the bytes of its `tokenizer.json`.
    pub digest: String,
    /// In all rows of the shard.
    pub tokens: u64,
    /// In what is held out of training, published together with it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub validation_tokens: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The bad records of a publication, as a file beside the shard.
pub type DeadLetterFile = PublishedFile;

/// A file beside the shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedFile {
    /// Relative to the root of the sink.
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    /// `sha256:` and hex, of the file's bytes.
    pub digest: String,
}

/// One line of `manifest.jsonl`. Trainers read this file instead of listing objects: it names published shards only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// 1, 2, 3, … in order of publication within a pipeline.
    pub sequence: i64,
    pub shard: String,
    pub pipeline: String,
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    pub digest: String,
    pub model: ModelId,
    /// Ids of the windows whose selections it holds, `topic/partition/from-to`.
    pub windows: Vec<String>,
    /// How many tokens its rows have by the tokenizer of the configuration, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<CountedTokens>,
    /// What is held out of training of the same windows; not for training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PublishedFile>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

impl ShardManifest {
    /// The line for trainers; `None` for progress without rows.
    pub fn entry(&self, sequence: i64) -> Option<ManifestEntry> {
        Some(ManifestEntry {
            sequence,
            shard: self.shard.clone(),
            pipeline: self.pipeline.clone(),
            path: self.path.clone()?,
            rows: self.rows,
            bytes: self.bytes,
            digest: self.digest.clone()?,
            model: self.model.clone(),
            windows: self.windows.iter().filter(|w| w.n_selected > 0).map(WindowSummary::id).collect(),
            tokenizer: self.tokenizer.clone(),
            validation: self.validation.clone(),
            created_at: rfc3339(self.created_at_ms),
        })
    }
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(ms: i64) -> String {
    match chrono::DateTime::from_timestamp_millis(ms) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catalogs keep what earlier versions wrote.
    #[test]
    fn manifests_of_the_first_version_are_read() {
        let old = r#"{"shard":"s","pipeline":"p","path":"shards/s.parquet","rows":1,"bytes":9,"digest":"sha256:00",
            "model":"sha256:11","selector":{"kind":"importance_resampling","fraction":"0.1","temperature":1.0,
            "min_tokens":100,"seed":0},
            "log_importance_weights":{"min":-1.0,"q25":-1.0,"median":-1.0,"q75":-1.0,"max":-1.0},
            "windows":[{"topic":"t","partition":0,"from_offset":0,"to_offset":10,"closed_by":"idle","n_records":10,
            "n_selected":1,"n_rejected":9,"n_too_short":0,"n_dead_letters":0,"payload_bytes":5,"threshold":null,
            "kl_reduction":0.5}],"created_at_ms":0}"#;
        let manifest: ShardManifest = serde_json::from_str(old).unwrap();
        let window = &manifest.windows[0];
        assert_eq!((window.raw_version, window.diagnostics, window.random_kl_reduction), (None, None, None));
        assert_eq!((manifest.sources.sources.len(), manifest.selector.length_normalise), (0, false));
        assert!(manifest.selector.quotas.is_empty() && window.turns.is_empty() && window.targets.is_empty());
        // Nor is anything new written where nothing divides a window.
        let again = serde_json::to_value(&manifest).unwrap();
        assert_eq!((again["selector"].get("quotas"), again["windows"][0].get("turns")), (None, None));
        assert_eq!((again.get("columns"), again["windows"][0].get("n_filtered")), (None, None));
        assert!(manifest.columns.is_empty() && window.n_filtered.is_none());
        assert!(!manifest.shuffled && again.get("shuffled").is_none());
        assert!(manifest.tokenizer.is_none() && again.get("tokenizer").is_none());
        let entry = serde_json::to_value(manifest.entry(1)).unwrap();
        assert!(entry.get("tokenizer").is_none());
    }
}
