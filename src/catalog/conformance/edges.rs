//! Sketches for edges of strata, which follow the publications.

use super::*;
use crate::select::{Division, EdgeSketches, EdgeTally, EdgesVersion, QuantileSketch};

every_catalog! {
    sketches_move_with_the_publication_and_only_with_it
    other_numbers_have_sketches_of_their_own
    no_addition_of_two_workers_is_lost
}

const HALF_LIFE: u64 = 8;
const NUMBERS: &str = "field loss";

fn tally(numbers: &[f64]) -> EdgeTally {
    let mut sketch = QuantileSketch::default();
    numbers.iter().for_each(|number| sketch.add(*number));
    EdgeTally::new(&Division::whole(), QuantileSketch::default(), vec![sketch])
}

/// Publishes one window that adds to sketches.
async fn publish_edges<C: Catalog>(
    catalog: &C,
    shard: &str,
    (partition, from, owner_epoch): (i32, i64, i64),
    numbers: &str,
    tally: &EdgeTally,
) -> Result<Option<i64>, CatalogError> {
    let manifest = manifest(shard, vec![window(partition, from, from + 10, 1)]);
    let advances = [advance(partition, from, from + 10, owner_epoch)];
    catalog.stage(PIPELINE, shard, manifest.path.as_deref()).await.unwrap();
    let request = PublishRequest {
        manifest: &manifest,
        advances: &advances,
        counts: &[],
        feedback: None,
        clusters: None,
        edges: Some(EdgesAddition { numbers, tally, half_life_documents: HALF_LIFE }),
        forward_to: None,
    };
    catalog.publish(&request).await
}

fn version(version: i64, tallies: &[&EdgeTally]) -> Option<EdgesVersion> {
    let mut sketches = EdgeSketches::default();
    tallies.iter().for_each(|tally| sketches.add(tally, HALF_LIFE));
    Some(EdgesVersion { version, sketches: Arc::new(sketches) })
}

async fn sketches_move_with_the_publication_and_only_with_it<C: Catalog + EdgesCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    assert_eq!(catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap(), None);
    let (first, second) = (tally(&[1.0, 2.0, 9.5]), tally(&[-3.0; 4]));
    publish_edges(catalog, "s1", (0, 100, epoch), NUMBERS, &first).await.unwrap();
    assert_eq!(catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap(), version(0, &[&first]));

    let fenced = publish_edges(catalog, "s2", (0, 110, epoch - 1), NUMBERS, &second).await;
    assert!(matches!(fenced, Err(CatalogError::Fenced { .. })), "{fenced:?}");
    assert_eq!(catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap(), version(0, &[&first]));
    publish_edges(catalog, "s2", (0, 110, epoch), NUMBERS, &second).await.unwrap();
    // The first ones have faded.
    let newest = catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap();
    assert_eq!(newest, version(1, &[&first, &second]));
    assert_eq!(newest.unwrap().sketches.n_documents(), 6);
    assert_eq!(catalog.newest_edges("other", NUMBERS).await.unwrap(), None);
}

async fn other_numbers_have_sketches_of_their_own<C: Catalog + EdgesCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    let (losses, weights) = (tally(&[1.0]), tally(&[-200.0, -300.0]));
    publish_edges(catalog, "s1", (0, 100, epoch), NUMBERS, &losses).await.unwrap();
    publish_edges(catalog, "s2", (0, 110, epoch), "weight by m", &weights).await.unwrap();
    publish_edges(catalog, "s3", (0, 120, epoch), NUMBERS, &losses).await.unwrap();
    assert_eq!(catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap(), version(1, &[&losses, &losses]));
    assert_eq!(catalog.newest_edges(PIPELINE, "weight by m").await.unwrap(), version(0, &[&weights]));
}

async fn no_addition_of_two_workers_is_lost<C: Catalog + EdgesCatalog>(catalog: &C) {
    let epochs = [owned(catalog, 0).await, owned(catalog, 1).await];
    // Equal ones, so that it does not matter whose comes first.
    let tally = tally(&[1.0, 5.0]);
    for round in 0..4 {
        let publish = |partition: i32| {
            let (shard, from) = (format!("s{round}-{partition}"), 100 + 10 * round);
            let (epoch, tally) = (epochs[partition as usize], &tally);
            async move { publish_edges(catalog, &shard, (partition, from, epoch), NUMBERS, tally).await.unwrap() }
        };
        tokio::join!(publish(0), publish(1));
    }
    assert_eq!(catalog.newest_edges(PIPELINE, NUMBERS).await.unwrap(), version(7, &[&tally; 8]));
}
