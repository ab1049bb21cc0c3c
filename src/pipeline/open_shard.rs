//! A shard that still takes windows, until its file is ended and it is stated what it holds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::quality::TOP_SOURCES;
use super::{LoadedModel, Shared};
use crate::catalog::{
    Advance, ByTarget, ClustersAddition, CountsAddition, CountsKind, EdgesAddition, FeedbackAddition, PublishRequest,
};
use crate::checkpoint::Progress;
use crate::config::{Against, Config, RawDistribution};
use crate::features::{Featuriser, Scratch};
use crate::feedback::{DocumentFacts, document_key};
use crate::manifest::{CountedTokens, PublishedFile, ShardManifest};
use crate::record::{RejectReason, TopicPartition};
use crate::score::{NgramCounts, sample_ngrams};
use crate::select::{ClusterAddition, EdgeTally, Quantiles, SourceCounts};
use crate::sink::{
    BATCH_BYTES, BATCH_ROWS, DeadLetterWriter, FinishedFile, FullDisk, SPLIT, ShardStore, ShardWriter, SinkError,
    Split, Spool, WriterSettings,
};
use crate::window::{ClosedWindow, SelectedDocument, WindowSummary};

/// Windows that wait for a shard to fill roll it when there are so many.
const MAX_PENDING_WINDOWS: usize = 10_000;
/// So does a file of dead letters of this size: whoever reads it takes it whole.
const MAX_DEAD_LETTER_FILE_BYTES: u64 = 32 << 20;

pub(super) struct OpenShard {
    id: String,
    /// `None` until something is selected for training.
    writer: Option<ShardWriter>,
    /// `None` until something is selected that is held out.
    validation: Option<ShardWriter>,
    full_disk: Arc<dyn FullDisk>,
    progress: Progress,
    epochs: BTreeMap<TopicPartition, i64>,
    windows: Vec<WindowSummary>,
    /// `None` until a record is bad.
    dead_letters: Option<DeadLetterWriter>,
    reasons: BTreeMap<RejectReason, u64>,
    log_importance_weights: Vec<f64>,
    /// By the tokenizer of the configuration: of what is for training, and of what is held out.
    tokens: u64,
    validation_tokens: u64,
    sources: SourceCounts,
    counts: BTreeMap<CountsKind, ByTarget<NgramCounts>>,
    clusters: Option<ClusterAddition>,
    edges: Option<EdgeTally>,
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
    clusters: Option<ClusterAddition>,
    /// With what the numbers are.
    edges: Option<(String, EdgeTally)>,
    documents: Vec<(i64, DocumentFacts)>,
}

impl OpenShard {
    pub fn new(full_disk: Arc<dyn FullDisk>) -> Self {
        OpenShard {
            id: Uuid::now_v7().to_string(),
            writer: None,
            validation: None,
            full_disk,
            progress: Progress::default(),
            epochs: BTreeMap::new(),
            windows: Vec::new(),
            dead_letters: None,
            reasons: BTreeMap::new(),
            log_importance_weights: Vec::new(),
            tokens: 0,
            validation_tokens: 0,
            sources: SourceCounts::default(),
            counts: BTreeMap::new(),
            clusters: None,
            edges: None,
            documents: Vec::new(),
            document_bytes: 0,
            scratch: Scratch::default(),
            opened: Instant::now(),
        }
    }

    /// `spool`: the selected documents that the window does not hold, in order. They come one after the other. Compression takes
    /// its time, and so does a full disk: to be called where a thread may be blocked.
    pub fn append(
        &mut self,
        window: ClosedWindow,
        spool: Option<Spool>,
        owner_epoch: i64,
        shared: &Shared,
    ) -> Result<(), String> {
        let at = window.summary.at.clone();
        if *self.epochs.entry(at.clone()).or_insert(owner_epoch) != owner_epoch {
            return Err(format!("partition {at} was lost and came back while its windows waited for publication"));
        }
        self.progress.append(&at, window.summary.interval).map_err(|e| e.to_string())?;
        self.append_selection(&window, spool, shared).map_err(|e| e.to_string())?;
        self.append_dead_letters(&window, shared).map_err(|e| e.to_string())?;
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
        match (&mut self.clusters, window.clusters) {
            (Some(sum), Some(addition)) => sum.merge(addition),
            (none, addition) => *none = addition.or(none.take()),
        }
        match (&mut self.edges, window.edges) {
            (Some(sum), Some(tally)) => sum.merge(&tally),
            (none, tally) => *none = tally.or(none.take()),
        }
        self.sources.merge(&window.sources);
        self.windows.push(window.summary);
        Ok(())
    }

    fn append_selection(
        &mut self,
        window: &ClosedWindow,
        spool: Option<Spool>,
        shared: &Shared,
    ) -> Result<(), SinkError> {
        let (at, id) = (&window.summary.at, window.summary.id());
        let mut rest = &window.selected[..];
        while !rest.is_empty() {
            let (rows, others) = rest.split_at(at_a_time(rest));
            self.append_rows(rows, at, &id, shared)?;
            rest = others;
        }
        let Some(spool) = spool else { return Ok(()) };
        let numbers: Vec<u32> = (0..spool.n_rows()).collect();
        let mut decisions = window.waiting.iter();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        spool.rows(&numbers, |row| {
            let decision = decisions.next().expect("rows of a spool are those that were selected");
            let row = decision.of(row, &shared.config.selector);
            bytes += row.document.size_bytes();
            rows.push(row);
            if rows.len() < BATCH_ROWS && bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            self.append_rows(&std::mem::take(&mut rows), at, &id, shared)
        })?;
        self.append_rows(&rows, at, &id, shared)
    }

    /// Some of what a window has selected.
    fn append_rows(
        &mut self,
        rows: &[SelectedDocument],
        at: &TopicPartition,
        window: &str,
        shared: &Shared,
    ) -> Result<(), SinkError> {
        for split in [Split::Train, Split::Validation] {
            let rows: Vec<_> = rows.iter().filter(|row| row.held_out == (split == Split::Validation)).collect();
            self.append_side(&rows, split, at, window, shared)?;
        }
        // What is held out says nothing of what trainers see, and no loss is joined to it: it must not say what is selected next.
        for row in rows.iter().filter(|row| !row.held_out) {
            self.log_importance_weights.push(row.score.log_importance_weight);
            if let Some(feedback) = &shared.config.feedback {
                let featuriser = &shared.model.model.featuriser;
                let (key, facts) = facts(row, featuriser, feedback.ngrams, &mut self.scratch);
                self.document_bytes +=
                    size_of_val(&(key, &facts)) + size_of::<DocumentFacts>() + facts.ngrams.held_bytes();
                self.documents.push((key, facts));
            }
        }
        Ok(())
    }

    /// Those of one side.
    fn append_side(
        &mut self,
        rows: &[&SelectedDocument],
        split: Split,
        at: &TopicPartition,
        window: &str,
        shared: &Shared,
    ) -> Result<(), SinkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let writer = match split {
            Split::Train => &mut self.writer,
            Split::Validation => &mut self.validation,
        };
        let writer = match writer {
            Some(writer) => writer,
            none => none.insert(shard_writer(&self.id, shared, &self.full_disk)?),
        };
        let further = shared.further(rows, at);
        match split {
            Split::Train => self.tokens += further.n_tokens,
            Split::Validation => self.validation_tokens += further.n_tokens,
        }
        writer.append(rows, at, window, &shared.model.id, &further.arrays)
    }

    fn append_dead_letters(&mut self, window: &ClosedWindow, shared: &Shared) -> Result<(), SinkError> {
        let config = &shared.config;
        let scratch_dir = config.sink.scratch_dir.as_deref();
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
        let of = |writer: &Option<ShardWriter>| writer.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        let ((rows, bytes), (held_out_rows, held_out_bytes)) = (of(&self.writer), of(&self.validation));
        let (bad_rows, bad_bytes) = self.dead_letters.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        rows.max(bad_rows).max(held_out_rows) >= limits.max_rows
            || bytes.max(held_out_bytes) >= limits.target_bytes
            || bad_bytes >= limits.target_bytes.min(MAX_DEAD_LETTER_FILE_BYTES)
            || self.opened.elapsed() >= limits.max_age
            || self.windows.len() >= MAX_PENDING_WINDOWS
            || self.document_bytes >= shared.limits.document_bytes
            || self.waiting_bytes() >= shared.limits.waiting_bytes
    }

    fn waiting_bytes(&self) -> usize {
        [&self.writer, &self.validation].into_iter().flatten().map(ShardWriter::waiting_bytes).sum()
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn contains(&self, at: &TopicPartition) -> bool {
        self.progress.contains(at)
    }

    /// Bytes held in memory for the files.
    pub fn held_bytes(&self) -> usize {
        [&self.writer, &self.validation].into_iter().flatten().map(ShardWriter::held_bytes).sum::<usize>()
            + self.dead_letters.as_ref().map_or(0, DeadLetterWriter::held_bytes)
            + self.document_bytes
            + self.clusters.as_ref().map_or(0, |addition| addition.tally.held_bytes())
            + self.edges.as_ref().map_or(0, EdgeTally::held_bytes)
    }

    /// Ends the files and states what they hold.
    pub fn finish(self, shared: &Shared) -> Result<FinishedPublication, SinkError> {
        let Shared { config, model, columns, .. } = shared;
        let counted = |none: CountedTokens| CountedTokens {
            tokens: self.tokens,
            validation_tokens: self.validation_tokens,
            ..none
        };
        let tokenizer = columns.nothing_counted().map(counted);
        let OpenShard { id, writer, validation, full_disk, progress, epochs, windows, .. } = self;
        let OpenShard { dead_letters, reasons, counts, clusters, edges, documents, .. } = self;
        let edges = config.selector.sketched_numbers(model.id.as_str()).zip(edges);
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
            tokenizer,
            log_importance_weights: Quantiles::of(self.log_importance_weights),
            sources: self.sources.top(TOP_SOURCES),
            windows,
            shuffled: config.sink.shuffle,
            dead_letters: None,
            validation: None,
            created_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64),
        };
        let mut files = Vec::new();
        // Where everything is held out there is a shard all the same, without rows: its line in the manifest names the other file.
        let writer = match (writer, &validation) {
            (None, Some(_)) => Some(shard_writer(&manifest.shard, shared, &full_disk)?),
            (writer, _) => writer,
        };
        if let Some(writer) = writer {
            let finished = writer.finish(footer(&manifest, &advances, Split::Train))?;
            let path = ShardStore::shard_path(&manifest.shard);
            manifest.path = Some(path.clone());
            manifest.rows = finished.rows;
            manifest.bytes = finished.bytes;
            manifest.digest = Some(finished.digest.clone());
            files.push((path, finished));
        }
        if let Some(writer) = validation {
            let finished = writer.finish(footer(&manifest, &advances, Split::Validation))?;
            manifest.validation = Some(published_file(ShardStore::validation_path(&manifest.shard), &finished));
            files.push((ShardStore::validation_path(&manifest.shard), finished));
        }
        if let Some(writer) = dead_letters {
            let path = ShardStore::dead_letter_path(&manifest.shard);
            let finished = writer.finish(names(&manifest))?;
            manifest.dead_letters = Some(published_file(path.clone(), &finished));
            files.push((path, finished));
        }
        Ok(FinishedPublication { manifest, files, reasons, advances, counts, clusters, edges, documents })
    }
}

impl FinishedPublication {
    /// What is added to the pipeline's counts: nothing when no n-gram came, so that there is no version without a change.
    pub fn additions(&self, config: &Config, model: &LoadedModel) -> Vec<CountsAddition<'_>> {
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
            let featuriser = model.model.featuriser;
            Some(CountsAddition { kind, featuriser, counts, half_life_ngrams, history_bytes })
        };
        let has_ngrams = |counts: &ByTarget<NgramCounts>| counts.values().any(|counts| counts.total() > 0);
        self.counts.iter().filter(|(_, counts)| has_ngrams(counts)).filter_map(addition).collect()
    }

    pub fn request<'a>(&'a self, counts: &'a [CountsAddition<'a>], shared: &'a Shared) -> PublishRequest<'a> {
        let Shared { config, model, .. } = shared;
        let FinishedPublication { manifest, advances, documents, clusters, edges, .. } = self;
        let feedback = config.feedback.as_ref().map(|feedback| FeedbackAddition {
            featuriser: model.model.featuriser,
            documents,
            max_documents: feedback.max_documents,
            settings: feedback.settings,
            history_bytes: feedback.history_bytes,
        });
        let clusters = clusters.as_ref().map(|addition| ClustersAddition {
            addition,
            half_life_documents: config.clusters.half_life_documents,
            history_bytes: config.clusters.history_bytes,
        });
        // Without a document there is no version without a change.
        let edges = edges.as_ref().filter(|(_, tally)| tally.n_documents() > 0).map(|(numbers, tally)| EdgesAddition {
            numbers,
            tally,
            half_life_documents: config.edges.half_life_documents,
        });
        let forward_to = config.dead_letters.topic.as_deref();
        PublishRequest { manifest, advances, counts, feedback, clusters, edges, forward_to }
    }
}

fn shard_writer(id: &str, shared: &Shared, full_disk: &Arc<dyn FullDisk>) -> Result<ShardWriter, SinkError> {
    let Shared { config, model, limits, .. } = shared;
    let settings = WriterSettings {
        row_group_rows: config.shard.row_group_rows,
        row_group_bytes: limits.row_group_bytes,
        zstd_level: config.shard.zstd_level,
        shuffle: config.sink.shuffle.then_some(config.selector.seed),
    };
    let scratch_dir = config.sink.scratch_dir.as_deref();
    let further = shared.columns.fields();
    ShardWriter::create(id, scratch_dir, settings, model.division.targets(), &further, full_disk.clone())
}

/// How many documents from the first one are written together: their further columns are computed of a copy.
fn at_a_time(documents: &[SelectedDocument]) -> usize {
    let mut bytes = 0;
    let fits = documents.iter().take(BATCH_ROWS).take_while(|selected| {
        bytes += selected.document.size_bytes();
        bytes <= BATCH_BYTES
    });
    fits.count().max(1)
}

fn published_file(path: String, FinishedFile { rows, bytes, digest, .. }: &FinishedFile) -> PublishedFile {
    PublishedFile { path, rows: *rows, bytes: *bytes, digest: digest.clone() }
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
fn footer(manifest: &ShardManifest, advances: &[Advance], split: Split) -> Vec<(String, String)> {
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
        ("shuffled", manifest.shuffled.to_string()),
        ("selector", json(serde_json::to_value(&manifest.selector))),
        ("columns", json(serde_json::to_value(&manifest.columns.columns))),
        ("offsets", serde_json::Value::from(offsets).to_string()),
        ("windows", json(serde_json::to_value(&manifest.windows))),
    ]
    .map(|(key, value)| (format!("winnowd.{key}"), value));
    let tokenizer = manifest.tokenizer.as_ref();
    let tokenizer = tokenizer.map(|of| ("winnowd.tokenizer".to_owned(), json(serde_json::to_value(of))));
    let split = (SPLIT.to_owned(), split.as_str().to_owned());
    names(manifest).into_iter().chain(more).chain(tokenizer).chain([split]).collect()
}

/// What every file of a publication says of itself.
fn names(manifest: &ShardManifest) -> Vec<(String, String)> {
    [("shard", &manifest.shard), ("pipeline", &manifest.pipeline)]
        .map(|(key, value)| (format!("winnowd.{key}"), value.clone()))
        .to_vec()
}
