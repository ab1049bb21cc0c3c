//! What a window comes to: the selection with its probabilities, and the sums that the catalog keeps.

use serde::{Deserialize, Serialize};

use super::{Candidate, CloseReason, DeadLetter, OpenWindow};
use crate::checkpoint::Interval;
use crate::features::Scratch;
use crate::record::{Document, TopicPartition};
use crate::score::{NgramCounts, Score, TargetDistribution};
use crate::select::{Chosen, Noise, SelectorSettings};

/// A document of the selection.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedDocument {
    pub offset: i64,
    pub document: Document,
    pub score: Score,
    pub selection_key: f64,
    pub inclusion_probability: f64,
}

/// A decided window, ready for a shard.
#[derive(Debug)]
pub struct ClosedWindow {
    pub summary: WindowSummary,
    pub selected: Vec<SelectedDocument>,
    pub dead_letters: Vec<DeadLetter>,
    /// N-grams of all documents, and of the selected ones.
    pub raw_counts: NgramCounts,
    pub selected_counts: NgramCounts,
}

/// What the catalog and the manifest say of a window. Every record is selected, rejected or a dead letter:
/// `n_records = n_selected + n_rejected + n_dead_letters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowSummary {
    #[serde(flatten)]
    pub at: TopicPartition,
    #[serde(flatten)]
    pub interval: Interval,
    pub closed_by: CloseReason,
    pub n_records: u64,
    pub n_selected: u64,
    /// Documents not selected, the too short ones among them.
    pub n_rejected: u64,
    pub n_too_short: u64,
    pub n_dead_letters: u64,
    pub payload_bytes: u64,
    /// Highest selection key that was not selected.
    pub threshold: Option<f64>,
    /// KL(target ‖ all documents) − KL(target ‖ selected), in nats; `None` without a selection.
    pub kl_reduction: Option<f64>,
}

impl WindowSummary {
    /// `topic/partition/from-to`: unique in a pipeline.
    pub fn id(&self) -> String {
        format!("{}/{}-{}", self.at, self.interval.from, self.interval.to)
    }
}

impl OpenWindow {
    /// Decides the window.
    pub fn close(
        self,
        closed_by: CloseReason,
        selector: &SelectorSettings,
        noise: &Noise,
        target: &TargetDistribution,
    ) -> ClosedWindow {
        let interval = self.interval();
        let OpenWindow {
            at,
            from,
            n_records,
            n_documents,
            n_too_short,
            payload_bytes,
            dead_letters,
            candidates,
            counts,
            ..
        } = self;
        let k = selector.fraction.of(n_documents, noise.rounding(from)) as usize;
        let selection = candidates.select(k);
        let threshold = selection.threshold;
        // Whether there is a selection at all was left to chance where the share is less than one document.
        let chance = (selector.fraction.as_f64() * n_documents as f64).min(1.0);
        let to_selected = |Chosen { offset, key, item: Candidate { document, score } }| SelectedDocument {
            offset,
            document,
            score,
            selection_key: key,
            inclusion_probability: chance
                * selector.inclusion_probability(selector.total_log_weight(&score, &target.featuriser), threshold),
        };
        let selected: Vec<_> = selection.chosen.into_iter().map(to_selected).collect();

        let mut scratch = Scratch::default();
        let mut selected_counts = NgramCounts::zero(target.featuriser.buckets as usize);
        for row in &selected {
            selected_counts.add_text(&row.document.text, &target.featuriser, &mut scratch);
        }
        let kl_reduction = (selected_counts.total() > 0)
            .then(|| target.divergence_from(&counts) - target.divergence_from(&selected_counts));
        let n_selected = selected.len() as u64;
        let summary = WindowSummary {
            at,
            interval,
            closed_by,
            n_records,
            n_selected,
            n_rejected: n_documents - n_selected,
            n_too_short,
            n_dead_letters: dead_letters.len() as u64,
            payload_bytes,
            threshold,
            kl_reduction,
        };
        ClosedWindow { summary, selected, dead_letters, raw_counts: counts, selected_counts }
    }
}
