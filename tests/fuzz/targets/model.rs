//! Bytes as a model, and as what the catalog keeps beside it (counts, predictors): an outcome, in bounded memory; and what can be read is
//! written to bytes that say the same and are written again just so.
//!
//! Checksums are added here, as no fuzzer finds them. Bytes that begin with none of the names are the header of a model, a line feed,
//! and its counts.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use winnowd::score::{DecayedCounts, ExpectedLoss, LossPredictor, Model};
use winnowd_fuzz::within;

fn reads<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(
    bytes: &[u8],
    from_bytes: fn(&[u8]) -> Result<T, E>,
    to_bytes: fn(&T) -> Vec<u8>,
) -> Option<T> {
    let read = within(256 * bytes.len() + (1 << 16), || from_bytes(bytes)).ok()?;
    let written = to_bytes(&read);
    let again = from_bytes(&written).expect("what was written can be read");
    assert_eq!(again, read);
    assert_eq!(to_bytes(&again), written);
    Some(read)
}

fn take(bytes: &[u8]) {
    if let Some(model) = reads(bytes, Model::from_bytes, Model::to_bytes) {
        let sum: f64 = model.target_probabilities().as_slice().iter().sum();
        assert!((sum - 1.0).abs() < 1e-6, "the probabilities sum to {sum}");
        assert!(model.target_ngrams().keys().all(|bucket| *bucket < model.featuriser.buckets));
    }
    let featurisers = [
        reads(bytes, DecayedCounts::from_bytes, DecayedCounts::to_bytes).map(|counts| *counts.featuriser()),
        reads(bytes, LossPredictor::from_bytes, LossPredictor::to_bytes).map(|learnt| *learnt.featuriser()),
        reads(bytes, ExpectedLoss::from_bytes, ExpectedLoss::to_bytes).map(|expected| *expected.featuriser()),
    ];
    for featuriser in featurisers.into_iter().flatten() {
        assert_eq!(featuriser.validated(), Ok(featuriser));
    }
}

fuzz_target!(|input: &[u8]| {
    take(input);
    let mut bytes = match input.starts_with(b"WNW") {
        true => input.to_vec(),
        false => {
            let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
            let length = (end as u32).to_le_bytes();
            let counts = input.get(end + 1..).unwrap_or_default();
            [b"WNWMODEL\x02\0\0\0", &length[..], &input[..end], counts].concat()
        }
    };
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    take(&bytes);
});
