//! The weights in force: of the fitted model, or with the newest versions of counts that follow the stream and the selection, and of
//! the losses that are expected; and how windows are divided.
//!
//! A publication makes the next versions in its own transaction; afterwards the publisher reads them back and the worker
//! finds them at its next batch. Windows that are open keep the versions that they opened with.
//!
//! While another model is rolled out, or back, workers of both share the catalog. Counts of n-grams in other buckets, or of other
//! targets, say nothing of one's own: each worker weighs with, and adds to, the newest that are of its model.

use std::sync::Arc;

use super::{LoadedModel, Shared};
use crate::catalog::{CatalogError, CountsKind, CountsOf, CountsVersion, FeedbackVersion, NewestCounts};
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
    /// Whether newer counts, or feedback, of another model have been seen, and it was said.
    pub is_beside_others: bool,
    /// Where edges of strata are those of the stream, and enough is known.
    pub edges: Option<Arc<FixedEdges>>,
}

impl InForce {
    pub fn is_same(&self, other: &InForce) -> bool {
        self.weight.version == other.weight.version
            && self.division.version() == other.division.version()
            && version_of(&self.clusters) == version_of(&other.clusters)
            && self.is_beside_others == other.is_beside_others
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
    let begin = async |kind| match Followed::of(shared, kind) {
        Some(followed) => begin_counts(shared, &followed).await.map(Some),
        None => Ok(None),
    };
    let raw = begin(CountsKind::Raw).await?;
    let selected = begin(CountsKind::Selected).await?;
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
    Ok(in_force(shared, raw.as_ref(), selected.as_ref(), feedback.as_ref(), (clusters, edges), false))
}

/// Counts that this worker's weights follow.
struct Followed {
    kind: CountsKind,
    of: CountsOf,
    prior_ngrams: u64,
}

impl Followed {
    /// `None` where the model alone makes the weights.
    fn of(shared: &Shared, kind: CountsKind) -> Option<Self> {
        let Shared { config, model, .. } = shared;
        let (targets, prior_ngrams) = match (kind, config.raw, config.against) {
            (CountsKind::Raw, RawDistribution::Adaptive { prior_ngrams, .. }, _) => (vec![String::new()], prior_ngrams),
            (CountsKind::Selected, _, Against::Selected { prior_ngrams, .. }) => (model.target_names(), prior_ngrams),
            _ => return None,
        };
        let of = targets.into_iter().map(|target| (target, model.model.featuriser)).collect();
        Some(Followed { kind, of, prior_ngrams })
    }
}

/// Goes on with the newest of them, or begins them.
async fn begin_counts(shared: &Shared, followed: &Followed) -> Result<CountsVersion, CatalogError> {
    let Shared { config, model, catalog, .. } = shared;
    let fitted = model.model.raw.counts.probabilities();
    let prior = DecayedCounts::prior(model.model.featuriser, &fitted, followed.prior_ngrams);
    let initial = followed.of.keys().map(|target| (target.clone(), prior.clone())).collect();
    catalog.begin_counts(&config.pipeline, followed.kind, &initial).await
}

/// The newest that are of this worker's model, and a newer version that is of another one.
async fn newest_counts(
    shared: &Shared,
    kind: CountsKind,
) -> Result<(Option<CountsVersion>, Option<i64>), CatalogError> {
    let Some(followed) = Followed::of(shared, kind) else { return Ok((None, None)) };
    let NewestCounts { ours, of_others } =
        shared.catalog.newest_counts_of(&shared.config.pipeline, kind, &followed.of).await?;
    let ours = match ours {
        Some(ours) => ours,
        // Nothing of another model is in the way of beginning them again.
        None => begin_counts(shared, &followed).await?,
    };
    Ok((Some(ours), of_others))
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
    let (raw, raw_of_others) = newest_counts(shared, CountsKind::Raw).await?;
    let (selected, selected_of_others) = newest_counts(shared, CountsKind::Selected).await?;
    let feedback = match &config.feedback {
        Some(_) => catalog.newest_feedback(&config.pipeline).await?,
        None => None,
    };
    let is_of_others = |feedback: &&FeedbackVersion| !is_ours(shared, feedback);
    let feedback_of_others = feedback.as_ref().filter(is_of_others).map(|feedback| feedback.version);
    let of_others =
        [("raw counts", raw_of_others), ("selected counts", selected_of_others), ("feedback", feedback_of_others)];
    let of_others = of_others.into_iter().find_map(|(what, version)| Some((what, version?)));
    if let Some((what, version)) = of_others
        && !known.is_beside_others
    {
        tracing::warn!(
            "version {version} of the {what} in the catalog is of a model with another featuriser or other targets: another worker has \
             that model, or this one has gone back to an earlier one. Each model goes on with counts of its own, which lack what \
             workers with the other one publish, and feedback is taken for one of them alone: give all workers the same model"
        );
    }
    let is_beside_others = known.is_beside_others || of_others.is_some();
    let clusters = clusters(shared, known.clusters.as_ref()).await?;
    let edges = edges(shared).await?;
    let is_versioned =
        raw.is_some() || selected.is_some() || feedback.is_some() || clusters.is_some() || edges.is_some();
    let of_stream = (clusters, edges);
    let in_force = || in_force(shared, raw.as_ref(), selected.as_ref(), feedback.as_ref(), of_stream, is_beside_others);
    Ok(is_versioned.then(in_force))
}

fn in_force(
    shared: &Shared,
    raw: Option<&CountsVersion>,
    selected: Option<&CountsVersion>,
    feedback: Option<&FeedbackVersion>,
    (clusters, edges): (Option<StreamClusters>, Option<EdgesVersion>),
    is_beside_others: bool,
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
    let sensitivity = config.selector.sensitivity.as_ref();
    let is_wanted = coefficient != 0.0 || sensitivity.is_some_and(|s| s.losses == LossSource::Expected);
    let expected = feedback.filter(|feedback| is_wanted && is_ours(shared, feedback)).map(|feedback| {
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
    InForce { weight, division, clusters, is_beside_others, edges }
}

/// What a worker with another model has begun says nothing of this one's n-grams.
fn is_ours(shared: &Shared, feedback: &FeedbackVersion) -> bool {
    *feedback.expected.featuriser() == shared.model.model.featuriser
}

/// How a window is divided by a version of the shares of sources; those of targets stay. Shares that follow losses are never of another
/// field.
pub(super) fn mixed(model: &LoadedModel, quotas: &Quotas, version: &FeedbackVersion) -> Arc<Division> {
    let quotas = Quotas { field: None, sources: version.quotas.clone(), proportions: quotas.proportions.clone() };
    Arc::new(Division::of(&quotas, &model.model).of_version(version.version))
}

/// The weights by versions of the counts, those of the selection with their share, and of what is expected of losses: each target is
/// weighed against what it has selected itself.
///
/// # Panics
/// If the counts are of another featuriser or other targets: those of the model are asked for, or were when a window was scored.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::features::{Featuriser, NgramHash};
    use crate::pipeline::{Daemon, FullCatalog};
    use crate::score::{NgramCounts, Side};

    fn model(featuriser: Featuriser, targets: &[&str]) -> LoadedModel {
        let side = |first: u64| Side::of(NgramCounts::from_vec((first..).take(featuriser.buckets as usize).collect()));
        let target =
            |name: &&str| Target { name: (*name).to_owned(), proportion: 1.0 / targets.len() as f64, side: side(3) };
        let one = Model::of_one_target(featuriser, side(2), side(1)).unwrap();
        let model = Model { targets: targets.iter().map(target).collect(), ..one };
        LoadedModel::from_bytes("model", model.validated().unwrap().to_bytes()).unwrap()
    }

    /// A worker of a pipeline with this model; the first one has opened the catalog.
    async fn worker(model: LoadedModel, catalog: Option<&Arc<dyn FullCatalog>>) -> (Shared, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let toml = format!(
            "sink.url = \"{path}/out\"\ncatalog.url = \"sqlite://{path}/catalog.db\"\nhttp.listen = \"127.0.0.1:0\"\n\
             model.raw = \"adaptive\"\nmodel.against = \"selected\"\nmodel.selected_share = 0.5"
        );
        let config = Config::from_toml(&toml, []).unwrap();
        let daemon = Daemon::open(config, model).await.unwrap();
        let mut shared = Arc::into_inner(daemon.shared).expect("nobody else has it");
        if let Some(catalog) = catalog {
            shared.catalog = catalog.clone();
        }
        let Shared { catalog, config, model, .. } = &shared;
        catalog.register(&config.pipeline, &model.id, &model.bytes).await.unwrap();
        (shared, folder)
    }

    fn versions(in_force: &InForce) -> (Option<i64>, Option<i64>) {
        let version = in_force.weight.version;
        (version.raw, version.selected.map(|selected| selected.version))
    }

    /// Nobody's weights are of another one's counts, whoever begins when, and nothing panics.
    #[tokio::test]
    async fn workers_with_other_models_weigh_with_counts_of_their_own() {
        let reference = Featuriser { buckets: 16, ..Featuriser::default() };
        let fast = Featuriser { hash: NgramHash::Fast, ..reference };
        let others = [
            model(fast, &["code", "math"]),
            model(Featuriser { buckets: 8, ..reference }, &["code", "math"]),
            model(reference, &["code", "maths"]),
            model(reference, &["code"]),
        ];
        let (old, _folder) = worker(model(reference, &["code", "math"]), None).await;
        let begun = begin(&old).await.unwrap();
        assert_eq!((versions(&begun), begun.is_beside_others), ((Some(0), Some(0)), false));
        let known = newest(&old, &begun).await.unwrap().unwrap();
        assert!(known.is_same(&begun));
        let weigh = |in_force: &InForce| in_force.weight.weight.add(0.0, &[1, 2, 3]);
        for (i, other) in (1..).zip(others) {
            let is_of_other_ngrams = other.model.featuriser != reference;
            let (new, _folder) = worker(other, Some(&old.catalog)).await;
            let theirs = begin(&new).await.unwrap();
            // Targets have another name, but n-grams are the same: one raw distribution for both.
            assert_eq!(versions(&theirs), (Some(if is_of_other_ngrams { i } else { 0 }), Some(i)));
            let refreshed = newest(&new, &theirs).await.unwrap().unwrap();
            assert_eq!(versions(&refreshed), versions(&theirs));
            for _ in 0..2 {
                let known = newest(&old, &known).await.unwrap().unwrap();
                assert_eq!((versions(&known), known.is_beside_others), (versions(&begun), true));
                assert_eq!((weigh(&known), known.is_same(&begun)), (weigh(&begun), false));
                // A new session of the old worker begins nothing anew.
                assert_eq!(versions(&begin(&old).await.unwrap()), versions(&begun));
            }
            assert_eq!(versions(&newest(&new, &theirs).await.unwrap().unwrap()), versions(&theirs));
        }
    }

    /// A worker whose counts are not there, however that came to be, begins them instead of taking others.
    #[tokio::test]
    async fn counts_that_are_not_there_begin_beside_others() {
        let reference = Featuriser { buckets: 16, ..Featuriser::default() };
        let (first, _folder) = worker(model(reference, &[""]), None).await;
        let begun = begin(&first).await.unwrap();
        let other = model(Featuriser { buckets: 8, ..reference }, &[""]);
        let (second, _other_folder) = worker(other, Some(&first.catalog)).await;
        let known = newest(&second, &begun).await.unwrap().unwrap();
        assert_eq!((versions(&known), known.is_beside_others), ((Some(1), Some(1)), true));
    }
}
