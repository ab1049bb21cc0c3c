//! N-gram counts that forget: what a distribution is made of that follows the stream. Pure.
//!
//! Each addition of n n-grams first multiplies what is there by 2^(−n / half-life), so that age is measured in n-grams and
//! never in time: the same additions give the same counts, bit for bit, whenever they happen. After a long stream the
//! counts sum to about half-life / ln 2.
//!
//! Bytes (integers and doubles little-endian):
//!
//! ```text
//! 8 bytes   magic "WNWCOUNT"
//! u32       format version
//! u32       length of the header
//! header    JSON: the featuriser
//! counts    one double a bucket
//! 32 bytes  SHA-256 of everything before
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ExpectedLoss, ExpectedLossVersion, ImportanceWeight, NgramCounts, Probabilities, Score};
use crate::features::{BucketList, Featuriser, Scratch};

const MAGIC: &[u8; 8] = b"WNWCOUNT";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;

/// Decayed counts, one a bucket: finite, not below zero, and not all zero.
#[derive(Debug, Clone, PartialEq)]
pub struct DecayedCounts {
    featuriser: Featuriser,
    counts: Vec<f64>,
}

/// Why bytes are no decayed counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecayedCountsError {
    #[error("decayed counts of format version {0}: this build reads version {FORMAT_VERSION}")]
    UnknownVersion(u32),
    #[error("damaged decayed counts: {0}")]
    Damaged(String),
}

impl DecayedCounts {
    /// The first bytes, in which the header ends: a featuriser takes some fifty.
    pub const HEAD_BYTES: usize = 256;

    /// A distribution as if it had been seen in so many n-grams, which decay like all others.
    ///
    /// # Panics
    /// If the distribution is not one over the featuriser's buckets, or `n_ngrams` is not above 0.
    pub fn prior(featuriser: Featuriser, distribution: &Probabilities, n_ngrams: u64) -> Self {
        let counts: Vec<f64> = distribution.as_slice().iter().map(|p| p * n_ngrams as f64).collect();
        assert_eq!(counts.len(), featuriser.buckets as usize, "a distribution of another featuriser");
        assert!(counts.iter().sum::<f64>() > 0.0, "a prior without weight has no distribution");
        DecayedCounts { featuriser, counts }
    }

    pub fn featuriser(&self) -> &Featuriser {
        &self.featuriser
    }

    /// Forgets as much as `added` is new, then adds it. `None` never forgets.
    ///
    /// # Panics
    /// If `added` has another number of buckets: it would come from another featuriser.
    pub fn add(&mut self, added: &NgramCounts, half_life_ngrams: Option<u64>) {
        assert_eq!(self.counts.len(), added.as_slice().len(), "counts of different featurisers cannot be added");
        let n_ngrams = added.total() as f64;
        let kept = half_life_ngrams.map_or(1.0, |half_life| (-n_ngrams / half_life as f64).exp2());
        for (count, added) in self.counts.iter_mut().zip(added.as_slice()) {
            *count = *count * kept + *added as f64;
        }
    }

    /// N-grams that are remembered, the decayed ones in part.
    pub fn total(&self) -> f64 {
        self.counts.iter().sum()
    }

    pub fn probabilities(&self) -> Probabilities {
        Probabilities::from_weights(self.counts.clone())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.featuriser).expect("a featuriser of plain fields always serialises");
        let mut bytes = Vec::with_capacity(header.len() + 8 * self.counts.len() + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header);
        self.counts.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// What counts are of, from the first [`Self::HEAD_BYTES`] of their bytes: they need not be read whole.
    pub fn featuriser_of_head(head: &[u8]) -> Result<Featuriser, DecayedCountsError> {
        Ok(split_header(after_version(head)?)?.0)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecayedCountsError> {
        let rest = after_version(bytes)?;
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(damaged(&format!("the checksum does not match the {} bytes", bytes.len())));
        }
        let (featuriser, rest) = split_header(rest)?;
        let (numbers, left) = rest[..rest.len().saturating_sub(CHECKSUM_BYTES)].as_chunks::<8>();
        if numbers.len() != featuriser.buckets as usize || !left.is_empty() {
            return Err(damaged("they are not one number a bucket"));
        }
        let counts: Vec<f64> = numbers.iter().map(|number| f64::from_le_bytes(*number)).collect();
        let total: f64 = counts.iter().sum();
        if !(total.is_finite() && total > 0.0 && counts.iter().all(|count| *count >= 0.0)) {
            return Err(damaged("they are not counts"));
        }
        Ok(DecayedCounts { featuriser, counts })
    }
}

fn damaged(what: &str) -> DecayedCountsError {
    DecayedCountsError::Damaged(what.to_owned())
}

/// What follows the magic and a version that this build reads.
fn after_version(bytes: &[u8]) -> Result<&[u8], DecayedCountsError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("they do not begin with `WNWCOUNT`"))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("they end within the version"))?;
    match u32::from_le_bytes(*version) {
        FORMAT_VERSION => Ok(rest),
        other => Err(DecayedCountsError::UnknownVersion(other)),
    }
}

/// The header, and what follows it.
fn split_header(bytes: &[u8]) -> Result<(Featuriser, &[u8]), DecayedCountsError> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("they end within the header"))?;
    let header = rest.split_at_checked(u32::from_le_bytes(*length) as usize);
    let (header, rest) = header.ok_or_else(|| damaged("they end within the header"))?;
    let featuriser: Featuriser = serde_json::from_slice(header).map_err(|e| damaged(&format!("header: {e}")))?;
    Ok((featuriser.validated().map_err(DecayedCountsError::Damaged)?, rest))
}

/// What a document's total log weight was made of, beside the model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WeightVersion {
    /// Of the raw distribution; `None`: the one that is fitted in the model.
    pub raw: Option<i64>,
    /// `None`: the raw distribution alone.
    pub selected: Option<SelectedVersion>,
    /// Of what trainers can be expected to lose on a document; `None`: that says nothing.
    pub expected_loss: Option<ExpectedLossVersion>,
}

/// A version of the counts of what was selected, and how much it says in the denominator.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SelectedVersion {
    pub version: i64,
    /// λ of the geometric mixture p_raw^(1−λ) · p_selected^λ, above 0 and up to 1.
    pub share: f64,
}

/// Of a document's n-grams.
#[derive(Default)]
struct Sums {
    log_importance_weight: f64,
    expected: f64,
    n_ngrams: u64,
}

/// Scores by one version of everything.
#[derive(Debug, Clone)]
pub struct VersionedWeight {
    pub version: WeightVersion,
    /// For the model's only target, or the first of several.
    pub weight: ImportanceWeight,
    /// For the other targets, in the model's order.
    pub others: Vec<ImportanceWeight>,
    /// Of the version's expected loss.
    pub expected: Option<ExpectedLoss>,
}

impl VersionedWeight {
    /// By what the model says alone, for its only target.
    pub fn pinned(weight: ImportanceWeight) -> Arc<Self> {
        Arc::new(VersionedWeight { version: WeightVersion::default(), weight, others: Vec::new(), expected: None })
    }

    /// One weight for every target, in the model's order, and what is expected of losses by that version.
    ///
    /// # Panics
    /// If there are none.
    pub fn of_targets(
        version: WeightVersion,
        weights: Vec<ImportanceWeight>,
        expected: Option<ExpectedLoss>,
    ) -> Arc<Self> {
        let mut weights = weights.into_iter();
        let weight = weights.next().expect("a model has targets");
        Arc::new(VersionedWeight { version, weight, others: weights.collect(), expected })
    }

    /// The log importance weights of a text for the targets but the first, from its buckets where they were kept. Nothing, at
    /// no cost, for one target.
    pub fn for_others(&self, text: &str, buckets: Option<&BucketList>, scratch: &mut Scratch) -> Vec<f64> {
        let mut sums = vec![0.0; self.others.len()];
        let mut add = |chunk: &[u32]| {
            sums.iter_mut().zip(&self.others).for_each(|(sum, weight)| *sum = weight.add(*sum, chunk));
        };
        match buckets {
            _ if self.others.is_empty() => {}
            Some(buckets) => buckets.for_each_chunk(add),
            None => {
                self.weight.featuriser().for_each_chunk(text, scratch, &mut add);
            }
        }
        sums
    }

    /// Scores a text; `each_chunk` sees its buckets on the way.
    pub fn score(&self, text: &str, scratch: &mut Scratch, mut each_chunk: impl FnMut(&[u32])) -> Score {
        let mut sums = Sums::default();
        let n_tokens = self.weight.featuriser().for_each_chunk(text, scratch, |chunk| {
            each_chunk(chunk);
            self.add(&mut sums, chunk);
        });
        self.of_sums(&sums, n_tokens)
    }

    /// The score of a text whose buckets were kept: the same numbers.
    pub fn score_list(&self, list: &BucketList, n_tokens: u32) -> Score {
        let mut sums = Sums::default();
        list.for_each_chunk(|chunk| self.add(&mut sums, chunk));
        self.of_sums(&sums, n_tokens)
    }

    #[inline]
    fn add(&self, sums: &mut Sums, chunk: &[u32]) {
        sums.log_importance_weight = self.weight.add(sums.log_importance_weight, chunk);
        if let Some(expected) = &self.expected {
            sums.expected = expected.add(sums.expected, chunk);
            sums.n_ngrams += chunk.len() as u64;
        }
    }

    fn of_sums(&self, sums: &Sums, n_tokens: u32) -> Score {
        let of_sum = |expected: &ExpectedLoss| expected.of_sum(sums.expected, sums.n_ngrams);
        let expected_loss_weight = match (&self.expected, self.version.expected_loss) {
            (Some(expected), Some(version)) => version.coefficient * of_sum(expected),
            _ => 0.0,
        };
        let expected_loss = self.expected.as_ref().filter(|expected| expected.has_learnt()).map(of_sum);
        let log_importance_weight = sums.log_importance_weight;
        Score { n_tokens, log_importance_weight, expected_loss_weight, expected_loss, ..Score::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::score::{DEFAULT_SMOOTHING, kl_divergence};

    const BUCKETS: u32 = 16;

    fn featuriser() -> Featuriser {
        Featuriser { buckets: BUCKETS, ..Featuriser::default() }
    }

    fn counts() -> impl Strategy<Value = NgramCounts> {
        proptest::collection::vec(0u64..1_000_000, BUCKETS as usize).prop_map(NgramCounts::from_vec)
    }

    fn prior(counts: &NgramCounts, n_ngrams: u64) -> DecayedCounts {
        DecayedCounts::prior(featuriser(), &counts.probabilities(), n_ngrams)
    }

    #[test]
    fn the_head_holds_the_largest_featuriser() {
        let largest = Featuriser { max_n: u8::MAX, buckets: u32::MAX, ..Featuriser::default() };
        let before = MAGIC.len() + size_of::<u32>() + size_of::<u32>();
        assert!(before + serde_json::to_vec(&largest).unwrap().len() < DecayedCounts::HEAD_BYTES);
        for damaged in [&b""[..], b"WNWCOUNT", b"WNWCOUNT\x01\0\0\0\xFF\0\0\0{}"] {
            assert!(matches!(DecayedCounts::featuriser_of_head(damaged), Err(DecayedCountsError::Damaged(_))));
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back_and_damage_is_noticed(start in counts(), added in counts(), half_life in 1u64..1_000_000_000, at in 0usize..1000, flip in 1u8..) {
            prop_assume!(start.total() > 0);
            let mut state = prior(&start, 1_000);
            state.add(&added, Some(half_life));
            let mut bytes = state.to_bytes();
            prop_assert_eq!(&DecayedCounts::from_bytes(&bytes).unwrap(), &state);
            let head = &bytes[..DecayedCounts::HEAD_BYTES.min(bytes.len())];
            prop_assert_eq!(DecayedCounts::featuriser_of_head(head), Ok(featuriser()));
            let at = at % bytes.len();
            prop_assert!(DecayedCounts::from_bytes(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(DecayedCounts::from_bytes(&bytes).is_err());
        }

        #[test]
        fn one_half_life_halves_what_was_there(start in counts(), added in counts()) {
            prop_assume!(start.total() > 0 && added.total() > 0);
            let mut state = prior(&start, 5_000);
            let before = state.clone();
            state.add(&added, Some(added.total()));
            for ((now, then), new) in state.counts.iter().zip(&before.counts).zip(added.as_slice()) {
                prop_assert_eq!(*now, then / 2.0 + *new as f64);
            }
        }

        #[test]
        fn without_a_half_life_nothing_is_forgotten_and_order_does_not_matter(start in counts(), a in counts(), b in counts()) {
            prop_assume!(start.total() > 0);
            let exact = DecayedCounts { featuriser: featuriser(), counts: start.as_slice().iter().map(|c| *c as f64).collect() };
            let (mut ab, mut ba) = (exact.clone(), exact);
            ab.add(&a, None);
            ab.add(&b, None);
            ba.add(&b, None);
            ba.add(&a, None);
            prop_assert_eq!(&ab, &ba);
            prop_assert_eq!(ab.total(), (start.total() + a.total() + b.total()) as f64);
        }

        #[test]
        fn it_is_always_a_distribution(start in counts(), added in proptest::collection::vec(counts(), 0..20), half_life in 1u64..10_000_000) {
            prop_assume!(start.total() > 0);
            let mut state = prior(&start, 1_000_000);
            added.iter().for_each(|added| state.add(added, Some(half_life)));
            let sum: f64 = state.probabilities().as_slice().iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-12 && DecayedCounts::from_bytes(&state.to_bytes()).is_ok());
        }
    }

    /// A long stream is remembered by half-life / ln 2 n-grams.
    #[test]
    fn memory_settles() {
        let added = NgramCounts::from_vec(vec![1; BUCKETS as usize]);
        let mut state = prior(&added, 1);
        (0..100_000).for_each(|_| state.add(&added, Some(10_000)));
        let expected = 10_000.0 / std::f64::consts::LN_2;
        assert!((state.total() / expected - 1.0).abs() < 1e-3, "{} instead of {expected}", state.total());
    }

    /// The raw mix switches at once: what is left of the old one halves with every half-life, and so the divergence from a
    /// fresh fit of the new mix falls, at least by half each time.
    #[test]
    fn after_a_drift_the_divergence_from_a_fresh_fit_decays_with_the_half_life() {
        const HALF_LIFE: u64 = 1_000_000;
        const CHUNK: u64 = HALF_LIFE / 20;
        let mix = |shift: u64| -> Vec<u64> { (0..u64::from(BUCKETS)).map(|b| 1 + (b + shift) % 16 * 3).collect() };
        let (old, new) = (mix(0), mix(8));
        // Publications differ: each draws its own counts around the mix.
        let mut random = 88_172_645_463_325_252u64;
        let mut draw = |mix: &[u64]| {
            let total: u64 = mix.iter().sum();
            NgramCounts::from_vec(
                mix.iter()
                    .map(|weight| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        (CHUNK * weight / total) * (90 + random % 21) / 100
                    })
                    .collect(),
            )
        };
        let mut state = prior(&NgramCounts::from_vec(old.clone()), 100_000);
        (0..200).for_each(|_| state.add(&draw(&old), Some(HALF_LIFE)));
        let fresh = NgramCounts::from_vec(new.clone()).probabilities();
        let stale = NgramCounts::from_vec(old).probabilities();
        let divergence = |state: &DecayedCounts| kl_divergence(&fresh, &state.probabilities(), DEFAULT_SMOOTHING);
        let before = divergence(&state);
        assert!((before - kl_divergence(&fresh, &stale, DEFAULT_SMOOTHING)).abs() < 0.05 * before, "{before}");
        let mut last = before;
        for half_lives in 1..=4 {
            let mut added = 0;
            while added < HALF_LIFE {
                let counts = draw(&new);
                added += counts.total();
                state.add(&counts, Some(HALF_LIFE));
            }
            // What is left of the old mix is 2^-k of the distribution, up to one publication's worth.
            let left = 0.5f64.powi(half_lives);
            let expected = Probabilities::mixture(&[(left, stale.clone()), (1.0 - left, fresh.clone())]);
            let expected = kl_divergence(&fresh, &expected, DEFAULT_SMOOTHING);
            let now = divergence(&state);
            assert!(now < 0.5 * last, "after {half_lives} half-lives {now}, before {last}");
            assert!((now / expected - 1.0).abs() < 0.35, "after {half_lives} half-lives {now}, by theory {expected}");
            last = now;
        }
        assert!(last < 0.01 * before, "{last} of {before}");
    }
}
