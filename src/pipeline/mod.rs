//! The wiring, in flow order: Kafka → scoring → windows → shards → publication.
//!
//! A [`Daemon`] runs sessions. A session begins at the catalog's checkpoints and ends by a shutdown, by an error that a
//! person must settle, or by one that a new beginning settles: a fenced publication, a catalog that was away for too
//! long. Beginning again is the same path as after a crash, so every restart exercises recovery.

mod adaptive;
mod assignments;
mod forward;
mod lost;
mod memory;
mod open_shard;
mod publisher;
mod quality;
mod replay;
mod room;
mod scoring;
mod session;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalog::{Catalog, CatalogError, CatalogReader, CountsCatalog, OffsetsCatalog, SqlCatalog};
use crate::config::{Bootstrap, Config};
use crate::score::{ImportanceWeight, Model, ModelError, ModelId, TargetDistribution};
use crate::sink::{ShardStore, SinkError};
use crate::source::embedded::EmbeddedCluster;
use crate::source::{SourceError, SourceLimits};
use crate::telemetry::{HttpServer, Telemetry, TelemetryError};

pub use forward::send_dead_letter;
pub use lost::recreated_topics;
use quality::SharedCollapseWatch;
pub use replay::{Replay, Replayed, differences};
use session::SessionEnd;

/// Why the daemon could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("model `{path}`: {source}")]
    Model { path: String, source: ModelError },
    #[error("model `{path}` has {n_targets} targets: the daemon selects for one; fit one, or use `winnowd select`")]
    ManyTargets { path: String, n_targets: usize },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Http(#[from] TelemetryError),
    #[error(
        "{n_dead_letters} of the last {n_records} records are bad (dead_letters.max_ratio = {max_ratio}); the last one is {last}. \
         Nothing more is decided. Is the right thing in the topic, and are the names in [documents] those of its fields? \
         dead_letters.max_ratio = 1 lets everything pass"
    )]
    TooManyDeadLetters { n_dead_letters: u64, n_records: u64, max_ratio: f64, last: String },
    #[error("a worker thread ended by a fault of the program: {0}")]
    Internal(String),
}

impl DaemonError {
    /// Exit code: 64 what a person must change, 69 an outside system, 70 a fault of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            DaemonError::Model { .. }
            | DaemonError::ManyTargets { .. }
            | DaemonError::Sink(SinkError::ForeignManifest { .. }) => 64,
            DaemonError::Catalog(error) => catalog_exit_code(error),
            DaemonError::Internal(_) => 70,
            _ => 69,
        }
    }
}

/// The same for an error of the catalog alone.
pub fn catalog_exit_code(error: &CatalogError) -> u8 {
    match error {
        CatalogError::Schema { .. }
        | CatalogError::InUse(_)
        | CatalogError::NetworkFile { .. }
        | CatalogError::Decided { .. } => 64,
        CatalogError::Damaged { .. } => 70,
        _ => 69,
    }
}

/// A fitted model, ready to score, with its bytes for the catalog.
pub struct LoadedModel {
    pub id: ModelId,
    pub bytes: Vec<u8>,
    pub model: Model,
    pub weight: ImportanceWeight,
    pub target: TargetDistribution,
}

impl LoadedModel {
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, DaemonError> {
        let model = Model::from_bytes(&bytes);
        let model = model.map_err(|source| DaemonError::Model { path: name.to_owned(), source })?;
        let mut weights = ImportanceWeight::of_targets(&model);
        let (Some(weight), None) = (weights.pop(), weights.pop()) else {
            return Err(DaemonError::ManyTargets { path: name.to_owned(), n_targets: model.targets.len() });
        };
        Ok(LoadedModel { id: ModelId::of(&bytes), weight, target: model.target_distribution(), model, bytes })
    }
}

/// The database behind the daemon.
pub trait FullCatalog: Catalog + CatalogReader + CountsCatalog + OffsetsCatalog {}
impl<C: Catalog + CatalogReader + CountsCatalog + OffsetsCatalog> FullCatalog for C {}

/// What all sessions share.
struct Shared {
    config: Config,
    bootstrap: String,
    model: LoadedModel,
    catalog: Arc<dyn FullCatalog>,
    store: ShardStore,
    telemetry: Arc<Telemetry>,
    owner: String,
    limits: Limits,
    collapse: SharedCollapseWatch,
}

/// How the memory budget is shared out.
#[derive(Debug, Clone, Copy)]
struct Limits {
    source: SourceLimits,
    queue_bytes: usize,
    /// Open windows and closed ones on their way to a shard.
    window_bytes: usize,
    row_group_bytes: usize,
}

impl Limits {
    /// A quarter to the client's prefetch, an eighth to the queue, a half to windows, an eighth to the shard.
    fn of_budget(budget_bytes: usize, row_group_bytes: usize) -> Self {
        Limits {
            source: SourceLimits::of_budget(budget_bytes),
            queue_bytes: budget_bytes / 8,
            window_bytes: budget_bytes / 2,
            row_group_bytes: row_group_bytes.min(budget_bytes / 8),
        }
    }
}

/// The service: opened, serving HTTP, not yet consuming.
pub struct Daemon {
    shared: Arc<Shared>,
    http: HttpServer,
    embedded: Option<EmbeddedCluster>,
}

impl Daemon {
    /// Opens everything that the configuration names. Nothing is consumed yet.
    pub async fn open(config: Config, model: LoadedModel) -> Result<Self, DaemonError> {
        let telemetry = Arc::new(Telemetry::new(&config.pipeline, config.kafka.max_poll_interval));
        let catalog = open_catalog(&config).await?;
        telemetry.status().readiness.migrated = true;
        let store = ShardStore::open(&config.sink)?;
        let embedded = match &config.kafka.bootstrap {
            Bootstrap::Embedded { partitions } => Some(EmbeddedCluster::start(&config.kafka.topics, *partitions)?),
            Bootstrap::Servers(_) => None,
        };
        let bootstrap = match (&embedded, &config.kafka.bootstrap) {
            (Some(cluster), _) => cluster.bootstrap(),
            (None, Bootstrap::Servers(servers)) => servers.clone(),
            (None, Bootstrap::Embedded { .. }) => unreachable!("an embedded cluster was started above"),
        };
        if embedded.is_some() {
            tracing::info!(
                "kafka: an in-process cluster listens on {bootstrap}; for demos and tests only, nothing in it lasts"
            );
        }
        let http = HttpServer::start(config.http_listen, telemetry.clone()).await?;
        tracing::info!("http: /metrics, /healthz, /readyz and /status on http://{}", http.address);
        telemetry.metrics.memory_budget_bytes.set(config.memory_budget_bytes as i64);
        telemetry.status().model = model.id.to_string();
        let limits = Limits::of_budget(config.memory_budget_bytes, config.shard.row_group_bytes);
        let name = config.kafka.instance_id.clone().or_else(|| std::env::var("HOSTNAME").ok());
        let owner = format!("{}-{}", name.unwrap_or_else(|| "worker".to_owned()), std::process::id());
        let catalog = Arc::new(catalog);
        let collapse = SharedCollapseWatch::default();
        let shared = Shared { config, bootstrap, model, catalog, store, telemetry, owner, limits, collapse };
        Ok(Daemon { shared: Arc::new(shared), http, embedded })
    }

    pub fn http_address(&self) -> std::net::SocketAddr {
        self.http.address
    }

    /// Address of the brokers; of the in-process cluster, if that runs.
    pub fn bootstrap(&self) -> &str {
        &self.shared.bootstrap
    }

    pub fn telemetry(&self) -> Arc<Telemetry> {
        self.shared.telemetry.clone()
    }

    pub fn catalog(&self) -> Arc<dyn FullCatalog> {
        self.shared.catalog.clone()
    }

    /// Runs until `shutdown` turns true, or an error that a person must settle.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> Result<(), DaemonError> {
        let mut failures = 0u32;
        let result = loop {
            let began = Instant::now();
            match session::run(self.shared.clone(), shutdown.clone()).await {
                SessionEnd::Shutdown => break Ok(()),
                SessionEnd::Fatal(error) => break Err(error),
                SessionEnd::Restart(reason) => {
                    failures = if began.elapsed() > Duration::from_secs(60) { 1 } else { failures + 1 };
                    let wait = Duration::from_millis(500 << failures.min(6));
                    tracing::warn!("{reason}; beginning again at the checkpoints in {:.1} s", wait.as_secs_f64());
                    self.shared.telemetry.metrics.session_restarts.inc();
                    self.shared.telemetry.status().last_error = Some(reason);
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        _ = shutdown.wait_for(|stop| *stop) => break Ok(()),
                    }
                }
            }
        };
        drop(self.embedded);
        result
    }
}

/// Opens the catalog for writing, with its schema up to date or refused.
pub async fn open_catalog(config: &Config) -> Result<SqlCatalog, CatalogError> {
    let catalog = SqlCatalog::open(&config.catalog.url, crate::catalog::Access::Write).await?;
    if config.catalog.migrate {
        catalog.migrate().await?;
    }
    catalog.check_schema().await?;
    Ok(catalog)
}
