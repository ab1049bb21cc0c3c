//! The wiring, in flow order: Kafka → scoring → windows → shards → publication.
//!
//! A [`Daemon`] runs sessions. A session begins at the catalog's checkpoints and ends by a shutdown, by an error that a
//! person must settle, or by one that a new beginning settles: a fenced publication, a catalog that was away for too
//! long. Beginning again is the same path as after a crash, so every restart exercises recovery.

mod adaptive;
mod assignments;
mod collapse;
mod columns;
mod feedback;
mod forward;
mod idleness;
mod lost;
mod memory;
mod open_shard;
mod publisher;
mod quality;
mod replay;
mod room;
mod schemas;
mod scoring;
mod session;
mod side_files;
mod spans;
mod spooling;
mod weights;
mod worker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalog::{
    Catalog, CatalogError, CatalogReader, ClustersCatalog, CountsCatalog, EdgesCatalog, FeedbackCatalog,
    OffsetsCatalog, SqlCatalog,
};
use crate::config::{Bootstrap, Config};
use crate::record::TopicPartition;
use crate::score::{
    ImportanceWeight, LossWeight, Model, ModelError, ModelId, TargetDistribution, VersionedWeight, WeightVersion,
};
use crate::select::{Division, FilterSettings, Quotas, SelectorSettings, Unit};
use crate::sink::{ShardStore, SinkError};
use crate::source::embedded::EmbeddedCluster;
use crate::source::{SchemaRegistry, SourceError, SourceLimits};
use crate::sql::{DocumentFilter, FilterError};
use crate::telemetry::{HttpServer, Telemetry, TelemetryError, WeightsEndpoint};
use crate::tokenizer::TokenizerError;
use crate::window::SelectedDocument;

use collapse::SharedCollapseWatches;
pub use columns::{FurtherColumns, load_tokenizer};
use columns::{FurtherValues, derived_columns};
pub use forward::send_dead_letter;
pub use lost::recreated_topics;
pub use replay::{
    Explained, ExplainedDocument, ExplainedQuota, ExplainedSensitivity, Explanation, FurtherComparison, Outcome,
    Replay, Replayed, Wanted, differences,
};
use session::SessionEnd;

/// For the last commit of what was answered.
const WEIGHTS_DEADLINE: Duration = Duration::from_secs(5);

/// Why the daemon could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("model `{path}`: {source}")]
    Model { path: String, source: ModelError },
    #[error("selection.proportions{}: {problem}", name.as_ref().map(|name| format!(".{name}")).unwrap_or_default())]
    Proportions { name: Option<String>, problem: String },
    #[error("{0}")]
    Selector(&'static str),
    #[error(
        "`selection.unit` = `tokens`: the model has {n_targets} targets, and only one can be selected for by tokens"
    )]
    UnitOfTargets { n_targets: usize },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("`documents.filter` = `{sql}`: {source}")]
    Filter { sql: String, source: FilterError },
    #[error("`documents.columns.{column}` = `{sql}`: {source}")]
    Column { column: String, sql: String, source: FilterError },
    #[error("`documents.tokenizer.path` = `{path}`: {source}")]
    Tokenizer { path: String, source: TokenizerError },
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
            | DaemonError::Proportions { .. }
            | DaemonError::Filter { .. }
            | DaemonError::Column { .. }
            | DaemonError::Tokenizer { .. }
            | DaemonError::Selector(_)
            | DaemonError::UnitOfTargets { .. }
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
    /// By the model alone, for each of its targets.
    pub weight: Arc<VersionedWeight>,
    pub target: TargetDistribution,
    /// How a window is divided that opens now.
    pub division: Arc<Division>,
}

impl LoadedModel {
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, DaemonError> {
        let model = Model::from_bytes(&bytes);
        let model = model.map_err(|source| DaemonError::Model { path: name.to_owned(), source })?;
        let weight = VersionedWeight::of_targets(WeightVersion::default(), ImportanceWeight::of_targets(&model), None);
        let division = Arc::new(Division::of(&Quotas::default(), &model));
        Ok(LoadedModel { id: ModelId::of(&bytes), weight, target: model.target_distribution(), division, model, bytes })
    }

    /// What the catalog calls its targets: nothing where there is one.
    fn target_names(&self) -> Vec<String> {
        match self.division.targets() {
            [] => vec![String::new()],
            several => several.to_vec(),
        }
    }

    /// Whether its targets can be selected for so.
    pub fn check_selector(&self, selector: &SelectorSettings) -> Result<(), DaemonError> {
        let n_targets = self.model.targets.len();
        if selector.unit == Unit::Tokens && n_targets > 1 {
            return Err(DaemonError::UnitOfTargets { n_targets });
        }
        let of_strata = selector.coverage.as_ref().and_then(|coverage| coverage.problem_of_targets());
        let of_sensitivity = selector.sensitivity.as_ref().map(|_| {
            "selection.selector = sensitivity: several targets choose by their weights, which say nothing there; use a model of one"
        });
        match of_strata.or(of_sensitivity).filter(|_| n_targets > 1) {
            Some(problem) => Err(DaemonError::Selector(problem)),
            None => Ok(()),
        }
    }

    /// With these shares of sources and targets; what they leave open stays as the model has it.
    pub fn divided_by(mut self, quotas: &Quotas) -> Result<Self, DaemonError> {
        let names: Vec<&str> = self.model.targets.iter().map(|target| target.name.as_str()).collect();
        if let Some((name, problem)) = quotas.proportion_problem(&names) {
            return Err(DaemonError::Proportions { name: name.map(str::to_owned), problem });
        }
        self.division = Arc::new(Division::of(quotas, &self.model));
        let shares = self.division.target_shares().iter();
        self.model.targets.iter_mut().zip(shares).for_each(|(target, share)| target.proportion = *share);
        self.target = self.model.target_distribution();
        Ok(self)
    }
}

/// The database behind the daemon.
pub trait FullCatalog:
    Catalog + CatalogReader + ClustersCatalog + CountsCatalog + EdgesCatalog + FeedbackCatalog + OffsetsCatalog
{
}
impl<C> FullCatalog for C where
    C: Catalog + CatalogReader + ClustersCatalog + CountsCatalog + EdgesCatalog + FeedbackCatalog + OffsetsCatalog
{
}

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
    collapse: SharedCollapseWatches,
    filter: Option<Arc<DocumentFilter>>,
    /// `None` where records name no schemas.
    registry: Option<SchemaRegistry>,
    columns: FurtherColumns,
}

impl Shared {
    /// The further columns of documents of a partition. Counts the values that are null because there is none.
    fn further(&self, documents: &[&SelectedDocument], at: &TopicPartition) -> FurtherValues {
        let values = self.columns.of(documents, at);
        for (field, n) in self.columns.fields().iter().zip(&values.failed) {
            self.telemetry.metrics.failed_columns.with_label_values(&[field.name()]).inc_by(*n);
        }
        values
    }
}

/// How the memory budget is shared out.
#[derive(Debug, Clone, Copy)]
struct Limits {
    source: SourceLimits,
    queue_bytes: usize,
    /// Open windows and closed ones on their way to a shard.
    window_bytes: usize,
    row_group_bytes: usize,
    /// Documents of the shard that losses will be joined to.
    document_bytes: usize,
    /// What is known of the rows of the shard that wait to be shuffled.
    waiting_bytes: usize,
}

impl Limits {
    /// A quarter to the client's prefetch, an eighth to the queue, a half to windows, an eighth to the shard: two thirds of that to the
    /// row group that is open, a third to the one before it, and to rows that are not compressed yet. Where trainers are
    /// listened to, half of the shard's is for the documents that are remembered of it; where two files fill up at the same time, each
    /// has half.
    fn of_budget(budget_bytes: usize, row_group_bytes: usize, has_feedback: bool, n_files: usize) -> Self {
        Limits {
            source: SourceLimits::of_budget(budget_bytes),
            queue_bytes: budget_bytes / 8,
            window_bytes: budget_bytes / 2,
            row_group_bytes: row_group_bytes.min(budget_bytes / if has_feedback { 24 } else { 12 } / n_files),
            document_bytes: budget_bytes / 16,
            waiting_bytes: budget_bytes / 16,
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
    pub async fn open(mut config: Config, model: LoadedModel) -> Result<Self, DaemonError> {
        let model = model.divided_by(&config.selector.quotas)?;
        model.check_selector(&config.selector)?;
        // Recorded with every shard.
        config.selector.quotas = config.selector.quotas.of_model(&model.model);
        if let Some(sensitivity) = &config.selector.sensitivity {
            tracing::info!("documents are drawn by their sensitivity: {sensitivity}");
        }
        for warning in config.coverage_warnings() {
            tracing::warn!("{warning}");
        }
        let filter = document_filter(config.selector.filter.as_ref())?;
        let registry = schema_registry(&config)?;
        let columns = FurtherColumns::new(derived_columns(&config.columns)?, load_tokenizer(&config)?);
        let telemetry = Arc::new(Telemetry::new(&config.pipeline, config.kafka.max_poll_interval));
        for clause in filter.iter().flat_map(|filter| filter.labels()) {
            telemetry.metrics.filtered_documents.with_label_values(&[clause]);
        }
        for field in columns.fields() {
            telemetry.metrics.failed_columns.with_label_values(&[field.name()]);
        }
        if let Some(tokenizer) = columns.tokenizer() {
            telemetry.metrics.published_tokens.with_label_values(&[tokenizer.name()]);
        }
        telemetry.metrics.selector.begin(&config.selector);
        let catalog = open_catalog(&config).await?;
        telemetry.status().readiness.migrated = true;
        let store = ShardStore::open(&config.sink)?;
        let embedded = match &config.kafka.bootstrap {
            Bootstrap::Embedded { partitions } => {
                let mut topics = config.kafka.topics.clone();
                topics.extend([&config.losses.topic, &config.losses.weights_topic].into_iter().flatten().cloned());
                topics.extend(config.feedback.iter().map(|feedback| feedback.topic.clone()));
                // Weights and what is learnt may come from the same reports.
                topics.sort();
                topics.dedup();
                Some(EmbeddedCluster::start(&topics, *partitions)?)
            }
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
        let weigh = LossWeight::new(config.loss_weight.settings).expect("the configuration was checked");
        let endpoint = Arc::new(WeightsEndpoint::new(&config, weigh, telemetry.clone()));
        let http = HttpServer::start(&config.http, telemetry.clone(), endpoint).await?;
        tracing::info!(
            "http: the page, /metrics, /healthz, /readyz, /status and /v1/weights on http://{}",
            http.address
        );
        telemetry.metrics.memory_budget_bytes.set(config.memory_budget_bytes as i64);
        // Shuffled rows wait on disk: then one file is written after the other.
        let n_files = if config.selector.holdout.is_some() && !config.sink.shuffle { 2 } else { 1 };
        let (budget, has_feedback) = (config.memory_budget_bytes, config.feedback.is_some());
        let limits = Limits::of_budget(budget, config.shard.row_group_bytes, has_feedback, n_files);
        let owner = instance_name(&config);
        {
            let mut status = telemetry.status();
            (status.model, status.owner) = (model.id.to_string(), owner.clone());
            status.config_digest = config.digest();
            status.window_limits = Some(config.window.into());
            // Those of another field say nothing of sources.
            if config.selector.quotas.field.is_none() {
                status.shares = config.selector.quotas.sources.clone();
            }
        }
        let catalog = Arc::new(catalog);
        let collapse = SharedCollapseWatches::default();
        let shared = Shared {
            config,
            bootstrap,
            model,
            catalog,
            store,
            telemetry,
            owner,
            limits,
            collapse,
            filter,
            registry,
            columns,
        };
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
        let (stop_weights, weights_stopped) = watch::channel(false);
        let weights = weights::TopicWeights::of(&self.shared).map(|weights| tokio::spawn(weights.run(weights_stopped)));
        let feedback = tokio::spawn(feedback::run(self.shared.clone(), shutdown.clone()));
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
        let _ = stop_weights.send(true);
        if let Some(weights) = weights
            && tokio::time::timeout(WEIGHTS_DEADLINE, weights).await.is_err()
        {
            tracing::info!("weights for the topic: still busy; what was not committed is answered again");
        }
        // After an error it has not heard of a shutdown. What it has not committed is read again.
        if result.is_ok() && tokio::time::timeout(self.shared.config.shutdown_grace, feedback).await.is_err() {
            tracing::info!("losses that were being taken are taken again at the next start");
        }
        drop(self.embedded);
        result
    }
}

/// The filter that was configured, or recorded with a shard.
fn document_filter(settings: Option<&FilterSettings>) -> Result<Option<Arc<DocumentFilter>>, DaemonError> {
    let compile = |settings: &FilterSettings| match DocumentFilter::compile(settings) {
        Ok(filter) => Ok(Arc::new(filter)),
        Err(source) => Err(DaemonError::Filter { sql: settings.sql.clone(), source }),
    };
    settings.map(compile).transpose()
}

/// Where records name schemas.
fn schema_registry(config: &Config) -> Result<Option<SchemaRegistry>, SourceError> {
    let registry = config.registry.as_ref();
    registry.map(|registry| SchemaRegistry::open(registry, &config.decoder.format)).transpose()
}

/// What this process is called beside others of its pipeline.
pub fn instance_name(config: &Config) -> String {
    let name = config.kafka.instance_id.clone().or_else(|| std::env::var("HOSTNAME").ok());
    format!("{}-{}", name.unwrap_or_else(|| "worker".to_owned()), std::process::id())
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
