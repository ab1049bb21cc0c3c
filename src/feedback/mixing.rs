//! Shares of sources, turn by turn: all that was reported since the turn before makes a turn.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ado::{Ado, Sums};
use super::odm::{Odm, OdmPolicy};
use super::statistics::name_among;

/// How shares are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixing {
    Odm(OdmPolicy),
    Ado,
}

impl Mixing {
    pub fn name(self) -> &'static str {
        match self {
            Mixing::Ado => "ado",
            Mixing::Odm(policy) => policy.name(),
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ado" => Some(Mixing::Ado),
            name => OdmPolicy::from_name(name).map(Mixing::Odm),
        }
    }
}

/// What was reported since the last turn, by source. Losses of a source weigh as many as their tokens, as they do in training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    sources: BTreeMap<String, Sums>,
    n_losses: u64,
}

impl Turn {
    /// A loss of a source among those that are told apart.
    pub fn add(&mut self, source: Option<&str>, loss: f64, n_tokens: f64) {
        self.n_losses += 1;
        if let Some(name) = name_among(&self.sources, source) {
            let (sum, tokens) = self.sources.entry(name.to_owned()).or_default();
            *sum += loss * n_tokens;
            *tokens += n_tokens;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.n_losses == 0
    }
}

/// The state of either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    Odm(Odm),
    Ado(Ado),
}

impl Mixer {
    pub fn new(mixing: Mixing) -> Self {
        match mixing {
            Mixing::Odm(_) => Mixer::Odm(Odm::default()),
            Mixing::Ado => Mixer::Ado(Ado::default()),
        }
    }

    /// Goes on with a turn; begins anew if it was of the other kind.
    pub fn turn(&mut self, turn: &Turn, mixing: Mixing, floor: f64) {
        match (&mut *self, mixing) {
            (Mixer::Odm(odm), Mixing::Odm(policy)) => {
                let means = turn.sources.iter().filter(|(_, (_, tokens))| *tokens > 0.0);
                let means = means.map(|(source, (sum, tokens))| (source.clone(), sum / tokens)).collect();
                odm.turn(&means, policy, floor);
            }
            (Mixer::Ado(ado), Mixing::Ado) => ado.turn(&turn.sources, floor),
            _ => {
                *self = Mixer::new(mixing);
                self.turn(turn, mixing, floor);
            }
        }
    }

    pub fn proportions(&self) -> &BTreeMap<String, f64> {
        match self {
            Mixer::Odm(odm) => odm.proportions(),
            Mixer::Ado(ado) => ado.proportions(),
        }
    }
}

#[cfg(test)]
mod tests;
