//! Edges that follow a stream: every published window adds its numbers to sketches, and a window takes its edges from them when it
//! opens.
//!
//! Sketches remember n documents as n · 2^(−m / half-life) after m further ones, so that edges go where the stream goes.
//!
//! The format of their bytes, little-endian:
//!
//! ```text
//! 8 bytes   magic "WNWEDGES"
//! u32       version of the format, now 1
//! u32       bytes of the sketch of the cut-off's scores, and the sketch
//! u32       number of pools; of each:
//!   u8      whether it is a source of its own, u32 bytes of its name, and the name (none of the pool of all others)
//!   u32     bytes of the sketch of its importance, and the sketch
//! 32 bytes  SHA-256 of everything before
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::super::Division;
use super::{CoverageSettings, Edges, FixedCutoff, FixedEdges, QuantileSketch, QuantileSketchError, SketchVersion};

const MAGIC: &[u8; 8] = b"WNWEDGES";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
/// Documents are counted in such parts, so that what fades stays a whole number.
const PARTS: u64 = 1 << 20;
/// What is remembered of fewer parts of a document is forgotten.
const LEAST: u64 = PARTS / 16;
const ENDED: QuantileSketchError = QuantileSketchError::Damaged("they end too early");
/// Edges rest on so many documents at least: of them five are beyond each end with the usual clip.
pub const MIN_SKETCHED: u64 = 1_000;

/// The numbers of the documents of a window, or of several. Tallies add up, in whatever order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EdgeTally {
    /// Scores that a cut-off looks at, of all candidates; none without one.
    cutoff: QuantileSketch,
    /// Importance of those that it leaves, by source; `None`: the pool of all that are none of their own.
    pools: BTreeMap<Option<String>, QuantileSketch>,
}

impl EdgeTally {
    /// `pools`: in the order of the division.
    pub fn new(division: &Division, cutoff: QuantileSketch, pools: Vec<QuantileSketch>) -> Self {
        let source_of = |pool| division.source_of(pool).map(str::to_owned);
        let pools = pools.into_iter().enumerate().filter(|(_, sketch)| !sketch.is_empty());
        EdgeTally { cutoff, pools: pools.map(|(pool, sketch)| (source_of(pool), sketch)).collect() }
    }

    pub fn n_documents(&self) -> u64 {
        self.pools.values().map(QuantileSketch::len).sum::<u64>().max(self.cutoff.len())
    }

    pub fn merge(&mut self, other: &EdgeTally) {
        self.cutoff.merge(&other.cutoff);
        for (source, sketch) in &other.pools {
            self.pools.entry(source.clone()).or_default().merge(sketch);
        }
    }

    pub fn held_bytes(&self) -> usize {
        self.cutoff.held_bytes() + self.pools.values().map(QuantileSketch::held_bytes).sum::<usize>()
    }
}

/// What a stream remembers of its numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EdgeSketches {
    /// As in [`EdgeTally`], in parts of documents.
    cutoff: QuantileSketch,
    pools: BTreeMap<Option<String>, QuantileSketch>,
}

/// Sketches by their number in the catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgesVersion {
    pub version: i64,
    pub sketches: Arc<EdgeSketches>,
}

impl EdgeSketches {
    /// Forgets as much as is new, then adds it.
    pub fn add(&mut self, tally: &EdgeTally, half_life_documents: u64) {
        let kept = (-(tally.n_documents() as f64) / half_life_documents as f64).exp2();
        self.cutoff.fade(kept, LEAST);
        self.cutoff.merge_times(&tally.cutoff, PARTS);
        self.pools.values_mut().for_each(|sketch| sketch.fade(kept, LEAST));
        for (source, sketch) in &tally.pools {
            self.pools.entry(source.clone()).or_default().merge_times(sketch, PARTS);
        }
        // Of sources that are no more.
        self.pools.retain(|_, sketch| !sketch.is_empty());
    }

    /// Documents that edges rest on.
    pub fn n_documents(&self) -> u64 {
        self.pools.values().map(QuantileSketch::len).sum::<u64>() / PARTS
    }

    /// Strata of each pool of a division, and the threshold of the cut-off. A source of which too little is known takes the edges of all.
    /// `None` where that is true of all together.
    fn fixed(&self, version: i64, settings: &CoverageSettings, division: &Division) -> Option<FixedEdges> {
        let of = SketchVersion { version, n_documents: self.n_documents() };
        if of.n_documents < MIN_SKETCHED {
            return None;
        }
        let mut all = QuantileSketch::default();
        self.pools.values().for_each(|sketch| all.merge(sketch));
        let of_pool = |pool: usize| {
            let own = self.pools.get(&division.source_of(pool).map(str::to_owned));
            let sketch = own.filter(|own| own.len() / PARTS >= MIN_SKETCHED).unwrap_or(&all);
            Edges::of_sketch(sketch, settings.strata, settings.clip)
        };
        let pools = (0..division.n_pools()).map(of_pool).collect::<Option<_>>()?;
        let cutoff = settings.cutoff.and_then(|cutoff| FixedCutoff::of_sketch(&self.cutoff, cutoff));
        Some(FixedEdges { of, cutoff, pools })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, &self.cutoff.to_bytes());
        bytes.extend_from_slice(&(self.pools.len() as u32).to_le_bytes());
        for (source, sketch) in &self.pools {
            bytes.push(u8::from(source.is_some()));
            put(&mut bytes, source.as_deref().unwrap_or_default().as_bytes());
            put(&mut bytes, &sketch.to_bytes());
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QuantileSketchError> {
        use QuantileSketchError::{Damaged, UnknownVersion};
        let rest = bytes.strip_prefix(MAGIC).ok_or(Damaged("they do not begin with `WNWEDGES`"))?;
        let (version, _) = rest.split_first_chunk::<4>().ok_or(ENDED)?;
        let version = u32::from_le_bytes(*version);
        if version != FORMAT_VERSION {
            return Err(UnknownVersion(version));
        }
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(Damaged("the checksum does not match"));
        }
        let mut rest = bytes[..body].get(MAGIC.len() + 4..).ok_or(ENDED)?;
        let cutoff = QuantileSketch::from_bytes(part(&mut rest)?)?;
        let n_pools = number(&mut rest)?;
        let mut pools = BTreeMap::new();
        for _ in 0..n_pools {
            let (is_source, after) = rest.split_first().ok_or(ENDED)?;
            rest = after;
            let name = str::from_utf8(part(&mut rest)?).map_err(|_| Damaged("the name of a source is no text"))?;
            let source = (*is_source == 1).then(|| name.to_owned());
            pools.insert(source, QuantileSketch::from_bytes(part(&mut rest)?)?);
        }
        if !rest.is_empty() || pools.len() != n_pools {
            return Err(Damaged("they are not sketches of pools"));
        }
        Ok(EdgeSketches { cutoff, pools })
    }
}

impl EdgesVersion {
    /// See [`SketchVersion`].
    pub fn number(&self) -> SketchVersion {
        SketchVersion { version: self.version, n_documents: self.sketches.n_documents() }
    }

    /// What a window takes that is divided so; `None`: too little is known yet, and it cuts strata of its own.
    pub fn fixed(&self, settings: &CoverageSettings, division: &Division) -> Option<FixedEdges> {
        self.sketches.fixed(self.version, settings, division)
    }
}

/// Bytes with their number before them.
fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
    bytes.extend_from_slice(part);
}

fn number(rest: &mut &[u8]) -> Result<usize, QuantileSketchError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(ENDED)?;
    *rest = after;
    Ok(u32::from_le_bytes(*number) as usize)
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], QuantileSketchError> {
    let n = number(rest)?;
    let (part, after) = rest.split_at_checked(n).ok_or(ENDED)?;
    *rest = after;
    Ok(part)
}
