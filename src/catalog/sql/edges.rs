//! Sketches that follow publications.

use std::sync::Arc;

use async_trait::async_trait;

use super::database::{Row, Tx, values};
use super::{SqlCatalog, now_ms};
use crate::catalog::{CatalogError, EdgesAddition, EdgesCatalog};
use crate::manifest::ShardManifest;
use crate::select::{EdgeSketches, EdgesVersion};

const NEWEST: &str = "SELECT version, state FROM edges WHERE pipeline = $1 AND numbers = $2";

impl SqlCatalog {
    /// Makes the next version, within the transaction of a publication. The outer error: a statement failed.
    pub(super) async fn add_edges(
        &self,
        tx: &mut Tx,
        manifest: &ShardManifest,
        addition: &EdgesAddition<'_>,
    ) -> Result<Result<(), CatalogError>, sqlx::Error> {
        let EdgesAddition { numbers, tally, half_life_documents } = *addition;
        let pipeline = manifest.pipeline.as_str();
        let newest = match self.parse_edges(&tx.rows(NEWEST, values![pipeline, numbers]).await?) {
            Ok(newest) => newest,
            Err(error) => return Ok(Err(error)),
        };
        let version = newest.as_ref().map_or(0, |newest| newest.version + 1);
        let mut sketches = newest.map(|newest| Arc::unwrap_or_clone(newest.sketches)).unwrap_or_default();
        sketches.add(tally, half_life_documents);
        tx.execute(
            "INSERT INTO edges (pipeline, numbers, version, shard, half_life_documents, n_documents, state, updated_at_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (pipeline, numbers) DO UPDATE SET
                 version = excluded.version, shard = excluded.shard, half_life_documents = excluded.half_life_documents,
                 n_documents = excluded.n_documents, state = excluded.state, updated_at_ms = excluded.updated_at_ms",
            values![
                pipeline,
                numbers,
                version,
                manifest.shard.as_str(),
                half_life_documents as i64,
                tally.n_documents(),
                &sketches.to_bytes()[..],
                now_ms(),
            ],
        )
        .await?;
        Ok(Ok(()))
    }

    /// `None` where there is no row.
    fn parse_edges(&self, rows: &[Row]) -> Result<Option<EdgesVersion>, CatalogError> {
        let Some(row) = rows.first() else { return Ok(None) };
        let columns = || Ok((row.get(0)?, row.get::<Vec<u8>>(1)?));
        let (version, state) = columns().map_err(|e: sqlx::Error| self.unavailable(e))?;
        let sketches = EdgeSketches::from_bytes(&state);
        let sketches = sketches.map_err(|e| self.damaged(format!("sketches for edges of version {version}: {e}")))?;
        Ok(Some(EdgesVersion { version, sketches: Arc::new(sketches) }))
    }
}

#[async_trait]
impl EdgesCatalog for SqlCatalog {
    async fn newest_edges(&self, pipeline: &str, numbers: &str) -> Result<Option<EdgesVersion>, CatalogError> {
        let rows = self.database.rows(NEWEST, values![pipeline, numbers]).await;
        self.parse_edges(&rows.map_err(|e| self.unavailable(e))?)
    }
}
