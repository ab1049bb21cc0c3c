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
    BudgetRounding, BudgetedSelection, Diagnostics, JudgedDraw, Noise, Pick, Quotas, SelectorKind, SelectorSettings,
    budgets, chance_in_turns, pool_shares_of, select_within_budgets, temperature_for_effective_sample_size,
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
    let made = |document: u32, target: usize| {
        let weight = total_weight(scores, model, &settings, document, scores.weight(document, target));
        settings.key(&noise, i64::from(document), weight)
    };
    // The choice for one target looks at each twice.
    let is_one = scores.n_targets == 1;
    let mut keys = vec![f64::NAN; if is_one { scores.len() } else { 0 }];
    candidates.iter().filter(|_| is_one).for_each(|&document| keys[document as usize] = made(document, 0));
    let key = |document: u32, target: usize| if is_one { keys[document as usize] } else { made(document, target) };
    let available: Vec<u64> = pools.iter().map(|pool| pool.len() as u64).collect();
    let budgets = budgets(requested, &pool_shares(plan), &target_shares, &available, BudgetRounding::Nearest);
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
    // Of equal weights any temperature gives the same.
    let is_equal = |totals: &&Vec<f64>| totals.iter().all(|total| *total == totals[0]);
    let of_target = |totals: &Vec<f64>| automatic_temperature(totals, share);
    let temperatures =
        totals.iter().filter(|totals| !is_equal(totals)).map(of_target).collect::<Result<Vec<_>, _>>()?;
    Ok(temperatures.into_iter().reduce(f64::max).unwrap_or(1.0))
}

/// The temperature at which weights, not all of them equal, are worth this share of them.
fn automatic_temperature(totals: &[f64], share: f64) -> Result<f64, UsageError> {
    let (n, size) = (totals.len(), share * totals.len() as f64);
    temperature_for_effective_sample_size(totals, size).ok_or_else(|| {
        let highest = totals.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let n_highest = totals.iter().filter(|total| **total == highest).count();
        let share_of = if share == 0.1 { "a tenth".to_owned() } else { format!("a share of {share}") };
        // What is worth as much as the heaviest alone is no sample.
        let is_enough = |share: &f64| share * n as f64 > n_highest as f64;
        let higher =
            [0.5, 0.9].into_iter().find(is_enough).map(|share| format!("auto:{share} or ")).unwrap_or_default();
        let because = match n_highest {
            1 => String::new(),
            _ => format!(", and {n_highest} share the highest weight"),
        };
        UsageError(format!(
            "--temperature auto: {share_of} of {n} documents is {size}{because}; give {higher}a number",
            size = (size * 10.0).round() / 10.0
        ))
    })
}

impl Draw {
    /// How many documents or tokens were asked for.
    pub fn requested(&self) -> serde_json::Value {
        match &self.drawn {
            Drawn::Tokens(pools) => serde_json::json!({ "tokens": pools.requested }),
            Drawn::Weights | Drawn::Strata(_) | Drawn::Sensitivities(_) => {
                serde_json::json!({ "documents": self.requested })
            }
        }
    }

    /// One for each target: of all that competed, and of what that target chose.
    pub fn diagnostics(&self, scores: &Scores, model: &Model) -> Vec<Diagnostics> {
        let Judged { kind, candidates } = &self.judged;
        let settings = SelectorSettings { kind: *kind, ..self.settings.clone() };
        let n_tokens: Vec<u32> = candidates.iter().map(|&document| scores.n_tokens[document as usize]).collect();
        let of_target = |target| {
            let picks = self.selection.picks.iter().filter(|pick| pick.target == target);
            let index = |pick: &Pick| candidates.partition_point(|&document| document < pick.document);
            let totals = totals(scores, model, &settings, candidates, target);
            let selected: Vec<usize> = picks.map(index).collect();
            let n_selected_by_all = self.selection.picks.len() as u64;
            let draw = JudgedDraw { selected: &selected, n_selected_by_all, is_window: false };
            Diagnostics::of(&settings, &totals, &n_tokens, &draw)
        };
        (0..scores.n_targets).map(of_target).collect()
    }

    /// The target that selected a document.
    pub fn selected_by(&self, document: u32) -> Option<usize> {
        let picks = &self.selection.picks;
        picks.binary_search_by_key(&document, |pick| pick.document).ok().map(|pick| picks[pick].target)
    }

    /// Chance of being selected, given what all others in its pool competed with: see [`chance_in_turns`].
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
        let weight = |target| total_weight(scores, model, &self.settings, document, scores.weight(document, target));
        chance_in_turns(&self.settings, self.selection.turns_of(pool), self.selected_by(document), weight)
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

    /// Whether it could be selected: by sensitivity it also needs an embedding.
    pub fn competes(&self, scores: &Scores, plan: &SelectionPlan, document: u32) -> bool {
        let has_score = match &self.drawn {
            Drawn::Sensitivities(of) => of.score(document).is_finite(),
            Drawn::Weights | Drawn::Strata(_) | Drawn::Tokens(_) => true,
        };
        has_score && scores.is_candidate(document, plan)
    }

    /// The picks among the documents `from..to`, by number.
    pub fn picks(&self, from: u32, to: u32) -> &[Pick] {
        let picks = &self.selection.picks;
        &picks[picks.partition_point(|p| p.document < from)..picks.partition_point(|p| p.document < to)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_temperature_can_give_is_said_with_the_reason() {
        let said = |totals: &[f64], share| automatic_temperature(totals, share).unwrap_err().0;
        let apart: Vec<f64> = (0..10).map(f64::from).collect();
        assert_eq!(said(&apart, 0.1), "--temperature auto: a tenth of 10 documents is 1; give auto:0.5 or a number");
        assert!(said(&apart[..2], 0.3).contains("a share of 0.3 of 2 documents is 0.6; give auto:0.9 or a number"));
        let tied = [&[9.0; 8][..], &apart[..7]].concat();
        assert!(said(&tied, 0.1).contains("is 1.5, and 8 share the highest weight; give auto:0.9 or a number"));
        let mostly_tied = [&[9.0; 39][..], &apart[..1]].concat();
        assert!(said(&mostly_tied, 0.1).ends_with("is 4, and 39 share the highest weight; give a number"));
        for (share, totals) in [(0.5, &apart[..]), (0.9, &apart[..2]), (0.9, &tied[..])] {
            assert!(automatic_temperature(totals, share).is_ok(), "what is said helps");
        }
    }
}
