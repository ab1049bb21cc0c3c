//! A full disk below the scratch folder: the publisher waits for room and says so, everything before it is paused in turn.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Shared;
use crate::sink::FullDisk;
use crate::telemetry::Step;

/// How often it is looked for room.
const RETRY: Duration = Duration::from_secs(1);
/// How often that is logged.
const REMIND: Duration = Duration::from_secs(60);

pub(super) struct FullScratch {
    pub shared: Arc<Shared>,
    /// Of the session: it does not wait any more.
    pub shutdown: watch::Receiver<bool>,
    pub runtime: Handle,
    /// Since when the disk is full, and when that was logged.
    pub since: Mutex<Option<(Instant, Instant)>>,
}

impl FullDisk for FullScratch {
    fn wait(&self, folder: &Path, error: &io::Error) -> bool {
        let now = Instant::now();
        {
            let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
            let due = since.is_none_or(|(_, logged)| now - logged >= REMIND);
            let began = since.map_or(now, |(began, _)| began);
            if due {
                let folder = folder.display();
                tracing::warn!(
                    "scratch file in `{folder}`: {error}; nothing is read or published until there is room, which is \
                     looked for every second"
                );
                *since = Some((began, now));
            }
        }
        self.shared.telemetry.stalled(Step::Write, format!("scratch file in `{}`: {error}", folder.display()));
        let mut shutdown = self.shutdown.clone();
        let ended = async { shutdown.wait_for(|stop| *stop).await.is_ok() };
        self.runtime.block_on(async { tokio::time::timeout(RETRY, ended).await }).is_err()
    }

    fn is_over(&self) {
        if let Some((began, _)) = self.since.lock().unwrap_or_else(PoisonError::into_inner).take() {
            tracing::info!("there is room for scratch files again, after {:.0} s", began.elapsed().as_secs_f64());
        }
        self.shared.telemetry.works(Step::Write);
    }
}
