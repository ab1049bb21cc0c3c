//! Why a document was selected or not: every number that decided, in the order in which they do.

use std::fmt::Write;

use serde::Serialize;

use super::sensitivities::ExplainedSensitivity;
use super::strata::{ExplainedStrata, Strata};
use super::witness::{Contenders, Seen, SeenDocument, TakenBy};
use crate::features::Featuriser;
use crate::manifest::ShardManifest;
use crate::record::{Reject, TopicPartition};
use crate::score::{LossTerm, Score};
use crate::select::{Division, Noise, Quotas, SelectorKind, SelectorSettings, SketchVersion};
use crate::window::{ClosedWindow, TokenTurn, WindowSummary};

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Selected,
    /// Its key is too low, or nothing was to be selected of those that it competed with.
    BelowThreshold,
    TooShort,
    /// It lacks a number that strata need.
    NoNumber,
    /// It has no embedding, or one of other dimensions than most of its window.
    NoEmbedding,
    /// The cut-off of the strata removes it.
    CutOff,
    /// By a clause of `documents.filter`.
    Filtered,
    DeadLetter,
    /// The window has no such document.
    NotInWindow,
    /// No record stands at the offset.
    NoRecord,
    /// It waits to be decided.
    Undecided,
    /// It never is: retention or a person has passed it over.
    Skipped,
    /// It stands before the offset that the pipeline began at.
    BeforeStart,
    /// The log has no document of this id.
    NotFound,
}

/// All that decided about one record. What played no part, or is not known, is `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    pub position: Option<String>,
    pub id: Option<String>,
    pub source: Option<String>,
    pub timestamp_ms: Option<i64>,
    pub outcome: Outcome,
    /// In words.
    pub why: String,
    pub window: Option<String>,
    /// The publication of the window.
    pub shard: Option<String>,
    /// The file that the record stands in, if it is selected or a dead letter.
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<ExplainedReject>,
    /// Of a document.
    pub document: Option<ExplainedDocument>,
    /// What it competed with, and for how many places.
    pub competition: Option<Competition>,
    /// What the window was decided by.
    pub selector: Option<SelectorSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedReject {
    pub reason: &'static str,
    pub detail: String,
}

/// What a document weighs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedDocument {
    pub n_tokens: u32,
    /// By the tokenizer of the configuration, where budgets are in its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counted_tokens: Option<u32>,
    pub n_ngrams: u64,
    /// The clause of the filter that refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<String>,
    /// Where shares are of the values of another field than the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<ExplainedQuota>,
    /// Where losses add to weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<ExplainedLoss>,
    /// Where losses that are expected of it do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_loss: Option<ExplainedExpectedLoss>,
    /// Where windows are spread over strata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strata: Option<ExplainedStrata>,
    /// Where windows are drawn by sensitivity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<ExplainedSensitivity>,
    /// Its Gumbel number; `null` where there is no noise.
    pub noise: Option<f64>,
    /// For each target of the model.
    pub targets: Vec<OfTarget>,
    /// The target that selected it, of several.
    pub selected_for: Option<String>,
    /// Chance of being selected, given the thresholds; of a selected document what its shard says.
    pub inclusion_probability: Option<f64>,
    pub sample_weight: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedQuota {
    pub field: String,
    /// What it says there, if that has a share of its own; `null`: it is in the pool of all others.
    pub value: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedLoss {
    /// Its own; `null`: it has none, and gets the mean over the range.
    pub loss: Option<f64>,
    #[serde(flatten)]
    pub term: LossTerm,
    /// The strategy's answer, and that times the coefficient.
    pub loss_weight: f64,
    pub added: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedExpectedLoss {
    /// In nats a token; `null` before any loss was reported.
    pub expected_loss: Option<f64>,
    pub version: i64,
    pub coefficient: f64,
    pub added: f64,
}

/// The way from the n-grams to the key, for one target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OfTarget {
    /// `null`: the model's only one.
    pub target: Option<String>,
    pub log_importance_weight: f64,
    /// That, or the mean over the n-grams; with what losses add it is the total.
    pub of_text: f64,
    pub total_log_weight: f64,
    /// The total over the temperature, and the noise; of a sensitivity selection that of [`ExplainedSensitivity`].
    pub key: f64,
    /// From 1, among the candidates that this target could choose from, those of the same pool which the targets before it have
    /// left; `null`: it is no candidate.
    pub rank: Option<u64>,
}

/// The documents that one of them competed with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Competition {
    pub closed_by: &'static str,
    /// Documents of the window, and those that may be selected.
    pub n_documents: u64,
    pub n_candidates: u64,
    pub n_selected: u64,
    /// Versions that the window names.
    pub raw_version: Option<i64>,
    pub selected_version: Option<i64>,
    pub clusters_version: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edges: Option<SketchVersion>,
    pub quota_version: Option<i64>,
    /// One, or for each target in turn what it chose from the pool of the document.
    pub turns: Vec<ExplainedTurn>,
}

/// What was chosen at once. Where a window is spread over strata there are none: see [`ExplainedStrata`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedTurn {
    /// `null`: the model's only one.
    pub target: Option<String>,
    /// The source, or value of [`crate::select::Quotas::field`], that is a pool of its own; `null`: all others.
    pub source: Option<String>,
    pub n_candidates: u64,
    /// How many it had to choose.
    pub budget: u64,
    /// The best key that was not chosen; `null` when nothing was left, or nothing was to be chosen.
    pub threshold: Option<f64>,
    /// Where budgets are in tokens; `budget` is the number of documents that came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenTurn>,
}

impl Explanation {
    /// Of a record that no window has decided.
    pub fn outside(position: Option<String>, id: Option<String>, outcome: Outcome, why: String) -> Self {
        Explanation {
            position,
            id,
            source: None,
            timestamp_ms: None,
            outcome,
            why,
            window: None,
            shard: None,
            path: None,
            dead_letter: None,
            document: None,
            competition: None,
            selector: None,
        }
    }
}

/// A decided window that is asked about.
pub(super) struct Asked<'a> {
    pub manifest: &'a ShardManifest,
    pub closed: &'a ClosedWindow,
    pub division: &'a Division,
    pub noise: &'a Noise,
    pub featuriser: &'a Featuriser,
    pub contenders: &'a Contenders,
    /// Clauses of the filter, by number.
    pub clauses: &'a [String],
}

impl Asked<'_> {
    pub fn explain(&self, seen: &[Seen]) -> Vec<Explanation> {
        let taken = TakenBy::of(self.closed);
        seen.iter().map(|seen| self.explain_one(seen, &taken)).collect()
    }

    fn explain_one(&self, seen: &Seen, taken: &TakenBy) -> Explanation {
        let Asked { manifest, closed, .. } = *self;
        let position = Some(self.at().position(seen.offset));
        let of_window = |outcome, why: String| Explanation {
            source: seen.source.clone(),
            timestamp_ms: seen.timestamp_ms,
            window: Some(closed.summary.id()),
            shard: Some(manifest.shard.clone()),
            competition: Some(self.competition(seen)),
            selector: Some(manifest.selector.clone()),
            ..Explanation::outside(position.clone(), seen.id.clone(), outcome, why)
        };
        let document = match &seen.outcome {
            Ok(document) => document,
            Err(Reject { reason, detail }) => {
                let why = format!("it could not be read: {}: {detail}", reason.as_str());
                return Explanation {
                    path: manifest.dead_letters.as_ref().map(|file| file.path.clone()),
                    dead_letter: Some(ExplainedReject { reason: reason.as_str(), detail: detail.clone() }),
                    ..of_window(Outcome::DeadLetter, why)
                };
            }
        };
        let by = taken.target(seen.offset);
        let of_document = self.document(seen, document, taken);
        let competition = self.competition(seen);
        let min_tokens = manifest.selector.min_tokens;
        let strata = of_document.strata.as_ref();
        let sensitivity = of_document.sensitivity.as_ref();
        let in_words = |by: Option<usize>| match (strata, sensitivity) {
            (_, Some(sensitivity)) => sensitivity.in_words(by.is_some()),
            (Some(strata), None) => {
                let keys: Vec<f64> = of_document.targets.iter().map(|of| of.key).collect();
                strata.in_words(&keys, by)
            }
            (None, None) => in_words(&of_document.targets, &competition.turns, &manifest.selector.quotas, by),
        };
        let (outcome, why) = match (&of_document.refused_by, by) {
            (Some(clause), _) => (
                Outcome::Filtered,
                format!("documents.filter refuses it, since this clause is not true of it: {clause}"),
            ),
            _ if document.score.n_tokens < min_tokens => {
                let n_tokens = document.score.n_tokens;
                let why =
                    format!("it has {n_tokens} tokens, at least {min_tokens} are asked for (selection.min_tokens)");
                (Outcome::TooShort, why)
            }
            (None, Some(by)) => (Outcome::Selected, in_words(Some(by))),
            _ if strata.is_some_and(|strata| strata.lacks().is_some()) => (Outcome::NoNumber, in_words(None)),
            _ if sensitivity.is_some_and(|sensitivity| !sensitivity.competes()) => {
                (Outcome::NoEmbedding, in_words(None))
            }
            _ if strata.is_some_and(ExplainedStrata::is_cut) => (Outcome::CutOff, in_words(None)),
            (None, None) => (Outcome::BelowThreshold, in_words(None)),
        };
        let is_held_out = seen.id.as_deref().is_some_and(|id| manifest.selector.is_held_out(id));
        let held_out = manifest.validation.as_ref().map(|file| &file.path);
        let path = if is_held_out { held_out } else { manifest.path.as_ref() };
        Explanation {
            path: path.filter(|_| outcome == Outcome::Selected).cloned(),
            document: Some(of_document),
            competition: Some(competition),
            ..of_window(outcome, why)
        }
    }

    fn at(&self) -> &TopicPartition {
        &self.closed.summary.at
    }

    fn competition(&self, seen: &Seen) -> Competition {
        let WindowSummary { closed_by, n_selected, n_rejected, raw_version, .. } = self.closed.summary;
        Competition {
            closed_by: closed_by.as_str(),
            n_documents: n_selected + n_rejected,
            n_candidates: self.contenders.len(),
            n_selected,
            raw_version,
            selected_version: self.closed.summary.against_selected.map(|selected| selected.version),
            clusters_version: self.closed.summary.sensitivity.as_ref().and_then(|of| of.clusters_version),
            edges: self.closed.summary.coverage.as_ref().and_then(|of| of.edges),
            quota_version: self.closed.summary.quota_version,
            turns: self.turns(seen),
        }
    }

    /// What was chosen from where this document stood.
    fn turns(&self, seen: &Seen) -> Vec<ExplainedTurn> {
        let summary = &self.closed.summary;
        if summary.coverage.is_some() || summary.sensitivity.is_some() {
            return Vec::new();
        }
        if summary.turns.is_empty() {
            return vec![ExplainedTurn {
                target: None,
                source: None,
                n_candidates: self.contenders.len(),
                budget: summary.n_selected,
                threshold: summary.threshold,
                tokens: None,
            }];
        }
        let pool = self.division.source_of(seen.pool);
        let of_pool = summary.turns.iter().filter(|turn| turn.source.as_deref() == pool);
        let explained = |turn: &crate::window::TurnSummary| ExplainedTurn {
            target: turn.target.clone(),
            source: turn.source.clone(),
            n_candidates: turn.n_candidates,
            budget: turn.n_selected,
            threshold: turn.threshold,
            tokens: turn.tokens,
        };
        of_pool.map(explained).collect()
    }

    fn document(&self, seen: &Seen, document: &SeenDocument, taken: &TakenBy) -> ExplainedDocument {
        let selector = &self.manifest.selector;
        let SeenDocument { score, log_importance_weights, refused_by, .. } = document;
        let is_candidate = refused_by.is_none() && score.n_tokens >= selector.min_tokens;
        let pool = seen.pool;
        let of_window = self.closed.summary.sensitivity.as_ref();
        let sensitivity = ExplainedSensitivity::of(selector, of_window, (seen.offset, document), pool, self.noise);
        let sensitivity = sensitivity.filter(|_| is_candidate);
        let drawn_key = sensitivity.as_ref().and_then(|sensitivity| sensitivity.score.as_ref()).map(|of| of.key);
        let of_target = |(number, &log_importance_weight): (usize, &f64)| {
            let score = Score { log_importance_weight, ..*score };
            let total_log_weight = selector.total_log_weight(&score, self.featuriser);
            OfTarget {
                target: self.division.targets().get(number).cloned(),
                log_importance_weight,
                of_text: selector.text_log_weight(&score, self.featuriser),
                total_log_weight,
                key: drawn_key.unwrap_or_else(|| {
                    let weight = if selector.is_uniform() { 0.0 } else { total_log_weight };
                    selector.key(self.noise, seen.offset, weight)
                }),
                rank: self.contenders.rank(seen.offset, pool, number, taken).filter(|_| {
                    is_candidate && !selector.sees_whole_windows() && taken.is_left_for(number, seen.offset)
                }),
            }
        };
        let targets: Vec<OfTarget> = log_importance_weights.iter().enumerate().map(of_target).collect();
        let selected_by = taken.target(seen.offset);
        let of_window = self.closed.summary.coverage.as_ref();
        let strata = Strata::of(selector, of_window, self.division, self.n_documents());
        let strata = strata.filter(|_| is_candidate).map(|strata| {
            let weight = targets[0].total_log_weight;
            strata.explain((seen.offset, document, weight), pool, self.contenders)
        });
        let inclusion_probability =
            is_candidate.then(|| match (taken.inclusion_probability(seen.offset), &sensitivity) {
                (Some(probability), _) => probability,
                (None, Some(sensitivity)) => self.chance(pool) * sensitivity.inclusion_probability(),
                (None, None) => self.inclusion_probability(seen, &targets, strata.as_ref()),
            });
        let ratio = sensitivity.as_ref().map_or(1.0, |sensitivity| sensitivity.pool.ratio);
        ExplainedDocument {
            n_tokens: score.n_tokens,
            counted_tokens: score.counted_tokens,
            n_ngrams: self.featuriser.n_ngrams(score.n_tokens),
            refused_by: refused_by.map(|clause| self.clauses[usize::from(clause)].clone()),
            quota: selector.quotas.field.as_ref().map(|field| ExplainedQuota {
                field: field.clone(),
                value: self.division.source_of(pool).map(str::to_owned),
            }),
            loss: selector.loss.map(|term| ExplainedLoss {
                loss: score.loss,
                term,
                loss_weight: term.log_weight(score.loss),
                added: term.added(score.loss),
            }),
            expected_loss: self.closed.summary.expected_loss.map(|version| ExplainedExpectedLoss {
                expected_loss: score.expected_loss,
                version: version.version,
                coefficient: version.coefficient,
                added: score.expected_loss_weight,
            }),
            strata,
            noise: (selector.kind == SelectorKind::ImportanceResampling && sensitivity.is_none())
                .then(|| self.noise.gumbel(seen.offset)),
            sensitivity,
            selected_for: selected_by.and_then(|target| self.division.targets().get(target).cloned()),
            sample_weight: inclusion_probability.filter(|_| selected_by.is_some()).map(|p| ratio / p),
            inclusion_probability,
            targets,
        }
    }

    fn n_documents(&self) -> u64 {
        self.closed.summary.n_selected + self.closed.summary.n_rejected
    }

    /// That the window selects anything of a pool.
    fn chance(&self, pool: usize) -> f64 {
        let summary = &self.closed.summary;
        let sizes: Vec<u64> = match &summary.sensitivity {
            Some(of) => of.pools.iter().map(|pool| pool.sample.documents).collect(),
            None => self.contenders.sizes(self.division.n_pools()),
        };
        self.division.chances(self.manifest.selector.fraction, self.n_documents(), &sizes)[pool]
    }

    /// Of a document that was not selected, by the thresholds of all turns.
    fn inclusion_probability(&self, seen: &Seen, targets: &[OfTarget], strata: Option<&ExplainedStrata>) -> f64 {
        let selector = &self.manifest.selector;
        let pool = seen.pool;
        if let Some(strata) = strata {
            let weights: Vec<f64> = targets.iter().map(|of| of.total_log_weight).collect();
            return strata.inclusion_probability(selector, &weights);
        }
        let turns = self.turns(seen);
        if let Some(TokenTurn { budget, .. }) = turns[0].tokens {
            let uniform = self.noise.rounding(self.closed.summary.interval.from);
            let place = self.contenders.in_tokens(seen.offset, pool, budget, uniform);
            return place
                .map_or(0.0, |(pool, rank)| pool.inclusion_probability(selector, targets[0].total_log_weight, rank));
        }
        if self.division.is_whole() {
            let chance = (selector.fraction.as_f64() * self.n_documents() as f64).min(1.0);
            return chance * selector.inclusion_probability(targets[0].total_log_weight, turns[0].threshold);
        }
        let of_turn = |(target, turn): (&OfTarget, &ExplainedTurn)| {
            (turn.budget > 0).then(|| selector.inclusion_probability(target.total_log_weight, turn.threshold))
        };
        let best = targets.iter().zip(&turns).filter_map(of_turn).fold(0.0, f64::max);
        self.chance(pool) * best
    }
}

/// `by`: the target that selected it.
fn in_words(targets: &[OfTarget], turns: &[ExplainedTurn], quotas: &Quotas, by: Option<usize>) -> String {
    let mut text = String::new();
    let of_targets = targets.iter().zip(turns).enumerate().filter(|(number, _)| by.is_none_or(|by| by == *number));
    for (_, (of, turn)) in of_targets {
        let ExplainedTurn { target, source, n_candidates, budget, threshold, tokens } = turn;
        let target = target.as_ref().map(|name| format!("for target {name} ")).unwrap_or_default();
        let pool = source.as_ref().map(|name| format!(" of {}", quotas.pool_name(Some(name)))).unwrap_or_default();
        let rank = of.rank.map(|rank| format!("rank {rank} of {n_candidates} candidates{pool}")).unwrap_or_default();
        let budget_of = match tokens {
            Some(TokenTurn { budget, selected, .. }) => format!(" for {selected} of {budget:.1} tokens"),
            None => String::new(),
        };
        let separator = if text.is_empty() { "" } else { "; " };
        // Writing to memory does not fail.
        let _ = write!(text, "{separator}{target}");
        let key = of.key;
        let _ = match threshold {
            Some(threshold) if by.is_some() => write!(
                text,
                "its key {key:.6} is above the threshold {threshold:.6}, the best that was not selected: {rank}, {budget} selected{budget_of}"
            ),
            None if by.is_some() => write!(text, "all {n_candidates} candidates{pool} were selected"),
            _ if *budget == 0 => write!(text, "none of {n_candidates} candidates{pool} was to be selected"),
            Some(threshold) => write!(
                text,
                "its key {key:.6} is not above the threshold {threshold:.6}, the best that was not selected: {rank}, {budget} selected{budget_of}"
            ),
            None => write!(text, "nothing was left: {rank}, {budget} selected{budget_of}"),
        };
    }
    text
}
