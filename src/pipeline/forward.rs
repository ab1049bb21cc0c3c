//! Published dead letters, to a topic: at least once, in the order of their publication.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};

use super::{DaemonError, Shared};
use crate::catalog::PendingForward;
use crate::sink::{StoredDeadLetter, read_dead_letters};
use crate::source::{OutgoingRecord, SourceError, TopicWriter};

/// What another worker has published is left to that worker for so long; what failed is tried again as late.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) struct Forwarder {
    shared: Arc<Shared>,
    /// Shards that this worker has just published.
    shards: mpsc::UnboundedReceiver<String>,
    stopped: watch::Receiver<bool>,
    own: BTreeSet<String>,
    writer: Option<Arc<TopicWriter>>,
}

impl Forwarder {
    pub fn new(shared: Arc<Shared>, shards: mpsc::UnboundedReceiver<String>, stopped: watch::Receiver<bool>) -> Self {
        Forwarder { shared, shards, stopped, own: BTreeSet::new(), writer: None }
    }

    /// Until the session ends. A failure delays the topic and nothing else.
    pub async fn run(mut self) {
        loop {
            if let Err(e) = self.forward_pending().await {
                self.shared.telemetry.metrics.forward_failures.inc();
                tracing::warn!(
                    "dead letters are not sent to their topic: {e}; trying again in {} s",
                    PATIENCE.as_secs()
                );
                self.writer = None;
                tokio::time::sleep(PATIENCE).await;
            }
            tokio::select! {
                _ = self.stopped.wait_for(|stop| *stop) => return,
                shard = self.shards.recv() => match shard {
                    Some(shard) => drop(self.own.insert(shard)),
                    None => return,
                },
                () = tokio::time::sleep(PATIENCE) => {}
            }
            while let Ok(shard) = self.shards.try_recv() {
                self.own.insert(shard);
            }
        }
    }

    async fn forward_pending(&mut self) -> Result<(), DaemonError> {
        let Shared { config, catalog, .. } = &*self.shared.clone();
        let old =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.saturating_sub(PATIENCE).as_millis() as i64);
        let pending = catalog.pending_forwards(&config.pipeline).await?;
        let ours = |p: &PendingForward| self.own.contains(&p.shard) || p.published_at_ms < old;
        let ours: Vec<_> = pending.into_iter().filter(ours).collect();
        for PendingForward { shard, topic, file, .. } in ours {
            let (n_sent, n_refused) = self.forward(topic.clone(), file.path.clone()).await?;
            catalog.forwarded(&shard).await?;
            self.own.remove(&shard);
            self.shared.telemetry.metrics.dead_letters_forwarded.inc_by(n_sent);
            tracing::info!("{n_sent} dead letters of {} sent to topic {topic}", file.path);
            if n_refused > 0 {
                tracing::warn!(
                    "topic {topic} does not take {n_refused} dead letters: too large; they stay in {}",
                    file.path
                );
            }
        }
        Ok(())
    }

    async fn forward(&mut self, topic: String, path: String) -> Result<(u64, u64), DaemonError> {
        let Shared { config, store, bootstrap, .. } = &*self.shared;
        let writer = match &self.writer {
            Some(writer) => writer.clone(),
            None => self.writer.insert(Arc::new(TopicWriter::connect(&config.kafka, bootstrap)?)).clone(),
        };
        let content = store.read(&path).await?;
        let (pipeline, stopped) = (config.pipeline.clone(), self.stopped.clone());
        let sent = tokio::task::spawn_blocking(move || {
            let is_wanted = || !*stopped.borrow();
            writer.check(&topic)?;
            let mut n_sent = 0;
            for letter in read_dead_letters(&path, content)? {
                send_dead_letter(&writer, &topic, &pipeline, &letter?, &is_wanted)?;
                n_sent += 1;
            }
            let n_refused = writer.flush(&is_wanted)?;
            Ok((n_sent - n_refused, n_refused))
        });
        sent.await.unwrap_or_else(|e| Err(DaemonError::Internal(e.to_string())))
    }
}

/// Sends the payload of a dead letter, as much of it as is kept, with where it came from and why it was refused in headers.
pub fn send_dead_letter(
    writer: &TopicWriter,
    topic: &str,
    pipeline: &str,
    letter: &StoredDeadLetter,
    is_wanted: &dyn Fn() -> bool,
) -> Result<(), SourceError> {
    let headers = [
        ("winnowd.pipeline", pipeline.to_owned()),
        ("winnowd.topic", letter.at.topic.to_string()),
        ("winnowd.partition", letter.at.partition.to_string()),
        ("winnowd.offset", letter.offset.to_string()),
        ("winnowd.reason", letter.reason.clone()),
        ("winnowd.detail", letter.detail.clone()),
        ("winnowd.payload_bytes", letter.payload_bytes.to_string()),
    ];
    let (payload, timestamp_ms) = (letter.payload.as_deref(), letter.timestamp_ms);
    writer.send(OutgoingRecord { topic, key: None, payload, timestamp_ms, headers: &headers }, is_wanted)
}
