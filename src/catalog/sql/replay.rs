//! What a replay of published windows needs.

use async_trait::async_trait;

use super::SqlCatalog;
use super::database::{Value, values};
use crate::catalog::{CatalogError, ReplayCatalog};
use crate::checkpoint::Interval;
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::score::ModelId;

impl SqlCatalog {
    async fn manifest(&self, sql: &'static str, parameters: Vec<Value>) -> Result<Option<ShardManifest>, CatalogError> {
        let found = self.select(sql, parameters, |row| Ok((row.get::<String>(0)?, row.get::<String>(1)?))).await?.pop();
        let parse = |(shard, json): (String, String)| {
            serde_json::from_str(&json).map_err(|e| self.damaged(format!("manifest of shard {shard}: {e}")))
        };
        found.map(parse).transpose()
    }
}

#[async_trait]
impl ReplayCatalog for SqlCatalog {
    async fn next_shard(&self, pipeline: &str, after: Option<&str>) -> Result<Option<ShardManifest>, CatalogError> {
        self.manifest(
            "SELECT id, manifest FROM shards WHERE pipeline = $1 AND state = 'published' AND id > $2 ORDER BY id LIMIT 1",
            values![pipeline, after.unwrap_or_default()],
        )
        .await
    }

    async fn shard_of_window(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
    ) -> Result<Option<ShardManifest>, CatalogError> {
        self.manifest(
            r#"SELECT shards.id, shards.manifest FROM windows JOIN shards ON shards.id = windows.shard
               WHERE windows.pipeline = $1 AND windows.topic = $2 AND windows."partition" = $3
                   AND windows.from_offset = $4 AND windows.to_offset = $5"#,
            values![pipeline, &*at.topic, at.partition, interval.from, interval.to],
        )
        .await
    }

    async fn shard_of_position(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        offset: i64,
    ) -> Result<Option<ShardManifest>, CatalogError> {
        // Windows of a partition do not overlap, so only the last one that begins before can.
        self.manifest(
            r#"SELECT shards.id, shards.manifest FROM windows JOIN shards ON shards.id = windows.shard
               WHERE windows.pipeline = $1 AND windows.topic = $2 AND windows."partition" = $3
                   AND windows.from_offset = (SELECT max(from_offset) FROM windows
                       WHERE pipeline = $1 AND topic = $2 AND "partition" = $3 AND from_offset <= $4)
                   AND windows.to_offset > $4"#,
            values![pipeline, &*at.topic, at.partition, offset],
        )
        .await
    }

    async fn model(&self, model: &ModelId) -> Result<Option<Vec<u8>>, CatalogError> {
        let models =
            self.select("SELECT bytes FROM models WHERE digest = $1", values![model.as_str()], |row| row.get(0));
        Ok(models.await?.pop())
    }
}
