//! Whether the brokers answer, and what they hold. Joins no group.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use super::kafka::{plain, resolve_start, topic_id};
use super::settings::{consumer_config, without_value};
use super::{SourceError, SourceLimits};
use crate::config::{KafkaConfig, StartPolicy};
use crate::record::TopicPartition;

/// A memory budget of which nothing is used.
const NOTHING_FETCHED: usize = 64 << 20;

/// Why connections fail. A question without an answer has only "no connection" for a reason; what was wrong with a certificate,
/// or a password, the client tells its log.
#[derive(Default)]
struct Reasons(Mutex<Vec<String>>);

/// More are not worth a reader's time.
const MAX_REASONS: usize = 3;
/// What a client that asks for some seconds has to tell, and more.
const MAX_EVENTS: usize = 1_000;

impl ClientContext for Reasons {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
        if (level as i32) <= RDKafkaLogLevel::Error as i32 {
            let reason = plain(message);
            let mut reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if reasons.len() < MAX_REASONS && !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Reasons {}

/// A client that only asks.
pub struct Probe {
    consumer: BaseConsumer<Reasons>,
    kafka: KafkaConfig,
    bootstrap: String,
    timeout: Duration,
}

impl Probe {
    /// Each question waits so long for its answer.
    pub fn open(kafka: &KafkaConfig, bootstrap: &str, timeout: Duration) -> Result<Self, SourceError> {
        let config = consumer_config(kafka, bootstrap, SourceLimits::of_budget(NOTHING_FETCHED));
        let consumer = config
            .create_with_context(Reasons::default())
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
        // Its log waits in the client until somebody polls.
        (0..MAX_EVENTS).for_each(|_| drop(self.consumer.poll(Duration::ZERO)));
        let reasons = self.consumer.context().0.lock().unwrap_or_else(PoisonError::into_inner).join("; ");
        let because = if reasons.is_empty() { reasons } else { format!(": {reasons}") };
        let problem = format!("no answer on {what}: {error}{because}");
        SourceError::Client { bootstrap: self.bootstrap.clone(), problem }
    }
}
