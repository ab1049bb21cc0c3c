//! The Kafka cluster inside this process (librdkafka's mock cluster): for demos and quick tests. Nothing in it lasts.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::SourceError;

/// Messages that each partition keeps, in bytes: the oldest are dropped silently beyond it.
pub const RETAINED_BYTES: usize = 5 << 20;

/// A running in-process cluster; ends when dropped.
pub struct EmbeddedCluster {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl EmbeddedCluster {
    pub fn start(topics: &[String], partitions: i32) -> Result<Self, SourceError> {
        let error = |e: rdkafka::error::KafkaError| SourceError::Client {
            bootstrap: "embedded".into(),
            problem: e.to_string(),
        };
        let cluster = MockCluster::new(1).map_err(error)?;
        for topic in topics {
            cluster.create_topic(topic, partitions, 1).map_err(error)?;
        }
        Ok(EmbeddedCluster { cluster })
    }

    /// Its address, which other processes on this machine can use too.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}
