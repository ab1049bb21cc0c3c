//! Sketches of the numbers that strata are cut by, which follow the publications of a pipeline.

use async_trait::async_trait;

use super::CatalogError;
use crate::select::{EdgeTally, EdgesVersion};

/// What the windows of a publication add to the sketches of these numbers, of which they make the next version.
#[derive(Debug, Clone, Copy)]
pub struct EdgesAddition<'a> {
    /// See [`crate::select::CoverageSelector::numbers`].
    pub numbers: &'a str,
    pub tally: &'a EdgeTally,
    pub half_life_documents: u64,
}

/// Additions are a part of [`super::Catalog::publish`].
#[async_trait]
pub trait EdgesCatalog: Send + Sync {
    /// `None`: there are none of these numbers yet.
    async fn newest_edges(&self, pipeline: &str, numbers: &str) -> Result<Option<EdgesVersion>, CatalogError>;
}
