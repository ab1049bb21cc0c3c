//! A batch of records decoded and scored on all cores, in order.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::features::{BucketList, Scratch};
use crate::record::{Decoder, TextScratch};
use crate::score::VersionedWeight;
use crate::source::{Batch, Record};
use crate::window::{DeadLetter, ScoredDocument, ScoredRecord};

thread_local! {
    /// Of this thread, for as long as it lives: what a featuriser remembers stays warm from batch to batch.
    static SCRATCH: RefCell<(TextScratch, Scratch)> = RefCell::default();
}

const LONG_TEXT_BYTES: usize = 256 << 10;

/// In: a batch, and the weights of each record by number, for all targets. Out: one outcome a record, in the same order; the
/// same whatever the number of threads.
pub fn score_batch<'a>(
    batch: &Batch,
    decoder: &Decoder,
    kept_payload_bytes: usize,
    weight: impl Fn(usize) -> &'a VersionedWeight + Sync,
) -> Vec<ScoredRecord> {
    let score = |i| {
        SCRATCH.with_borrow_mut(|(text_scratch, scratch)| {
            score_record(batch.get(i), decoder, kept_payload_bytes, weight(i), text_scratch, scratch)
        })
    };
    (0..batch.len()).into_par_iter().with_min_len(16).map(score).collect()
}

fn score_record(
    record: Record<'_>,
    decoder: &Decoder,
    kept_payload_bytes: usize,
    weight: &VersionedWeight,
    text_scratch: &mut TextScratch,
    scratch: &mut Scratch,
) -> ScoredRecord {
    let Record { at, offset, timestamp_ms, payload, .. } = record;
    let payload_bytes = payload.map_or(0, <[u8]>::len) as u64;
    let outcome = match decoder.decode_ref(payload, at, offset, timestamp_ms, text_scratch) {
        Ok(document) => {
            // A long text's buckets are found again later: all together they could take more memory than is accounted for.
            let is_long = document.text.len() > LONG_TEXT_BYTES;
            let mut buckets = BucketList::new(weight.weight.featuriser().buckets);
            let score = if is_long {
                weight.score(&document.text, scratch, |_| ())
            } else {
                weight.score(&document.text, scratch, |chunk| buckets.extend(chunk))
            };
            let buckets = (!is_long).then_some(buckets);
            let other_weights = weight.for_others(&document.text, buckets.as_ref(), scratch);
            Ok(ScoredDocument { document: document.to_document(), score, other_weights, buckets })
        }
        Err(reject) => Err(DeadLetter {
            offset,
            record_timestamp_ms: timestamp_ms,
            reject,
            payload_bytes,
            payload: payload.map(|p| p[..p.len().min(kept_payload_bytes)].to_vec()),
        }),
    };
    ScoredRecord { offset, record_timestamp_ms: timestamp_ms, payload_bytes, outcome }
}
