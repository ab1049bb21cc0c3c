//! What the report says of strata, of sensitivities, and of how well a selection covers what it was selected from.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::SelectionPlan;
use super::covered::Strata;
use super::draw::{Draw, Drawn};
use super::methods::{Criterion, Method};
use super::report::significant;
use super::rows::Written;
use crate::cli::bars::bar;
use crate::record::Base64Floats;
use crate::select::{Cutoff, NearestDistances, SensitivityPool, Stratum, Tail, Within, warning_of_weight};

/// Bands of strata that the terminal shows.
const SHOWN: usize = 10;

/// The selector and its settings.
#[derive(Debug, Serialize)]
#[serde(tag = "selector", rename_all = "snake_case")]
pub enum MethodReport {
    ImportanceResampling,
    TopK,
    Coverage {
        importance: String,
        strata: u32,
        clip: f64,
        within: Within,
        cutoff: Option<CutoffReport>,
    },
    Sensitivity {
        embedding: Option<String>,
        embedding_base64: Option<Base64Floats>,
        loss: Option<String>,
        centres: usize,
        exponent: u32,
        floor: f64,
    },
}

#[derive(Debug, Serialize)]
pub struct CutoffReport {
    field: String,
    #[serde(flatten)]
    cutoff: Cutoff,
}

/// `weight`, or the name of a field.
pub fn name(plan: &SelectionPlan, criterion: Criterion) -> String {
    match criterion {
        Criterion::Weight => "weight".to_owned(),
        Criterion::Field(field) => plan.fields[field].clone(),
    }
}

pub fn method(plan: &SelectionPlan) -> MethodReport {
    match &plan.method {
        Method::Importance if plan.kind == crate::select::SelectorKind::TopK => MethodReport::TopK,
        Method::Importance => MethodReport::ImportanceResampling,
        Method::Coverage(coverage) => MethodReport::Coverage {
            importance: name(plan, coverage.importance),
            strata: coverage.settings.strata,
            clip: coverage.settings.clip,
            within: coverage.settings.within,
            cutoff: coverage.settings.cutoff.map(|cutoff| CutoffReport { field: name(plan, coverage.cutoff), cutoff }),
        },
        Method::Sensitivity(s) => MethodReport::Sensitivity {
            embedding: s.embedding.as_ref().map(|embedding| embedding.field.clone()),
            embedding_base64: s.embedding.as_ref().map(|embedding| embedding.base64),
            loss: s.loss_field.clone(),
            centres: s.centres,
            exponent: s.exponent,
            floor: s.floor,
        },
    }
}

impl MethodReport {
    pub fn name(&self) -> &'static str {
        match self {
            MethodReport::ImportanceResampling => "importance_resampling",
            MethodReport::TopK => "top_k",
            MethodReport::Coverage { .. } => "coverage",
            MethodReport::Sensitivity { .. } => "sensitivity",
        }
    }
}

/// The strata of a selection.
#[derive(Debug, Serialize)]
pub struct StrataReport {
    importance: String,
    /// Documents that lack a number, so that they cannot be selected.
    pub without_number: u64,
    /// Documents that the cut-off removed, and the score of the last one.
    pub cut: u64,
    cut_at: Option<f64>,
    /// Strata that have documents, and those of them that something is selected from.
    occupied: u64,
    selected_from: u64,
    /// One for all sources without a share of their own, and one for each that has one.
    pools: Vec<PoolReport>,
}

#[derive(Debug, Serialize)]
struct PoolReport {
    /// `null`: all sources, or values of `--quota-field`, without a share of their own.
    source: Option<String>,
    /// Ends of the outermost strata; what lies beyond belongs to these.
    low: Option<f64>,
    high: Option<f64>,
    strata: Vec<Stratum>,
}

/// The names of the pools.
fn sources(plan: &SelectionPlan) -> impl Iterator<Item = Option<String>> {
    std::iter::once(None).chain(plan.sources.iter().map(|(source, _)| Some(source.clone())))
}

impl StrataReport {
    pub fn of(strata: &Strata, plan: &SelectionPlan) -> Self {
        let (occupied, selected_from) = strata.covered.occupied();
        let pool = |(pool, source): (&crate::select::CoveredPool, Option<String>)| PoolReport {
            source,
            low: pool.edges.map(|edges| edges.range().0),
            high: pool.edges.map(|edges| edges.range().1),
            strata: pool.strata.clone(),
        };
        StrataReport {
            importance: name(plan, strata.coverage.importance),
            without_number: strata.without_number,
            cut: strata.covered.cut.len() as u64,
            cut_at: strata.covered.cut_at,
            occupied,
            selected_from,
            pools: strata.covered.pools.iter().zip(sources(plan)).map(pool).collect(),
        }
    }

    pub fn add_text(&self, text: &mut String) {
        if self.cut > 0 {
            let _ = writeln!(text, "\nCut off: {} documents, the last at {}", self.cut, shown(self.cut_at));
        }
        for PoolReport { source, low, high, strata } in &self.pools {
            let (Some(low), Some(high)) = (low, high) else { continue };
            let of = source.as_ref().map(|source| format!(" of {source}")).unwrap_or_default();
            let importance = &self.importance;
            let _ = writeln!(text, "\nStrata of `{importance}`{of}, {} of equal width", strata.len());
            let per_band = strata.len().div_ceil(SHOWN);
            for (band, strata_of_band) in strata.chunks(per_band).enumerate() {
                let edge = |stratum: usize| low + (high - low) * stratum as f64 / strata.len() as f64;
                let from = significant(edge(band * per_band));
                let to = significant(edge((band * per_band + per_band).min(strata.len())));
                let documents: u64 = strata_of_band.iter().map(|stratum| stratum.documents).sum();
                let budget: u64 = strata_of_band.iter().map(|stratum| stratum.budget).sum();
                let share = budget as f64 / documents.max(1) as f64;
                let (bar, percent) = (bar(share), 100.0 * share);
                let _ = writeln!(text, "  {from:>8} to {to:<8} {bar} {percent:>5.1} %  {budget:>6} of {documents:>6}");
            }
        }
    }

    /// What to do about strata of the weight.
    pub fn warning(&self) -> Option<String> {
        let cutoff = "--cutoff 0.8 --cutoff-field weight";
        (self.importance == "weight").then(|| warning_of_weight("--importance weight", "--importance", cutoff))
    }
}

fn shown(number: Option<f64>) -> String {
    number.map(significant).unwrap_or_default()
}

/// The priority sample of a selection.
#[derive(Debug, Serialize)]
pub struct SensitivityReport {
    centres: usize,
    /// SHA-256 of the centres, with their losses and their scale.
    centres_digest: String,
    /// Λ.
    scale: f64,
    /// Documents that are long enough but have no embedding, or one of other dimensions than most have: they cannot be selected.
    without_embedding: u64,
    other_dimensions: u64,
    pools: Vec<SensitivityPoolReport>,
}

#[derive(Debug, Serialize)]
struct SensitivityPoolReport {
    source: Option<String>,
    #[serde(flatten)]
    pool: SensitivityPool,
}

impl SensitivityReport {
    pub fn of(of: &super::sensitive::Sensitivities, plan: &SelectionPlan) -> Self {
        let pool = |(pool, source): (&SensitivityPool, _)| SensitivityPoolReport { source, pool: *pool };
        SensitivityReport {
            centres: of.centres.len(),
            centres_digest: format!("sha256:{}", crate::hex(&Sha256::digest(of.centres.to_bytes()))),
            scale: of.centres.scale(),
            without_embedding: of.without_embedding,
            other_dimensions: of.other_dimensions,
            pools: of.drawn.pools.iter().zip(sources(plan)).map(pool).collect(),
        }
    }

    pub fn add_text(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\nSensitivities by {} centres; a unit of distance counts as {} of loss",
            self.centres,
            significant(self.scale)
        );
        for SensitivityPoolReport { source, pool } in &self.pools {
            let of = source.as_ref().map(|source| format!(" of {source}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  documents{of:<16} {:>8}, their scores sum to {}; selected {}, each for itself or more, times {:.4}",
                pool.documents,
                significant(pool.total),
                pool.selected,
                pool.ratio
            );
        }
        if self.rejected() > 0 {
            let _ = writeln!(
                text,
                "  {} documents had no embedding, {} one of other dimensions than most",
                self.without_embedding, self.other_dimensions
            );
        }
    }

    /// Documents whose embedding kept them from being selected.
    pub fn rejected(&self) -> u64 {
        self.without_embedding + self.other_dimensions
    }

    pub fn warning(&self) -> Option<String> {
        (self.rejected() > 0).then(|| {
            format!(
                "{} documents lack an embedding that sensitivity can look at ({} have none, {} another number of numbers than most): they \
                 cannot be selected",
                self.rejected(),
                self.without_embedding,
                self.other_dimensions
            )
        })
    }
}

/// How well the selection covers what it was selected from.
#[derive(Debug, Serialize)]
pub struct Covers {
    /// Mean distance of a document to the nearest selected one, in projected n-grams. Lower covers better.
    auc_pr: Option<f64>,
    auc_pr_of_random: Option<f64>,
    random_documents: u64,
    /// Of the sources, in nats.
    source_entropy_of_documents: f64,
    source_entropy_of_selected: f64,
}

impl Covers {
    pub fn of(nearest: &[NearestDistances; 2], written: &Written) -> Self {
        let [selected, random] = nearest;
        let (of_documents, of_selected) = written.sources.entropies();
        Covers {
            auc_pr: selected.auc_pr(),
            auc_pr_of_random: random.auc_pr(),
            random_documents: written.random_documents,
            source_entropy_of_documents: of_documents,
            source_entropy_of_selected: of_selected,
        }
    }

    pub fn add_text(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\nHow far a document is from the nearest selected one (AUC_pr, projected n-grams: lower covers better)"
        );
        for (what, distance) in [("this selection", self.auc_pr), ("random, same size", self.auc_pr_of_random)] {
            // Two texts without an n-gram in common are √2 apart.
            let share = distance.unwrap_or(0.0) / 2f64.sqrt();
            let distance = distance.map_or("-".to_owned(), |distance| format!("{distance:.4}"));
            let _ = writeln!(text, "  {what:<20} {} {distance}", bar(share));
        }
        let _ = writeln!(
            text,
            "  entropy over sources    {:.3} nats, of all documents {:.3}",
            self.source_entropy_of_selected, self.source_entropy_of_documents
        );
    }
}

/// Strata, if it has any.
pub fn strata(draw: &Draw, plan: &SelectionPlan) -> Option<StrataReport> {
    match &draw.drawn {
        Drawn::Strata(strata) => Some(StrataReport::of(strata, plan)),
        Drawn::Weights | Drawn::Sensitivities(_) | Drawn::Tokens(_) => None,
    }
}

pub fn sensitivity(draw: &Draw, plan: &SelectionPlan) -> Option<SensitivityReport> {
    match &draw.drawn {
        Drawn::Sensitivities(of) => Some(SensitivityReport::of(of, plan)),
        Drawn::Weights | Drawn::Strata(_) | Drawn::Tokens(_) => None,
    }
}

/// In words: what a cut-off removes.
pub fn end(tail: Tail) -> &'static str {
    match tail {
        Tail::Low => "lowest",
        Tail::High => "highest",
    }
}
