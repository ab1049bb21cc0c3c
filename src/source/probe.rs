//! Whether the brokers answer, and what they hold.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::SourceError;
use super::settings::client_config;
use crate::config::KafkaConfig;

/// Every topic of the configuration that exists, with its number of partitions. Joins no group.
pub fn topics(kafka: &KafkaConfig, bootstrap: &str, timeout: Duration) -> Result<Vec<(String, usize)>, SourceError> {
    let failed = |problem: String| SourceError::Client { bootstrap: bootstrap.to_owned(), problem };
    let consumer: BaseConsumer = client_config(kafka, bootstrap).create().map_err(|e| failed(e.to_string()))?;
    // Asked for all: asking for one by name may create it.
    let metadata = consumer.fetch_metadata(None, timeout).map_err(|e| failed(format!("no answer: {e}")))?;
    let wanted = |name: &str| kafka.topics.iter().any(|topic| topic == name);
    let found = metadata.topics().iter().filter(|topic| wanted(topic.name()));
    Ok(found.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
}
