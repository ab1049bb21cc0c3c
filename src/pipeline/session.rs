//! One session: from the checkpoints until something ends it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::adaptive::InForce;
use super::assignments::{CatalogAssignments, Claims};
use super::forward::Forwarder;
use super::memory::InFlight;
use super::publisher::{Publisher, PublisherEnd};
use super::room::FullScratch;
use super::side_files::extend_side_files;
use super::spooling::Spooling;
use super::worker::{Worker, WorkerEnd};
use super::{DaemonError, Shared, adaptive, lost};
use crate::catalog::CatalogError;
use crate::config::Config;
use crate::sink::{SinkError, SpoolFolder};
use crate::source::{KafkaSource, LostOffset, SourceError, queue};
use crate::telemetry::Step;

/// Closed windows that wait for the publisher; their bytes count as windows.
const WINDOWS_IN_FLIGHT: usize = 16;
/// Leaving the group: a broker that does not answer must not hold the process up.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);
/// The worker looks at the end of its batch whether it shall go on.
const WORKER_DEADLINE: Duration = Duration::from_secs(1);

pub(super) enum SessionEnd {
    Shutdown,
    /// Beginning again can settle it.
    Restart(String),
    /// A person must settle it.
    Fatal(DaemonError),
}

pub(super) async fn run(shared: Arc<Shared>, shutdown: watch::Receiver<bool>) -> SessionEnd {
    let in_force = match prepare(&shared).await {
        Ok(in_force) => in_force,
        Err(
            error @ (DaemonError::Sink(SinkError::ForeignManifest { .. })
            | DaemonError::Catalog(
                CatalogError::Schema { .. } | CatalogError::NetworkFile { .. } | CatalogError::Damaged { .. },
            )),
        ) => return SessionEnd::Fatal(error),
        Err(error) => return SessionEnd::Restart(error.to_string()),
    };
    // The session's own switch: also turned when one of its parts has ended.
    let (stop, stopped) = watch::channel(false);
    let (to_worker, from_source) = queue(shared.limits.queue_bytes);
    let claims = Claims { shared: shared.clone(), runtime: Handle::current(), shutdown: stopped.clone() };
    let assignments = CatalogAssignments { claims, queue: to_worker.clone() };
    let source = KafkaSource::start(
        &shared.config.kafka,
        &shared.bootstrap,
        shared.limits.source,
        to_worker,
        Arc::new(assignments),
        shared.telemetry.heartbeat.clone(),
    );
    let source = match source {
        Ok(source) => source,
        Err(error) => return SessionEnd::Fatal(error.into()),
    };
    let (to_publisher, windows) = mpsc::channel(WINDOWS_IN_FLIGHT);
    let in_flight = Arc::new(InFlight::default());
    let (newest, in_force) = watch::channel(in_force);
    let (to_forwarder, shards) = mpsc::unbounded_channel();
    let forwarder = tokio::spawn(Forwarder::new(shared.clone(), shards, stopped.clone()).run());
    let full_disk = Arc::new(FullScratch {
        shared: shared.clone(),
        shutdown: stopped.clone(),
        runtime: Handle::current(),
        since: Mutex::default(),
    });
    let Config { spool, selector, .. } = &shared.config;
    let spools = SpoolFolder::new(spool.folder.clone(), spool.is_compressed, full_disk);
    let spooling = Spooling::new(spools.clone(), spool, selector);
    let publisher = Publisher {
        shared: shared.clone(),
        windows,
        in_flight: in_flight.clone(),
        mirror: source.mirror(),
        to_forwarder,
        shutdown: stopped,
        in_force: newest,
    };
    let mut publisher = tokio::spawn(publisher.run());
    let worker = Worker::new(shared.clone(), from_source, to_publisher, in_flight, in_force, spooling);
    let (runtime, worker_stopped) = (Handle::current(), stop.subscribe());
    let mut worker = tokio::task::spawn_blocking(move || worker.run(&runtime, &worker_stopped));

    let mut shutdown = shutdown;
    // Each part that ends takes the others along, so the reason is looked for among all of them.
    let (mut publisher_ended, mut worker_ended) = (None, None);
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => tracing::info!("shutting down"),
        end = &mut publisher => publisher_ended = Some(publisher_end(end)),
        end = &mut worker => worker_ended = Some(worker_end(end)),
    }

    // Polling stops first; then the worker finds its queue closed and drops its windows; an in-flight publication of
    // the publisher may still finish.
    let _ = stop.send(true);
    let grace = shared.config.shutdown_grace;
    let deadline = Instant::now() + grace;
    let leave_deadline = LEAVE_DEADLINE.min(grace);
    let left = tokio::task::spawn_blocking(move || source.stop(leave_deadline)).await.unwrap_or(false);
    if !left {
        tracing::info!("kafka: the group could not be left within {} s; going on without", leave_deadline.as_secs());
    }
    if publisher_ended.is_none() {
        match tokio::time::timeout_at(deadline, &mut publisher).await {
            Ok(end) => publisher_ended = Some(publisher_end(end)),
            Err(_) => {
                publisher.abort();
                tracing::warn!(
                    "a publication did not finish within {} s; it stays staged and is decided again",
                    grace.as_secs()
                );
            }
        }
    }
    if worker_ended.is_none() {
        match tokio::time::timeout_at(deadline.max(Instant::now() + WORKER_DEADLINE), &mut worker).await {
            Ok(end) => worker_ended = Some(worker_end(end)),
            Err(_) => tracing::info!("the worker is still busy with a batch; its windows are dropped"),
        }
    }
    // What it has not sent is found in the catalog again.
    forwarder.abort();
    {
        let readiness = &mut shared.telemetry.status().readiness;
        (readiness.joined_group, readiness.brokers_away) = (false, false);
    }
    let partitions: Vec<_> = shared.telemetry.status().partitions.keys().cloned().collect();
    shared.telemetry.forget(&partitions);
    shared.telemetry.metrics.assigned_partitions.set(0);
    shared.telemetry.forget_spool(spools.take_errors());
    // Whoever is in the group knows better.
    shared.telemetry.forget_unowned(&shared.config.kafka.topics);
    // Whatever failed belonged to a publication that is dropped.
    shared.telemetry.works(Step::Write);
    for step in Step::ALL {
        shared.telemetry.metrics.publish_stalled.with_label_values(&[step.as_str()]).set(0);
    }
    let ends = [worker_ended, publisher_ended].into_iter().flatten().flatten();
    match ends.max_by_key(PartEnd::rank) {
        Some(PartEnd::Fatal(error)) => SessionEnd::Fatal(error),
        Some(PartEnd::Lost(lost)) => lost::settle(&shared, lost).await,
        _ if *shutdown.borrow() => SessionEnd::Shutdown,
        Some(PartEnd::Restart(reason)) => SessionEnd::Restart(reason),
        None => SessionEnd::Restart("the polling thread ended".to_owned()),
    }
}

/// Why a part ended, unless it only followed another.
enum PartEnd {
    Restart(String),
    /// The log does not hold what comes next.
    Lost(Vec<LostOffset>),
    Fatal(DaemonError),
}

impl PartEnd {
    fn rank(&self) -> u8 {
        match self {
            PartEnd::Restart(_) => 0,
            PartEnd::Lost(_) => 1,
            PartEnd::Fatal(_) => 2,
        }
    }
}

/// Makes the model known, brings the manifest up to the catalog, which a crash may have kept behind, and finds what is in
/// force.
async fn prepare(shared: &Shared) -> Result<InForce, DaemonError> {
    let Shared { config, model, catalog, store, telemetry, .. } = shared;
    let registered = catalog.register(&config.pipeline, &model.id, &model.bytes).await;
    telemetry.status().readiness.catalog_reachable = registered.is_ok();
    registered?;
    let present = store.manifest().await;
    telemetry.status().readiness.store_writable = present.is_ok();
    let present = present?;
    let lines = catalog.manifest_lines(&config.pipeline, 0).await?;
    store.check_manifest(&present, &lines)?;
    let manifest = store.open_manifest().await?;
    let lines = catalog.manifest_lines(&config.pipeline, manifest.last_sequence).await?;
    manifest.append(&lines).await?;
    // Another worker may be changing them: the next publication tries again.
    match extend_side_files(shared).await {
        Err(DaemonError::Sink(e)) if e.is_conflict() => tracing::info!("{e}"),
        extended => extended?,
    }
    telemetry.metrics.manifest_behind.set(0);
    if let Some(totals) = catalog.totals(&config.pipeline).await? {
        telemetry.set_totals(totals);
    }
    telemetry.set_gaps(catalog.gaps(&config.pipeline).await?);
    Ok(adaptive::begin(shared).await?)
}

fn publisher_end(end: Result<PublisherEnd, tokio::task::JoinError>) -> Option<PartEnd> {
    match end {
        Ok(PublisherEnd::Shutdown | PublisherEnd::Disconnected) => None,
        Ok(PublisherEnd::Restart(reason)) => Some(PartEnd::Restart(reason)),
        Err(e) => Some(PartEnd::Fatal(DaemonError::Internal(e.to_string()))),
    }
}

fn worker_end(end: Result<WorkerEnd, tokio::task::JoinError>) -> Option<PartEnd> {
    match end {
        Ok(WorkerEnd::Disconnected) => None,
        Ok(WorkerEnd::SourceFailed(SourceError::OffsetsLost(lost))) => Some(PartEnd::Lost(lost)),
        Ok(WorkerEnd::SourceFailed(error @ SourceError::TopicRecreated { .. })) => Some(PartEnd::Fatal(error.into())),
        Ok(WorkerEnd::SourceFailed(error)) => Some(PartEnd::Restart(error.to_string())),
        Ok(WorkerEnd::Fatal(error)) => Some(PartEnd::Fatal(error)),
        Ok(WorkerEnd::SpoolFailed(error)) => Some(PartEnd::Restart(error.to_string())),
        Ok(WorkerEnd::OutOfOrder(reason)) => Some(PartEnd::Restart(reason)),
        Err(e) => Some(PartEnd::Fatal(DaemonError::Internal(e.to_string()))),
    }
}
