//! The weights in force: of the fitted model, or with the newest versions of counts that follow the stream and the selection, and of
//! the losses that are expected; and how windows are divided.
//!
//! A publication makes the next versions in its own transaction; afterwards the publisher reads them back and the worker
//! finds them at its next batch. Windows that are open keep the versions that they opened with.

use std::sync::Arc;

use super::{LoadedModel, Shared};
use crate::catalog::{CatalogError, CountsKind, CountsVersion, FeedbackVersion};
use crate::config::{Against, RawDistribution};
use crate::score::{
    DecayedCounts, ExpectedLoss, ExpectedLossVersion, ImportanceWeight, Model, Probabilities, SelectedVersion, Target,
    VersionedWeight, WeightVersion, kl_divergence,
};
use crate::select::{
    CentresFrom, ClusterVersion, Division, EdgesVersion, FixedEdges, LossSource, Quotas, StreamClusters,
};

/// What a window takes that opens now.
#[derive(Clone)]
pub(super) struct InForce {
    pub weight: Arc<VersionedWeight>,
    pub division: Arc<Division>,
    /// Where centres are those of the stream.
    pub clusters: Option<StreamClusters>,
    /// Where edges of strata are those of the stream, and enough is known.
    pub edges: Option<Arc<FixedEdges>>,
}

impl InForce {
    pub fn is_same(&self, other: &InForce) -> bool {
        self.weight.version == other.weight.version
            && self.division.version() == other.division.version()
            && version_of(&self.clusters) == version_of(&other.clusters)
            && version_of_edges(&self.edges) == version_of_edges(&other.edges)
    }
}

/// `None` where there are no clusters, or none yet.
pub(super) fn version_of(clusters: &Option<StreamClusters>) -> Option<i64> {
    clusters.as_ref()?.version.as_ref().map(|version| version.version)
}

/// `None` where windows cut their own strata.
pub(super) fn version_of_edges(edges: &Option<Arc<FixedEdges>>) -> Option<i64> {
    edges.as_ref().map(|edges| edges.of.version)
}

/// What a session begins with.
pub(super) async fn begin(shared: &Shared) -> Result<InForce, CatalogError> {
    let Shared { config, model, catalog, .. } = shared;
    let begin = async |kind, targets: Vec<String>, prior_ngrams| {
        let fitted = model.model.raw.counts.probabilities();
        let prior = DecayedCounts::prior(model.model.featuriser, &fitted, prior_ngrams);
        let initial = targets.into_iter().map(|target| (target, prior.clone())).collect();
        catalog.begin_counts(&config.pipeline, kind, &initial).await
    };
    let one = || vec![String::new()];
    let raw = match config.raw {
        RawDistribution::Pinned => None,
        RawDistribution::Adaptive { prior_ngrams, .. } => Some(begin(CountsKind::Raw, one(), prior_ngrams).await?),
    };
    let selected = match config.against {
        Against::Raw => None,
        Against::Selected { prior_ngrams, .. } => {
            Some(begin(CountsKind::Selected, model.target_names(), prior_ngrams).await?)
        }
    };
    if let Some(version) = &raw {
        tracing::info!("raw distribution: adaptive, going on with version {}", version.version);
    }
    if let Some(version) = &selected {
        tracing::info!("weights against what was selected, going on with version {}", version.version);
    }
    let feedback = match &config.feedback {
        None => None,
        Some(feedback) => {
            let begun = catalog.begin_feedback(&config.pipeline, &model.model.featuriser, &feedback.settings).await?;
            tracing::info!("losses are taken from topic {}, going on with version {}", feedback.topic, begun.version);
            Some(begun)
        }
    };
    let clusters = clusters(shared, None).await?;
    if let Some(version) = clusters.as_ref().and_then(|clusters| clusters.version.as_ref()) {
        let n_kept = config.clusters.history_bytes / size_of_val(version.means.means()) as u64;
        tracing::info!(
            "centres: of the stream, going on with version {}; some {} versions are kept",
            version.version,
            n_kept.max(1)
        );
    }
    let edges = edges(shared).await?;
    if let Some(version) = &edges {
        let n_documents = version.sketches.n_documents();
        tracing::info!(
            "edges of strata: of the stream, going on with version {}, of {n_documents} documents",
            version.version
        );
    }
    Ok(in_force(shared, raw.as_ref(), selected.as_ref(), feedback.as_ref(), (clusters, edges)))
}

/// Sketches of the stream as they are now, where strata take their edges from them.
async fn edges(shared: &Shared) -> Result<Option<EdgesVersion>, CatalogError> {
    let Shared { config, catalog, model, .. } = shared;
    match config.selector.sketched_numbers(model.id.as_str()) {
        Some(numbers) => catalog.newest_edges(&config.pipeline, &numbers).await,
        None => Ok(None),
    }
}

/// The clusters of the stream as they are now, where windows take them. Those that are known are not read again.
async fn clusters(shared: &Shared, known: Option<&StreamClusters>) -> Result<Option<StreamClusters>, CatalogError> {
    let Shared { config, catalog, model, .. } = shared;
    let Some(sensitivity) = config.selector.sensitivity.as_ref().filter(|s| s.centres_from == CentresFrom::Stream)
    else {
        return Ok(None);
    };
    let known = known.and_then(|known| Some((known, known.version.as_ref()?)));
    if let Some((known, version)) = known
        && catalog.newest_clusters_version(&config.pipeline).await? == Some(version.version)
    {
        return Ok(Some(known.clone()));
    }
    let space = sensitivity.space(&model.model.featuriser);
    let newest = catalog.newest_clusters(&config.pipeline).await?;
    if let (Some(newest), Some((_, version))) = (&newest, known)
        && newest.began != version.began
    {
        tracing::warn!(
            "centres: the stream's clusters begin anew with version {}: the points of documents have another field or number of \
             dimensions than before, or another worker has another number of centres",
            newest.began
        );
    }
    let is_wanted = |of: &ClusterVersion| of.means.is_of(&space) && of.means.len() == sensitivity.centres as usize;
    Ok(Some(StreamClusters { version: newest.filter(is_wanted), space: space.into() }))
}

/// The newest of it, after a publication; `None` where the model alone makes it.
pub(super) async fn newest(shared: &Shared, known: &InForce) -> Result<Option<InForce>, CatalogError> {
    let Shared { config, catalog, .. } = shared;
    let (is_adaptive, is_against) = (config.raw != RawDistribution::Pinned, config.against != Against::Raw);
    let newest = async |is_wanted, kind| match is_wanted {
        true => catalog.newest_counts(&config.pipeline, kind).await,
        false => Ok(None),
    };
    let raw = newest(is_adaptive, CountsKind::Raw).await?;
    let selected = newest(is_against, CountsKind::Selected).await?;
    let feedback = match &config.feedback {
        Some(_) => catalog.newest_feedback(&config.pipeline).await?,
        None => None,
    };
    let clusters = clusters(shared, known.clusters.as_ref()).await?;
    let edges = edges(shared).await?;
    let is_versioned = is_adaptive || is_against || feedback.is_some() || clusters.is_some() || edges.is_some();
    Ok(is_versioned.then(|| in_force(shared, raw.as_ref(), selected.as_ref(), feedback.as_ref(), (clusters, edges))))
}

fn in_force(
    shared: &Shared,
    raw: Option<&CountsVersion>,
    selected: Option<&CountsVersion>,
    feedback: Option<&FeedbackVersion>,
    (clusters, edges): (Option<StreamClusters>, Option<EdgesVersion>),
) -> InForce {
    let Shared { config, model, telemetry, .. } = shared;
    let Model { smoothing, .. } = model.model;
    let fitted = || model.model.raw.counts.probabilities();
    if let Some(raw) = raw {
        telemetry.metrics.raw_version.set(raw.version);
        telemetry.metrics.raw_drift.set(kl_divergence(&probabilities(raw, ""), &fitted(), smoothing));
        telemetry.status().raw_version = Some(raw.version);
    }
    if let Some(selected) = selected {
        telemetry.metrics.selected_version.set(selected.version);
        telemetry.status().selected_version = Some(selected.version);
    }
    if let Some(feedback) = feedback {
        telemetry.set_feedback_version(feedback.version, &feedback.quotas);
    }
    telemetry.metrics.clusters_version.set(version_of(&clusters).unwrap_or(0));
    telemetry.status().clusters_version = version_of(&clusters);
    let number = edges.as_ref().map(EdgesVersion::number);
    telemetry.metrics.edges_documents.set(number.map_or(0, |of| of.n_documents as i64));
    telemetry.status().edges = number;
    let coefficient = config.feedback.as_ref().map_or(0.0, |feedback| feedback.coefficient);
    // What a worker with another model has begun says nothing of this one's n-grams.
    let is_ours = |feedback: &&FeedbackVersion| *feedback.expected.featuriser() == model.model.featuriser;
    let sensitivity = config.selector.sensitivity.as_ref();
    let is_wanted = coefficient != 0.0 || sensitivity.is_some_and(|s| s.losses == LossSource::Expected);
    let expected = feedback.filter(|_| is_wanted).filter(is_ours).map(|feedback| {
        let version = ExpectedLossVersion { version: feedback.version, coefficient };
        (version, feedback.expected.clone())
    });
    let selected = match config.against {
        Against::Selected { share, .. } => selected.map(|selected| (selected, share)),
        Against::Raw => None,
    };
    let weight = match (raw, selected, &expected) {
        (None, None, None) => model.weight.clone(),
        _ => versioned_weight(model, raw, selected, expected),
    };
    let is_mixed = config.feedback.as_ref().is_some_and(|feedback| feedback.settings.mixing.is_some());
    let quotas = feedback.filter(|feedback| is_mixed && !feedback.quotas.is_empty());
    let division =
        quotas.map_or_else(|| model.division.clone(), |quotas| mixed(model, &config.selector.quotas, quotas));
    let settings = config.selector.coverage.as_ref().map(|coverage| &coverage.settings);
    let edges = edges.zip(settings).and_then(|(version, settings)| version.fixed(settings, &division)).map(Arc::new);
    InForce { weight, division, clusters, edges }
}

/// How a window is divided by a version of the shares of sources; those of targets stay.
pub(super) fn mixed(model: &LoadedModel, quotas: &Quotas, version: &FeedbackVersion) -> Arc<Division> {
    let quotas = Quotas { sources: version.quotas.clone(), proportions: quotas.proportions.clone() };
    Arc::new(Division::of(&quotas, &model.model).of_version(version.version))
}

/// The weights by versions of the counts, those of the selection with their share, and of what is expected of losses: each target is
/// weighed against what it has selected itself.
///
/// # Panics
/// If the counts are of other targets: those of the catalog begin anew for them.
pub(super) fn versioned_weight(
    model: &LoadedModel,
    raw: Option<&CountsVersion>,
    selected: Option<(&CountsVersion, f64)>,
    expected: Option<(ExpectedLossVersion, ExpectedLoss)>,
) -> Arc<VersionedWeight> {
    let Model { featuriser, smoothing, .. } = model.model;
    let raw_distribution = raw.map_or_else(|| model.model.raw.counts.probabilities(), |raw| probabilities(raw, ""));
    let share = selected.map_or(0.0, |(_, share)| share);
    let weight = |(target, name): (&Target, String)| {
        let selected = selected.map(|(counts, share)| (share, probabilities(counts, &name)));
        let denominator: Vec<_> = [(1.0 - share, &raw_distribution)]
            .into_iter()
            .chain(selected.iter().map(|(share, distribution)| (*share, distribution)))
            .filter(|(share, _)| *share > 0.0)
            .collect();
        ImportanceWeight::against(featuriser, &target.side.counts.probabilities(), &denominator, smoothing)
    };
    let version = WeightVersion {
        raw: raw.map(|raw| raw.version),
        selected: selected.map(|(selected, share)| SelectedVersion { version: selected.version, share }),
        expected_loss: expected.as_ref().map(|(version, _)| *version),
    };
    let targets = model.model.targets.iter().zip(model.target_names());
    VersionedWeight::of_targets(version, targets.map(weight).collect(), expected.map(|e| e.1))
}

fn probabilities(version: &CountsVersion, target: &str) -> Probabilities {
    version.counts[target].probabilities()
}
