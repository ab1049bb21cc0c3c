//! Answers the consumer's rebalances: claims partitions in the catalog, and drains them before they go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{Shared, spans};
use crate::catalog::{CatalogError, Claim};
use crate::config::Bootstrap;
use crate::crash;
use crate::record::TopicPartition;
use crate::source::{Assigned, Assignments, PartitionLag, QueueSender, SourceError, SourceEvent, Unowned};
use crate::telemetry::failed;

/// Takes partitions over in the catalog, whatever their topic.
#[derive(Clone)]
pub(super) struct Claims {
    pub shared: Arc<Shared>,
    pub runtime: Handle,
    pub shutdown: watch::Receiver<bool>,
}

impl Claims {
    /// Repeats a call until it succeeds, for as long as the group can wait for this worker's poll.
    async fn until_reachable<T, F: Future<Output = Result<T, CatalogError>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, CatalogError> {
        let deadline = Instant::now() + self.shared.config.kafka.max_poll_interval / 3;
        let mut has_told = false;
        loop {
            match call().await {
                Err(e @ (CatalogError::Unavailable { .. } | CatalogError::CommitUnknown { .. }))
                    if Instant::now() < deadline && !*self.shutdown.borrow() =>
                {
                    // Twice a second for as long as it lasts: once is enough.
                    if !std::mem::replace(&mut has_told, true) {
                        tracing::warn!("{e}; partitions wait for it, trying again");
                    }
                    self.shared.telemetry.status().readiness.catalog_reachable = false;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                result => return result,
            }
        }
    }

    /// See [`Assignments::assigned`].
    pub fn take_over(
        &self,
        partitions: &[TopicPartition],
        topic_ids: &BTreeMap<Arc<str>, String>,
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError> {
        let span = spans::claim(partitions, &self.shared);
        let taken = span.in_scope(|| self.claim(partitions, topic_ids, resolve));
        taken.inspect_err(|e| failed(&span, &e.to_string()))
    }

    fn claim(
        &self,
        partitions: &[TopicPartition],
        topic_ids: &BTreeMap<Arc<str>, String>,
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError> {
        let Shared { config, catalog, telemetry, owner, .. } = &*self.shared;
        let pipeline = &config.pipeline;
        let refused =
            |partitions: String| move |e: CatalogError| SourceError::Claim { partitions, problem: e.to_string() };
        let names = || partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        // Before a claim: whoever reads the right topic is not fenced by one who reads another.
        if !matches!(config.kafka.bootstrap, Bootstrap::Embedded { .. }) {
            for (topic, found) in topic_ids {
                let noted = self.until_reachable(|| catalog.note_topic(pipeline, topic, found));
                let known = self.runtime.block_on(noted).map_err(refused(names()))?;
                if known != *found {
                    let (topic, found) = (topic.to_string(), found.clone());
                    return Err(SourceError::TopicRecreated { topic, known, found });
                }
            }
        }
        let claims = self.runtime.block_on(self.until_reachable(|| catalog.claim(pipeline, partitions, owner)));
        let mut assigned = Vec::with_capacity(partitions.len());
        for Claim { at, owner_epoch, next_offset } in claims.map_err(refused(names()))? {
            let next_offset = match next_offset {
                Some(offset) => offset,
                None => {
                    let offset = resolve(&at)?;
                    let start = self.until_reachable(|| catalog.start(pipeline, &at, owner_epoch, offset));
                    self.runtime.block_on(start).map_err(refused(at.to_string()))?
                }
            };
            tracing::info!(
                topic = &*at.topic,
                partition = at.partition,
                offset = next_offset,
                owner_epoch,
                "partition {at}: taken over at offset {next_offset}, owner epoch {owner_epoch}"
            );
            assigned.push(Assigned { at, owner_epoch, next_offset });
        }
        telemetry.status().readiness.catalog_reachable = true;
        Ok(assigned)
    }

    /// Shows what waits in partitions of these topics that nobody owns, behind the catalog's checkpoints.
    pub fn show_unowned(&self, topics: &[String], unowned: &[Unowned], to_mend: &[TopicPartition]) {
        let Shared { config, catalog, telemetry, .. } = &*self.shared;
        let checkpoints = match unowned {
            [] => Ok(Vec::new()),
            _ => self.runtime.block_on(catalog.checkpoints(&config.pipeline)),
        };
        let checkpoints = checkpoints.inspect_err(|e| tracing::debug!("what waits without an owner is unknown: {e}"));
        let next_offsets: BTreeMap<(&str, i32), i64> = checkpoints
            .iter()
            .flatten()
            .filter_map(|c| Some(((c.topic.as_str(), c.partition), c.next_offset?)))
            .collect();
        for topic in topics {
            let of_topic = || unowned.iter().filter(|u| *u.at.topic == **topic);
            let lag = of_topic().filter_map(|Unowned { at, log }| {
                let (begin, end) = (*log)?;
                // Where nothing was decided yet.
                let next = next_offsets.get(&(&*at.topic, at.partition)).copied().unwrap_or(begin);
                Some((end - next).max(0))
            });
            telemetry.metrics.unowned_partitions.with_label_values(&[topic]).set(of_topic().count() as i64);
            if checkpoints.is_ok() {
                telemetry.metrics.unowned_lag.with_label_values(&[topic]).set(lag.sum());
            }
        }
        telemetry.metrics.orphaned_partitions.inc_by(to_mend.len() as u64);
    }

    /// Tells whoever works on revoked partitions, and waits until what is finished of them has been published, or they are
    /// lost already.
    pub fn drain(&self, queue: &QueueSender, partitions: &[TopicPartition], lost: bool) {
        let (done, drained) = mpsc::channel();
        let event = SourceEvent::Revoked { partitions: partitions.to_vec(), lost, done };
        let deadline = self.shared.config.kafka.drain_timeout;
        let sent = queue.control(event);
        if sent.is_ok() && !lost && drained.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!(
                "revoked partitions were not drained within {} s; their next owner decides again",
                deadline.as_secs()
            );
        }
        if !lost {
            crash::point("revoke.drained");
        }
    }
}

/// Of the documents' topics.
pub(super) struct CatalogAssignments {
    pub claims: Claims,
    pub queue: QueueSender,
}

impl Assignments for CatalogAssignments {
    fn assigned(
        &self,
        partitions: &[TopicPartition],
        topic_ids: &BTreeMap<Arc<str>, String>,
        resolve: &dyn Fn(&TopicPartition) -> Result<i64, SourceError>,
    ) -> Result<Vec<Assigned>, SourceError> {
        let telemetry = &self.claims.shared.telemetry;
        let assigned = self.claims.take_over(partitions, topic_ids, resolve)?;
        telemetry.metrics.rebalances.with_label_values(&["assigned"]).inc();
        telemetry.status().readiness.joined_group = true;
        // A closed queue means that the session is ending; nothing is read then.
        let _ = self.queue.control(SourceEvent::Assigned(assigned.clone()));
        Ok(assigned)
    }

    fn revoked(&self, partitions: &[TopicPartition], lost: bool) {
        let kind = if lost { "lost" } else { "revoked" };
        self.claims.shared.telemetry.metrics.rebalances.with_label_values(&[kind]).inc();
        for at in partitions {
            tracing::info!(topic = &*at.topic, partition = at.partition, "partition {at}: {kind}");
        }
        if lost {
            self.claims.shared.telemetry.status().readiness.joined_group = false;
            tracing::warn!(
                "the consumer group has not heard from this worker in time: its {} partitions are lost, and what is not \
                 published of them is decided again by whoever gets them; joining again",
                partitions.len()
            );
        }
        self.claims.drain(&self.queue, partitions, lost);
    }

    fn lag(&self, lags: Vec<PartitionLag>) {
        {
            let mut status = self.claims.shared.telemetry.status();
            for lag in lags {
                if let Some(partition) = status.partitions.get_mut(&lag.at) {
                    partition.end_offset = Some(lag.end_offset);
                }
            }
        }
        self.claims.shared.telemetry.update_lag();
    }

    fn brokers_answer(&self, answers: bool) {
        self.claims.shared.telemetry.status().readiness.brokers_away = !answers;
    }
    fn unowned(&self, unowned: &[Unowned], to_mend: &[TopicPartition]) {
        let Shared { config, telemetry, .. } = &*self.claims.shared;
        self.claims.show_unowned(&config.kafka.topics, unowned, to_mend);
        telemetry.status().unowned = unowned.iter().map(|unowned| unowned.at.clone()).collect();
    }
}
