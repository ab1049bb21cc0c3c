//! Published windows, decided again: their records are read from Kafka by offset and take the same way as in the daemon, with
//! the model, the counts and the selector that the window was decided with.
//!
//! In: a manifest and one of its windows. Out: the window as it is decided now, or why it cannot be. The field names and the
//! limit of documents are those of the configuration: they are not recorded.

mod compare;
mod explained;
mod sensitivities;
mod strata;
mod witness;

use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;
use tokio::runtime::Handle;

use super::adaptive::{mixed, versioned_weight};
use super::columns::{FurtherColumns, load_tokenizer, same_tokenizer};
use super::scoring::{Destinations, Scorer};
use super::{DaemonError, LoadedModel, document_filter, recreated_topics, schema_registry, schemas};
use crate::catalog::{
    CatalogError, ClustersCatalog, CountsCatalog, CountsKind, FeedbackCatalog, ReplayCatalog, SqlCatalog,
};
use crate::checkpoint::Interval;
use crate::config::{Config, SpoolConfig};
use crate::manifest::{CountedTokens, DerivedSettings, ShardManifest};
use crate::record::{Schemas, TextScratch, TopicPartition};
use crate::score::{ModelId, SelectedVersion, VersionedWeight, WeightVersion};
use crate::select::{
    CentresFrom, ClusterVersion, Division, FilterSettings, FixedEdges, Noise, Quotas, StreamClusters, Unit,
};
use crate::sink::{BATCH_BYTES, GiveUp, SinkError, Spool, SpoolFolder};
use crate::source::{Batch, Probe, RangeReader, SchemaRegistry, SourceError};
use crate::tokenizer::Tokenizer;
use crate::window::{ClosedWindow, OpenWindow, Opening, SelectedDocument, WindowPolicy, WindowSummary};
use explained::Asked;
use witness::Witness;

pub use compare::{FurtherComparison, differences};
pub use explained::{ExplainedDocument, ExplainedQuota, Explanation, Outcome};
pub use sensitivities::ExplainedSensitivity;
pub use witness::Wanted;

/// For what is asked of the brokers beside the records.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Selected documents that are looked at together, at most; those that wait on disk are not held beyond that.
const LOOK_ROWS: usize = 64;

/// What came of a window.
pub enum Replayed {
    Decided(Box<ClosedWindow>),
    /// What it was decided from is gone.
    Impossible(String),
}

/// What a window is decided from, beside its records.
struct Basis {
    model: Arc<LoadedModel>,
    weight: Arc<VersionedWeight>,
    division: Arc<Division>,
    clusters: Option<StreamClusters>,
    edges: Option<Arc<FixedEdges>>,
}

/// What came of a question about records of a window.
pub enum Explained {
    /// The window, and what is said of the records: none, if it has no such record.
    Decided(Box<ClosedWindow>, Vec<Explanation>),
    /// What it was decided from is gone.
    Impossible(String),
}

pub struct Replay {
    config: Config,
    catalog: Arc<SqlCatalog>,
    reader: RangeReader,
    scorer: Scorer,
    registry: Option<SchemaRegistry>,
    /// Topics that were made again since: their offsets name other documents.
    recreated: Vec<String>,
    /// Used last; windows of a shard share them.
    model: Option<(Quotas, Arc<LoadedModel>)>,
    weight: Option<(ModelId, Arc<VersionedWeight>)>,
    clusters: Option<(String, ClusterVersion)>,
    /// What the scorer filters by, and its clauses by number.
    filter: Option<FilterSettings>,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Of the shard with these.
    columns: Option<(DerivedSettings, Option<CountedTokens>, Result<FurtherColumns, String>)>,
    clauses: Vec<String>,
}

impl Replay {
    pub async fn open(config: Config, bootstrap: &str, catalog: Arc<SqlCatalog>) -> Result<Self, DaemonError> {
        let reader = RangeReader::open(&config.kafka, bootstrap)?;
        let probe = Probe::open(&config.kafka, bootstrap, TIMEOUT)?;
        let topic = |error| if let SourceError::TopicRecreated { topic, .. } = error { Some(topic) } else { None };
        let recreated = recreated_topics(&config, &probe, &*catalog).await?.into_iter().filter_map(topic).collect();
        let scorer = Scorer::new(config.decoder.clone(), 0);
        let registry = schema_registry(&config)?;
        let tokenizer = load_tokenizer(&config)?;
        Ok(Replay {
            config,
            catalog,
            reader,
            scorer,
            registry,
            recreated,
            model: None,
            weight: None,
            clusters: None,
            filter: None,
            tokenizer,
            columns: None,
            clauses: Vec::new(),
        })
    }

    /// What computes the further columns of a shard. The inner error: nothing here can.
    pub fn columns(&mut self, manifest: &ShardManifest) -> Result<Result<FurtherColumns, String>, DaemonError> {
        let ShardManifest { columns, tokenizer, .. } = manifest;
        // How much was counted is another matter.
        let name = |counted: &Option<CountedTokens>| counted.as_ref().map(|of| (of.name.clone(), of.digest.clone()));
        if let Some((known, counted, found)) = &self.columns
            && known == columns
            && name(counted) == name(tokenizer)
        {
            return Ok(found.clone());
        }
        let found = FurtherColumns::of_shard(manifest, self.tokenizer.as_ref())?;
        self.columns = Some((columns.clone(), tokenizer.clone(), found.clone()));
        Ok(found)
    }

    /// Decides a window of a published shard again, and shows its selection, some of it at a time. Holds no more than the window
    /// itself does: afterwards documents that waited on disk have no texts any more.
    pub async fn window(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        look: &mut dyn FnMut(&[SelectedDocument]),
    ) -> Result<Replayed, DaemonError> {
        let basis = match self.basis(manifest, window).await? {
            Ok(basis) => basis,
            Err(gone) => return Ok(Replayed::Impossible(gone)),
        };
        let noise = Noise::new(manifest.selector.seed, &window.at);
        let closed = tokio::task::block_in_place(|| self.decide(manifest, window, &basis, &noise, None, look));
        Ok(match possible(closed)? {
            Ok(closed) => Replayed::Decided(Box::new(closed)),
            Err(gone) => Replayed::Impossible(gone),
        })
    }

    /// Decides it again, as [`Replay::window`] does, and says why these of its records were selected or not. Some twenty bytes of
    /// every candidate are held beside the window.
    pub async fn explain(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        wanted: Wanted<'_>,
        look: &mut dyn FnMut(&[SelectedDocument]),
    ) -> Result<Explained, DaemonError> {
        let basis = match self.basis(manifest, window).await? {
            Ok(basis) => basis,
            Err(gone) => return Ok(Explained::Impossible(gone)),
        };
        let Basis { model, weight, division, .. } = &basis;
        let noise = Noise::new(manifest.selector.seed, &window.at);
        let decoder = self.config.decoder.clone();
        let mut witness = Witness::new(wanted, &decoder, &manifest.selector, (division, &noise), weight);
        let shown = Some(&mut witness);
        let closed = tokio::task::block_in_place(|| self.decide(manifest, window, &basis, &noise, shown, look));
        let closed = match possible(closed)? {
            Ok(closed) => closed,
            Err(gone) => return Ok(Explained::Impossible(gone)),
        };
        let asked = Asked {
            manifest,
            closed: &closed,
            division,
            noise: &noise,
            featuriser: &model.model.featuriser,
            contenders: &witness.contenders,
            clauses: &self.clauses,
        };
        let explanations = asked.explain(&witness.seen);
        Ok(Explained::Decided(Box::new(closed), explanations))
    }

    /// Offsets of the documents in an interval of the log that have this id. [`SourceError::OffsetsLost`]: the log does not hold it.
    pub fn find(&mut self, at: &TopicPartition, interval: Interval, id: &str) -> Result<Vec<i64>, SourceError> {
        let decoder = &self.config.decoder;
        let mut found = Vec::new();
        self.reader.begin(at, interval)?;
        while let Some(batch) = self.reader.next_batch()? {
            let schemas = schemas_of(self.registry.as_ref(), &batch)?;
            let is_wanted = |text: &mut TextScratch, i: usize| {
                let record = batch.get(i);
                let document = decoder.decode_record(record.raw(), &schemas, text).ok()?;
                (document.id() == id).then_some(record.offset)
            };
            let offsets = (0..batch.len()).into_par_iter().with_min_len(64).map_init(TextScratch::default, is_wanted);
            found.extend(offsets.flatten().collect::<Vec<_>>());
        }
        Ok(found)
    }

    /// The inner error: what is gone of it.
    async fn basis(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
    ) -> Result<Result<Basis, String>, DaemonError> {
        if self.recreated.iter().any(|topic| *topic == *window.at.topic) {
            return Ok(Err("its topic was deleted and made again".to_owned()));
        }
        if self.filter != manifest.selector.filter {
            let filter = document_filter(manifest.selector.filter.as_ref())?;
            self.clauses = filter.iter().flat_map(|filter| filter.labels()).map(str::to_owned).collect();
            self.scorer.filter_by(filter);
            self.filter.clone_from(&manifest.selector.filter);
        }
        let tokenizer = match &manifest.tokenizer {
            Some(counted) if manifest.selector.unit == Unit::Tokens => {
                match same_tokenizer(counted, self.tokenizer.as_ref()) {
                    Ok(tokenizer) => Some(tokenizer.clone()),
                    Err(other) => return Ok(Err(other)),
                }
            }
            _ => None,
        };
        self.scorer.count_with(tokenizer);
        let model = self.model(manifest).await?;
        let version = WeightVersion {
            raw: window.raw_version,
            selected: window.against_selected,
            expected_loss: window.expected_loss,
        };
        let weight = match self.weight(&model, &manifest.pipeline, version).await? {
            Ok(weight) => weight,
            Err(forgotten) => return Ok(Err(forgotten)),
        };
        let division = match window.quota_version {
            None => model.division.clone(),
            Some(version) => match self.catalog.feedback_version(&manifest.pipeline, version).await? {
                Some(found) => mixed(&model, &manifest.selector.quotas, &found),
                None => return Ok(Err(forgotten_feedback(version))),
            },
        };
        let clusters = match self.clusters(&model, manifest, window).await? {
            Ok(clusters) => clusters,
            Err(forgotten) => return Ok(Err(forgotten)),
        };
        let (coverage, summary) = (manifest.selector.coverage.as_ref(), window.coverage.as_ref());
        let edges = coverage.zip(summary).and_then(|(coverage, summary)| summary.fixed_edges(&coverage.settings));
        Ok(Ok(Basis { model, weight, division, clusters, edges: edges.map(Arc::new) }))
    }

    /// `witness` is shown every record after it was scored, and the window before it is decided; `look` what is selected.
    fn decide(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        basis: &Basis,
        noise: &Noise,
        mut witness: Option<&mut Witness<'_>>,
        look_at: &mut dyn FnMut(&[SelectedDocument]),
    ) -> Result<ClosedWindow, DaemonError> {
        let WindowSummary { at, interval, closed_by, .. } = window;
        let Basis { model, weight, division, clusters, edges } = basis;
        let selector = &manifest.selector;
        // The extent is recorded: nothing else closes it.
        let policy = WindowPolicy {
            max_documents: (interval.to - interval.from) as u64,
            max_bytes: u64::MAX,
            max_age_ms: i64::MAX,
        };
        let buckets = model.model.featuriser.buckets as usize;
        let opening = Opening { division, clusters: clusters.as_ref(), edges: edges.as_ref(), buckets };
        let mut open = OpenWindow::new(at.clone(), interval.from, &policy, selector, opening);
        let SpoolConfig { folder, is_compressed, .. } = &self.config.spool;
        let mut spool = SpoolFolder::new(folder.clone(), *is_compressed, Arc::new(GiveUp)).open();
        self.reader.begin(at, *interval)?;
        while let Some(batch) = self.reader.next_batch()? {
            let schemas = schemas_of(self.registry.as_ref(), &batch)?;
            self.scorer.read_with(schemas.clone());
            let mut destinations = Destinations::new(selector, &policy, &batch);
            let number = destinations.open(&open, weight.clone(), noise);
            (0..batch.len()).for_each(|i| destinations.record(Some(number), batch.payload_bytes(i)));
            let scored = self.scorer.score(&batch, destinations);
            scored.tallies.into_iter().for_each(|counts| self.scorer.count(counts, &mut open));
            // All are ours, so that none is left out.
            for (i, record) in scored.records.into_iter().flatten().enumerate() {
                if let Some(witness) = &mut witness {
                    witness.look(batch.get(i), &schemas, &record);
                }
                if let Some(row) = open.push(record, weight, selector, noise) {
                    spool.push(&row);
                }
            }
            Spool::write([&mut spool].into_iter())?;
        }
        open.advance_to(interval.to);
        open.place(selector, noise, |numbers, look| spool.points::<SinkError>(numbers, look))?;
        if let Some(witness) = witness {
            witness.look_at_places(&open);
        }
        let mut numbers = Vec::new();
        let mut closed = open.close_with(*closed_by, selector, noise, &model.target, |chosen, look| {
            numbers = chosen.to_vec();
            spool.rows(chosen, |row| {
                look(&row);
                Ok::<_, SinkError>(())
            })
        })?;
        closed.selected.chunks(LOOK_ROWS).for_each(&mut *look_at);
        // Once more, now that it is known what was decided of each.
        let mut decisions = closed.waiting.iter();
        let (mut looked_at, mut together, mut bytes) = (Vec::with_capacity(numbers.len()), Vec::new(), 0);
        let mut look_together = |together: &mut Vec<SelectedDocument>| {
            look_at(together);
            looked_at.extend(together.drain(..).map(without_texts));
        };
        spool.rows(&numbers, |row| {
            let decision = decisions.next().expect("rows that come back are those that were selected");
            bytes += row.document.size_bytes();
            together.push(decision.of(row, selector));
            if together.len() == LOOK_ROWS || bytes >= BATCH_BYTES {
                bytes = 0;
                look_together(&mut together);
            }
            Ok::<_, SinkError>(())
        })?;
        look_together(&mut together);
        closed.selected.extend(looked_at);
        Ok(closed)
    }

    /// The model of a shard, in the proportions of the shard.
    async fn model(&mut self, manifest: &ShardManifest) -> Result<Arc<LoadedModel>, DaemonError> {
        let (id, quotas) = (&manifest.model, &manifest.selector.quotas);
        if let Some((_, model)) = self.model.as_ref().filter(|(known, model)| model.id == *id && known == quotas) {
            return Ok(model.clone());
        }
        let Some(bytes) = self.catalog.model(id).await? else {
            let (catalog, problem) = (self.config.catalog.url.to_string(), format!("model {id} is missing"));
            return Err(CatalogError::Damaged { catalog, problem }.into());
        };
        let model = Arc::new(LoadedModel::from_bytes(id.as_str(), bytes)?.divided_by(quotas)?);
        self.model = Some((quotas.clone(), model.clone()));
        Ok(model)
    }

    /// Those of the stream that a window took. The inner error: they have been forgotten.
    async fn clusters(
        &mut self,
        model: &LoadedModel,
        manifest: &ShardManifest,
        window: &WindowSummary,
    ) -> Result<Result<Option<StreamClusters>, String>, DaemonError> {
        let Some(sensitivity) = &manifest.selector.sensitivity else { return Ok(Ok(None)) };
        if sensitivity.centres_from == CentresFrom::Window {
            return Ok(Ok(None));
        }
        let space = sensitivity.space(&model.model.featuriser).into();
        let Some(number) = window.sensitivity.as_ref().and_then(|of| of.clusters_version) else {
            return Ok(Ok(Some(StreamClusters { space, version: None })));
        };
        if let Some((pipeline, version)) = &self.clusters
            && (pipeline, version.version) == (&manifest.pipeline, number)
        {
            return Ok(Ok(Some(StreamClusters { space, version: Some(version.clone()) })));
        }
        Ok(match self.catalog.clusters(&manifest.pipeline, number).await? {
            Some(version) => {
                self.clusters = Some((manifest.pipeline.clone(), version.clone()));
                Ok(Some(StreamClusters { space, version: Some(version) }))
            }
            None => Err(format!("version {number} of the clusters is forgotten (selection.centres_history_bytes)")),
        })
    }

    /// The inner error: a version has been forgotten.
    async fn weight(
        &mut self,
        model: &LoadedModel,
        pipeline: &str,
        version: WeightVersion,
    ) -> Result<Result<Arc<VersionedWeight>, String>, DaemonError> {
        if let Some((id, weight)) = &self.weight
            && (id, weight.version) == (&model.id, version)
        {
            return Ok(Ok(weight.clone()));
        }
        let raw = match version.raw {
            None => None,
            Some(raw) => match self.catalog.counts(pipeline, CountsKind::Raw, raw).await? {
                Some(counts) => Some(counts),
                None => {
                    return Ok(Err(format!(
                        "version {raw} of the raw distribution is forgotten (model.raw_history_bytes)"
                    )));
                }
            },
        };
        let selected = match version.selected {
            None => None,
            Some(SelectedVersion { version, share }) => {
                match self.catalog.counts(pipeline, CountsKind::Selected, version).await? {
                    Some(counts) => Some((counts, share)),
                    None => {
                        return Ok(Err(format!(
                            "version {version} of what was selected is forgotten (model.selected_history_bytes)"
                        )));
                    }
                }
            }
        };
        let expected = match version.expected_loss {
            None => None,
            Some(named) => match self.catalog.feedback_version(pipeline, named.version).await? {
                Some(found) => Some((named, found.expected)),
                None => return Ok(Err(forgotten_feedback(named.version))),
            },
        };
        let weight = if version == WeightVersion::default() {
            model.weight.clone()
        } else {
            versioned_weight(model, raw.as_ref(), selected.as_ref().map(|(counts, share)| (counts, *share)), expected)
        };
        self.weight = Some((model.id.clone(), weight.clone()));
        Ok(Ok(weight))
    }
}

/// Those that records name. Whoever asks for a replay sees that the registry is away, and asks again.
fn schemas_of(registry: Option<&SchemaRegistry>, batch: &Batch) -> Result<Schemas, SourceError> {
    let Some(registry) = registry else { return Ok(Schemas::default()) };
    Handle::current().block_on(registry.schemas(&schemas::named_in(batch), &|_| {}))
}

/// The inner error: the records are gone.
fn possible(closed: Result<ClosedWindow, DaemonError>) -> Result<Result<ClosedWindow, String>, DaemonError> {
    match closed {
        Ok(closed) => Ok(Ok(closed)),
        Err(DaemonError::Source(SourceError::OffsetsLost(lost))) => {
            let (low, high) = lost.first().map_or((0, 0), |lost| (lost.low, lost.high));
            Ok(Err(format!("its records are deleted: the log holds {low}..{high}")))
        }
        Err(e) => Err(e),
    }
}

fn without_texts(mut selected: SelectedDocument) -> SelectedDocument {
    selected.document.text = String::new();
    selected.document.metadata = None;
    selected
}

fn forgotten_feedback(version: i64) -> String {
    format!("version {version} of what was learnt from losses is forgotten (feedback.history_bytes)")
}
