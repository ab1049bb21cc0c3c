//! One session: from the checkpoints until something ends it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::assignments::CatalogAssignments;
use super::memory::InFlight;
use super::publisher::{Publisher, PublisherEnd};
use super::worker::{Worker, WorkerEnd};
use super::{DaemonError, Shared};
use crate::sink::SinkError;
use crate::source::{KafkaSource, SourceError, queue};

/// Closed windows that wait for the publisher; their bytes count as windows.
const WINDOWS_IN_FLIGHT: usize = 16;
/// Leaving the group: a broker that does not answer must not hold the process up.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) enum SessionEnd {
    Shutdown,
    /// Beginning again can settle it.
    Restart(String),
    /// A person must settle it.
    Fatal(DaemonError),
}

pub(super) async fn run(shared: Arc<Shared>, shutdown: watch::Receiver<bool>) -> SessionEnd {
    match prepare(&shared).await {
        Ok(()) => {}
        Err(error @ DaemonError::Sink(SinkError::ForeignManifest { .. })) => return SessionEnd::Fatal(error),
        Err(error) => return SessionEnd::Restart(error.to_string()),
    }
    // The session's own switch: also turned when one of its parts has ended.
    let (stop, stopped) = watch::channel(false);
    let (to_worker, from_source) = queue(shared.limits.queue_bytes);
    let assignments = CatalogAssignments {
        shared: shared.clone(),
        queue: to_worker.clone(),
        runtime: Handle::current(),
        shutdown: stopped.clone(),
    };
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
    let publisher = Publisher {
        shared: shared.clone(),
        windows,
        in_flight: in_flight.clone(),
        mirror: source.mirror(),
        shutdown: stopped,
    };
    let mut publisher = tokio::spawn(publisher.run());
    let worker = Worker::new(shared.clone(), from_source, to_publisher, in_flight);
    let runtime = Handle::current();
    let mut worker = tokio::task::spawn_blocking(move || worker.run(&runtime));

    let mut shutdown = shutdown;
    let mut first = None;
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => tracing::info!("shutting down"),
        end = &mut publisher => first = Some(publisher_end(end)),
        end = &mut worker => first = Some(worker_end(end)),
    }

    // Polling stops first; then the worker finds its queue closed and drops its windows; an in-flight publication of
    // the publisher may still finish.
    let _ = stop.send(true);
    let left = tokio::task::spawn_blocking(move || source.stop(LEAVE_DEADLINE)).await.unwrap_or(false);
    if !left {
        tracing::warn!("kafka: the group could not be left within {} s; going on without", LEAVE_DEADLINE.as_secs());
    }
    if !publisher.is_finished() {
        let grace = shared.config.shutdown_grace;
        match tokio::time::timeout(grace, &mut publisher).await {
            Ok(end) => first = first.or_else(|| Some(publisher_end(end))),
            Err(_) => {
                publisher.abort();
                tracing::warn!(
                    "a publication did not finish within {} s; it stays staged and is decided again",
                    grace.as_secs()
                );
            }
        }
    }
    if !worker.is_finished() {
        match tokio::time::timeout(LEAVE_DEADLINE, &mut worker).await {
            Ok(end) => first = first.or_else(|| Some(worker_end(end))),
            Err(_) => tracing::warn!("the worker is still busy with a batch; its windows are dropped"),
        }
    }
    shared.telemetry.status().readiness.joined_group = false;
    let partitions: Vec<_> = shared.telemetry.status().partitions.keys().cloned().collect();
    shared.telemetry.forget(&partitions);
    shared.telemetry.metrics.assigned_partitions.set(0);
    if *shutdown.borrow() {
        return match first {
            Some(fatal @ SessionEnd::Fatal(_)) => fatal,
            _ => SessionEnd::Shutdown,
        };
    }
    first.unwrap_or(SessionEnd::Shutdown)
}

/// Makes the model known and brings the manifest up to the catalog, which a crash may have kept behind.
async fn prepare(shared: &Shared) -> Result<(), DaemonError> {
    let Shared { config, model, catalog, store, telemetry, .. } = shared;
    let registered = catalog.register(&config.pipeline, &model.id, &model.bytes).await;
    telemetry.status().readiness.catalog_reachable = registered.is_ok();
    registered?;
    let lines = catalog.manifest_lines(&config.pipeline, 0).await?;
    store.check_manifest(&lines).await?;
    if !lines.is_empty() {
        store.write_manifest(&lines).await?;
    }
    if let Some(totals) = catalog.totals(&config.pipeline).await? {
        telemetry.set_totals(totals);
    }
    Ok(())
}

fn publisher_end(end: Result<PublisherEnd, tokio::task::JoinError>) -> SessionEnd {
    match end {
        Ok(PublisherEnd::Shutdown) => SessionEnd::Shutdown,
        Ok(PublisherEnd::Disconnected) => SessionEnd::Restart("the worker ended".to_owned()),
        Ok(PublisherEnd::Restart(reason)) => SessionEnd::Restart(reason),
        Err(e) => SessionEnd::Fatal(DaemonError::Internal(e.to_string())),
    }
}

fn worker_end(end: Result<WorkerEnd, tokio::task::JoinError>) -> SessionEnd {
    match end {
        Ok(WorkerEnd::Disconnected) => SessionEnd::Restart("the publisher or the source ended".to_owned()),
        Ok(WorkerEnd::SourceFailed(error @ SourceError::OffsetLost { .. })) => SessionEnd::Fatal(error.into()),
        Ok(WorkerEnd::SourceFailed(error)) => SessionEnd::Restart(error.to_string()),
        Ok(WorkerEnd::OutOfOrder(reason)) => SessionEnd::Restart(reason),
        Err(e) => SessionEnd::Fatal(DaemonError::Internal(e.to_string())),
    }
}
