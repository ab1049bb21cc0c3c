//! Predictors as bytes, for the catalog.
//!
//! ```text
//! 8 bytes   magic "WNWELOSS" (what is learnt) or "WNWEXPCT" (one version of what is expected)
//! u32       format version
//! u32       buckets
//! doubles   weights; of what is learnt also the sums of squares
//! doubles   half-life, or bias
//! JSON      the featuriser; of what is learnt with the other numbers
//! 32 bytes  SHA-256 of everything before
//! ```
//!
//! Integers and doubles are little-endian.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{ExpectedLoss, LossPredictor, MAX_PREDICTOR_BUCKETS, Numbers, n_buckets};
use crate::features::Featuriser;

const LEARNT: &[u8; 8] = b"WNWELOSS";
const EXPECTED: &[u8; 8] = b"WNWEXPCT";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;

/// Why bytes are no predictor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PredictorError {
    #[error("a predictor of format version {0}: this build reads version {FORMAT_VERSION}")]
    UnknownVersion(u32),
    #[error("a damaged predictor: {0}")]
    Damaged(String),
}

fn damaged(what: &str) -> PredictorError {
    PredictorError::Damaged(what.to_owned())
}

fn to_bytes(magic: &[u8; 8], tables: &[&[f64]], number: f64, json: &[u8]) -> Vec<u8> {
    let buckets = tables[0].len();
    let mut bytes = Vec::with_capacity(8 * buckets * tables.len() + json.len() + 64);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(buckets as u32).to_le_bytes());
    tables.iter().copied().flatten().chain([&number]).for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
    bytes.extend_from_slice(json);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// The tables, the number and what follows them.
type Parts<'a> = (Vec<Vec<f64>>, f64, &'a [u8]);

fn from_bytes<'a>(magic: &[u8; 8], n_tables: usize, bytes: &'a [u8]) -> Result<Parts<'a>, PredictorError> {
    let rest = bytes.strip_prefix(magic).ok_or_else(|| damaged("it does not begin with its name"))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it ends within the version"))?;
    let version = u32::from_le_bytes(*version);
    if version != FORMAT_VERSION {
        return Err(PredictorError::UnknownVersion(version));
    }
    let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
    if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
        return Err(damaged(&format!("the checksum does not match the {} bytes", bytes.len())));
    }
    let (buckets, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it ends within the buckets"))?;
    let buckets = u32::from_le_bytes(*buckets);
    if !(1..=MAX_PREDICTOR_BUCKETS).contains(&buckets) {
        return Err(damaged(&format!("{buckets} buckets")));
    }
    let buckets = buckets as usize;
    let rest = &rest[..rest.len().saturating_sub(CHECKSUM_BYTES)];
    let numbers = rest.split_at_checked(8 * (buckets * n_tables + 1));
    let (numbers, rest) = numbers.ok_or_else(|| damaged("it ends within its numbers"))?;
    let numbers: Vec<f64> = numbers.as_chunks::<8>().0.iter().map(|number| f64::from_le_bytes(*number)).collect();
    if !numbers.iter().all(|number| number.is_finite()) {
        return Err(damaged("a number is not finite"));
    }
    let tables = numbers.chunks_exact(buckets).take(n_tables).map(<[f64]>::to_vec).collect();
    Ok((tables, numbers[buckets * n_tables], rest))
}

impl LossPredictor {
    pub fn to_bytes(&self) -> Vec<u8> {
        let LossPredictor { weights, squares, half_life, numbers } = self;
        let json = serde_json::to_vec(numbers).expect("finite numbers always serialise");
        to_bytes(LEARNT, &[weights, squares], *half_life, &json)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PredictorError> {
        let (mut tables, half_life, json) = from_bytes(LEARNT, 2, bytes)?;
        let numbers: Numbers = serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))?;
        numbers.featuriser.validated().map_err(PredictorError::Damaged)?;
        let (Some(squares), Some(weights)) = (tables.pop(), tables.pop()) else { return Err(damaged("a table lacks")) };
        if weights.len() != n_buckets(&numbers.featuriser) {
            return Err(damaged("its tables are not those of its featuriser"));
        }
        Ok(LossPredictor { weights, squares, half_life, numbers })
    }
}

impl ExpectedLoss {
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(&self.featuriser).expect("a featuriser of plain fields always serialises");
        to_bytes(EXPECTED, &[&self.weights], self.bias, &json)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PredictorError> {
        let (mut tables, bias, json) = from_bytes(EXPECTED, 1, bytes)?;
        let featuriser: Featuriser = serde_json::from_slice(json).map_err(|e| damaged(&e.to_string()))?;
        let featuriser = featuriser.validated().map_err(PredictorError::Damaged)?;
        match tables.pop() {
            Some(weights) if weights.len() == n_buckets(&featuriser) => {
                Ok(ExpectedLoss { featuriser, bias, weights: Arc::from(weights) })
            }
            _ => Err(damaged("its table is not one of its featuriser")),
        }
    }
}
