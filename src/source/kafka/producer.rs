//! Records to a topic, and the certainty that they are there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use crate::config::KafkaConfig;
use crate::source::SourceError;
use crate::source::settings::client_config;

/// How long a record may take to be acknowledged.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// For the answer whether a topic is there.
const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a wait looks whether it is still wanted.
const TICK: Duration = Duration::from_millis(100);
/// Records that wait in memory.
const QUEUE_BYTES: usize = 16 << 20;
/// Above the largest payload that is kept of a dead letter.
const MAX_RECORD_BYTES: usize = 20 << 20;

/// A record on its way out.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingRecord<'a> {
    pub topic: &'a str,
    /// Records of one key share a partition.
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    pub timestamp_ms: Option<i64>,
    pub headers: &'a [(&'a str, String)],
}

/// Sends records to topics.
pub struct TopicWriter {
    producer: BaseProducer<Deliveries>,
    bootstrap: String,
    /// How long a record may take to be acknowledged, its wait in memory included.
    delivery_timeout: Duration,
}

/// What became of what was sent since the last flush.
#[derive(Default)]
struct Deliveries {
    n_refused: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {}
            Err((error, _)) if is_refusal(error) => drop(self.n_refused.fetch_add(1, Ordering::Relaxed)),
            Err((error, record)) => {
                let problem = format!("topic {}: {error}", record.topic());
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
            }
        }
    }
}

/// Whether the topic will never take the record.
fn is_refusal(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidMessageSize, InvalidRecord, MessageSizeTooLarge};
    let code = error.rdkafka_error_code();
    matches!(code, Some(InvalidMessage | InvalidMessageSize | InvalidRecord | MessageSizeTooLarge))
}

impl TopicWriter {
    pub fn connect(kafka: &KafkaConfig, bootstrap: &str) -> Result<Self, SourceError> {
        Self::connect_with(kafka, bootstrap, DELIVERY_TIMEOUT)
    }

    /// The same for whoever has more, or less, patience with the brokers.
    pub fn connect_with(kafka: &KafkaConfig, bootstrap: &str, delivery_timeout: Duration) -> Result<Self, SourceError> {
        let mut config = client_config(kafka, bootstrap);
        config
            .set("enable.idempotence", "true")
            .set("compression.type", "zstd")
            .set("linger.ms", "20")
            .set("message.timeout.ms", delivery_timeout.as_millis().to_string())
            .set("message.max.bytes", MAX_RECORD_BYTES.to_string())
            .set("queue.buffering.max.kbytes", (QUEUE_BYTES >> 10).to_string());
        let bootstrap = bootstrap.to_owned();
        match config.create_with_context(Deliveries::default()) {
            Ok(producer) => Ok(TopicWriter { producer, bootstrap, delivery_timeout }),
            Err(e) => Err(SourceError::Client { bootstrap, problem: e.to_string() }),
        }
    }

    /// Whether a topic can be written to at all; otherwise records for it would only time out.
    pub fn check(&self, topic: &str) -> Result<(), SourceError> {
        let problem = match self.producer.client().fetch_metadata(Some(topic), METADATA_TIMEOUT) {
            Ok(metadata) => metadata.topics().iter().find_map(|t| Some(RDKafkaErrorCode::from(t.error()?).to_string())),
            Err(e) => Some(e.to_string()),
        };
        problem.map_or(Ok(()), |problem| Err(self.failed(format!("topic {topic}: {problem}"))))
    }

    /// Takes a record on its way; blocks while too many are. Gives up when `is_wanted` says so.
    pub fn send(&self, record: OutgoingRecord<'_>, is_wanted: &dyn Fn() -> bool) -> Result<(), SourceError> {
        let OutgoingRecord { topic, key, payload, timestamp_ms, headers } = record;
        let headers = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        record.key = key;
        record.payload = payload;
        record.timestamp = timestamp_ms;
        while let Err((error, back)) = self.producer.send(record) {
            if is_refusal(&error) {
                self.producer.context().n_refused.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(self.failed(error.to_string()));
            }
            // What waits is acknowledged or fails within the delivery timeout.
            self.producer.poll(TICK);
            self.look(is_wanted)?;
            record = back;
        }
        self.producer.poll(Duration::ZERO);
        Ok(())
    }

    /// Waits until the brokers have all that was sent. Gives how many records the topic does not take, being too large.
    /// After an error, some may have arrived.
    pub fn flush(&self, is_wanted: &dyn Fn() -> bool) -> Result<u64, SourceError> {
        let deadline = Instant::now() + self.delivery_timeout + Duration::from_secs(5);
        while self.producer.in_flight_count() > 0 {
            // An error says that it took longer than the tick.
            let _ = self.producer.flush(TICK);
            self.look(is_wanted)?;
            if Instant::now() > deadline {
                return Err(self.failed(format!("no acknowledgement within {} s", self.delivery_timeout.as_secs())));
            }
        }
        self.look(is_wanted)?;
        Ok(self.producer.context().n_refused.swap(0, Ordering::Relaxed))
    }

    fn look(&self, is_wanted: &dyn Fn() -> bool) -> Result<(), SourceError> {
        let failure = self.producer.context().failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Some(problem) => Err(self.failed(problem)),
            None if !is_wanted() => Err(self.failed("not sent: shutting down".to_owned())),
            None => Ok(()),
        }
    }

    fn failed(&self, problem: String) -> SourceError {
        SourceError::Client { bootstrap: self.bootstrap.clone(), problem }
    }
}

impl Drop for TopicWriter {
    /// What was not acknowledged was reported as failed, or nobody waits for it.
    fn drop(&mut self) {
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
    }
}
