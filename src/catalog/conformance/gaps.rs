//! Gaps: a checkpoint moves past or back over offsets that are not decided, and nobody else publishes meanwhile.

use super::*;
use crate::catalog::{GapReason, OffsetsCatalog};

every_catalog! {
    a_skip_moves_the_checkpoint_and_notes_a_gap
    a_skip_fences_whoever_read_before
    a_skip_from_elsewhere_changes_nothing
    racing_skips_and_publications_have_one_winner
    a_rewind_takes_gaps_back_but_no_decision
    the_id_of_a_topic_is_noted_once
}

fn interval(from: i64, to: i64) -> Interval {
    Interval { from, to }
}

async fn gaps<C: CatalogReader>(catalog: &C, pipeline: &str) -> Vec<(i32, Interval, GapReason)> {
    let gaps = catalog.gaps(pipeline).await.unwrap();
    gaps.into_iter().map(|gap| (gap.at.partition, gap.interval, gap.reason)).collect()
}

async fn epoch_of<C: CatalogReader>(catalog: &C, partition: i32) -> i64 {
    let checkpoints = catalog.checkpoints(PIPELINE).await.unwrap();
    checkpoints.iter().find(|c| c.partition == partition).unwrap().owner_epoch
}

async fn a_skip_moves_the_checkpoint_and_notes_a_gap<C: Catalog + CatalogReader + OffsetsCatalog>(catalog: &C) {
    let (first, second) = (owned(catalog, 0).await, owned(catalog, 1).await);
    owned_by(catalog, "other", 0).await;
    assert_eq!(gaps(catalog, PIPELINE).await, []);
    catalog.skip(PIPELINE, &at(1), interval(100, 130), second, GapReason::Reset).await.unwrap();
    catalog.skip(PIPELINE, &at(0), interval(100, 150), first, GapReason::Retention).await.unwrap();
    catalog.skip(PIPELINE, &at(0), interval(150, 160), first + 1, GapReason::Retention).await.unwrap();
    assert_eq!((next_offset(catalog, 0).await, next_offset(catalog, 1).await), (Some(160), Some(130)));
    let expected = [
        (0, interval(100, 150), GapReason::Retention),
        (0, interval(150, 160), GapReason::Retention),
        (1, interval(100, 130), GapReason::Reset),
    ];
    assert_eq!(gaps(catalog, PIPELINE).await, expected);
    assert!(catalog.gaps(PIPELINE).await.unwrap().iter().all(|gap| gap.noted_at_ms > 0));
    // Nothing was decided, and other pipelines go on where they were.
    assert_eq!(catalog.totals(PIPELINE).await.unwrap().unwrap(), Totals::default());
    assert_eq!(gaps(catalog, "other").await, []);
    assert_eq!(catalog.checkpoints("other").await.unwrap()[0].next_offset, Some(100));
    let next = manifest("s", vec![window(0, 160, 170, 1)]);
    publish(catalog, &next, &[advance(0, 160, 170, first + 2)]).await.unwrap();
    assert_eq!(catalog.published_end(PIPELINE, &at(0)).await.unwrap(), Some(170));
    assert_eq!(catalog.published_end(PIPELINE, &at(1)).await.unwrap(), None);
}

async fn a_skip_fences_whoever_read_before<C: Catalog + CatalogReader + OffsetsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    catalog.skip(PIPELINE, &at(0), interval(100, 150), epoch, GapReason::Retention).await.unwrap();
    assert_eq!(epoch_of(catalog, 0).await, epoch + 1);
    for (name, from) in [("before", 100), ("after", 150)] {
        let shard = manifest(name, vec![window(0, from, from + 10, 1)]);
        let refused = publish(catalog, &shard, &[advance(0, from, from + 10, epoch)]).await;
        assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{name}: {refused:?}");
    }
    assert_eq!(next_offset(catalog, 0).await, Some(150));
}

async fn a_skip_from_elsewhere_changes_nothing<C: Catalog + CatalogReader + OffsetsCatalog>(catalog: &C) {
    let epoch = owned(catalog, 0).await;
    for (from, epoch) in [(90, epoch), (110, epoch), (100, epoch - 1), (100, epoch + 1)] {
        let refused = catalog.skip(PIPELINE, &at(0), interval(from, 200), epoch, GapReason::Retention).await;
        assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{from} at epoch {epoch}: {refused:?}");
    }
    // A partition that nobody has begun has no offset to skip from.
    let unknown = catalog.skip(PIPELINE, &at(9), interval(0, 10), 1, GapReason::Reset).await;
    assert!(matches!(unknown, Err(CatalogError::Fenced { .. })), "{unknown:?}");
    assert_eq!((next_offset(catalog, 0).await, epoch_of(catalog, 0).await), (Some(100), epoch));
    assert_eq!(gaps(catalog, PIPELINE).await, []);
}

async fn racing_skips_and_publications_have_one_winner<C: Catalog + CatalogReader + OffsetsCatalog>(catalog: &C) {
    let mut epoch = owned(catalog, 0).await;
    let mut from = 100;
    for round in 0..10 {
        let shard = manifest(&format!("s{round}"), vec![window(0, from, from + 10, 1)]);
        let advances = [advance(0, from, from + 10, epoch)];
        let partition = at(0);
        let skip = |to| catalog.skip(PIPELINE, &partition, interval(from, to), epoch, GapReason::Retention);
        let (published, a, b) = tokio::join!(publish(catalog, &shard, &advances), skip(from + 20), skip(from + 30));
        let won = [published.is_ok(), a.is_ok(), b.is_ok()];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{published:?} {a:?} {b:?}");
        let length = [10, 20, 30][won.iter().position(|won| *won).unwrap()];
        from += length;
        epoch += i64::from(length > 10);
        assert_eq!((next_offset(catalog, 0).await, epoch_of(catalog, 0).await), (Some(from), epoch));
    }
    // Windows and gaps follow one another.
    let windows = catalog.windows(PIPELINE).await.unwrap();
    let mut all: Vec<Interval> = windows.iter().map(|window| window.interval).collect();
    all.extend(gaps(catalog, PIPELINE).await.iter().map(|gap| gap.1));
    all.sort_by_key(|interval| interval.from);
    assert_eq!(all.iter().fold(100, |next, i| if i.from == next { i.to } else { -1 }), from, "{all:?}");
}

async fn a_rewind_takes_gaps_back_but_no_decision<C: Catalog + CatalogReader + OffsetsCatalog>(catalog: &C) {
    let mut epoch = owned(catalog, 0).await;
    publish(catalog, &manifest("s", vec![window(0, 100, 110, 1)]), &[advance(0, 100, 110, epoch)]).await.unwrap();
    for (from, to) in [(110, 150), (150, 200)] {
        catalog.skip(PIPELINE, &at(0), interval(from, to), epoch, GapReason::Reset).await.unwrap();
        epoch += 1;
    }
    let decided = catalog.rewind(PIPELINE, &at(0), interval(109, 200), epoch).await.unwrap_err();
    assert!(matches!(decided, CatalogError::Decided { offset: 109, published: 110, .. }), "{decided}");
    let stale = catalog.rewind(PIPELINE, &at(0), interval(120, 190), epoch).await.unwrap_err();
    assert!(matches!(stale, CatalogError::Fenced { .. }), "{stale}");
    let zombie = catalog.rewind(PIPELINE, &at(0), interval(120, 200), epoch - 1).await.unwrap_err();
    assert!(matches!(zombie, CatalogError::Fenced { .. }), "{zombie}");
    assert_eq!((next_offset(catalog, 0).await, epoch_of(catalog, 0).await), (Some(200), epoch));
    assert_eq!(gaps(catalog, PIPELINE).await.len(), 2);

    catalog.rewind(PIPELINE, &at(0), interval(120, 200), epoch).await.unwrap();
    assert_eq!((next_offset(catalog, 0).await, epoch_of(catalog, 0).await), (Some(120), epoch + 1));
    assert_eq!(gaps(catalog, PIPELINE).await, [(0, interval(110, 120), GapReason::Reset)]);
    catalog.rewind(PIPELINE, &at(0), interval(110, 120), epoch + 1).await.unwrap();
    assert_eq!(gaps(catalog, PIPELINE).await, []);
    let next = manifest("t", vec![window(0, 110, 120, 1)]);
    publish(catalog, &next, &[advance(0, 110, 120, epoch + 2)]).await.unwrap();
}

async fn the_id_of_a_topic_is_noted_once<C: Catalog + OffsetsCatalog>(catalog: &C) {
    owned(catalog, 0).await;
    owned_by(catalog, "other", 0).await;
    assert_eq!(catalog.topic_id(PIPELINE, "docs").await.unwrap(), None);
    assert_eq!(catalog.note_topic(PIPELINE, "docs", "first").await.unwrap(), "first");
    assert_eq!(catalog.note_topic(PIPELINE, "docs", "second").await.unwrap(), "first");
    assert_eq!(catalog.note_topic("other", "docs", "second").await.unwrap(), "second");
    assert_eq!(catalog.topic_id(PIPELINE, "docs").await.unwrap().as_deref(), Some("first"));
    assert_eq!(catalog.topic_id(PIPELINE, "texts").await.unwrap(), None);
}
