//! What every catalog must do. A new implementation is one more line in [`every_catalog`].

mod schedules;

use std::sync::Arc;

use super::*;
use crate::config::CatalogUrl;
use crate::manifest::DerivedSettings;
use crate::score::{ExpectedLossVersion, SelectedVersion};
use crate::select::{
    Diagnostics, LossSource, Quantiles, Quotas, SelectorKind, SelectorSettings, SensitivityPool, SketchVersion,
    SourceCounts,
};
use crate::window::{
    CloseReason, CoverageSummary, PointSource, PoolSensitivities, PoolStrata, SensitivitySummary, SpreadSummary,
    StratumSummary, TargetSummary, TokenTurn, TurnSummary, WindowSummary,
};

/// A catalog under test, and what must live as long as it.
struct Subject {
    catalog: Arc<SqlCatalog>,
    keep: Keep,
}

enum Keep {
    Folder(tempfile::TempDir),
    /// A database of its own on a server, dropped at the end.
    Database {
        server: sqlx::PgPool,
        name: String,
    },
}

impl Subject {
    async fn of(url: &CatalogUrl, keep: Keep) -> Self {
        let catalog = SqlCatalog::open(url, Access::Write).await.unwrap();
        assert_eq!(catalog.migrate().await.unwrap(), 16);
        Subject { catalog: Arc::new(catalog), keep }
    }

    async fn end(self) {
        if let Keep::Database { server, name } = self.keep {
            self.catalog.close().await;
            let drop = format!("DROP DATABASE {name}");
            sqlx::query(sqlx::AssertSqlSafe(drop)).execute(&server).await.unwrap();
        }
    }
}

async fn sqlite() -> Option<Subject> {
    let folder = tempfile::tempdir().unwrap();
    let url = CatalogUrl::Sqlite(folder.path().join("catalog.db"));
    Some(Subject::of(&url, Keep::Folder(folder)).await)
}

/// On the server of `POSTGRES_URL`; without one there is nothing to test.
async fn postgres() -> Option<Subject> {
    let (url, keep) = empty_database().await?;
    Some(Subject::of(&url, keep).await)
}

async fn empty_database() -> Option<(CatalogUrl, Keep)> {
    let Ok(server_url) = std::env::var("POSTGRES_URL") else {
        eprintln!("skipped: POSTGRES_URL names no server");
        return None;
    };
    let server = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect(&server_url).await.unwrap();
    let name = format!("test_{}", uuid::Uuid::now_v7().simple());
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&server).await.unwrap();
    let mut url: url::Url = server_url.parse().unwrap();
    url.set_path(&name);
    Some((CatalogUrl::Postgres(url), Keep::Database { server, name }))
}

macro_rules! every_catalog {
    ($($test:ident)*) => {
        every_catalog! { on_sqlite, sqlite: $($test)* }
        every_catalog! { on_postgres, postgres: $($test)* }
    };
    ($module:ident, $open:ident: $($test:ident)*) => {
        mod $module {
            $(#[tokio::test]
            async fn $test() {
                if let Some(subject) = super::$open().await {
                    super::$test(&*subject.catalog).await;
                    subject.end().await;
                }
            })*
        }
    };
}

// Where the macro is known.
mod clusters;
mod counts;
mod edges;
mod feedback;
mod gaps;
mod migrations;
mod replay;

every_catalog! {
    claims_raise_the_epoch_and_keep_the_offset
    start_is_stored_once_and_only_by_the_owner
    publication_moves_everything_together
    dead_letters_wait_until_they_are_forwarded
    sequences_have_no_gaps_and_skip_empty_progress
    a_zombie_changes_nothing
    a_stale_interval_changes_nothing
    a_shard_is_published_once_and_only_when_staged
    what_divided_a_window_is_kept
    one_fenced_partition_rolls_the_others_back
    racing_publications_of_one_interval_have_one_winner
    pipelines_do_not_touch_each_other
    what_was_abandoned_is_never_published
}

const PIPELINE: &str = "p";

fn model_id() -> ModelId {
    ModelId::of(b"model")
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("docs", partition)
}

async fn owned<C: Catalog>(catalog: &C, partition: i32) -> i64 {
    owned_by(catalog, PIPELINE, partition).await
}

async fn owned_by<C: Catalog>(catalog: &C, pipeline: &str, partition: i32) -> i64 {
    catalog.register(pipeline, &model_id(), b"model").await.unwrap();
    let claims = catalog.claim(pipeline, &[at(partition)], "me").await.unwrap();
    catalog.start(pipeline, &at(partition), claims[0].owner_epoch, 100).await.unwrap();
    claims[0].owner_epoch
}

fn window(partition: i32, from: i64, to: i64, n_selected: u64) -> WindowSummary {
    WindowSummary {
        at: at(partition),
        interval: Interval { from, to },
        closed_by: CloseReason::Documents,
        n_records: (to - from) as u64,
        n_selected,
        n_rejected: (to - from) as u64 - n_selected,
        n_too_short: 0,
        n_filtered: Some(2),
        n_dead_letters: 0,
        payload_bytes: 10,
        threshold: Some(-1.5),
        kl_reduction: Some(0.1),
        random_kl_reduction: Some(-1.0 / 3.0),
        raw_version: Some(17),
        against_selected: Some(SelectedVersion { version: 3, share: 0.75 }),
        expected_loss: Some(ExpectedLossVersion { version: 5, coefficient: -0.25 }),
        quota_version: Some(6),
        diagnostics: Some(Diagnostics {
            effective_sample_size: Some(100.000_030_639_418_81),
            log_weights: Quantiles::of(vec![-0.1, 0.2, 0.3]),
            ..Diagnostics::default()
        }),
        turns: Vec::new(),
        targets: Vec::new(),
        spread: Some(SpreadSummary {
            n_sampled: 32,
            n_selected: 16,
            auc_pr: 1.0 / 3.0,
            auc_pr_of_random: 0.1 + 0.2,
            skips_itself: true,
            source_entropy_of_documents: 0.7,
            source_entropy_of_selected: 0.0,
        }),
        coverage: None,
        sensitivity: None,
    }
}

fn manifest(shard: &str, windows: Vec<WindowSummary>) -> ShardManifest {
    let rows = windows.iter().map(|w| w.n_selected).sum();
    let selector = SelectorSettings {
        kind: SelectorKind::ImportanceResampling,
        fraction: "0.1".parse().unwrap(),
        unit: Default::default(),
        temperature: 1.0,
        length_normalise: false,
        min_tokens: 1,
        seed: 0,
        quotas: Quotas::default(),
        loss: None,
        filter: None,
        holdout: None,
        coverage_sample: 32,
        coverage: None,
        sensitivity: None,
    };
    ShardManifest {
        shard: shard.into(),
        pipeline: PIPELINE.into(),
        path: (rows > 0).then(|| format!("shards/{shard}.parquet")),
        rows,
        bytes: rows * 10,
        digest: (rows > 0).then(|| "sha256:00".into()),
        model: model_id(),
        selector,
        columns: DerivedSettings::default(),
        tokenizer: None,
        log_importance_weights: None,
        sources: SourceCounts::default().top(20),
        windows,
        validation: None,
        shuffled: true,
        dead_letters: None,
        created_at_ms: 0,
    }
}

fn dead_letter_file(shard: &str) -> DeadLetterFile {
    DeadLetterFile { path: format!("dead-letters/{shard}.parquet"), rows: 1, bytes: 9, digest: "sha256:01".into() }
}

fn advance(partition: i32, from: i64, to: i64, owner_epoch: i64) -> Advance {
    Advance { at: at(partition), interval: Interval { from, to }, owner_epoch }
}

async fn publish<C: Catalog>(
    catalog: &C,
    manifest: &ShardManifest,
    advances: &[Advance],
) -> Result<Option<i64>, CatalogError> {
    catalog.stage(&manifest.pipeline, &manifest.shard, manifest.path.as_deref()).await.unwrap();
    catalog
        .publish(&PublishRequest {
            manifest,
            advances,
            counts: &[],
            feedback: None,
            clusters: None,
            edges: None,
            forward_to: None,
        })
        .await
}

async fn next_offset<C: CatalogReader>(catalog: &C, partition: i32) -> Option<i64> {
    let checkpoints = catalog.checkpoints(PIPELINE).await.unwrap();
    checkpoints.iter().find(|c| c.partition == partition).unwrap().next_offset
}

async fn claims_raise_the_epoch_and_keep_the_offset<C: Catalog + CatalogReader>(catalog: &C) {
    catalog.register(PIPELINE, &model_id(), b"model").await.unwrap();
    let first = catalog.claim(PIPELINE, &[at(0), at(1)], "a").await.unwrap();
    assert_eq!(first[1], Claim { at: at(1), owner_epoch: 1, next_offset: None });
    catalog.start(PIPELINE, &at(1), 1, 77).await.unwrap();
    let second = catalog.claim(PIPELINE, &[at(1)], "b").await.unwrap();
    assert_eq!(second, [Claim { at: at(1), owner_epoch: 2, next_offset: Some(77) }]);
    let checkpoints = catalog.checkpoints(PIPELINE).await.unwrap();
    assert_eq!(checkpoints.iter().map(|c| c.owner.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

async fn start_is_stored_once_and_only_by_the_owner<C: Catalog>(catalog: &C) {
    catalog.register(PIPELINE, &model_id(), b"model").await.unwrap();
    catalog.claim(PIPELINE, &[at(0)], "a").await.unwrap();
    assert_eq!(catalog.start(PIPELINE, &at(0), 1, 5).await.unwrap(), 5);
    assert_eq!(catalog.start(PIPELINE, &at(0), 1, 9).await.unwrap(), 5);
    catalog.claim(PIPELINE, &[at(0)], "b").await.unwrap();
    assert!(matches!(catalog.start(PIPELINE, &at(0), 1, 9).await, Err(CatalogError::Fenced { .. })));
}

async fn publication_moves_everything_together<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let mut w = window(0, 100, 110, 3);
    (w.n_rejected, w.n_dead_letters) = (6, 1);
    let mut manifest = manifest("s1", vec![w]);
    manifest.dead_letters = Some(dead_letter_file("s1"));
    catalog.stage(PIPELINE, "s1", manifest.path.as_deref()).await.unwrap();
    assert_eq!(catalog.shard_state("s1").await.unwrap(), Some(ShardState::Staged));
    assert!(catalog.shards(PIPELINE).await.unwrap().is_empty());

    let request = PublishRequest {
        manifest: &manifest,
        advances: &[advance(0, 100, 110, epoch)],
        counts: &[],
        feedback: None,
        clusters: None,
        edges: None,
        forward_to: None,
    };
    assert_eq!(catalog.publish(&request).await.unwrap(), Some(1));
    assert_eq!(catalog.shard_state("s1").await.unwrap(), Some(ShardState::Published));
    assert_eq!(catalog.shard_state("none").await.unwrap(), None);
    assert_eq!(next_offset(catalog, 0).await, Some(110));
    let totals = catalog.totals(PIPELINE).await.unwrap().unwrap();
    let expected = Totals {
        n_records: 10,
        n_selected: 3,
        n_rejected: 6,
        n_dead_letters: 1,
        n_windows: 1,
        n_shards: 1,
        shard_bytes: 30,
    };
    assert_eq!(totals, expected);
    assert_eq!(catalog.shards(PIPELINE).await.unwrap(), [(1, manifest.clone())]);
    assert_eq!(catalog.windows(PIPELINE).await.unwrap(), manifest.windows);
    assert_eq!(catalog.dead_letter_files(PIPELINE).await.unwrap(), [dead_letter_file("s1")]);
    let lines = catalog.manifest_lines(PIPELINE, 0).await.unwrap();
    let entry: crate::manifest::ManifestEntry = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(Some(entry), manifest.entry(1));
}

async fn dead_letters_wait_until_they_are_forwarded<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    for (i, has_letters, forward_to) in [(0, true, Some("bad")), (1, false, Some("bad")), (2, true, None)] {
        let (shard, from) = (format!("s{i}"), 100 + 10 * i64::from(i));
        let mut manifest = manifest(&shard, vec![window(0, from, from + 10, 0)]);
        manifest.dead_letters = has_letters.then(|| dead_letter_file(&shard));
        catalog.stage(PIPELINE, &shard, None).await.unwrap();
        let advances = [advance(0, from, from + 10, epoch)];
        let request = PublishRequest {
            manifest: &manifest,
            advances: &advances,
            counts: &[],
            feedback: None,
            clusters: None,
            edges: None,
            forward_to,
        };
        catalog.publish(&request).await.unwrap();
    }
    let files = catalog.dead_letter_files(PIPELINE).await.unwrap();
    assert_eq!(files, [dead_letter_file("s0"), dead_letter_file("s2")]);
    let pending = catalog.pending_forwards(PIPELINE).await.unwrap();
    let [PendingForward { shard, topic, file, published_at_ms }] = &pending[..] else { panic!("{pending:?}") };
    assert_eq!((shard.as_str(), topic.as_str(), file), ("s0", "bad", &dead_letter_file("s0")));
    assert!(*published_at_ms > 0);
    catalog.forwarded("s0").await.unwrap();
    catalog.forwarded("s0").await.unwrap();
    assert_eq!(catalog.pending_forwards(PIPELINE).await.unwrap(), []);
    assert_eq!(catalog.dead_letter_files(PIPELINE).await.unwrap(), files, "they stay");
}

async fn sequences_have_no_gaps_and_skip_empty_progress<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let mut sequences = Vec::new();
    for (i, n_selected) in [2, 0, 1, 0, 3].into_iter().enumerate() {
        let from = 100 + 10 * i as i64;
        let manifest = manifest(&format!("s{i}"), vec![window(0, from, from + 10, n_selected)]);
        sequences.push(publish(catalog, &manifest, &[advance(0, from, from + 10, epoch)]).await.unwrap());
    }
    assert_eq!(sequences, [Some(1), None, Some(2), None, Some(3)]);
    assert_eq!(catalog.manifest_lines(PIPELINE, 1).await.unwrap().len(), 2);
    assert_eq!(next_offset(catalog, 0).await, Some(150));
}

async fn a_zombie_changes_nothing<C: Catalog + CatalogReader>(catalog: &C) {
    let zombie = owned(catalog, 0).await;
    let owner = catalog.claim(PIPELINE, &[at(0)], "new").await.unwrap()[0].owner_epoch;
    let refused = publish(catalog, &manifest("z", vec![window(0, 100, 110, 1)]), &[advance(0, 100, 110, zombie)]).await;
    let message = refused.unwrap_err().to_string();
    assert_eq!(
        message,
        "partition docs/0: offsets 100..110 cannot be published at owner epoch 1: another owner took over"
    );
    assert_eq!(next_offset(catalog, 0).await, Some(100));
    assert_eq!(catalog.totals(PIPELINE).await.unwrap().unwrap(), Totals::default());
    publish(catalog, &manifest("n", vec![window(0, 100, 110, 1)]), &[advance(0, 100, 110, owner)]).await.unwrap();
}

async fn a_stale_interval_changes_nothing<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    for (from, to) in [(90, 110), (101, 110)] {
        let refused =
            publish(catalog, &manifest("x", vec![window(0, from, to, 1)]), &[advance(0, from, to, epoch)]).await;
        assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{refused:?}");
    }
    assert_eq!(next_offset(catalog, 0).await, Some(100));
}

async fn a_shard_is_published_once_and_only_when_staged<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let first = manifest("s", vec![window(0, 100, 110, 1)]);
    let advances = &[advance(0, 100, 110, epoch)];
    let unstaged = catalog
        .publish(&PublishRequest {
            manifest: &first,
            advances,
            counts: &[],
            feedback: None,
            clusters: None,
            edges: None,
            forward_to: None,
        })
        .await;
    assert!(matches!(unstaged, Err(CatalogError::NotStaged(_))), "{unstaged:?}");
    assert_eq!(next_offset(catalog, 0).await, Some(100));
    publish(catalog, &first, &[advance(0, 100, 110, epoch)]).await.unwrap();
    let again = publish(catalog, &manifest("s", vec![window(0, 110, 120, 1)]), &[advance(0, 110, 120, epoch)]).await;
    assert!(matches!(again, Err(CatalogError::NotStaged(_))), "{again:?}");
    assert_eq!(next_offset(catalog, 0).await, Some(110));
}

async fn what_divided_a_window_is_kept<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let turn = |source: Option<&str>, target: Option<&str>, threshold| TurnSummary {
        source: source.map(str::to_owned),
        target: target.map(str::to_owned),
        n_candidates: 7,
        n_selected: 2,
        threshold,
        tokens: target.is_none().then_some(TokenTurn { budget: 0.1 + 0.2, candidates: 70, selected: 20 }),
    };
    let of_target = |target: &str, kl_reduction| TargetSummary {
        target: target.to_owned(),
        kl_reduction,
        diagnostics: window(0, 100, 110, 2).diagnostics.unwrap(),
    };
    let divided = WindowSummary {
        turns: vec![turn(None, Some("code"), Some(1.0 / 3.0)), turn(Some("web \"2\""), None, None)],
        targets: vec![of_target("code", Some(0.1 + 0.2)), of_target("math", None)],
        threshold: None,
        diagnostics: None,
        ..window(0, 100, 110, 4)
    };
    let strata = |source: Option<&str>, range| PoolStrata {
        source: source.map(str::to_owned),
        range,
        strata: vec![StratumSummary {
            stratum: 7,
            n_documents: 5,
            n_selected: 1,
            thresholds: vec![Some(0.1 + 0.2), None],
        }],
    };
    let coverage = CoverageSummary {
        n_without_number: 2,
        n_cut: 1,
        cut_at: Some(1.0 / 3.0),
        shortfall: 3,
        pools: vec![strata(None, Some((-1e-300, 2.0 / 3.0))), strata(Some("web \"2\""), None)],
        edges: Some(SketchVersion { version: 4, n_documents: 5_000 }),
    };
    let covered = WindowSummary { coverage: Some(coverage), ..window(0, 110, 120, 1) };
    let pool = |source: Option<&str>, threshold| PoolSensitivities {
        source: source.map(str::to_owned),
        sample: SensitivityPool { documents: 5, selected: 2, total: 0.1 + 0.2, threshold, ratio: 2.0 / 3.0 },
    };
    let sensitivity = SensitivitySummary {
        points: PointSource::Embedding,
        dimensions: 768,
        n_without_embedding: 3,
        n_other_dimensions: 2,
        losses: LossSource::Expected,
        n_centres: 7,
        clusters_version: Some(3),
        scale: 1.0 / 3.0,
        shortfall: 1,
        pools: vec![pool(None, Some(-1.0 / 7.0)), pool(Some("web \"2\""), None)],
    };
    let sensitive = WindowSummary { sensitivity: Some(sensitivity), ..window(0, 120, 130, 1) };
    let mut manifest = manifest("s", vec![divided, covered, sensitive]);
    manifest.selector.quotas = Quotas {
        field: Some("language \"2\"".to_owned()),
        sources: [("web \"2\"".to_owned(), 0.1 + 0.2)].into(),
        proportions: [("code".to_owned(), 1.0 / 3.0), ("math".to_owned(), 2.0 / 3.0)].into(),
    };
    publish(catalog, &manifest, &[advance(0, 100, 130, epoch)]).await.unwrap();
    assert_eq!(catalog.windows(PIPELINE).await.unwrap(), manifest.windows);
    assert_eq!(catalog.shards(PIPELINE).await.unwrap(), [(1, manifest)]);
}

async fn one_fenced_partition_rolls_the_others_back<C: Catalog + CatalogReader>(catalog: &C) {
    let (kept, lost) = (owned(catalog, 0).await, owned(catalog, 1).await);
    catalog.claim(PIPELINE, &[at(1)], "other").await.unwrap();
    let both = manifest("s", vec![window(0, 100, 110, 1), window(1, 100, 120, 1)]);
    let refused = publish(catalog, &both, &[advance(0, 100, 110, kept), advance(1, 100, 120, lost)]).await;
    assert!(matches!(refused, Err(CatalogError::Fenced { at, .. }) if at.partition == 1));
    assert_eq!((next_offset(catalog, 0).await, next_offset(catalog, 1).await), (Some(100), Some(100)));
    assert_eq!(catalog.shard_state("s").await.unwrap(), Some(ShardState::Staged));
}

async fn racing_publications_of_one_interval_have_one_winner<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let manifests: Vec<_> = (0..8).map(|i| manifest(&format!("s{i}"), vec![window(0, 100, 110, 1)])).collect();
    let advances = [advance(0, 100, 110, epoch)];
    let results = futures::future::join_all(manifests.iter().map(|m| publish(catalog, m, &advances))).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(CatalogError::Fenced { .. }))), "{results:?}");
    assert_eq!(catalog.totals(PIPELINE).await.unwrap().unwrap().n_shards, 1);
}

async fn pipelines_do_not_touch_each_other<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    owned_by(catalog, "other", 0).await;
    publish(catalog, &manifest("s", vec![window(0, 100, 110, 1)]), &[advance(0, 100, 110, epoch)]).await.unwrap();
    assert_eq!(catalog.totals("other").await.unwrap().unwrap(), Totals::default());
    assert_eq!(catalog.checkpoints("other").await.unwrap()[0].next_offset, Some(100));
    assert_eq!(catalog.totals("none").await.unwrap(), None);
}

async fn what_was_abandoned_is_never_published<C: Catalog + CatalogReader>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    owned_by(catalog, "other", 0).await;
    publish(catalog, &manifest("kept", vec![window(0, 100, 110, 1)]), &[advance(0, 100, 110, epoch)]).await.unwrap();
    let late = manifest("late", vec![window(0, 110, 120, 1)]);
    catalog.stage(PIPELINE, "late", late.path.as_deref()).await.unwrap();
    catalog.stage("other", "elsewhere", None).await.unwrap();
    assert_eq!(catalog.abandon(PIPELINE, 0).await.unwrap(), [], "it is young");
    let orphans = catalog.abandon(PIPELINE, i64::MAX).await.unwrap();
    let named: Vec<_> = orphans.iter().map(|o| (o.shard.as_str(), o.path.as_deref())).collect();
    assert_eq!(named, [("late", Some("shards/late.parquet"))]);
    assert_eq!(catalog.shard_state("late").await.unwrap(), None);
    assert_eq!(catalog.shard_state("elsewhere").await.unwrap(), Some(ShardState::Staged));
    // The worker that was stopped in the middle wakes up.
    let advances = [advance(0, 110, 120, epoch)];
    let request = PublishRequest {
        manifest: &late,
        advances: &advances,
        counts: &[],
        feedback: None,
        clusters: None,
        edges: None,
        forward_to: None,
    };
    let refused = catalog.publish(&request).await;
    assert!(matches!(refused, Err(CatalogError::NotStaged(_))), "{refused:?}");
    assert_eq!(next_offset(catalog, 0).await, Some(110));
    // Its object may have been uploaded since: it is named until it is forgotten.
    assert_eq!(catalog.abandon(PIPELINE, i64::MAX).await.unwrap(), orphans);
    catalog.forget_orphans("other", i64::MAX).await.unwrap();
    catalog.forget_orphans(PIPELINE, 0).await.unwrap();
    assert_eq!(catalog.abandon(PIPELINE, 0).await.unwrap(), orphans);
    catalog.forget_orphans(PIPELINE, i64::MAX).await.unwrap();
    assert_eq!(catalog.abandon(PIPELINE, 0).await.unwrap(), []);
    assert_eq!(catalog.shards(PIPELINE).await.unwrap().len(), 1);
}

#[tokio::test]
async fn sqlite_refuses_a_second_process_but_lets_people_look() {
    let subject = sqlite().await.unwrap();
    let Keep::Folder(folder) = &subject.keep else { panic!("SQLite has a folder") };
    let url = CatalogUrl::Sqlite(folder.path().join("catalog.db"));
    // A lock of another open file description acts like one of another process.
    let second = SqlCatalog::open(&url, Access::Write).await;
    assert!(matches!(second, Err(CatalogError::InUse(_))));
    let reader = SqlCatalog::open(&url, Access::Read).await.unwrap();
    reader.check_schema().await.unwrap();
    let missing = SqlCatalog::open(&CatalogUrl::Sqlite(folder.path().join("none.db")), Access::Read).await;
    assert!(matches!(missing, Err(CatalogError::Unavailable { .. })));
}

#[tokio::test]
async fn postgres_serves_many_and_lets_people_only_look() {
    let Some(subject) = postgres().await else { return };
    let Keep::Database { name, .. } = &subject.keep else { panic!("Postgres has a database") };
    let mut url: url::Url = std::env::var("POSTGRES_URL").unwrap().parse().unwrap();
    url.set_path(name);
    let second = SqlCatalog::open(&CatalogUrl::Postgres(url.clone()), Access::Write).await.unwrap();
    second.register(PIPELINE, &model_id(), b"model").await.unwrap();
    let reader = SqlCatalog::open(&CatalogUrl::Postgres(url.clone()), Access::Read).await.unwrap();
    reader.check_schema().await.unwrap();
    assert_eq!(reader.totals(PIPELINE).await.unwrap(), Some(Totals::default()));
    let refused = reader.stage(PIPELINE, "s", None).await.unwrap_err().to_string();
    assert!(refused.contains("read-only transaction"), "{refused}");
    url.set_path("none");
    let missing = SqlCatalog::open(&CatalogUrl::Postgres(url), Access::Read).await.err().unwrap().to_string();
    assert!(missing.contains("/none`") && missing.contains("does not exist"), "{missing}");
    second.close().await;
    reader.close().await;
    subject.end().await;
}

#[tokio::test]
async fn postgres_is_migrated_once_by_however_many() {
    let Some((url, keep)) = empty_database().await else { return };
    let catalogs = futures::future::join_all((0..6).map(|_| SqlCatalog::open(&url, Access::Write))).await;
    let catalogs: Vec<_> = catalogs.into_iter().map(Result::unwrap).collect();
    let migrated = futures::future::join_all(catalogs.iter().map(SqlCatalog::migrate)).await;
    assert!(migrated.iter().all(Result::is_ok), "{migrated:?}");
    for catalog in &catalogs {
        catalog.check_schema().await.unwrap();
        catalog.close().await;
    }
    Subject { catalog: Arc::new(SqlCatalog::open(&url, Access::Write).await.unwrap()), keep }.end().await;
}

/// Two workers publish and claim overlapping partitions, in opposite orders, over and over.
#[tokio::test]
async fn postgres_transactions_do_not_lock_each_other_out() {
    let Some(subject) = postgres().await else { return };
    let catalog = &*subject.catalog;
    catalog.register(PIPELINE, &model_id(), b"model").await.unwrap();
    let forwards: Vec<TopicPartition> = (0..8).map(at).collect();
    let backwards: Vec<TopicPartition> = forwards.iter().rev().cloned().collect();
    for round in 0..10 {
        let (a, b) = tokio::join!(catalog.claim(PIPELINE, &forwards, "a"), catalog.claim(PIPELINE, &backwards, "b"));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.iter().map(|claim| &claim.at).collect::<Vec<_>>(), forwards.iter().collect::<Vec<_>>());
        assert_eq!(b[0].at, backwards[0]);
        // One of them came second everywhere: there is one owner of all.
        let winner = if a[0].owner_epoch > b[7].owner_epoch { &a } else { &b };
        let epoch = winner[0].owner_epoch;
        assert!(winner.iter().all(|claim| claim.owner_epoch == epoch), "{a:?} {b:?}");
        let from = 100 + round * 10;
        for partition in &forwards {
            catalog.start(PIPELINE, partition, epoch, 100).await.unwrap();
        }
        let publication = async |name: &str, order: &[TopicPartition]| {
            let windows = order.iter().map(|at| window(at.partition, from, from + 10, 1)).collect();
            let advances: Vec<_> = order.iter().map(|at| advance(at.partition, from, from + 10, epoch)).collect();
            publish(catalog, &manifest(&format!("{name}{round}"), windows), &advances).await
        };
        let (a, b) = tokio::join!(publication("a", &forwards), publication("b", &backwards));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert!(matches!(a.and(b), Err(CatalogError::Fenced { .. })));
    }
    assert_eq!(catalog.totals(PIPELINE).await.unwrap().unwrap().n_shards, 10);
    subject.end().await;
}

#[tokio::test]
async fn a_newer_or_missing_schema_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = CatalogUrl::Sqlite(folder.path().join("catalog.db"));
    for (url, keep) in [Some((file, Keep::Folder(folder))), empty_database().await].into_iter().flatten() {
        let catalog = SqlCatalog::open(&url, Access::Write).await.unwrap();
        let missing = catalog.check_schema().await.unwrap_err().to_string();
        assert!(missing.contains("16 migrations are not applied: run `winnowd migrate`"), "{missing}");
        catalog.migrate().await.unwrap();
        catalog.pretend_newer_schema().await;
        let newer = catalog.check_schema().await.unwrap_err().to_string();
        assert!(newer.contains("its schema has version 99, this build knows versions up to 16"), "{newer}");
        assert!(catalog.migrate().await.is_err());
        Subject { catalog: Arc::new(catalog), keep }.end().await;
    }
}
