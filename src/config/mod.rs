//! Configuration: the built-in `config/default.toml`, a file, and the environment become one checked [`Config`].
//!
//! Every mistake is reported at once, each with its key and value. What comes out is trusted everywhere else.

mod checked;
mod documents;
mod coverage;
mod feedback;
mod filter;
mod losses;
mod quotas;
mod reader;
mod sensitivity;
mod stores;
mod traces;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::feedback::FeedbackSettings;
use crate::manifest::{DerivedSettings, SideFile};
use crate::record::{Decoder, LossDecoder, RecordPart};
use crate::score::{AssemblySettings, LossWeightSettings};
use crate::select::SelectorSettings;
use crate::tokenizer::TokenizerSettings;
use crate::window::WindowPolicy;
pub use stores::{STORE_SCHEMES, is_store_option};
pub use traces::TracingConfig;

/// The defaults, and at the same time the list of all keys.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// The checked configuration of one daemon.
#[derive(Debug, Clone)]
pub struct Config {
    pub pipeline: String,
    pub kafka: KafkaConfig,
    pub decoder: Decoder,
    /// `None` where records name no schemas.
    pub registry: Option<RegistryConfig>,
    /// Further columns of shards.
    pub columns: DerivedSettings,
    /// What is published is counted in its tokens, too; loaded where it is used.
    pub tokenizer: Option<TokenizerSettings>,
    pub dead_letters: DeadLetterConfig,
    /// `None`: trainers are not listened to.
    pub feedback: Option<FeedbackConfig>,
    /// `None` only while the caller makes the model itself (the demo).
    pub model_path: Option<PathBuf>,
    pub raw: RawDistribution,
    pub against: Against,
    pub selector: SelectorSettings,
    /// Of the stream, where windows take them.
    pub clusters: ClustersConfig,
    pub edges: EdgesConfig,
    pub spool: SpoolConfig,
    pub window: WindowPolicy,
    pub idle_timeout: Duration,
    pub shard: ShardConfig,
    pub sink: SinkConfig,
    pub catalog: CatalogConfig,
    pub memory_budget_bytes: usize,
    pub loss_weight: LossWeightConfig,
    pub losses: LossesConfig,
    pub http: HttpConfig,
    pub shutdown_grace: Duration,
    pub log: LogConfig,
    /// `None`: no spans are made.
    pub tracing: Option<TracingConfig>,
}

#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub bootstrap: Bootstrap,
    pub topics: Vec<String>,
    /// What is wanted of every record beside its value.
    pub parts: Vec<RecordPart>,
    pub group: String,
    pub instance_id: Option<String>,
    pub start: StartPolicy,
    pub on_lost_offset: OnLostOffset,
    pub security_protocol: String,
    pub sasl: Option<Sasl>,
    pub ssl_ca_location: Option<PathBuf>,
    pub client_rack: Option<String>,
    pub session_timeout: Duration,
    pub max_poll_interval: Duration,
    pub drain_timeout: Duration,
    /// Between looks at the whole group; zero: never.
    pub ownership_interval: Duration,
    /// For so long a partition may have no owner.
    pub ownership_grace: Duration,
    /// Passed on to librdkafka as they are.
    pub properties: BTreeMap<String, Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// The in-process cluster, with this many partitions a topic.
    Embedded {
        partitions: i32,
    },
    Servers(String),
}

/// Where a partition without a checkpoint begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPolicy {
    Earliest,
    Latest,
    /// The first record at or after this time, in milliseconds since 1970; the end if there is none.
    Timestamp(i64),
}

/// What happens when retention has removed records that were never decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnLostOffset {
    /// The daemon ends.
    Error,
    /// A gap is recorded, and the partition goes on where its log begins.
    Skip,
}

/// The raw distribution, in the denominator of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawDistribution {
    /// The raw distribution that is fitted in the model.
    Pinned,
    /// One that begins there and follows the stream.
    Adaptive { half_life_ngrams: u64, prior_ngrams: u64, history_bytes: u64 },
}

/// What documents are weighed against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Against {
    /// The raw distribution: DSIR.
    Raw,
    /// What was selected so far, by `share` (λ) of a geometric mixture with the raw distribution.
    Selected {
        share: f64,
        /// The fitted raw distribution counts as if it had been selected in so many n-grams.
        prior_ngrams: u64,
        /// `None`: nothing is forgotten.
        half_life_ngrams: Option<u64>,
        history_bytes: u64,
    },
}

#[derive(Debug, Clone)]
pub struct Sasl {
    pub mechanism: String,
    pub username: String,
    pub password: Secret,
}

/// Where schemas are asked for.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: url::Url,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Of one request.
    pub timeout: Duration,
    /// Between two attempts, at most.
    pub max_backoff: Duration,
    /// So long it is believed that there is no schema of an id.
    pub unknown_for: Duration,
}

#[derive(Debug, Clone)]
pub struct ShardConfig {
    pub target_bytes: u64,
    pub max_rows: u64,
    pub max_age: Duration,
    pub row_group_rows: usize,
    pub row_group_bytes: usize,
    pub zstd_level: i32,
}

#[derive(Debug, Clone)]
pub struct DeadLetterConfig {
    /// Of a payload, so much is kept.
    pub payload_bytes: usize,
    /// A higher share of dead letters among `ratio_records` stops the pipeline.
    pub max_ratio: f64,
    pub ratio_records: u64,
    /// Where they are sent as well.
    pub topic: Option<String>,
}

#[derive(Debug, Clone)]
pub struct FeedbackConfig {
    pub topic: String,
    pub decoder: LossDecoder,
    pub settings: FeedbackSettings,
    /// Of the loss that is expected of a document, in its total log weight; 0: it says nothing there.
    pub coefficient: f64,
    /// Published documents that losses can be joined to, the newest ones.
    pub max_documents: u64,
    /// Of a document, at most so many are kept to learn from.
    pub ngrams: usize,
    pub history_bytes: u64,
    /// Losses are taken together for so long, or until there are as many.
    pub interval: Duration,
    pub batch_losses: u64,
}

#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// `file`, `s3`, `gs` or `az`.
    pub url: url::Url,
    pub options: BTreeMap<String, Secret>,
    pub scratch_dir: Option<PathBuf>,
    /// Whether the rows of a shard are shuffled, by the seed of the selection.
    pub shuffle: bool,
    /// What is written beside the manifest for loaders of other projects.
    pub side_files: Vec<SideFile>,
}

/// How clusters of the stream are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClustersConfig {
    pub half_life_documents: u64,
    pub history_bytes: u64,
}

/// How numbers of the stream are remembered that strata are cut by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdgesConfig {
    pub half_life_documents: u64,
}

/// Where documents wait on local disk until their window is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// `None`: the system's folder for temporary files.
    pub folder: Option<PathBuf>,
    pub is_compressed: bool,
    pub max_bytes: u64,
    /// Of that: see [`SpoolConfig::reserve_bytes`].
    pub reserve_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct CatalogConfig {
    pub url: CatalogUrl,
    pub migrate: bool,
}

/// How training losses become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossWeightConfig {
    /// Valid.
    pub settings: LossWeightSettings,
    /// Steps of which it is remembered what their losses were.
    pub remembered_steps: usize,
}

/// Reports of losses in a topic, and answers in another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LossesConfig {
    pub topic: Option<String>,
    pub weights_topic: Option<String>,
    /// From the first report of a step to its answer.
    pub deadline: Duration,
    /// Older reports are not answered.
    pub stale_after: Duration,
    /// Of all reports that wait for others.
    pub pending_bytes: usize,
    /// Of one report or request.
    pub max_bytes: usize,
    pub max_samples: usize,
}

impl LossesConfig {
    pub fn decoder(&self) -> LossDecoder {
        LossDecoder { max_bytes: self.max_bytes, max_entries: self.max_samples }
    }

    pub fn assembly(&self, remembered_steps: usize) -> AssemblySettings {
        let deadline_ms = self.deadline.as_millis() as i64;
        AssemblySettings { deadline_ms, max_pending_bytes: self.pending_bytes, remembered_steps }
    }
}

#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    /// Whoever changes or reveals something must name it.
    pub token: Option<Secret>,
}

/// Where the catalog is. Shows no password.
#[derive(Clone, PartialEq, Eq)]
pub enum CatalogUrl {
    /// A file, for one worker.
    Sqlite(PathBuf),
    /// A database for any number of workers.
    Postgres(url::Url),
}

impl fmt::Display for CatalogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CatalogUrl::Sqlite(file) => write!(f, "sqlite://{}", file.display()),
            // Parameters can hold a password, too.
            CatalogUrl::Postgres(url) => {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "postgres://{}{port}{}", url.host_str().unwrap_or_default(), url.path())
            }
        }
    }
}

impl fmt::Debug for CatalogUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, Clone, Copy)]
pub struct LogConfig {
    pub level: tracing::Level,
    pub json: bool,
}

/// A value that never shows in logs, `/status` or messages.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        writeln!(f, "the configuration has {n} mistake{}:", if n == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|error| writeln!(f, "  - {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the defaults, then `file`, then the `WINNOWD_` variables among `environment`.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|e| ConfigErrors(vec![format!("`{}` cannot be read: {e}", path.display())]))?,
        };
        Self::from_toml(&text, environment)
    }

    /// Of everything but secrets and what tells the workers of a pipeline apart: workers that differ in it are configured
    /// differently. Comparable between processes of the same version.
    pub fn digest(&self) -> String {
        let mut common = self.clone();
        common.kafka.instance_id = None;
        crate::hex(&Sha256::digest(format!("{common:?}"))[..8])
    }

    /// The same from the text of a file.
    pub fn from_toml(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut reader = reader::Reader::new(DEFAULT_TOML, text, environment)?;
        let config = checked::check(&mut reader);
        reader.finish(config)
    }
}

#[cfg(test)]
mod tests;
