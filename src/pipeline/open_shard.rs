//! A shard that still takes windows, until its file is ended and it is stated what it holds.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::Shared;
use super::quality::TOP_SOURCES;
use crate::catalog::{Advance, CountsAddition, CountsKind, PublishRequest};
use crate::checkpoint::Progress;
use crate::config::RawDistribution;
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::score::NgramCounts;
use crate::select::{Quantiles, SourceCounts};
use crate::sink::{FinishedShard, ShardStore, ShardWriter, SinkError, WriterSettings};
use crate::window::{ClosedWindow, DeadLetter, WindowSummary};

/// Dead letters and windows that wait for a shard to fill roll it when they come to this much.
const MAX_PENDING_DEAD_LETTERS: usize = 10_000;
const MAX_PENDING_DEAD_LETTER_BYTES: usize = 8 << 20;
const MAX_PENDING_WINDOWS: usize = 10_000;

pub(super) struct OpenShard {
    id: String,
    /// `None` until something is selected.
    writer: Option<ShardWriter>,
    progress: Progress,
    epochs: BTreeMap<TopicPartition, i64>,
    windows: Vec<WindowSummary>,
    dead_letters: Vec<(TopicPartition, DeadLetter)>,
    dead_letter_bytes: usize,
    log_importance_weights: Vec<f64>,
    sources: SourceCounts,
    /// N-grams of all documents, where the raw distribution follows the stream. A sum of whole numbers: the order of
    /// windows within a publication does not matter.
    raw_counts: Option<NgramCounts>,
    pub opened: Instant,
}

/// One publication: what is to be stored and uploaded.
pub(super) struct FinishedPublication {
    pub manifest: ShardManifest,
    pub file: Option<FinishedShard>,
    advances: Vec<Advance>,
    dead_letters: Vec<(TopicPartition, DeadLetter)>,
    raw_counts: Option<NgramCounts>,
}

impl OpenShard {
    pub fn new() -> Self {
        OpenShard {
            id: Uuid::now_v7().to_string(),
            writer: None,
            progress: Progress::default(),
            epochs: BTreeMap::new(),
            windows: Vec::new(),
            dead_letters: Vec::new(),
            dead_letter_bytes: 0,
            log_importance_weights: Vec::new(),
            sources: SourceCounts::default(),
            raw_counts: None,
            opened: Instant::now(),
        }
    }

    pub fn append(&mut self, window: ClosedWindow, owner_epoch: i64, shared: &Shared) -> Result<(), String> {
        let Shared { config, model, limits, .. } = shared;
        let at = window.summary.at.clone();
        if *self.epochs.entry(at.clone()).or_insert(owner_epoch) != owner_epoch {
            return Err(format!("partition {at} was lost and came back while its windows waited for publication"));
        }
        self.progress.append(&at, window.summary.interval).map_err(|e| e.to_string())?;
        if !window.selected.is_empty() {
            let settings = WriterSettings {
                row_group_rows: config.shard.row_group_rows,
                row_group_bytes: limits.row_group_bytes,
                zstd_level: config.shard.zstd_level,
            };
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => none.insert(
                    ShardWriter::create(&self.id, config.sink.scratch_dir.as_deref(), settings)
                        .map_err(|e| e.to_string())?,
                ),
            };
            // Compression takes its time; other tasks of this thread move elsewhere meanwhile.
            tokio::task::block_in_place(|| writer.append(&window, &model.id)).map_err(|e| e.to_string())?;
        }
        if config.raw != RawDistribution::Pinned {
            match &mut self.raw_counts {
                Some(counts) => counts.merge(&window.raw_counts),
                none => *none = Some(window.raw_counts),
            }
        }
        self.sources.merge(&window.sources);
        self.log_importance_weights.extend(window.selected.iter().map(|row| row.score.log_importance_weight));
        self.dead_letter_bytes += window.dead_letters.iter().map(DeadLetter::size_bytes).sum::<usize>();
        self.dead_letters.extend(window.dead_letters.into_iter().map(|letter| (at.clone(), letter)));
        self.windows.push(window.summary);
        Ok(())
    }

    pub fn is_full(&self, shared: &Shared) -> bool {
        let limits = &shared.config.shard;
        let (rows, bytes) = self.writer.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        rows >= limits.max_rows
            || bytes >= limits.target_bytes
            || self.opened.elapsed() >= limits.max_age
            || self.dead_letters.len() >= MAX_PENDING_DEAD_LETTERS
            || self.dead_letter_bytes >= MAX_PENDING_DEAD_LETTER_BYTES
            || self.windows.len() >= MAX_PENDING_WINDOWS
    }

    pub fn contains(&self, at: &TopicPartition) -> bool {
        self.progress.contains(at)
    }

    /// Bytes held in memory for the file.
    pub fn held_bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, ShardWriter::held_bytes)
    }

    /// Ends the file and states what it holds.
    pub fn finish(self, shared: &Shared) -> Result<FinishedPublication, SinkError> {
        let Shared { config, model, .. } = shared;
        let OpenShard { id, writer, progress, epochs, windows, dead_letters, raw_counts, .. } = self;
        let advance =
            |(at, interval): (&TopicPartition, _)| Advance { at: at.clone(), interval, owner_epoch: epochs[at] };
        let advances: Vec<_> = progress.iter().map(advance).collect();
        let mut manifest = ShardManifest {
            shard: id,
            pipeline: config.pipeline.clone(),
            path: None,
            rows: 0,
            bytes: 0,
            digest: None,
            model: model.id.clone(),
            selector: config.selector,
            log_importance_weights: Quantiles::of(self.log_importance_weights),
            sources: self.sources.top(TOP_SOURCES),
            windows,
            created_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64),
        };
        let mut file = None;
        if let Some(writer) = writer {
            let finished = writer.finish(footer(&manifest, &advances))?;
            manifest.path = Some(ShardStore::shard_path(&manifest.shard));
            manifest.rows = finished.rows;
            manifest.bytes = finished.bytes;
            manifest.digest = Some(finished.digest.clone());
            file = Some(finished);
        }
        Ok(FinishedPublication { manifest, file, advances, dead_letters, raw_counts })
    }
}

impl FinishedPublication {
    /// What is added to the pipeline's counts: nothing when no n-gram came, so that there is no version without a change.
    pub fn additions(&self, raw: RawDistribution) -> Vec<CountsAddition<'_>> {
        let counts = self.raw_counts.as_ref().filter(|counts| counts.total() > 0);
        match (raw, counts) {
            (RawDistribution::Adaptive { half_life_ngrams, history_bytes, .. }, Some(counts)) => {
                let half_life_ngrams = Some(half_life_ngrams);
                vec![CountsAddition { kind: CountsKind::Raw, counts, half_life_ngrams, history_bytes }]
            }
            _ => Vec::new(),
        }
    }

    pub fn request<'a>(&'a self, counts: &'a [CountsAddition<'a>]) -> PublishRequest<'a> {
        let FinishedPublication { manifest, advances, dead_letters, .. } = self;
        PublishRequest { manifest, advances, dead_letters, counts }
    }
}

/// What a reader finds in the shard's own key-value metadata.
fn footer(manifest: &ShardManifest, advances: &[Advance]) -> Vec<(String, String)> {
    let offsets: Vec<_> = advances
        .iter()
        .map(|a| {
            let (topic, partition) = (&a.at.topic, a.at.partition);
            serde_json::json!({ "topic": topic, "partition": partition, "from_offset": a.interval.from, "to_offset": a.interval.to })
        })
        .collect();
    let json = |value: serde_json::Result<serde_json::Value>| value.map(|v| v.to_string()).unwrap_or_default();
    [
        ("shard", manifest.shard.clone()),
        ("pipeline", manifest.pipeline.clone()),
        ("model", manifest.model.to_string()),
        ("seed", manifest.selector.seed.to_string()),
        ("selector", json(serde_json::to_value(manifest.selector))),
        ("offsets", serde_json::Value::from(offsets).to_string()),
        ("windows", json(serde_json::to_value(&manifest.windows))),
    ]
    .map(|(key, value)| (format!("winnowd.{key}"), value))
    .to_vec()
}
