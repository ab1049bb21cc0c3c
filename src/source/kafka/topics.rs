//! New topics.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;

use crate::config::KafkaConfig;
use crate::source::SourceError;
use crate::source::settings::client_config;

/// The brokers decide how many copies of it there are.
const REPLICAS: i32 = -1;

/// Makes a topic. One that is there already stays as it is.
pub async fn create_topic(
    kafka: &KafkaConfig,
    bootstrap: &str,
    topic: &str,
    partitions: i32,
) -> Result<(), SourceError> {
    let failed = |problem: String| {
        let problem = format!("topic `{topic}` cannot be made: {problem}");
        SourceError::Client { bootstrap: bootstrap.to_owned(), problem }
    };
    let admin: Result<AdminClient<DefaultClientContext>, _> = client_config(kafka, bootstrap).create();
    let admin = admin.map_err(|e| failed(e.to_string()))?;
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(REPLICAS));
    let made = admin.create_topics([&new], &AdminOptions::new()).await.map_err(|e| failed(e.to_string()))?;
    made.into_iter().try_for_each(|made| match made {
        Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
        Err((_, code)) => Err(failed(code.to_string())),
    })
}
