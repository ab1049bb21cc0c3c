//! Windows: contiguous offset intervals of one partition, from the first record to the selection. Pure.
//!
//! In: scored records in offset order. Out: a [`ClosedWindow`]: what was chosen and what became of all the others.
//! A window closes by what its records say (number, bytes, age), so the same records always make the same windows;
//! idleness and memory pressure also close one, and the recorded extent lets a replay repeat it.

mod candidates;
mod closed;
mod columns;
mod covered;
mod extent;
mod one_pass;
mod sensitive;
mod spread;
mod statistics;
mod tenths;
mod tokens;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use closed::{ClosedWindow, Decision, SelectedDocument, TargetSummary, TurnSummary, WindowSummary};
pub use covered::{CoverageSummary, PoolStrata, SpooledRow, StratumSummary};
pub use extent::{Extent, Forecast};
pub use sensitive::{PlacedDocument, PointSource, PoolSensitivities, SensitivitySummary};
pub use spread::{Fingerprint, SpreadSummary};
pub use statistics::WindowTally;
pub use tokens::TokenTurn;

use crate::checkpoint::Interval;
use crate::features::{BucketList, Featuriser, Scratch};
use crate::record::{Document, Reject, TopicPartition};
use crate::score::{Score, VersionedWeight};
use crate::select::{Division, FixedEdges, Noise, SelectorSettings, StreamClusters};
use candidates::{Candidate, Candidates};
use spread::Sample;
use statistics::Statistics;

/// When a window closes by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowPolicy {
    /// Records, whatever became of them.
    pub max_documents: u64,
    /// Payload bytes.
    pub max_bytes: u64,
    /// Between the timestamps of the first record and of a later one, which then begins the next window.
    pub max_age_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    Documents,
    Bytes,
    Age,
    /// Nothing came for the configured time.
    Idle,
    /// The memory budget was reached.
    Memory,
    /// The disk budget for rows that wait was reached.
    Spool,
}

impl CloseReason {
    pub const ALL: [CloseReason; 6] = [
        CloseReason::Documents,
        CloseReason::Bytes,
        CloseReason::Age,
        CloseReason::Idle,
        CloseReason::Memory,
        CloseReason::Spool,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::Documents => "documents",
            CloseReason::Bytes => "bytes",
            CloseReason::Age => "age",
            CloseReason::Idle => "idle",
            CloseReason::Memory => "memory",
            CloseReason::Spool => "spool",
        }
    }
}

/// One record after decoding and scoring.
#[derive(Debug)]
pub struct ScoredRecord {
    pub offset: i64,
    pub record_timestamp_ms: Option<i64>,
    pub payload_bytes: u64,
    pub outcome: Result<ScoredDocument, DeadLetter>,
}

#[derive(Debug)]
pub struct ScoredDocument {
    pub content: Content,
    /// Of several targets for the first.
    pub score: Score,
    /// Log importance weights for the other targets, in the model's order; nothing of one target.
    pub other_weights: Vec<f64>,
    /// What it has in the fields of a coverage selector, see [`crate::select::CoverageSelector::fields`]; NaN where there is none.
    pub numbers: [f64; 2],
    /// Where shares are of the values of another field than the source: the pool that its value belongs to. Such shares never change, so
    /// that it is known before its window is. `None`: its source says it, once it is known how its window is divided.
    pub pool: Option<u16>,
    /// Of a sensitivity selection and a document that may be selected: its embedding, or what stands in for that; `None` where it has
    /// none that can be used.
    pub point: Option<Vec<f32>>,
    /// Buckets of its n-grams, for the counts of the window. `None` of a text so long that nobody wants to hold them: the
    /// window finds them again.
    pub buckets: Option<BucketList>,
    /// Whether its n-grams come in a [`WindowTally`]; otherwise the window counts them.
    pub is_counted: bool,
    /// The clause of the selector's filter that is not true of it, from 0: it is counted, and cannot be selected.
    pub refused_by: Option<u16>,
    /// If it may belong to the sample from which it is measured what the selection covers, see [`OpenWindow::might_sample`].
    pub fingerprint: Option<Fingerprint>,
}

/// What is left of a document once it is scored.
#[derive(Debug)]
pub enum Content {
    /// It may be selected.
    Whole(Document),
    /// It cannot, see [`OpenWindow::might_select`], so that nobody asks for more than its source. Counted, or with its buckets.
    PassedOver { source: Option<String> },
}

impl Content {
    pub fn source(&self) -> Option<&str> {
        match self {
            Content::Whole(document) => document.source.as_deref(),
            Content::PassedOver { source } => source.as_deref(),
        }
    }
}

impl ScoredDocument {
    /// The pool that it belongs to where a window is divided so.
    pub fn pool_in(&self, division: &Division) -> usize {
        pool_of(division, self.content.source(), self.pool)
    }

    /// The same document by other weights of the same featuriser.
    fn score_again(&mut self, by: &VersionedWeight) {
        let of_text = match (&self.buckets, &self.content) {
            (Some(buckets), _) => by.score_list(buckets, self.score.n_tokens),
            (None, Content::Whole(document)) => by.score(&document.text, &mut Scratch::default(), |_| ()),
            (None, Content::PassedOver { .. }) => panic!("a document that is to be scored again was passed over"),
        };
        let Score { loss, counted_tokens, .. } = self.score;
        self.score = Score { loss, counted_tokens, ..of_text };
        if let Content::Whole(document) = &self.content {
            self.other_weights = by.for_others(&document.text, self.buckets.as_ref(), &mut Scratch::default());
        }
    }

    /// # Panics
    /// If neither its buckets nor its text are left.
    fn for_each_chunk(&self, featuriser: &Featuriser, chunk: impl FnMut(&[u32])) {
        match (&self.buckets, &self.content) {
            (Some(buckets), _) => buckets.for_each_chunk(chunk),
            (None, Content::Whole(document)) => {
                featuriser.for_each_chunk(&document.text, &mut Scratch::default(), chunk);
            }
            (None, Content::PassedOver { .. }) => panic!("the n-grams of a document are gone and wanted"),
        }
    }
}

/// `by_field`: what [`ScoredDocument::pool`] says.
fn pool_of(division: &Division, source: Option<&str>, by_field: Option<u16>) -> usize {
    by_field.map_or_else(|| division.pool_of(source), usize::from)
}

/// A record that could not be read, as it is kept for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub offset: i64,
    pub record_timestamp_ms: Option<i64>,
    pub reject: Reject,
    pub payload_bytes: u64,
    /// As much of the payload as is kept; `None`: the record has none.
    pub payload: Option<Vec<u8>>,
}

impl DeadLetter {
    /// Bytes that it holds on to.
    pub fn size_bytes(&self) -> usize {
        size_of::<DeadLetter>() + self.reject.detail.len() + self.payload.as_ref().map_or(0, Vec::len)
    }
}

/// What a window takes when it opens, whatever comes into force meanwhile, beside the weights that its first record pins.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// How it will be divided.
    pub division: &'a Arc<Division>,
    /// Of a sensitivity selection by the clusters of the stream.
    pub clusters: Option<&'a StreamClusters>,
    /// Of strata with edges of the stream, of the same division; `None`: it cuts its own.
    pub edges: Option<&'a Arc<FixedEdges>>,
    /// Of the featuriser.
    pub buckets: usize,
}

/// A window that still takes records.
#[derive(Debug)]
pub struct OpenWindow {
    at: TopicPartition,
    from: i64,
    next_offset: i64,
    extent: Extent,
    n_documents: u64,
    /// Tokens of all documents, as they count in budgets.
    n_tokens: u64,
    n_too_short: u64,
    n_filtered: u64,
    held_bytes: usize,
    dead_letters: Vec<DeadLetter>,
    candidates: Candidates,
    /// Version of the quotas that it is divided by.
    quota_version: Option<i64>,
    statistics: Statistics,
    /// From which it is measured what the selection covers.
    sample: Option<Sample>,
    /// What all its documents are scored with, whatever came into force since its first record.
    pinned: Option<Arc<VersionedWeight>>,
}

impl OpenWindow {
    /// An empty window that begins at `from`.
    pub fn new(
        at: TopicPartition,
        from: i64,
        policy: &WindowPolicy,
        selector: &SelectorSettings,
        opening: Opening<'_>,
    ) -> Self {
        let Opening { division, buckets, .. } = opening;
        let at_most = selector.fraction.at_most(policy.max_documents);
        OpenWindow {
            at,
            from,
            next_offset: from,
            extent: Extent::default(),
            n_documents: 0,
            n_tokens: 0,
            n_too_short: 0,
            n_filtered: 0,
            held_bytes: 0,
            dead_letters: Vec::new(),
            candidates: Candidates::new(opening, at_most, selector),
            quota_version: division.version(),
            statistics: Statistics::new(buckets, selector),
            sample: Sample::new(selector),
            pinned: None,
        }
    }

    /// Its first offset.
    pub fn from(&self) -> i64 {
        self.from
    }

    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Version of the quotas that it is divided by, where they change.
    pub fn quota_version(&self) -> Option<i64> {
        self.quota_version
    }

    /// Nothing to publish: not even progress.
    pub fn is_empty(&self) -> bool {
        self.next_offset == self.from
    }

    /// Bytes of the statistics, candidates and dead letters that it holds.
    pub fn held_bytes(&self) -> usize {
        let sample = self.sample.as_ref().map_or(0, Sample::held_bytes);
        self.held_bytes + self.statistics.held_bytes() + self.candidates.held_bytes() + sample
    }

    /// The version of the stream's clusters that it holds on to, and the bytes of that, which are not in [`OpenWindow::held_bytes`]:
    /// windows share them.
    pub fn clusters_held(&self) -> Option<(i64, usize)> {
        match &self.candidates {
            Candidates::Sensitive(sensitive) => sensitive.clusters_held(),
            _ => None,
        }
    }

    /// How far it has come towards its limits.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// What its documents are scored with, once that is settled.
    pub fn pinned(&self) -> Option<&Arc<VersionedWeight>> {
        self.pinned.as_ref()
    }

    /// Takes the next record, whose score was made by `scored_with`. The first record pins that version of
    /// the weights; records that were scored with another one are scored again.
    ///
    /// Out: a row that waits outside of a window which must see all its documents before it is decided. Such rows are
    /// numbered as they come, from 0; [`OpenWindow::close_with`] looks at some of them.
    ///
    /// # Panics
    /// If its offset is below the window's next one: it would be decided twice. If it must be scored again and was passed
    /// over, so that there is nothing left to be scored.
    pub fn push(
        &mut self,
        record: ScoredRecord,
        scored_with: &Arc<VersionedWeight>,
        selector: &SelectorSettings,
        noise: &Noise,
    ) -> Option<SpooledRow> {
        let ScoredRecord { offset, record_timestamp_ms, payload_bytes, outcome } = record;
        self.advance_to(offset);
        self.next_offset = offset + 1;
        self.extent.add(record_timestamp_ms, payload_bytes);
        let pinned = self.pinned.get_or_insert_with(|| scored_with.clone());
        match outcome {
            Err(dead_letter) => {
                self.held_bytes += dead_letter.size_bytes();
                self.dead_letters.push(dead_letter);
                None
            }
            Ok(mut scored) => {
                if pinned.version != scored_with.version {
                    scored.score_again(pinned);
                }
                self.take(offset, scored, scored_with, selector, noise)
            }
        }
    }

    fn take(
        &mut self,
        offset: i64,
        scored: ScoredDocument,
        scored_with: &VersionedWeight,
        selector: &SelectorSettings,
        noise: &Noise,
    ) -> Option<SpooledRow> {
        let featuriser = scored_with.weight.featuriser();
        self.n_documents += 1;
        self.n_tokens += u64::from(scored.score.budget_tokens());
        self.statistics.sources.document(scored.content.source());
        if !scored.is_counted {
            self.statistics.count(offset, noise, |count| scored.for_each_chunk(featuriser, count));
        }
        let ScoredDocument { content, score, other_weights, numbers, pool, point, buckets, refused_by, .. } = scored;
        let fingerprint = scored.fingerprint;
        if refused_by.is_some() {
            self.n_filtered += 1;
            return None;
        }
        if score.n_tokens < selector.min_tokens {
            self.n_too_short += 1;
            return None;
        }
        let has_numbers = match &mut self.candidates {
            Candidates::Covered(covered) => covered.accepts(&numbers),
            Candidates::OnePass(one_pass) => one_pass.accepts(&numbers),
            _ => true,
        };
        if !has_numbers {
            return None;
        }
        if let Candidates::Sensitive(sensitive) = &mut self.candidates
            && sensitive.rejects(point.as_deref())
        {
            return None;
        }
        if let (Some(sample), Some(fingerprint)) = (&mut self.sample, fingerprint) {
            sample.offer(offset, noise, fingerprint);
        }
        let of_score = |score: &Score| selector.total_log_weight(score, featuriser);
        let total_log_weight = of_score(&score);
        let number = self.statistics.candidate(&score, total_log_weight);
        let Content::Whole(document) = content else { return None };
        let candidate = Candidate { document, score, other_weights, pool, buckets, number };
        if let Candidates::Covered(covered) = &mut self.candidates {
            return Some(covered.take(offset, candidate, numbers, of_score));
        }
        if let Candidates::Sensitive(sensitive) = &mut self.candidates {
            return Some(sensitive.take(offset, candidate, point.unwrap_or_default()));
        }
        if let Candidates::Tokens(in_tokens) = &mut self.candidates {
            return Some(in_tokens.take(offset, candidate));
        }
        self.held_bytes += candidate.size_bytes();
        let key = |total_log_weight| selector.key(noise, offset, total_log_weight);
        let Self { candidates, held_bytes, .. } = self;
        let out = |out: Candidate| *held_bytes -= out.size_bytes();
        match candidates {
            Candidates::OnePass(one_pass) => one_pass.offer(offset, candidate, numbers, of_score, key, out),
            candidates => candidates.offer(offset, candidate, total_log_weight, of_score, key, out),
        }
        None
    }

    /// Of a sensitivity selection, once all rows are in it and before it is closed: finds centres and scores all by their points.
    /// `points` shows the scores and points of the rows of these numbers, one after the other by ascending numbers; it is called twice,
    /// the first time for a bounded sample. Of other windows it is not called.
    pub fn place<E>(
        &mut self,
        selector: &SelectorSettings,
        noise: &Noise,
        points: impl FnMut(&[u32], &mut dyn FnMut(&Score, &[f32])) -> Result<(), E>,
    ) -> Result<(), E> {
        match &mut self.candidates {
            Candidates::Sensitive(sensitive) => sensitive.place(selector, noise, points),
            _ => Ok(()),
        }
    }

    /// What [`OpenWindow::place`] has found of the document at an offset, whose point this is.
    pub fn placed(&self, offset: i64, point: &[f32]) -> Option<PlacedDocument> {
        match &self.candidates {
            Candidates::Sensitive(sensitive) => sensitive.placed(offset, point),
            _ => None,
        }
    }

    /// Whether a document with this key may still be selected. Once it may not, it never may again, whatever comes. Of a
    /// divided window it is not told before the document is offered.
    pub fn might_select(&self, key: f64) -> bool {
        self.candidates.might_hold(key)
    }

    /// Whether a document that may be selected may belong to the sample from which it is measured what the selection covers; its
    /// fingerprint is wanted then. `number` is [`Noise::sampling`]. Once it may not, it never may again.
    pub fn might_sample(&self, number: f64) -> bool {
        self.sample.as_ref().is_some_and(|sample| sample.might_hold(number))
    }

    /// Whether it looks at all its documents whole: several targets, quotas or strata divide it, or it counts tokens.
    pub fn is_divided(&self) -> bool {
        !matches!(self.candidates, Candidates::Whole(_))
    }

    /// Takes the n-grams of documents that say they are counted.
    pub fn add(&mut self, tally: &WindowTally) {
        self.statistics.add(tally);
    }

    /// Covers offsets below `offset` that hold no record for us (control records, compacted ones).
    ///
    /// # Panics
    /// If `offset` is below the window's next one.
    pub fn advance_to(&mut self, offset: i64) {
        assert!(offset >= self.next_offset, "{}: offset {offset} after {}", self.at, self.next_offset);
        self.next_offset = offset;
    }

    fn interval(&self) -> Interval {
        Interval { from: self.from, to: self.next_offset }
    }
}

#[cfg(test)]
mod tests;
