//! The model: a fitted target and raw distribution with its featuriser, as bytes that carry their own checksum.
//!
//! File layout, version 1 (integers little-endian):
//!
//! ```text
//! 8 bytes   magic "WNWMODEL"
//! u32       format version
//! u32       length of the header
//! header    JSON: featuriser, smoothing, provenance
//! counts    target then raw, one LEB128 number a bucket
//! 32 bytes  SHA-256 of everything before
//! ```
//!
//! A model is named by the SHA-256 of the whole file ([`ModelId`]), so equal counts made in the same way have one name.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;

use super::{NgramCounts, distribution::SMOOTHING};
use crate::features::Featuriser;

const MAGIC: &[u8; 8] = b"WNWMODEL";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;

/// A fitted model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub featuriser: Featuriser,
    pub target: NgramCounts,
    pub raw: NgramCounts,
    pub provenance: Provenance,
}

/// Where a model comes from, for people: never used in scoring.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub target_documents: u64,
    pub raw_documents: u64,
    /// File names as given to `winnowd fit`.
    pub target_inputs: Vec<String>,
    pub raw_inputs: Vec<String>,
    pub made_by: String,
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
    #[error("model format version {0}: this build reads version {FORMAT_VERSION}")]
    UnknownVersion(u32),
    #[error("model is damaged: its checksum does not match its {0} bytes")]
    Checksum(usize),
    #[error("model is damaged: {0}")]
    Damaged(String),
    #[error("model has no {0} documents with tokens, so it cannot score")]
    Empty(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Header {
    featuriser: Featuriser,
    smoothing: f64,
    provenance: Provenance,
}

impl Model {
    /// A model that can score: both sides have counted something.
    pub fn new(
        featuriser: Featuriser,
        target: NgramCounts,
        raw: NgramCounts,
        provenance: Provenance,
    ) -> Result<Self, ModelError> {
        if target.total() == 0 {
            return Err(ModelError::Empty("target"));
        }
        if raw.total() == 0 {
            return Err(ModelError::Empty("raw"));
        }
        Ok(Model { featuriser, target, raw, provenance })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let header = Header { featuriser: self.featuriser, smoothing: SMOOTHING, provenance: self.provenance.clone() };
        let header = serde_json::to_vec(&header).expect("a header of plain fields always serialises");
        let mut bytes = Vec::with_capacity(header.len() + 4 * self.featuriser.buckets() + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(header.len()).expect("provenance below 4 GiB").to_le_bytes());
        bytes.extend_from_slice(&header);
        for &count in self.target.as_slice().iter().chain(self.raw.as_slice()) {
            write_leb128(&mut bytes, count);
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
        if header.smoothing != SMOOTHING {
            return Err(ModelError::Damaged(format!("smoothing {}, expected {SMOOTHING}", header.smoothing)));
        }
        let mut read_counts = || -> Result<NgramCounts, ModelError> {
            let counts = (0..featuriser.buckets())
                .map(|_| read_leb128(&mut counts).ok_or_else(|| damaged("it ends within the counts")));
            Ok(NgramCounts::from_vec(counts.collect::<Result<_, _>>()?))
        };
        let (target, raw) = (read_counts()?, read_counts()?);
        if counts.len() != CHECKSUM_BYTES {
            return Err(damaged("bytes left over after the counts"));
        }
        Model::new(featuriser, target, raw, header.provenance)
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

    fn model(target: Vec<u64>, raw: Vec<u64>) -> Model {
        let featuriser = Featuriser::Reference { max_n: 2, buckets: target.len() as u32 };
        let provenance =
            Provenance { target_documents: 3, target_inputs: vec!["a.jsonl".into()], ..Default::default() };
        Model::new(featuriser, NgramCounts::from_vec(target), NgramCounts::from_vec(raw), provenance).unwrap()
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
    fn a_side_without_counts_cannot_score() {
        let zero = NgramCounts::zero(4);
        let one = NgramCounts::from_vec(vec![1; 4]);
        let featuriser = Featuriser::Reference { max_n: 1, buckets: 4 };
        let empty = |t, r| Model::new(featuriser, t, r, Provenance::default()).unwrap_err();
        assert_eq!(empty(zero.clone(), one.clone()), ModelError::Empty("target"));
        assert_eq!(empty(one, zero), ModelError::Empty("raw"));
    }

    #[test]
    fn later_versions_are_named() {
        let mut bytes = model(vec![1; 4], vec![1; 4]).to_bytes();
        bytes[8] = 9;
        assert_eq!(
            Model::from_bytes(&bytes).unwrap_err().to_string(),
            "model format version 9: this build reads version 1"
        );
    }
}
