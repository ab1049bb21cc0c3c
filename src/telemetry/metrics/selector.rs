//! What becomes of strata, sensitivities and shares of sources, where they are configured; else none of these has a series. Labels
//! take names of the configuration: sources that have a share are few.

use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::{counters, gauges, register};
use crate::select::{SelectorSettings, Tail};
use crate::window::CoverageSummary;

pub struct SelectorMetrics {
    window_strata: IntGaugeVec,
    cut_off: IntCounterVec,
    shortfall: IntCounterVec,
    source_share: GaugeVec,
}

impl SelectorMetrics {
    pub(super) fn new(r: &Registry) -> Self {
        SelectorMetrics {
            window_strata: gauges(
                r,
                "window_strata",
                "Strata of the last window: those that have documents, and those of them that something was selected from.",
                &["of"],
            ),
            cut_off: counters(
                r,
                "cut_off_documents_total",
                "Documents that the cut-off of a coverage selection removes, by the end of the scores that it is at.",
                "tail",
                &[],
            ),
            shortfall: counters(
                r,
                "shortfall_documents_total",
                "Documents that windows lacked to select as many as were wanted: too many lack a number or an embedding, or are cut off.",
                "selector",
                &[],
            ),
            source_share: register(
                r,
                GaugeVec::new(
                    Opts::new(
                        "winnowd_source_share_ratio",
                        "Share of the selection of each source, or value of selection.quota_field, that has one: wanted, and of all windows since the \
                         last beginning at the checkpoints.",
                    ),
                    &["source", "of"],
                ),
            ),
        }
    }

    /// What can be known before the first window.
    pub fn begin(&self, selector: &SelectorSettings) {
        if selector.coverage.is_some() || selector.sensitivity.is_some() {
            self.shortfall.with_label_values(&[selector.name()]);
        }
        if let Some(tail) = tail(selector) {
            self.cut_off.with_label_values(&[tail]);
        }
        for (source, share) in &selector.quotas.sources {
            self.source_share.with_label_values(&[source, "wanted"]).set(*share);
        }
    }

    pub fn show_strata(&self, summary: &CoverageSummary, selector: &SelectorSettings) {
        let strata = || summary.pools.iter().flat_map(|pool| &pool.strata);
        let n_selected_from = strata().filter(|stratum| stratum.n_selected > 0).count();
        for (of, n) in [("documents", strata().count()), ("selected", n_selected_from)] {
            self.window_strata.with_label_values(&[of]).set(n as i64);
        }
        if let Some(tail) = tail(selector) {
            self.cut_off.with_label_values(&[tail]).inc_by(summary.n_cut);
        }
        self.count_shortfall(summary.shortfall, selector);
    }

    pub fn count_shortfall(&self, n: u64, selector: &SelectorSettings) {
        self.shortfall.with_label_values(&[selector.name()]).inc_by(n);
    }

    pub fn show_share(&self, source: &str, share: f64) {
        self.source_share.with_label_values(&[source, "selected"]).set(share);
    }
}

/// The end of the scores that is cut off, if one is.
fn tail(selector: &SelectorSettings) -> Option<&'static str> {
    let cutoff = selector.coverage.as_ref()?.settings.cutoff?;
    Some(if cutoff.tail == Tail::Low { "low" } else { "high" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::window::{PoolStrata, StratumSummary};

    fn selector(of_selection: &str) -> SelectorSettings {
        let toml = format!("model.path = \"none\"\n[selection]\n{of_selection}");
        Config::from_toml(&toml, []).unwrap().selector
    }

    #[test]
    fn only_what_is_configured_has_series() {
        let text = |of_selection: &str, summary: Option<&CoverageSummary>| {
            let (registry, selector) = (Registry::new(), selector(of_selection));
            let metrics = SelectorMetrics::new(&registry);
            metrics.begin(&selector);
            if let Some(summary) = summary {
                (0..2).for_each(|_| metrics.show_strata(summary, &selector));
                metrics.show_share("web", 0.25);
            }
            prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
        };
        assert_eq!(text("fraction = 0.1", None), "");
        let sensitivity = text("selector = \"sensitivity\"", None);
        assert!(sensitivity.contains("winnowd_shortfall_documents_total{selector=\"sensitivity\"} 0"), "{sensitivity}");
        assert!(!sensitivity.contains("strata") && !sensitivity.contains("cut_off"), "{sensitivity}");

        let coverage = "selector = \"coverage\"\nimportance = \"loss\"\ncutoff = 0.1\nsources.web = 0.5";
        let begun = text(coverage, None);
        for expected in [
            "winnowd_shortfall_documents_total{selector=\"coverage\"} 0",
            "winnowd_cut_off_documents_total{tail=\"high\"} 0",
            "winnowd_source_share_ratio{of=\"wanted\",source=\"web\"} 0.5",
        ] {
            assert!(begun.contains(expected), "`{expected}` is not in:\n{begun}");
        }
        assert!(!begun.contains("winnowd_window_strata") && !begun.contains("of=\"selected\""), "{begun}");

        let stratum =
            |stratum, n_selected| StratumSummary { stratum, n_documents: 5, n_selected, thresholds: Vec::new() };
        let pool = |source: Option<&str>, strata| PoolStrata {
            source: source.map(str::to_owned),
            range: Some((0.0, 1.0)),
            strata,
        };
        let pools = vec![pool(None, vec![stratum(0, 3), stratum(7, 0)]), pool(Some("web"), vec![stratum(2, 3)])];
        let summary =
            CoverageSummary { n_without_number: 0, n_cut: 4, cut_at: Some(0.9), shortfall: 2, pools, edges: None };
        let shown = text(coverage, Some(&summary));
        for expected in [
            "winnowd_window_strata{of=\"documents\"} 3",
            "winnowd_window_strata{of=\"selected\"} 2",
            "winnowd_shortfall_documents_total{selector=\"coverage\"} 4",
            "winnowd_cut_off_documents_total{tail=\"high\"} 8",
            "winnowd_source_share_ratio{of=\"selected\",source=\"web\"} 0.25",
        ] {
            assert!(shown.contains(expected), "`{expected}` is not in:\n{shown}");
        }
    }
}
