//! A selection that is counted in tokens: of every pool the best documents until its budget is spent, to the nearest document.

use serde::Serialize;

use super::draw::{self, Draw, Drawn, Judged};
use super::scores::Scores;
use super::{Quota, SelectionPlan};
use crate::cli::UsageError;
use crate::score::Model;
use crate::select::{BudgetedSelection, Pick, RankedDocument, TokenPool, Turn, token_budgets};

/// The document that crosses the end of a budget is taken if that brings the sum nearer to it.
const NEAREST: f64 = 0.5;

/// What was drawn of each pool.
pub struct TokenPools {
    /// In all, as asked for.
    pub requested: f64,
    pub pools: Vec<TokenPool>,
}

/// How many tokens were asked for, and selected.
#[derive(Debug, Serialize)]
pub struct TokensReport {
    /// Of all documents of the input.
    pub documents: u64,
    pub requested: f64,
    pub selected: u64,
    pub pools: Vec<TokenPoolReport>,
}

#[derive(Debug, Serialize)]
pub struct TokenPoolReport {
    /// `null`: all sources, or values of `--quota-field`, without a share of their own.
    source: Option<String>,
    candidates: u64,
    budget: f64,
    selected: u64,
}

impl Scores {
    /// What a document takes of a budget in tokens.
    pub fn budget_tokens(&self, document: u32) -> u32 {
        let document = document as usize;
        self.counted.get(document).copied().flatten().unwrap_or(self.n_tokens[document])
    }

    /// Of all documents.
    fn all_tokens(&self) -> u64 {
        (0..self.len() as u32).map(|document| u64::from(self.budget_tokens(document))).sum()
    }
}

impl TokenPools {
    fn of(scores: &Scores, plan: &SelectionPlan, candidates: Vec<Vec<u32>>, key: impl Fn(u32) -> f64) -> Self {
        let requested = match plan.quota {
            Quota::Fraction(fraction) => fraction.of_tokens(scores.all_tokens()),
            Quota::Count(tokens) => tokens as f64,
        };
        let ranked =
            |document: u32| RankedDocument { document, key: key(document), n_tokens: scores.budget_tokens(document) };
        let pools: Vec<Vec<_>> = candidates.into_iter().map(|of| of.into_iter().map(ranked).collect()).collect();
        let sum = |pool: &Vec<RankedDocument>| pool.iter().map(|of| u64::from(of.n_tokens)).sum();
        let available: Vec<u64> = pools.iter().map(sum).collect();
        let budgets = token_budgets(requested, &draw::pool_shares(plan), &available);
        let pools = pools.into_iter().zip(budgets).map(|(pool, budget)| TokenPool::new(pool, budget, NEAREST));
        TokenPools { requested, pools: pools.collect() }
    }

    fn selection(&self) -> BudgetedSelection {
        let pick = |of: &RankedDocument| Pick { document: of.document, target: 0, key: of.key };
        let mut picks: Vec<Pick> = self.pools.iter().flat_map(|pool| pool.selected().iter().map(pick)).collect();
        picks.sort_unstable_by_key(|pick| pick.document);
        let turn = |(pool, of): (usize, &TokenPool)| Turn {
            pool,
            target: 0,
            count: of.selected().len() as u64,
            threshold: of.threshold(),
            // One target chooses, so that nobody asks for these.
            lowest: None,
            first_out: None,
            taken_after: None,
        };
        BudgetedSelection { picks, turns: self.pools.iter().enumerate().map(turn).collect() }
    }

    /// Chance of a candidate of being selected, all others being what they are.
    pub fn inclusion_probability(&self, draw: &Draw, scores: &Scores, model: &Model, document: u32) -> f64 {
        let pool = &self.pools[scores.pool(document)];
        let key = draw.key(scores, model, document, 0);
        let rank = pool.rank(&RankedDocument { document, key, n_tokens: scores.budget_tokens(document) });
        // Nothing is left to chance but the noise.
        let weight = draw::total_weight(scores, model, &draw.settings, document, scores.weight(document, 0));
        draw.settings.inclusion_probability(weight, pool.threshold_of(rank))
    }

    pub fn report(&self, scores: &Scores, plan: &SelectionPlan) -> TokensReport {
        let of_pool = |(number, pool): (usize, &TokenPool)| TokenPoolReport {
            source: number.checked_sub(1).map(|source| plan.sources[source].0.clone()),
            candidates: pool.available(),
            budget: pool.budget(),
            selected: pool.selected_tokens(),
        };
        let pools: Vec<_> = self.pools.iter().enumerate().map(of_pool).collect();
        let selected = pools.iter().map(|pool| pool.selected).sum();
        TokensReport { documents: scores.all_tokens(), requested: self.requested, selected, pools }
    }
}

impl TokensReport {
    /// What is missing, if more than the rounding to whole documents.
    pub fn warning(&self) -> Option<String> {
        let candidates: u64 = self.pools.iter().map(|pool| pool.candidates).sum();
        (self.requested > candidates as f64).then(|| {
            format!(
                "{:.0} tokens were asked for, but the documents that may be selected have {candidates}: all were selected",
                self.requested
            )
        })
    }
}

pub fn draw(scores: &Scores, model: &Model, plan: &SelectionPlan) -> anyhow::Result<Draw> {
    let n_targets = model.targets.len();
    if n_targets > 1 {
        let problem = format!("the model has {n_targets} targets, and only one can be selected for by tokens");
        return Err(UsageError(format!("--unit tokens: {problem}")).into());
    }
    let candidates = draw::candidates(scores, plan);
    let (_, mut settings) = draw::settings(scores, model, plan, 1.0)?;
    settings.temperature = draw::temperature(scores, model, plan, &settings, &candidates)?;
    let noise = draw::noise(plan.seed);
    let key = |document: u32| {
        let weight = draw::total_weight(scores, model, &settings, document, scores.weight(document, 0));
        settings.key(&noise, i64::from(document), weight)
    };
    let pools = TokenPools::of(scores, plan, draw::pools(scores, plan, &candidates), key);
    let selection = pools.selection();
    Ok(Draw {
        noise,
        // Documents are what came of it.
        requested: selection.picks.len() as u64,
        candidates: candidates.len() as u64,
        selection,
        drawn: Drawn::Tokens(pools),
        probabilities: None,
        correction: None,
        windows: None,
        judged: Judged { kind: settings.kind, candidates },
        settings,
    })
}
