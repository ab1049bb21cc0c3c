//! Clusters that move with publications.

use super::*;
use crate::select::{ClusterAddition, ClusterMeans, ClusterTally, ClusterVersion};

every_catalog! {
    clusters_move_with_the_publication_and_only_with_it
    clusters_begin_anew_for_another_space
    old_clusters_are_forgotten_and_the_newest_never
}

const HALF_LIFE: u64 = 8;

fn means(space: &str, means: &[f32]) -> ClusterMeans {
    ClusterMeans::new(space.to_owned(), 1, means.to_vec(), means.len())
}

fn tally(of: &ClusterMeans, points: &[f32]) -> ClusterTally {
    of.tally(points.chunks(1))
}

/// Publishes one window of partition 0 that adds to clusters.
async fn publish_clusters<C: Catalog>(
    catalog: &C,
    shard: &str,
    (from, owner_epoch): (i64, i64),
    addition: &ClusterAddition,
    history_bytes: u64,
) -> Result<Option<i64>, CatalogError> {
    let manifest = manifest(shard, vec![window(0, from, from + 10, 1)]);
    let advances = [advance(0, from, from + 10, owner_epoch)];
    let clusters = ClustersAddition { addition, half_life_documents: HALF_LIFE, history_bytes };
    catalog.stage(PIPELINE, shard, manifest.path.as_deref()).await.unwrap();
    let request = PublishRequest {
        manifest: &manifest,
        advances: &advances,
        counts: &[],
        feedback: None,
        clusters: Some(clusters),
        edges: None,
        forward_to: None,
    };
    catalog.publish(&request).await
}

async fn clusters_move_with_the_publication_and_only_with_it<C: Catalog + ClustersCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    assert_eq!(catalog.newest_clusters(PIPELINE).await.unwrap(), None);
    let own = means("e", &[0.0, 10.0]);
    let first = ClusterAddition { began: None, tally: tally(&own, &[0.0, 2.0, 9.0]) };
    publish_clusters(catalog, "s1", (100, epoch), &first, 1 << 20).await.unwrap();
    let begun = catalog.newest_clusters(PIPELINE).await.unwrap().unwrap();
    assert_eq!((begun.version, begun.began), (0, 0));
    assert_eq!((begun.means.means(), begun.means.weights()), (&[1.0, 9.0][..], &[2.0, 1.0][..]));

    let second = ClusterAddition { began: Some(0), tally: tally(&begun.means, &[3.0; 4]) };
    let fenced = publish_clusters(catalog, "s2", (110, epoch - 1), &second, 1 << 20).await;
    assert!(matches!(fenced, Err(CatalogError::Fenced { .. })), "{fenced:?}");
    assert_eq!(catalog.newest_clusters(PIPELINE).await.unwrap().as_ref(), Some(&begun));
    publish_clusters(catalog, "s2", (110, epoch), &second, 1 << 20).await.unwrap();
    let mut expected = (*begun.means).clone();
    expected.add(&second.tally, HALF_LIFE);
    let newest = catalog.newest_clusters(PIPELINE).await.unwrap().unwrap();
    assert_eq!(newest, ClusterVersion { version: 1, began: 0, means: Arc::new(expected) });

    // One that knew of none changes nothing, and what it publishes is published all the same.
    publish_clusters(catalog, "s3", (120, epoch), &first, 1 << 20).await.unwrap();
    assert_eq!(catalog.newest_clusters(PIPELINE).await.unwrap(), Some(newest.clone()));
    assert_eq!(catalog.newest_clusters_version(PIPELINE).await.unwrap(), Some(1));
    assert_eq!(catalog.clusters(PIPELINE, 0).await.unwrap(), Some(begun));
    assert_eq!(catalog.clusters(PIPELINE, 1).await.unwrap(), Some(newest));
    assert_eq!(catalog.clusters(PIPELINE, 2).await.unwrap(), None);
    assert_eq!(catalog.newest_clusters("other").await.unwrap(), None);
    assert_eq!(catalog.newest_clusters_version("other").await.unwrap(), None);
}

async fn clusters_begin_anew_for_another_space<C: Catalog + ClustersCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let (one, other) = (means("e", &[0.0]), means("f", &[5.0]));
    let first = ClusterAddition { began: None, tally: tally(&one, &[1.0]) };
    publish_clusters(catalog, "s1", (100, epoch), &first, 1 << 20).await.unwrap();
    let second = ClusterAddition { began: None, tally: tally(&other, &[6.0]) };
    publish_clusters(catalog, "s2", (110, epoch), &second, 1 << 20).await.unwrap();
    let newest = catalog.newest_clusters(PIPELINE).await.unwrap().unwrap();
    assert_eq!((newest.version, newest.began, newest.means.means()), (1, 1, &[6.0][..]));
    assert!(newest.means.is_of("f"));
    // Of the first clusters, which are no more.
    let late = ClusterAddition { began: Some(0), tally: tally(&one, &[1.0]) };
    publish_clusters(catalog, "s3", (120, epoch), &late, 1 << 20).await.unwrap();
    assert_eq!(catalog.newest_clusters(PIPELINE).await.unwrap(), Some(newest));
    // Nothing was looked at: there is nothing to begin with.
    let nothing = ClusterAddition { began: None, tally: tally(&one, &[]) };
    publish_clusters(catalog, "s4", (130, epoch), &nothing, 1 << 20).await.unwrap();
    assert_eq!(catalog.newest_clusters(PIPELINE).await.unwrap().unwrap().version, 1);
}

async fn old_clusters_are_forgotten_and_the_newest_never<C: Catalog + ClustersCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let own = means("e", &[0.0, 10.0]);
    let history = 2 * own.to_bytes().len() as u64;
    for (i, from) in (100..150).step_by(10).enumerate() {
        let began = (i > 0).then_some(0);
        let addition = ClusterAddition { began, tally: tally(&own, &[i as f32, 9.0]) };
        publish_clusters(catalog, &format!("s{i}"), (from, epoch), &addition, history).await.unwrap();
    }
    let kept = async |version| catalog.clusters(PIPELINE, version).await.unwrap().is_some();
    assert_eq!(
        [kept(0).await, kept(1).await, kept(2).await, kept(3).await, kept(4).await],
        [false, false, false, true, true]
    );
    let addition = ClusterAddition { began: Some(0), tally: tally(&own, &[1.0]) };
    publish_clusters(catalog, "s5", (150, epoch), &addition, 0).await.unwrap();
    assert_eq!([kept(4).await, kept(5).await], [false, true]);
}
