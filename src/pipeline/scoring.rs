//! A batch of records decoded and scored on all cores, in order.

use rayon::prelude::*;

use crate::features::Scratch;
use crate::record::Decoder;
use crate::score::{ImportanceWeight, Model};
use crate::source::{Batch, Record};
use crate::window::{DeadLetter, ScoredDocument, ScoredRecord};

/// In: a batch. Out: one outcome a record, in the same order; the same whatever the number of threads.
pub fn score_batch(
    batch: &Batch,
    decoder: &Decoder,
    payload_head_bytes: usize,
    model: &Model,
    weight: &ImportanceWeight,
) -> Vec<ScoredRecord> {
    let score = |scratch: &mut Scratch, i: usize| {
        score_record(batch.get(i), decoder, payload_head_bytes, model, weight, scratch)
    };
    (0..batch.len()).into_par_iter().with_min_len(16).map_init(Scratch::default, score).collect()
}

fn score_record(
    record: Record<'_>,
    decoder: &Decoder,
    payload_head_bytes: usize,
    model: &Model,
    weight: &ImportanceWeight,
    scratch: &mut Scratch,
) -> ScoredRecord {
    let Record { at, offset, timestamp_ms, payload, .. } = record;
    let payload_bytes = payload.map_or(0, <[u8]>::len) as u64;
    let outcome = match decoder.decode(payload, at, offset, timestamp_ms) {
        Ok(document) => {
            let mut buckets = Vec::new();
            let n_tokens = model.featuriser.for_each_bucket(&document.text, scratch, |bucket| buckets.push(bucket));
            let score = weight.score_buckets(n_tokens, &buckets);
            Ok(ScoredDocument { document, score, buckets })
        }
        Err(reject) => Err(DeadLetter {
            offset,
            record_timestamp_ms: timestamp_ms,
            reject,
            payload_bytes,
            payload_head: payload.map(|p| p[..p.len().min(payload_head_bytes)].to_vec()).unwrap_or_default(),
        }),
    };
    ScoredRecord { offset, record_timestamp_ms: timestamp_ms, payload_bytes, outcome }
}
