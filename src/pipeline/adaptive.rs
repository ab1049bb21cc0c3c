//! The weights in force: of the fitted model, or of the newest version of counts that follow the stream.
//!
//! A publication makes the next version in its own transaction; afterwards the publisher reads it back and the worker
//! finds it at its next batch. Windows that are open keep the version that they opened with.

use std::sync::Arc;

use super::{LoadedModel, Shared};
use crate::catalog::{CatalogError, CountsKind, CountsVersion};
use crate::config::RawDistribution;
use crate::score::{DecayedCounts, ImportanceWeight, Model, VersionedWeight, kl_divergence};

/// The weights that a session begins with.
pub(super) async fn begin(shared: &Shared) -> Result<Arc<VersionedWeight>, CatalogError> {
    let Shared { config, model, catalog, .. } = shared;
    let RawDistribution::Adaptive { prior_ngrams, .. } = config.raw else {
        return Ok(VersionedWeight::pinned(model.weight.clone()));
    };
    let fitted = model.model.raw.counts.probabilities();
    let prior = DecayedCounts::prior(model.model.featuriser, &fitted, prior_ngrams);
    let version = catalog.begin_counts(&config.pipeline, CountsKind::Raw, &prior).await?;
    tracing::info!("raw distribution: adaptive, going on with version {}", version.version);
    Ok(in_force(shared, &version))
}

/// The newest weights, after a publication; `None` where the raw distribution is pinned.
pub(super) async fn newest(shared: &Shared) -> Result<Option<Arc<VersionedWeight>>, CatalogError> {
    let Shared { config, catalog, .. } = shared;
    if config.raw == RawDistribution::Pinned {
        return Ok(None);
    }
    let version = catalog.newest_counts(&config.pipeline, CountsKind::Raw).await?;
    Ok(version.map(|version| in_force(shared, &version)))
}

fn in_force(shared: &Shared, version: &CountsVersion) -> Arc<VersionedWeight> {
    let Shared { model, telemetry, .. } = shared;
    let raw = version.counts.probabilities();
    let fitted = model.model.raw.counts.probabilities();
    telemetry.metrics.raw_version.set(version.version);
    telemetry.metrics.raw_drift.set(kl_divergence(&raw, &fitted, model.model.smoothing));
    telemetry.status().raw_version = Some(version.version);
    versioned_weight(model, version)
}

/// The weights by a version of the counts.
pub(super) fn versioned_weight(model: &LoadedModel, version: &CountsVersion) -> Arc<VersionedWeight> {
    let raw = version.counts.probabilities();
    let Model { featuriser, smoothing, .. } = model.model;
    let weight = ImportanceWeight::new(featuriser, model.target.probabilities(), &raw, smoothing);
    Arc::new(VersionedWeight { raw_version: Some(version.version), weight })
}
