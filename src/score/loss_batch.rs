//! The weights of a global batch, from what its ranks report. Pure.
//!
//! In: the reports of one step, of all ranks or of those that came. Out: [`BatchWeights`], one weight a sample in the order
//! of ranks and places, summing to 1. A batch is weighed as a whole: the range of its losses, and so every weight, depends on
//! all of them.
//!
//! [`Assembly`] puts the reports of a step together; [`KnownSteps`] remembers which steps had which losses.

mod assembly;
mod known_steps;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{LossWeight, LossWeightError};
use crate::record::{BadLoss, LossReport, SampleLoss};

pub use assembly::{Assembled, Assembly, AssemblySettings, Taken, Why};
pub use known_steps::{Entered, KnownSteps, StepKey};

/// The reports of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalBatch {
    pub run_id: String,
    pub step: u64,
    pub world_size: u32,
    /// One a rank, in the order of ranks; some may be missing.
    reports: Vec<LossReport>,
}

/// What a trainer gets. As JSON it is the answer of `POST /v1/weights` and the record of `losses.weights_topic`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchWeights {
    pub run_id: String,
    pub step: u64,
    pub strategy: &'static str,
    /// `None` during the burn-in, when weights are equal.
    pub temperature: Option<f64>,
    pub world_size: u32,
    pub missing_ranks: Vec<u32>,
    pub n_samples: usize,
    /// Of those, samples whose loss cannot be used.
    pub n_bad: usize,
    /// (Σw)² / Σw²: from 1 to the number of samples.
    pub effective_sample_size: f64,
    /// How many of `weights` are whose, in order.
    pub ranks: Vec<RankSamples>,
    pub weights: Vec<SampleWeight>,
    /// The samples whose loss cannot be used. Their weights are what `loss_weight.non_finite` says.
    pub bad: Vec<BadSample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankSamples {
    pub rank: u32,
    pub n_samples: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleWeight {
    /// As reported; `null` where the report names none.
    pub id: Option<String>,
    pub weight: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadSample {
    pub rank: u32,
    /// Its place in the report of the rank, from 0.
    pub place: usize,
    pub id: Option<String>,
    pub reason: &'static str,
}

/// Why a batch has no weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BatchError {
    #[error("{n_bad} of {n_samples} losses are bad (loss_weight.non_finite = error): {first}")]
    Bad { n_samples: usize, n_bad: usize, first: String },
    #[error("none of {n_samples} losses can be used: {first}")]
    NoneUsable { n_samples: usize, first: String },
}

impl GlobalBatch {
    /// Of what one report says of a whole batch.
    pub fn of_one(report: LossReport) -> Self {
        let LossReport { world_size, step, .. } = report;
        GlobalBatch { run_id: report.run_id.clone(), step, world_size, reports: vec![report] }
    }

    /// Names the losses: the same samples with the same losses in the same order have the same digest, however they were
    /// written.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for report in &self.reports {
            hash.update(report.rank.to_le_bytes());
            hash.update((report.losses.len() as u64).to_le_bytes());
            for SampleLoss { id, loss, n_tokens } in &report.losses {
                hash.update((id.len() as u64).to_le_bytes());
                hash.update(id);
                hash.update(loss.to_bits().to_le_bytes());
                hash.update(n_tokens.unwrap_or(0).to_le_bytes());
            }
            for BadLoss { place, id, reason } in &report.bad {
                hash.update((*place as u64).to_le_bytes());
                hash.update(id.as_deref().unwrap_or("\0"));
                hash.update(reason.as_str());
            }
        }
        hash.finalize().into()
    }

    fn missing_ranks(&self) -> Vec<u32> {
        let mut came = self.reports.iter().map(|report| report.rank).peekable();
        (0..self.world_size).filter(|rank| came.next_if_eq(rank).is_none()).collect()
    }
}

impl BatchWeights {
    /// # Errors
    /// If a loss cannot be used and the settings call that an error, or none can be used and the settings give those no weight.
    pub fn of(weigh: &LossWeight, batch: GlobalBatch) -> Result<Self, BatchError> {
        let settings = weigh.settings();
        let missing_ranks = batch.missing_ranks();
        let GlobalBatch { run_id, step, world_size, reports } = batch;
        let (mut ids, mut losses, mut ranks, mut bad) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for report in reports {
            ranks.push(RankSamples { rank: report.rank, n_samples: report.n_entries() });
            let (rank, mut good) = (report.rank, report.losses.into_iter());
            let mut take = |n: usize, ids: &mut Vec<_>, losses: &mut Vec<_>| {
                for sample in good.by_ref().take(n) {
                    ids.push(Some(sample.id));
                    losses.push(sample.loss);
                }
            };
            let first = ids.len();
            for BadLoss { place, id, reason } in report.bad {
                take(place - (ids.len() - first), &mut ids, &mut losses);
                ids.push(id.clone());
                losses.push(f64::NAN);
                bad.push(BadSample { rank, place, id, reason: reason.as_str() });
            }
            take(usize::MAX, &mut ids, &mut losses);
        }
        let n_samples = losses.len();
        let weights = weigh.weights(&losses, step).map_err(|error| match error {
            LossWeightError::NotFinite { .. } => {
                BatchError::Bad { n_samples, n_bad: bad.len(), first: first_of(&bad, world_size) }
            }
            LossWeightError::NoneFinite { .. } => {
                BatchError::NoneUsable { n_samples, first: first_of(&bad, world_size) }
            }
        })?;
        let (sum, squares) = weights.iter().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
        Ok(BatchWeights {
            run_id,
            step,
            strategy: settings.strategy.as_str(),
            temperature: settings.temperature.at(step),
            world_size,
            missing_ranks,
            n_samples,
            n_bad: bad.len(),
            effective_sample_size: if squares > 0.0 { sum * sum / squares } else { 0.0 },
            ranks,
            weights: ids.into_iter().zip(weights).map(|(id, weight)| SampleWeight { id, weight }).collect(),
            bad,
        })
    }

    /// The weights as multiples of the mean weight.
    pub fn multiples(&self) -> Vec<f64> {
        self.weights.iter().map(|sample| sample.weight * self.n_samples as f64).collect()
    }
}

/// Names as many as a line holds.
fn first_of(bad: &[BadSample], world_size: u32) -> String {
    const SHOWN: usize = 5;
    let name = |sample: &BadSample| {
        let of_rank = if world_size > 1 { format!(" of rank {}", sample.rank) } else { String::new() };
        let id = sample.id.as_deref().map(|id| format!(" (`{}`)", id.chars().take(40).collect::<String>()));
        format!("number {}{of_rank}{} is {}", sample.place, id.unwrap_or_default(), sample.reason)
    };
    let shown: Vec<_> = bad.iter().take(SHOWN).map(name).collect();
    shown.join(", ") + if bad.len() > SHOWN { ", …" } else { "" }
}

#[cfg(test)]
mod tests;
