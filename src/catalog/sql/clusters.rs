//! Clusters that move with publications.

use std::sync::Arc;

use async_trait::async_trait;

use super::database::{Row, Tx, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{CatalogError, ClustersAddition, ClustersCatalog};
use crate::manifest::ShardManifest;
use crate::select::{ClusterMeans, ClusterVersion};

const NEWEST: &str = "SELECT version, began, state FROM clusters WHERE pipeline = $1 ORDER BY version DESC LIMIT 1";

impl SqlCatalog {
    /// Makes the next version, within the transaction of a publication. The outer error: a statement failed.
    pub(super) async fn add_clusters(
        &self,
        tx: &mut Tx,
        manifest: &ShardManifest,
        addition: &ClustersAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let pipeline = manifest.pipeline.as_str();
        let newest = match self.parse_clusters(&tx.rows(NEWEST, values![pipeline]).await?) {
            Ok(newest) => newest,
            Err(error) => return Ok(Err(error)),
        };
        let Some(ClusterVersion { version, began, means }) = next(newest, addition) else { return Ok(Ok(())) };
        let state = means.to_bytes();
        let n_kept = (addition.history_bytes / state.len() as u64).max(1) as i64;
        tx.execute(
            "INSERT INTO clusters (pipeline, version, began, shard, half_life_documents, n_documents, state, created_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            values![
                pipeline,
                version,
                began,
                manifest.shard.as_str(),
                addition.half_life_documents as i64,
                addition.addition.tally.n_documents(),
                &state[..],
                now_ms(),
            ],
        )
        .await?;
        tx.execute(
            "UPDATE clusters SET state = NULL WHERE pipeline = $1 AND version <= $2 AND state IS NOT NULL",
            values![pipeline, version - n_kept],
        )
        .await?;
        Ok(Ok(()))
    }

    /// `None` where there is no row, or it is forgotten.
    fn parse_clusters(&self, rows: &[Row]) -> Result<Option<ClusterVersion>, CatalogError> {
        let Some(row) = rows.first() else { return Ok(None) };
        let columns = || Ok((row.get(0)?, row.get(1)?, row.get::<Option<Vec<u8>>>(2)?));
        let (version, began, state) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
        let Some(state) = state else { return Ok(None) };
        let means = ClusterMeans::from_bytes(&state);
        let means = means.map_err(|e| self.damaged(format!("clusters of version {version}: {e}")))?;
        Ok(Some(ClusterVersion { version, began, means: Arc::new(means) }))
    }
}

/// The version after the newest one; `None` where nothing can be added to it.
fn next(newest: Option<ClusterVersion>, addition: &ClustersAddition<'_>) -> Option<ClusterVersion> {
    let ClustersAddition { addition, half_life_documents, .. } = addition;
    let version = newest.as_ref().map_or(0, |newest| newest.version + 1);
    match (newest, addition.began) {
        (Some(newest), Some(began)) if newest.began == began && newest.means.is_like(&addition.tally) => {
            let mut means = Arc::unwrap_or_clone(newest.means);
            means.add(&addition.tally, *half_life_documents);
            Some(ClusterVersion { version, began, means: Arc::new(means) })
        }
        // A window that opened before there were any.
        (Some(newest), None) if newest.means.is_like(&addition.tally) => None,
        (_, None) => {
            addition.tally.begin().map(|means| ClusterVersion { version, began: version, means: Arc::new(means) })
        }
        // Of clusters that are no more.
        (_, Some(_)) => None,
    }
}

#[async_trait]
impl ClustersCatalog for SqlCatalog {
    async fn newest_clusters(&self, pipeline: &str) -> Result<Option<ClusterVersion>, CatalogError> {
        let rows = self.database.rows(NEWEST, values![pipeline]).await;
        self.parse_clusters(&rows.map_err(|e| self.unavailable(e))?)
    }

    async fn newest_clusters_version(&self, pipeline: &str) -> Result<Option<i64>, CatalogError> {
        let sql = "SELECT version FROM clusters WHERE pipeline = $1 ORDER BY version DESC LIMIT 1";
        Ok(self.select(sql, values![pipeline], |row| row.get(0)).await?.pop())
    }

    async fn clusters(&self, pipeline: &str, version: i64) -> Result<Option<ClusterVersion>, CatalogError> {
        let sql = "SELECT version, began, state FROM clusters WHERE pipeline = $1 AND version = $2";
        let rows = self.database.rows(sql, values![pipeline, version]).await;
        self.parse_clusters(&rows.map_err(|e| self.unavailable(e))?)
    }
}
