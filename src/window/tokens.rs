//! A window whose fraction is one of tokens: how many those are is known when all documents have come, so that only numbers are held
//! until then, and the documents wait elsewhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::TurnSummary;
use super::candidates::{Candidate, Choice, Chosen, Deciding};
use super::columns::{self, Offsets};
use super::covered::SpooledRow;
use crate::select::{Division, RankedDocument, TokenPool, token_budgets};

/// What deciding allocates for a candidate meanwhile: its place in a pool, the sum up to it, and what is decided of it.
const DECIDING_BYTES: usize = 64;

/// A budget in tokens, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenTurn {
    /// What was to be selected; not rounded.
    pub budget: f64,
    /// In all candidates.
    pub candidates: u64,
    pub selected: u64,
}

/// Numbers of the candidates, by number; their total log weights are among the window's statistics.
#[derive(Debug)]
pub(super) struct TokenCandidates {
    division: Arc<Division>,
    offsets: Offsets,
    n_tokens: Vec<u32>,
    /// Empty where there is only one.
    pools: Vec<u16>,
}

impl TokenCandidates {
    /// # Panics
    /// If there are several targets: what each leaves to the next is known in documents only.
    pub fn new(division: &Arc<Division>) -> Self {
        assert_eq!(division.n_targets(), 1, "tokens of several targets");
        TokenCandidates {
            division: division.clone(),
            offsets: Offsets::default(),
            n_tokens: Vec::new(),
            pools: Vec::new(),
        }
    }

    /// Keeps the numbers of the next candidate, and gives the rest away.
    pub fn take(&mut self, offset: i64, candidate: Candidate) -> SpooledRow {
        if self.division.n_pools() > 1 {
            columns::push(&mut self.pools, candidate.pool_in(&self.division) as u16);
        }
        let Candidate { document, score, other_weights, .. } = candidate;
        self.offsets.push(offset);
        columns::push(&mut self.n_tokens, score.budget_tokens());
        SpooledRow { document, score, other_weights, point: Vec::new() }
    }

    /// What is held, and what deciding takes beside it. The documents never come back all together.
    pub fn held_bytes(&self) -> usize {
        self.offsets.held_bytes()
            + columns::held_bytes(&self.n_tokens)
            + columns::held_bytes(&self.pools)
            + self.n_tokens.len() * DECIDING_BYTES
    }

    pub fn choose(self, by: &Deciding<'_>) -> Choice {
        let pools = self.pools(by);
        let mut chosen = Vec::new();
        for pool in &pools {
            for (rank, of) in pool.selected().iter().enumerate() {
                let weight = by.log_weights[of.document as usize];
                chosen.push(Chosen {
                    number: of.document,
                    offset: self.offsets.get(of.document),
                    target: 0,
                    key: of.key,
                    inclusion_probability: pool.inclusion_probability(by.selector, weight, rank),
                    ratio: 1.0,
                });
            }
        }
        chosen.sort_unstable_by_key(|chosen| chosen.number);
        let turn = |(number, pool): (usize, &TokenPool)| TurnSummary {
            source: self.division.source_of(number).map(str::to_owned),
            target: None,
            n_candidates: pool.n_candidates(),
            n_selected: pool.selected().len() as u64,
            threshold: pool.threshold(),
            tokens: Some(TokenTurn {
                budget: pool.budget(),
                candidates: pool.available(),
                selected: pool.selected_tokens(),
            }),
        };
        Choice {
            chosen,
            candidates: Vec::new(),
            threshold: if let [whole] = &pools[..] { whole.threshold() } else { None },
            turns: pools.iter().enumerate().map(turn).collect(),
            coverage: None,
            sensitivity: None,
            clusters: None,
            edges: None,
            targets: Vec::new(),
            other_log_weights: Vec::new(),
        }
    }

    fn pools(&self, by: &Deciding<'_>) -> Vec<TokenPool> {
        let Deciding { selector, noise, from, n_tokens, log_weights, .. } = *by;
        let mut pools = vec![Vec::new(); self.division.n_pools()];
        for (document, &n_tokens) in self.n_tokens.iter().enumerate() {
            let offset = self.offsets.get(document as u32);
            let pool = self.pools.get(document).map_or(0, |pool| usize::from(*pool));
            let key = selector.key(noise, offset, log_weights[document]);
            pools[pool].push(RankedDocument { document: document as u32, key, n_tokens });
        }
        let sum = |pool: &Vec<RankedDocument>| pool.iter().map(|of| u64::from(of.n_tokens)).sum();
        let available: Vec<u64> = pools.iter().map(sum).collect();
        let budgets = token_budgets(selector.fraction.of_tokens(n_tokens), self.division.pool_shares(), &available);
        let uniform = noise.rounding(from);
        pools.into_iter().zip(budgets).map(|(pool, budget)| TokenPool::new(pool, budget, uniform)).collect()
    }
}
