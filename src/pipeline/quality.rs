//! How good the selection is, window by window and since the beginning at the checkpoints, for metrics and status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;
use crate::config::Against;
use crate::score::{Model, NgramCounts};
use crate::select::{Diagnostics, SourceCounts};
use crate::telemetry::Lack;
use crate::window::ClosedWindow;

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
    sources: SourceCounts,
    /// The target's frequent n-grams, by bucket.
    ngrams: BTreeMap<u32, Vec<String>>,
    /// Whether there is more than was shown, and when that was.
    is_behind: bool,
    shown: Option<Instant>,
}

impl Quality {
    pub fn new(model: &Model) -> Self {
        let zero = NgramCounts::zero(model.featuriser.buckets as usize);
        Quality {
            raw: zero.clone(),
            selected: zero,
            sources: SourceCounts::default(),
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
        self.raw.merge(&closed.raw_counts);
        self.selected.merge(&closed.selected_counts);
        self.sources.merge(&closed.sources);
        if let Some(kl_reduction) = summary.kl_reduction {
            metrics.window_kl_reduction.set(kl_reduction);
        }
        let random = (&metrics.window_random_kl_reduction, summary.random_kl_reduction);
        let diagnostics = summary.diagnostics.unwrap_or_default();
        let numbers = [
            random,
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
        // Weights against what was selected take the best of a window on purpose, and correct themselves after it.
        let change = match shared.config.against {
            Against::Selected { .. } => None,
            Against::Raw => {
                metrics.collapsed_windows.inc_by(diagnostics.is_collapsed.into());
                let mut collapse = shared.collapse.lock().unwrap_or_else(PoisonError::into_inner);
                collapse.observe(&diagnostics, shared.config.selector.length_normalise)
            }
        };
        let mut status = shared.telemetry.status();
        match change {
            Some(Change::Collapsed(warning)) => {
                tracing::warn!("window {}: {warning}", summary.id());
                status.warning = Some(warning);
            }
            Some(Change::Recovered) => {
                tracing::info!("the last {RECOVERED_AFTER} windows were samples again, not collapsed ones");
                status.warning = None;
            }
            None => {}
        }
        status.sources = self.sources.top(TOP_SOURCES);
        status.last_window = Some(summary.clone());
        self.is_behind = true;
    }

    /// Shows how far the sums are from the target, unless that was done lately.
    pub fn show_if_due(&mut self, shared: &Shared) {
        if !self.is_behind || self.shown.is_some_and(|shown| shown.elapsed() < SHOW_EVERY) {
            return;
        }
        if self.selected.total() > 0 {
            let target = &shared.model.target;
            let divergence = (target.divergence_from(&self.raw), target.divergence_from(&self.selected));
            let metrics = &shared.telemetry.metrics;
            metrics.kl_reduction.set(divergence.0 - divergence.1);
            metrics.target_divergence.with_label_values(&["stream"]).set(divergence.0);
            metrics.target_divergence.with_label_values(&["selected"]).set(divergence.1);
        }
        let lacking = self.lacking(shared);
        shared.telemetry.status().lacking = lacking;
        (self.is_behind, self.shown) = (false, Some(Instant::now()));
    }
}

impl Quality {
    fn lacking(&self, shared: &Shared) -> Vec<Lack> {
        let worst = shared.model.target.largest_parts(&self.selected, N_LACKING);
        let lack = |(bucket, nats)| {
            let ngrams = self.ngrams.get(&bucket).cloned().unwrap_or_default();
            Lack { bucket, ngrams, nats }
        };
        worst.into_iter().map(lack).collect()
    }
}

/// Windows in a row without a collapse that count as recovered.
const RECOVERED_AFTER: u32 = 10;
/// A draw of fewer cannot be told from a collapsed one.
const LEAST_SELECTED: u64 = 11;

/// Says once that draws collapse, and once that they do not any more.
#[derive(Debug, Default)]
pub(super) struct CollapseWatch {
    warned: bool,
    sound_in_a_row: u32,
}

/// Shared by all sessions of a daemon.
pub(super) type SharedCollapseWatch = Mutex<CollapseWatch>;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// With a warning for people.
    Collapsed(String),
    Recovered,
}

impl CollapseWatch {
    pub fn observe(&mut self, diagnostics: &Diagnostics, length_normalised: bool) -> Option<Change> {
        if diagnostics.is_collapsed {
            self.sound_in_a_row = 0;
            let first = !std::mem::replace(&mut self.warned, true);
            let warning = diagnostics.warning("selection.temperature =").filter(|_| first)?;
            let or = if length_normalised { "" } else { ", or try `selection.length_normalise = true`" };
            return Some(Change::Collapsed(format!(
                "{warning}{or}. Windows like this one are counted in winnowd_collapsed_windows_total and not logged again \
                 until {RECOVERED_AFTER} in a row were sound"
            )));
        }
        if diagnostics.n_selected < LEAST_SELECTED || !self.warned {
            return None;
        }
        self.sound_in_a_row += 1;
        if self.sound_in_a_row < RECOVERED_AFTER {
            return None;
        }
        *self = CollapseWatch::default();
        Some(Change::Recovered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collapse_is_told_once_until_it_is_over() {
        let sound = Diagnostics { n_candidates: 1_000, n_selected: 100, ..Diagnostics::default() };
        let collapsed = Diagnostics {
            effective_sample_size: Some(1.5),
            is_collapsed: true,
            suggested_temperature: Some(120.0),
            ..sound
        };
        let tiny = Diagnostics { n_selected: 3, ..sound };
        let mut watch = CollapseWatch::default();
        assert_eq!(watch.observe(&sound, false), None);
        let Some(Change::Collapsed(warning)) = watch.observe(&collapsed, false) else { panic!("the first is told") };
        assert!(warning.contains("`selection.temperature = 120`"), "{warning}");
        assert!(warning.contains("`selection.length_normalise = true`"), "{warning}");
        let Some(Change::Collapsed(warning)) = CollapseWatch::default().observe(&collapsed, true) else {
            panic!("told")
        };
        assert!(!warning.contains("length_normalise"), "it is set already: {warning}");
        for _ in 0..3 {
            assert_eq!(watch.observe(&collapsed, false), None);
            (0..9).for_each(|_| assert_eq!(watch.observe(&sound, false), None));
        }
        assert_eq!(watch.observe(&collapsed, false), None, "nine sound windows are no recovery");
        (0..100).for_each(|_| assert_eq!(watch.observe(&tiny, false), None, "tiny windows say nothing"));
        (0..9).for_each(|_| assert_eq!(watch.observe(&sound, false), None));
        assert_eq!(watch.observe(&sound, false), Some(Change::Recovered));
        assert!(matches!(watch.observe(&collapsed, false), Some(Change::Collapsed(_))));
    }
}
