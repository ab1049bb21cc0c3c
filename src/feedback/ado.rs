//! Adaptive data optimisation: sources by how fast their scaling laws say that they are being learnt (Jiang et al. 2024, "Adaptive Data
//! Optimization: Dynamic Sample Selection with Scaling Laws"; formulas of the released code).
//!
//! A turn stands for what the code smooths out of many steps (Savitzky-Golay, every tenth): it is a mean of many documents
//! already.

mod fit;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use fit::PowerLaw;

/// Laws are fitted at this turn, and then every so many.
const FIRST_FIT: u64 = 20;
const REFIT: u64 = 10;
/// Points of a source's history: when there are as many, every second is dropped, and from then on every second is taken.
const MAX_POINTS: usize = 256;
const LEAST_POINTS: usize = 8;
/// Exponents are not taken for less: a law that has gone flat is a poor one.
const LEAST_EXPONENT: f64 = 0.05;

/// Laws, credit and shares by source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ado {
    n_turns: u64,
    /// Of all sources together: they count the same steps.
    n_tokens: f64,
    /// Turns between two points of the histories.
    stride: u64,
    domains: BTreeMap<String, Domain>,
    proportions: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Domain {
    last_loss: f64,
    /// Tokens until the first fit: their share is the prior.
    prior_tokens: f64,
    /// Tokens that had been seen, and the loss.
    points: Vec<(f64, f64)>,
    law: Option<PowerLaw>,
    /// h: share of the batches, smoothed.
    credit: f64,
    /// Mean of ρ over time.
    average: f64,
}

/// What a turn knows of a source: Σ loss · tokens, Σ tokens.
pub(super) type Sums = (f64, f64);

impl Ado {
    /// Takes the sums of a turn. `floor`: no share of ρ is smaller before shares are made to sum to 1.
    pub fn turn(&mut self, turn: &BTreeMap<String, Sums>, floor: f64) {
        let tokens: f64 = turn.values().map(|(_, tokens)| tokens).sum();
        if tokens <= 0.0 {
            return;
        }
        self.n_turns += 1;
        self.n_tokens += tokens;
        self.note(turn, tokens);
        let since_first = self.n_turns.checked_sub(FIRST_FIT);
        if since_first == Some(0) {
            let of_prior: f64 = self.domains.values().map(|d| d.prior_tokens).sum();
            for domain in self.domains.values_mut() {
                domain.credit = domain.prior_tokens / of_prior;
                domain.average = domain.credit;
            }
        }
        if since_first.is_some_and(|n| n % REFIT == 0) {
            for domain in self.domains.values_mut().filter(|domain| domain.points.len() >= LEAST_POINTS) {
                // A fit that came to nothing leaves the law before.
                domain.law = PowerLaw::fit(&domain.points).or(domain.law);
            }
        }
        match since_first {
            Some(_) => self.share_out(turn, tokens, floor),
            None => self.share_as_before(),
        }
    }

    fn note(&mut self, turn: &BTreeMap<String, Sums>, tokens: f64) {
        let mean = turn.values().map(|(loss, _)| loss).sum::<f64>() / tokens;
        let is_prior = self.n_turns <= FIRST_FIT;
        for (source, (loss_sum, of_source)) in turn.iter().filter(|(_, (_, tokens))| *tokens > 0.0) {
            let new = Domain {
                last_loss: mean,
                // A source that comes after the prior was settled counts as much as it does now.
                prior_tokens: if is_prior { 0.0 } else { of_source * FIRST_FIT as f64 },
                points: Vec::new(),
                law: None,
                credit: of_source / tokens,
                average: of_source / tokens,
            };
            let domain = self.domains.entry(source.clone()).or_insert(new);
            domain.last_loss = loss_sum / of_source;
            if is_prior {
                domain.prior_tokens += of_source;
            }
        }
        self.stride = self.stride.max(1);
        if self.n_turns.is_multiple_of(self.stride) {
            // Where a source is missing in a turn, its last loss stands for it.
            let n_tokens = self.n_tokens;
            self.domains.values_mut().for_each(|d| d.points.push((n_tokens, d.last_loss)));
        }
        if self.domains.values().any(|d| d.points.len() >= MAX_POINTS) {
            self.stride *= 2;
            for domain in self.domains.values_mut() {
                let mut is_kept = true;
                domain.points.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
            }
        }
    }

    /// Before there are laws: as the sources came.
    fn share_as_before(&mut self) {
        let total: f64 = self.domains.values().map(|d| d.prior_tokens).sum();
        self.proportions = self.domains.iter().map(|(source, d)| (source.clone(), d.prior_tokens / total)).collect();
    }

    fn share_out(&mut self, turn: &BTreeMap<String, Sums>, tokens: f64, floor: f64) {
        let of_prior: f64 = self.domains.values().map(|d| d.prior_tokens).sum();
        let n = self.n_tokens;
        let slopes: Vec<Option<f64>> = self.domains.values().map(|d| d.law.map(|law| law.slope(n))).collect();
        let known = || slopes.iter().flatten();
        // Without a law of its own a source learns like the others.
        let usual = known().sum::<f64>() / known().count().max(1) as f64;
        let preference =
            |(d, slope): (&Domain, &Option<f64>)| slope.unwrap_or(usual) * d.prior_tokens / of_prior * d.credit.sqrt();
        let preferences: Vec<f64> = self.domains.values().zip(&slopes).map(preference).collect();
        let rho = normalised(normalised(preferences).into_iter().map(|share| share.max(floor)).collect());
        let each = 1.0 / (self.n_turns + 1) as f64;
        let mut shares = Vec::with_capacity(rho.len());
        for ((source, domain), rho) in self.domains.iter_mut().zip(rho) {
            shares.push(0.9 * domain.average + 0.1 * rho);
            domain.average = (1.0 - each) * domain.average + each * rho;
            let share = turn.get(source).map_or(0.0, |(_, of_source)| of_source / tokens);
            domain.credit = 0.9 * domain.credit + 0.1 * share;
        }
        self.proportions = self.domains.keys().cloned().zip(normalised(shares)).collect();
    }

    /// Shares that sum to 1; empty before the first turn.
    pub fn proportions(&self) -> &BTreeMap<String, f64> {
        &self.proportions
    }
}

fn normalised(shares: Vec<f64>) -> Vec<f64> {
    let (n, total): (_, f64) = (shares.len(), shares.iter().sum());
    let is_fine = total > 0.0 && total.is_finite();
    shares.into_iter().map(|share| if is_fine { share / total } else { 1.0 / n as f64 }).collect()
}
