//! A selection by sensitivity as it is recorded: what points and losses are taken from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::EmbeddingField;
use crate::score::Score;

/// Documents of a window among which its centres are found, and bytes of their points.
const SAMPLE: usize = 16_384;
const SAMPLE_BYTES: usize = 16 << 20;
/// Sums over any number of documents stay finite with losses up to here.
const MAX_LOSS: f64 = 1e30;

/// How a window is selected from, and by which points and losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SensitivitySelector {
    /// At most so many.
    pub centres: u32,
    /// z.
    pub exponent: u32,
    /// γ.
    pub floor: f64,
    /// `None`: the projected n-grams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<EmbeddingField>,
    pub losses: LossSource,
}

/// Where the losses at centres come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossSource {
    /// Of the records.
    Record,
    /// Those that are expected, learnt from what trainers report.
    Expected,
    /// There are none: only distances count.
    None,
}

impl LossSource {
    pub fn as_str(self) -> &'static str {
        match self {
            LossSource::Record => "record",
            LossSource::Expected => "expected",
            LossSource::None => "none",
        }
    }

    /// The loss of a document that could be a centre.
    pub fn of(self, score: &Score) -> Option<f64> {
        let loss = match self {
            LossSource::Record => score.loss,
            LossSource::Expected => score.expected_loss,
            LossSource::None => Some(0.0),
        };
        loss.map(|loss| loss.min(MAX_LOSS))
    }
}

impl SensitivitySelector {
    /// How many documents of a window its centres are found among: fewer of large points.
    pub fn sample_size(&self, dims: usize) -> usize {
        SAMPLE.min(SAMPLE_BYTES / (4 * dims).max(1)).max(1)
    }
}

impl fmt::Display for SensitivitySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SensitivitySelector { centres, exponent, floor, embedding, losses } = self;
        let losses = match losses {
            LossSource::Record => "losses of the records",
            LossSource::Expected => "expected losses",
            LossSource::None => "no losses, by distance alone",
        };
        match embedding {
            Some(EmbeddingField { field, .. }) => write!(f, "embeddings in `{field}`")?,
            None => f.write_str("projected n-grams in place of embeddings")?,
        }
        write!(f, ", {centres} centres, {losses}, power {exponent} of the distance, a floor of {floor}")
    }
}
