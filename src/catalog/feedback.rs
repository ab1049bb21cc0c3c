//! What trainers report: taken once, joined to published documents, and versioned for selection.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{Advance, CatalogError};
use crate::features::Featuriser;
use crate::feedback::{DocumentFacts, FeedbackSettings, FeedbackSummary, LossOutcome};
use crate::record::LossReport;
use crate::score::ExpectedLoss;

/// Reports of an interval of each of some partitions of the losses' topic.
#[derive(Debug, Clone, Copy)]
pub struct FeedbackRequest<'a> {
    pub pipeline: &'a str,
    pub advances: &'a [Advance],
    /// In the order in which they are taken.
    pub reports: &'a [LossReport],
    /// Records of the intervals that are no reports.
    pub n_bad_reports: u64,
    pub settings: FeedbackSettings,
}

/// What came of them.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackTaken {
    pub outcomes: BTreeMap<LossOutcome, u64>,
    pub summary: FeedbackSummary,
}

/// What a publication adds: documents that losses will be joined to. It also makes the next version, if anything was reported since
/// the one before.
#[derive(Debug, Clone, Copy)]
pub struct FeedbackAddition<'a> {
    /// Of their n-grams. Where feedback is taken of another featuriser, since a worker with another model came later, there is no
    /// place for them; unless that one is gone, so that nothing but this publication's model was published for a while: then it
    /// begins in a new selection epoch.
    pub featuriser: Featuriser,
    /// By their keys; of two with the same key the later one stays.
    pub documents: &'a [(i64, DocumentFacts)],
    /// Of all publications, so many of the newest documents are remembered.
    pub max_documents: u64,
    pub settings: FeedbackSettings,
    /// Older versions are forgotten beyond this; the newest one is always kept.
    pub history_bytes: u64,
}

/// What selection takes of feedback.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackVersion {
    pub version: i64,
    pub expected: ExpectedLoss,
    /// Shares by source; empty where there are none.
    pub quotas: BTreeMap<String, f64>,
}

/// Documents and versions come with publications: see [`FeedbackAddition`] in [`super::PublishRequest`].
#[async_trait]
pub trait FeedbackCatalog: Send + Sync {
    /// Gives the newest version; begins where there is none, and in a new selection epoch for another featuriser.
    async fn begin_feedback(
        &self,
        pipeline: &str,
        featuriser: &Featuriser,
        settings: &FeedbackSettings,
    ) -> Result<FeedbackVersion, CatalogError>;

    /// Takes reports in one transaction with the checkpoints of their partitions: for every advance, the checkpoint must stand at
    /// `interval.from` with our epoch, else nothing changes and the answer is [`CatalogError::Fenced`].
    async fn take_feedback(&self, request: &FeedbackRequest<'_>) -> Result<FeedbackTaken, CatalogError>;

    /// `None`: the pipeline has never taken feedback.
    async fn feedback_summary(&self, pipeline: &str) -> Result<Option<FeedbackSummary>, CatalogError>;

    async fn newest_feedback(&self, pipeline: &str) -> Result<Option<FeedbackVersion>, CatalogError>;

    /// `None`: there is no such version, or it has been forgotten.
    async fn feedback_version(&self, pipeline: &str, version: i64) -> Result<Option<FeedbackVersion>, CatalogError>;
}
