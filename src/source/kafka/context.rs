//! What the client calls back: rebalances, statistics, logs. All of it runs on the polling thread.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::brokers::{Brokers, Change, Seen, plain};
use super::topic_id::topic_id;
use crate::config::StartPolicy;
use crate::record::TopicPartition;
use crate::source::{Assigned, Assignments, PartitionLag, SourceError};

/// For requests that find start offsets.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon the same error is logged again.
const REMIND: Duration = Duration::from_secs(60);

/// For the id of a topic, which is not worth more of the time that a rebalance has.
const TOPIC_ID_TIMEOUT: Duration = Duration::from_secs(10);

/// What callbacks and the poll loop share. Both run on the polling thread.
pub(super) struct PollContext {
    assignments: Arc<dyn Assignments>,
    start: StartPolicy,
    pub(super) stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    /// Partitions that we own, by topic and number.
    pub(super) owned: HashMap<Arc<str>, HashMap<i32, Owned>>,
    /// Raised with every rebalance.
    pub(super) generation: u64,
    pub(super) failure: Option<SourceError>,
    brokers: Brokers,
    /// What was logged lately.
    errors: BTreeMap<String, Instant>,
}

#[derive(Clone)]
pub(super) struct Owned {
    pub(super) at: TopicPartition,
    pub(super) owner_epoch: i64,
    pub(super) next_offset: i64,
}

impl PollContext {
    pub(super) fn new(assignments: Arc<dyn Assignments>, start: StartPolicy, stop: Arc<AtomicBool>) -> Self {
        PollContext { assignments, start, stop, state: Mutex::new(State::default()) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition, if we own it.
    pub(super) fn owned(&self, topic: &str, partition: i32) -> Option<Owned> {
        self.state().owned.get(topic)?.get(&partition).cloned()
    }

    /// Notes how far a partition has been read, unless it went meanwhile.
    pub(super) fn passed(&self, read: Option<Owned>) {
        let Some(Owned { at, owner_epoch, next_offset }) = read else { return };
        let mut state = self.state();
        let owned = state.owned.get_mut(&at.topic).and_then(|topic| topic.get_mut(&at.partition));
        if let Some(owned) = owned.filter(|owned| owned.owner_epoch == owner_epoch) {
            owned.next_offset = next_offset;
        }
    }

    fn take_over(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions: Vec<_> =
            list.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect();
        if self.stop.load(Ordering::Relaxed) {
            // Leaving: a claim now would fence whoever comes next.
            return;
        }
        // An empty assignment counts too: the group was joined, and there are more workers than partitions.
        let resolve = |at: &TopicPartition| resolve_start(consumer, self.start, at);
        match self.assignments.assigned(&partitions, &self.topic_ids(consumer, &partitions), &resolve) {
            Ok(assigned) => {
                let mut state = self.state();
                for Assigned { at, owner_epoch, next_offset } in assigned {
                    let set = list
                        .find_partition(&at.topic, at.partition)
                        .map(|mut e| e.set_offset(Offset::Offset(next_offset)));
                    if !matches!(set, Some(Ok(()))) {
                        let problem = format!("offset {next_offset} cannot be set");
                        state.failure = Some(SourceError::Claim { partitions: at.to_string(), problem });
                    }
                    let owned = Owned { at: at.clone(), owner_epoch, next_offset };
                    state.owned.entry(at.topic.clone()).or_default().insert(at.partition, owned);
                }
            }
            // The loop ends before a record of these partitions is looked at.
            Err(error) => self.state().failure = Some(error),
        }
    }

    /// A topic whose id cannot be found is taken as it is: that offsets lie in its log is still looked at.
    fn topic_ids(&self, consumer: &BaseConsumer<Self>, partitions: &[TopicPartition]) -> BTreeMap<Arc<str>, String> {
        let topics: BTreeSet<&Arc<str>> = partitions.iter().map(|at| &at.topic).collect();
        let id = |topic: &Arc<str>| match topic_id(consumer, topic, TOPIC_ID_TIMEOUT) {
            Ok(id) => Some((topic.clone(), id?)),
            Err(problem) => {
                self.log_error(format!("topic `{topic}`: whether it is still the same cannot be told: {problem}"));
                None
            }
        };
        topics.into_iter().filter_map(id).collect()
    }

    fn give_up(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let mut given_up = Vec::new();
        {
            let mut state = self.state();
            for element in list.elements() {
                let of_topic = state.owned.get_mut(element.topic());
                given_up.extend(of_topic.and_then(|t| t.remove(&element.partition())).map(|owned| owned.at));
            }
        }
        if !given_up.is_empty() && !self.stop.load(Ordering::Relaxed) {
            self.assignments.revoked(&given_up, consumer.assignment_lost());
        }
    }

    /// Logs an error unless it was logged within a minute: most repeat every few seconds while their cause lasts.
    pub(super) fn log_error(&self, error: String) {
        let errors = &mut self.state().errors;
        errors.retain(|_, at| at.elapsed() < REMIND);
        errors.entry(error).or_insert_with_key(|error| {
            tracing::warn!("kafka: {error}");
            Instant::now()
        });
    }
}

impl ClientContext for PollContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            // Connections that fail: what is told as an error, too.
            RDKafkaLogLevel::Error if matches!(facility, "FAIL" | "ERROR") => {
                tracing::debug!(target: "librdkafka", "{facility}: {message}");
            }
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                self.log_error(format!("{} ({facility})", plain(message)));
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", "{facility}: {message}");
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "librdkafka", "{facility}: {message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let changes = self.state().brokers.look(&Seen::of(&statistics), Instant::now());
        for change in changes {
            match &change {
                Change::NoneAnswers { .. } => self.assignments.brokers_answer(false),
                Change::SomeAnswer { .. } => self.assignments.brokers_answer(true),
                Change::Away { .. } | Change::Back { .. } => {}
            }
            if change.is_good() {
                tracing::info!("kafka: {change}");
            } else {
                tracing::warn!("kafka: {change}");
            }
        }
        let of_topic = |topic: &rdkafka::statistics::Topic| {
            let name: Arc<str> = topic.topic.as_str().into();
            let known = topic.partitions.values().filter(|p| p.partition >= 0 && p.ls_offset >= 0);
            known
                .map(|p| PartitionLag { at: TopicPartition::new(name.clone(), p.partition), end_offset: p.ls_offset })
                .collect::<Vec<_>>()
        };
        self.assignments.lag(statistics.topics.values().flat_map(of_topic).collect());
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            // Reaching the end of a partition is an event of the poll loop, not an error.
            // What is fatal ends the poll loop, which says so.
            Some(RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Fatal) => {}
            Some(code) if is_of_connection(code) => self.state().brokers.failed(reason),
            Some(code) => self.log_error(format!("{}: {}", plain(&code.to_string()), plain(reason))),
            None => self.log_error(format!("{error}: {reason}")),
        }
    }
}

/// Whether an error only says that a connection has failed, which the client makes again. Told of once it lasts.
pub(super) fn is_of_connection(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::*;
    matches!(code, AllBrokersDown | BrokerTransportFailure | Resolve | OperationTimedOut)
}

impl ConsumerContext for PollContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.state().generation += 1;
        match rebalance {
            Rebalance::Assign(list) => self.take_over(consumer, list),
            Rebalance::Revoke(list) => self.give_up(consumer, list),
            Rebalance::Error(error) => self.log_error(format!("rebalance: {}", plain(&error.to_string()))),
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _: &TopicPartitionList) {
        if let Err(error) = result {
            let problem = plain(&error.to_string());
            self.log_error(format!(
                "offsets were not mirrored to the group, which the next publication does: {problem}"
            ));
        }
    }
}

/// The offset that a start policy means now.
pub(in crate::source) fn resolve_start<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    start: StartPolicy,
    at: &TopicPartition,
) -> Result<i64, SourceError> {
    let failed = |e: KafkaError| SourceError::StartOffset { at: at.clone(), problem: e.to_string() };
    let watermarks = || consumer.fetch_watermarks(&at.topic, at.partition, REQUEST_TIMEOUT).map_err(failed);
    match start {
        StartPolicy::Earliest => Ok(watermarks()?.0),
        StartPolicy::Latest => Ok(watermarks()?.1),
        StartPolicy::Timestamp(ms) => {
            let mut times = TopicPartitionList::new();
            times.add_partition_offset(&at.topic, at.partition, Offset::Offset(ms)).map_err(failed)?;
            let found = consumer.offsets_for_times(times, REQUEST_TIMEOUT).map_err(failed)?;
            match found.find_partition(&at.topic, at.partition).map(|e| (e.error(), e.offset())) {
                Some((Ok(()), Offset::Offset(offset))) => Ok(offset),
                Some((Err(e), _)) => Err(failed(e)),
                // No record is that late: begin with what comes.
                _ => Ok(watermarks()?.1),
            }
        }
    }
}
