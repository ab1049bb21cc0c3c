//! Between the passes, with `--selector coverage`: cut-off, shares of sources, strata, noise.

use super::draw::{self, Draw, Drawn, Judged, total_weight};
use super::methods::{Coverage, Criterion};
use super::scores::Scores;
use super::{SelectionPlan, Temperature};
use crate::cli::UsageError;
use crate::score::Model;
use crate::select::{
    BudgetRounding, BudgetedSelection, CoveragePlan, CoverageRequest, Covered, DocumentScores, SelectorKind,
    SelectorSettings, StrataRounding, Within, plan_coverage, select_coverage,
};

/// A selection over strata; the picks are those of the draw.
pub struct Strata {
    pub covered: Covered,
    pub coverage: Coverage,
    /// Documents that are long enough but lack a number.
    pub without_number: u64,
    /// Where those of the scores are against what was selected, but cut-off or strata are by the weight: by the document.
    pub against_raw: Option<Vec<f64>>,
}

pub fn draw(scores: &Scores, model: &Model, plan: &SelectionPlan, coverage: &Coverage) -> anyhow::Result<Draw> {
    check(model, plan, coverage)?;
    let candidates = draw::candidates(scores, plan);
    let without_number = without_number(scores, plan, &candidates)?;
    let (requested, mut settings) = draw::settings(scores, model, plan, 1.0)?;
    settings.temperature = draw::temperature(scores, model, plan, &settings, &candidates)?;
    let noise = draw::noise(plan.seed);
    let (pool_shares, target_shares) = shares(model, plan);
    let request = CoverageRequest {
        count: requested,
        settings: coverage.settings,
        pool_shares: &pool_shares,
        target_shares: &target_shares,
        rounding: BudgetRounding::Nearest,
        strata_rounding: StrataRounding::Down,
    };
    let by = &settings;
    let value = |criterion| move |document| value(scores, model, by, criterion, document);
    let key = |document: u32, target| {
        let weight = match coverage.settings.within {
            Within::Uniform => 0.0,
            Within::Weighted => total_weight(scores, model, &settings, document, scores.weight(document, target)),
        };
        settings.key(&noise, document.into(), weight)
    };
    let of_documents =
        DocumentScores { cutoff: &value(coverage.cutoff), importance: &value(coverage.importance), key: &key };
    let mut covered = select_coverage(&request, draw::pools(scores, plan, &candidates), &of_documents);
    let picks = std::mem::take(&mut covered.selection.picks);
    let selection = BudgetedSelection { picks, turns: Vec::new() };
    // Where weights do not decide, no draw by them can collapse.
    let is_uniform = coverage.settings.within == Within::Uniform;
    let kind = if is_uniform { SelectorKind::TopK } else { settings.kind };
    Ok(Draw {
        settings,
        noise,
        requested,
        candidates: candidates.len() as u64,
        selection,
        drawn: Drawn::Strata(Strata { covered, coverage: coverage.clone(), without_number, against_raw: None }),
        probabilities: None,
        correction: None,
        windows: None,
        judged: Judged { kind, candidates },
    })
}

/// Of the pools, and of the targets.
fn shares(model: &Model, plan: &SelectionPlan) -> (Vec<f64>, Vec<f64>) {
    (draw::pool_shares(plan), model.targets.iter().map(|target| target.proportion).collect())
}

/// How many documents are long enough but lack a number.
pub fn without_number(scores: &Scores, plan: &SelectionPlan, candidates: &[u32]) -> Result<u64, UsageError> {
    let long_enough = (0..scores.len() as u32).filter(|&d| scores.is_long_enough(d, plan.min_tokens)).count();
    let without_number = (long_enough - candidates.len()) as u64;
    if candidates.is_empty() && without_number > 0 {
        let fields: Vec<_> = plan.needed_fields().map(|field| format!("`{}`", plan.fields[field])).collect();
        return Err(UsageError(format!("no document has a number in field {}", fields.join(" and "))));
    }
    Ok(without_number)
}

/// What is to be selected of every stratum, for so many and from these candidates. The weights of the scores are against raw.
pub fn planned(
    scores: &Scores,
    model: &Model,
    plan: &SelectionPlan,
    coverage: &Coverage,
    settings: &SelectorSettings,
    (requested, candidates): (u64, &[u32]),
) -> CoveragePlan {
    let (pool_shares, target_shares) = shares(model, plan);
    let request = CoverageRequest {
        count: requested,
        settings: coverage.settings,
        pool_shares: &pool_shares,
        target_shares: &target_shares,
        rounding: BudgetRounding::Nearest,
        strata_rounding: StrataRounding::Down,
    };
    let value = |criterion| move |document| value(scores, model, settings, criterion, document);
    let pools = draw::pools(scores, plan, candidates);
    plan_coverage(&request, pools, &value(coverage.cutoff), &value(coverage.importance))
}

pub fn check(model: &Model, plan: &SelectionPlan, coverage: &Coverage) -> Result<(), UsageError> {
    let wrong = |problem: &str| Err(UsageError(problem.to_owned()));
    let is_uniform = coverage.settings.within == Within::Uniform;
    if model.targets.len() == 1 {
        return match plan.temperature {
            Temperature::Auto(_) if is_uniform => wrong("--temperature auto: --within uniform has no weights"),
            Temperature::Auto(_) | Temperature::Fixed(_) => Ok(()),
        };
    }
    if is_uniform {
        return wrong("--within uniform: several targets choose by their weights; use --within weighted");
    }
    let is_weight = |criterion| criterion == Criterion::Weight;
    if is_weight(coverage.importance) || (coverage.settings.cutoff.is_some() && is_weight(coverage.cutoff)) {
        return wrong("`weight`: a document has one for each of several targets; name a field");
    }
    Ok(())
}

/// A number of a document.
fn value(scores: &Scores, model: &Model, settings: &SelectorSettings, criterion: Criterion, document: u32) -> f64 {
    match criterion {
        Criterion::Weight => total_weight(scores, model, settings, document, scores.weight(document, 0)),
        Criterion::Field(field) => scores.number(document, field),
    }
}

impl Strata {
    pub fn is_uniform(&self) -> bool {
        self.coverage.settings.within == Within::Uniform
    }

    pub fn importance(&self, draw: &Draw, scores: &Scores, model: &Model, document: u32) -> f64 {
        self.value(draw, scores, model, self.coverage.importance, document)
    }

    pub fn cutoff_score(&self, draw: &Draw, scores: &Scores, model: &Model, document: u32) -> Option<f64> {
        self.coverage.settings.cutoff.map(|_| self.value(draw, scores, model, self.coverage.cutoff, document))
    }

    fn value(&self, draw: &Draw, scores: &Scores, model: &Model, criterion: Criterion, document: u32) -> f64 {
        match (criterion, &self.against_raw) {
            (Criterion::Weight, Some(weights)) => {
                total_weight(scores, model, &draw.settings, document, weights[document as usize])
            }
            _ => value(scores, model, &draw.settings, criterion, document),
        }
    }

    /// The number of a document's stratum among all.
    pub fn cell(&self, draw: &Draw, scores: &Scores, model: &Model, document: u32) -> Option<usize> {
        self.covered.cell(scores.pool(document), self.importance(draw, scores, model, document))
    }

    pub fn inclusion_probability(&self, draw: &Draw, scores: &Scores, model: &Model, document: u32) -> f64 {
        let Some(cell) = self.cell(draw, scores, model, document) else { return 0.0 };
        let weight = |target| total_weight(scores, model, &draw.settings, document, scores.weight(document, target));
        let selected_by = draw.selected_by(document);
        self.covered.inclusion_probability(&draw.settings, self.coverage.settings.within, cell, selected_by, weight)
    }
}
