//! A text as a point: its n-gram distribution, projected at random. Stands in for an embedding where none comes with the
//! documents.
//!
//! The point of a text with n-grams in buckets b, c_b of n in all, is Σ_b √(c_b / n) · r_b / √d, where r_b are d random signs
//! of the bucket. √(c / n) is a unit vector, and the distance of two such vectors is √2 times the Hellinger distance of the
//! distributions: it needs no statistics of a corpus, and frequent n-grams do not drown the others. The random signs keep
//! squared distances on average, with a relative standard deviation of about √(2 / d) (Achlioptas 2003, "Database-friendly
//! random projections").

use super::{Featuriser, Scratch};

/// From buckets to points of [`Projection::dims`] dimensions; the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    words: usize,
}

/// Signs that one random number gives.
const SIGNS: usize = 64;

impl Projection {
    /// # Panics
    /// If the dimensions are not 64, 128, 192 or 256.
    pub const fn new(dims: usize) -> Self {
        assert!(
            dims > 0 && dims <= 256 && dims.is_multiple_of(SIGNS),
            "a projection has 64, 128, 192 or 256 dimensions"
        );
        Projection { words: dims / SIGNS }
    }

    pub const fn dims(&self) -> usize {
        self.words * SIGNS
    }

    /// The point of a text.
    pub fn of_text(&self, text: &str, featuriser: &Featuriser, scratch: &mut Scratch) -> Vec<f32> {
        let mut buckets = Vec::new();
        featuriser.for_each_chunk(text, scratch, |chunk| buckets.extend_from_slice(chunk));
        self.of_buckets(&mut buckets)
    }

    /// The point of a text with n-grams in these buckets, which are sorted for it; of none it is the origin. Where the list
    /// was in another order the point is the same.
    pub fn of_buckets(&self, buckets: &mut [u32]) -> Vec<f32> {
        buckets.sort_unstable();
        let mut point = vec![0.0f32; self.dims()];
        for run in buckets.chunk_by(|a, b| a == b) {
            let length = ((run.len() as f64) / (buckets.len() * self.dims()) as f64).sqrt() as f32;
            for (word, signed) in point.as_chunks_mut::<SIGNS>().0.iter_mut().enumerate() {
                let signs = signs(run[0], word);
                for (bit, x) in signed.iter_mut().enumerate() {
                    // The sign bit of a number, set or not.
                    *x += f32::from_bits(length.to_bits() ^ ((signs >> bit) as u32 & 1) << 31);
                }
            }
        }
        point
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014) of bucket and place.
fn signs(bucket: u32, word: usize) -> u64 {
    let mut x = (u64::from(bucket) << 8 | word as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    /// Σ (√p − √q)² over the buckets themselves.
    fn unprojected(a: &[u32], b: &[u32]) -> f64 {
        let share = |list: &[u32], bucket| {
            (list.iter().filter(|b| **b == bucket).count() as f64 / list.len().max(1) as f64).sqrt()
        };
        (0..40).map(|bucket| (share(a, bucket) - share(b, bucket)).powi(2)).sum()
    }

    proptest! {
        #[test]
        fn distances_stay_about_what_they_were(a in proptest::collection::vec(0u32..40, 1..200), b in proptest::collection::vec(0u32..40, 1..200)) {
            let projection = Projection::new(256);
            let (mut x, mut y) = (a.clone(), b.clone());
            let found = squared_distance(&projection.of_buckets(&mut x), &projection.of_buckets(&mut y));
            let exact = unprojected(&a, &b);
            // Six standard deviations.
            prop_assert!((found - exact).abs() <= 6.0 * (2.0f64 / 256.0).sqrt() * exact + 1e-6, "{} for {}", found, exact);
        }

        #[test]
        fn the_order_of_the_ngrams_does_not_matter(mut buckets in proptest::collection::vec(0u32..9, 0..60), rotate in 0usize..60) {
            let projection = Projection::new(64);
            let point = projection.of_buckets(&mut buckets.clone());
            let middle = rotate.min(buckets.len());
            buckets.rotate_left(middle);
            prop_assert_eq!(projection.of_buckets(&mut buckets), point);
        }
    }

    /// Over many buckets squared distances are right on average, which no single projection is.
    #[test]
    fn signs_are_fair_and_independent() {
        let n = 20_000u32;
        let (mut ones, mut same_word, mut next_bucket) = (0, 0, 0);
        for bucket in 0..n {
            ones += signs(bucket, 0).count_ones();
            same_word += (signs(bucket, 0) ^ signs(bucket, 1)).count_ones();
            next_bucket += (signs(bucket, 0) ^ signs(bucket + 1, 0)).count_ones();
        }
        // Five standard errors of 1,280,000 fair signs are 2,829.
        for seen in [ones, same_word, next_bucket] {
            assert!(seen.abs_diff(n * 32) < 2_829, "{seen}");
        }
    }

    #[test]
    fn a_text_is_the_point_of_its_buckets() {
        let (projection, featuriser) = (Projection::new(128), Featuriser::default());
        let mut scratch = Scratch::default();
        let mut buckets = Vec::new();
        featuriser.for_each_chunk("one two one", &mut scratch, |chunk| buckets.extend_from_slice(chunk));
        assert_eq!(projection.of_text("one two one", &featuriser, &mut scratch), projection.of_buckets(&mut buckets));
        assert_eq!(projection.of_text("", &featuriser, &mut scratch), vec![0.0; 128]);
        // Golden: centres that were kept can only be used while points stay.
        assert_eq!([signs(0, 0), signs(7, 1)], GOLDEN_SIGNS);
    }

    /// The first is the first number of SplitMix64 from 0.
    const GOLDEN_SIGNS: [u64; 2] = [0xE220_A839_7B1D_CDAF, 7_719_219_691_324_923_119];
}
