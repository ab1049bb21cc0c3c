//! The model: a fitted target and raw distribution with its featuriser, as bytes that carry their own checksum.
//!
//! File layout, version 2 (integers little-endian):
//!
//! ```text
//! 8 bytes   magic "WNWMODEL"
//! u32       format version
//! u32       length of the header
//! header    JSON: featuriser, smoothing, targets (name, proportion, provenance), raw (provenance), made_by
//! counts    the targets in order, then raw: one LEB128 number a bucket
//! 32 bytes  SHA-256 of everything before
//! ```
//!
//! A model is named by the SHA-256 of the whole file ([`ModelId`]), so equal counts made in the same way have one name.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;

use super::{NgramCounts, Probabilities, TargetDistribution};
use crate::features::{Featuriser, Scratch};

const MAGIC: &[u8; 8] = b"WNWMODEL";
const FORMAT_VERSION: u32 = 2;
const CHECKSUM_BYTES: usize = 32;

/// A fitted model: what is wanted, what comes, and how texts become n-grams.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub featuriser: Featuriser,
    /// Added to each probability before its logarithm is taken.
    pub smoothing: f64,
    /// At least one, each with another name.
    pub targets: Vec<Target>,
    pub raw: Side,
    /// The program and its version.
    pub made_by: String,
}

/// One kind of text that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub name: String,
    /// Share of a selection that is meant for this target; those of a model sum to 1.
    pub proportion: f64,
    pub side: Side,
}

/// Counts and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    pub counts: NgramCounts,
    pub provenance: Provenance,
}

/// Where counts come from, for people: never used in scoring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub documents: u64,
    /// Names of the files that it was fitted on: all of them, or the first of many.
    pub inputs: Vec<String>,
    /// What was left out of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_inputs: Option<AllInputs>,
    /// The most frequent n-grams with their counts, most frequent first, if they were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_ngrams: Vec<(String, u64)>,
}

/// A list of names that is too long to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllInputs {
    pub n: u64,
    /// `sha256:` and the digest of the names in hex, a byte 0 behind each.
    pub digest: String,
}

/// Names of files that are kept, of however many: models go where little room is.
const KEPT_INPUTS: usize = 10;

impl Provenance {
    pub fn of(documents: u64, inputs: impl Iterator<Item = String>) -> Self {
        let (mut kept, mut n, mut digest) = (Vec::new(), 0, Sha256::new());
        for name in inputs {
            n += 1;
            digest.update(&name);
            digest.update([0]);
            if kept.len() < KEPT_INPUTS {
                kept.push(name);
            }
        }
        let all = || AllInputs { n, digest: format!("sha256:{}", crate::hex(&digest.finalize())) };
        let all_inputs = (n > kept.len() as u64).then(all);
        Provenance { documents, inputs: kept, all_inputs, top_ngrams: Vec::new() }
    }

    pub fn n_inputs(&self) -> u64 {
        self.all_inputs.as_ref().map_or(self.inputs.len() as u64, |all| all.n)
    }
}

/// `sha256:` and the digest of the model's bytes in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    pub fn of(bytes: &[u8]) -> Self {
        ModelId(format!("sha256:{}", crate::hex(&Sha256::digest(bytes))))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("not a model: it does not begin with `WNWMODEL`")]
    NotAModel,
    #[error("model format version {0}: this build reads version {FORMAT_VERSION}; fit the model again")]
    UnknownVersion(u32),
    #[error("model is damaged: its checksum does not match its {0} bytes")]
    Checksum(usize),
    #[error("model is damaged: {0}")]
    Damaged(String),
    #[error("model has no {0} documents with tokens, so it cannot score")]
    Empty(String),
    #[error("model: {0}")]
    Invalid(String),
}

#[derive(Serialize, Deserialize)]
struct Header {
    featuriser: Featuriser,
    smoothing: f64,
    targets: Vec<TargetHeader>,
    raw: Provenance,
    made_by: String,
}

#[derive(Serialize, Deserialize)]
struct TargetHeader {
    name: String,
    proportion: f64,
    #[serde(flatten)]
    provenance: Provenance,
}

impl Model {
    /// Smoothing that is allowed: keeps log ratios finite and below 32.
    pub const SMOOTHING: std::ops::RangeInclusive<f64> = 1e-12..=1.0;
    pub const MAX_TARGETS: usize = 256;

    /// The model itself if it can score: every side has counted something, the targets have names and proportions.
    pub fn validated(self) -> Result<Self, ModelError> {
        let invalid = |problem: String| Err(ModelError::Invalid(problem));
        self.featuriser.validated().map_err(ModelError::Invalid)?;
        if !Self::SMOOTHING.contains(&self.smoothing) {
            return invalid(format!("smoothing {}: must be 1e-12 to 1", self.smoothing));
        }
        if !(1..=Self::MAX_TARGETS).contains(&self.targets.len()) {
            return invalid(format!("{} targets: must be 1 to {}", self.targets.len(), Self::MAX_TARGETS));
        }
        for (i, target) in self.targets.iter().enumerate() {
            let Target { name, proportion, side } = target;
            if side.counts.total() == 0 {
                return Err(ModelError::Empty(if name.is_empty() { "target".into() } else { format!("`{name}`") }));
            }
            if self.targets[..i].iter().any(|other| other.name == *name) {
                return invalid(format!("two targets are named `{name}`"));
            }
            if !(*proportion > 0.0 && *proportion <= 1.0) {
                return invalid(format!("target `{name}` has proportion {proportion}: must be above 0 and at most 1"));
            }
        }
        let sum: f64 = self.targets.iter().map(|t| t.proportion).sum();
        if (sum - 1.0).abs() > 1e-9 {
            return invalid(format!("the proportions of the targets sum to {sum}, not to 1"));
        }
        if self.raw.counts.total() == 0 {
            return Err(ModelError::Empty("raw".into()));
        }
        let fits = |side: &Side| side.counts.as_slice().len() == self.featuriser.buckets as usize;
        if !(fits(&self.raw) && self.targets.iter().all(|t| fits(&t.side))) {
            return invalid("counts do not fit the number of buckets".to_owned());
        }
        Ok(self)
    }

    /// The distribution that is wanted: of all targets, by their proportions.
    pub fn target_probabilities(&self) -> Probabilities {
        let part = |target: &Target| (target.proportion, target.side.counts.probabilities());
        Probabilities::mixture(&self.targets.iter().map(part).collect::<Vec<_>>())
    }

    /// Frequent n-grams of the targets by bucket, where they were kept.
    pub fn target_ngrams(&self) -> BTreeMap<u32, Vec<String>> {
        let mut by_bucket: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let mut scratch = Scratch::default();
        for (ngram, _) in self.targets.iter().flat_map(|target| &target.side.provenance.top_ngrams) {
            if let Some(bucket) = self.featuriser.bucket_of(ngram, &mut scratch) {
                by_bucket.entry(bucket).or_default().push(ngram.clone());
            }
        }
        by_bucket
    }

    /// The distribution that is wanted, with what it takes to measure a selection by it, and by each of several targets.
    pub fn target_distribution(&self) -> TargetDistribution {
        let of = |probabilities| TargetDistribution::new(self.featuriser, probabilities, self.smoothing);
        let whole = of(self.target_probabilities());
        match &self.targets[..] {
            [_] => whole,
            targets => whole.mixture_of(targets.iter().map(|target| of(target.side.counts.probabilities())).collect()),
        }
    }

    /// # Panics
    /// If the model is not valid.
    pub fn to_bytes(&self) -> Vec<u8> {
        let target = |target: &Target| TargetHeader {
            name: target.name.clone(),
            proportion: target.proportion,
            provenance: target.side.provenance.clone(),
        };
        let header = Header {
            featuriser: self.featuriser,
            smoothing: self.smoothing,
            targets: self.targets.iter().map(target).collect(),
            raw: self.raw.provenance.clone(),
            made_by: self.made_by.clone(),
        };
        let header = serde_json::to_vec(&header).expect("a header of plain fields always serialises");
        let mut bytes = Vec::with_capacity(header.len() + 4 * self.featuriser.buckets as usize + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(header.len()).expect("provenance below 4 GiB").to_le_bytes());
        bytes.extend_from_slice(&header);
        for side in self.targets.iter().map(|t| &t.side).chain([&self.raw]) {
            side.counts.as_slice().iter().for_each(|&count| write_leb128(&mut bytes, count));
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        let damaged = |what: &str| ModelError::Damaged(what.to_owned());
        let rest = bytes.strip_prefix(MAGIC).ok_or(ModelError::NotAModel)?;
        let (version, rest) = split_u32(rest).ok_or_else(|| damaged("it ends within the version"))?;
        if version != FORMAT_VERSION {
            return Err(ModelError::UnknownVersion(version));
        }
        let body = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or_else(|| damaged("it is too short"))?;
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(ModelError::Checksum(bytes.len()));
        }
        let (header_len, rest) = split_u32(rest).ok_or_else(|| damaged("it ends within the header"))?;
        let (header, mut counts) =
            rest.split_at_checked(header_len as usize).ok_or_else(|| damaged("it ends within the header"))?;
        let header: Header = serde_json::from_slice(header).map_err(|e| ModelError::Damaged(format!("header: {e}")))?;
        let featuriser = header.featuriser.validated().map_err(ModelError::Damaged)?;
        let mut read_side = |provenance| -> Result<Side, ModelError> {
            let counts = (0..featuriser.buckets)
                .map(|_| read_leb128(&mut counts).ok_or_else(|| damaged("it ends within the counts")));
            let counts: Vec<u64> = counts.collect::<Result<_, _>>()?;
            let sum = counts.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
            sum.ok_or_else(|| damaged("the sum of its counts has more than 64 bits"))?;
            Ok(Side { counts: NgramCounts::from_vec(counts), provenance })
        };
        let mut targets = Vec::with_capacity(header.targets.len());
        for TargetHeader { name, proportion, provenance } in header.targets {
            targets.push(Target { name, proportion, side: read_side(provenance)? });
        }
        let raw = read_side(header.raw)?;
        if counts.len() != CHECKSUM_BYTES {
            return Err(damaged("bytes left over after the counts"));
        }
        Model { featuriser, smoothing: header.smoothing, targets, raw, made_by: header.made_by }.validated()
    }
}

impl Side {
    /// Counts of unknown origin.
    pub fn of(counts: NgramCounts) -> Self {
        Side { counts, provenance: Provenance::default() }
    }
}

impl Model {
    /// A valid model of one target without a name, with the package's smoothing.
    pub fn of_one_target(featuriser: Featuriser, target: Side, raw: Side) -> Result<Self, ModelError> {
        let targets = vec![Target { name: String::new(), proportion: 1.0, side: target }];
        let made_by = concat!("winnowd ", env!("CARGO_PKG_VERSION")).to_owned();
        Model { featuriser, smoothing: super::DEFAULT_SMOOTHING, targets, raw, made_by }.validated()
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn write_leb128(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_leb128(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7F);
        if low << shift >> shift != low {
            return None;
        }
        value |= low << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn featuriser(buckets: u32) -> Featuriser {
        Featuriser { buckets, ..Featuriser::default() }
    }

    fn side(counts: Vec<u64>) -> Side {
        let provenance = Provenance::of(3, ["a.jsonl".to_owned()].into_iter());
        let provenance = Provenance { top_ngrams: vec![("of the".into(), counts[0])], ..provenance };
        Side { counts: NgramCounts::from_vec(counts), provenance }
    }

    fn model(target: Vec<u64>, raw: Vec<u64>) -> Model {
        Model::of_one_target(featuriser(target.len() as u32), side(target), side(raw)).unwrap()
    }

    proptest! {
        #[test]
        fn round_trips_and_keeps_its_name(target in proptest::collection::vec(any::<u64>().prop_map(|c| c >> 8), 8), raw in proptest::collection::vec(1u64..300, 8)) {
            prop_assume!(target.iter().any(|&c| c > 0));
            let model = model(target, raw);
            let bytes = model.to_bytes();
            let read = Model::from_bytes(&bytes).unwrap();
            prop_assert_eq!(ModelId::of(&read.to_bytes()), ModelId::of(&bytes));
            prop_assert_eq!(read, model);
        }

        #[test]
        fn any_flipped_byte_or_cut_is_noticed(at in 0usize..500, flip in 1u8..) {
            let mut bytes = model(vec![1, 2, 300, 4], vec![5, 6, 7, 80_000]).to_bytes();
            let at = at % bytes.len();
            prop_assert!(Model::from_bytes(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(Model::from_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn models_that_cannot_score_are_refused() {
        let good = Model {
            targets: ["code", "prose"]
                .map(|name| Target { name: name.into(), proportion: 0.5, side: side(vec![1, 2, 3, 4]) })
                .into(),
            ..model(vec![1; 4], vec![1; 4])
        };
        assert_eq!(Model::from_bytes(&good.to_bytes()).unwrap(), good);
        let refused = |change: fn(&mut Model)| {
            let mut model = good.clone();
            change(&mut model);
            model.validated().unwrap_err().to_string()
        };
        for (change, problem) in [
            (|m: &mut Model| m.raw = side(vec![0; 4])) as fn(&mut Model),
            |m| m.targets[1].side = side(vec![0; 4]),
            |m| m.targets[1].name = "code".into(),
            |m| m.targets[1].proportion = 0.6,
            |m| m.targets[1].proportion = f64::NAN,
            |m| m.targets.clear(),
            |m| m.smoothing = 0.0,
            |m| m.raw = side(vec![1; 5]),
        ]
        .into_iter()
        .zip([
            "no raw documents",
            "no `prose` documents",
            "two targets are named `code`",
            "sum to 1.1",
            "proportion NaN",
            "0 targets",
            "smoothing 0",
            "do not fit",
        ]) {
            let message = refused(change);
            assert!(message.contains(problem), "`{message}` does not say `{problem}`");
        }
    }

    /// Found by `tests/fuzz`.
    #[test]
    fn counts_without_a_sum_are_refused() {
        let mut model = model(vec![1; 4], vec![1; 4]);
        model.raw.counts = NgramCounts::from_vec(vec![u64::MAX, 0, 0, 0]);
        assert_eq!(Model::from_bytes(&model.to_bytes()).as_ref(), Ok(&model));
        model.raw.counts = NgramCounts::from_vec(vec![u64::MAX, 1, 0, 0]);
        let error = Model::from_bytes(&model.to_bytes()).unwrap_err().to_string();
        assert_eq!(error, "model is damaged: the sum of its counts has more than 64 bits");
    }

    #[test]
    fn of_many_inputs_a_few_names_and_a_digest_are_kept() {
        let names = |n: usize| (0..n).map(|i| format!("s3://lake/crawl/part-{i:05}.jsonl.zst"));
        let few = Provenance::of(7, names(KEPT_INPUTS));
        assert_eq!((few.inputs.len(), few.all_inputs.as_ref(), few.n_inputs()), (KEPT_INPUTS, None, 10));
        let many = Provenance::of(7, names(20_000));
        assert_eq!((&many.inputs, many.n_inputs()), (&few.inputs, 20_000));
        let digest = |provenance: &Provenance| provenance.all_inputs.clone().unwrap().digest;
        let listed: String = names(11).map(|name| name + "\0").collect();
        assert_eq!(
            digest(&Provenance::of(7, names(11))),
            format!("sha256:{}", crate::hex(&Sha256::digest(listed.as_bytes())))
        );
        assert_ne!(digest(&many), digest(&Provenance::of(7, names(19_999))));

        let model = Model { raw: Side { provenance: many, ..side(vec![1; 4]) }, ..model(vec![1; 4], vec![1; 4]) };
        let bytes = model.to_bytes();
        assert!(bytes.len() < 2_000, "{} bytes", bytes.len());
        assert_eq!(Model::from_bytes(&bytes).unwrap(), model);
    }

    /// Models that name all their inputs have been written before: they are read, and written again as they were.
    #[test]
    fn models_that_name_all_inputs_are_read() {
        let names: Vec<String> = (0..1_000).map(|i| format!("{i}.jsonl")).collect();
        let written = serde_json::json!({ "documents": 5, "inputs": names });
        let read: Provenance = serde_json::from_value(written.clone()).unwrap();
        assert_eq!((&read.inputs, read.n_inputs()), (&names, 1_000));
        assert_eq!(serde_json::to_value(&read).unwrap(), written);
    }

    #[test]
    fn other_versions_are_named() {
        let mut bytes = model(vec![1; 4], vec![1; 4]).to_bytes();
        bytes[8] = 9;
        assert_eq!(
            Model::from_bytes(&bytes).unwrap_err().to_string(),
            "model format version 9: this build reads version 2; fit the model again"
        );
    }
}
