//! Between the passes: temperature, budgets, and which documents are selected.

use super::corrected::{Correction, Windows};
use super::covered::Strata;
use super::scores::Scores;
use super::sensitive::Sensitivities;
use super::tokens::TokenPools;
use super::{Quota, SelectionPlan, Temperature};
use crate::cli::UsageError;
use crate::record::TopicPartition;
use crate::score::{Model, Score};
use crate::select::{
    BudgetedSelection, Diagnostics, Noise, Pick, Quotas, Rounding, SelectorKind, SelectorSettings, budgets,
    pool_shares_of, select_within_budgets, temperature_for_effective_sample_size,
};

/// Documents of files have no partition: their numbers are the offsets of this one.
const NOISE_PARTITION: &str = "files";

/// What was drawn, and with what.
pub struct Draw {
    pub settings: SelectorSettings,
    pub noise: Noise,
    /// As asked for; fewer are selected when fewer may be.
    pub requested: u64,
    pub candidates: u64,
    pub selection: BudgetedSelection,
    pub drawn: Drawn,
    /// Of the picks, in their order, where the turns do not tell them.
    pub probabilities: Option<Vec<f64>>,
    /// How weights were corrected, with what was left open decided.
    pub correction: Option<Correction>,
    /// The windows, if it was corrected after each.
    pub windows: Option<Windows>,
    pub judged: Judged,
}

/// What the diagnostics of a draw look at.
pub struct Judged {
    /// Where weights do not decide, top-k: no draw by them can collapse.
    pub kind: SelectorKind,
    /// The documents that competed, in order.
    pub candidates: Vec<u32>,
}

/// By what documents were drawn.
pub enum Drawn {
    Weights,
    Strata(Strata),
    Sensitivities(Sensitivities),
    Tokens(TokenPools),
}

pub fn draw(scores: &Scores, model: &Model, plan: &SelectionPlan) -> anyhow::Result<Draw> {
    let candidates = candidates(scores, plan);
    let (requested, mut settings) = settings(scores, model, plan, 1.0)?;
    settings.temperature = temperature(scores, model, plan, &settings, &candidates)?;

    let noise = noise(plan.seed);
    let pools = pools(scores, plan, &candidates);
    let target_shares: Vec<f64> = model.targets.iter().map(|target| target.proportion).collect();
    let key = |document: u32, target: usize| {
        let weight = total_weight(scores, model, &settings, document, scores.weight(document, target));
        settings.key(&noise, i64::from(document), weight)
    };
    let available: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
    let nearest = Rounding::Nearest;
    let budgets = budgets(requested, &pool_shares(plan), &target_shares, &available, nearest, |_| nearest);
    let selection = select_within_budgets(pools, &budgets, key);
    Ok(Draw {
        noise,
        requested,
        candidates: candidates.len() as u64,
        selection,
        drawn: Drawn::Weights,
        probabilities: None,
        correction: None,
        windows: None,
        judged: Judged { kind: settings.kind, candidates },
        settings,
    })
}

/// The candidates of all sources (or values of another field) without a share of their own, and of each that has one.
pub fn pools(scores: &Scores, plan: &SelectionPlan, candidates: &[u32]) -> Vec<Vec<u32>> {
    let mut pools = vec![Vec::new(); plan.sources.len() + 1];
    candidates.iter().for_each(|&document| pools[scores.pool(document)].push(document));
    pools
}

/// Documents that may be selected, in order.
pub fn candidates(scores: &Scores, plan: &SelectionPlan) -> Vec<u32> {
    (0..scores.len() as u32).filter(|&document| scores.is_candidate(document, plan)).collect()
}

/// How many are to be selected, and how.
pub fn settings(
    scores: &Scores,
    model: &Model,
    plan: &SelectionPlan,
    temperature: f64,
) -> Result<(u64, SelectorSettings), UsageError> {
    let whole = "1".parse().map_err(UsageError)?;
    let (fraction, requested) = match plan.quota {
        Quota::Fraction(fraction) => (fraction, fraction.of(scores.n_documents(), 0.5)),
        Quota::Count(count) => (whole, count),
    };
    let settings = SelectorSettings {
        kind: plan.kind,
        fraction,
        unit: plan.unit,
        temperature,
        length_normalise: plan.length_normalise,
        min_tokens: plan.min_tokens,
        seed: plan.seed,
        quotas: Quotas {
            field: plan.quota_field.clone(),
            sources: plan.sources.iter().cloned().collect(),
            ..Quotas::default()
        }
        .of_model(model),
        loss: plan.loss.map(|loss| loss.term(scores, plan)).transpose()?,
        filter: None,
        holdout: None,
        coverage_sample: 0,
        coverage: None,
        sensitivity: None,
    };
    Ok((requested, settings))
}

pub fn noise(seed: u64) -> Noise {
    Noise::new(seed, &TopicPartition::new(NOISE_PARTITION, 0))
}

/// Of all sources without a share of their own, and of each that has one.
pub fn pool_shares(plan: &SelectionPlan) -> Vec<f64> {
    pool_shares_of(plan.sources.iter().map(|(_, share)| *share))
}

fn totals(scores: &Scores, model: &Model, settings: &SelectorSettings, candidates: &[u32], target: usize) -> Vec<f64> {
    let total = |&document: &u32| total_weight(scores, model, settings, document, scores.weight(document, target));
    candidates.iter().map(total).collect()
}

/// What a document competes with.
pub fn total_weight(
    scores: &Scores,
    model: &Model,
    settings: &SelectorSettings,
    document: u32,
    log_importance_weight: f64,
) -> f64 {
    let n_tokens = scores.n_tokens[document as usize];
    let score = Score { n_tokens, log_importance_weight, loss: scores.loss(document), ..Score::default() };
    settings.total_log_weight(&score, &model.featuriser)
}

/// The temperature that was asked for. Of several targets the one that needs the highest decides, so that each has at
/// least the effective sample size that is wanted.
pub fn temperature(
    scores: &Scores,
    model: &Model,
    plan: &SelectionPlan,
    settings: &SelectorSettings,
    candidates: &[u32],
) -> Result<f64, UsageError> {
    let share = match plan.temperature {
        Temperature::Fixed(temperature) => return Ok(temperature),
        Temperature::Auto(share) => share,
    };
    let totals: Vec<Vec<f64>> =
        (0..scores.n_targets).map(|target| totals(scores, model, settings, candidates, target)).collect();
    let of_target = |totals: &Vec<f64>| {
        let size = share * totals.len() as f64;
        temperature_for_effective_sample_size(totals, size).ok_or_else(|| {
            let n = totals.len();
            UsageError(format!(
                "--temperature auto: no temperature gives an effective sample size of {size:.1} of {n} candidates, \
                 because too many share the highest weight; give a number"
            ))
        })
    };
    if totals.iter().any(Vec::is_empty) {
        return Ok(1.0);
    }
    let temperatures = totals.iter().map(of_target).collect::<Result<Vec<_>, _>>()?;
    Ok(temperatures.into_iter().fold(0.0, f64::max))
}

impl Draw {
    /// One for each target: of all that competed, and of what that target chose.
    pub fn diagnostics(&self, scores: &Scores, model: &Model) -> Vec<Diagnostics> {
        let Judged { kind, candidates } = &self.judged;
        let settings = SelectorSettings { kind: *kind, ..self.settings.clone() };
        let n_tokens: Vec<u32> = candidates.iter().map(|&document| scores.n_tokens[document as usize]).collect();
        let of_target = |target| {
            let picks = self.selection.picks.iter().filter(|pick| pick.target == target);
            let index = |pick: &Pick| candidates.partition_point(|&document| document < pick.document);
            let totals = totals(scores, model, &settings, candidates, target);
            Diagnostics::of(&settings, &totals, &n_tokens, &picks.map(index).collect::<Vec<_>>())
        };
        (0..scores.n_targets).map(of_target).collect()
    }

    /// Chance of being selected, given the thresholds of the turns in its pool. All turns look at the same noise, so a
    /// document is selected exactly if it beats the most favourable of them.
    pub fn inclusion_probability(&self, scores: &Scores, model: &Model, document: u32) -> f64 {
        if let Some(probabilities) = &self.probabilities {
            let pick = self.selection.picks.binary_search_by_key(&document, |pick| pick.document);
            return pick.map_or(0.0, |pick| probabilities[pick]);
        }
        let pool = scores.pool(document);
        match &self.drawn {
            Drawn::Weights => {}
            Drawn::Strata(strata) => return strata.inclusion_probability(self, scores, model, document),
            Drawn::Sensitivities(of) => return of.pool(pool).inclusion_probability(of.score(document)),
            Drawn::Tokens(of) => return of.inclusion_probability(self, scores, model, document),
        }
        let turns = self.selection.turns.iter().filter(|turn| turn.pool == pool && turn.count > 0);
        turns
            .map(|turn| {
                let weight = scores.weight(document, turn.target);
                let weight = total_weight(scores, model, &self.settings, document, weight);
                self.settings.inclusion_probability(weight, turn.threshold)
            })
            .fold(0.0, f64::max)
    }

    /// What a selected document stands for in weighted sums.
    pub fn sample_weight(&self, scores: &Scores, document: u32, inclusion_probability: f64) -> f64 {
        match &self.drawn {
            Drawn::Sensitivities(of) => of.pool(scores.pool(document)).sample_weight(of.score(document)),
            Drawn::Weights | Drawn::Strata(_) | Drawn::Tokens(_) => inclusion_probability.recip(),
        }
    }

    /// The key of a document for a target, whether it was selected or not.
    pub fn key(&self, scores: &Scores, model: &Model, document: u32, target: usize) -> f64 {
        let total = match &self.drawn {
            Drawn::Strata(strata) if strata.is_uniform() => 0.0,
            Drawn::Sensitivities(of) => return of.key(&self.noise, document),
            Drawn::Weights | Drawn::Strata(_) | Drawn::Tokens(_) => {
                total_weight(scores, model, &self.settings, document, scores.weight(document, target))
            }
        };
        self.settings.key(&self.noise, i64::from(document), total)
    }

    /// The picks among the documents `from..to`, by number.
    pub fn picks(&self, from: u32, to: u32) -> &[Pick] {
        let picks = &self.selection.picks;
        &picks[picks.partition_point(|p| p.document < from)..picks.partition_point(|p| p.document < to)]
    }
}
