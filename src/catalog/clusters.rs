//! Clusters that move with the publications of a pipeline, version by version.

use async_trait::async_trait;

use super::CatalogError;
use crate::select::{ClusterAddition, ClusterVersion};

/// What the windows of a publication say of clusters: they make the next version, or are the first ones. Clusters begin anew with those
/// that a window has found itself, where the newest are of another space, or are more or fewer.
#[derive(Debug, Clone, Copy)]
pub struct ClustersAddition<'a> {
    pub addition: &'a ClusterAddition,
    pub half_life_documents: u64,
    /// Older versions are forgotten beyond this; the newest one is always kept.
    pub history_bytes: u64,
}

/// Additions are a part of [`super::Catalog::publish`].
#[async_trait]
pub trait ClustersCatalog: Send + Sync {
    /// `None`: there are none yet.
    async fn newest_clusters(&self, pipeline: &str) -> Result<Option<ClusterVersion>, CatalogError>;

    /// The number of the newest alone.
    async fn newest_clusters_version(&self, pipeline: &str) -> Result<Option<i64>, CatalogError>;

    /// `None`: there is no such version, or it has been forgotten.
    async fn clusters(&self, pipeline: &str, version: i64) -> Result<Option<ClusterVersion>, CatalogError>;
}
