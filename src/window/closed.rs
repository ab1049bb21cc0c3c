//! What a window comes to: the selection with its probabilities, and the sums that the catalog keeps.

use serde::{Deserialize, Serialize};

use super::statistics::Statistics;
use super::{Candidate, CloseReason, DeadLetter, Extent, OpenWindow};
use crate::checkpoint::Interval;
use crate::features::Scratch;
use crate::record::{Document, TopicPartition};
use crate::score::{NgramCounts, Score, SelectedVersion, TargetDistribution, WeightVersion};
use crate::select::{Chosen, Diagnostics, Noise, SelectorSettings, SourceCounts};

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
    /// Documents and selected ones by source.
    pub sources: SourceCounts,
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
    /// The same of a random sample of the same share instead of the selection: what is lost by being few.
    #[serde(default)]
    pub random_kl_reduction: Option<f64>,
    /// Version of the adaptive raw distribution that its documents were scored with; `None`: the one fitted in the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_version: Option<i64>,
    /// Version of the counts of what was selected that is in the denominator; `None`: the raw distribution alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_selected: Option<SelectedVersion>,
    /// `None` of windows published by earlier versions.
    #[serde(default)]
    pub diagnostics: Option<Diagnostics>,
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
            extent: Extent { n_records, payload_bytes, .. },
            n_documents,
            n_too_short,
            dead_letters,
            candidates,
            statistics: Statistics { raw, baseline, mut sources, log_weights, n_tokens, .. },
            pinned,
            ..
        } = self;
        let k = selector.fraction.of(n_documents, noise.rounding(from)) as usize;
        let selection = candidates.select(k);
        let threshold = selection.threshold;
        // Whether there is a selection at all was left to chance where the share is less than one document.
        let chance = (selector.fraction.as_f64() * n_documents as f64).min(1.0);
        let mut numbers = Vec::with_capacity(selection.chosen.len());
        let mut scratch = Scratch::default();
        let mut selected_counts = NgramCounts::zero(target.featuriser().buckets as usize);
        let to_selected = |Chosen { offset, key, item: Candidate { document, score, buckets, number } }| {
            numbers.push(number);
            match buckets {
                Some(buckets) => selected_counts.add_list(&buckets),
                None => {
                    selected_counts.add_text(&document.text, target.featuriser(), &mut scratch);
                }
            }
            sources.selected(document.source.as_deref());
            let probability = selector.inclusion_probability(log_weights[number], threshold);
            SelectedDocument {
                offset,
                document,
                score,
                selection_key: key,
                inclusion_probability: chance * probability,
            }
        };
        let selected: Vec<_> = selection.chosen.into_iter().map(to_selected).collect();

        let raw_divergence = target.divergence_from(&raw);
        let reduction =
            |counts: &NgramCounts| (counts.total() > 0).then(|| raw_divergence - target.divergence_from(counts));
        let n_selected = selected.len() as u64;
        let version = pinned.map_or_else(WeightVersion::default, |pinned| pinned.version);
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
            kl_reduction: reduction(&selected_counts),
            random_kl_reduction: reduction(&baseline),
            raw_version: version.raw,
            against_selected: version.selected,
            diagnostics: Some(Diagnostics::of(selector, &log_weights, &n_tokens, &numbers)),
        };
        ClosedWindow { summary, selected, dead_letters, raw_counts: raw, selected_counts, sources }
    }
}
