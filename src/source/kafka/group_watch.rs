//! Looks at the whole group now and then, for partitions that nobody owns, on a thread and a client of its own: a broker that
//! does not answer must not hold up the polling.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;

use super::ownership::{Look, Ownership, assignment};
use crate::config::KafkaConfig;
use crate::record::TopicPartition;
use crate::source::settings::{consumer_config, without_value};
use crate::source::{Assignments, SourceError, SourceLimits, Unowned};

/// For each answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Of which nothing is used: this client fetches nothing.
const BUDGET_BYTES: usize = 64 << 20;

/// The reader of documents tells of brokers that are away.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", "{facility}: {message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

pub(super) struct GroupWatch {
    consumer: BaseConsumer<Quiet>,
    kafka: KafkaConfig,
    assignments: Arc<dyn Assignments>,
    /// Asks the polling thread to leave the group and to join it again.
    rejoin: Arc<AtomicBool>,
}

impl GroupWatch {
    pub(super) fn open(
        kafka: &KafkaConfig,
        bootstrap: &str,
        assignments: Arc<dyn Assignments>,
        rejoin: Arc<AtomicBool>,
    ) -> Result<Self, SourceError> {
        let mut config = consumer_config(kafka, bootstrap, SourceLimits::of_budget(BUDGET_BYTES));
        // Never subscribed, so no member; and whoever has this name is left alone.
        config.remove("group.instance.id");
        config.set("statistics.interval.ms", "0");
        let consumer = config
            .create_with_context(Quiet)
            .map_err(|e| SourceError::Client { bootstrap: bootstrap.to_owned(), problem: without_value(&e) })?;
        Ok(GroupWatch { consumer, kafka: kafka.clone(), assignments, rejoin })
    }

    /// Until the other end of `stopped` is dropped.
    pub(super) fn run(self, stopped: &mpsc::Receiver<()>) {
        let mut ownership = Ownership::new(self.kafka.instance_id.clone(), self.kafka.ownership_grace);
        while stopped.recv_timeout(self.kafka.ownership_interval) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Nobody else reads what the client says of itself.
            while self.consumer.poll(Duration::ZERO).is_some() {}
            match self.look() {
                Ok(Some(look)) => self.judge(&mut ownership, &look),
                Ok(None) => ownership.unsettled(),
                // Nothing is known, so nothing has changed.
                Err(problem) => {
                    tracing::debug!("kafka: owners of group `{}` cannot be looked at: {problem}", self.kafka.group);
                }
            }
        }
    }

    fn judge(&self, ownership: &mut Ownership, look: &Look) {
        let verdict = ownership.look(look, Instant::now());
        let unowned: Vec<_> = verdict.unowned.into_iter().map(|at| self.with_log(at)).collect();
        self.assignments.unowned(&unowned, &verdict.to_mend);
        if !verdict.to_mend.is_empty() {
            let names = verdict.to_mend.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                "nobody in group `{}` has owned {names} for {} s; leaving the group and joining it again, so that it shares its \
                 partitions out anew",
                self.kafka.group,
                self.kafka.ownership_grace.as_secs_f64()
            );
            self.rejoin.store(true, Ordering::Relaxed);
        }
    }

    fn with_log(&self, at: TopicPartition) -> Unowned {
        let log = self.consumer.fetch_watermarks(&at.topic, at.partition, TIMEOUT).ok();
        Unowned { at, log }
    }

    /// `None` while the group is rebalancing.
    fn look(&self) -> Result<Option<Look>, String> {
        let groups = self.consumer.fetch_group_list(Some(&self.kafka.group), TIMEOUT).map_err(|e| e.to_string())?;
        let Some(group) = groups.groups().iter().find(|group| group.name() == self.kafka.group) else {
            return Err("no broker knows it".to_owned());
        };
        if group.state() != "Stable" {
            return Ok(None);
        }
        let mut members = BTreeMap::new();
        for member in group.members() {
            let owned = assignment(member.assignment().unwrap_or_default());
            let owned = owned.ok_or_else(|| format!("the assignment of member {} cannot be read", member.id()))?;
            members.insert(member.id().to_owned(), owned);
        }
        let mut look = Look { members, ..Look::default() };
        for topic in &self.kafka.topics {
            let metadata = self.consumer.fetch_metadata(Some(topic), TIMEOUT).map_err(|e| e.to_string())?;
            for found in metadata.topics().iter().filter(|found| found.name() == topic && found.error().is_none()) {
                let name: Arc<str> = topic.as_str().into();
                let partitions = found.partitions().iter();
                look.partitions.extend(partitions.map(|partition| TopicPartition::new(name.clone(), partition.id())));
            }
        }
        Ok(Some(look))
    }
}
