//! Whether the brokers answer, and what they hold. Joins no group.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use super::kafka::{resolve_start, topic_id};
use super::settings::{consumer_config, without_value};
use super::{SourceError, SourceLimits};
use crate::config::{KafkaConfig, StartPolicy};
use crate::record::TopicPartition;

/// A memory budget of which nothing is used.
const NOTHING_FETCHED: usize = 64 << 20;

/// A client that only asks.
pub struct Probe {
    consumer: BaseConsumer,
    kafka: KafkaConfig,
    bootstrap: String,
    timeout: Duration,
}

impl Probe {
    /// Each question waits so long for its answer.
    pub fn open(kafka: &KafkaConfig, bootstrap: &str, timeout: Duration) -> Result<Self, SourceError> {
        let consumer = consumer_config(kafka, bootstrap, SourceLimits::of_budget(NOTHING_FETCHED)).create();
        let consumer = consumer
            .map_err(|e| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: without_value(&e) })?;
        Ok(Probe { consumer, kafka: kafka.clone(), bootstrap: bootstrap.to_owned(), timeout })
    }

    /// Every topic of the configuration that exists, with its number of partitions.
    pub fn topics(&self) -> Result<Vec<(String, usize)>, SourceError> {
        self.those_of(&self.kafka.topics)
    }

    /// The same of any topics.
    pub fn those_of(&self, topics: &[String]) -> Result<Vec<(String, usize)>, SourceError> {
        // Asked for all: asking for one by name may create it.
        let metadata = self.consumer.fetch_metadata(None, self.timeout).map_err(|e| self.failed("topics", &e))?;
        let wanted = |name: &str| topics.iter().any(|topic| topic == name);
        let found = metadata.topics().iter().filter(|topic| wanted(topic.name()));
        Ok(found.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
    }

    /// First offset of the log of a partition, and the one after its last.
    pub fn watermarks(&self, at: &TopicPartition) -> Result<(i64, i64), SourceError> {
        let watermarks = self.consumer.fetch_watermarks(&at.topic, at.partition, self.timeout);
        watermarks.map_err(|e| self.failed(&format!("offsets of partition {at}"), &e))
    }

    /// Where a partition begins by a start policy.
    pub fn offset(&self, at: &TopicPartition, start: StartPolicy) -> Result<i64, SourceError> {
        resolve_start(&self.consumer, start, at)
    }

    /// The id of a topic; `None` from brokers that have none.
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>, SourceError> {
        let failed = |problem| SourceError::Client { bootstrap: self.bootstrap.clone(), problem };
        topic_id(&self.consumer, topic, self.timeout).map_err(|e| failed(format!("id of topic `{topic}`: {e}")))
    }

    /// Members of the configured group, by the names that the group gives them.
    pub fn group_members(&self) -> Result<Vec<String>, SourceError> {
        let group = &self.kafka.group;
        let groups = self.consumer.fetch_group_list(Some(group), self.timeout);
        let groups = groups.map_err(|e| self.failed(&format!("members of group `{group}`"), &e))?;
        let members = groups.groups().iter().filter(|found| found.name() == group).flat_map(|found| found.members());
        Ok(members.map(|member| format!("{} on {}", member.id(), member.client_host())).collect())
    }

    fn failed(&self, what: &str, error: &KafkaError) -> SourceError {
        SourceError::Client { bootstrap: self.bootstrap.clone(), problem: format!("no answer on {what}: {error}") }
    }
}
