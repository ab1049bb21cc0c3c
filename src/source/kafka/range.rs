//! Records of given offsets, read again: nothing is committed and no group is joined.
//!
//! In: an interval of one partition. Out: its records in order, in batches, until the last offset of the interval has been
//! passed. The client fetches ahead, but little: intervals that follow one another are read without a pause.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::context::REQUEST_TIMEOUT;
use super::parts::push_parts;
use super::poller::{BATCH_BYTES, BATCH_RECORDS};
use crate::checkpoint::Interval;
use crate::config::KafkaConfig;
use crate::record::{Parts, RecordPart, TopicPartition};
use crate::source::settings::{consumer_config, without_value};
use crate::source::{Batch, LostOffset, Record, SourceError, SourceLimits};

/// Of which a quarter is for what has been fetched ahead.
const BUDGET_BYTES: usize = 64 << 20;
/// After so long without a record the brokers are away.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads one interval after the other.
pub struct RangeReader {
    consumer: BaseConsumer,
    bootstrap: String,
    parts: Vec<RecordPart>,
    reading: Option<Reading>,
}

struct Reading {
    at: TopicPartition,
    /// First offset that may hold a record which has not been handed over.
    next_offset: i64,
    /// Of the interval.
    to: i64,
    /// Read already: the first record behind the interval.
    pending: Batch,
}

impl RangeReader {
    pub fn open(kafka: &KafkaConfig, bootstrap: &str) -> Result<Self, SourceError> {
        let mut config = consumer_config(kafka, bootstrap, SourceLimits::of_budget(BUDGET_BYTES));
        // Never subscribed, so no member; and whoever has this name is left alone.
        config.remove("group.instance.id");
        config.set("statistics.interval.ms", "0");
        // A fetch that waits at the end of one partition holds the next partition up.
        config.set("fetch.wait.max.ms", "10");
        let consumer = config
            .create()
            .map_err(|e| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: without_value(&e) })?;
        Ok(RangeReader { consumer, bootstrap: bootstrap.to_owned(), parts: kafka.parts.clone(), reading: None })
    }

    /// Turns to an interval. [`SourceError::OffsetsLost`]: the log does not hold it any more.
    pub fn begin(&mut self, at: &TopicPartition, interval: Interval) -> Result<(), SourceError> {
        let Interval { from, to } = interval;
        let bootstrap = self.bootstrap.clone();
        let failed = |e: KafkaError| {
            let problem = format!("partition {at} cannot be read: {e}");
            SourceError::Client { bootstrap: bootstrap.clone(), problem }
        };
        let (low, high) = self.consumer.fetch_watermarks(&at.topic, at.partition, REQUEST_TIMEOUT).map_err(failed)?;
        for offset in [from, to] {
            if !(low..=high).contains(&offset) {
                let lost = LostOffset { at: at.clone(), owner_epoch: 0, offset, low, high };
                return Err(SourceError::OffsetsLost(vec![lost]));
            }
        }
        match &mut self.reading {
            // Behind the interval before, which has been read.
            Some(reading) if reading.at == *at && reading.to == from && reading.next_offset >= from => reading.to = to,
            reading => {
                let mut list = TopicPartitionList::new();
                let offset = Offset::Offset(from);
                let set = list.add_partition_offset(&at.topic, at.partition, offset);
                set.and_then(|()| self.consumer.assign(&list)).map_err(failed)?;
                *reading = Some(Reading { at: at.clone(), next_offset: from, to, pending: Batch::default() });
            }
        }
        Ok(())
    }

    /// The next records of the interval; `None` when all have been given.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, SourceError> {
        let Some(mut reading) = self.reading.take() else { return Ok(None) };
        let batch = self.read(&mut reading);
        // After an error the consumer stands who knows where.
        if batch.is_ok() {
            self.reading = Some(reading);
        }
        batch
    }

    fn read(&self, reading: &mut Reading) -> Result<Option<Batch>, SourceError> {
        let mut batch = Batch::default();
        if reading.pending_offset().is_some_and(|offset| offset < reading.to) {
            batch = std::mem::take(&mut reading.pending);
            reading.next_offset = batch.get(0).offset + 1;
        }
        if !reading.pending.is_empty() {
            reading.next_offset = reading.to;
        }
        let mut last_error = None;
        let began = Instant::now();
        while reading.next_offset < reading.to {
            if batch.size_bytes() >= BATCH_BYTES || batch.len() >= BATCH_RECORDS {
                break;
            }
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message))
                    if (message.topic(), message.partition()) != (&*reading.at.topic, reading.at.partition) => {}
                Some(Ok(message)) if message.offset() < reading.to => {
                    push(&mut batch, &reading.at, &message, &self.parts);
                    reading.next_offset = message.offset() + 1;
                }
                Some(Ok(message)) => {
                    push(&mut reading.pending, &reading.at, &message, &self.parts);
                    reading.next_offset = reading.to;
                }
                Some(Err(KafkaError::PartitionEOF(_))) => reading.next_offset = self.position(reading),
                Some(Err(error)) => match self.fatal(&error, reading) {
                    Some(fatal) => return Err(fatal),
                    None => last_error = Some(error),
                },
                None if !batch.is_empty() => break,
                None if began.elapsed() > PATIENCE => {
                    let problem = last_error.map_or("no record came".to_owned(), |e: KafkaError| e.to_string());
                    return Err(self.error(&format!(
                        "partition {} cannot be read from offset {} on: {problem}",
                        reading.at, reading.next_offset
                    )));
                }
                None => {}
            }
        }
        Ok((!batch.is_empty()).then_some(batch))
    }

    /// Where the client stands at the end of a partition: past transaction markers and what was aborted.
    fn position(&self, reading: &Reading) -> i64 {
        let positions = self.consumer.position();
        let position = positions.ok().and_then(|positions| {
            positions.find_partition(&reading.at.topic, reading.at.partition).map(|element| element.offset())
        });
        match position {
            Some(Offset::Offset(position)) => reading.next_offset.max(position),
            _ => reading.next_offset,
        }
    }

    /// Other errors the client gets over by itself.
    fn fatal(&self, error: &KafkaError, reading: &Reading) -> Option<SourceError> {
        let Reading { at, next_offset, .. } = reading;
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let watermarks = self.consumer.fetch_watermarks(&at.topic, at.partition, REQUEST_TIMEOUT);
                Some(watermarks.map_or_else(
                    |e| self.error(&e.to_string()),
                    |(low, high)| {
                        let lost = LostOffset { at: at.clone(), owner_epoch: 0, offset: *next_offset, low, high };
                        SourceError::OffsetsLost(vec![lost])
                    },
                ))
            }
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::NotImplemented | RDKafkaErrorCode::BadCompression,
            )
            | KafkaError::MessageConsumptionFatal(_) => Some(self.error(&format!("partition {at}: {error}"))),
            _ => None,
        }
    }

    fn error(&self, problem: &str) -> SourceError {
        SourceError::Client { bootstrap: self.bootstrap.clone(), problem: problem.to_owned() }
    }
}

impl Reading {
    fn pending_offset(&self) -> Option<i64> {
        (!self.pending.is_empty()).then(|| self.pending.get(0).offset)
    }
}

fn push(batch: &mut Batch, at: &TopicPartition, message: &BorrowedMessage<'_>, parts: &[RecordPart]) {
    batch.push(Record {
        at,
        owner_epoch: 0,
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        payload: message.payload(),
        parts: Parts::default(),
    });
    push_parts(batch, parts, message);
}
