//! A selection by sensitivity as it is recorded: what points and losses are taken from.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::features::Featuriser;
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
    #[serde(default, skip_serializing_if = "CentresFrom::is_window")]
    pub centres_from: CentresFrom,
}

/// What centres stand near to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CentresFrom {
    /// Clusters that every window finds among its own documents.
    #[default]
    Window,
    /// Clusters of the stream: see [`super::ClusterMeans`].
    Stream,
}

impl CentresFrom {
    fn is_window(&self) -> bool {
        *self == CentresFrom::Window
    }
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
    /// Names what points are: those with another name cannot be compared with them.
    pub fn space(&self, featuriser: &Featuriser) -> String {
        match &self.embedding {
            Some(EmbeddingField { field, .. }) => format!("field {field}"),
            None => format!("n-grams {}", serde_json::to_string(featuriser).unwrap_or_default()),
        }
    }

    /// How many documents of a window its centres are found among: fewer of large points.
    pub fn sample_size(&self, dims: usize) -> usize {
        SAMPLE.min(SAMPLE_BYTES / (4 * dims).max(1)).max(1)
    }
}

impl fmt::Display for SensitivitySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SensitivitySelector { centres, exponent, floor, embedding, losses, centres_from } = self;
        let losses = match losses {
            LossSource::Record => "losses of the records",
            LossSource::Expected => "expected losses",
            LossSource::None => "no losses, by distance alone",
        };
        match embedding {
            Some(EmbeddingField { field, .. }) => write!(f, "embeddings in `{field}`")?,
            None => f.write_str("projected n-grams in place of embeddings")?,
        }
        let of = if *centres_from == CentresFrom::Stream { " of the stream" } else { "" };
        write!(f, ", {centres} centres{of}, {losses}, power {exponent} of the distance, a floor of {floor}")
    }
}
