//! Selections whose size is counted in tokens: the best documents of a pool until its budget of tokens is spent. Pure.
//!
//! Documents lie on a line by descending keys, each as long as it has tokens, and one is taken whose point at the share
//! `uniform` of its length lies before the end of the budget. So only the document that crosses that end is in doubt. With a half
//! it is taken if that brings the sum nearer to the budget: for one selection. With a number drawn at random in (0, 1) the
//! expected sum is the budget, however small it is: for many small selections, of which those with less than a document must not
//! always go empty. Either way a pool is less than one document away from its budget, if it has so many tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Fraction, SelectorSettings};

/// What fractions and shares are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    #[default]
    Documents,
    Tokens,
}

impl Unit {
    pub const NAMES: [&str; 2] = ["documents", "tokens"];

    pub fn is_documents(&self) -> bool {
        *self == Unit::Documents
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[usize::from(*self == Unit::Tokens)])
    }
}

/// The candidates of one pool by descending keys, and its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenPool {
    ranked: Vec<RankedDocument>,
    /// Tokens of the candidates up to each.
    sums: Vec<u64>,
    n_selected: usize,
    budget: f64,
    uniform: f64,
}

/// A candidate of a [`TokenPool`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedDocument {
    /// Its number among all documents.
    pub document: u32,
    pub key: f64,
    pub n_tokens: u32,
}

impl RankedDocument {
    fn is_before(&self, other: &Self) -> bool {
        other.key.total_cmp(&self.key).then(self.document.cmp(&other.document)).is_lt()
    }
}

impl TokenPool {
    /// Equal keys rank by number, lower first: the order in which candidates come does not matter.
    ///
    /// # Panics
    /// If a key is not a number, or `uniform` is not in (0, 1).
    pub fn new(mut candidates: Vec<RankedDocument>, budget: f64, uniform: f64) -> Self {
        assert!(candidates.iter().all(|of| !of.key.is_nan()), "a key is not a number");
        assert!(uniform > 0.0 && uniform < 1.0, "{uniform} as a share of a document");
        candidates.sort_unstable_by(|a, b| b.key.total_cmp(&a.key).then(a.document.cmp(&b.document)));
        let sum = |sum: &mut u64, of: &RankedDocument| {
            *sum += u64::from(of.n_tokens);
            Some(*sum)
        };
        let sums: Vec<u64> = candidates.iter().scan(0, sum).collect();
        let mut pool = TokenPool { ranked: candidates, sums, n_selected: 0, budget, uniform };
        pool.n_selected = match pool.is_full() {
            true => pool.ranked.len(),
            // Whoever stands behind one that is not taken is not either.
            false => (0..pool.ranked.len())
                .position(|rank| pool.is_spent(pool.before(rank), pool.ranked[rank].n_tokens))
                .unwrap_or(pool.ranked.len()),
        };
        pool
    }

    /// Whether a document of so many tokens finds no place behind others of `before` tokens.
    fn is_spent(&self, before: u64, n_tokens: u32) -> bool {
        before as f64 + self.uniform * f64::from(n_tokens) >= self.budget
    }

    fn is_full(&self) -> bool {
        self.budget >= self.available() as f64
    }

    fn before(&self, rank: usize) -> u64 {
        rank.checked_sub(1).map_or(0, |last| self.sums[last])
    }

    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// Tokens of all candidates.
    pub fn available(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    pub fn n_candidates(&self) -> u64 {
        self.ranked.len() as u64
    }

    /// Best first.
    pub fn selected(&self) -> &[RankedDocument] {
        &self.ranked[..self.n_selected]
    }

    /// Of those that are selected.
    pub fn selected_tokens(&self) -> u64 {
        self.before(self.n_selected)
    }

    /// The highest key that is not selected; `None` if all are.
    pub fn threshold(&self) -> Option<f64> {
        self.ranked.get(self.n_selected).map(|first_out| first_out.key)
    }

    /// The place of a candidate, from 0.
    pub fn rank(&self, document: &RankedDocument) -> usize {
        self.ranked.partition_point(|other| other.is_before(document))
    }

    /// The key that the candidate of this rank must beat to be selected, whatever its own noise is: of the best other behind which it
    /// would find no place. It depends on the others and on its length, so that a long one must beat more than a short one; `None`:
    /// it is selected with any key.
    pub fn threshold_of(&self, rank: usize) -> Option<f64> {
        if self.is_full() {
            return None;
        }
        let n_tokens = self.ranked[rank].n_tokens;
        let has_place_behind = |others: u64| !self.is_spent(others, n_tokens);
        let better = self.sums[..rank].partition_point(|sum| has_place_behind(*sum));
        if better < rank {
            return Some(self.ranked[better].key);
        }
        let worse = &self.sums[rank + 1..];
        let beaten = worse.partition_point(|sum| has_place_behind(sum - u64::from(n_tokens)));
        self.ranked.get(rank + 1 + beaten).map(|of| of.key)
    }

    /// Chance that the candidate of this rank is selected, given all others and that it finds a place at all, times the chance of that.
    pub fn inclusion_probability(&self, selector: &SelectorSettings, total_log_weight: f64, rank: usize) -> f64 {
        self.chance(self.ranked[rank].n_tokens)
            * selector.inclusion_probability(total_log_weight, self.threshold_of(rank))
    }

    /// Chance, over a `uniform` that is drawn at random, that a document of so many tokens can be selected at all.
    pub fn chance(&self, n_tokens: u32) -> f64 {
        if self.is_full() { 1.0 } else { (self.budget / f64::from(n_tokens.max(1))).min(1.0) }
    }
}

/// `total` tokens in proportion to `shares`, none above what is `available`; what the full pools leave goes to the others by their
/// shares, and at last to those whose share is 0. They sum to `total`, or to all that is available.
///
/// # Panics
/// If the two have different lengths.
pub fn token_budgets(total: f64, shares: &[f64], available: &[u64]) -> Vec<f64> {
    assert_eq!(shares.len(), available.len(), "every pool has a share");
    let mut budgets = vec![0.0; shares.len()];
    let mut left = total;
    let mut open: Vec<usize> = (0..shares.len()).filter(|&i| available[i] > 0).collect();
    while !open.is_empty() && left > 0.0 {
        let sum: f64 = open.iter().map(|&i| shares[i]).sum();
        let all: f64 = open.iter().map(|&i| available[i] as f64).sum();
        let due = |i: usize| if sum > 0.0 { shares[i] / sum * left } else { available[i] as f64 / all * left };
        let (full, rest): (Vec<_>, Vec<_>) = open.iter().partition(|&&i| due(i) >= available[i] as f64);
        if full.is_empty() {
            rest.iter().for_each(|&i| budgets[i] = due(i));
            break;
        }
        for &i in &full {
            budgets[i] = available[i] as f64;
        }
        left -= full.iter().map(|&i| available[i] as f64).sum::<f64>();
        open = rest;
    }
    budgets
}

impl Fraction {
    /// So many of `n` tokens, not rounded.
    pub fn of_tokens(self, n: u64) -> f64 {
        let (whole, part) = self.whole_and_chance(n);
        whole as f64 + part
    }
}

#[cfg(test)]
mod tests;
