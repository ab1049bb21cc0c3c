//! Where records come from: Kafka for the daemon, files for fitting.
//!
//! [`KafkaSource`] knows nothing of the catalog: what it needs of it (who owns a partition, where to begin) it asks
//! through [`Assignments`].

mod batch;
pub mod embedded;
pub mod files;
mod kafka;
mod probe;
mod queue;
mod settings;

use crate::record::TopicPartition;

pub use batch::{Batch, Record};
pub use kafka::{KafkaSource, OffsetMirror, OutgoingRecord, PollHeartbeat, TopicWriter};
pub use probe::topics;
pub use queue::{QueueReceiver, QueueSender, queue};
pub use settings::{SourceLimits, check_settings, client_config};

#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("kafka `{bootstrap}`: {problem}")]
    Client { bootstrap: String, problem: String },
    #[error("partition {at}: cannot find the offset to begin at: {problem}")]
    StartOffset { at: TopicPartition, problem: String },
    #[error("partitions {partitions}: cannot be taken over: {problem}")]
    Claim { partitions: String, problem: String },
    /// Going on would lose or repeat documents; a person has to decide.
    #[error(
        "partition {at}: offset {offset} is not in the log, which holds {low}..{high}: retention has removed documents that \
         were never decided, or the topic was recreated"
    )]
    OffsetLost { at: TopicPartition, offset: i64, low: i64, high: i64 },
}

/// A partition that may be consumed, from where and under which epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    pub at: TopicPartition,
    pub owner_epoch: i64,
    pub next_offset: i64,
}

/// Called on the polling thread while a rebalance waits for the answer. May block up to the maximum poll interval.
pub trait Assignments: Send + Sync + 'static {
    /// Takes partitions over before their first record is read. `resolve` finds the configured start offset.
    fn assigned(
        &self,
        partitions: &[TopicPartition],
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError>;

    /// Partitions go to another worker as soon as this returns. `lost`: they have gone already.
    fn revoked(&self, partitions: &[TopicPartition], lost: bool);

    /// How far the partitions reach, every few seconds.
    fn lag(&self, lags: Vec<PartitionLag>);
}

/// What the polling thread says, in order.
#[derive(Debug)]
pub enum SourceEvent {
    Batch(Batch),
    /// These may have been read to their ends, where nothing but `next_offset` can follow. (The client names the end by
    /// the partition's number only, so with several topics some may not be at theirs.)
    ReachedEnd(Vec<Assigned>),
    /// Nothing follows.
    Failed(SourceError),
    /// From [`Assignments`], through [`queue::QueueSender::control`].
    Assigned(Vec<Assigned>),
    Revoked {
        partitions: Vec<TopicPartition>,
        lost: bool,
        done: std::sync::mpsc::Sender<()>,
    },
}

/// How far a partition reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    pub at: TopicPartition,
    /// First offset that cannot be read yet.
    pub end_offset: i64,
}
