//! Closed windows in, published shards out: builds one shard at a time and carries out the steps of its publication.
//!
//! [`crate::publish::Publication`] decides what comes next; here each step meets the catalog and the store.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument, Span};

use super::adaptive::InForce;
use super::memory::InFlight;
use super::open_shard::{FinishedPublication, OpenShard};
use super::room::FullScratch;
use super::side_files::extend_side_files;
use super::{DaemonError, Shared, adaptive, spans};
use crate::catalog::{Advance, CatalogError, PublishRequest, ShardState};
use crate::crash;
use crate::manifest::ShardManifest;
use crate::publish::{Event, Publication, Step};
use crate::record::TopicPartition;
use crate::sink::{FinishedFile, FullDisk, ShardStore, SinkError, Spool};
use crate::source::OffsetMirror;
use crate::telemetry::{Step as TimedStep, context_of, failed};
use crate::window::{ClosedWindow, WindowSummary};

/// Until a failed write of the manifest, or a catalog that was not there, is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// After so long without a publication the catalog is asked for what others have published.
const REFRESH: Duration = Duration::from_secs(10);
/// After so long without an answer the catalog counts as unreachable.
const SILENCE: Duration = Duration::from_secs(5);
/// A step that fails for less is nobody's business, and for longer somebody's now: as long as the alert waits.
const MOMENT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(300);
/// Of several workers that change it on an object store at the same time one succeeds.
const MANIFEST_ATTEMPTS: u32 = 5;

pub(super) enum ToPublisher {
    Window {
        window: Box<ClosedWindow>,
        /// The selected documents that it does not hold.
        spool: Option<Spool>,
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
    /// Shards whose dead letters are to be sent to a topic.
    pub to_forwarder: mpsc::UnboundedSender<String>,
    pub shutdown: watch::Receiver<bool>,
    /// Where the worker finds what is in force.
    pub in_force: watch::Sender<InForce>,
}

impl Publisher {
    pub async fn run(mut self) -> PublisherEnd {
        let mut open: Option<OpenShard> = None;
        let full_disk: Arc<dyn FullDisk> = Arc::new(FullScratch {
            shared: self.shared.clone(),
            shutdown: self.shutdown.clone(),
            runtime: Handle::current(),
            since: Mutex::default(),
        });
        // When lines are to be added to the manifest, if they are.
        let mut manifest_due: Option<Instant> = None;
        let mut refresh_due = Instant::now() + REFRESH;
        // The trace of the publication that the manifest lacks.
        let mut last_publication = Context::new();
        loop {
            let roll_at = open.as_ref().map(|shard| shard.opened + self.shared.config.shard.max_age);
            let wake = roll_at.into_iter().chain(manifest_due).chain([refresh_due]).min();
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
                Some(ToPublisher::Window { window, spool, owner_epoch, held_bytes }) => {
                    let shard = open.get_or_insert_with(|| OpenShard::new(full_disk.clone()));
                    // Other tasks of this thread move elsewhere meanwhile.
                    let append = || shard.append(*window, spool, owner_epoch, &self.shared);
                    let appended = tokio::task::block_in_place(append);
                    self.in_flight.release(held_bytes);
                    appended
                }
                Some(ToPublisher::Flush(done)) => {
                    flushed = Some(done);
                    Ok(())
                }
                Some(ToPublisher::Lost(partitions)) => match (&open, partitions) {
                    (Some(shard), lost) if lost.iter().any(|at| shard.contains(at)) => {
                        Err("partitions of the open shard were lost to another worker".to_owned())
                    }
                    _ => Ok(()),
                },
            };
            if let Err(reason) = step {
                return PublisherEnd::Restart(reason);
            }
            let is_due = open.as_ref().is_some_and(|shard| flushed.is_some() || shard.is_full(&self.shared));
            if is_due && let Some(shard) = open.take() {
                refresh_due = Instant::now() + REFRESH;
                let span = spans::publication(&shard, &self.shared);
                last_publication = context_of(&span);
                match self.publish(shard).instrument(span).await {
                    // After a failure it is not tried with every shard.
                    Ok(true) => {
                        manifest_due.get_or_insert_with(Instant::now);
                    }
                    Ok(false) => {}
                    Err(end) => return end,
                }
            }
            if let Some(done) = flushed {
                // Nobody waits any more when the drain deadline has passed.
                let _ = done.send(());
            }
            if manifest_due.is_some_and(|due| due <= Instant::now()) {
                let span = spans::manifest(&last_publication);
                let is_behind = !self.extend_manifest().instrument(span).await;
                self.shared.telemetry.metrics.manifest_behind.set(is_behind.into());
                manifest_due = is_behind.then(|| Instant::now() + RETRY);
            }
            if refresh_due <= Instant::now() {
                let mut shutdown = self.shutdown.clone();
                tokio::select! {
                    biased;
                    _ = shutdown.wait_for(|stop| *stop) => return PublisherEnd::Shutdown,
                    is_there = self.refresh().instrument(spans::refresh()) => refresh_due = Instant::now() + if is_there { REFRESH } else { RETRY },
                }
            }
            let held = open.as_ref().map_or(0, OpenShard::held_bytes);
            self.shared.telemetry.metrics.held_bytes.with_label_values(&["shard"]).set(held as i64);
        }
    }

    /// Publishes one shard, however long it takes, unless a shutdown comes while a step is failing. Tells whether the
    /// manifest has a new line.
    async fn publish(&mut self, shard: OpenShard) -> Result<bool, PublisherEnd> {
        let began = Instant::now();
        let seconds = &self.shared.telemetry.metrics.publish_seconds;
        let timer = seconds.with_label_values(&[TimedStep::Write.as_str()]).start_timer();
        let span = Span::current();
        let written = spans::write();
        let finished = written.in_scope(|| tokio::task::block_in_place(|| shard.finish(&self.shared)));
        timer.observe_duration();
        let finished = finished.map_err(|e| {
            failed(&written, &e.to_string());
            failed(&span, &e.to_string());
            PublisherEnd::Restart(e.to_string())
        })?;
        drop(written);
        crash::point("shard.finished");
        let additions = finished.additions(&self.shared.config, &self.shared.model);
        let request = finished.request(&additions, &self.shared);
        let FinishedPublication { manifest, files, reasons, .. } = &finished;
        spans::describe(&span, manifest);
        let mut publication = Publication::new(!files.is_empty());
        let mut problem = None;
        // Since when the step fails.
        let mut failing = None;
        loop {
            let event = match publication.step() {
                Step::Finished => break,
                Step::Abandon => {
                    self.shared.telemetry.metrics.fenced.inc();
                    let reason = problem.unwrap_or_else(|| "another worker took a partition over".to_owned());
                    failed(&span, &reason);
                    return Err(PublisherEnd::Restart(format!("shard {} is not published: {reason}", manifest.shard)));
                }
                step => {
                    let event = self.carry_out(step, &request, files, &mut problem).instrument(spans::step(step));
                    self.unless_silent(step, &manifest.shard, event).await
                }
            };
            publication.observe(event);
            if matches!(event, Event::Staged | Event::Uploaded | Event::Committed | Event::FoundPublished) {
                failing = None;
            }
            if !publication.backoff().is_zero() {
                if let Some(problem) = problem.take() {
                    let wait = publication.backoff().as_secs_f64();
                    let (shard, step) = (&manifest.shard, timed(publication.step()).as_str());
                    let said = format!("shard {shard}: {problem}; trying again in {wait:.1} s");
                    match failing.get_or_insert_with(Instant::now).elapsed() {
                        // The next try settles most.
                        since if since < MOMENT => tracing::info!(shard, step, "{said}"),
                        since if since < LONG => tracing::warn!(shard, step, "{said}"),
                        since => tracing::error!(shard, step, "{said}; for {} s", since.as_secs()),
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(publication.backoff()) => {}
                    _ = self.shutdown.wait_for(|stop| *stop) => {
                        failed(&span, "the daemon stops while a step fails");
                        return Err(PublisherEnd::Shutdown);
                    }
                }
            }
        }
        for (reason, n) in reasons {
            self.shared.telemetry.metrics.dead_letters.with_label_values(&[reason.as_str()]).inc_by(*n);
        }
        self.published(&request, began.elapsed()).await;
        Ok(manifest.path.is_some())
    }

    /// `problem`: why the event is not the one that was wanted.
    async fn carry_out(
        &self,
        step: Step,
        request: &PublishRequest<'_>,
        files: &[(String, FinishedFile)],
        problem: &mut Option<String>,
    ) -> Event {
        let Shared { catalog, store, telemetry, .. } = &*self.shared;
        let ShardManifest { shard, pipeline, path, .. } = request.manifest;
        let timed = timed(step);
        let timer = telemetry.metrics.publish_seconds.with_label_values(&[timed.as_str()]).start_timer();
        let mut has_failed = |e: &dyn std::fmt::Display| self.failed(timed, problem, e.to_string());
        let event = match step {
            Step::Stage => match catalog.stage(pipeline, shard, path.as_deref()).await {
                Ok(()) => {
                    crash::point("publish.staged");
                    Event::Staged
                }
                Err(e) => has_failed(&e),
            },
            Step::Upload => match upload(store, files).await {
                Ok(()) => {
                    crash::point("upload.done");
                    Event::Uploaded
                }
                Err(e) => has_failed(&e),
            },
            Step::ReadBack => match catalog.shard_state(shard).await {
                Ok(Some(ShardState::Published)) => {
                    tracing::info!(shard, "shard {shard}: the COMMIT without an answer had happened, it is published");
                    Event::FoundPublished
                }
                Ok(_) => {
                    let reason = problem.take().unwrap_or_default();
                    self.failed(timed, problem, format!("not published: {reason}"));
                    Event::FoundStaged
                }
                Err(e) => has_failed(&e),
            },
            Step::Commit | Step::Finished | Step::Abandon => match catalog.publish(request).await {
                Ok(_) => Event::Committed,
                Err(e @ (CatalogError::Fenced { .. } | CatalogError::NotStaged(_))) => {
                    failed(&Span::current(), &e.to_string());
                    *problem = Some(e.to_string());
                    Event::Fenced
                }
                Err(e @ CatalogError::CommitUnknown { .. }) => {
                    tracing::info!(shard, "shard {shard}: {e}; reading its state back");
                    failed(&Span::current(), &e.to_string());
                    *problem = Some(e.to_string());
                    Event::CommitUnknown
                }
                Err(e) => has_failed(&e),
            },
        };
        timer.observe_duration();
        if matches!(event, Event::Staged | Event::Uploaded | Event::Committed | Event::FoundPublished) {
            telemetry.works(timed);
        }
        event
    }

    /// Waits for the event, and says so when the catalog takes long to answer: it may have gone without a word.
    async fn unless_silent(&self, step: Step, shard: &str, event: impl Future<Output = Event>) -> Event {
        // A large file takes its time.
        if step == Step::Upload {
            return event.await;
        }
        let mut event = std::pin::pin!(event);
        if let Ok(event) = tokio::time::timeout(SILENCE, &mut event).await {
            return event;
        }
        let (step, waited) = (timed(step), SILENCE.as_secs());
        let name = step.as_str();
        tracing::warn!(
            shard,
            step = name,
            "shard {shard}: {name}: no answer from the catalog for {waited} s, still waiting"
        );
        self.shared.telemetry.stalled(step, format!("no answer from the catalog for {waited} s"));
        event.await
    }

    fn failed(&self, step: TimedStep, problem: &mut Option<String>, error: String) -> Event {
        failed(&Span::current(), &error);
        self.shared.telemetry.stalled(step, error.clone());
        *problem = Some(error);
        Event::Failed
    }

    /// After the transaction: show it, and tell the group. Nothing here can undo it.
    async fn published(&self, request: &PublishRequest<'_>, took: Duration) {
        let PublishRequest { manifest, advances, counts, feedback, clusters, edges, .. } = *request;
        let Shared { config, catalog, telemetry, .. } = &*self.shared;
        let sum = |count: fn(&WindowSummary) -> u64| manifest.windows.iter().map(count).sum::<u64>();
        let (selected, rejected) = (sum(|w| w.n_selected), sum(|w| w.n_rejected));
        let metrics = &telemetry.metrics;
        metrics.decided.with_label_values(&["selected"]).inc_by(selected);
        metrics.decided.with_label_values(&["rejected"]).inc_by(rejected);
        metrics.decided.with_label_values(&["dead_letter"]).inc_by(sum(|w| w.n_dead_letters));
        metrics.of_targets.count_published(&manifest.windows);
        if let Some(path) = &manifest.path {
            metrics.published_shards.inc();
            metrics.published_rows.inc_by(manifest.rows);
            metrics.published_bytes.inc_by(manifest.bytes);
            if let Some(counted) = &manifest.tokenizer {
                metrics.published_tokens.with_label_values(&[&counted.name]).inc_by(counted.tokens);
            }
            metrics.held_out_rows.inc_by(manifest.validation.as_ref().map_or(0, |file| file.rows));
            tracing::info!(
                shard = manifest.shard,
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
            status.last_error = None;
        }
        telemetry.show_shard(manifest);
        telemetry.update_lag();
        match catalog.totals(&config.pipeline).await {
            Ok(Some(totals)) => telemetry.set_totals(totals),
            Ok(None) => {}
            Err(e) => tracing::info!("{e}; /metrics shows the sums of the publication before"),
        }
        if !counts.is_empty() || feedback.is_some() || clusters.is_some() || edges.is_some() {
            let known = self.in_force.borrow().clone();
            match adaptive::newest(&self.shared, &known).await {
                Ok(Some(newest)) => drop(self.in_force.send_replace(newest)),
                Ok(None) => {}
                Err(e) => tracing::info!("{e}; windows go on with what the publication before knew"),
            }
        }
        if request.forward_to.is_some() && manifest.dead_letters.is_some() {
            // Without a forwarder the session is ending; the next one finds it in the catalog.
            let _ = self.to_forwarder.send(manifest.shard.clone());
        }
        let _mirrored = spans::mirror(advances.len()).entered();
        self.mirror.commit(advances.iter().map(|a| (a.at.clone(), a.interval.to)).collect());
    }

    /// What a worker that publishes nothing itself must know all the same: what others have published, and whether the catalog
    /// is there, which it tells.
    async fn refresh(&self) -> bool {
        let Shared { config, catalog, telemetry, .. } = &*self.shared;
        let known = self.in_force.borrow().clone();
        let read = async {
            let totals = catalog.totals(&config.pipeline).await?;
            Ok::<_, CatalogError>((totals, adaptive::newest(&self.shared, &known).await?))
        };
        let problem = match tokio::time::timeout(SILENCE, read).await {
            Ok(Ok((totals, newest))) => {
                totals.into_iter().for_each(|totals| telemetry.set_totals(totals));
                // Others have published what this worker has not seen.
                if let Some(newest) = newest
                    && !newest.is_same(&self.in_force.borrow())
                {
                    self.in_force.send_replace(newest);
                }
                None
            }
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some(format!("no answer from the catalog for {} s", SILENCE.as_secs())),
        };
        let is_reachable = problem.is_none();
        let was_reachable = std::mem::replace(&mut telemetry.status().readiness.catalog_reachable, is_reachable);
        match problem {
            Some(problem) => {
                if was_reachable {
                    tracing::warn!(
                        "{problem}; nothing can be published until it is there, which is looked for all the time"
                    );
                }
                failed(&Span::current(), &problem);
                telemetry.status().last_error = Some(problem);
            }
            None if !was_reachable => {
                tracing::info!("the catalog answers again");
                telemetry.status().last_error = None;
            }
            None => {}
        }
        is_reachable
    }

    /// Brings `manifest.jsonl` and the side files up to the catalog, together with whoever else does. Tells whether they are; a failure
    /// delays trainers but loses nothing.
    async fn extend_manifest(&self) -> bool {
        let Shared { config, catalog, store, telemetry, .. } = &*self.shared;
        let extend = async || {
            let manifest = store.open_manifest().await?;
            crash::point("manifest.opened");
            let lines = catalog.manifest_lines(&config.pipeline, manifest.last_sequence).await?;
            Span::current().record("lines", lines.len());
            manifest.append(&lines).await?;
            crash::point("manifest.written");
            extend_side_files(&self.shared).await?;
            Ok::<_, DaemonError>(())
        };
        let span = Span::current();
        for attempt in 1.. {
            span.record("attempts", attempt);
            match extend().await {
                Ok(()) => return true,
                // Another worker was quicker, and may have left nothing to add.
                Err(DaemonError::Sink(e)) if e.is_conflict() && attempt < MANIFEST_ATTEMPTS => {}
                Err(e) => {
                    telemetry.metrics.manifest_failures.inc();
                    let wait = RETRY.as_secs();
                    failed(&span, &e.to_string());
                    tracing::warn!("manifest.jsonl or a side file is behind: {e}; trying again in {wait} s");
                    return false;
                }
            }
        }
        false
    }
}

/// What the metrics call a step.
fn timed(step: Step) -> TimedStep {
    match step {
        Step::Stage => TimedStep::Stage,
        Step::Upload => TimedStep::Upload,
        Step::Commit | Step::ReadBack | Step::Finished | Step::Abandon => TimedStep::Commit,
    }
}

async fn upload(store: &ShardStore, files: &[(String, FinishedFile)]) -> Result<(), SinkError> {
    for (path, file) in files {
        store.upload(&file.file, file.bytes, path).await?;
    }
    Ok(())
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
