//! A shard that still takes windows, until its file is ended and it is stated what it holds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::Shared;
use super::quality::TOP_SOURCES;
use crate::catalog::{Advance, ByTarget, CountsAddition, CountsKind, FeedbackAddition, PublishRequest};
use crate::checkpoint::Progress;
use crate::config::{Against, Config, RawDistribution};
use crate::features::{Featuriser, Scratch};
use crate::feedback::{DocumentFacts, document_key};
use crate::manifest::{DeadLetterFile, ShardManifest};
use crate::record::{RejectReason, TopicPartition};
use crate::score::{NgramCounts, sample_ngrams};
use crate::select::{Quantiles, SourceCounts};
use crate::sink::{DeadLetterWriter, FinishedFile, FullDisk, ShardStore, ShardWriter, SinkError, WriterSettings};
use crate::window::{ClosedWindow, SelectedDocument, WindowSummary};

/// Windows that wait for a shard to fill roll it when there are so many.
const MAX_PENDING_WINDOWS: usize = 10_000;
/// So does a file of dead letters of this size: whoever reads it takes it whole.
const MAX_DEAD_LETTER_FILE_BYTES: u64 = 32 << 20;

pub(super) struct OpenShard {
    id: String,
    /// `None` until something is selected.
    writer: Option<ShardWriter>,
    full_disk: Arc<dyn FullDisk>,
    progress: Progress,
    epochs: BTreeMap<TopicPartition, i64>,
    windows: Vec<WindowSummary>,
    /// `None` until a record is bad.
    dead_letters: Option<DeadLetterWriter>,
    reasons: BTreeMap<RejectReason, u64>,
    log_importance_weights: Vec<f64>,
    sources: SourceCounts,
    counts: BTreeMap<CountsKind, ByTarget<NgramCounts>>,
    /// What losses will be joined to, and the bytes of that.
    documents: Vec<(i64, DocumentFacts)>,
    document_bytes: usize,
    scratch: Scratch,
    pub opened: Instant,
}

/// One publication: what is to be stored and uploaded.
pub(super) struct FinishedPublication {
    pub manifest: ShardManifest,
    /// What is to be uploaded, and where.
    pub files: Vec<(String, FinishedFile)>,
    /// Dead letters by reason.
    pub reasons: BTreeMap<RejectReason, u64>,
    advances: Vec<Advance>,
    counts: BTreeMap<CountsKind, ByTarget<NgramCounts>>,
    documents: Vec<(i64, DocumentFacts)>,
}

impl OpenShard {
    pub fn new(full_disk: Arc<dyn FullDisk>) -> Self {
        OpenShard {
            id: Uuid::now_v7().to_string(),
            writer: None,
            full_disk,
            progress: Progress::default(),
            epochs: BTreeMap::new(),
            windows: Vec::new(),
            dead_letters: None,
            reasons: BTreeMap::new(),
            log_importance_weights: Vec::new(),
            sources: SourceCounts::default(),
            counts: BTreeMap::new(),
            documents: Vec::new(),
            document_bytes: 0,
            scratch: Scratch::default(),
            opened: Instant::now(),
        }
    }

    /// Compression takes its time, and so does a full disk: to be called where a thread may be blocked.
    pub fn append(&mut self, window: ClosedWindow, owner_epoch: i64, shared: &Shared) -> Result<(), String> {
        let at = window.summary.at.clone();
        if *self.epochs.entry(at.clone()).or_insert(owner_epoch) != owner_epoch {
            return Err(format!("partition {at} was lost and came back while its windows waited for publication"));
        }
        self.progress.append(&at, window.summary.interval).map_err(|e| e.to_string())?;
        self.append_files(&window, shared).map_err(|e| e.to_string())?;
        let Config { raw, against, .. } = shared.config;
        // Sums of whole numbers: the order of windows within a publication does not matter.
        let mut add = |kind, target, counts| match self.counts.entry(kind).or_default().entry(target) {
            Entry::Occupied(sum) => sum.into_mut().merge(counts),
            Entry::Vacant(none) => drop(none.insert(counts.clone())),
        };
        if raw != RawDistribution::Pinned {
            add(CountsKind::Raw, String::new(), &window.raw_counts);
        }
        if against != Against::Raw {
            let targets = shared.model.target_names().into_iter().zip(&window.selected_counts);
            targets.for_each(|(target, counts)| add(CountsKind::Selected, target, counts));
        }
        if let Some(feedback) = &shared.config.feedback {
            let featuriser = &shared.model.model.featuriser;
            for document in &window.selected {
                let (key, facts) = facts(document, featuriser, feedback.ngrams, &mut self.scratch);
                self.document_bytes +=
                    size_of_val(&(key, &facts)) + size_of::<DocumentFacts>() + facts.ngrams.held_bytes();
                self.documents.push((key, facts));
            }
        }
        self.sources.merge(&window.sources);
        self.log_importance_weights.extend(window.selected.iter().map(|row| row.score.log_importance_weight));
        self.windows.push(window.summary);
        Ok(())
    }

    fn append_files(&mut self, window: &ClosedWindow, shared: &Shared) -> Result<(), SinkError> {
        let Shared { config, model, limits, derived, .. } = shared;
        let scratch_dir = config.sink.scratch_dir.as_deref();
        if !window.selected.is_empty() {
            let settings = WriterSettings {
                row_group_rows: config.shard.row_group_rows,
                row_group_bytes: limits.row_group_bytes,
                zstd_level: config.shard.zstd_level,
            };
            let writer = match &mut self.writer {
                Some(writer) => writer,
                none => {
                    let (targets, full_disk) = (model.division.targets(), self.full_disk.clone());
                    let fields = derived.as_ref().map(|derived| derived.fields()).unwrap_or_default();
                    none.insert(ShardWriter::create(&self.id, scratch_dir, settings, targets, &fields, full_disk)?)
                }
            };
            match derived {
                None => writer.append(window, &model.id)?,
                Some(derived) => {
                    let mut failed = vec![0; derived.fields().len()];
                    let derive = &mut |rows: &[SelectedDocument]| {
                        let derived = derived.of(rows, &window.summary.at);
                        failed.iter_mut().zip(derived.failed).for_each(|(sum, n)| *sum += n);
                        derived.arrays
                    };
                    writer.append_with(window, &model.id, derive)?;
                    shared.show_failed_columns(derived, &failed);
                }
            }
        }
        for letter in &window.dead_letters {
            let writer = match &mut self.dead_letters {
                Some(writer) => writer,
                none => none.insert({
                    let (level, full_disk) = (config.shard.zstd_level, self.full_disk.clone());
                    DeadLetterWriter::create(&self.id, scratch_dir, level, full_disk)?
                }),
            };
            writer.append(&window.summary.at, letter)?;
            *self.reasons.entry(letter.reject.reason).or_default() += 1;
        }
        Ok(())
    }

    pub fn is_full(&self, shared: &Shared) -> bool {
        let limits = &shared.config.shard;
        let (rows, bytes) = self.writer.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        let (bad_rows, bad_bytes) = self.dead_letters.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        rows.max(bad_rows) >= limits.max_rows
            || bytes >= limits.target_bytes
            || bad_bytes >= limits.target_bytes.min(MAX_DEAD_LETTER_FILE_BYTES)
            || self.opened.elapsed() >= limits.max_age
            || self.windows.len() >= MAX_PENDING_WINDOWS
            || self.document_bytes >= shared.limits.document_bytes
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn contains(&self, at: &TopicPartition) -> bool {
        self.progress.contains(at)
    }

    /// Bytes held in memory for the files.
    pub fn held_bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, ShardWriter::held_bytes)
            + self.dead_letters.as_ref().map_or(0, DeadLetterWriter::held_bytes)
            + self.document_bytes
    }

    /// Ends the files and states what they hold.
    pub fn finish(self, shared: &Shared) -> Result<FinishedPublication, SinkError> {
        let Shared { config, model, .. } = shared;
        let OpenShard { id, writer, progress, epochs, windows, dead_letters, reasons, counts, documents, .. } = self;
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
            selector: config.selector.clone(),
            columns: config.columns.clone(),
            log_importance_weights: Quantiles::of(self.log_importance_weights),
            sources: self.sources.top(TOP_SOURCES),
            windows,
            dead_letters: None,
            created_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64),
        };
        let mut files = Vec::new();
        if let Some(writer) = writer {
            let finished = writer.finish(footer(&manifest, &advances))?;
            let path = ShardStore::shard_path(&manifest.shard);
            manifest.path = Some(path.clone());
            manifest.rows = finished.rows;
            manifest.bytes = finished.bytes;
            manifest.digest = Some(finished.digest.clone());
            files.push((path, finished));
        }
        if let Some(writer) = dead_letters {
            let path = ShardStore::dead_letter_path(&manifest.shard);
            let finished = writer.finish(names(&manifest))?;
            let FinishedFile { rows, bytes, digest, .. } = &finished;
            let (rows, bytes, digest) = (*rows, *bytes, digest.clone());
            manifest.dead_letters = Some(DeadLetterFile { path: path.clone(), rows, bytes, digest });
            files.push((path, finished));
        }
        Ok(FinishedPublication { manifest, files, reasons, advances, counts, documents })
    }
}

impl FinishedPublication {
    /// What is added to the pipeline's counts: nothing when no n-gram came, so that there is no version without a change.
    pub fn additions(&self, config: &Config) -> Vec<CountsAddition<'_>> {
        let addition = |(&kind, counts): (&CountsKind, _)| {
            let (half_life_ngrams, history_bytes) = match (kind, config.raw, config.against) {
                (CountsKind::Raw, RawDistribution::Adaptive { half_life_ngrams, history_bytes, .. }, _) => {
                    (Some(half_life_ngrams), history_bytes)
                }
                (CountsKind::Selected, _, Against::Selected { half_life_ngrams, history_bytes, .. }) => {
                    (half_life_ngrams, history_bytes)
                }
                _ => return None,
            };
            Some(CountsAddition { kind, counts, half_life_ngrams, history_bytes })
        };
        let has_ngrams = |counts: &ByTarget<NgramCounts>| counts.values().any(|counts| counts.total() > 0);
        self.counts.iter().filter(|(_, counts)| has_ngrams(counts)).filter_map(addition).collect()
    }

    pub fn request<'a>(&'a self, counts: &'a [CountsAddition<'a>], shared: &'a Shared) -> PublishRequest<'a> {
        let Shared { config, model, .. } = shared;
        let FinishedPublication { manifest, advances, documents, .. } = self;
        let feedback = config.feedback.as_ref().map(|feedback| FeedbackAddition {
            featuriser: model.model.featuriser,
            documents,
            max_documents: feedback.max_documents,
            settings: feedback.settings,
            history_bytes: feedback.history_bytes,
        });
        PublishRequest { manifest, advances, counts, feedback, forward_to: config.dead_letters.topic.as_deref() }
    }
}

/// What losses will be joined to.
fn facts(
    selected: &SelectedDocument,
    featuriser: &Featuriser,
    n_ngrams: usize,
    scratch: &mut Scratch,
) -> (i64, DocumentFacts) {
    let SelectedDocument { document, inclusion_probability, tenth, .. } = selected;
    let mut buckets = Vec::new();
    featuriser.for_each_chunk(&document.text, scratch, |chunk| buckets.extend_from_slice(chunk));
    let facts = DocumentFacts {
        source: document.source.clone(),
        stratum: *tenth,
        inclusion_probability: *inclusion_probability,
        text_bytes: document.text.len() as u64,
        ngrams: sample_ngrams(&buckets, n_ngrams),
    };
    (document_key(&document.id), facts)
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
    let more = [
        ("model", manifest.model.to_string()),
        ("seed", manifest.selector.seed.to_string()),
        ("selector", json(serde_json::to_value(&manifest.selector))),
        ("columns", json(serde_json::to_value(&manifest.columns.columns))),
        ("offsets", serde_json::Value::from(offsets).to_string()),
        ("windows", json(serde_json::to_value(&manifest.windows))),
    ]
    .map(|(key, value)| (format!("winnowd.{key}"), value));
    names(manifest).into_iter().chain(more).collect()
}

/// What every file of a publication says of itself.
fn names(manifest: &ShardManifest) -> Vec<(String, String)> {
    [("shard", &manifest.shard), ("pipeline", &manifest.pipeline)]
        .map(|(key, value)| (format!("winnowd.{key}"), value.clone()))
        .to_vec()
}
