//! Counts that decay and grow with publications.

use super::*;
use crate::features::Featuriser;
use crate::score::Probabilities;

every_catalog! {
    counts_begin_once_and_anew_for_another_featuriser
    counts_move_with_the_publication_and_only_with_it
    old_counts_are_forgotten_and_the_newest_never
    counts_of_several_targets_move_together
}

const BUCKETS: u32 = 4;

fn prior(buckets: u32) -> DecayedCounts {
    let featuriser = Featuriser { buckets, ..Featuriser::default() };
    DecayedCounts::prior(featuriser, &Probabilities::from_weights(vec![1.0; buckets as usize]), 100)
}

/// Of the raw distribution, or of a model's only target.
fn one(counts: DecayedCounts) -> ByTarget<DecayedCounts> {
    [(String::new(), counts)].into()
}

fn initial(buckets: u32) -> ByTarget<DecayedCounts> {
    one(prior(buckets))
}

/// Publishes one window of partition 0 that adds `counts`.
async fn publish_counts<C: Catalog>(
    catalog: &C,
    shard: &str,
    (from, owner_epoch): (i64, i64),
    counts: &[u64],
    history_bytes: u64,
) -> Result<Option<i64>, CatalogError> {
    let manifest = manifest(shard, vec![window(0, from, from + 10, 1)]);
    let advances = [advance(0, from, from + 10, owner_epoch)];
    let counts = [(String::new(), NgramCounts::from_vec(counts.to_vec()))].into();
    let addition = CountsAddition { kind: CountsKind::Raw, counts: &counts, half_life_ngrams: Some(50), history_bytes };
    catalog.stage(PIPELINE, shard, manifest.path.as_deref()).await.unwrap();
    let request = PublishRequest {
        manifest: &manifest,
        advances: &advances,
        counts: &[addition],
        feedback: None,
        clusters: None,
        edges: None,
        forward_to: None,
    };
    catalog.publish(&request).await
}

async fn counts_begin_once_and_anew_for_another_featuriser<C: Catalog + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let raw = CountsKind::Raw;
    assert_eq!(catalog.newest_counts(PIPELINE, raw).await.unwrap(), None);
    let first = catalog.begin_counts(PIPELINE, raw, &initial(BUCKETS)).await.unwrap();
    assert_eq!(first, CountsVersion { version: 0, counts: initial(BUCKETS) });
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(BUCKETS)).await.unwrap(), first);
    // Nothing was added yet: another prior replaces the first.
    let flat = Probabilities::from_weights(vec![1.0, 0.0, 0.0, 3.0]);
    let other = one(DecayedCounts::prior(*prior(BUCKETS).featuriser(), &flat, 7));
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &other).await.unwrap().version, 1);
    publish_counts(catalog, "s1", (100, epoch), &[1, 0, 0, 0], 1 << 20).await.unwrap();
    let newest = catalog.newest_counts(PIPELINE, raw).await.unwrap().unwrap();
    assert_eq!((newest.version, newest.counts[""].total() > 7.0), (2, true));
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(BUCKETS)).await.unwrap(), newest, "the stream goes on");
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(8)).await.unwrap().version, 3);
    let wrong = publish_counts(catalog, "s2", (110, epoch), &[1, 0, 0, 0], 1 << 20).await;
    assert!(matches!(wrong, Err(CatalogError::Damaged { .. })), "{wrong:?}");
    let lines = catalog.counts_lines(PIPELINE, raw).await.unwrap();
    assert_eq!(lines.iter().map(|l| l.shard.as_deref()).collect::<Vec<_>>(), [None, None, Some("s1"), None]);
}

async fn counts_move_with_the_publication_and_only_with_it<C: Catalog + CatalogReader + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let none = publish_counts(catalog, "s0", (100, epoch), &[5, 0, 0, 0], 1 << 20).await;
    assert!(matches!(none, Err(CatalogError::Damaged { .. })), "{none:?}");
    assert_eq!(
        (next_offset(catalog, 0).await, catalog.shard_state("s0").await.unwrap()),
        (Some(100), Some(ShardState::Staged))
    );

    let mut expected = catalog.begin_counts(PIPELINE, CountsKind::Raw, &initial(BUCKETS)).await.unwrap().counts;
    for (i, counts) in [[10, 0, 40, 0], [0, 3, 0, 0]].iter().enumerate() {
        publish_counts(catalog, &format!("s{}", i + 1), (100 + 10 * i as i64, epoch), counts, 1 << 20).await.unwrap();
        expected.get_mut("").unwrap().add(&NgramCounts::from_vec(counts.to_vec()), Some(50));
    }
    let newest = CountsVersion { version: 2, counts: expected };
    assert_eq!(catalog.newest_counts(PIPELINE, CountsKind::Raw).await.unwrap().as_ref(), Some(&newest));

    // A zombie, a stale interval and a repeated commit change nothing.
    for (shard, from, epoch) in [("z1", 120, epoch - 1), ("z2", 110, epoch), ("s2", 120, epoch)] {
        publish_counts(catalog, shard, (from, epoch), &[9, 9, 9, 9], 1 << 20).await.unwrap_err();
        assert_eq!(catalog.newest_counts(PIPELINE, CountsKind::Raw).await.unwrap().as_ref(), Some(&newest));
    }
    let lines = catalog.counts_lines(PIPELINE, CountsKind::Raw).await.unwrap();
    let line = CountsLine {
        version: 1,
        target: String::new(),
        shard: Some("s1".into()),
        half_life_ngrams: Some(50),
        n_ngrams: 50,
        is_kept: true,
    };
    assert_eq!((lines.len(), &lines[1]), (3, &line));
    assert_eq!(catalog.counts_lines("other", CountsKind::Raw).await.unwrap(), []);
}

async fn old_counts_are_forgotten_and_the_newest_never<C: Catalog + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let begin = catalog.begin_counts(PIPELINE, CountsKind::Raw, &initial(BUCKETS)).await.unwrap();
    let state = begin.counts[""].to_bytes().len() as u64;
    let kept = async |version| catalog.counts(PIPELINE, CountsKind::Raw, version).await.unwrap().is_some();
    for i in 0..5 {
        publish_counts(catalog, &format!("s{i}"), (100 + 10 * i, epoch), &[1; 4], 3 * state).await.unwrap();
    }
    assert_eq!((kept(2).await, kept(3).await, kept(4).await, kept(5).await), (false, true, true, true));
    publish_counts(catalog, "last", (150, epoch), &[1; 4], 0).await.unwrap();
    assert_eq!((kept(5).await, kept(6).await, kept(7).await), (false, true, false));
    let lines = catalog.counts_lines(PIPELINE, CountsKind::Raw).await.unwrap();
    assert_eq!(lines.iter().map(|l| l.is_kept).collect::<Vec<_>>(), [false, false, false, false, false, false, true]);
}

/// One version names what all targets have selected; whatever one of them added, all of them move, or none.
async fn counts_of_several_targets_move_together<C: Catalog + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let selected = CountsKind::Selected;
    let of = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), prior(BUCKETS))).collect();
    let both: ByTarget<DecayedCounts> = of(&["code", "math"]);
    assert_eq!(catalog.begin_counts(PIPELINE, selected, &both).await.unwrap().version, 0);
    let publish = async |shard: &str, from: i64, added: &[(&str, [u64; 4])], history_bytes| {
        let manifest = manifest(shard, vec![window(0, from, from + 10, 1)]);
        let advances = [advance(0, from, from + 10, epoch)];
        let counts = added.iter().map(|(name, n)| ((*name).to_owned(), NgramCounts::from_vec(n.to_vec()))).collect();
        let addition = CountsAddition { kind: selected, counts: &counts, half_life_ngrams: Some(50), history_bytes };
        catalog.stage(PIPELINE, shard, manifest.path.as_deref()).await.unwrap();
        let (manifest, advances, counts) = (&manifest, &advances[..], &[addition][..]);
        catalog
            .publish(&PublishRequest {
                manifest,
                advances,
                counts,
                feedback: None,
                clusters: None,
                edges: None,
                forward_to: None,
            })
            .await
    };
    let mut expected = both.clone();
    for (i, added) in [([9, 0, 1, 0], [0; 4]), ([0; 4], [0, 7, 0, 0])].into_iter().enumerate() {
        let shard = format!("s{i}");
        publish(&shard, 100 + 10 * i as i64, &[("code", added.0), ("math", added.1)], 1 << 20).await.unwrap();
        expected.get_mut("code").unwrap().add(&NgramCounts::from_vec(added.0.to_vec()), Some(50));
        expected.get_mut("math").unwrap().add(&NgramCounts::from_vec(added.1.to_vec()), Some(50));
        let newest = CountsVersion { version: 1 + i as i64, counts: expected.clone() };
        assert_eq!(catalog.newest_counts(PIPELINE, selected).await.unwrap(), Some(newest));
    }
    let first = catalog.counts(PIPELINE, selected, 1).await.unwrap().unwrap();
    assert_eq!(first.counts["math"], both["math"], "nothing was added to it, so nothing is forgotten");
    let lines = catalog.counts_lines(PIPELINE, selected).await.unwrap();
    let lines: Vec<_> = lines.iter().map(|line| (line.version, line.target.as_str(), line.n_ngrams)).collect();
    assert_eq!(
        lines,
        [(0, "code", 0), (0, "math", 0), (1, "code", 10), (1, "math", 0), (2, "code", 0), (2, "math", 7)]
    );

    // Not of one of them alone, nor of others.
    for added in [&[("code", [1; 4])][..], &[("code", [1; 4]), ("prose", [1; 4])]] {
        let refused = publish("x", 120, added, 1 << 20).await.unwrap_err().to_string();
        assert!(refused.contains("selected counts of pipeline `p`, version 2, are of other targets"), "{refused}");
    }
    assert_eq!(catalog.newest_counts(PIPELINE, selected).await.unwrap().unwrap().version, 2);
    // All bytes of a version count.
    let state = prior(BUCKETS).to_bytes().len() as u64;
    publish("last", 120, &[("code", [1; 4]), ("math", [1; 4])], 5 * state).await.unwrap();
    let kept = async |version| catalog.counts(PIPELINE, selected, version).await.unwrap().is_some();
    assert_eq!((kept(1).await, kept(2).await, kept(3).await), (false, true, true));
    // Other targets begin anew, all of them; the raw distribution is not theirs.
    let three = catalog.begin_counts(PIPELINE, selected, &of(&["code", "math", "prose"])).await.unwrap();
    assert_eq!((three.version, &three.counts["code"]), (4, &prior(BUCKETS)));
    assert_eq!(catalog.begin_counts(PIPELINE, CountsKind::Raw, &initial(BUCKETS)).await.unwrap().version, 0);
}
