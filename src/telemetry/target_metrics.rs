//! Metrics of models with several targets, one series for each: the label `target` takes the names of the model, of which there
//! are at most [`crate::score::Model::MAX_TARGETS`]. Models with one target have none of them.

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

use super::metrics::register;
use crate::window::{TargetSummary, WindowSummary};

pub struct TargetMetrics {
    selected: IntCounterVec,
    collapsed_windows: IntCounterVec,
    window_kl_reduction: GaugeVec,
    window_effective_sample_ratio: GaugeVec,
    window_weight_length_correlation: GaugeVec,
    window_top_k_overlap_ratio: GaugeVec,
    kl_reduction: GaugeVec,
    divergence: GaugeVec,
}

impl TargetMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        let opts = |name: &str, help: &str| Opts::new(format!("winnowd_by_target_{name}"), help);
        let counter = |name, help| register(r, IntCounterVec::new(opts(name, help), &["target"]));
        let gauge = |name, help| register(r, GaugeVec::new(opts(name, help), &["target"]));
        TargetMetrics {
            selected: counter(
                "selected_documents_total",
                "Documents that a target has selected, published by this process.",
            ),
            collapsed_windows: counter("collapsed_windows_total", "Windows whose draw for a target was no sample."),
            window_kl_reduction: gauge(
                "window_kl_reduction_nats",
                "KL(target, all) - KL(target, what it selected) of the last window with a selection for it.",
            ),
            window_effective_sample_ratio: gauge(
                "window_effective_sample_ratio",
                "Effective sample size of the last window's weights for a target, over its candidates.",
            ),
            window_weight_length_correlation: gauge(
                "window_weight_length_correlation",
                "Pearson's correlation of log weight and length in the last window.",
            ),
            window_top_k_overlap_ratio: gauge(
                "window_top_k_overlap_ratio",
                "Share of what a target selected of the last window that plain top-k takes as well.",
            ),
            kl_reduction: gauge(
                "kl_reduction_nats",
                "KL(target, all) - KL(target, what it selected) over all windows since the beginning at the checkpoints.",
            ),
            divergence: register(
                r,
                GaugeVec::new(
                    opts("divergence_nats", "KL(target, stream) and KL(target, what it selected) of the same windows."),
                    &["target", "of"],
                ),
            ),
        }
    }

    /// What a window is for one target.
    pub fn show_window(&self, TargetSummary { target, kl_reduction, diagnostics }: &TargetSummary) {
        let target = &[target.as_str()];
        self.collapsed_windows.with_label_values(target).inc_by(diagnostics.is_collapsed.into());
        for (gauge, number) in [
            (&self.window_kl_reduction, *kl_reduction),
            (&self.window_effective_sample_ratio, diagnostics.effective_sample_share),
            (&self.window_weight_length_correlation, diagnostics.weight_length_correlation),
            (&self.window_top_k_overlap_ratio, diagnostics.top_k_overlap),
        ] {
            // What cannot be said of this window keeps the number of the one before.
            if let Some(number) = number {
                gauge.with_label_values(target).set(number);
            }
        }
    }

    /// `selected`: `None` while the target has selected nothing, of which nothing can be said.
    pub fn show_divergence(&self, target: &str, stream: f64, selected: Option<f64>) {
        self.divergence.with_label_values(&[target, "stream"]).set(stream);
        if let Some(selected) = selected {
            self.divergence.with_label_values(&[target, "selected"]).set(selected);
            self.kl_reduction.with_label_values(&[target]).set(stream - selected);
        }
    }

    /// Windows that were published.
    pub fn count_published(&self, windows: &[WindowSummary]) {
        for TargetSummary { target, diagnostics, .. } in windows.iter().flat_map(|window| &window.targets) {
            self.selected.with_label_values(&[target]).inc_by(diagnostics.n_selected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_has_selected_nothing_is_not_said_to_be_near_or_far() {
        let registry = Registry::new();
        let metrics = TargetMetrics::new(&registry);
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics");
        metrics.show_divergence("code", 0.5, None);
        assert!(text().contains("divergence_nats{of=\"stream\",target=\"code\"} 0.5"), "{}", text());
        assert!(!text().contains("kl_reduction") && !text().contains("selected\""), "{}", text());
        metrics.show_divergence("code", 0.5, Some(0.125));
        assert!(text().contains("winnowd_by_target_kl_reduction_nats{target=\"code\"} 0.375"), "{}", text());
    }
}
