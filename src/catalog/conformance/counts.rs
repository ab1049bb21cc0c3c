//! Counts that decay and grow with publications.

use super::*;
use crate::features::{Featuriser, NgramHash};
use crate::score::Probabilities;

every_catalog! {
    counts_begin_once_and_anew_for_another_featuriser
    counts_move_with_the_publication_and_only_with_it
    old_counts_are_forgotten_and_the_newest_never
    counts_of_several_targets_move_together
    workers_with_other_models_take_turns_and_each_goes_on_with_its_own
    the_newest_of_each_model_is_never_forgotten
}

const BUCKETS: u32 = 4;

fn featuriser(buckets: u32) -> Featuriser {
    Featuriser { buckets, ..Featuriser::default() }
}

fn prior_of(featuriser: Featuriser) -> DecayedCounts {
    let flat = Probabilities::from_weights(vec![1.0; featuriser.buckets as usize]);
    DecayedCounts::prior(featuriser, &flat, 100)
}

fn prior(buckets: u32) -> DecayedCounts {
    prior_of(featuriser(buckets))
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
    at: (i64, i64),
    counts: &[u64],
    history_bytes: u64,
) -> Result<Option<i64>, CatalogError> {
    let featuriser = featuriser(counts.len() as u32);
    let counts = [(String::new(), NgramCounts::from_vec(counts.to_vec()))].into();
    let kind = CountsKind::Raw;
    let addition = CountsAddition { kind, featuriser, counts: &counts, half_life_ngrams: Some(50), history_bytes };
    publish(catalog, shard, at, addition).await
}

async fn publish<C: Catalog>(
    catalog: &C,
    shard: &str,
    (from, owner_epoch): (i64, i64),
    addition: CountsAddition<'_>,
) -> Result<Option<i64>, CatalogError> {
    let manifest = manifest(shard, vec![window(0, from, from + 10, 1)]);
    let advances = [advance(0, from, from + 10, owner_epoch)];
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
    // Whoever goes back, or is late, goes on with what is there.
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(BUCKETS)).await.unwrap(), newest);
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(8)).await.unwrap().version, 3);
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
async fn counts_of_several_targets_move_together<C: Catalog + CatalogReader + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let selected = CountsKind::Selected;
    let of = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), prior(BUCKETS))).collect();
    let both: ByTarget<DecayedCounts> = of(&["code", "math"]);
    assert_eq!(catalog.begin_counts(PIPELINE, selected, &both).await.unwrap().version, 0);
    let publish = async |shard: &str, from: i64, added: &[(&str, [u64; 4])], history_bytes| {
        let counts = added.iter().map(|(name, n)| ((*name).to_owned(), NgramCounts::from_vec(n.to_vec()))).collect();
        let addition = CountsAddition {
            kind: selected,
            featuriser: featuriser(BUCKETS),
            counts: &counts,
            half_life_ngrams: Some(50),
            history_bytes,
        };
        publish(catalog, shard, (from, epoch), addition).await
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

    // One of them alone, or another one beside it, has begun no counts: what is published is published all the same.
    for (i, added) in [&[("code", [1; 4])][..], &[("code", [1; 4]), ("prose", [1; 4])]].into_iter().enumerate() {
        publish(&format!("x{i}"), 120 + 10 * i as i64, added, 1 << 20).await.unwrap();
    }
    assert_eq!(next_offset(catalog, 0).await, Some(140));
    assert_eq!(catalog.newest_counts(PIPELINE, selected).await.unwrap().unwrap().version, 2);
    // All bytes of a version count.
    let state = prior(BUCKETS).to_bytes().len() as u64;
    publish("last", 140, &[("code", [1; 4]), ("math", [1; 4])], 5 * state).await.unwrap();
    let kept = async |version| catalog.counts(PIPELINE, selected, version).await.unwrap().is_some();
    assert_eq!((kept(1).await, kept(2).await, kept(3).await), (false, true, true));
    // Other targets begin anew, all of them; the raw distribution is not theirs.
    let three = catalog.begin_counts(PIPELINE, selected, &of(&["code", "math", "prose"])).await.unwrap();
    assert_eq!((three.version, &three.counts["code"]), (4, &prior(BUCKETS)));
    assert_eq!(catalog.begin_counts(PIPELINE, CountsKind::Raw, &initial(BUCKETS)).await.unwrap().version, 0);
}

/// A rollout, or a rollback: the same number of buckets and another hash, another number of buckets, a target with another name. Nobody
/// adds to the counts of another model, and nobody's start begins those anew that another one has added to.
async fn workers_with_other_models_take_turns_and_each_goes_on_with_its_own<C: Catalog + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let kind = CountsKind::Selected;
    let fast = Featuriser { hash: NgramHash::Fast, ..featuriser(BUCKETS) };
    let models: [(Featuriser, &[&str]); 4] = [
        (featuriser(BUCKETS), &["code", "math"]),
        (fast, &["code", "math"]),
        (featuriser(2 * BUCKETS), &["code", "math"]),
        (featuriser(BUCKETS), &["code", "maths"]),
    ];
    let of = |model: usize| -> CountsOf {
        models[model].1.iter().map(|target| ((*target).to_owned(), models[model].0)).collect()
    };
    let mut expected: Vec<ByTarget<DecayedCounts>> = Vec::new();
    for (i, (featuriser, targets)) in models.into_iter().enumerate() {
        let none = catalog.newest_counts_of(PIPELINE, kind, &of(i)).await.unwrap();
        assert_eq!(none, NewestCounts { ours: None, of_others: i.checked_sub(1).map(|version| version as i64) });
        let initial = targets.iter().map(|target| ((*target).to_owned(), prior_of(featuriser))).collect();
        let begun = catalog.begin_counts(PIPELINE, kind, &initial).await.unwrap();
        assert_eq!(begun, CountsVersion { version: i as i64, counts: initial.clone() });
        expected.push(initial);
    }
    let mut newest: Vec<i64> = (0..4).collect();
    // Farther back than a rollout takes too: model 1 rests for long.
    let turns = [0, 1, 0, 2, 3, 3, 1].into_iter().chain([0, 2].repeat(40)).chain([3, 1]);
    for (turn, model) in turns.enumerate() {
        let (featuriser, targets) = models[model];
        let ngrams = |i: usize| (0..u64::from(featuriser.buckets)).map(|n| (n + turn as u64) % 5 + i as u64).collect();
        let added = targets.iter().enumerate();
        let added: ByTarget<NgramCounts> =
            added.map(|(i, target)| ((*target).to_owned(), NgramCounts::from_vec(ngrams(i)))).collect();
        let half_life_ngrams = Some(200);
        let addition = CountsAddition { kind, featuriser, counts: &added, half_life_ngrams, history_bytes: 1 << 20 };
        publish(catalog, &format!("s{turn}"), (100 + 10 * turn as i64, epoch), addition).await.unwrap();
        for (target, counts) in &mut expected[model] {
            counts.add(&added[target], half_life_ngrams);
        }
        newest[model] = 4 + turn as i64;
        if !(8..=80).contains(&turn) {
            for (other, counts) in expected.iter().enumerate() {
                let ours = CountsVersion { version: newest[other], counts: counts.clone() };
                let of_others = (other != model).then_some(newest[model]);
                let found = catalog.newest_counts_of(PIPELINE, kind, &of(other)).await.unwrap();
                assert_eq!(found, NewestCounts { ours: Some(ours.clone()), of_others }, "model {other} at turn {turn}");
                // A worker that begins again goes on, and changes nothing for the others.
                let prior = models[other].1.iter().map(|target| ((*target).to_owned(), prior_of(models[other].0)));
                let begun = catalog.begin_counts(PIPELINE, kind, &prior.collect()).await.unwrap();
                assert_eq!(begun, ours);
            }
        }
    }
    let lines = catalog.counts_lines(PIPELINE, kind).await.unwrap();
    assert_eq!(lines.iter().filter(|line| line.shard.is_none()).count(), 8, "each began once, with two targets");
}

/// However short the history is, and however long the other one publishes alone.
async fn the_newest_of_each_model_is_never_forgotten<C: Catalog + CountsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let raw = CountsKind::Raw;
    for buckets in [BUCKETS, 8] {
        catalog.begin_counts(PIPELINE, raw, &initial(buckets)).await.unwrap();
    }
    let publish = async |numbers: std::ops::Range<i64>, counts: &[u64]| {
        for i in numbers {
            publish_counts(catalog, &format!("s{i}"), (100 + 10 * i, epoch), counts, 1).await.unwrap();
        }
    };
    let kept = async || {
        let lines = catalog.counts_lines(PIPELINE, raw).await.unwrap();
        lines.iter().filter(|line| line.is_kept).map(|line| line.version).collect::<Vec<_>>()
    };
    publish(0..3, &[1; 4]).await;
    assert_eq!(kept().await, [1, 4], "the other one has only begun");
    publish(3..6, &[1; 8]).await;
    assert_eq!(kept().await, [4, 7]);
    publish(6..7, &[1; 4]).await;
    assert_eq!(kept().await, [7, 8]);
    // A third model: each of the two keeps its newest.
    catalog.begin_counts(PIPELINE, raw, &initial(16)).await.unwrap();
    publish(7..9, &[1; 16]).await;
    assert_eq!(kept().await, [7, 8, 11]);
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(8)).await.unwrap().version, 7);
    assert_eq!(catalog.begin_counts(PIPELINE, raw, &initial(BUCKETS)).await.unwrap().version, 8);
}
