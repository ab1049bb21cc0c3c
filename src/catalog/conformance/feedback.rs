//! Feedback: each report counts once, is joined to what was published, and becomes versions with publications.

use std::collections::BTreeMap;

use super::*;
use crate::features::{BucketList, Featuriser};
use crate::feedback::{DocumentFacts, FeedbackSettings, FeedbackState, LossOutcome, Mixing, OdmPolicy, document_key};
use crate::record::{LossReport, SampleLoss};

every_catalog! {
    feedback_begins_once_and_anew_for_another_featuriser
    whoever_is_left_alone_begins_anew
    reports_count_once_with_their_offsets
    a_zombie_reports_nothing
    publications_bring_documents_and_make_versions
    only_the_newest_documents_are_remembered
    what_was_reported_of_a_document_survives_its_second_publication
    racing_batches_have_one_winner_and_race_publications_without_loss
    state_is_what_the_pure_core_says
}

const BUCKETS: u32 = 4;

const SETTINGS: FeedbackSettings =
    FeedbackSettings { half_life: 100.0, mixing: Some(Mixing::Odm(OdmPolicy::Grouped)), floor: 0.01 };

fn featuriser(buckets: u32) -> Featuriser {
    Featuriser { buckets, ..Featuriser::default() }
}

fn losses(partition: i32) -> TopicPartition {
    TopicPartition::new("losses", partition)
}

fn facts(i: u32) -> DocumentFacts {
    let mut ngrams = BucketList::new(1 << 16);
    ngrams.extend(&[i % BUCKETS, (i / 2) % BUCKETS]);
    DocumentFacts {
        source: (!i.is_multiple_of(3)).then(|| format!("s{}", i % 3)),
        stratum: (i % 10) as u8,
        inclusion_probability: 1.0 / 3.0,
        text_bytes: 100,
        ngrams,
    }
}

fn documents(numbers: std::ops::Range<u32>) -> Vec<(i64, DocumentFacts)> {
    numbers.map(|i| (document_key(&format!("d{i}")), facts(i))).collect()
}

fn report(step: u64, ids: std::ops::Range<u32>) -> LossReport {
    let losses = ids.map(|i| SampleLoss { id: format!("d{i}"), loss: 2.0 + f64::from(i % 7), n_tokens: Some(20) });
    LossReport {
        run_id: "run".into(),
        step,
        rank: 0,
        world_size: 1,
        selection_epoch: None,
        manifest_sequence: None,
        losses: losses.collect(),
        bad: Vec::new(),
    }
}

/// Owns a partition of the losses' topic, from offset 0.
async fn begun(catalog: &SqlCatalog, partition: i32) -> i64 {
    catalog.register(PIPELINE, &model_id(), b"model").await.unwrap();
    catalog.begin_feedback(PIPELINE, &featuriser(BUCKETS), &SETTINGS).await.unwrap();
    let claim = catalog.claim(PIPELINE, &[losses(partition)], "me").await.unwrap().remove(0);
    catalog.start(PIPELINE, &claim.at, claim.owner_epoch, 0).await.unwrap();
    claim.owner_epoch
}

async fn take(
    catalog: &SqlCatalog,
    (partition, from, to, owner_epoch): (i32, i64, i64, i64),
    reports: &[LossReport],
) -> Result<FeedbackTaken, CatalogError> {
    let advances = [Advance { at: losses(partition), interval: Interval { from, to }, owner_epoch }];
    let request =
        FeedbackRequest { pipeline: PIPELINE, advances: &advances, reports, n_bad_reports: 1, settings: SETTINGS };
    catalog.take_feedback(&request).await
}

/// Publishes a window of partition 0 with these documents.
async fn publish_documents(
    catalog: &SqlCatalog,
    shard: &str,
    at: (i64, i64),
    documents: &[(i64, DocumentFacts)],
    max_documents: u64,
    history_bytes: u64,
) -> Result<Option<i64>, CatalogError> {
    let of = (model_id(), featuriser(BUCKETS));
    publish_documents_of(of, catalog, shard, at, documents, max_documents, history_bytes).await
}

/// The same of another model.
async fn publish_documents_of(
    (model, featuriser): (ModelId, Featuriser),
    catalog: &SqlCatalog,
    shard: &str,
    (from, owner_epoch): (i64, i64),
    documents: &[(i64, DocumentFacts)],
    max_documents: u64,
    history_bytes: u64,
) -> Result<Option<i64>, CatalogError> {
    let manifest = ShardManifest { model, ..manifest(shard, vec![window(0, from, from + 10, 1)]) };
    let advances = [advance(0, from, from + 10, owner_epoch)];
    catalog.stage(PIPELINE, shard, manifest.path.as_deref()).await.unwrap();
    let feedback = Some(FeedbackAddition { featuriser, documents, max_documents, settings: SETTINGS, history_bytes });
    let request = PublishRequest {
        manifest: &manifest,
        advances: &advances,
        counts: &[],
        feedback,
        clusters: None,
        edges: None,
        forward_to: None,
    };
    catalog.publish(&request).await
}

async fn newest(catalog: &SqlCatalog) -> FeedbackVersion {
    catalog.newest_feedback(PIPELINE).await.unwrap().unwrap()
}

async fn counted(catalog: &SqlCatalog, outcome: &str) -> u64 {
    let summary = catalog.feedback_summary(PIPELINE).await.unwrap().unwrap();
    summary.losses.get(outcome).copied().unwrap_or(0)
}

async fn feedback_begins_once_and_anew_for_another_featuriser(catalog: &SqlCatalog) {
    catalog.register(PIPELINE, &model_id(), b"model").await.unwrap();
    assert_eq!(catalog.newest_feedback(PIPELINE).await.unwrap(), None);
    assert_eq!(catalog.feedback_summary(PIPELINE).await.unwrap(), None);
    let begin = async |buckets| catalog.begin_feedback(PIPELINE, &featuriser(buckets), &SETTINGS).await.unwrap();
    let first = begin(BUCKETS).await;
    assert_eq!((first.version, first.quotas.len()), (0, 0));
    assert_eq!(begin(BUCKETS).await, first);
    let epoch = owned(catalog, 0).await;
    publish_documents(catalog, "s", (100, epoch), &documents(0..3), 10, 1 << 20).await.unwrap();
    assert_eq!(begin(BUCKETS).await, first);
    assert_eq!(begin(BUCKETS + 1).await.version, 1);
    // A worker that still has the model before publishes: its documents have no place here.
    publish_documents(catalog, "old", (110, epoch), &documents(10..12), 10, 1 << 20).await.unwrap();
    let claim = catalog.claim(PIPELINE, &[losses(0)], "me").await.unwrap().remove(0);
    catalog.start(PIPELINE, &losses(0), claim.owner_epoch, 0).await.unwrap();
    let reports = [report(1, 0..3), report(2, 10..12)];
    let taken = take(catalog, (0, 0, 1, claim.owner_epoch), &reports).await.unwrap();
    let expected = [(LossOutcome::Stale, 3), (LossOutcome::UnknownId, 2)];
    assert_eq!(taken.outcomes, BTreeMap::from(expected), "published in the epoch before, or not remembered");
}

/// The last session that began during a rollout was of a worker with the model before. Once it is gone the others go on.
async fn whoever_is_left_alone_begins_anew(catalog: &SqlCatalog) {
    let (mine, epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    let other = (ModelId::of(b"other"), featuriser(BUCKETS + 1));
    catalog.register(PIPELINE, &other.0, b"other").await.unwrap();
    catalog.begin_feedback(PIPELINE, &other.1, &SETTINGS).await.unwrap();
    let at = |i: u32| (100 + 10 * i64::from(i), epoch);
    let version_of = |version: &FeedbackVersion| (version.version, *version.expected.featuriser());
    for i in 0..30 {
        let (name, documents) = (format!("s{i}"), documents(i..i + 1));
        if i == 9 {
            publish_documents_of(other.clone(), catalog, &name, at(i), &documents, 100, 1 << 20).await.unwrap();
        } else {
            publish_documents(catalog, &name, at(i), &documents, 100, 1 << 20).await.unwrap();
        }
        // The sixteenth after the other one's.
        let expected = if i < 25 { (1, other.1) } else { (2, featuriser(BUCKETS)) };
        assert_eq!(version_of(&newest(catalog).await), expected, "publication {i}");
    }
    let taken = take(catalog, (0, 0, 1, mine), &[report(1, 0..30)]).await.unwrap();
    let expected = [(LossOutcome::Counted, 5), (LossOutcome::Stale, 1), (LossOutcome::UnknownId, 24)];
    assert_eq!(taken.outcomes, BTreeMap::from(expected));
}

async fn reports_count_once_with_their_offsets(catalog: &SqlCatalog) {
    let (mine, documents_epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    publish_documents(catalog, "s", (100, documents_epoch), &documents(0..250), 1_000, 1 << 20).await.unwrap();
    let first = take(catalog, (0, 0, 5, mine), &[report(1, 0..200), report(2, 200..260)]).await.unwrap();
    assert_eq!(first.outcomes, BTreeMap::from([(LossOutcome::Counted, 250), (LossOutcome::UnknownId, 10)]));
    assert_eq!((first.summary.n_reports, first.summary.n_bad_reports), (2, 1));
    // The answer was lost: whoever sends the same interval again is refused, and nothing counts twice.
    let again = take(catalog, (0, 0, 5, mine), &[report(1, 0..200), report(2, 200..260)]).await;
    assert!(matches!(again, Err(CatalogError::Fenced { .. })), "{again:?}");
    assert_eq!(counted(catalog, "counted").await, 250);
    // The trainer has sent them twice: another interval, the same steps; and one that goes on.
    let copies = take(catalog, (0, 5, 9, mine), &[report(1, 0..200), report(3, 0..2), report(2, 250..260)]).await;
    let expected = [(LossOutcome::Counted, 2), (LossOutcome::UnknownId, 10), (LossOutcome::Duplicate, 200)];
    assert_eq!(copies.unwrap().outcomes, BTreeMap::from(expected));
    let late = take(catalog, (0, 9, 10, mine), &[report(2, 0..1), report(2_000, 1..2), report(4, 3..4)]).await.unwrap();
    let expected = [(LossOutcome::Counted, 1), (LossOutcome::OutOfOrder, 1), (LossOutcome::TooOld, 1)];
    assert_eq!(late.outcomes, BTreeMap::from(expected));
    let at = catalog.checkpoints(PIPELINE).await.unwrap().into_iter().find(|c| c.topic == "losses").unwrap();
    assert_eq!(at.next_offset, Some(10));
}

async fn a_zombie_reports_nothing(catalog: &SqlCatalog) {
    let zombie = begun(catalog, 0).await;
    let owner = catalog.claim(PIPELINE, &[losses(0)], "new").await.unwrap().remove(0).owner_epoch;
    let before = catalog.feedback_summary(PIPELINE).await.unwrap();
    let refused = take(catalog, (0, 0, 5, zombie), &[report(1, 0..5)]).await;
    assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{refused:?}");
    assert_eq!(catalog.feedback_summary(PIPELINE).await.unwrap(), before);
    take(catalog, (0, 0, 5, owner), &[report(1, 0..5)]).await.unwrap();
    assert_eq!(counted(catalog, "unknown_id").await, 5);
}

async fn publications_bring_documents_and_make_versions(catalog: &SqlCatalog) {
    let (mine, epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    let bytes = newest(catalog).await.expected.to_bytes().len() as u64;
    publish_documents(catalog, "s0", (100, epoch), &documents(0..50), 1_000, bytes * 2).await.unwrap();
    assert_eq!(newest(catalog).await.version, 0, "nothing was reported");
    let mut versions = vec![newest(catalog).await];
    for i in 1..5u32 {
        take(catalog, (0, i64::from(i) - 1, i64::from(i), mine), &[report(u64::from(i), 0..50)]).await.unwrap();
        assert_eq!(newest(catalog).await.version, i64::from(i) - 1, "versions come with publications only");
        let from = 100 + 10 * i64::from(i);
        publish_documents(catalog, &format!("s{i}"), (from, epoch), &[], 1_000, bytes * 2).await.unwrap();
        versions.push(newest(catalog).await);
    }
    assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let quotas = &versions[4].quotas;
    assert_eq!(quotas.keys().map(String::as_str).collect::<Vec<_>>(), ["s1", "s2"]);
    assert!(quotas.values().sum::<f64>() < 0.99, "documents without a source have the rest");
    for (i, version) in versions.iter().enumerate() {
        let kept = catalog.feedback_version(PIPELINE, i as i64).await.unwrap();
        assert_eq!(kept, (i >= 3).then(|| version.clone()), "version {i}");
    }
    // A publication that is refused changes nothing.
    take(catalog, (0, 4, 5, mine), &[report(9, 0..50)]).await.unwrap();
    let refused = publish_documents(catalog, "z", (100, epoch), &documents(60..70), 1_000, bytes).await;
    assert!(matches!(refused, Err(CatalogError::Fenced { .. })));
    assert_eq!(newest(catalog).await, versions[4]);
    assert_eq!(
        take(catalog, (0, 5, 6, mine), &[report(10, 60..61)]).await.unwrap().outcomes,
        BTreeMap::from([(LossOutcome::UnknownId, 1)])
    );
}

async fn only_the_newest_documents_are_remembered(catalog: &SqlCatalog) {
    let (mine, epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    for (i, numbers) in [0..150, 150..300, 300..310].into_iter().enumerate() {
        let from = 100 + 10 * i as i64;
        let documents = documents(numbers);
        publish_documents(catalog, &format!("s{i}"), (from, epoch), &documents, 200, 1 << 20).await.unwrap();
    }
    let taken = take(catalog, (0, 0, 1, mine), &[report(1, 0..310)]).await.unwrap();
    assert_eq!(taken.outcomes, BTreeMap::from([(LossOutcome::Counted, 200), (LossOutcome::UnknownId, 110)]));
}

async fn what_was_reported_of_a_document_survives_its_second_publication(catalog: &SqlCatalog) {
    let (mine, epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    let twice = [documents(0..2), documents(1..3)].concat();
    publish_documents(catalog, "s0", (100, epoch), &twice, 100, 1 << 20).await.unwrap();
    take(catalog, (0, 0, 1, mine), &[report(1, 0..3)]).await.unwrap();
    publish_documents(catalog, "s1", (110, epoch), &documents(0..3), 100, 1 << 20).await.unwrap();
    let taken = take(catalog, (0, 1, 2, mine), &[report(1, 0..3)]).await.unwrap();
    assert_eq!(taken.outcomes, BTreeMap::from([(LossOutcome::Duplicate, 3)]));
}

async fn racing_batches_have_one_winner_and_race_publications_without_loss(catalog: &SqlCatalog) {
    let (a, b, epoch) = (begun(catalog, 0).await, begun(catalog, 1).await, owned(catalog, 0).await);
    publish_documents(catalog, "s", (100, epoch), &documents(0..40), 1_000, 1 << 20).await.unwrap();
    for round in 0..6u32 {
        let step = u64::from(round) + 1;
        let (from, to) = (i64::from(round), i64::from(round) + 1);
        let (reports, others) = ([report(step, 0..20)], [report(step, 20..40)]);
        let (name, more) = (format!("s{round}"), documents(40 + 10 * round..50 + 10 * round));
        let at = (110 + 10 * i64::from(round), epoch);
        let (one, same, other, published) = tokio::join!(
            take(catalog, (0, from, to, a), &reports),
            take(catalog, (0, from, to, a), &reports),
            take(catalog, (1, from, to, b), &others),
            publish_documents(catalog, &name, at, &more, 1_000, 1 << 20),
        );
        assert!(one.is_ok() != same.is_ok(), "{one:?} {same:?}");
        assert!(matches!(one.and(same), Err(CatalogError::Fenced { .. })));
        assert_eq!(other.unwrap().outcomes[&LossOutcome::Counted], 20);
        published.unwrap();
    }
    assert_eq!((counted(catalog, "counted").await, counted(catalog, "duplicate").await), (6 * 40, 0));
    let taken = take(catalog, (0, 6, 7, a), &[report(100, 0..100)]).await.unwrap();
    assert_eq!(taken.outcomes, BTreeMap::from([(LossOutcome::Counted, 100)]), "no publication lost its documents");
}

/// The catalog adds nothing and loses nothing: the version is that of the same reports taken in memory.
async fn state_is_what_the_pure_core_says(catalog: &SqlCatalog) {
    let (mine, epoch) = (begun(catalog, 0).await, owned(catalog, 0).await);
    let published = documents(0..120);
    publish_documents(catalog, "s0", (100, epoch), &published, 1_000, 1 << 20).await.unwrap();
    let mut state = FeedbackState::new(featuriser(BUCKETS), 0, &SETTINGS);
    let mut known = crate::feedback::Facts::default();
    for (key, facts) in published {
        let document = crate::feedback::KnownDocument { facts, epoch: 0, reported: None };
        known.documents.insert(key, document);
    }
    for step in 0..4u64 {
        let reports = [report(step, 0..70), report(step, 60..130)];
        let taken = take(catalog, (0, step as i64, step as i64 + 1, mine), &reports).await.unwrap();
        assert_eq!(taken.outcomes, state.take(&reports, 1, &mut known, &SETTINGS));
        assert_eq!(taken.summary, state.summary());
    }
    publish_documents(catalog, "s1", (110, epoch), &[], 1_000, 1 << 20).await.unwrap();
    state.end_turn(&SETTINGS);
    let expected = FeedbackVersion { version: 1, expected: state.predictor().expected(), quotas: state.quotas() };
    assert_eq!(newest(catalog).await, expected);
}
