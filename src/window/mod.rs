//! Windows: contiguous offset intervals of one partition, from the first record to the selection. Pure.
//!
//! In: scored records in offset order. Out: a [`ClosedWindow`]: what was chosen and what became of all the others.
//! A window closes by what its records say (number, bytes, age), so the same records always make the same windows;
//! idleness and memory pressure also close one, and the recorded extent lets a replay repeat it.

mod candidates;
mod closed;
mod statistics;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use closed::{ClosedWindow, SelectedDocument, TargetSummary, TurnSummary, WindowSummary};

use crate::checkpoint::Interval;
use crate::features::{BucketList, Scratch};
use crate::record::{Document, Reject, TopicPartition};
use crate::score::{Score, VersionedWeight};
use crate::select::{Division, Noise, SelectorSettings};
use candidates::{Candidate, Candidates};
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
}

impl CloseReason {
    pub const ALL: [CloseReason; 5] =
        [CloseReason::Documents, CloseReason::Bytes, CloseReason::Age, CloseReason::Idle, CloseReason::Memory];

    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::Documents => "documents",
            CloseReason::Bytes => "bytes",
            CloseReason::Age => "age",
            CloseReason::Idle => "idle",
            CloseReason::Memory => "memory",
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
    pub document: Document,
    /// Of several targets for the first.
    pub score: Score,
    /// Log importance weights for the other targets, in the model's order; nothing of one target.
    pub other_weights: Vec<f64>,
    /// Buckets of its n-grams, for the counts of the window. `None` of a text so long that nobody wants to hold them: the
    /// window finds them again.
    pub buckets: Option<BucketList>,
}

impl ScoredDocument {
    /// The same document by other weights of the same featuriser.
    fn score_again(&mut self, by: &VersionedWeight) {
        let (text, scratch) = (&self.document.text, &mut Scratch::default());
        self.score = match &self.buckets {
            Some(buckets) => by.score_list(buckets, self.score.n_tokens),
            None => by.score(text, scratch, |_| ()),
        };
        self.other_weights = by.for_others(text, self.buckets.as_ref(), scratch);
    }
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

/// A window that still takes records.
#[derive(Debug)]
pub struct OpenWindow {
    at: TopicPartition,
    from: i64,
    next_offset: i64,
    first_timestamp_ms: Option<i64>,
    n_records: u64,
    n_documents: u64,
    n_too_short: u64,
    payload_bytes: u64,
    held_bytes: usize,
    dead_letters: Vec<DeadLetter>,
    candidates: Candidates,
    /// Version of the quotas that it is divided by.
    quota_version: Option<i64>,
    statistics: Statistics,
    /// What all its documents are scored with, whatever came into force since its first record.
    pinned: Option<Arc<VersionedWeight>>,
}

impl OpenWindow {
    /// An empty window that begins at `from`. It will be divided as is said now, whatever comes into force meanwhile.
    pub fn new(
        at: TopicPartition,
        from: i64,
        policy: &WindowPolicy,
        selector: &SelectorSettings,
        division: &Arc<Division>,
        buckets: usize,
    ) -> Self {
        let at_most = selector.fraction.at_most(policy.max_documents);
        OpenWindow {
            at,
            from,
            next_offset: from,
            first_timestamp_ms: None,
            n_records: 0,
            n_documents: 0,
            n_too_short: 0,
            payload_bytes: 0,
            held_bytes: 0,
            dead_letters: Vec::new(),
            candidates: Candidates::new(division, at_most),
            quota_version: division.version(),
            statistics: Statistics::new(buckets, selector),
            pinned: None,
        }
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
        self.held_bytes + self.statistics.held_bytes() + self.candidates.held_bytes()
    }

    /// Whether a record with this timestamp is too late for this window, so that it must be closed first.
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

    /// What its documents are scored with, once that is settled.
    pub fn pinned(&self) -> Option<&Arc<VersionedWeight>> {
        self.pinned.as_ref()
    }

    /// Settles what its documents are scored with, unless it is.
    pub fn pin(&mut self, weight: &Arc<VersionedWeight>) {
        self.pinned.get_or_insert_with(|| weight.clone());
    }

    /// Takes the next record, whose score was made by `scored_with`. Unless another one is pinned, the first record
    /// pins that version of the weights; records that were scored with another one are scored again.
    ///
    /// # Panics
    /// If its offset is below the window's next one: it would be decided twice.
    pub fn push(
        &mut self,
        record: ScoredRecord,
        scored_with: &Arc<VersionedWeight>,
        selector: &SelectorSettings,
        noise: &Noise,
    ) {
        let ScoredRecord { offset, record_timestamp_ms, payload_bytes, outcome } = record;
        self.advance_to(offset);
        self.next_offset = offset + 1;
        self.first_timestamp_ms = self.first_timestamp_ms.or(record_timestamp_ms);
        self.n_records += 1;
        self.payload_bytes += payload_bytes;
        let pinned = self.pinned.get_or_insert_with(|| scored_with.clone());
        match outcome {
            Err(dead_letter) => {
                self.held_bytes += dead_letter.size_bytes();
                self.dead_letters.push(dead_letter);
            }
            Ok(mut scored) => {
                if pinned.version != scored_with.version {
                    scored.score_again(pinned);
                }
                self.take(offset, scored, scored_with, selector, noise);
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
    ) {
        let ScoredDocument { document, score, other_weights, buckets } = scored;
        let featuriser = scored_with.weight.featuriser();
        self.n_documents += 1;
        self.statistics.count(offset, document.source.as_deref(), noise, |count| match &buckets {
            Some(buckets) => buckets.for_each_chunk(count),
            None => {
                featuriser.for_each_chunk(&document.text, &mut Scratch::default(), count);
            }
        });
        if score.n_tokens < selector.min_tokens {
            self.n_too_short += 1;
            return;
        }
        let of_score = |score: &Score| selector.total_log_weight(score, featuriser);
        let total_log_weight = of_score(&score);
        let number = self.statistics.candidate(&score, total_log_weight);
        let candidate = Candidate { document, score, other_weights, buckets, number };
        self.held_bytes += candidate.size_bytes();
        let key = |total_log_weight| selector.key(noise, offset, total_log_weight);
        let Self { candidates, held_bytes, .. } = self;
        candidates.offer(offset, candidate, total_log_weight, of_score, key, |out| *held_bytes -= out.size_bytes());
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
