//! What a window comes to: the selection with its probabilities, and the sums that the catalog keeps.

use std::convert::Infallible;

use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, Choice, Chosen, Deciding};
use super::spread::{self, Fingerprint, Sample, SpreadSummary};
use super::statistics::Statistics;
use super::tenths::Tenths;
use super::{CloseReason, CoverageSummary, DeadLetter, Extent, OpenWindow, SensitivitySummary, SpooledRow, TokenTurn};
use crate::checkpoint::Interval;
use crate::features::{BucketList, Featuriser, Scratch};
use crate::record::{Document, TopicPartition};
use crate::score::{ExpectedLossVersion, NgramCounts, Score, SelectedVersion, TargetDistribution, WeightVersion};
use crate::select::{
    ClusterAddition, Diagnostics, EdgeTally, JudgedDraw, Noise, SelectorKind, SelectorSettings, SourceCounts,
    WeightHistogram,
};

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
    /// What it stands for in weighted sums.
    pub sample_weight: f64,
    /// Log of the weight that its loss gives it, where losses count.
    pub loss_weight: Option<f64>,
    /// Its tenth among the candidates of the window by total log weight for that target, the lowest 0.
    pub tenth: u8,
    /// Whether it goes to the validation split.
    pub held_out: bool,
}

/// What was decided of a selected document that waits elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    pub offset: i64,
    /// As [`SelectedDocument`] has them.
    pub target: u32,
    pub tenth: u8,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
}

/// A decided window, ready for a shard.
#[derive(Debug)]
pub struct ClosedWindow {
    pub summary: WindowSummary,
    /// Nothing where they wait elsewhere.
    pub selected: Vec<SelectedDocument>,
    /// In the order of the rows that [`OpenWindow::close_with`] has asked for.
    pub waiting: Vec<Decision>,
    pub dead_letters: Vec<DeadLetter>,
    /// N-grams of all documents, and of those that each target has selected for training.
    pub raw_counts: NgramCounts,
    pub selected_counts: Vec<NgramCounts>,
    /// Documents and selected ones by source.
    pub sources: SourceCounts,
    /// For each target, of the same candidates by its weights; `None` without candidates.
    pub weights: Vec<Option<WeightHistogram>>,
    /// What its documents add to the clusters of the stream, and to its sketches, where those are followed.
    pub clusters: Option<ClusterAddition>,
    pub edges: Option<EdgeTally>,
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
    /// KL(target ‖ all documents) − KL(target ‖ selected for training), in nats; `None` without a selection.
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
    /// What the selection covers, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadSummary>,
    /// Where the selection was spread over strata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageSummary>,
    /// Where it was drawn by sensitivity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<SensitivitySummary>,
}

/// What one target chose from one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnSummary {
    /// The source, or value of [`crate::select::Quotas::field`], that is a pool of its own; `None`: the pool of all others.
    pub source: Option<String>,
    /// `None`: the model's only one.
    pub target: Option<String>,
    /// In the pool, before the first turn.
    pub n_candidates: u64,
    pub n_selected: u64,
    /// Highest selection key that was left; `None` when nothing was left, or nothing was to be chosen.
    pub threshold: Option<f64>,
    /// Where budgets are in tokens; then the window has a turn for each pool, be it the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenTurn>,
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

    /// What was selected where sources have shares, in what these are counted in: by the source that is a pool of its own, perhaps
    /// in several parts; `None`: the pool of all others.
    pub fn selected_of_pools(&self) -> impl Iterator<Item = (Option<&str>, u64)> {
        let of_turn = |turn: &TurnSummary| turn.tokens.map_or(turn.n_selected, |tokens| tokens.selected);
        let of_turns = self.turns.iter().map(move |turn| (turn.source.as_deref(), of_turn(turn)));
        let of_strata =
            self.coverage.iter().flat_map(|coverage| &coverage.pools).map(|pool| {
                (pool.source.as_deref(), pool.strata.iter().map(|stratum| stratum.n_selected).sum::<u64>())
            });
        let of_sensitivities = self.sensitivity.iter().flat_map(|sensitivity| &sensitivity.pools);
        let of_sensitivities = of_sensitivities.map(|pool| (pool.source.as_deref(), pool.sample.selected));
        of_turns.chain(of_strata).chain(of_sensitivities)
    }
}

impl OpenWindow {
    /// Decides a window whose rows are all in it.
    ///
    /// # Panics
    /// If rows wait elsewhere: they are given by [`OpenWindow::close_with`].
    pub fn close(
        self,
        closed_by: CloseReason,
        selector: &SelectorSettings,
        noise: &Noise,
        target: &TargetDistribution,
    ) -> ClosedWindow {
        let none = |numbers: &[u32], _: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            assert!(numbers.is_empty(), "{} rows wait outside of the window", numbers.len());
            Ok(())
        };
        let Ok(closed) = self.close_with(closed_by, selector, noise, target, none);
        closed
    }

    /// Decides the window. `rows` shows those of the rows that [`OpenWindow::push`] has given away which are chosen, one after
    /// the other by ascending numbers; it is called once. They are looked at and not kept: with
    /// [`ClosedWindow::waiting`] they make the selection.
    ///
    /// # Panics
    /// If it shows more or fewer of them.
    pub fn close_with<E>(
        self,
        closed_by: CloseReason,
        selector: &SelectorSettings,
        noise: &Noise,
        target: &TargetDistribution,
        rows: impl FnOnce(&[u32], &mut dyn FnMut(&SpooledRow)) -> Result<(), E>,
    ) -> Result<ClosedWindow, E> {
        let interval = self.interval();
        let OpenWindow {
            at,
            from,
            extent: Extent { n_records, payload_bytes, .. },
            n_documents,
            n_tokens: window_tokens,
            n_too_short,
            n_filtered,
            dead_letters,
            candidates,
            sample,
            statistics: Statistics { raw, baseline, mut sources, log_weights, n_tokens, .. },
            pinned,
            quota_version,
            ..
        } = self;
        let by = Deciding { selector, noise, from, n_documents, n_tokens: window_tokens, log_weights: &log_weights };
        let wait_elsewhere = candidates.wait_elsewhere();
        let choice = candidates.choose(&by);
        let Choice { chosen, candidates, threshold, turns, other_log_weights, .. } = choice;
        let (names, coverage, sensitivity) = (choice.targets, choice.coverage, choice.sensitivity);
        let (clusters, edges) = (choice.clusters, choice.edges);
        let n_targets = names.len().max(1);
        let mut by_target = vec![Vec::new(); n_targets];
        chosen.iter().for_each(|chosen| by_target[chosen.target as usize].push(chosen.number as usize));
        let numbers: Vec<u32> = chosen.iter().map(|chosen| chosen.number).collect();
        let log_weights: Vec<&[f64]> =
            std::iter::once(&log_weights).chain(&other_log_weights).map(Vec::as_slice).collect();
        let decisions = decisions(chosen, &log_weights);
        let sample = sample.filter(|sample| sample.is_measured(closed_by, n_documents, from, noise));
        let n_compared = |sample: &Sample| sample.n_compared(n_tokens.len(), decisions.len());
        let offsets = decisions.iter().map(|decision| decision.offset);
        let compared = spread::compared(offsets, sample.as_ref().map_or(0, n_compared), noise);
        let mut counter = SelectionCounter {
            counts: vec![NgramCounts::zero(target.featuriser().buckets as usize); n_targets],
            sources: &mut sources,
            fingerprints: Vec::with_capacity(compared.len()),
            compared,
            selector,
            featuriser: target.featuriser(),
            scratch: Scratch::default(),
        };
        let n_selected = decisions.len() as u64;
        let (selected, waiting) = match wait_elsewhere {
            false => (counter.whole(candidates, decisions), Vec::new()),
            true => {
                counter.waiting(&numbers, &decisions, rows)?;
                (Vec::new(), decisions)
            }
        };
        let SelectionCounter { counts: selected_counts, fingerprints, .. } = counter;
        let spread = sample.and_then(|sample| sample.measure(fingerprints, &sources));

        let draws = log_weights.iter().zip(&by_target);
        // Where weights do not decide, no draw by them can collapse.
        let kind = if selector.is_uniform() { SelectorKind::TopK } else { selector.kind };
        let selector = &SelectorSettings { kind, ..selector.clone() };
        let judged = |(weights, selected): (&&[f64], &Vec<usize>)| {
            let draw = JudgedDraw { selected, n_selected_by_all: n_selected, is_window: true };
            Diagnostics::of(selector, weights, &n_tokens, &draw)
        };
        let diagnostics: Vec<_> = draws.map(judged).collect();
        let weights =
            log_weights.iter().zip(&by_target).map(|(of, numbers)| WeightHistogram::of(of, numbers)).collect();
        let raw_divergence = target.divergence_from(&raw);
        let reduction =
            |counts: &NgramCounts| (counts.total() > 0).then(|| raw_divergence - target.divergence_from(counts));
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
            spread,
            coverage,
            sensitivity,
        };
        Ok(ClosedWindow {
            summary,
            selected,
            waiting,
            dead_letters,
            raw_counts: raw,
            selected_counts,
            sources,
            weights,
            clusters,
            edges,
        })
    }
}

impl ClosedWindow {
    /// Bytes of the counts that were made when it closed.
    pub fn selected_counts_bytes(&self) -> usize {
        self.selected_counts.iter().map(|counts| size_of_val(counts.as_slice())).sum()
    }

    /// Bytes that it holds where its documents wait elsewhere.
    pub fn held_bytes(&self) -> usize {
        self.selected_counts_bytes()
            + size_of_val(self.raw_counts.as_slice())
            + self.sources.held_bytes()
            + self.waiting.capacity() * size_of::<Decision>()
            + self.dead_letters.iter().map(DeadLetter::size_bytes).sum::<usize>()
            + self.clusters.as_ref().map_or(0, |addition| addition.tally.held_bytes())
            + self.edges.as_ref().map_or(0, EdgeTally::held_bytes)
    }
}

impl Decision {
    /// The selected document, with the row that has come back.
    pub fn of(&self, row: SpooledRow, selector: &SelectorSettings) -> SelectedDocument {
        let SpooledRow { document, score, other_weights, .. } = row;
        let Decision { offset, target, tenth, selection_key, inclusion_probability, sample_weight } = *self;
        let target = target as usize;
        let (score, log_importance_weights) = for_target(target, score, &other_weights);
        let loss_weight = selector.loss.map(|term| term.log_weight(score.loss));
        let held_out = selector.is_held_out(&document.id);
        SelectedDocument {
            offset,
            document,
            score,
            target,
            log_importance_weights,
            selection_key,
            inclusion_probability,
            sample_weight,
            loss_weight,
            tenth,
            held_out,
        }
    }
}

/// `log_weights`: of all candidates, for each target.
fn decisions(chosen: Vec<Chosen>, log_weights: &[&[f64]]) -> Vec<Decision> {
    let tenths: Vec<Tenths> = log_weights.iter().map(|weights| Tenths::of(weights.to_vec())).collect();
    let decision = |Chosen { number, offset, target, key, inclusion_probability, ratio }: Chosen| {
        let tenth = tenths[target as usize].of_weight(log_weights[target as usize][number as usize]);
        let sample_weight = ratio / inclusion_probability;
        Decision { offset, target, tenth, selection_key: key, inclusion_probability, sample_weight }
    };
    // In the same memory.
    chosen.into_iter().map(decision).collect()
}

/// Counts what was selected: sources, and n-grams by target.
struct SelectionCounter<'a> {
    counts: Vec<NgramCounts>,
    sources: &'a mut SourceCounts,
    /// Of the documents at the offsets `compared`.
    fingerprints: Vec<(i64, Fingerprint)>,
    compared: Vec<i64>,
    selector: &'a SelectorSettings,
    featuriser: &'a Featuriser,
    scratch: Scratch,
}

impl SelectionCounter<'_> {
    fn whole(&mut self, candidates: Vec<Candidate>, decisions: Vec<Decision>) -> Vec<SelectedDocument> {
        let selected = |(candidate, decision): (Candidate, Decision)| {
            let Candidate { document, score, other_weights, buckets, .. } = candidate;
            self.count(decision.target, decision.offset, &document, buckets.as_ref());
            decision.of(SpooledRow { document, score, other_weights, point: Vec::new() }, self.selector)
        };
        candidates.into_iter().zip(decisions).map(selected).collect()
    }

    fn waiting<E>(
        &mut self,
        numbers: &[u32],
        decisions: &[Decision],
        rows: impl FnOnce(&[u32], &mut dyn FnMut(&SpooledRow)) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = decisions.iter();
        rows(numbers, &mut |row| {
            let decision = left.next().expect("no more rows come back than were asked for");
            self.count(decision.target, decision.offset, &row.document, None);
        })?;
        assert_eq!(left.len(), 0, "rows that were asked for did not come back");
        Ok(())
    }

    fn count(&mut self, target: u32, offset: i64, document: &Document, buckets: Option<&BucketList>) {
        let SelectionCounter { featuriser, scratch, .. } = self;
        if self.compared.binary_search(&offset).is_ok() {
            self.fingerprints.push((offset, Fingerprint::of(buckets, &document.text, featuriser, scratch)));
        }
        let counts = &mut self.counts[target as usize];
        match buckets {
            // What is held out must not say what is selected next.
            _ if self.selector.is_held_out(&document.id) => {}
            Some(buckets) => counts.add_list(buckets),
            None => {
                counts.add_text(&document.text, featuriser, scratch);
            }
        }
        self.sources.selected(document.source.as_deref());
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
