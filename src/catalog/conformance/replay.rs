//! What replays read: published shards one by one, the shard of a window, models.

use super::*;
use crate::catalog::ReplayCatalog;

every_catalog! {
    published_shards_are_read_one_by_one_with_rows_or_without
    a_window_leads_to_its_shard_and_that_to_its_model
    an_offset_leads_to_the_shard_of_its_window
}

async fn published_shards_are_read_one_by_one_with_rows_or_without<C: Catalog + ReplayCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    owned_by(catalog, "other", 0).await;
    assert_eq!(catalog.next_shard(PIPELINE, None).await.unwrap(), None);
    let mut published = Vec::new();
    for (i, n_selected) in [2, 0, 1].into_iter().enumerate() {
        let from = 100 + 10 * i as i64;
        let manifest = manifest(&format!("s{i}"), vec![window(0, from, from + 10, n_selected)]);
        publish(catalog, &manifest, &[advance(0, from, from + 10, epoch)]).await.unwrap();
        published.push(manifest);
    }
    catalog.stage(PIPELINE, "s1a", None).await.unwrap();
    let mut found: Vec<ShardManifest> = Vec::new();
    while let Some(next) = catalog.next_shard(PIPELINE, found.last().map(|last| last.shard.as_str())).await.unwrap() {
        found.push(next);
    }
    assert_eq!(found, published);
    assert_eq!(catalog.next_shard("other", None).await.unwrap(), None);
}

async fn a_window_leads_to_its_shard_and_that_to_its_model<C: Catalog + ReplayCatalog>(catalog: &C) {
    let (first, second) = (owned(catalog, 0).await, owned(catalog, 1).await);
    let both = manifest("s", vec![window(0, 100, 110, 1), window(1, 100, 120, 0)]);
    publish(catalog, &both, &[advance(0, 100, 110, first), advance(1, 100, 120, second)]).await.unwrap();
    let of = async |pipeline, partition, from, to| {
        catalog.shard_of_window(pipeline, &at(partition), Interval { from, to }).await.unwrap()
    };
    assert_eq!(of(PIPELINE, 1, 100, 120).await, Some(both.clone()));
    assert_eq!(of(PIPELINE, 0, 100, 120).await, None);
    assert_eq!(of("other", 1, 100, 120).await, None);
    assert_eq!(catalog.model(&both.model).await.unwrap().as_deref(), Some(&b"model"[..]));
    assert_eq!(catalog.model(&ModelId::of(b"none")).await.unwrap(), None);
}

async fn an_offset_leads_to_the_shard_of_its_window<C: Catalog + ReplayCatalog>(catalog: &C) {
    let (first, second) = (owned(catalog, 0).await, owned(catalog, 1).await);
    let both = manifest("s", vec![window(0, 100, 110, 1), window(0, 110, 125, 0)]);
    publish(catalog, &both, &[advance(0, 100, 125, first)]).await.unwrap();
    let other = manifest("t", vec![window(1, 100, 120, 0)]);
    publish(catalog, &other, &[advance(1, 100, 120, second)]).await.unwrap();
    catalog.stage(PIPELINE, "u", None).await.unwrap();
    let of = async |pipeline, partition, offset| {
        let found = catalog.shard_of_position(pipeline, &at(partition), offset).await.unwrap();
        found.map(|manifest| manifest.shard)
    };
    for (partition, offset, expected) in [
        (0, 99, None),
        (0, 100, Some("s")),
        (0, 109, Some("s")),
        (0, 110, Some("s")),
        (0, 124, Some("s")),
        (0, 125, None),
        (1, 100, Some("t")),
        (1, 119, Some("t")),
        (1, 124, None),
        (2, 100, None),
    ] {
        assert_eq!(
            of(PIPELINE, partition, offset).await.as_deref(),
            expected,
            "partition {partition}, offset {offset}"
        );
    }
    assert_eq!(of("other", 0, 100).await, None);
}
