//! `winnowd run`: the daemon in the foreground, until a signal.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{ConfigArguments, INTERRUPTED, load_model, logging, message, runtime};
use crate::config::Config;
use crate::pipeline::{Daemon, LoadedModel, instance_name};
use crate::telemetry::Traces;

/// What the last spans have at least, however long everything else took.
const LEAST_FLUSH: Duration = Duration::from_secs(1);

pub fn run(arguments: &ConfigArguments) -> anyhow::Result<()> {
    let config = arguments.load()?;
    let model = load_model(&config)?;
    let runtime = runtime().context("cannot start threads")?;
    let result = runtime.block_on(async {
        let (pipeline, instance) = (config.pipeline.clone(), instance_name(&config));
        let traces = config.tracing.as_ref().map(|tracing| Traces::start(tracing, &pipeline, &instance)).transpose()?;
        logging::init(config.log, traces.as_ref());
        let patience = config.tracing.as_ref().map_or(LEAST_FLUSH, |tracing| tracing.timeout);
        let grace = config.shutdown_grace;
        let shutdown = shutdown_on_signal()?;
        let told = noted(shutdown.clone());
        let result = serve(config, model, shutdown).await;
        if let Some(traces) = traces {
            // Within the grace period, as everything that ends.
            let left = told.get().map_or(grace, |told| grace.saturating_sub(told.elapsed()));
            traces.flush(patience.min(left).max(LEAST_FLUSH)).await;
        }
        result
    });
    // A thread that hangs in a client library must not hold the exit up.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config, model: LoadedModel, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let is_json = config.log.json;
    let serve = async {
        let daemon = Daemon::open(config, model).await?;
        tracing::info!("winnowd {} has started", env!("CARGO_PKG_VERSION"));
        daemon.run(shutdown).await?;
        tracing::info!("winnowd has stopped");
        anyhow::Ok(())
    };
    serve.await.inspect_err(|error| {
        // The last line is for a terminal. Whoever reads JSON does not see it.
        if is_json {
            tracing::error!("the daemon ends: {}", message(error).trim_end());
        }
    })
}

/// When the shutdown began, once it has.
fn noted(mut shutdown: watch::Receiver<bool>) -> Arc<OnceLock<Instant>> {
    let told = Arc::new(OnceLock::new());
    let noted = told.clone();
    tokio::spawn(async move {
        if shutdown.wait_for(|stop| *stop).await.is_ok() {
            let _ = noted.set(Instant::now());
        }
    });
    told
}

/// Turns true at the first SIGTERM or Ctrl-C. A second one ends the process at once, which is as safe as a crash.
pub fn shutdown_on_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        for n in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if n > 0 {
                eprintln!("winnowd: second signal, ending at once");
                std::process::exit(INTERRUPTED.into());
            }
            let _ = stop.send(true);
        }
    });
    Ok(stopped)
}
