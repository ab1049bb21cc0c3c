//! Where a document stands in a window that was spread over strata.

use std::cmp::Ordering;
use std::fmt::Write;

use serde::Serialize;

use super::witness::{Contenders, SeenDocument};
use crate::select::{
    CoverageSelector, Criterion, Cutoff, Division, Edges, FixedCutoff, SelectorSettings, StrataRounding, Tail, Within,
};
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
    /// Chance that any were, over how budgets are rounded at random.
    pub chance: f64,
    /// For each target in turn the best key that it left; `null` when nothing was left, or nothing was to be chosen.
    pub thresholds: Vec<Option<f64>>,
    /// For each target the best key of its other documents, where nothing was to be selected of it by chance: what one
    /// more would have had to beat.
    #[serde(skip)]
    best_others: Vec<Option<f64>>,
}

/// A window's strata.
pub(super) struct Strata<'a> {
    selector: &'a CoverageSelector,
    summary: &'a CoverageSummary,
    /// Of each pool, as the summary has them: chance that anything is selected of a stratum.
    chances: Vec<Vec<f64>>,
}

impl<'a> Strata<'a> {
    /// `None` where a window is not spread over strata. `n_documents`: of the window.
    pub fn of(
        settings: &'a SelectorSettings,
        summary: Option<&'a CoverageSummary>,
        division: &Division,
        n_documents: u64,
    ) -> Option<Self> {
        let (selector, summary) = (settings.coverage.as_ref()?, summary?);
        let sizes_of = |pool: &PoolStrata| pool.strata.iter().map(|stratum| stratum.n_documents).collect();
        let sizes: Vec<Vec<u64>> = summary.pools.iter().map(sizes_of).collect();
        let chances = selector.strata_rounding.chances(division, settings.fraction, n_documents, &sizes);
        Some(Strata { selector, summary, chances })
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
            ExplainedCutoff {
                by: cutoff_by.to_string(),
                value,
                tail,
                n_cut: self.summary.n_cut,
                cut_at: self.summary.cut_at,
                is_cut: value.is_some_and(|value| self.is_cut(offset, value, tail, contenders)),
            }
        });
        let is_in_one = of_importance.is_some() && cutoff.as_ref().is_none_or(|cut| cut.value.is_some() && !cut.is_cut);
        let stratum = of_importance.filter(|_| is_in_one);
        let stratum = stratum.and_then(|value| self.stratum(pool, (offset, value), contenders));
        ExplainedStrata { importance: importance.to_string(), value: of_importance, cutoff, stratum }
    }

    fn is_cut(&self, offset: i64, value: f64, tail: Tail, contenders: &Contenders) -> bool {
        let Some(at) = self.summary.cut_at else { return false };
        if self.summary.edges.is_some() {
            return FixedCutoff { tail, at }.removes(value);
        }
        match value.total_cmp(&at) {
            // Some with the score of the last one that went have stayed.
            Ordering::Equal => contenders.n_cut_before(offset, value, tail) < self.summary.n_cut,
            order => (order == Ordering::Greater) == (tail == Tail::High),
        }
    }

    fn stratum(
        &self,
        pool: usize,
        (offset, importance): (i64, f64),
        contenders: &Contenders,
    ) -> Option<ExplainedStratum> {
        let settings = &self.selector.settings;
        let PoolStrata { range, strata, .. } = self.summary.pools.get(pool)?;
        let (low, high) = (*range)?;
        let edges = Edges::new(low, high, settings.strata);
        let number = edges.stratum(importance);
        let place = strata.iter().position(|stratum| stratum.stratum as usize == number)?;
        let StratumSummary { stratum, n_documents, n_selected, thresholds } = &strata[place];
        let (from, to) = edges.bounds(number);
        // Rounded down nothing was left to chance but the budget of the pool.
        let is_chance = *n_selected > 0 || self.selector.strata_rounding == StrataRounding::Random;
        let is_other = |other: i64, importance: f64, cutoff: Option<f64>| {
            let is_cut = |Cutoff { tail, .. }| cutoff.is_some_and(|value| self.is_cut(other, value, tail, contenders));
            other != offset && edges.stratum(importance) == number && !settings.cutoff.is_some_and(is_cut)
        };
        let best_other = |target| contenders.best_key(target, pool, is_other);
        let is_told = *n_selected == 0 && is_chance && settings.within == Within::Weighted;
        let n_told = if is_told { thresholds.len() } else { 0 };
        Some(ExplainedStratum {
            stratum: *stratum,
            of: settings.strata,
            from,
            to,
            within: settings.within,
            n_documents: *n_documents,
            budget: *n_selected,
            chance: if is_chance { self.chances[pool][place] } else { 0.0 },
            thresholds: thresholds.clone(),
            best_others: (0..n_told).map(best_other).collect(),
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

    /// Chance of being selected by the thresholds, times that of the stratum to select anything; where it selected
    /// nothing by chance, as if it had selected one. Of what several targets compete for, that of the selected
    /// documents is lower: see [`crate::select::chance_in_turns`].
    pub fn inclusion_probability(&self, selector: &SelectorSettings, total_log_weights: &[f64]) -> f64 {
        let Some(stratum) = &self.stratum else { return 0.0 };
        let ExplainedStratum { within, n_documents, budget, chance, thresholds, best_others, .. } = stratum;
        let given_budget = match within {
            Within::Uniform => (*budget).max(1) as f64 / (*n_documents).max(1) as f64,
            Within::Weighted if *budget == 0 => {
                let of_target = |(weight, key): (&f64, &Option<f64>)| selector.inclusion_probability(*weight, *key);
                total_log_weights.iter().zip(best_others).map(of_target).fold(0.0, f64::max)
            }
            Within::Weighted => {
                // Where something was left, a target without a threshold had nothing to choose.
                let is_emptied = budget == n_documents;
                let of_target = |(weight, threshold): (&f64, &Option<f64>)| {
                    (is_emptied || threshold.is_some()).then(|| selector.inclusion_probability(*weight, *threshold))
                };
                total_log_weights.iter().zip(thresholds).filter_map(of_target).fold(0.0, f64::max)
            }
        };
        chance * given_budget
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
        let ExplainedStratum { stratum: number, of, from, to, n_documents, budget, chance, thresholds, .. } = stratum;
        let (importance, value) = (&self.importance, self.value.unwrap_or_default());
        write!(text, "its {importance} {value:.6} puts it into stratum {number} of {of} ({from:.6} to {to:.6}), ")?;
        if *budget == 0 {
            write!(text, "of whose {n_documents} documents none was to be selected")?;
            if *chance > 0.0 {
                write!(text, ": its share is below one, and something is selected with probability {chance:.6}")?;
            }
            return Ok(());
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::features::Featuriser;
    use crate::record::{Document, TopicPartition};
    use crate::score::{ImportanceWeight, Model, NgramCounts, Score, Side, Target, VersionedWeight, WeightVersion};
    use crate::select::{CoverageSettings, Noise, Quotas, SelectorKind};
    use crate::window::{
        CloseReason, ClosedWindow, Content, Decision, OpenWindow, Opening, ScoredDocument, ScoredRecord, SpooledRow,
        WindowPolicy,
    };

    const BUCKETS: usize = 2;

    fn of_two_targets() -> Model {
        let side = || Side::of(NgramCounts::from_vec(vec![1; BUCKETS]));
        let featuriser = Featuriser { buckets: BUCKETS as u32, ..Featuriser::default() };
        let one = Model::of_one_target(featuriser, side(), side()).unwrap();
        let target = |name: &str| Target { name: name.to_owned(), proportion: 0.5, side: side() };
        Model { targets: vec![target("prose"), target("code")], ..one }
    }

    fn selector(fraction: &str) -> SelectorSettings {
        let settings = CoverageSettings { strata: 2, cutoff: None, within: Within::Weighted, clip: 0.0 };
        let importance = Criterion::Field("hard".to_owned());
        SelectorSettings {
            kind: SelectorKind::ImportanceResampling,
            fraction: fraction.parse().unwrap(),
            unit: Default::default(),
            temperature: 1.0,
            length_normalise: false,
            min_tokens: 0,
            seed: 3,
            quotas: Quotas::default(),
            loss: None,
            filter: None,
            holdout: None,
            coverage_sample: 0,
            coverage: Some(CoverageSelector {
                settings,
                cutoff_by: importance.clone(),
                importance,
                edges_from: Default::default(),
                strata_rounding: StrataRounding::Random,
            }),
            sensitivity: None,
        }
    }

    fn score(log_importance_weight: f64) -> Score {
        Score {
            n_tokens: 2,
            counted_tokens: None,
            log_importance_weight,
            loss: None,
            expected_loss_weight: 0.0,
            expected_loss: None,
        }
    }

    /// A window of documents with these numbers and weights for both targets, from offset 0 on.
    fn close(documents: &[(f64, [f64; 2])], selector: &SelectorSettings) -> ClosedWindow {
        let (model, at) = (of_two_targets(), TopicPartition::new("docs", 0));
        let weight = VersionedWeight::of_targets(WeightVersion::default(), ImportanceWeight::of_targets(&model), None);
        let (noise, division) = (Noise::new(selector.seed, &at), Arc::new(Division::of(&selector.quotas, &model)));
        let policy = WindowPolicy { max_documents: 100, max_bytes: u64::MAX, max_age_ms: i64::MAX };
        let opening = Opening { division: &division, clusters: None, edges: None, buckets: BUCKETS };
        let mut window = OpenWindow::new(at, 0, &policy, selector, opening);
        let mut rows = Vec::new();
        for (offset, (hard, weights)) in (0..).zip(documents) {
            let (id, text) = (offset.to_string(), "two words".to_owned());
            let document = Document { id, text, source: None, timestamp_ms: None, metadata: None };
            let scored = ScoredDocument {
                content: Content::Whole(document),
                score: score(weights[0]),
                other_weights: vec![weights[1]],
                numbers: [*hard, f64::NAN],
                point: None,
                pool: None,
                is_counted: true,
                refused_by: None,
                fingerprint: None,
                buckets: None,
            };
            let record = ScoredRecord { offset, record_timestamp_ms: None, payload_bytes: 1, outcome: Ok(scored) };
            rows.extend(window.push(record, &weight, selector, &noise));
        }
        let show = |numbers: &[u32], look: &mut dyn FnMut(&SpooledRow)| -> Result<_, Infallible> {
            numbers.iter().for_each(|number| look(&rows[*number as usize]));
            Ok(())
        };
        let Ok(closed) = window.close_with(CloseReason::Idle, selector, &noise, &model.target_distribution(), show);
        closed
    }

    proptest! {
        /// At least what the window has for what it selects, of which targets took more than the thresholds tell. What
        /// it leaves is not certain, though a target had nothing to choose.
        #[test]
        fn of_several_targets_those_count_that_had_something_to_choose(
            documents in proptest::collection::vec((0u8..4, -1.0f64..1.0, -1.0f64..1.0), 1..12),
            tenths in 1u32..10,
        ) {
            let documents: Vec<_> = documents.into_iter().map(|(hard, a, b)| (f64::from(hard), [a, b])).collect();
            let selector = selector(&format!("0.{tenths}"));
            let closed = close(&documents, &selector);
            let (division, n) = (Division::of(&selector.quotas, &of_two_targets()), documents.len() as u64);
            let strata = Strata::of(&selector, closed.summary.coverage.as_ref(), &division, n).unwrap();
            for (offset, (hard, weights)) in (0..).zip(&documents) {
                let seen = SeenDocument {
                    score: score(weights[0]),
                    log_importance_weights: weights.to_vec(),
                    numbers: [*hard, f64::NAN],
                    point: None,
                    placed: None,
                    refused_by: None,
                };
                let explained = strata.explain((offset, &seen, weights[0]), 0, &Contenders::default());
                let probability = explained.inclusion_probability(&selector, weights);
                match closed.waiting.iter().find(|decision| decision.offset == offset) {
                    Some(Decision { inclusion_probability: of_window, .. }) => {
                        prop_assert!(*of_window > 0.0 && *of_window < probability + 1e-12);
                    }
                    None => prop_assert!(probability > 0.0 && probability < 1.0, "{:?}", explained),
                }
            }
        }
    }

    /// Of a stratum whose budget came to 0 by chance, what chance its documents had; rounded down, as before that was
    /// recorded, none.
    #[test]
    fn a_stratum_that_went_empty_is_explained_with_its_chance() {
        // Strata of 6 and 5 documents, of which one is selected, or in one window of ten two.
        let documents: Vec<_> = (0..11).map(|i| (f64::from(i % 2), [0.0, 0.0])).collect();
        for (strata_rounding, chance) in [(StrataRounding::Random, 0.55), (StrataRounding::Down, 0.0)] {
            let mut n_empty = 0;
            for seed in 0..20 {
                let mut selector = SelectorSettings { seed, ..selector("0.1") };
                let coverage = selector.coverage.as_mut().unwrap();
                (coverage.settings.within, coverage.strata_rounding) = (Within::Uniform, strata_rounding);
                let closed = close(&documents, &selector);
                let division = Division::of(&selector.quotas, &of_two_targets());
                let summary = closed.summary.coverage.as_ref();
                let strata = Strata::of(&selector, summary, &division, 11).unwrap();
                for (offset, hard, n) in [(0, 0.0, 6.0), (1, 1.0, 5.0)] {
                    let seen = SeenDocument {
                        score: score(0.0),
                        log_importance_weights: vec![0.0; 2],
                        numbers: [hard, f64::NAN],
                        point: None,
                        placed: None,
                        refused_by: None,
                    };
                    let explained = strata.explain((offset, &seen, 0.0), 0, &Contenders::default());
                    if explained.stratum.as_ref().unwrap().budget > 0 {
                        continue;
                    }
                    n_empty += 1;
                    let probability = explained.inclusion_probability(&selector, &[0.0; 2]);
                    assert!((probability - chance / n).abs() < 1e-12, "{probability}: {explained:?}");
                    let words = explained.in_words(&[0.0; 2], None);
                    assert_eq!(words.contains("with probability 0.550000"), chance > 0.0, "{words}");
                }
            }
            assert!(n_empty > 0, "no stratum went empty");
        }
    }
}
