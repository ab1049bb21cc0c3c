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

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::record::TopicPartition;

pub use batch::{Batch, Record};
pub use kafka::{
    GroupReader, KafkaSource, OffsetMirror, OutgoingRecord, PlacedRecord, PollHeartbeat, RangeReader, TopicWriter,
    create_topic,
};
pub use probe::Probe;
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
    /// Going on would lose or repeat documents.
    #[error("{}", several(.0))]
    OffsetsLost(Vec<LostOffset>),
    #[error(
        "topic `{topic}` was deleted and made again: its id is `{found}`, the pipeline has read `{known}`, so its offsets name \
         other documents now; go on under a new pipeline.name, with kafka.start where it shall begin"
    )]
    TopicRecreated { topic: String, known: String, found: String },
}

/// A partition whose next offset is not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostOffset {
    pub at: TopicPartition,
    pub owner_epoch: i64,
    pub offset: i64,
    /// What the log holds: `low..high`.
    pub low: i64,
    pub high: i64,
}

impl LostOffset {
    /// Whether retention has passed the offset. Otherwise it lies behind the end, so the offsets of this log are not the ones
    /// that were decided.
    pub fn is_before_log(&self) -> bool {
        self.offset < self.low
    }
}

impl fmt::Display for LostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LostOffset { at, offset, low, high, .. } = self;
        write!(f, "partition {at}: offset {offset} is not in the log, which holds {low}..{high}: ")?;
        if self.is_before_log() {
            let n = low - offset;
            write!(
                f,
                "retention has removed {n} offsets that were never decided; with kafka.on_lost_offset = \"skip\" they are \
                 recorded as a gap and passed over"
            )
        } else {
            write!(
                f,
                "the topic was recreated or truncated, so its offsets name other documents now; go on under a new \
                 pipeline.name, with kafka.start where it shall begin"
            )
        }
    }
}

/// The first, and how many more.
fn several(lost: &[LostOffset]) -> String {
    let first = lost.first().map(ToString::to_string).unwrap_or_default();
    match lost.len() {
        0 | 1 => first,
        n => format!("{first} (and {} more partitions have lost theirs)", n - 1),
    }
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
    /// Takes partitions over before their first record is read. `topic_ids` names the topics, as far as the brokers do;
    /// `resolve` finds the configured start offset.
    fn assigned(
        &self,
        partitions: &[TopicPartition],
        topic_ids: &BTreeMap<Arc<str>, String>,
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError>;

    /// Partitions go to another worker as soon as this returns. `lost`: they have gone already.
    fn revoked(&self, partitions: &[TopicPartition], lost: bool);

    /// How far the partitions reach, every few seconds.
    fn lag(&self, lags: Vec<PartitionLag>);

    /// Whether any broker answers, when that changes. At the beginning it is taken for granted.
    fn brokers_answer(&self, answers: bool);

    /// Partitions of the topics that nobody in the group owns, at each look at it (on another thread). `to_mend`: those for
    /// whose sake this worker is about to make the group share its partitions out anew.
    fn unowned(&self, unowned: &[Unowned], to_mend: &[TopicPartition]);
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

/// A partition that nobody in the group owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unowned {
    pub at: TopicPartition,
    /// First offset of its log, and the one after its last, if a broker has said so.
    pub log: Option<(i64, i64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_offsets_say_what_was_lost_and_what_to_do() {
        let lost = |partition, offset| LostOffset {
            at: TopicPartition::new("docs", partition),
            owner_epoch: 1,
            offset,
            low: 1500,
            high: 2000,
        };
        let before = SourceError::OffsetsLost(vec![lost(0, 1000), lost(1, 1200)]).to_string();
        assert!(
            before.starts_with("partition docs/0: offset 1000 is not in the log, which holds 1500..2000: "),
            "{before}"
        );
        assert!(
            before.contains("removed 500 offsets") && before.contains("kafka.on_lost_offset = \"skip\""),
            "{before}"
        );
        assert!(before.ends_with(" (and 1 more partitions have lost theirs)"), "{before}");
        let behind = lost(0, 2001);
        assert!(!behind.is_before_log() && lost(0, 0).is_before_log());
        assert!(behind.to_string().contains("truncated") && behind.to_string().contains("a new pipeline.name"));
    }
}
