//! Where a document stands in a window that was spread over strata.

use std::fmt::Write;

use serde::Serialize;

use super::witness::{Contenders, SeenDocument};
use crate::select::{CoverageSelector, Criterion, Cutoff, Edges, FixedCutoff, SelectorSettings, Tail, Within};
use crate::window::{CoverageSummary, PoolStrata, StratumSummary};

/// What strata say of one document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedStrata {
    /// What strata are bands of: `weight`, or a field of the record.
    pub importance: String,
    /// The document's; `null`: it lacks the number.
    pub value: Option<f64>,
    pub cutoff: Option<ExplainedCutoff>,
    /// `null`: it is in none, as it lacks a number or is cut off.
    pub stratum: Option<ExplainedStratum>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedCutoff {
    pub by: String,
    pub value: Option<f64>,
    pub tail: Tail,
    /// How many documents of the window it removed, and the value of the last one.
    pub n_cut: u64,
    pub cut_at: Option<f64>,
    pub is_cut: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedStratum {
    /// From 0, and of how many.
    pub stratum: u32,
    pub of: u32,
    /// Importance; what lies beyond the first or the last stratum belongs to it.
    pub from: f64,
    pub to: f64,
    pub within: Within,
    pub n_documents: u64,
    /// How many were to be selected of it.
    pub budget: u64,
    /// For each target in turn the best key that it left; `null` when nothing was left, or nothing was to be chosen.
    pub thresholds: Vec<Option<f64>>,
}

/// A window's strata.
pub(super) struct Strata<'a> {
    pub selector: &'a CoverageSelector,
    pub summary: &'a CoverageSummary,
}

impl<'a> Strata<'a> {
    /// `None` where a window is not spread over strata.
    pub fn of(selector: &'a SelectorSettings, summary: Option<&'a CoverageSummary>) -> Option<Self> {
        Some(Strata { selector: selector.coverage.as_ref()?, summary: summary? })
    }

    /// `weight`: the total log weight for the first target.
    pub fn explain(
        &self,
        (offset, document, weight): (i64, &SeenDocument, f64),
        pool: usize,
        contenders: &Contenders,
    ) -> ExplainedStrata {
        let CoverageSelector { settings, importance, cutoff_by, .. } = self.selector;
        let value = |criterion: &Criterion, which: usize| match criterion {
            Criterion::Weight => Some(weight),
            Criterion::Field(_) => Some(document.numbers[which]).filter(|number| number.is_finite()),
        };
        let of_importance = value(importance, 0);
        let cutoff = settings.cutoff.map(|Cutoff { tail, .. }| {
            let value = value(cutoff_by, 1);
            let is_removed = |value| match (self.summary.edges, self.summary.cut_at) {
                (Some(_), cut_at) => cut_at.is_some_and(|at| FixedCutoff { tail, at }.removes(value)),
                (None, _) => contenders.n_cut_before(offset, value, tail) < self.summary.n_cut,
            };
            ExplainedCutoff {
                by: cutoff_by.to_string(),
                value,
                tail,
                n_cut: self.summary.n_cut,
                cut_at: self.summary.cut_at,
                is_cut: value.is_some_and(is_removed),
            }
        });
        let is_in_one = of_importance.is_some() && cutoff.as_ref().is_none_or(|cut| cut.value.is_some() && !cut.is_cut);
        let stratum = of_importance.filter(|_| is_in_one).and_then(|value| self.stratum(pool, value));
        ExplainedStrata { importance: importance.to_string(), value: of_importance, cutoff, stratum }
    }

    fn stratum(&self, pool: usize, importance: f64) -> Option<ExplainedStratum> {
        let settings = &self.selector.settings;
        let PoolStrata { range, strata, .. } = self.summary.pools.get(pool)?;
        let (low, high) = (*range)?;
        let edges = Edges::new(low, high, settings.strata);
        let number = edges.stratum(importance);
        let StratumSummary { stratum, n_documents, n_selected, thresholds } =
            strata.iter().find(|stratum| stratum.stratum as usize == number)?;
        let (from, to) = edges.bounds(number);
        Some(ExplainedStratum {
            stratum: *stratum,
            of: settings.strata,
            from,
            to,
            within: settings.within,
            n_documents: *n_documents,
            budget: *n_selected,
            thresholds: thresholds.clone(),
        })
    }
}

impl ExplainedStrata {
    /// The number that it lacks.
    pub fn lacks(&self) -> Option<&str> {
        let of_cutoff = self.cutoff.as_ref().filter(|cutoff| cutoff.value.is_none()).map(|cutoff| cutoff.by.as_str());
        if self.value.is_none() { Some(&self.importance) } else { of_cutoff }
    }

    pub fn is_cut(&self) -> bool {
        self.cutoff.as_ref().is_some_and(|cutoff| cutoff.is_cut)
    }

    /// Chance of being selected, but for that of the window to select anything.
    pub fn inclusion_probability(&self, selector: &SelectorSettings, total_log_weights: &[f64]) -> f64 {
        let Some(ExplainedStratum { within, n_documents, budget, thresholds, .. }) = &self.stratum else { return 0.0 };
        match within {
            _ if *budget == 0 => 0.0,
            Within::Uniform => *budget as f64 / (*n_documents).max(1) as f64,
            Within::Weighted => {
                let of_target =
                    |(weight, threshold): (&f64, &Option<f64>)| selector.inclusion_probability(*weight, *threshold);
                total_log_weights.iter().zip(thresholds).map(of_target).fold(0.0, f64::max)
            }
        }
    }

    /// `by`: the number of the target that selected it, and its key.
    pub fn in_words(&self, keys: &[f64], by: Option<usize>) -> String {
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = self.write(keys, by, &mut text);
        text
    }

    fn write(&self, keys: &[f64], by: Option<usize>, text: &mut String) -> std::fmt::Result {
        if let Some(field) = self.lacks() {
            return write!(text, "it has no number `{field}`, which strata need");
        }
        if let Some(ExplainedCutoff { by, value: Some(value), tail, n_cut, cut_at: Some(cut_at), is_cut: true }) =
            &self.cutoff
        {
            let (end, beyond) = if *tail == Tail::High { ("highest", "from") } else { ("lowest", "up to") };
            return write!(
                text,
                "its {by} {value:.6} is among the {n_cut} {end}, which the cut-off removes: {beyond} {cut_at:.6}"
            );
        }
        let Some(stratum) = &self.stratum else { return write!(text, "it is in no stratum") };
        let ExplainedStratum { stratum: number, of, from, to, n_documents, budget, thresholds, .. } = stratum;
        let (importance, value) = (&self.importance, self.value.unwrap_or_default());
        write!(text, "its {importance} {value:.6} puts it into stratum {number} of {of} ({from:.6} to {to:.6}), ")?;
        if *budget == 0 {
            return write!(text, "of whose {n_documents} documents none was to be selected");
        }
        write!(text, "of whose {n_documents} documents {budget} were selected")?;
        // That of the target that selected it, or of all that did not.
        for (target, (key, threshold)) in keys.iter().zip(thresholds).enumerate() {
            let Some(threshold) = threshold.filter(|_| by.is_none_or(|by| by == target)) else { continue };
            let is = if by.is_some() { "is above" } else { "is not above" };
            write!(text, "; its key {key:.6} {is} the threshold {threshold:.6}, the best that was not selected")?;
        }
        Ok(())
    }
}
