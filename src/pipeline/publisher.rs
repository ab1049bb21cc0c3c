//! Closed windows in, published shards out: builds one shard at a time and carries out the steps of its publication.
//!
//! [`crate::publish::Publication`] decides what comes next; here each step meets the catalog and the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::Shared;
use super::memory::InFlight;
use crate::catalog::{Advance, CatalogError, PublishRequest, ShardState};
use crate::checkpoint::Progress;
use crate::manifest::ShardManifest;
use crate::publish::{Event, Publication, Step};
use crate::record::TopicPartition;
use crate::select::Quantiles;
use crate::sink::{FinishedShard, ShardStore, ShardWriter, SinkError, WriterSettings};
use crate::source::OffsetMirror;
use crate::telemetry::Step as TimedStep;
use crate::window::{ClosedWindow, DeadLetter, WindowSummary};

/// Dead letters and windows that wait for a shard to fill roll it when they come to this much.
const MAX_PENDING_DEAD_LETTERS: usize = 10_000;
const MAX_PENDING_DEAD_LETTER_BYTES: usize = 8 << 20;
const MAX_PENDING_WINDOWS: usize = 10_000;
/// How soon a failed write of the manifest is tried again.
const MANIFEST_RETRY: Duration = Duration::from_secs(5);

pub(super) enum ToPublisher {
    Window {
        window: Box<ClosedWindow>,
        owner_epoch: i64,
        held_bytes: usize,
    },
    /// Publish what there is, then answer.
    Flush(std::sync::mpsc::Sender<()>),
    /// These partitions belong to another worker already.
    Lost(Vec<TopicPartition>),
}

/// Why the publisher ended.
#[derive(Debug)]
pub(super) enum PublisherEnd {
    Shutdown,
    /// The worker has gone; it knows why.
    Disconnected,
    /// Another worker owns a partition of the open shard, or rows cannot be written: begin again at the checkpoints.
    Restart(String),
}

pub(super) struct Publisher {
    pub shared: Arc<Shared>,
    pub windows: mpsc::Receiver<ToPublisher>,
    pub in_flight: Arc<InFlight>,
    pub mirror: OffsetMirror,
    pub shutdown: watch::Receiver<bool>,
    /// The last sequence number in `manifest.jsonl`; `None` when that is not known.
    pub announced: Option<i64>,
}

/// A shard that still takes windows.
struct OpenShard {
    id: String,
    /// `None` until something is selected.
    writer: Option<ShardWriter>,
    progress: Progress,
    epochs: BTreeMap<TopicPartition, i64>,
    windows: Vec<WindowSummary>,
    dead_letters: Vec<(TopicPartition, DeadLetter)>,
    dead_letter_bytes: usize,
    log_importance_weights: Vec<f64>,
    opened: Instant,
}

impl Publisher {
    pub async fn run(mut self) -> PublisherEnd {
        let mut open: Option<OpenShard> = None;
        let mut manifest_is_behind = false;
        loop {
            let roll_at = open.as_ref().map(|shard| shard.opened + self.shared.config.shard.max_age);
            let wake = roll_at.into_iter().chain(manifest_is_behind.then(|| Instant::now() + MANIFEST_RETRY)).min();
            let message = tokio::select! {
                biased;
                _ = self.shutdown.wait_for(|stop| *stop) => return PublisherEnd::Shutdown,
                message = self.windows.recv() => match message {
                    Some(message) => Some(message),
                    None => return PublisherEnd::Disconnected,
                },
                () = sleep_until(wake), if wake.is_some() => None,
            };
            let mut flushed = None;
            let step = match message {
                None => Ok(()),
                Some(ToPublisher::Window { window, owner_epoch, held_bytes }) => {
                    let appended = self.append(&mut open, *window, owner_epoch);
                    self.in_flight.release(held_bytes);
                    appended
                }
                Some(ToPublisher::Flush(done)) => {
                    flushed = Some(done);
                    Ok(())
                }
                Some(ToPublisher::Lost(partitions)) => match (&open, partitions) {
                    (Some(shard), lost) if lost.iter().any(|at| shard.progress.contains(at)) => {
                        Err("partitions of the open shard were lost to another worker".to_owned())
                    }
                    _ => Ok(()),
                },
            };
            if let Err(reason) = step {
                return PublisherEnd::Restart(reason);
            }
            let is_due = open.as_ref().is_some_and(|shard| flushed.is_some() || self.is_full(shard));
            if is_due && let Some(shard) = open.take() {
                match self.publish(shard).await {
                    Ok(wrote_rows) => manifest_is_behind |= wrote_rows,
                    Err(end) => return end,
                }
            }
            if let Some(done) = flushed {
                // Nobody waits any more when the drain deadline has passed.
                let _ = done.send(());
            }
            if manifest_is_behind {
                self.announced = self.write_manifest(self.announced).await;
                manifest_is_behind = self.announced.is_none();
            }
            let held = open.as_ref().and_then(|s| s.writer.as_ref()).map_or(0, ShardWriter::held_bytes);
            self.shared.telemetry.metrics.held_bytes.with_label_values(&["shard"]).set(held as i64);
        }
    }

    fn append(&self, open: &mut Option<OpenShard>, window: ClosedWindow, owner_epoch: i64) -> Result<(), String> {
        let Shared { config, model, limits, .. } = &*self.shared;
        let shard = open.get_or_insert_with(OpenShard::new);
        let at = window.summary.at.clone();
        if *shard.epochs.entry(at.clone()).or_insert(owner_epoch) != owner_epoch {
            return Err(format!("partition {at} was lost and came back while its windows waited for publication"));
        }
        shard.progress.append(&at, window.summary.interval).map_err(|e| e.to_string())?;
        if !window.selected.is_empty() {
            let settings = WriterSettings {
                row_group_rows: config.shard.row_group_rows,
                row_group_bytes: limits.row_group_bytes,
                zstd_level: config.shard.zstd_level,
            };
            let writer = match &mut shard.writer {
                Some(writer) => writer,
                none => none.insert(
                    ShardWriter::create(&shard.id, config.sink.scratch_dir.as_deref(), settings)
                        .map_err(|e| e.to_string())?,
                ),
            };
            // Compression takes its time; other tasks of this thread move elsewhere meanwhile.
            tokio::task::block_in_place(|| writer.append(&window, &model.id)).map_err(|e| e.to_string())?;
        }
        shard.log_importance_weights.extend(window.selected.iter().map(|row| row.score.log_importance_weight));
        shard.dead_letter_bytes += window.dead_letters.iter().map(DeadLetter::size_bytes).sum::<usize>();
        shard.dead_letters.extend(window.dead_letters.into_iter().map(|letter| (at.clone(), letter)));
        shard.windows.push(window.summary);
        Ok(())
    }

    fn is_full(&self, shard: &OpenShard) -> bool {
        let limits = &self.shared.config.shard;
        let (rows, bytes) = shard.writer.as_ref().map_or((0, 0), |w| (w.rows(), w.bytes()));
        rows >= limits.max_rows
            || bytes >= limits.target_bytes
            || shard.opened.elapsed() >= limits.max_age
            || shard.dead_letters.len() >= MAX_PENDING_DEAD_LETTERS
            || shard.dead_letter_bytes >= MAX_PENDING_DEAD_LETTER_BYTES
            || shard.windows.len() >= MAX_PENDING_WINDOWS
    }

    /// Publishes one shard, however long it takes, unless a shutdown comes while a step is failing. Tells whether the
    /// manifest has a new line.
    async fn publish(&mut self, shard: OpenShard) -> Result<bool, PublisherEnd> {
        let began = Instant::now();
        let (manifest, file, advances, dead_letters) =
            tokio::task::block_in_place(|| self.finish(shard)).map_err(|e| PublisherEnd::Restart(e.to_string()))?;
        let request = PublishRequest { manifest: &manifest, advances: &advances, dead_letters: &dead_letters };
        let mut publication = Publication::new(file.is_some());
        let mut fenced_by = None;
        loop {
            let event = match publication.step() {
                Step::Finished => break,
                Step::Abandon => {
                    self.shared.telemetry.metrics.fenced.inc();
                    let reason = fenced_by.unwrap_or_else(|| "another worker took a partition over".to_owned());
                    return Err(PublisherEnd::Restart(format!("shard {} is not published: {reason}", manifest.shard)));
                }
                step => self.carry_out(step, &request, file.as_ref(), &mut fenced_by).await,
            };
            publication.observe(event);
            self.shared.telemetry.status().readiness.catalog_reachable =
                event != Event::Failed || publication.step() == Step::Upload;
            if event == Event::Failed {
                tokio::select! {
                    () = tokio::time::sleep(publication.backoff()) => {}
                    _ = self.shutdown.wait_for(|stop| *stop) => return Err(PublisherEnd::Shutdown),
                }
            }
        }
        self.published(&request, began.elapsed()).await;
        Ok(manifest.path.is_some())
    }

    /// Ends the file and states what it holds.
    #[expect(clippy::type_complexity, reason = "the parts of one publication, taken apart at the only call")]
    fn finish(
        &self,
        shard: OpenShard,
    ) -> Result<(ShardManifest, Option<FinishedShard>, Vec<Advance>, Vec<(TopicPartition, DeadLetter)>), SinkError>
    {
        let Shared { config, model, .. } = &*self.shared;
        let OpenShard { id, writer, progress, epochs, windows, dead_letters, log_importance_weights, .. } = shard;
        let advance =
            |(at, interval): (&TopicPartition, _)| Advance { at: at.clone(), interval, owner_epoch: epochs[at] };
        let advances: Vec<_> = progress.iter().map(advance).collect();
        let mut manifest = ShardManifest {
            shard: id,
            pipeline: config.pipeline.clone(),
            path: None,
            rows: 0,
            bytes: 0,
            digest: None,
            model: model.id.clone(),
            selector: config.selector,
            log_importance_weights: Quantiles::of(log_importance_weights),
            windows,
            created_at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as i64),
        };
        let Some(writer) = writer else { return Ok((manifest, None, advances, dead_letters)) };
        let file = writer.finish(footer(&manifest, &advances))?;
        manifest.path = Some(ShardStore::shard_path(&manifest.shard));
        manifest.rows = file.rows;
        manifest.bytes = file.bytes;
        manifest.digest = Some(file.digest.clone());
        Ok((manifest, Some(file), advances, dead_letters))
    }

    async fn carry_out(
        &self,
        step: Step,
        request: &PublishRequest<'_>,
        file: Option<&FinishedShard>,
        fenced_by: &mut Option<String>,
    ) -> Event {
        let Shared { catalog, store, telemetry, .. } = &*self.shared;
        let ShardManifest { shard, pipeline, path, .. } = request.manifest;
        let timed = match step {
            Step::Stage => TimedStep::Stage,
            Step::Upload => TimedStep::Upload,
            _ => TimedStep::Commit,
        };
        let timer = telemetry.metrics.publish_seconds.with_label_values(&[timed.as_str()]).start_timer();
        let failed = |e: &dyn std::fmt::Display| {
            tracing::warn!("shard {shard}: {e}; trying again");
            telemetry.status().last_error = Some(e.to_string());
            telemetry.metrics.publish_failures.with_label_values(&[timed.as_str()]).inc();
            Event::Failed
        };
        let event = match step {
            Step::Stage => match catalog.stage(pipeline, shard, path.as_deref()).await {
                Ok(()) => Event::Staged,
                Err(e) => failed(&e),
            },
            Step::Upload => match (file, path) {
                (Some(file), Some(path)) => match store.upload(&file.file, file.bytes, path).await {
                    Ok(()) => Event::Uploaded,
                    Err(e) => failed(&e),
                },
                _ => Event::Uploaded,
            },
            Step::ReadBack => match catalog.shard_state(shard).await {
                Ok(Some(ShardState::Published)) => Event::FoundPublished,
                Ok(_) => Event::FoundStaged,
                Err(e) => failed(&e),
            },
            Step::Commit | Step::Finished | Step::Abandon => match catalog.publish(request).await {
                Ok(_) => Event::Committed,
                Err(e @ (CatalogError::Fenced { .. } | CatalogError::NotStaged(_))) => {
                    *fenced_by = Some(e.to_string());
                    Event::Fenced
                }
                Err(e @ CatalogError::CommitUnknown { .. }) => {
                    tracing::warn!("shard {shard}: {e}; reading its state back");
                    Event::CommitUnknown
                }
                Err(e) => failed(&e),
            },
        };
        timer.observe_duration();
        event
    }

    /// After the transaction: show it, and tell the group. Nothing here can undo it.
    async fn published(&self, request: &PublishRequest<'_>, took: Duration) {
        let PublishRequest { manifest, advances, dead_letters } = *request;
        let Shared { config, catalog, telemetry, .. } = &*self.shared;
        let sum = |count: fn(&WindowSummary) -> u64| manifest.windows.iter().map(count).sum::<u64>();
        let (selected, rejected) = (sum(|w| w.n_selected), sum(|w| w.n_rejected));
        let metrics = &telemetry.metrics;
        metrics.decided.with_label_values(&["selected"]).inc_by(selected);
        metrics.decided.with_label_values(&["rejected"]).inc_by(rejected);
        metrics.decided.with_label_values(&["dead_letter"]).inc_by(sum(|w| w.n_dead_letters));
        for (_, letter) in dead_letters {
            metrics.dead_letters.with_label_values(&[letter.reject.reason.as_str()]).inc();
        }
        if let Some(path) = &manifest.path {
            metrics.published_shards.inc();
            metrics.published_rows.inc_by(manifest.rows);
            metrics.published_bytes.inc_by(manifest.bytes);
            tracing::info!(
                "published {path}: {selected} selected of {} documents in {} windows, {} KB, {} ms",
                selected + rejected,
                manifest.windows.len(),
                manifest.bytes >> 10,
                took.as_millis()
            );
        }
        {
            let mut status = telemetry.status();
            for Advance { at, interval, .. } in advances {
                if let Some(partition) = status.partitions.get_mut(at) {
                    partition.published = interval.to;
                }
            }
            if manifest.path.is_some() {
                status.last_shard.clone_from(&manifest.path);
            }
            status.last_error = None;
        }
        telemetry.update_lag();
        match catalog.totals(&config.pipeline).await {
            Ok(Some(totals)) => telemetry.set_totals(totals),
            Ok(None) => {}
            Err(e) => tracing::warn!("{e}; /metrics shows the sums of the publication before"),
        }
        self.mirror.commit(advances.iter().map(|a| (a.at.clone(), a.interval.to)).collect());
    }

    /// Brings `manifest.jsonl` up to the catalog, whose lines up to `announced` it has; `None` makes it anew. Gives how
    /// far it has come; a failure delays trainers but loses nothing.
    async fn write_manifest(&self, announced: Option<i64>) -> Option<i64> {
        let Shared { config, catalog, store, telemetry, .. } = &*self.shared;
        let after = announced.filter(|_| store.can_append());
        let problem = match catalog.manifest_lines(&config.pipeline, after.unwrap_or(0)).await {
            Ok(lines) => {
                let written = match after {
                    Some(_) => store.append_manifest(&lines).await,
                    None => store.write_manifest(&lines).await,
                };
                match written {
                    Ok(()) => return Some(after.unwrap_or(0) + lines.len() as i64),
                    Err(e) => e.to_string(),
                }
            }
            Err(e) => e.to_string(),
        };
        telemetry.metrics.manifest_failures.inc();
        tracing::warn!("manifest.jsonl is behind: {problem}; trying again");
        None
    }
}

/// What a reader finds in the shard's own key-value metadata.
fn footer(manifest: &ShardManifest, advances: &[Advance]) -> Vec<(String, String)> {
    let offsets: Vec<_> = advances
        .iter()
        .map(|a| {
            let (topic, partition) = (&a.at.topic, a.at.partition);
            serde_json::json!({ "topic": topic, "partition": partition, "from_offset": a.interval.from, "to_offset": a.interval.to })
        })
        .collect();
    let json = |value: serde_json::Result<serde_json::Value>| value.map(|v| v.to_string()).unwrap_or_default();
    [
        ("shard", manifest.shard.clone()),
        ("pipeline", manifest.pipeline.clone()),
        ("model", manifest.model.to_string()),
        ("seed", manifest.selector.seed.to_string()),
        ("selector", json(serde_json::to_value(manifest.selector))),
        ("offsets", serde_json::Value::from(offsets).to_string()),
        ("windows", json(serde_json::to_value(&manifest.windows))),
    ]
    .map(|(key, value)| (format!("winnowd.{key}"), value))
    .to_vec()
}

impl OpenShard {
    fn new() -> Self {
        OpenShard {
            id: Uuid::now_v7().to_string(),
            writer: None,
            progress: Progress::default(),
            epochs: BTreeMap::new(),
            windows: Vec::new(),
            dead_letters: Vec::new(),
            dead_letter_bytes: 0,
            log_importance_weights: Vec::new(),
            opened: Instant::now(),
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
