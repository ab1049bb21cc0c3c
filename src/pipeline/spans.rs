//! What the daemon's work is called in traces: one trace for each publication, claim and look at the catalog. Never one for a
//! document or a window.
//!
//! A span that can fail has the two fields that [`crate::telemetry::failed`] sets.

use std::collections::BTreeSet;

use opentelemetry::Context;
use tracing::{Span, field, info_span};

use super::Shared;
use super::open_shard::OpenShard;
use crate::manifest::ShardManifest;
use crate::publish::Step;
use crate::record::TopicPartition;
use crate::telemetry::continue_from;
use crate::window::WindowSummary;

/// Of the windows of a shard, so many are named in its trace, and of the partitions of a claim.
const MAX_NAMES: usize = 100;

/// One publication: what is known before its files are ended.
pub(super) fn publication(shard: &OpenShard, shared: &Shared) -> Span {
    info_span!(
        "publication",
        shard = shard.id(),
        pipeline = shared.config.pipeline,
        windows = field::Empty,
        window_ids = field::Empty,
        partitions = field::Empty,
        documents = field::Empty,
        dead_letters = field::Empty,
        rows = field::Empty,
        bytes = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty
    )
}

/// And what is known after.
pub(super) fn describe(span: &Span, manifest: &ShardManifest) {
    if span.is_disabled() {
        return;
    }
    let windows = &manifest.windows;
    let ids: Vec<_> = windows.iter().take(MAX_NAMES).map(WindowSummary::id).collect();
    let partitions: BTreeSet<_> = windows.iter().map(|window| &window.at).collect();
    span.record("windows", windows.len());
    span.record("window_ids", ids.join(" "));
    span.record("partitions", partitions.len());
    span.record("documents", windows.iter().map(|window| window.n_selected + window.n_rejected).sum::<u64>());
    span.record("dead_letters", windows.iter().map(|window| window.n_dead_letters).sum::<u64>());
    span.record("rows", manifest.rows);
    span.record("bytes", manifest.bytes);
}

pub(super) fn step(step: Step) -> Span {
    let name = match step {
        Step::Stage => "stage",
        Step::Upload => "upload",
        Step::ReadBack => "read_back",
        Step::Commit | Step::Finished | Step::Abandon => "commit",
    };
    info_span!("step", otel.name = name, otel.status_code = field::Empty, otel.status_description = field::Empty)
}

pub(super) fn refresh() -> Span {
    info_span!("catalog refresh", otel.status_code = field::Empty, otel.status_description = field::Empty)
}

/// The end of the Parquet files.
pub(super) fn write() -> Span {
    info_span!("write", otel.status_code = field::Empty, otel.status_description = field::Empty)
}

/// Offsets for the group.
pub(super) fn mirror(partitions: usize) -> Span {
    info_span!("mirror", partitions)
}

/// In the trace of a publication that has ended.
pub(super) fn manifest(publication: &Context) -> Span {
    let span = info_span!(
        "manifest",
        attempts = field::Empty,
        lines = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty
    );
    continue_from(&span, publication);
    span
}

pub(super) fn claim(partitions: &[TopicPartition], shared: &Shared) -> Span {
    let span = info_span!(
        "claim",
        pipeline = shared.config.pipeline,
        owner = shared.owner,
        partitions = partitions.len(),
        partition_ids = field::Empty,
        otel.status_code = field::Empty,
        otel.status_description = field::Empty
    );
    if !span.is_disabled() {
        let ids: Vec<_> = partitions.iter().take(MAX_NAMES).map(ToString::to_string).collect();
        span.record("partition_ids", ids.join(" "));
    }
    span
}
