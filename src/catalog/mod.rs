//! The database that is the authority on offsets, windows and shards.
//!
//! [`Catalog`] is what the daemon writes, [`CatalogReader`] what people and trainers ask. One suite of tests
//! (`conformance`) says what every implementation must do.

mod clusters;
mod edges;
mod feedback;
mod offsets;
mod replay;
mod sql;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::Serialize;

use crate::checkpoint::Interval;
use crate::features::Featuriser;
use crate::manifest::{DeadLetterFile, ShardManifest};
use crate::record::TopicPartition;
use crate::score::{DecayedCounts, ModelId, NgramCounts};
use crate::window::WindowSummary;

pub use clusters::{ClustersAddition, ClustersCatalog};
pub use edges::{EdgesAddition, EdgesCatalog};
pub use feedback::{FeedbackAddition, FeedbackCatalog, FeedbackRequest, FeedbackTaken, FeedbackVersion};
pub use offsets::{Gap, GapReason, OffsetsCatalog};
pub use replay::ReplayCatalog;
pub use sql::{Access, SqlCatalog};

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The database could not be reached or did not carry out a statement; nothing was changed.
    #[error("catalog `{catalog}`: {source}")]
    Unavailable { catalog: String, source: sqlx::Error },
    /// COMMIT was sent and no answer came: the transaction may have happened.
    #[error("catalog `{catalog}`: outcome of COMMIT unknown: {source}")]
    CommitUnknown { catalog: String, source: sqlx::Error },
    #[error(
        "partition {at}: offsets {interval} cannot be published at owner epoch {owner_epoch}: another owner took over"
    )]
    Fenced { at: TopicPartition, interval: Interval, owner_epoch: i64 },
    #[error(
        "partition {at}: offset {offset} is decided already, everything below {published} is published: to decide documents \
         again, use a new pipeline.name"
    )]
    Decided { at: TopicPartition, offset: i64, published: i64 },
    #[error("shard `{0}` is not staged, so it cannot be published")]
    NotStaged(String),
    #[error("catalog `{catalog}`: {problem}")]
    Schema { catalog: String, problem: String },
    #[error("catalog `{0}` is in use by another process; SQLite serves one worker")]
    InUse(String),
    #[error(
        "catalog `{catalog}` is on a network file system ({kind}), where SQLite's locks cannot be relied on: put it on a disk \
         of this machine, or use Postgres"
    )]
    NetworkFile { catalog: String, kind: &'static str },
    #[error("catalog `{catalog}` holds damaged data: {problem}")]
    Damaged { catalog: String, problem: String },
}

/// A partition taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub at: TopicPartition,
    pub owner_epoch: i64,
    /// Where to go on; `None` until [`Catalog::start`] has stored the resolved start policy.
    pub next_offset: Option<i64>,
}

/// One partition's part of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    pub at: TopicPartition,
    pub interval: Interval,
    pub owner_epoch: i64,
}

/// Everything that becomes visible in one transaction.
#[derive(Debug)]
pub struct PublishRequest<'a> {
    pub manifest: &'a ShardManifest,
    pub advances: &'a [Advance],
    /// What the windows add to counts of the pipeline: at most one for each kind.
    pub counts: &'a [CountsAddition<'a>],
    /// `None` where no feedback is taken.
    pub feedback: Option<FeedbackAddition<'a>>,
    /// `None` where clusters are not followed, or no document was looked at.
    pub clusters: Option<ClustersAddition<'a>>,
    /// `None` where edges do not follow the stream, or no document has the numbers.
    pub edges: Option<EdgesAddition<'a>>,
    /// The topic that its dead letters are to be sent to, if it has any.
    pub forward_to: Option<&'a str>,
}

/// Which counts of a pipeline decay and grow with its publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CountsKind {
    /// N-grams of all documents.
    Raw,
    /// N-grams of the selected ones, for each target.
    Selected,
}

impl CountsKind {
    pub fn as_str(self) -> &'static str {
        match self {
            CountsKind::Raw => "raw",
            CountsKind::Selected => "selected",
        }
    }
}

/// Counts by the name of the target that they are of. The raw distribution and a model's only target have none: the name is
/// empty.
pub type ByTarget<C> = BTreeMap<String, C>;

/// What counts are of. While another model is rolled out, or back, workers of both share a pipeline: each goes on with the counts
/// that are of its own n-grams and targets, and leaves the others as they are.
pub type CountsOf = ByTarget<Featuriser>;

/// N-grams of all windows of a publication: they make the next version of the counts of a kind, of all its targets together, out of
/// the newest that is of the same n-grams and targets. Where there is none any more there is no place for them.
#[derive(Debug, Clone, Copy)]
pub struct CountsAddition<'a> {
    pub kind: CountsKind,
    /// Of their n-grams.
    pub featuriser: Featuriser,
    pub counts: &'a ByTarget<NgramCounts>,
    /// `None`: nothing is forgotten.
    pub half_life_ngrams: Option<u64>,
    /// Older versions are forgotten beyond this; the newest one is always kept, of other n-grams and targets too.
    pub history_bytes: u64,
}

/// One version of decayed counts.
#[derive(Debug, Clone, PartialEq)]
pub struct CountsVersion {
    pub version: i64,
    pub counts: ByTarget<DecayedCounts>,
}

/// The newest counts, as a worker with one model sees them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewestCounts {
    /// `None`: there are none of the same n-grams and targets.
    pub ours: Option<CountsVersion>,
    /// A newer version that is of others.
    pub of_others: Option<i64>,
}

/// How a version came to be. These lines are kept for ever, so that every version can be computed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CountsLine {
    pub version: i64,
    pub target: String,
    /// The publication whose windows were added to the version before of the same n-grams and targets; `None` where counts began.
    pub shard: Option<String>,
    pub half_life_ngrams: Option<i64>,
    /// N-grams added.
    pub n_ngrams: i64,
    /// Whether the counts themselves are still there.
    pub is_kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    Staged,
    Published,
}

/// What the daemon writes. Every call is atomic; calls may be repeated after [`CatalogError::Unavailable`].
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Makes the pipeline and the model known. Idempotent.
    async fn register(&self, pipeline: &str, model: &ModelId, model_bytes: &[u8]) -> Result<(), CatalogError>;

    /// Takes partitions over: raises their owner epochs, so that publications of earlier owners fail from now on.
    async fn claim(
        &self,
        pipeline: &str,
        partitions: &[TopicPartition],
        owner: &str,
    ) -> Result<Vec<Claim>, CatalogError>;

    /// Stores where a partition begins, unless an offset is stored already, and gives the stored one. Fails with
    /// [`CatalogError::Fenced`] if `owner_epoch` is not the partition's.
    async fn start(
        &self,
        pipeline: &str,
        at: &TopicPartition,
        owner_epoch: i64,
        offset: i64,
    ) -> Result<i64, CatalogError>;

    /// Notes that an object may come to stand at `path`. Idempotent.
    async fn stage(&self, pipeline: &str, shard: &str, path: Option<&str>) -> Result<(), CatalogError>;

    /// Publishes a staged shard: for every advance, the checkpoint must stand at `interval.from` with our epoch, else
    /// nothing changes and the answer is [`CatalogError::Fenced`]. Gives the manifest's sequence number, if it has rows.
    async fn publish(&self, request: &PublishRequest<'_>) -> Result<Option<i64>, CatalogError>;

    /// How a shard stands; settles an unknown COMMIT.
    async fn shard_state(&self, shard: &str) -> Result<Option<ShardState>, CatalogError>;

    /// Notes that the dead letters of a shard have been sent to their topic. Idempotent.
    async fn forwarded(&self, shard: &str) -> Result<(), CatalogError>;

    /// Takes every shard out that was staged before `staged_before_ms` and is not published: from now on it cannot be. Gives
    /// these and the ones taken out before, whose objects may have to be deleted (again).
    async fn abandon(&self, pipeline: &str, staged_before_ms: i64) -> Result<Vec<Orphan>, CatalogError>;

    /// Forgets the orphans that were taken out before `noted_before_ms`.
    async fn forget_orphans(&self, pipeline: &str, noted_before_ms: i64) -> Result<(), CatalogError>;
}

/// A shard that was staged and will never be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    pub shard: String,
    /// Where its object may stand.
    pub path: Option<String>,
    pub noted_at_ms: i64,
}

/// Running sums of a pipeline, over everything published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    pub n_records: i64,
    pub n_selected: i64,
    pub n_rejected: i64,
    pub n_dead_letters: i64,
    pub n_windows: i64,
    pub n_shards: i64,
    pub shard_bytes: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    pub topic: String,
    pub partition: i32,
    pub next_offset: Option<i64>,
    pub owner_epoch: i64,
    pub owner: String,
}

/// Published dead letters that are still to be sent to a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingForward {
    pub shard: String,
    pub topic: String,
    pub file: DeadLetterFile,
    pub published_at_ms: i64,
}

/// What people and trainers ask.
#[async_trait]
pub trait CatalogReader: Send + Sync {
    /// `None`: no such pipeline.
    async fn totals(&self, pipeline: &str) -> Result<Option<Totals>, CatalogError>;

    async fn checkpoints(&self, pipeline: &str) -> Result<Vec<Checkpoint>, CatalogError>;

    /// Offsets that are never decided, by position.
    async fn gaps(&self, pipeline: &str) -> Result<Vec<Gap>, CatalogError>;

    /// Published shards with rows, in order of publication, with their sequence numbers.
    async fn shards(&self, pipeline: &str) -> Result<Vec<(i64, ShardManifest)>, CatalogError>;

    /// Every published window, by partition and offset.
    async fn windows(&self, pipeline: &str) -> Result<Vec<WindowSummary>, CatalogError>;

    /// Lines of `manifest.jsonl` after `sequence`, in order, each without its line break.
    async fn manifest_lines(&self, pipeline: &str, after_sequence: i64) -> Result<Vec<String>, CatalogError>;

    /// Published files of dead letters, in order of publication.
    async fn dead_letter_files(&self, pipeline: &str) -> Result<Vec<DeadLetterFile>, CatalogError>;

    /// Those that are still to be sent to a topic.
    async fn pending_forwards(&self, pipeline: &str) -> Result<Vec<PendingForward>, CatalogError>;
}

/// Counts that decay and grow with the publications of a pipeline, version by version. Additions are a part of
/// [`Catalog::publish`].
#[async_trait]
pub trait CountsCatalog: Send + Sync {
    /// Gives the newest version of the featuriser and the targets of `initial`. Where there is none, or nothing has been added to
    /// it yet and it is not `initial`, counts begin anew with `initial` as the next version.
    async fn begin_counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        initial: &ByTarget<DecayedCounts>,
    ) -> Result<CountsVersion, CatalogError>;

    /// Of whatever it is.
    async fn newest_counts(&self, pipeline: &str, kind: CountsKind) -> Result<Option<CountsVersion>, CatalogError>;

    async fn newest_counts_of(
        &self,
        pipeline: &str,
        kind: CountsKind,
        of: &CountsOf,
    ) -> Result<NewestCounts, CatalogError>;

    /// `None`: there is no such version, or its counts have been forgotten.
    async fn counts(
        &self,
        pipeline: &str,
        kind: CountsKind,
        version: i64,
    ) -> Result<Option<CountsVersion>, CatalogError>;

    /// Every version, in order, with one line for each target.
    async fn counts_lines(&self, pipeline: &str, kind: CountsKind) -> Result<Vec<CountsLine>, CatalogError>;
}
