//! Lost offsets: what comes next in a partition is not in its log any more, or its log is another one.

use super::session::SessionEnd;
use super::{DaemonError, Shared};
use crate::catalog::{CatalogError, GapReason, OffsetsCatalog};
use crate::checkpoint::Interval;
use crate::config::{Config, OnLostOffset};
use crate::source::{LostOffset, Probe, SourceError};

/// Decides whether the daemon may go on, and if so records the gaps. The session has ended: whatever it read and has not
/// published is dropped, and read again from the checkpoint as far as it is still there.
pub(super) async fn settle(shared: &Shared, lost: Vec<LostOffset>) -> SessionEnd {
    let is_skipped = shared.config.kafka.on_lost_offset == OnLostOffset::Skip;
    let (before, behind): (Vec<_>, Vec<_>) = lost.into_iter().partition(LostOffset::is_before_log);
    if !behind.is_empty() {
        return SessionEnd::Fatal(SourceError::OffsetsLost(behind).into());
    }
    if !is_skipped {
        return SessionEnd::Fatal(SourceError::OffsetsLost(before).into());
    }
    let (mut skipped, mut partitions) = (0, 0);
    for LostOffset { at, owner_epoch, offset, low, .. } in before {
        let interval = Interval { from: offset, to: low };
        match shared.catalog.skip(&shared.config.pipeline, &at, interval, owner_epoch, GapReason::Retention).await {
            Ok(()) => {
                tracing::warn!(
                    topic = &*at.topic,
                    partition = at.partition,
                    offset,
                    "partition {at}: retention has removed offsets {interval} before they were decided; a gap of {} offsets \
                     is recorded, going on at {low}",
                    low - offset
                );
                shared.telemetry.metrics.skipped_offsets.inc_by((low - offset) as u64);
                skipped += low - offset;
                partitions += 1;
            }
            // Records behind the checkpoint had been read already: after the new beginning the checkpoint itself is lost. Or
            // another worker has the partition, and finds the gap itself.
            Err(CatalogError::Fenced { .. }) => {
                tracing::info!("partition {at}: its checkpoint does not stand at the lost offset {offset}");
            }
            Err(e) => return SessionEnd::Restart(e.to_string()),
        }
    }
    SessionEnd::Restart(match partitions {
        0 => "the next records were removed by retention while earlier ones waited for publication".to_owned(),
        n => format!("retention had removed {skipped} undecided offsets of {n} partitions, which are recorded as gaps"),
    })
}

/// Configured topics that are not the ones which the pipeline has read, each as an error. An id that cannot be asked for tells
/// nothing.
pub async fn recreated_topics(
    config: &Config,
    probe: &Probe,
    catalog: &dyn OffsetsCatalog,
) -> Result<Vec<SourceError>, DaemonError> {
    let mut recreated = Vec::new();
    for (topic, _) in probe.topics()? {
        let known = catalog.topic_id(&config.pipeline, &topic).await?;
        if let (Some(known), Ok(Some(found))) = (known, probe.topic_id(&topic))
            && known != found
        {
            recreated.push(SourceError::TopicRecreated { topic, known, found });
        }
    }
    Ok(recreated)
}
