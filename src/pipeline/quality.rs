//! How good the selection is, window by window and since the beginning at the checkpoints, for metrics and status.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::Shared;
use super::collapse::{Change, RECOVERED_AFTER};
use crate::config::Against;
use crate::score::{DriftMeter, Model, NgramCounts, TargetDistribution};
use crate::select::{Diagnostics, Quotas, SourceCounts, WeightHistogram};
use crate::telemetry::{CoverageStatus, Lack, TargetStatus, WeightsStatus};
use crate::window::{ClosedWindow, SensitivitySummary, SpreadSummary, WindowSummary};

/// Sources that `/status` and manifests name; all others are summed up.
pub(super) const TOP_SOURCES: usize = 20;
/// Buckets that `/status` names of what the selection lacks.
const N_LACKING: usize = 10;

/// How often the divergences of the sums are shown: four logarithms a bucket are too many for every small window.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Sums over everything that was decided since the beginning at the checkpoints.
pub(super) struct Quality {
    raw: NgramCounts,
    selected: NgramCounts,
    /// What each of several targets has selected; nothing of one.
    of_targets: Vec<OfTarget>,
    sources: SourceCounts,
    shares: SourceShares,
    coverage: Option<CoverageStatus>,
    drift: DriftMeter,
    /// The target's frequent n-grams, by bucket.
    ngrams: BTreeMap<u32, Vec<String>>,
    /// Whether there is more than was shown, and when that was.
    is_behind: bool,
    shown: Option<Instant>,
}

struct OfTarget {
    name: String,
    selected: NgramCounts,
    n_selected: u64,
}

/// What was selected of each source, or value of another field, that has a share, and of all.
#[derive(Default)]
struct SourceShares {
    selected: BTreeMap<String, u64>,
    n_selected: u64,
}

impl SourceShares {
    fn of(quotas: &Quotas) -> Self {
        SourceShares { selected: quotas.sources.keys().map(|source| (source.clone(), 0)).collect(), n_selected: 0 }
    }

    /// Those of pools that nobody configured are among all others.
    fn add<'a>(&mut self, selected_of_pools: impl Iterator<Item = (Option<&'a str>, u64)>) {
        for (source, n) in selected_of_pools {
            self.n_selected += n;
            if let Some(selected) = source.and_then(|source| self.selected.get_mut(source)) {
                *selected += n;
            }
        }
    }

    /// Nothing before anything was selected.
    fn shares(&self) -> impl Iterator<Item = (&str, f64)> {
        let selected = self.selected.iter().filter(|_| self.n_selected > 0);
        selected.map(|(source, n)| (source.as_str(), *n as f64 / self.n_selected as f64))
    }
}

impl Quality {
    pub fn new(model: &Model, quotas: &Quotas) -> Self {
        let zero = NgramCounts::zero(model.featuriser.buckets as usize);
        let of_target = |name: &String| OfTarget { name: name.clone(), selected: zero.clone(), n_selected: 0 };
        let names = model.targets.iter().map(|target| &target.name).filter(|_| model.targets.len() > 1);
        Quality {
            of_targets: names.map(of_target).collect(),
            raw: zero.clone(),
            selected: zero.clone(),
            sources: SourceCounts::default(),
            shares: SourceShares::of(quotas),
            coverage: None,
            drift: DriftMeter::new(&model.raw.counts.probabilities(), model.smoothing),
            ngrams: model.target_ngrams(),
            is_behind: false,
            shown: None,
        }
    }

    /// Takes note of a window and shows it.
    pub fn observe(&mut self, closed: &ClosedWindow, shared: &Shared) {
        let metrics = &shared.telemetry.metrics;
        let summary = &closed.summary;
        metrics.windows_closed.with_label_values(&[summary.closed_by.as_str()]).inc();
        if let Some(coverage) = &summary.coverage {
            metrics.documents_without_number.inc_by(coverage.n_without_number);
            metrics.selector.show_strata(coverage, &shared.config.selector);
        }
        if let Some(sensitivity) = &summary.sensitivity {
            observe_sensitivity(sensitivity, shared);
        }
        self.raw.merge(&closed.raw_counts);
        closed.selected_counts.iter().for_each(|counts| self.selected.merge(counts));
        self.sources.merge(&closed.sources);
        self.shares.add(summary.selected_of_pools());
        self.shares.shares().for_each(|(source, share)| metrics.selector.show_share(source, share));
        let n_documents = summary.n_selected + summary.n_rejected - summary.n_too_short;
        if let Some(drift) = self.drift.observe(&closed.raw_counts, n_documents) {
            metrics.window_raw_drift.set(drift);
        }
        if let Some(kl_reduction) = summary.kl_reduction {
            metrics.window_kl_reduction.set(kl_reduction);
        }
        self.observe_coverage(summary.spread, shared);
        let draws = draws(summary);
        show_diagnostics(&draws, summary, shared);
        self.observe_targets(closed, shared);
        let warning = watch_collapses(&draws, summary, shared);
        let weights = weights(closed, shared.config.selector.temperature);
        let mut status = shared.telemetry.status();
        status.warning = warning;
        status.sources = self.sources.top(TOP_SOURCES);
        status.coverage = self.coverage;
        status.last_window = Some(summary.clone());
        if !weights.is_empty() {
            status.weights = weights;
        }
        self.is_behind = true;
    }

    /// Shows what a window covers, and the mean over all that were measured.
    fn observe_coverage(&mut self, spread: Option<SpreadSummary>, shared: &Shared) {
        let Some(spread) = spread else { return };
        let before = self.coverage.map_or((0, 0.0, 0.0), |c| (c.n_windows, c.auc_pr, c.auc_pr_of_random));
        let n_windows = before.0 + 1;
        let mean = |before: f64, now: f64| before + (now - before) / n_windows as f64;
        let (auc_pr, auc_pr_of_random) = (mean(before.1, spread.auc_pr), mean(before.2, spread.auc_pr_of_random));
        self.coverage = Some(CoverageStatus { n_windows, auc_pr, auc_pr_of_random, last_window: spread });
        let metrics = &shared.telemetry.metrics;
        for (gauges, label, value) in [
            (&metrics.window_coverage_distance, "selected", spread.auc_pr),
            (&metrics.window_coverage_distance, "random", spread.auc_pr_of_random),
            (&metrics.coverage_distance, "selected", auc_pr),
            (&metrics.coverage_distance, "random", auc_pr_of_random),
            (&metrics.window_source_entropy, "documents", spread.source_entropy_of_documents),
            (&metrics.window_source_entropy, "selected", spread.source_entropy_of_selected),
        ] {
            gauges.with_label_values(&[label]).set(value);
        }
    }

    fn observe_targets(&mut self, closed: &ClosedWindow, shared: &Shared) {
        let counts = closed.selected_counts.iter().zip(&closed.summary.targets);
        for (of, (counts, summary)) in self.of_targets.iter_mut().zip(counts) {
            of.selected.merge(counts);
            of.n_selected += summary.diagnostics.n_selected;
            shared.telemetry.metrics.of_targets.show_window(summary);
        }
    }

    /// Shows how far the sums are from the target, unless that was done lately.
    pub fn show_if_due(&mut self, shared: &Shared) {
        if !self.is_behind || self.shown.is_some_and(|shown| shown.elapsed() < SHOW_EVERY) {
            return;
        }
        let target = &shared.model.target;
        if self.selected.total() > 0 {
            let divergence = (target.divergence_from(&self.raw), target.divergence_from(&self.selected));
            let metrics = &shared.telemetry.metrics;
            metrics.kl_reduction.set(divergence.0 - divergence.1);
            metrics.target_divergence.with_label_values(&["stream"]).set(divergence.0);
            metrics.target_divergence.with_label_values(&["selected"]).set(divergence.1);
        }
        let (lacking, targets) = (self.lacking(target, &self.selected), self.of_targets(shared));
        {
            let mut status = shared.telemetry.status();
            (status.lacking, status.targets) = (lacking, targets);
        }
        (self.is_behind, self.shown) = (false, Some(Instant::now()));
    }

    /// The same for each of several targets.
    fn of_targets(&self, shared: &Shared) -> Vec<TargetStatus> {
        let of_target = |(of, target): (&OfTarget, &TargetDistribution)| {
            let stream = target.divergence_from(&self.raw);
            let selected = (of.n_selected > 0).then(|| target.divergence_from(&of.selected));
            shared.telemetry.metrics.of_targets.show_divergence(&of.name, stream, selected);
            TargetStatus {
                target: of.name.clone(),
                n_selected: of.n_selected,
                kl_reduction: selected.map(|selected| stream - selected),
                lacking: self.lacking(target, &of.selected),
            }
        };
        self.of_targets.iter().zip(shared.model.target.parts()).map(of_target).collect()
    }

    fn lacking(&self, target: &TargetDistribution, selected: &NgramCounts) -> Vec<Lack> {
        let worst = target.largest_parts(selected, N_LACKING);
        let lack = |(bucket, nats)| {
            let ngrams = self.ngrams.get(&bucket).cloned().unwrap_or_default();
            Lack { bucket, ngrams, nats }
        };
        worst.into_iter().map(lack).collect()
    }
}

/// Where the weights of a window lie, for each target.
fn weights(closed: &ClosedWindow, temperature: f64) -> Vec<WeightsStatus> {
    let summary = &closed.summary;
    let of_target = |(i, histogram): (usize, &Option<WeightHistogram>)| {
        let target = summary.targets.get(i).map(|of| of.target.clone());
        let rest = summary.turns.iter().find(|turn| turn.source.is_none() && turn.target == target);
        let key = summary.threshold.or_else(|| rest.and_then(|turn| turn.threshold));
        let threshold = key.map(|key| key * temperature);
        Some(WeightsStatus { target, histogram: histogram.clone()?, threshold })
    };
    closed.weights.iter().enumerate().filter_map(of_target).collect()
}

/// The diagnostics of a window, for each target.
fn draws(summary: &WindowSummary) -> Vec<Diagnostics> {
    match &summary.targets[..] {
        [] => summary.diagnostics.into_iter().collect(),
        targets => targets.iter().map(|target| target.diagnostics).collect(),
    }
}

fn observe_sensitivity(sensitivity: &SensitivitySummary, shared: &Shared) {
    let metrics = &shared.telemetry.metrics;
    for (reason, n) in [("missing", sensitivity.n_without_embedding), ("dimensions", sensitivity.n_other_dimensions)] {
        metrics.documents_without_embedding.with_label_values(&[reason]).inc_by(n);
    }
    metrics.selector.count_shortfall(sensitivity.shortfall, &shared.config.selector);
    metrics.window_centres.set(sensitivity.n_centres.into());
    let ratios = sensitivity.pools.iter().filter(|pool| pool.sample.selected > 0).map(|pool| pool.sample.ratio);
    // A pool whose weights are far too low is as bad as one whose weights are as many times too high.
    if let Some(ratio) = ratios.max_by(|a, b| a.ln().abs().total_cmp(&b.ln().abs())) {
        metrics.window_weight_ratio.set(ratio);
    }
}

/// Of several targets the one whose weights leave least to chance.
fn show_diagnostics(draws: &[Diagnostics], summary: &WindowSummary, shared: &Shared) {
    let metrics = &shared.telemetry.metrics;
    let share = |d: &Diagnostics| d.effective_sample_share.unwrap_or(1.0);
    let worst = draws.iter().min_by(|a, b| share(a).total_cmp(&share(b)));
    let diagnostics = worst.copied().unwrap_or_default();
    let numbers = [
        (&metrics.window_random_kl_reduction, summary.random_kl_reduction),
        (&metrics.window_effective_sample_ratio, diagnostics.effective_sample_share),
        (&metrics.window_weight_length_correlation, diagnostics.weight_length_correlation),
        (&metrics.window_top_k_overlap_ratio, diagnostics.top_k_overlap),
    ];
    for (gauge, number) in numbers {
        // What cannot be said of this window keeps the number of the one before.
        if let Some(number) = number {
            gauge.set(number);
        }
    }
    for (point, value) in diagnostics.log_weights.iter().flat_map(|q| q.named()) {
        metrics.window_log_weight.with_label_values(&[point]).set(value);
    }
}

/// Counts and logs draws that are no samples; gives what a person should change.
fn watch_collapses(draws: &[Diagnostics], summary: &WindowSummary, shared: &Shared) -> Option<String> {
    // Weights against what was selected take the best of a window on purpose, and correct themselves after it.
    if shared.config.against != Against::Raw {
        return None;
    }
    let is_collapsed = draws.iter().any(|draw| draw.is_collapsed);
    shared.telemetry.metrics.collapsed_windows.inc_by(is_collapsed.into());
    let of_target = |i: usize| summary.targets.get(i).map(|of| format!("target {}: ", of.target)).unwrap_or_default();
    let mut watches = shared.collapse.lock().unwrap_or_else(PoisonError::into_inner);
    for (i, change) in watches.observe(draws, shared.config.selector.length_normalise) {
        match change {
            Change::Collapsed(warning) => {
                tracing::warn!(window = summary.id(), "window {}: {}{warning}", summary.id(), of_target(i));
            }
            Change::Recovered => tracing::info!(
                "{}the last {RECOVERED_AFTER} windows were samples again, not collapsed ones",
                of_target(i)
            ),
        }
    }
    watches.warning().map(|(i, warning)| format!("{}{warning}", of_target(i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_all_windows() {
        let sources = [("books".to_owned(), 0.2), ("web".to_owned(), 0.5)].into();
        let mut shares = SourceShares::of(&Quotas { sources, ..Quotas::default() });
        shares.add([].into_iter());
        assert_eq!(shares.shares().count(), 0, "of nothing there are no shares");
        // Two targets choose from each pool.
        shares.add([(None, 1), (None, 2), (Some("web"), 4), (Some("web"), 1)].into_iter());
        shares.add([(None, 3), (Some("books"), 4), (Some("web"), 5)].into_iter());
        assert_eq!(shares.shares().collect::<Vec<_>>(), [("books", 0.2), ("web", 0.5)]);
        shares.add([(Some("nobody configured it"), 20)].into_iter());
        assert_eq!(shares.shares().collect::<Vec<_>>(), [("books", 0.1), ("web", 0.25)]);
    }
}
