//! `winnowd run`: the daemon in the foreground, until a signal.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{ConfigArguments, INTERRUPTED, init_logging, load_model, runtime};
use crate::pipeline::Daemon;

pub fn run(arguments: &ConfigArguments) -> anyhow::Result<()> {
    let config = arguments.load()?;
    let model = load_model(&config)?;
    init_logging(config.log);
    let runtime = runtime().context("cannot start threads")?;
    let result = runtime.block_on(async {
        let shutdown = shutdown_on_signal()?;
        let daemon = Daemon::open(config, model).await?;
        tracing::info!("winnowd {} has started", env!("CARGO_PKG_VERSION"));
        daemon.run(shutdown).await?;
        tracing::info!("winnowd has stopped");
        Ok(())
    });
    // A thread that hangs in a client library must not hold the exit up.
    runtime.shutdown_background();
    result
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
