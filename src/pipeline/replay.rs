//! Published windows, decided again: their records are read from Kafka by offset and take the same way as in the daemon, with
//! the model, the counts and the selector that the window was decided with.
//!
//! In: a manifest and one of its windows. Out: the window as it is decided now, or why it cannot be. The field names and the
//! limit of documents are those of the configuration: they are not recorded.

mod compare;

use std::sync::Arc;
use std::time::Duration;

use super::adaptive::{mixed, versioned_weight};
use super::scoring::{Destinations, Scorer};
use super::{DaemonError, LoadedModel, derived_columns, document_filter, recreated_topics};
use crate::catalog::{CatalogError, CountsCatalog, CountsKind, FeedbackCatalog, ReplayCatalog, SqlCatalog};
use crate::config::Config;
use crate::manifest::{DerivedSettings, ShardManifest};
use crate::score::{ModelId, SelectedVersion, VersionedWeight, WeightVersion};
use crate::select::{Division, FilterSettings, Noise, Quotas};
use crate::source::{Probe, RangeReader, SourceError};
use crate::sql::DerivedColumns;
use crate::window::{ClosedWindow, OpenWindow, WindowPolicy, WindowSummary};

pub use compare::differences;

/// For what is asked of the brokers beside the records.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What came of a window.
pub enum Replayed {
    Decided(Box<ClosedWindow>),
    /// What it was decided from is gone.
    Impossible(String),
}

pub struct Replay {
    config: Config,
    catalog: Arc<SqlCatalog>,
    reader: RangeReader,
    scorer: Scorer,
    /// Topics that were made again since: their offsets name other documents.
    recreated: Vec<String>,
    /// Used last; windows of a shard share them.
    model: Option<(Quotas, Arc<LoadedModel>)>,
    weight: Option<(ModelId, Arc<VersionedWeight>)>,
    /// What the scorer filters by.
    filter: Option<FilterSettings>,
    derived: (DerivedSettings, Option<Arc<DerivedColumns>>),
}

impl Replay {
    pub async fn open(config: Config, bootstrap: &str, catalog: Arc<SqlCatalog>) -> Result<Self, DaemonError> {
        let reader = RangeReader::open(&config.kafka, bootstrap)?;
        let probe = Probe::open(&config.kafka, bootstrap, TIMEOUT)?;
        let topic = |error| if let SourceError::TopicRecreated { topic, .. } = error { Some(topic) } else { None };
        let recreated = recreated_topics(&config, &probe, &*catalog).await?.into_iter().filter_map(topic).collect();
        let scorer = Scorer::new(config.decoder.clone(), 0);
        Ok(Replay {
            config,
            catalog,
            reader,
            scorer,
            recreated,
            model: None,
            weight: None,
            filter: None,
            derived: Default::default(),
        })
    }

    /// What computes the derived columns of a shard; `None` if it has none.
    pub fn derived(&mut self, manifest: &ShardManifest) -> Result<Option<Arc<DerivedColumns>>, DaemonError> {
        if self.derived.0 != manifest.columns {
            self.derived = (manifest.columns.clone(), derived_columns(&manifest.columns)?);
        }
        Ok(self.derived.1.clone())
    }

    /// Decides a window of a published shard again. Holds no more than the window itself does.
    pub async fn window(&mut self, manifest: &ShardManifest, window: &WindowSummary) -> Result<Replayed, DaemonError> {
        if self.recreated.iter().any(|topic| *topic == *window.at.topic) {
            return Ok(Replayed::Impossible("its topic was deleted and made again".to_owned()));
        }
        if self.filter != manifest.selector.filter {
            self.scorer.filter_by(document_filter(manifest.selector.filter.as_ref())?);
            self.filter.clone_from(&manifest.selector.filter);
        }
        let model = self.model(manifest).await?;
        let version = WeightVersion {
            raw: window.raw_version,
            selected: window.against_selected,
            expected_loss: window.expected_loss,
        };
        let weight = match self.weight(&model, &manifest.pipeline, version).await? {
            Ok(weight) => weight,
            Err(forgotten) => return Ok(Replayed::Impossible(forgotten)),
        };
        let division = match window.quota_version {
            None => model.division.clone(),
            Some(version) => match self.catalog.feedback_version(&manifest.pipeline, version).await? {
                Some(found) => mixed(&model, &manifest.selector.quotas, &found),
                None => return Ok(Replayed::Impossible(forgotten_feedback(version))),
            },
        };
        tokio::task::block_in_place(|| match self.decide(manifest, window, &model, (&weight, &division)) {
            Ok(closed) => Ok(Replayed::Decided(Box::new(closed))),
            Err(SourceError::OffsetsLost(lost)) => {
                let (low, high) = lost.first().map_or((0, 0), |lost| (lost.low, lost.high));
                Ok(Replayed::Impossible(format!("its records are deleted: the log holds {low}..{high}")))
            }
            Err(e) => Err(e.into()),
        })
    }

    fn decide(
        &mut self,
        manifest: &ShardManifest,
        window: &WindowSummary,
        model: &LoadedModel,
        (weight, division): (&Arc<VersionedWeight>, &Arc<Division>),
    ) -> Result<ClosedWindow, SourceError> {
        let WindowSummary { at, interval, closed_by, .. } = window;
        let selector = &manifest.selector;
        // The extent is recorded: nothing else closes it.
        let policy = WindowPolicy {
            max_documents: (interval.to - interval.from) as u64,
            max_bytes: u64::MAX,
            max_age_ms: i64::MAX,
        };
        let buckets = model.model.featuriser.buckets as usize;
        let mut open = OpenWindow::new(at.clone(), interval.from, &policy, selector, division, buckets);
        let noise = Noise::new(selector.seed, at);
        self.reader.begin(at, *interval)?;
        while let Some(batch) = self.reader.next_batch()? {
            let mut destinations = Destinations::new(selector, &policy, &batch);
            let number = destinations.open(&open, weight.clone(), &noise);
            (0..batch.len()).for_each(|i| destinations.record(Some(number), batch.payload_bytes(i)));
            let scored = self.scorer.score(&batch, destinations);
            scored.tallies.into_iter().for_each(|counts| self.scorer.count(counts, &mut open));
            scored.records.into_iter().flatten().for_each(|record| open.push(record, weight, selector, &noise));
        }
        open.advance_to(interval.to);
        Ok(open.close(*closed_by, selector, &noise, &model.target))
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

fn forgotten_feedback(version: i64) -> String {
    format!("version {version} of what was learnt from losses is forgotten (feedback.history_bytes)")
}
