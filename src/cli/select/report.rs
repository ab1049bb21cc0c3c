//! What was selected and whether it is any good: for the terminal, and as `report.json`.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::SelectionPlan;
use super::corrected::WindowsReport;
use super::draw::{Draw, Drawn};
use super::explain::{self, Explanation};
use super::rows::Written;
use super::scores::Scores;
use super::shares;
use super::spread::{self, Covers, MethodReport, SensitivityReport, StrataReport};
use super::tokens::TokensReport;
use crate::cli::bars::bar;
use crate::cli::model::target_name;
use crate::manifest::CountedTokens;
use crate::score::{Model, ModelId, NgramCounts};
use crate::select::{AcceptanceBySource, Diagnostics};
use crate::source::files::Input;

/// Sources that are told apart.
const SOURCES: usize = 20;
/// Buckets that are named of what the selection lacks.
const N_LACKING: usize = 10;

fn lacking(model: &Model, parts: &[(u32, f64)]) -> Vec<Lack> {
    let ngrams = model.target_ngrams();
    let lack = |&(bucket, nats)| Lack { bucket, ngrams: ngrams.get(&bucket).cloned().unwrap_or_default(), nats };
    parts.iter().map(lack).collect()
}

fn n_with_loss(scores: &Scores, plan: &SelectionPlan) -> u64 {
    super::draw::candidates(scores, plan).into_iter().filter(|&document| scores.loss(document).is_some()).count() as u64
}

pub struct Facts<'a> {
    pub model: &'a Model,
    pub model_id: &'a ModelId,
    pub inputs: &'a [Input],
    pub plan: &'a SelectionPlan,
    pub scores: &'a Scores,
    pub draw: &'a Draw,
    /// One for each target.
    pub diagnostics: &'a [Diagnostics],
    pub written: &'a Written,
    pub explanations: &'a [Explanation],
    pub out: &'a Path,
    pub is_fitted: bool,
    pub seconds: f64,
}

/// `report.json`. Fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    made_by: String,
    inputs: Vec<String>,
    model: ModelId,
    featuriser: crate::features::Featuriser,
    selector: Selector,
    documents: u64,
    bad_lines: u64,
    text_bytes: u64,
    candidates: u64,
    requested: u64,
    selected: u64,
    selected_tokens: u64,
    /// Only with `--tokenizer`.
    tokenizer: Option<CountedTokens>,
    /// Only with `--unit tokens`; then `requested` documents are as many as came of it.
    tokens: Option<TokensReport>,
    /// How many documents fewer than requested were selected, because no more may be.
    shortfall: u64,
    targets: Vec<TargetReport>,
    /// Only with `--selector coverage`.
    strata: Option<StrataReport>,
    /// Only with `--against selected`.
    windows: Option<WindowsReport>,
    /// Only with `--selector sensitivity`.
    sensitivity: Option<SensitivityReport>,
    /// `null` where it was not measured.
    coverage: Option<Covers>,
    /// Of `--explain`.
    explanations: &'a [Explanation],
    kl_to_raw_nats: f64,
    /// `null` of an empty selection, which is no distribution.
    kl_to_selected_nats: Option<f64>,
    /// The largest parts of it.
    lacking: Vec<Lack>,
    kl_reduction_nats: Option<f64>,
    /// `null` where nothing happened to be in it.
    kl_reduction_of_random_nats: Option<f64>,
    acceptance: AcceptanceBySource,
    /// Only with `--quota-field`: by its values that have shares.
    acceptance_by_field: Option<AcceptanceByField>,
    files: Vec<FileReport>,
    warnings: Vec<String>,
    #[serde(skip)]
    out: String,
    #[serde(skip)]
    has_decisions: bool,
    #[serde(skip)]
    is_fitted: bool,
    #[serde(skip)]
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Selector {
    kind: &'static str,
    method: MethodReport,
    seed: u64,
    temperature: f64,
    length_normalise: bool,
    min_tokens: u32,
    source_proportions: Vec<(String, f64)>,
    /// The field whose values have these shares; `null`: the source.
    quota_field: Option<String>,
    /// `null`: weights against raw alone.
    against_selected: Option<super::corrected::Correction>,
    /// `null`: losses add nothing to the weights.
    loss: Option<crate::score::LossTerm>,
    /// Candidates that have one; `null`: losses are not read.
    n_with_loss: Option<u64>,
}

/// A bucket of which the selection has too little.
#[derive(Debug, Serialize)]
struct Lack {
    bucket: u32,
    /// The target's frequent n-grams in it, where the model kept them.
    ngrams: Vec<String>,
    /// p_target · (log p_target − log p_selected).
    nats: f64,
}

#[derive(Debug, Serialize)]
struct TargetReport {
    name: String,
    proportion: f64,
    #[serde(flatten)]
    diagnostics: Diagnostics,
}

/// Documents and selected ones of each pool.
#[derive(Debug, Serialize)]
struct AcceptanceByField {
    field: String,
    pools: Vec<PoolAcceptance>,
}

#[derive(Debug, Serialize)]
struct PoolAcceptance {
    /// `null`: all values without a share of their own.
    value: Option<String>,
    documents: u64,
    selected: u64,
}

impl AcceptanceByField {
    fn of(field: &str, plan: &SelectionPlan, scores: &Scores, draw: &Draw) -> Self {
        let values = std::iter::once(None).chain(plan.sources.iter().map(|(value, _)| Some(value.clone())));
        let pool = |value| PoolAcceptance { value, documents: 0, selected: 0 };
        let mut pools: Vec<_> = values.map(pool).collect();
        (0..scores.len() as u32).for_each(|document| pools[scores.pool(document)].documents += 1);
        draw.selection.picks.iter().for_each(|pick| pools[scores.pool(pick.document)].selected += 1);
        // Bad lines are of no pool, and count in the first one.
        pools[0].documents -= scores.bad_lines;
        AcceptanceByField { field: field.to_owned(), pools }
    }

    fn add_text(&self, text: &mut String) {
        let _ = writeln!(text, "\nAcceptance by {}", self.field);
        let row = |of: &PoolAcceptance| {
            let name = of.value.clone().unwrap_or_else(|| "(all others)".to_owned());
            add_acceptance(text, &name, of.documents, of.selected);
        };
        self.pools.iter().skip(1).chain(&self.pools[..1]).for_each(row);
    }
}

fn add_acceptance(text: &mut String, name: &str, documents: u64, selected: u64) {
    let name: String = name.chars().take(20).collect();
    let share = selected as f64 / documents.max(1) as f64;
    // Writing to memory does not fail.
    let _ = writeln!(text, "  {name:<20} {} {:>5.1} %  {selected:>6} of {documents:>6}", bar(share), 100.0 * share);
}

#[derive(Debug, Serialize)]
struct FileReport {
    name: String,
    rows: u64,
}

impl<'a> Report<'a> {
    pub fn of(facts: &Facts<'a>) -> Self {
        let Facts { model, plan, scores, draw, diagnostics, written, .. } = facts;
        let target = model.target_distribution();
        let to_raw = target.divergence_from(&model.raw.counts);
        let divergence = |from: &NgramCounts| (from.total() > 0).then(|| target.divergence_from(from));
        let to_selected = divergence(&written.selected);
        let parts_to_selected = to_selected.map(|_| target.largest_parts(&written.selected, N_LACKING));
        let selected = draw.selection.picks.len() as u64;
        let targets = model.targets.iter().zip(*diagnostics).map(|(target, diagnostics)| TargetReport {
            name: target.name.clone(),
            proportion: target.proportion,
            diagnostics: *diagnostics,
        });
        let method = spread::method(plan);
        let mut report = Report {
            made_by: concat!("winnowd ", env!("CARGO_PKG_VERSION")).to_owned(),
            inputs: facts.inputs.iter().map(|input| input.path.to_string_lossy().into_owned()).collect(),
            model: facts.model_id.clone(),
            featuriser: model.featuriser,
            selector: Selector {
                kind: method.name(),
                method,
                seed: plan.seed,
                temperature: draw.settings.temperature,
                length_normalise: plan.length_normalise,
                min_tokens: plan.min_tokens,
                source_proportions: plan.sources.clone(),
                quota_field: plan.quota_field.clone(),
                against_selected: draw.correction,
                loss: draw.settings.loss,
                n_with_loss: plan.keeps_losses.then(|| n_with_loss(scores, plan)),
            },
            documents: scores.n_documents(),
            bad_lines: scores.bad_lines,
            text_bytes: scores.text_bytes,
            candidates: draw.candidates,
            requested: draw.requested,
            selected,
            selected_tokens: written.n_tokens,
            tokenizer: plan.tokenizer.as_ref().map(|tokenizer| CountedTokens {
                name: tokenizer.name().to_owned(),
                digest: tokenizer.digest().to_owned(),
                tokens: written.counted_tokens,
                validation_tokens: 0,
            }),
            tokens: match &draw.drawn {
                Drawn::Tokens(pools) => Some(pools.report(scores, plan)),
                _ => None,
            },
            shortfall: draw.requested - selected,
            targets: targets.collect(),
            strata: spread::strata(draw, plan),
            windows: WindowsReport::of(draw, plan, model),
            sensitivity: spread::sensitivity(draw, plan),
            coverage: written.nearest.as_ref().map(|nearest| Covers::of(nearest, written)),
            explanations: facts.explanations,
            kl_to_raw_nats: to_raw,
            kl_to_selected_nats: to_selected,
            lacking: lacking(model, &parts_to_selected.unwrap_or_default()),
            kl_reduction_nats: to_selected.map(|nats| to_raw - nats),
            kl_reduction_of_random_nats: divergence(&written.random).map(|nats| to_raw - nats),
            acceptance: written.sources.top(SOURCES),
            acceptance_by_field: plan
                .quota_field
                .as_ref()
                .map(|field| AcceptanceByField::of(field, plan, scores, draw)),
            files: written.files.iter().map(|(name, rows)| FileReport { name: name.clone(), rows: *rows }).collect(),
            warnings: Vec::new(),
            out: facts.out.display().to_string(),
            has_decisions: plan.writes_decisions,
            is_fitted: facts.is_fitted,
            seconds: facts.seconds,
        };
        report.warnings = report.find_warnings(shares::warnings(scores, plan, draw));
        report
    }

    /// `of_shares`: those that only the draw knows of.
    fn find_warnings(&self, of_shares: Vec<String>) -> Vec<String> {
        let mut warnings = Vec::new();
        let (without_number, cut) = self.strata.as_ref().map_or((0, 0), |s| (s.without_number, s.cut));
        if self.shortfall > 0 && cut > 0 {
            warnings.push(format!(
                "{} documents were asked for, but only {} may be selected, of which {cut} were cut off: all others were \
                 selected",
                self.requested, self.candidates
            ));
        } else if self.shortfall > 0 && self.sensitivity.as_ref().is_some_and(|s| s.rejected() > 0) {
            warnings.push(format!(
                "{} documents were asked for, but only {} may be selected: all of them were",
                self.requested, self.candidates
            ));
        } else if self.shortfall > 0 {
            warnings.push(format!(
                "{} documents were asked for, but only {} of {} have at least {} tokens: all of them were selected",
                self.requested, self.candidates, self.documents, self.selector.min_tokens
            ));
        }
        warnings.extend(of_shares);
        if without_number > 0 {
            warnings
                .push(format!("{without_number} documents lack a number that coverage needs: they cannot be selected"));
        }
        warnings.extend(self.tokens.as_ref().and_then(TokensReport::warning));
        warnings.extend(self.strata.as_ref().and_then(StrataReport::warning));
        warnings.extend(self.sensitivity.as_ref().and_then(SensitivityReport::warning));
        if self.bad_lines > 0 {
            warnings.push(format!("{} bad lines were passed over", self.bad_lines));
        }
        // Weights against what was selected take the best of a window on purpose, and correct themselves after it.
        let draws = if self.selector.against_selected.is_some() { &[] } else { &self.targets[..] };
        for target in draws {
            if let Some(warning) = target.diagnostics.warning("--temperature") {
                let name = if self.targets.len() > 1 { format!("{}: ", target.name) } else { String::new() };
                warnings.push(format!("{name}{warning}"));
            }
        }
        warnings
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        let rate = self.text_bytes as f64 / 1e6 / self.seconds.max(1e-3);
        // Writing to memory does not fail.
        let _ = writeln!(
            text,
            "\n{} of {} documents selected ({:.1} MB of text in {:.1} s, {rate:.0} MB/s)",
            self.selected,
            self.documents,
            self.text_bytes as f64 / 1e6,
            self.seconds
        );
        self.add_tokens(&mut text);
        self.add_sources(&mut text);
        self.acceptance_by_field.iter().for_each(|acceptance| acceptance.add_text(&mut text));
        self.strata.iter().for_each(|strata| strata.add_text(&mut text));
        self.sensitivity.iter().for_each(|sensitivity| sensitivity.add_text(&mut text));
        self.coverage.iter().for_each(|covers| covers.add_text(&mut text));
        self.add_divergence(&mut text);
        self.add_lacking(&mut text);
        self.targets.iter().for_each(|target| self.add_diagnostics(&mut text, target));
        explain::add_text(self.explanations, &mut text);
        for warning in &self.warnings {
            let _ = writeln!(text, "\nWARNING: {}", wrapped(warning));
        }
        let _ = writeln!(text, "\nWritten to {}", self.out);
        for file in &self.files {
            let _ = writeln!(text, "  {}  {} rows", file.name, file.rows);
        }
        if self.has_decisions {
            let _ = writeln!(text, "  {}", explain::DECISIONS);
        }
        text.push_str(if self.is_fitted { "  report.json\n  model.wnw\n" } else { "  report.json\n" });
        text
    }

    fn add_tokens(&self, text: &mut String) {
        if let Some(TokensReport { documents, requested, selected, .. }) = &self.tokens {
            let _ = writeln!(text, "{selected} of {documents} tokens, {requested:.0} were asked for");
        }
        if let Some(CountedTokens { name, tokens, .. }) = &self.tokenizer {
            let _ = writeln!(text, "{tokens} tokens by the tokenizer {name}");
        }
    }

    fn add_sources(&self, text: &mut String) {
        let AcceptanceBySource { sources, other_documents, other_selected } = &self.acceptance;
        let is_known = |s: &&crate::select::SourceAcceptance| s.source.is_some();
        if sources.iter().find(is_known).is_none() {
            return;
        }
        text.push_str("\nAcceptance by source\n");
        let share = |documents: u64, selected: u64| selected as f64 / documents.max(1) as f64;
        let mut rows: Vec<_> =
            sources.iter().map(|s| (s.source.as_deref().unwrap_or("(no source)"), s.documents, s.selected)).collect();
        rows.sort_by(|a, b| share(b.1, b.2).total_cmp(&share(a.1, a.2)));
        if *other_documents > 0 {
            rows.push(("(all others)", *other_documents, *other_selected));
        }
        for (name, documents, selected) in rows {
            add_acceptance(text, name, documents, selected);
        }
    }

    fn add_divergence(&self, text: &mut String) {
        let to_raw = self.kl_to_raw_nats;
        let _ = writeln!(
            text,
            "\nHow much nearer to the target than the raw text, which is {to_raw:.3} nats away (KL reduction)"
        );
        for (what, reduction) in
            [("this selection", self.kl_reduction_nats), ("random, same size", self.kl_reduction_of_random_nats)]
        {
            let nats = reduction.map_or("–".to_owned(), |reduction| format!("{reduction:.3}"));
            let _ = writeln!(text, "  {what:<20} {} {nats:>6} nats", bar(reduction.unwrap_or(0.0) / to_raw));
        }
    }

    fn add_lacking(&self, text: &mut String) {
        let Some(to_selected) = self.kl_to_selected_nats else { return };
        let named: Vec<_> = self.lacking.iter().filter(|lack| !lack.ngrams.is_empty()).collect();
        let _ = writeln!(text, "\n{to_selected:.3} nats are left between target and selection");
        if !named.is_empty() {
            let ngrams = named.iter().map(|lack| format!("`{}`", lack.ngrams.join("`, `"))).collect::<Vec<_>>();
            let _ = writeln!(text, "  most of all it lacks {}", wrapped(&ngrams.join(", ")));
        }
    }

    fn add_diagnostics(&self, text: &mut String, target: &TargetReport) {
        let d = &target.diagnostics;
        let name = if self.targets.len() > 1 { format!(" for {}", target_name(&target.name)) } else { String::new() };
        let _ = writeln!(text, "\nWeights{name}, at temperature {}", significant(self.selector.temperature));
        if let (Some(size), Some(share)) = (d.effective_sample_size, d.effective_sample_share) {
            let of = d.n_candidates;
            let _ = writeln!(text, "  effective sample size   {size:.1} of {of} candidates ({:.2} %)", 100.0 * share);
        }
        if let Some(quantiles) = d.log_weights {
            let unit = if self.selector.length_normalise { "mean of its n-grams" } else { "sum over its n-grams" };
            let _ = writeln!(text, "  log weight, nats        ({unit})");
            let (names, values): (String, String) = quantiles
                .named()
                .iter()
                .map(|(name, value)| (format!("{name:>10}"), format!("{:>10}", significant(*value))))
                .unzip();
            let _ = writeln!(text, "    {names}\n    {values}");
        }
        if let Some(correlation) = d.weight_length_correlation {
            let _ = writeln!(text, "  correlation with length {correlation:+.3}");
        }
        if let Some(overlap) = d.top_k_overlap {
            let _ = writeln!(text, "  shared with plain top-k {:.1} %", 100.0 * overlap);
        }
    }
}

/// A number with about four digits.
pub fn significant(number: f64) -> String {
    let decimals = match number.abs() {
        n if n >= 1000.0 => 0,
        n if n >= 100.0 => 1,
        n if n >= 10.0 => 2,
        n if n >= 0.1 || n == 0.0 => 3,
        _ => 5,
    };
    format!("{number:.decimals$}")
}

/// Lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    let mut wrapped = String::new();
    let mut width = "WARNING: ".len();
    for word in text.split(' ') {
        if width + word.chars().count() > 100 {
            wrapped.push_str("\n  ");
            width = 2;
        } else if !wrapped.is_empty() {
            wrapped.push(' ');
            width += 1;
        }
        wrapped.push_str(word);
        width += word.chars().count();
    }
    wrapped
}
