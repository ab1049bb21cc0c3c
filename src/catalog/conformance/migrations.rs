//! Catalogs that earlier versions of the schema have filled.

use super::*;
use crate::features::Featuriser;
use crate::score::Probabilities;

/// What a pipeline had before targets had counts of their own is there afterwards, and goes on.
#[tokio::test]
async fn a_catalog_of_the_schema_before_targets_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let file = CatalogUrl::Sqlite(folder.path().join("catalog.db"));
    for (url, keep) in [Some((file, Keep::Folder(folder))), empty_database().await].into_iter().flatten() {
        let catalog = SqlCatalog::open(&url, Access::Write).await.unwrap();
        let mut counts = DecayedCounts::prior(
            Featuriser { buckets: 4, ..Featuriser::default() },
            &Probabilities::from_weights(vec![1.0; 4]),
            100,
        );
        catalog.fill_schema_of_version_7(PIPELINE, &model_id(), &counts.to_bytes()).await;
        assert_eq!(catalog.pending_migrations().await.unwrap(), 9);
        assert_eq!(catalog.migrate().await.unwrap(), 9);
        catalog.check_schema().await.unwrap();

        let [old] = &catalog.windows(PIPELINE).await.unwrap()[..] else { panic!("one window") };
        assert_eq!((old.n_selected, old.against_selected), (3, Some(SelectedVersion { version: 1, share: 0.5 })));
        assert!(old.turns.is_empty() && old.targets.is_empty() && old.spread.is_none() && old.coverage.is_none());
        assert!(old.sensitivity.is_none());
        let lines = catalog.counts_lines(PIPELINE, CountsKind::Selected).await.unwrap();
        let line = |version, shard: Option<&str>, n_ngrams, is_kept| CountsLine {
            version,
            target: String::new(),
            shard: shard.map(str::to_owned),
            half_life_ngrams: None,
            n_ngrams,
            is_kept,
        };
        assert_eq!(lines, [line(0, None, 0, false), line(1, Some("s"), 9, true)]);
        let one = |counts: &DecayedCounts| [(String::new(), counts.clone())].into();
        let begun = catalog.begin_counts(PIPELINE, CountsKind::Selected, &one(&counts)).await.unwrap();
        assert_eq!(begun, CountsVersion { version: 1, counts: one(&counts) });

        let epoch = owned(&catalog, 0).await;
        let added = NgramCounts::from_vec(vec![0, 0, 2, 0]);
        let manifest = manifest("t", vec![window(0, 100, 110, 1)]);
        let addition = [(String::new(), added.clone())].into();
        let addition = CountsAddition {
            kind: CountsKind::Selected,
            featuriser: *counts.featuriser(),
            counts: &addition,
            half_life_ngrams: None,
            history_bytes: 1 << 20,
        };
        catalog.stage(PIPELINE, "t", manifest.path.as_deref()).await.unwrap();
        let (advances, additions) = ([advance(0, 100, 110, epoch)], [addition]);
        let request = PublishRequest {
            manifest: &manifest,
            advances: &advances,
            counts: &additions,
            feedback: None,
            clusters: None,
            edges: None,
            forward_to: None,
        };
        catalog.publish(&request).await.unwrap();
        counts.add(&added, None);
        let newest = catalog.newest_counts(PIPELINE, CountsKind::Selected).await.unwrap();
        assert_eq!(newest, Some(CountsVersion { version: 2, counts: one(&counts) }));
        Subject { catalog: Arc::new(catalog), keep }.end().await;
    }
}
