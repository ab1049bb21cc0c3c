//! Moving a checkpoint without a publication: past offsets that are never decided, or back over such.

use async_trait::async_trait;
use serde::Serialize;

use super::CatalogError;
use crate::checkpoint::Interval;
use crate::record::TopicPartition;

/// Why offsets are never decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The broker had removed the records before.
    Retention,
    /// A person moved the checkpoint forwards.
    Reset,
}

impl GapReason {
    pub const ALL: [GapReason; 2] = [GapReason::Retention, GapReason::Reset];

    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Retention => "retention",
            GapReason::Reset => "reset",
        }
    }
}

/// Offsets of a partition that are never decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    #[serde(flatten)]
    pub at: TopicPartition,
    #[serde(flatten)]
    pub interval: Interval,
    pub reason: GapReason,
    pub noted_at_ms: i64,
}

/// `skip` and `rewind` require that the checkpoint stands where they move it from and that `owner_epoch` is its epoch, else nothing
/// changes and the answer is [`CatalogError::Fenced`]. Both raise the epoch: what was read before is never published.
#[async_trait]
pub trait OffsetsCatalog: Send + Sync {
    /// Moves a checkpoint from the beginning of `interval` to its end, and notes the gap.
    async fn skip(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
        owner_epoch: i64,
        reason: GapReason,
    ) -> Result<(), CatalogError>;

    /// Moves a checkpoint from the end of `interval` back to its beginning; gaps there end at it. Fails with
    /// [`CatalogError::Decided`] if a window is published that reaches further.
    async fn rewind(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        interval: Interval,
        owner_epoch: i64,
    ) -> Result<(), CatalogError>;

    /// Notes the id of a topic, unless one is noted already, and gives the noted one.
    async fn note_topic(&self, pipeline: &str, topic: &str, topic_id: &str) -> Result<String, CatalogError>;

    /// The id that is noted of a topic.
    async fn topic_id(&self, pipeline: &str, topic: &str) -> Result<Option<String>, CatalogError>;

    /// Where the published windows of a partition end; `None`: there are none.
    async fn published_end(&self, pipeline: &str, at: &TopicPartition) -> Result<Option<i64>, CatalogError>;
}
