//! Records of a topic for a group of its own, whose offsets are the group's and not the catalog's: for what may be read twice.
//!
//! In: a topic, a group, and offsets to commit. Out: records in the order of their partitions, from the committed offset on, or
//! the beginning of the log. Whoever commits only what is settled reads everything at least once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::brokers::plain;
use super::context::is_of_connection;
use crate::config::KafkaConfig;
use crate::record::TopicPartition;
use crate::source::settings::{consumer_config, without_value};
use crate::source::{SourceError, SourceLimits};

/// Of which a quarter is for what has been fetched ahead.
const BUDGET_BYTES: usize = 64 << 20;

/// A record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedRecord {
    pub at: TopicPartition,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub payload: Option<Vec<u8>>,
}

/// A member of the group.
pub struct GroupReader {
    consumer: BaseConsumer<Revocations>,
    bootstrap: String,
    topic: String,
}

/// Partitions that were taken away since somebody asked. Called back within a poll.
#[derive(Default)]
struct Revocations(Mutex<Vec<TopicPartition>>);

impl ClientContext for Revocations {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // What ends the reader comes from its poll; of brokers that are away the reader of documents tells.
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Revocations {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let partitions = list.elements();
            let partitions = partitions.iter().map(|e| TopicPartition::new(e.topic(), e.partition()));
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions);
        }
    }
}

impl GroupReader {
    pub fn open(kafka: &KafkaConfig, bootstrap: &str, group: &str, topic: &str) -> Result<Self, SourceError> {
        let failed =
            |e: KafkaError| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: without_value(&e) };
        let mut config = consumer_config(kafka, bootstrap, SourceLimits::of_budget(BUDGET_BYTES));
        config
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "false")
            .set("statistics.interval.ms", "0");
        let consumer: BaseConsumer<Revocations> = config.create_with_context(Revocations::default()).map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        Ok(GroupReader { consumer, bootstrap: bootstrap.to_owned(), topic: topic.to_owned() })
    }

    /// The next record, if one comes within `wait`.
    pub fn poll(&self, wait: Duration) -> Result<Option<PlacedRecord>, SourceError> {
        match self.consumer.poll(wait) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(PlacedRecord {
                at: TopicPartition::new(message.topic(), message.partition()),
                offset: message.offset(),
                timestamp_ms: message.timestamp().to_millis(),
                payload: message.payload().map(<[u8]>::to_vec),
            })),
            // The client tries again by itself.
            Some(Err(KafkaError::MessageConsumption(code))) if is_of_connection(code) => Ok(None),
            Some(Err(error)) => Err(self.failed(&error)),
        }
    }

    /// Partitions that were taken away since the last call: ask after every poll. What was read of them and not committed is
    /// read by another member.
    pub fn revoked(&self) -> Vec<TopicPartition> {
        std::mem::take(&mut *self.consumer.context().0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where reading begins next time. `wait`: for the brokers to have it.
    pub fn commit<'a>(
        &self,
        offsets: impl IntoIterator<Item = (&'a TopicPartition, i64)>,
        wait: bool,
    ) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        for (at, offset) in offsets {
            let added = list.add_partition_offset(&at.topic, at.partition, Offset::Offset(offset));
            added.map_err(|e| self.failed(&e))?;
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        match self.consumer.commit(&list, mode) {
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) | Ok(()) => Ok(()),
            Err(e) => Err(self.failed(&e)),
        }
    }

    fn failed(&self, error: &KafkaError) -> SourceError {
        let problem = format!("topic {}: {}", self.topic, plain(&error.to_string()));
        SourceError::Client { bootstrap: self.bootstrap.clone(), problem }
    }
}
