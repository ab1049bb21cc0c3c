//! Means of clusters that follow a stream: every published window adds what its documents say, and windows take a version of them
//! instead of finding clusters of their own.
//!
//! Mini-batch k-means (Sculley 2010) with windows as batches: a mean moves towards the mean of the documents that were nearest to it,
//! the less the more documents it remembers. It remembers n documents as n · 2^(−m / half-life) after m further ones, so that it goes
//! where the stream goes. A cluster that remembers next to nothing any more begins anew within one that stands for too much: at a
//! document of it that is drawn in proportion to its squared distance from the mean, as a start of k-means is.
//!
//! The format of their bytes, little-endian:
//!
//! ```text
//! 8 bytes   magic "WNWMEANS"
//! u32       version of the format, now 1
//! u32       number of clusters, u32 dimensions, u32 bytes of the space's name
//! bytes     the name
//! f64       documents that each cluster remembers
//! f32       the means, one after the other
//! 32 bytes  SHA-256 of everything before
//! ```

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::centres::{CentreSettings, CentresError, SamplePoint, clusters, nearest};

const MAGIC: &[u8; 8] = b"WNWMEANS";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
/// A cluster that remembers less than this share of an even part begins anew.
const DYING: f64 = 0.1;
/// At most one of so many at once: the next publication looks again.
const REVIVED: usize = 16;

/// What a window takes of the clusters of its stream.
#[derive(Debug, Clone)]
pub struct StreamClusters {
    /// Of its points, see [`super::SensitivitySelector::space`].
    pub space: Arc<str>,
    /// `None`: there are none yet, and the window finds its own.
    pub version: Option<ClusterVersion>,
}

/// Means by their number in the catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterVersion {
    pub version: i64,
    /// The version that these clusters began with: what is said of others cannot be added.
    pub began: i64,
    pub means: Arc<ClusterMeans>,
}

/// What the documents of a window, or of several, add to the clusters of their stream.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterAddition {
    /// Those that it is said of; `None`: of their own, with which others may begin.
    pub began: Option<i64>,
    pub tally: ClusterTally,
}

/// Immutable: a version of them can be named, and a window that took it decided again.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterMeans {
    /// What the points are: those of another space have nothing to do with these.
    space: String,
    dims: usize,
    /// Documents that each remembers.
    weights: Vec<f64>,
    means: Vec<f32>,
}

/// What the documents of windows say of clusters. Tallies add up.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterTally {
    space: String,
    dims: usize,
    n_documents: Vec<u64>,
    sums: Vec<f64>,
    /// Of each cluster: the sum of the squared distances from its mean.
    errors: Vec<f64>,
    /// And the document at which another one may begin: the one whose squared distance over a number of its own is the largest,
    /// which is a draw in proportion to the squared distances.
    spares: Vec<Option<Spare>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Spare {
    priority: f64,
    point: Vec<f32>,
}

impl ClusterMeans {
    /// Up to `n` means; further ones are at the origin and remember nothing, so that they will begin anew.
    ///
    /// # Panics
    /// If the means are not whole points, or none are wanted.
    pub fn new(space: String, dims: usize, mut means: Vec<f32>, n: usize) -> Self {
        assert!(dims > 0 && n > 0 && means.len().is_multiple_of(dims), "means of {dims} dimensions");
        means.resize(n * dims, 0.0);
        ClusterMeans { space, dims, weights: vec![0.0; means.len() / dims], means }
    }

    /// Clusters of a sample of their own, as [`super::Centres::fit`] finds them. `None` of nothing.
    ///
    /// # Panics
    /// If points differ in dimensions, or none are wanted.
    pub fn find(space: String, sample: &[SamplePoint], settings: &CentreSettings) -> Option<Self> {
        let dims = sample.first()?.point.len();
        let found = clusters(sample, settings);
        Some(ClusterMeans::new(space, dims, found, settings.centres))
    }

    /// Number of clusters.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    pub fn dims(&self) -> usize {
        self.dims
    }

    pub fn means(&self) -> &[f32] {
        &self.means
    }

    /// Documents that each remembers.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Whether a tally can be added: it is of the same space, with as many dimensions and clusters.
    pub fn is_like(&self, tally: &ClusterTally) -> bool {
        (&self.space, self.dims, self.len()) == (&tally.space, tally.dims, tally.n_documents.len())
    }

    pub fn is_of(&self, space: &str) -> bool {
        self.space == space
    }

    /// What these points say.
    ///
    /// # Panics
    /// If one has other dimensions.
    pub fn tally<'a>(&self, points: impl Iterator<Item = &'a [f32]>) -> ClusterTally {
        let mut tally = ClusterTally {
            space: self.space.clone(),
            dims: self.dims,
            n_documents: vec![0; self.len()],
            sums: vec![0.0; self.means.len()],
            errors: vec![0.0; self.len()],
            spares: vec![None; self.len()],
        };
        for point in points {
            assert_eq!(point.len(), self.dims, "a point has other dimensions than the means");
            let (cluster, squared) = nearest(&self.means, self.dims, point);
            tally.n_documents[cluster] += 1;
            let sums = &mut tally.sums[cluster * self.dims..][..self.dims];
            sums.iter_mut().zip(point).for_each(|(sum, x)| *sum += f64::from(*x));
            tally.errors[cluster] += squared;
            let (priority, spare) = (squared / own_number(point), &mut tally.spares[cluster]);
            if priority > spare.as_ref().map_or(0.0, |spare| spare.priority) {
                *spare = Some(Spare { priority, point: point.to_vec() });
            }
        }
        tally
    }

    /// Forgets as much as is new, then adds it.
    ///
    /// # Panics
    /// If it is of other clusters, see [`ClusterMeans::is_like`].
    pub fn add(&mut self, tally: &ClusterTally, half_life_documents: u64) {
        assert!(self.is_like(tally), "a tally of other clusters");
        let kept = (-(tally.n_documents() as f64) / half_life_documents as f64).exp2();
        for (cluster, weight) in self.weights.iter_mut().enumerate() {
            *weight *= kept;
            let n = tally.n_documents[cluster] as f64;
            if n > 0.0 {
                let range = cluster * self.dims..(cluster + 1) * self.dims;
                for (mean, sum) in self.means[range.clone()].iter_mut().zip(&tally.sums[range]) {
                    *mean = ((f64::from(*mean) * *weight + sum) / (*weight + n)) as f32;
                }
                *weight += n;
            }
        }
        self.revive(tally);
    }

    fn revive(&mut self, tally: &ClusterTally) {
        let least = DYING * self.weights.iter().sum::<f64>() / self.len() as f64;
        let mut dying: Vec<usize> = (0..self.len()).filter(|&cluster| self.weights[cluster] < least).collect();
        dying.sort_by(|&a, &b| self.weights[a].total_cmp(&self.weights[b]));
        let mut worst: Vec<usize> = (0..self.len()).collect();
        worst.sort_by(|&a, &b| tally.errors[b].total_cmp(&tally.errors[a]));
        let spares = worst.into_iter().filter_map(|cluster| tally.spares[cluster].as_ref());
        for (cluster, spare) in dying.into_iter().zip(spares).take((self.len() / REVIVED).max(1)) {
            self.means[cluster * self.dims..][..self.dims].copy_from_slice(&spare.point);
            // Enough not to be replaced at once, and little beside what will come if there is something.
            self.weights[cluster] = least;
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.space.len() + 8 * self.weights.len() + 4 * self.means.len());
        bytes.extend_from_slice(MAGIC);
        for number in [FORMAT_VERSION, self.len() as u32, self.dims as u32, self.space.len() as u32] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.space.as_bytes());
        self.weights.iter().for_each(|weight| bytes.extend_from_slice(&weight.to_le_bytes()));
        self.means.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CentresError> {
        use CentresError::{Damaged, UnknownVersion};
        const ENDED: CentresError = Damaged("they end too early");
        let rest = bytes.strip_prefix(MAGIC).ok_or(Damaged("they do not begin with `WNWMEANS`"))?;
        let (version, rest) = rest.split_first_chunk::<4>().ok_or(ENDED)?;
        let version = u32::from_le_bytes(*version);
        if version != FORMAT_VERSION {
            return Err(UnknownVersion(version));
        }
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(Damaged("the checksum does not match"));
        }
        let rest = &rest[..rest.len().saturating_sub(CHECKSUM_BYTES)];
        let (header, rest) = rest.split_first_chunk::<12>().ok_or(ENDED)?;
        let number = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]) as usize;
        let (n, dims, name_bytes) = (number(0), number(4), number(8));
        let (name, rest) = rest.split_at_checked(name_bytes).ok_or(ENDED)?;
        let (weights, means) = rest.split_at_checked(8 * n).ok_or(ENDED)?;
        let space = String::from_utf8(name.to_vec()).map_err(|_| Damaged("the name of their space is no text"))?;
        let weights: Vec<f64> = weights.as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect();
        let is_whole = means.len() == 4 * n * dims;
        let means: Vec<f32> = means.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let are_numbers = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && means.iter().all(|x| x.is_finite());
        if !is_whole || !are_numbers || n == 0 || dims == 0 {
            return Err(Damaged("they are not means of clusters"));
        }
        Ok(ClusterMeans { space, dims, weights, means })
    }
}

impl ClusterAddition {
    /// Of the windows of a publication those that are of the same clusters count together. One that knew of none is left out where
    /// others did, and of several that knew of none the one with most documents is taken.
    pub fn merge(&mut self, other: ClusterAddition) {
        match (self.began, other.began) {
            (Some(one), Some(same)) if one == same && self.tally.is_like(&other.tally) => {
                self.tally.merge(&other.tally);
            }
            (None, None) if self.tally.n_documents() < other.tally.n_documents() => *self = other,
            // It knows of later ones.
            (one, Some(later)) if one.is_none_or(|one| one < later) => *self = other,
            _ => {}
        }
    }
}

impl ClusterTally {
    pub fn n_documents(&self) -> u64 {
        self.n_documents.iter().sum()
    }

    /// Whether another one is of clusters with the same numbers.
    pub fn is_like(&self, other: &ClusterTally) -> bool {
        let of = |tally: &ClusterTally| (tally.space.clone(), tally.dims, tally.n_documents.len());
        of(self) == of(other)
    }

    /// # Panics
    /// If it is of other clusters.
    pub fn merge(&mut self, other: &ClusterTally) {
        assert!(self.is_like(other), "a tally of other clusters");
        self.n_documents.iter_mut().zip(&other.n_documents).for_each(|(a, b)| *a += b);
        self.sums.iter_mut().zip(&other.sums).for_each(|(a, b)| *a += b);
        self.errors.iter_mut().zip(&other.errors).for_each(|(a, b)| *a += b);
        let priority = |spare: &Option<Spare>| spare.as_ref().map_or(0.0, |spare| spare.priority);
        for (own, other) in self.spares.iter_mut().zip(&other.spares) {
            if priority(other) > priority(own) {
                own.clone_from(other);
            }
        }
    }

    /// Means of clusters that begin with this. Fewer documents than clusters are nothing to begin with: windows go on finding their own.
    pub fn begin(&self) -> Option<ClusterMeans> {
        (self.n_documents() >= self.n_documents.len() as u64).then(|| {
            // At the origin, until something is near to it or it is revived.
            let mut means = ClusterMeans::new(self.space.clone(), self.dims, Vec::new(), self.n_documents.len());
            means.add(self, u64::MAX);
            means
        })
    }

    pub fn held_bytes(&self) -> usize {
        let of_cluster =
            2 * size_of::<u64>() + size_of::<Option<Spare>>() + self.dims * (size_of::<f64>() + size_of::<f32>());
        size_of::<ClusterTally>() + self.n_documents.len() * of_cluster
    }
}

/// In (0, 1], of the point alone, whatever came before it.
fn own_number(point: &[f32]) -> f64 {
    let mix = |hash: u64, x: &f32| {
        let hash = (hash ^ u64::from(x.to_bits())).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        hash ^ (hash >> 29)
    };
    let hash = point.iter().fold(0x5EED, mix).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((hash >> 11) + 1) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIMS: usize = 3;

    fn means(points: &[[f32; DIMS]]) -> ClusterMeans {
        ClusterMeans::new("e".to_owned(), DIMS, points.concat(), points.len())
    }

    fn tally(means: &ClusterMeans, points: &[[f32; DIMS]]) -> ClusterTally {
        means.tally(points.iter().map(|point| &point[..]))
    }

    /// No cluster begins anew.
    fn without_spares(mut tally: ClusterTally) -> ClusterTally {
        tally.spares.fill(None);
        tally
    }

    fn point() -> impl Strategy<Value = [f32; DIMS]> {
        // Whole numbers: sums of them are exact, in any order.
        proptest::array::uniform3((-50i8..50).prop_map(f32::from))
    }

    proptest! {
        /// However documents are divided into windows, and in whatever order these come.
        #[test]
        fn tallies_add_up(
            centres in proptest::collection::vec(point(), 1..5),
            points in proptest::collection::vec((point(), 0usize..4), 0..40),
        ) {
            let means = means(&centres);
            let all: Vec<_> = points.iter().map(|(point, _)| *point).collect();
            let whole = tally(&means, &all);
            let mut parts: Vec<_> = (0..4)
                .map(|part| points.iter().filter(|(_, of)| *of == part).map(|(point, _)| *point).collect::<Vec<_>>())
                .map(|points| tally(&means, &points))
                .collect();
            let mut sum = parts.pop().unwrap();
            parts.iter().rev().for_each(|part| sum.merge(part));
            prop_assert_eq!(&sum, &whole);
        }

        /// Nothing is forgotten: a mean is that of all documents that were nearest.
        #[test]
        fn a_mean_is_a_mean(
            batches in proptest::collection::vec(proptest::collection::vec((-9i8..9).prop_map(f32::from), 1..9), 1..5),
        ) {
            let mut means = means(&[[0.0; DIMS], [1000.0; DIMS]]);
            for batch in &batches {
                let points: Vec<_> = batch.iter().map(|x| [*x, 0.0, 1.0]).collect();
                means.add(&without_spares(tally(&means, &points)), u64::MAX);
            }
            let all: Vec<f64> = batches.concat().into_iter().map(f64::from).collect();
            let expected = all.iter().sum::<f64>() / all.len() as f64;
            prop_assert!((f64::from(means.means()[0]) - expected).abs() < 1e-4);
            prop_assert_eq!(&means.means()[1..DIMS], &[0.0, 1.0]);
            prop_assert_eq!(&means.means()[DIMS..], &[1000.0; DIMS]);
            prop_assert_eq!(means.weights(), &[all.len() as f64, 0.0]);
        }

        #[test]
        fn bytes_come_back_and_damage_is_seen(centres in proptest::collection::vec(point(), 1..5), at in 0usize..200) {
            let mut means = means(&centres);
            let of_own = tally(&means, &centres);
            means.add(&of_own, 10);
            let mut bytes = means.to_bytes();
            prop_assert_eq!(ClusterMeans::from_bytes(&bytes), Ok(means));
            let at = at % bytes.len();
            bytes[at] ^= 1;
            prop_assert!(ClusterMeans::from_bytes(&bytes).is_err());
            prop_assert!(ClusterMeans::from_bytes(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn half_of_a_mean_is_as_old_as_its_half_life() {
        let mut means = means(&[[0.0; DIMS]]);
        let add = |means: &mut ClusterMeans, x: f32| {
            means.add(&without_spares(tally(means, &[[x, 0.0, 0.0]; 100])), 100);
        };
        add(&mut means, 8.0);
        assert_eq!((means.means()[0], means.weights()[0]), (8.0, 100.0));
        add(&mut means, 2.0);
        // A hundred new ones beside half of the old.
        assert_eq!((means.means()[0], means.weights()[0]), (4.0, 150.0));
    }

    #[test]
    fn a_cluster_to_which_nothing_comes_begins_anew_where_something_does() {
        let mut means = means(&[[0.0; DIMS], [-900.0; DIMS]]);
        let points: Vec<_> = (0..100).map(|i| if i % 2 == 0 { [0.0; DIMS] } else { [9.0; DIMS] }).collect();
        let first = tally(&means, &points);
        means.add(&first, 1000);
        assert_eq!(&means.means()[DIMS..], &[9.0; DIMS]);
        let second = tally(&means, &points);
        means.add(&second, 1000);
        let third = tally(&means, &points);
        means.add(&third, 1000);
        assert_eq!((third.n_documents[0], third.n_documents[1]), (50, 50));
        // From 4.5, of which little is left.
        assert!(means.means()[0] < 2.5 && means.means()[DIMS] == 9.0, "{means:?}");
    }

    /// Windows of a stream whose kinds of documents change: what moves with it is about as near to them as what each finds itself.
    #[test]
    fn means_that_follow_are_about_as_near_as_own_ones() {
        let mut state = 9u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let settings = CentreSettings { centres: 12, exponent: 2, seed: 3 };
        let mut stream: Option<ClusterMeans> = None;
        let (mut of_stream, mut of_own) = (0.0, 0.0);
        for window in 0..40 {
            // Ten kinds; after half of the windows five of them are others.
            let sample: Vec<SamplePoint> = (0..600)
                .map(|i| {
                    let kind = i % 10 + if window >= 20 && i % 2 == 0 { 10 } else { 0 };
                    let place = |d: usize| (kind * 7919 % (d + 5)) as f32 + random();
                    SamplePoint { point: (0..8).map(place).collect(), loss: None }
                })
                .collect();
            let points = || sample.iter().map(|s| &s.point[..]);
            let distance = |means: &ClusterMeans| points().map(|x| nearest(means.means(), 8, x).1).sum::<f64>();
            let own = ClusterMeans::find("e".to_owned(), &sample, &settings).expect("a sample");
            // Not the first windows of either kind.
            if window % 20 >= 15 {
                of_stream += stream.as_ref().map_or(f64::INFINITY, &distance);
                of_own += distance(&own);
            }
            match &mut stream {
                Some(means) => means.add(&means.tally(points()), 1_000),
                none => *none = own.tally(points()).begin(),
            }
        }
        assert!(of_stream < 1.15 * of_own, "{of_stream} beside {of_own}");
    }

    #[test]
    fn additions_of_a_publication_are_of_the_newest_clusters() {
        let of = |began, x: f32| ClusterAddition { began, tally: tally(&means(&[[0.0; DIMS]]), &[[x; DIMS]]) };
        let merged = |all: &[(Option<i64>, f32)]| {
            let mut all = all.iter().map(|(began, x)| of(*began, *x));
            let mut sum = all.next().expect("one");
            all.for_each(|addition| sum.merge(addition));
            (sum.began, sum.tally.sums[0], sum.tally.n_documents())
        };
        assert_eq!(merged(&[(None, 1.0), (None, 2.0)]), (None, 1.0, 1));
        let two = ClusterAddition { began: None, tally: tally(&means(&[[0.0; DIMS]]), &[[5.0; DIMS]; 2]) };
        let mut larger = of(None, 1.0);
        larger.merge(two.clone());
        assert_eq!(larger, two);
        assert_eq!(merged(&[(None, 1.0), (Some(4), 2.0), (Some(4), 3.0), (None, 9.0)]), (Some(4), 5.0, 2));
        assert_eq!(merged(&[(Some(7), 1.0), (Some(4), 2.0), (Some(7), 3.0)]), (Some(7), 4.0, 2));
    }

    #[test]
    fn other_clusters_are_told_apart() {
        let one = means(&[[0.0; DIMS]]);
        let same = tally(&one, &[[1.0; DIMS]]);
        let two = tally(&means(&[[0.0; DIMS], [1.0; DIMS]]), &[]);
        let other = ClusterMeans::new("f".to_owned(), DIMS, vec![0.0; DIMS], 1).tally(std::iter::empty());
        let flat = ClusterMeans::new("e".to_owned(), 1, vec![0.0], 1).tally(std::iter::empty());
        assert!(one.is_like(&same) && one.is_of("e") && !one.is_of("f"));
        for tally in [&two, &other, &flat] {
            assert!(!one.is_like(tally) && !same.is_like(tally));
        }
        assert_eq!((flat.begin(), same.begin().map(|means| means.means().to_vec())), (None, Some(vec![1.0; DIMS])));
        let few = tally(&means(&[[0.0; DIMS], [1.0; DIMS]]), &[[0.0; DIMS]]);
        assert_eq!(few.begin(), None, "one document is nothing for two clusters to begin with");
    }
}
