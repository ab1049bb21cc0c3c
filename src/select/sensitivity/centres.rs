//! Centres: documents that stand for those around them, found by k-means.
//!
//! The format of their bytes, little-endian:
//!
//! ```text
//! 8 bytes   magic "WNWCENTR"
//! u32       version of the format, now 1
//! u32       exponent z, u32 number of centres, u32 dimensions, f64 Λ
//! f64       loss of each centre, in order
//! f32       their points, one after the other
//! 32 bytes  SHA-256 of everything before
//! ```

use sha2::{Digest, Sha256};

use super::Sensitivity;
use crate::record::TopicPartition;
use crate::select::Noise;

const MAGIC: &[u8; 8] = b"WNWCENTR";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
/// Points of one step of k-means, and steps.
const BATCH: usize = 1024;
const STEPS: usize = 60;

/// How centres are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CentreSettings {
    /// At most so many: those to which no document is nearest go.
    pub centres: usize,
    /// z: 1 or 2.
    pub exponent: u32,
    pub seed: u64,
}

/// A document that centres are found among.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplePoint {
    pub point: Vec<f32>,
    /// Only a document whose loss is known can be a centre.
    pub loss: Option<f64>,
}

/// Centres with their losses: an immutable version, so that the score of a document can be repeated.
#[derive(Debug, Clone, PartialEq)]
pub struct Centres {
    dims: usize,
    exponent: u32,
    /// Λ.
    scale: f64,
    losses: Vec<f64>,
    points: Vec<f32>,
}

/// Why bytes are no centres.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CentresError {
    #[error("version {0} of the format is not known")]
    UnknownVersion(u32),
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl Centres {
    /// Mini-batch k-means (Sculley 2010) from a start by D² sampling (Arthur and Vassilvitskii 2007); then every centre is
    /// moved to the document of its cluster that is nearest to it and has a loss. A function of the sample, its order and the
    /// seed. `None` if no document of the sample has a loss.
    ///
    /// # Panics
    /// If points differ in dimensions, no centre is wanted, or the exponent is neither 1 nor 2.
    pub fn fit(sample: &[SamplePoint], settings: &CentreSettings) -> Option<Self> {
        if sample.is_empty() {
            return None;
        }
        Self::near(sample, &clusters(sample, settings), settings.exponent)
    }

    /// Documents of the sample that have a loss, each the nearest to one of these means, one after the other as many numbers as its
    /// points have. `None` if no document of the sample has a loss.
    ///
    /// # Panics
    /// If points differ in dimensions.
    pub fn near(sample: &[SamplePoint], means: &[f32], exponent: u32) -> Option<Self> {
        let dims = sample.first()?.point.len();
        assert!((1..=2).contains(&exponent), "a distance to the power {exponent}");
        let members = snapped(sample, means);
        let (losses, points): (Vec<f64>, Vec<&[f32]>) =
            members.iter().filter_map(|&i| Some((sample[i].loss?.max(0.0), &sample[i].point[..]))).unzip();
        if losses.is_empty() {
            return None;
        }
        let mut found = Centres { dims, exponent, scale: 1.0, losses, points: points.concat() };
        found.scale = found.balanced_scale(sample);
        Some(found)
    }

    /// Λ at which losses and distances of the sample have the same sum. Without losses only distances count.
    fn balanced_scale(&self, sample: &[SamplePoint]) -> f64 {
        let nearest: Vec<_> = sample.iter().map(|s| nearest(&self.points, self.dims, &s.point)).collect();
        let losses: f64 = nearest.iter().map(|(centre, _)| self.losses[*centre]).sum();
        let distances: f64 = nearest.iter().map(|(_, squared)| self.powered(*squared)).sum();
        match (losses > 0.0, distances > 0.0) {
            (true, true) => losses / distances,
            (true, false) => 0.0,
            (false, _) => 1.0,
        }
    }

    fn powered(&self, squared: f64) -> f64 {
        if self.exponent == 2 { squared } else { squared.sqrt() }
    }

    /// # Panics
    /// If the point has other dimensions.
    pub fn sensitivity(&self, point: &[f32]) -> Sensitivity {
        assert_eq!(point.len(), self.dims, "the point of a document has other dimensions than the centres");
        let (centre, squared) = nearest(&self.points, self.dims, point);
        let score = self.losses[centre] + self.scale * self.powered(squared);
        Sensitivity { centre: centre as u32, distance: squared.sqrt(), score }
    }

    /// Number of centres.
    pub fn len(&self) -> usize {
        self.losses.len()
    }

    pub fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }

    /// Λ.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(80 + 8 * self.losses.len() + 4 * self.points.len());
        bytes.extend_from_slice(MAGIC);
        for number in [FORMAT_VERSION, self.exponent, self.losses.len() as u32, self.dims as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.scale.to_le_bytes());
        self.losses.iter().for_each(|loss| bytes.extend_from_slice(&loss.to_le_bytes()));
        self.points.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CentresError> {
        use CentresError::{Damaged, UnknownVersion};
        const ENDED: CentresError = Damaged("they end too early");
        let rest = bytes.strip_prefix(MAGIC).ok_or(Damaged("they do not begin with `WNWCENTR`"))?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(ENDED)?;
        let version = u32::from_le_bytes(*version);
        if version != FORMAT_VERSION {
            return Err(UnknownVersion(version));
        }
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(Damaged("the checksum does not match"));
        }
        let (header, rest) = rest.split_first_chunk::<20>().ok_or(ENDED)?;
        let number = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (exponent, n, dims) = (number(0), number(4) as usize, number(8) as usize);
        let (scale, _) = header[12..].split_first_chunk::<8>().ok_or(ENDED)?;
        let scale = f64::from_le_bytes(*scale);
        let (losses, points) =
            rest[..rest.len().saturating_sub(CHECKSUM_BYTES)].split_at_checked(8 * n).ok_or(ENDED)?;
        let losses: Vec<f64> = losses.as_chunks::<8>().0.iter().map(|loss| f64::from_le_bytes(*loss)).collect();
        let is_whole = points.len() == 4 * n * dims;
        let points: Vec<f32> = points.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let is_number = |loss: &f64| loss.is_finite() && *loss >= 0.0;
        let are_numbers = losses.iter().chain([&scale]).all(is_number) && points.iter().all(|x| x.is_finite());
        if !is_whole || !are_numbers || n == 0 || !(1..=2).contains(&exponent) {
            return Err(Damaged("they are not points with losses"));
        }
        Ok(Centres { dims, exponent, scale, losses, points })
    }
}

/// Means of clusters, of a sample that is not empty.
pub(super) fn clusters(sample: &[SamplePoint], settings: &CentreSettings) -> Vec<f32> {
    let dims = sample[0].point.len();
    assert!(sample.iter().all(|s| s.point.len() == dims), "points have different dimensions");
    assert!(settings.centres > 0, "{settings:?}");
    let noise = Noise::new(settings.seed, &TopicPartition::new("centres", 0));
    let mut counter = 0;
    let mut uniform = || {
        counter += 1;
        noise.sampling(counter)
    };
    let mut centres = start(sample, settings.centres, &mut uniform);
    improve(sample, &mut centres, &mut uniform);
    centres
}

/// The first by chance, each further one with a chance in proportion to its squared distance to the nearest before it.
fn start(sample: &[SamplePoint], n: usize, uniform: &mut impl FnMut() -> f64) -> Vec<f32> {
    let dims = sample[0].point.len();
    let mut distances = vec![f64::INFINITY; sample.len()];
    let mut next = (uniform() * sample.len() as f64) as usize;
    let mut centres = Vec::with_capacity(n * dims);
    while centres.len() < n * dims {
        let centre = &sample[next].point;
        centres.extend_from_slice(centre);
        for (distance, s) in distances.iter_mut().zip(sample) {
            *distance = distance.min(f64::from(squared_distance(&s.point, centre)));
        }
        let total: f64 = distances.iter().sum();
        if total <= 0.0 {
            // There are no more different points.
            break;
        }
        let mut left = uniform() * total;
        let is_next = |distance: &f64| {
            left -= distance;
            left < 0.0
        };
        let farthest = || (0..distances.len()).max_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        next = distances.iter().position(is_next).or_else(farthest).unwrap_or(0);
    }
    centres
}

/// Steps of mini-batch k-means: each point of a batch draws its centre towards itself, the less the more came before.
fn improve(sample: &[SamplePoint], centres: &mut [f32], uniform: &mut impl FnMut() -> f64) {
    let dims = sample[0].point.len();
    let mut counts = vec![0u32; centres.len() / dims];
    for _ in 0..STEPS {
        let batch: Vec<usize> =
            (0..BATCH.min(sample.len())).map(|_| (uniform() * sample.len() as f64) as usize).collect();
        let assigned: Vec<usize> = batch.iter().map(|&i| nearest(centres, dims, &sample[i].point).0).collect();
        for (i, centre) in batch.into_iter().zip(assigned) {
            counts[centre] += 1;
            let rate = 1.0 / counts[centre] as f32;
            let to = &mut centres[centre * dims..][..dims];
            to.iter_mut().zip(&sample[i].point).for_each(|(c, x)| *c += rate * (x - *c));
        }
    }
}

/// Of each centre the document that is nearest to it, of those that have a loss and are nearest to no other centre; equally
/// near ones by their place. Clusters without such a document go.
fn snapped(sample: &[SamplePoint], centres: &[f32]) -> Vec<usize> {
    let dims = sample[0].point.len();
    let mut best: Vec<Option<(f64, usize)>> = vec![None; centres.len() / dims];
    for (i, s) in sample.iter().enumerate().filter(|(_, s)| s.loss.is_some_and(f64::is_finite)) {
        let (centre, squared) = nearest(centres, dims, &s.point);
        if best[centre].is_none_or(|(least, _)| squared < least) {
            best[centre] = Some((squared, i));
        }
    }
    best.into_iter().flatten().map(|(_, i)| i).collect()
}

/// The number of the nearest point, the first of equally near ones, and its squared distance.
pub(super) fn nearest(points: &[f32], dims: usize, point: &[f32]) -> (usize, f64) {
    let mut found = (0, f32::INFINITY);
    for (number, other) in points.chunks_exact(dims).enumerate() {
        let squared = squared_distance(point, other);
        if squared < found.1 {
            found = (number, squared);
        }
    }
    (found.0, f64::from(found.1))
}

/// In eight sums that are added at last, for vectors of the processor; always in the same order.
pub(in crate::select) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += (a - b) * (a - b);
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f32>() + rest
}
