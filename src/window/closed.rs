//! What a window comes to: the selection with its probabilities, and the sums that the catalog keeps.

use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Choice, ChosenCandidate, Deciding};
use super::statistics::Statistics;
use super::{CloseReason, DeadLetter, Extent, OpenWindow};
use crate::checkpoint::Interval;
use crate::features::Scratch;
use crate::record::{Document, TopicPartition};
use crate::score::{ExpectedLossVersion, NgramCounts, Score, SelectedVersion, TargetDistribution, WeightVersion};
use crate::select::{Diagnostics, Noise, SelectorSettings, SourceCounts, WeightHistogram};

/// A document of the selection.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedDocument {
    pub offset: i64,
    pub document: Document,
    /// For the target that chose it.
    pub score: Score,
    /// The number of that target in the model.
    pub target: usize,
    /// For every target; nothing of one.
    pub log_importance_weights: Vec<f64>,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    /// Log of the weight that its loss gives it, where losses count.
    pub loss_weight: Option<f64>,
    /// Its tenth among the candidates of the window by total log weight for that target, the lowest 0.
    pub tenth: u8,
}

/// A decided window, ready for a shard.
#[derive(Debug)]
pub struct ClosedWindow {
    pub summary: WindowSummary,
    pub selected: Vec<SelectedDocument>,
    pub dead_letters: Vec<DeadLetter>,
    /// N-grams of all documents, and of those that each target has selected.
    pub raw_counts: NgramCounts,
    pub selected_counts: Vec<NgramCounts>,
    /// Documents and selected ones by source.
    pub sources: SourceCounts,
    /// For each target, of the same candidates by its weights; `None` without candidates.
    pub weights: Vec<Option<WeightHistogram>>,
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
    /// Documents not selected, the too short ones and those that the filter refused among them.
    pub n_rejected: u64,
    pub n_too_short: u64,
    /// `None` without a filter, and of windows published by earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_filtered: Option<u64>,
    pub n_dead_letters: u64,
    pub payload_bytes: u64,
    /// Highest selection key that was not selected; `None` as well where there were turns, which have their own.
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
    /// Version of the losses that are expected of its documents, and their coefficient in the weights; `None`: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_loss: Option<ExpectedLossVersion>,
    /// Version of the shares of sources by their losses that divided it; `None`: those of the selector, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_version: Option<i64>,
    /// `None` of windows published by earlier versions, and of several targets, which have their own.
    #[serde(default)]
    pub diagnostics: Option<Diagnostics>,
    /// Where quotas or several targets divided the window: what each target chose from each pool, in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnSummary>,
    /// Several targets, in the model's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetSummary>,
}

/// What one target chose from one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnSummary {
    /// The source that is a pool of its own; `None`: the pool of all others.
    pub source: Option<String>,
    /// `None`: the model's only one.
    pub target: Option<String>,
    /// In the pool, before the first turn.
    pub n_candidates: u64,
    pub n_selected: u64,
    /// Highest selection key that was left; `None` when nothing was left, or nothing was to be chosen.
    pub threshold: Option<f64>,
}

/// What a window comes to for one of several targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetSummary {
    pub target: String,
    /// KL(this target ‖ all documents) − KL(this target ‖ what it selected), in nats; `None` without a selection.
    pub kl_reduction: Option<f64>,
    /// Of all candidates by their weights for this target, and of what it selected.
    pub diagnostics: Diagnostics,
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
            n_filtered,
            dead_letters,
            candidates,
            statistics: Statistics { raw, baseline, mut sources, log_weights, n_tokens, .. },
            pinned,
            quota_version,
            ..
        } = self;
        let by = Deciding { selector, noise, from, n_documents, log_weights: &log_weights };
        let Choice { chosen, threshold, turns, other_log_weights, targets: names } = candidates.choose(&by);
        let n_targets = names.len().max(1);
        let mut numbers = vec![Vec::new(); n_targets];
        let log_weights: Vec<&[f64]> =
            std::iter::once(&log_weights).chain(&other_log_weights).map(Vec::as_slice).collect();
        let ranked: Vec<Vec<f64>> = log_weights.iter().map(|weights| ranked(weights)).collect();
        let mut scratch = Scratch::default();
        let mut selected_counts = vec![NgramCounts::zero(target.featuriser().buckets as usize); n_targets];
        let to_selected = |ChosenCandidate { offset, target: of, key, inclusion_probability, candidate }| {
            let Candidate { document, score, other_weights, buckets, number } = candidate;
            numbers[of].push(number);
            match buckets {
                Some(buckets) => selected_counts[of].add_list(&buckets),
                None => {
                    selected_counts[of].add_text(&document.text, target.featuriser(), &mut scratch);
                }
            }
            sources.selected(document.source.as_deref());
            let (score, log_importance_weights) = for_target(of, score, &other_weights);
            let selection_key = key;
            SelectedDocument {
                offset,
                document,
                score,
                target: of,
                log_importance_weights,
                selection_key,
                inclusion_probability,
                loss_weight: selector.loss.map(|term| term.log_weight(score.loss)),
                tenth: tenth_of(log_weights[of][number], &ranked[of]),
            }
        };
        let selected: Vec<_> = chosen.into_iter().map(to_selected).collect();

        let draws = log_weights.iter().zip(&numbers);
        let diagnostics: Vec<_> =
            draws.map(|(weights, numbers)| Diagnostics::of(selector, weights, &n_tokens, numbers)).collect();
        let weights = log_weights.iter().zip(&numbers).map(|(of, numbers)| WeightHistogram::of(of, numbers)).collect();
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
            n_filtered: selector.filter.as_ref().map(|_| n_filtered),
            n_dead_letters: dead_letters.len() as u64,
            payload_bytes,
            threshold,
            kl_reduction: match &selected_counts[..] {
                [one] => reduction(one),
                several => reduction(&sum(several)),
            },
            random_kl_reduction: reduction(&baseline),
            raw_version: version.raw,
            against_selected: version.selected,
            expected_loss: version.expected_loss,
            quota_version,
            diagnostics: diagnostics.first().copied().filter(|_| n_targets == 1),
            turns,
            targets: target_summaries(names, target, &raw, &selected_counts, &diagnostics),
        };
        ClosedWindow { summary, selected, dead_letters, raw_counts: raw, selected_counts, sources, weights }
    }
}

impl ClosedWindow {
    /// Bytes of the counts that were made when it closed.
    pub fn selected_counts_bytes(&self) -> usize {
        self.selected_counts.iter().map(|counts| size_of_val(counts.as_slice())).sum()
    }
}

fn sum(counts: &[NgramCounts]) -> NgramCounts {
    let mut sum = counts[0].clone();
    counts[1..].iter().for_each(|counts| sum.merge(counts));
    sum
}

/// The score for one target, and of several the weights for all.
fn for_target(target: usize, first: Score, others: &[f64]) -> (Score, Vec<f64>) {
    if others.is_empty() {
        return (first, Vec::new());
    }
    let mut weights = Vec::with_capacity(1 + others.len());
    weights.push(first.log_importance_weight);
    weights.extend_from_slice(others);
    (Score { log_importance_weight: weights[target], ..first }, weights)
}

/// Nothing of one target, which has no name.
fn target_summaries(
    names: Vec<String>,
    target: &TargetDistribution,
    raw: &NgramCounts,
    selected: &[NgramCounts],
    diagnostics: &[Diagnostics],
) -> Vec<TargetSummary> {
    let parts = target.parts().iter().zip(selected).zip(diagnostics);
    let of =
        |(name, ((target, selected), diagnostics)): (String, ((&TargetDistribution, &NgramCounts), &Diagnostics))| {
            let reduction = || target.divergence_from(raw) - target.divergence_from(selected);
            let kl_reduction = (selected.total() > 0).then(reduction);
            TargetSummary { target: name, kl_reduction, diagnostics: *diagnostics }
        };
    names.into_iter().zip(parts).map(of).collect()
}

fn ranked(log_weights: &[f64]) -> Vec<f64> {
    let mut ranked = log_weights.to_vec();
    ranked.sort_unstable_by(f64::total_cmp);
    ranked
}

/// The tenth that a weight belongs to: as many tenths of all lie below it.
fn tenth_of(log_weight: f64, ranked: &[f64]) -> u8 {
    let below = ranked.partition_point(|other| other.total_cmp(&log_weight).is_lt());
    (10 * below / ranked.len().max(1)) as u8
}
