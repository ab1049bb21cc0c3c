//! The schemas that a batch of records names, before it is scored. A registry that is away is waited for: nothing is decided
//! meanwhile, the queue fills, and partitions are paused while polling goes on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Shared;
use crate::record::{Schemas, schema_id};
use crate::source::{Batch, RegistryAnswer, SchemaRegistry};

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// How often it is logged that the registry is still away.
const REMIND: Duration = Duration::from_secs(60);

/// Ids that records of the batch name.
pub(super) fn named_in(batch: &Batch) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    let mut last = None;
    for id in (0..batch.len()).filter_map(|i| batch.get(i).payload.and_then(schema_id)) {
        // Mostly the same.
        if last.replace(id) != Some(id) {
            ids.insert(id);
        }
    }
    ids
}

/// Gives the schemas that the batch names, however long it takes; `None` when the session has ended. Where there is no registry there
/// are none.
pub(super) async fn of_batch(shared: &Shared, batch: &Batch, mut stopped: watch::Receiver<bool>) -> Option<Schemas> {
    let Some(registry) = &shared.registry else { return Some(Schemas::default()) };
    let ids = named_in(batch);
    let mut outage: Option<Outage> = None;
    let attempts = async {
        loop {
            match registry.schemas(&ids, &|answer| count(shared, answer)).await {
                Ok(schemas) => return schemas,
                Err(error) => {
                    let outage = outage.get_or_insert_with(Outage::begin);
                    outage.tell(shared, &error.to_string());
                    tokio::time::sleep(outage.backoff(registry)).await;
                }
            }
        }
    };
    let schemas = tokio::select! {
        schemas = attempts => Some(schemas),
        _ = stopped.wait_for(|stop| *stop) => None,
    };
    shared.telemetry.metrics.schemas.known.set(registry.n_known() as i64);
    if let Some(outage) = outage {
        outage.end(shared, schemas.is_some());
    }
    schemas
}

fn count(shared: &Shared, answer: RegistryAnswer) {
    shared.telemetry.metrics.schemas.requests.with_label_values(&[answer.as_str()]).inc();
}

struct Outage {
    began: Instant,
    logged: Option<Instant>,
    n_attempts: u32,
}

impl Outage {
    fn begin() -> Self {
        Outage { began: Instant::now(), logged: None, n_attempts: 0 }
    }

    fn tell(&mut self, shared: &Shared, problem: &str) {
        self.n_attempts += 1;
        if self.logged.is_none_or(|logged| logged.elapsed() >= REMIND) {
            tracing::warn!("{problem}; a batch of records waits for its schemas, and nothing behind it is decided");
            self.logged = Some(Instant::now());
        }
        shared.telemetry.registry_away(Some(problem.to_owned()));
    }

    fn backoff(&self, registry: &SchemaRegistry) -> Duration {
        (FIRST_BACKOFF * 2u32.pow(self.n_attempts.saturating_sub(1).min(16))).min(registry.max_backoff())
    }

    fn end(self, shared: &Shared, is_back: bool) {
        shared.telemetry.registry_away(None);
        if is_back {
            let seconds = self.began.elapsed().as_secs_f64();
            tracing::info!("the schema registry has answered after {seconds:.1} s; going on");
        }
    }
}
