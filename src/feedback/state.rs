//! The state of a pipeline's feedback, and how reports change it.
//!
//! Which losses count:
//!
//! - A loss is of a document that the pipeline has published lately, by the hash of its id; of any other it is of an unknown one.
//! - A rank's steps may come in any order within 1,024 steps of its newest one; older ones are too old to tell whether they are
//!   copies.
//! - Within a run, a document counts at a step once, and then only at later steps: the same step again is a duplicate, whoever
//!   reports it, and an earlier one is out of order. So a trainer that dies and repeats steps, or a record that is sent twice,
//!   changes nothing.
//! - Of a document that several runs have reported, only the last loss is remembered. There, a step that its rank has reported
//!   before is taken for a copy: at worst a loss does not count, but none counts twice.
//! - A report that names an older selection epoch, or a document that was published in one, is stale. An epoch begins when documents
//!   become other n-grams.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::mixing::{Mixer, Mixing, Turn};
use super::progress::{RankProgress, StepNews};
use super::statistics::{LossStatistics, name_among};
use super::summary::{FeedbackSummary, PredictorSummary, SourceSummary};
use crate::features::{BucketList, Featuriser};
use crate::record::{BadLossReason, LossReport, SampleLoss};
use crate::score::{LossPredictor, PredictorError};

/// Tenths of a window's candidates by total log weight.
const STRATA: usize = 10;
/// A model that knows nothing has ln(vocabulary), some 12 nats; what is above has another unit, or is an overflow.
const MAX_LOSS: f64 = 30.0;
/// No tokeniser makes more tokens than a text has bytes, but for a few that mark its ends.
const SPECIAL_TOKENS: u64 = 16;

/// How feedback is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackSettings {
    /// In observations: what is older by so many counts half.
    pub half_life: f64,
    /// `None`: there are no quotas.
    pub mixing: Option<Mixing>,
    /// No source's share goes below it, about.
    pub floor: f64,
}

/// What became of one loss. A closed set: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LossOutcome {
    Counted,
    UnknownId,
    Duplicate,
    OutOfOrder,
    TooOld,
    Stale,
    /// More nats than any model has, or more tokens than its text has bytes.
    Implausible,
    Bad(BadLossReason),
}

impl LossOutcome {
    pub fn all() -> impl Iterator<Item = LossOutcome> {
        use LossOutcome::*;
        let others = [Counted, UnknownId, Duplicate, OutOfOrder, TooOld, Stale, Implausible];
        others.into_iter().chain(BadLossReason::ALL.map(Bad))
    }

    pub fn as_str(self) -> &'static str {
        match self {
            LossOutcome::Counted => "counted",
            LossOutcome::UnknownId => "unknown_id",
            LossOutcome::Duplicate => "duplicate",
            LossOutcome::OutOfOrder => "out_of_order",
            LossOutcome::TooOld => "too_old",
            LossOutcome::Stale => "stale",
            LossOutcome::Implausible => "implausible",
            LossOutcome::Bad(reason) => reason.as_str(),
        }
    }
}

/// What is remembered of a published document until its losses come.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentFacts {
    pub source: Option<String>,
    /// Its tenth among the candidates of its window by total log weight, the lowest 0.
    pub stratum: u8,
    pub inclusion_probability: f64,
    pub text_bytes: u64,
    /// A sample of its n-grams.
    pub ngrams: BucketList,
}

/// The same, as the catalog gives it back.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownDocument {
    pub facts: DocumentFacts,
    /// The selection epoch in which it was published.
    pub epoch: i64,
    /// Of its loss that counted last.
    pub reported: Option<Reported>,
}

/// A run, by [`run_key`], and its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reported {
    pub run: i64,
    pub step: u64,
    /// Other runs have reported the document as well.
    pub by_several_runs: bool,
}

/// A run, by [`run_key`], and a rank of it.
pub type RankKey = (i64, u32);

/// What is known of all that reports name. Changed as they are taken.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// By [`document_key`].
    pub documents: HashMap<i64, KnownDocument>,
    pub ranks: HashMap<RankKey, RankProgress>,
    /// Documents whose `reported` has changed.
    pub reported: Vec<i64>,
}

/// The key of a document: 64 bits of the SHA-256 of its id. Among a million documents two share one with a chance of 3·10⁻⁸.
pub fn document_key(id: &str) -> i64 {
    let digest = Sha256::digest(id.as_bytes());
    i64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// The key of a run.
pub fn run_key(run_id: &str) -> i64 {
    document_key(run_id)
}

/// Everything that is learnt from feedback.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackState {
    numbers: Numbers,
    predictor: LossPredictor,
}

/// All but the predictor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Numbers {
    /// Raised when documents become other n-grams.
    epoch: i64,
    sources: BTreeMap<String, LossStatistics>,
    /// Of sources that are not told apart.
    others: LossStatistics,
    strata: Vec<LossStatistics>,
    mixer: Option<Mixer>,
    quotas: BTreeMap<String, f64>,
    turn: Turn,
    n_reports: u64,
    n_bad_reports: u64,
    outcomes: BTreeMap<String, u64>,
}

impl FeedbackState {
    pub fn new(featuriser: Featuriser, epoch: i64, settings: &FeedbackSettings) -> Self {
        let numbers = Numbers {
            epoch,
            sources: BTreeMap::new(),
            others: LossStatistics::default(),
            strata: vec![LossStatistics::default(); STRATA],
            mixer: None,
            quotas: BTreeMap::new(),
            turn: Turn::default(),
            n_reports: 0,
            n_bad_reports: 0,
            outcomes: BTreeMap::new(),
        };
        FeedbackState { numbers, predictor: LossPredictor::new(&featuriser, settings.half_life) }
    }

    /// The state to go on with: this one, or where documents have become other n-grams a new one in the next epoch. What was counted
    /// stays counted.
    pub fn for_featuriser(self, featuriser: Featuriser, settings: &FeedbackSettings) -> Self {
        if *self.featuriser() == featuriser {
            return self;
        }
        let mut next = FeedbackState::new(featuriser, self.numbers.epoch + 1, settings);
        next.numbers.outcomes = self.numbers.outcomes;
        (next.numbers.n_reports, next.numbers.n_bad_reports) = (self.numbers.n_reports, self.numbers.n_bad_reports);
        next
    }

    pub fn epoch(&self) -> i64 {
        self.numbers.epoch
    }

    pub fn featuriser(&self) -> &Featuriser {
        self.predictor.featuriser()
    }

    pub fn predictor(&self) -> &LossPredictor {
        &self.predictor
    }

    /// Takes reports in the order in which they were consumed, and says what became of their losses.
    pub fn take(
        &mut self,
        reports: &[LossReport],
        n_bad_reports: u64,
        facts: &mut Facts,
        settings: &FeedbackSettings,
    ) -> BTreeMap<LossOutcome, u64> {
        self.predictor.set_half_life(settings.half_life);
        self.numbers.n_reports += reports.len() as u64;
        self.numbers.n_bad_reports += n_bad_reports;
        let mut outcomes = BTreeMap::new();
        for report in reports {
            let run = run_key(&report.run_id);
            let rank = facts.ranks.entry((run, report.rank));
            let news = rank.or_insert_with(|| RankProgress::beginning_at(report.step)).note(report.step);
            for bad in &report.bad {
                *outcomes.entry(LossOutcome::Bad(bad.reason)).or_default() += 1;
            }
            for sample in &report.losses {
                let outcome = self.take_loss(sample, (run, report), news, facts, settings);
                *outcomes.entry(outcome).or_default() += 1;
            }
        }
        for (outcome, n) in &outcomes {
            *self.numbers.outcomes.entry(outcome.as_str().to_owned()).or_default() += n;
        }
        outcomes
    }

    fn take_loss(
        &mut self,
        sample: &SampleLoss,
        (run, report): (i64, &LossReport),
        news: StepNews,
        facts: &mut Facts,
        settings: &FeedbackSettings,
    ) -> LossOutcome {
        let epoch = self.numbers.epoch;
        if report.selection_epoch.is_some_and(|named| (named as i64) < epoch) {
            return LossOutcome::Stale;
        }
        if news == StepNews::TooOld {
            return LossOutcome::TooOld;
        }
        let key = document_key(&sample.id);
        let Some(document) = facts.documents.get_mut(&key) else { return LossOutcome::UnknownId };
        if document.epoch < epoch {
            return LossOutcome::Stale;
        }
        let (last, step) = (document.reported, report.step);
        let by_several_runs = last.is_some_and(|last| last.by_several_runs || last.run != run);
        match last {
            Some(last) if last.run == run && last.step == step => return LossOutcome::Duplicate,
            Some(last) if last.run == run && last.step > step => return LossOutcome::OutOfOrder,
            _ if by_several_runs && news == StepNews::SeenBefore => return LossOutcome::Duplicate,
            _ => {}
        }
        let most_tokens = document.facts.text_bytes + SPECIAL_TOKENS;
        if sample.loss > MAX_LOSS || sample.n_tokens.is_some_and(|n| u64::from(n) > most_tokens) {
            return LossOutcome::Implausible;
        }
        document.reported = Some(Reported { run, step, by_several_runs });
        facts.reported.push(key);
        self.learn(&document.facts, sample, settings);
        LossOutcome::Counted
    }

    fn learn(&mut self, document: &DocumentFacts, sample: &SampleLoss, settings: &FeedbackSettings) {
        let DocumentFacts { source, stratum, inclusion_probability, ngrams, text_bytes } = document;
        let kept = (-1.0 / settings.half_life).exp2();
        let (loss, probability) = (sample.loss, *inclusion_probability);
        let numbers = &mut self.numbers;
        let of_source = match name_among(&numbers.sources, source.as_deref()) {
            Some(name) => numbers.sources.entry(name.to_owned()).or_default(),
            None => &mut numbers.others,
        };
        of_source.observe(loss, probability, kept);
        if let Some(of_stratum) = numbers.strata.get_mut(usize::from(*stratum)) {
            of_stratum.observe(loss, probability, kept);
        }
        // Some four bytes a token, where the trainer does not say.
        let n_tokens = sample.n_tokens.map_or_else(|| (*text_bytes as f64 / 4.0).max(1.0), f64::from);
        numbers.turn.add(source.as_deref(), loss, n_tokens);
        self.predictor.observe(ngrams, loss, probability);
    }

    /// Whether anything has counted since the last turn, so that there is something for the next version.
    pub fn has_turn(&self) -> bool {
        !self.numbers.turn.is_empty()
    }

    /// Ends a turn: what was reported in it moves the quotas.
    pub fn end_turn(&mut self, settings: &FeedbackSettings) {
        let numbers = &mut self.numbers;
        let turn = std::mem::take(&mut numbers.turn);
        numbers.quotas.clear();
        match settings.mixing {
            None => numbers.mixer = None,
            Some(mixing) => {
                let mixer = numbers.mixer.get_or_insert_with(|| Mixer::new(mixing));
                mixer.turn(&turn, mixing, settings.floor);
                let named = mixer.proportions().iter().filter(|(source, share)| !source.is_empty() && **share > 0.0);
                let share = |(source, share): (&String, &f64)| (source.clone(), share * (1.0 - settings.floor));
                numbers.quotas = named.map(share).collect();
            }
        }
    }

    /// Shares by source; empty where there are none. What is left is for all other documents: those without a source, and as much as
    /// the floor says for sources of which nobody has reported a loss yet, so that somebody can.
    pub fn quotas(&self) -> BTreeMap<String, f64> {
        self.numbers.quotas.clone()
    }

    /// JSON and the bytes of the predictor.
    pub fn to_parts(&self) -> (String, Vec<u8>) {
        let json = serde_json::to_string(&self.numbers).expect("names and finite numbers always serialise");
        (json, self.predictor.to_bytes())
    }

    pub fn from_parts(json: &str, predictor: &[u8]) -> Result<Self, PredictorError> {
        let numbers: Numbers = serde_json::from_str(json).map_err(|e| PredictorError::Damaged(e.to_string()))?;
        let predictor = LossPredictor::from_bytes(predictor)?;
        Ok(FeedbackState { numbers, predictor })
    }

    pub fn summary(&self) -> FeedbackSummary {
        let Numbers { sources, others, strata, .. } = &self.numbers;
        let mut named: Vec<_> = sources.iter().map(|(name, s)| SourceSummary::of(name.clone(), s)).collect();
        named.sort_by(|a, b| b.n_losses.cmp(&a.n_losses).then_with(|| a.source.cmp(&b.source)));
        let evaluation = self.predictor.evaluation();
        FeedbackSummary {
            epoch: self.numbers.epoch,
            n_reports: self.numbers.n_reports,
            n_bad_reports: self.numbers.n_bad_reports,
            losses: self.numbers.outcomes.clone(),
            match_ratio: self.match_ratio(),
            n_losses_of_other_sources: others.n_observed,
            sources: named,
            mean_loss_by_stratum: strata.iter().map(LossStatistics::mean).collect(),
            expected_loss: PredictorSummary::of(evaluation),
            quotas: self.quotas(),
        }
    }

    /// Of the losses that are no copies, not late and not bad: how many were of documents that are known.
    fn match_ratio(&self) -> Option<f64> {
        let n = |outcome: LossOutcome| self.numbers.outcomes.get(outcome.as_str()).copied().unwrap_or(0) as f64;
        let (matched, unknown) = (n(LossOutcome::Counted), n(LossOutcome::UnknownId));
        (matched + unknown > 0.0).then(|| matched / (matched + unknown))
    }
}

#[cfg(test)]
mod tests;
