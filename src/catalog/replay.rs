//! What a replay of published windows needs, and who asks about one document of them.

use async_trait::async_trait;

use super::CatalogError;
use crate::checkpoint::Interval;
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::score::ModelId;

/// One published shard at a time, with rows or without.
#[async_trait]
pub trait ReplayCatalog: Send + Sync {
    /// The published shard after this one in the order of ids, which is about that of publication; `None`: that was the last.
    async fn next_shard(&self, pipeline: &str, after: Option<&str>) -> Result<Option<ShardManifest>, CatalogError>;

    /// The shard that a window was published in.
    async fn shard_of_window(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
    ) -> Result<Option<ShardManifest>, CatalogError>;

    /// The shard of the window that covers this offset; `None`: nothing that is published covers it.
    async fn shard_of_position(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        offset: i64,
    ) -> Result<Option<ShardManifest>, CatalogError>;

    /// The bytes of a model.
    async fn model(&self, model: &ModelId) -> Result<Option<Vec<u8>>, CatalogError>;
}
