//! Online data mixing: a bandit over sources whose reward is the training loss (Albalak et al. 2023, "Efficient Online Data Mixing For
//! Language Model Pre-Training"; formulas of the released code, which has three policies under one name).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Losses are taken up to here before they become perplexities.
const MAX_LOSS: f64 = 20.0;
/// What an older reward counts beside a new one.
const SMOOTHING: f64 = 0.9;

/// How rewards become shares. K sources, turn t, ε_t = min(1/K, √(ln K / (K t))).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OdmPolicy {
    /// Shares linear in the smoothed perplexity: w = (1 − K ε_t) R / Σ R + ε_t, R ← 0.9 R + 0.1 exp(loss). What the authors' trainer
    /// calls when a batch mixes sources, as ours do.
    Grouped,
    /// The same rewards, exponentially: w = (1 − K ε_t) exp(ε_{t−1} R) / Σ exp(ε_{t−1} R) + ε_t.
    Smoothed,
    /// Exp3 (Auer et al. 2002): that of R ← R + (loss / 10) / π.
    Exp3,
}

impl OdmPolicy {
    pub fn name(self) -> &'static str {
        match self {
            OdmPolicy::Grouped => "odm",
            OdmPolicy::Smoothed => "odm_smoothed",
            OdmPolicy::Exp3 => "odm_exp3",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [OdmPolicy::Grouped, OdmPolicy::Smoothed, OdmPolicy::Exp3].into_iter().find(|policy| policy.name() == name)
    }
}

/// The bandit's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Odm {
    n_turns: u64,
    /// ε of the turn before.
    epsilon: Option<f64>,
    rewards: BTreeMap<String, f64>,
    proportions: BTreeMap<String, f64>,
}

impl Odm {
    /// Takes the mean loss of each source that appears in a turn. `floor`: no ε is smaller, as far as K sources leave room.
    pub fn turn(&mut self, losses: &BTreeMap<String, f64>, policy: OdmPolicy, floor: f64) {
        // A source that comes later is neither preferred nor forgotten at first: it gets the mean of what is known.
        let mean = self.rewards.values().sum::<f64>() / self.rewards.len().max(1) as f64;
        for source in losses.keys() {
            self.rewards.entry(source.clone()).or_insert(mean);
        }
        let k = self.rewards.len() as f64;
        if k == 0.0 {
            return;
        }
        self.n_turns += 1;
        for (source, loss) in losses {
            let share = self.proportions.get(source).copied().unwrap_or(1.0 / k);
            let Some(reward) = self.rewards.get_mut(source) else { continue };
            let loss = loss.min(MAX_LOSS);
            *reward = match policy {
                OdmPolicy::Grouped | OdmPolicy::Smoothed => SMOOTHING * *reward + (1.0 - SMOOTHING) * loss.exp(),
                OdmPolicy::Exp3 => *reward + loss / 10.0 / share,
            };
        }
        let before = self.epsilon.unwrap_or(1.0 / k);
        let epsilon = (k.ln() / (k * self.n_turns as f64)).sqrt().max(floor).min(1.0 / k);
        self.epsilon = Some(epsilon);
        let largest = self.rewards.values().copied().fold(f64::NEG_INFINITY, f64::max);
        let say = |reward: f64| match policy {
            OdmPolicy::Grouped => reward,
            OdmPolicy::Smoothed | OdmPolicy::Exp3 => (before * (reward - largest)).exp(),
        };
        let total: f64 = self.rewards.values().map(|reward| say(*reward)).sum();
        let weight = |reward: f64| match total > 0.0 {
            true => (1.0 - k * epsilon) * say(reward) / total + epsilon,
            false => 1.0 / k,
        };
        let sum: f64 = self.rewards.values().map(|reward| weight(*reward)).sum();
        let share = |(source, reward): (&String, &f64)| (source.clone(), weight(*reward) / sum);
        self.proportions = self.rewards.iter().map(share).collect();
    }

    /// Shares that sum to 1; empty before the first turn.
    pub fn proportions(&self) -> &BTreeMap<String, f64> {
        &self.proportions
    }
}
