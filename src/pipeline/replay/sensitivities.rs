//! What decided about a document in a window that was drawn by sensitivity.

use std::fmt::Write;

use serde::Serialize;

use super::witness::SeenDocument;
use crate::select::{Noise, SelectorSettings, SensitivityPool};
use crate::window::{PointSource, SensitivitySummary};

/// What a sensitivity selection says of one document.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedSensitivity {
    pub points: PointSource,
    /// The field that embeddings are in, if they are.
    pub embedding_field: Option<String>,
    /// Of the document; `null`: it has no point. Those of other dimensions than the window's do not compete.
    pub dimensions: Option<u32>,
    pub window_dimensions: u32,
    /// `null`: it does not compete.
    pub score: Option<ExplainedScore>,
    /// The documents that it competed with.
    pub pool: SensitivityPool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExplainedScore {
    /// The nearest centre, from 0, its loss, and the distance to it.
    pub centre: u32,
    pub loss: f64,
    pub distance: f64,
    /// What a unit of distance, to this power, counts.
    pub scale: f64,
    pub distance_power: u32,
    /// The loss, and what the distance adds.
    pub unmixed: f64,
    /// That, mixed with the mean of all by the floor.
    pub score: f64,
    /// Its number in (0, 1); the key is ln (score / uniform).
    pub uniform: f64,
    pub key: f64,
}

impl ExplainedSensitivity {
    /// `None` where windows are not drawn so.
    pub(super) fn of(
        selector: &SelectorSettings,
        summary: Option<&SensitivitySummary>,
        (offset, document): (i64, &SeenDocument),
        pool: usize,
        noise: &Noise,
    ) -> Option<Self> {
        let (sensitivity, summary) = (selector.sensitivity.as_ref()?, summary?);
        let score = document.placed.map(|placed| {
            let uniform = noise.priority(offset);
            ExplainedScore {
                centre: placed.sensitivity.centre,
                loss: placed.loss,
                distance: placed.sensitivity.distance,
                scale: summary.scale,
                distance_power: sensitivity.exponent,
                unmixed: placed.sensitivity.score,
                score: placed.score,
                uniform,
                key: placed.score.ln() - uniform.ln(),
            }
        });
        Some(ExplainedSensitivity {
            points: summary.points,
            embedding_field: sensitivity.embedding.as_ref().map(|embedding| embedding.field.clone()),
            dimensions: document.point.as_ref().map(|point| point.len() as u32),
            window_dimensions: summary.dimensions,
            score,
            pool: summary.pools.get(pool)?.sample,
        })
    }

    pub fn competes(&self) -> bool {
        self.score.is_some()
    }

    /// Chance of being selected, but for that of the window to select anything.
    pub fn inclusion_probability(&self) -> f64 {
        self.score.as_ref().map_or(0.0, |of| self.pool.inclusion_probability(of.score))
    }

    pub fn in_words(&self, is_selected: bool) -> String {
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = self.write(is_selected, &mut text);
        text
    }

    fn write(&self, is_selected: bool, text: &mut String) -> std::fmt::Result {
        let field = self.embedding_field.as_deref().unwrap_or_default();
        let Some(of) = &self.score else {
            return match self.dimensions {
                None => write!(text, "it has no embedding in field `{field}`"),
                Some(dims) => {
                    let usual = self.window_dimensions;
                    write!(text, "its embedding has {dims} numbers, most of its window have {usual}")
                }
            };
        };
        let SensitivityPool { documents, selected, threshold, .. } = self.pool;
        let (centre, loss, score, key) = (of.centre, of.loss, of.score, of.key);
        write!(
            text,
            "it is {:.6} from centre {centre}, whose loss is {loss:.6}, which scores {score:.6}; ",
            of.distance
        )?;
        match threshold {
            _ if selected == 0 => write!(text, "none of {documents} candidates was to be selected"),
            Some(threshold) => {
                let is = if is_selected { "is above" } else { "is not above" };
                write!(
                    text,
                    "its key {key:.6} {is} the threshold {threshold:.6}, the best that was not selected: {selected} of \
                     {documents} selected"
                )
            }
            None => write!(text, "all {documents} candidates were selected"),
        }
    }
}
