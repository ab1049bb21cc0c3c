//! A text as a point: its n-gram distribution, projected at random. Stands in for an embedding where none comes with the
//! documents.
//!
//! The point of a text with n-grams in buckets b, c_b of n in all, is Σ_b √(c_b / n) · r_b / √d, where r_b are d random signs
//! of the bucket. √(c / n) is a unit vector, and the distance of two such vectors is √2 times the Hellinger distance of the
//! distributions: it needs no statistics of a corpus, and frequent n-grams do not drown the others. The random signs keep
//! squared distances on average, with a relative standard deviation of about √(2 / d) (Achlioptas 2003, "Database-friendly
//! random projections").

use super::{BucketList, Featuriser, Scratch};

/// From buckets to points of [`Projection::dims`] dimensions; the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Projection {
    words: usize,
}

/// Signs that one random number gives.
const SIGNS: usize = 64;
/// Counts of a bucket in a text that have a list of their own.
const LISTED: usize = 16;

/// Memory that texts share.
#[derive(Debug, Default)]
pub struct PointScratch {
    /// How often each bucket stands in the text; all zero between texts.
    counts: Vec<u32>,
    /// Different buckets, by how often they stand in the text.
    listed: [Vec<u32>; LISTED],
    /// Those that stand there more often, with how often.
    frequent: Vec<(u32, u32)>,
}

impl Projection {
    /// What texts are compared by.
    pub const OF_TEXTS: Projection = Projection::new(128);

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
        self.of_buckets(&buckets, &mut PointScratch::default())
    }

    /// The point of a text whose buckets were kept: the same numbers.
    pub fn of_list(&self, list: &BucketList, scratch: &mut PointScratch) -> Vec<f32> {
        let mut buckets = Vec::with_capacity(list.len());
        list.for_each_chunk(|chunk| buckets.extend_from_slice(chunk));
        self.of_buckets(&buckets, scratch)
    }

    /// The point of a text with n-grams in these buckets; of none it is the origin. In another order they give the same point.
    pub fn of_buckets(&self, buckets: &[u32], scratch: &mut PointScratch) -> Vec<f32> {
        scratch.count(buckets);
        let mut point = vec![0.0f32; self.dims()];
        let PointScratch { listed, frequent, .. } = scratch;
        let length = |count: u32| (f64::from(count) / (buckets.len() * self.dims()) as f64).sqrt() as f32;
        for (word, point) in point.as_chunks_mut::<SIGNS>().0.iter_mut().enumerate() {
            for (count, buckets) in (1..).zip(&*listed).filter(|(_, buckets)| !buckets.is_empty()) {
                // So many of the signs are minus: sums of whole numbers, whatever the order.
                let minus = count_bits(buckets, |bucket| signs(bucket, word));
                let length = length(count);
                for (x, minus) in point.iter_mut().zip(minus) {
                    *x += length * (buckets.len() as i64 - 2 * i64::from(minus)) as f32;
                }
            }
            for &(count, bucket) in &*frequent {
                let (length, signs) = (length(count), signs(bucket, word));
                for (bit, x) in point.iter_mut().enumerate() {
                    // The sign bit of a number, set or not.
                    *x += f32::from_bits(length.to_bits() ^ ((signs >> bit) as u32 & 1) << 31);
                }
            }
        }
        point
    }
}

impl PointScratch {
    /// Sorts the buckets of a text by how often they stand in it.
    fn count(&mut self, buckets: &[u32]) {
        let PointScratch { counts, listed, frequent } = self;
        listed.iter_mut().for_each(Vec::clear);
        frequent.clear();
        let n = buckets.iter().max().map_or(0, |&most| most as usize + 1);
        if counts.len() < n {
            counts.resize(n, 0);
        }
        buckets.iter().for_each(|&bucket| counts[bucket as usize] += 1);
        for &bucket in buckets {
            // Zero where the bucket has been met before.
            match std::mem::take(&mut counts[bucket as usize]) as usize {
                0 => {}
                count if count <= LISTED => listed[count - 1].push(bucket),
                count => frequent.push((count as u32, bucket)),
            }
        }
        frequent.sort_unstable();
    }
}

/// How many of the words have each bit set. Eight words at a time go through full adders that work on all 64 bits at once
/// (Harley and Seal), so that a word takes a few instructions and not 64.
fn count_bits(buckets: &[u32], word: impl Fn(u32) -> u64) -> [u32; SIGNS] {
    /// Enough for as many words as there are buckets.
    const PLANES: usize = 33;
    // The bits of 64 counters, the lowest of each first.
    let mut planes = [0u64; PLANES];
    let add = |planes: &mut [u64], mut carry: u64| {
        for plane in planes {
            if carry == 0 {
                break;
            }
            (*plane, carry) = (*plane ^ carry, *plane & carry);
        }
    };
    let full = |a: u64, b: u64, c: u64| (a ^ b ^ c, a & b | (a ^ b) & c);
    let (eights, rest) = buckets.as_chunks::<8>();
    let [mut ones, mut twos, mut fours] = [0u64; 3];
    for eight in eights {
        let v = eight.map(&word);
        let (a, b, c, d);
        (ones, a) = full(ones, v[0], v[1]);
        (ones, b) = full(ones, v[2], v[3]);
        (ones, c) = full(ones, v[4], v[5]);
        (ones, d) = full(ones, v[6], v[7]);
        let (e, f, eights);
        (twos, e) = full(twos, a, b);
        (twos, f) = full(twos, c, d);
        (fours, eights) = full(fours, e, f);
        add(&mut planes[3..], eights);
    }
    planes[..3].copy_from_slice(&[ones, twos, fours]);
    rest.iter().for_each(|bucket| add(&mut planes, word(*bucket)));
    let mut counts = [0u32; SIGNS];
    let n_planes = (usize::BITS - buckets.len().leading_zeros()) as usize;
    for (place, plane) in planes[..n_planes].iter().enumerate() {
        for (bit, count) in counts.iter_mut().enumerate() {
            *count += ((plane >> bit) as u32 & 1) << place;
        }
    }
    counts
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
            let mut scratch = PointScratch::default();
            let found = squared_distance(&projection.of_buckets(&a, &mut scratch), &projection.of_buckets(&b, &mut scratch));
            let exact = unprojected(&a, &b);
            // Six standard deviations.
            prop_assert!((found - exact).abs() <= 6.0 * (2.0f64 / 256.0).sqrt() * exact + 1e-6, "{} for {}", found, exact);
        }

        #[test]
        fn the_order_of_the_ngrams_does_not_matter(mut buckets in proptest::collection::vec(0u32..9, 0..60), rotate in 0usize..60) {
            let projection = Projection::new(64);
            let mut scratch = PointScratch::default();
            let point = projection.of_buckets(&buckets, &mut scratch);
            let middle = rotate.min(buckets.len());
            buckets.rotate_left(middle);
            prop_assert_eq!(projection.of_buckets(&buckets, &mut scratch), point);
        }

        /// Straight from the definition, sign by sign, for few buckets that come often and for many.
        #[test]
        fn a_point_is_the_signed_sum_of_its_buckets(texts in proptest::collection::vec((1u32..600, proptest::collection::vec(any::<u32>(), 0..500)), 1..4), words in 1usize..5) {
            let projection = Projection::new(64 * words);
            let mut scratch = PointScratch::default();
            for (among, buckets) in texts {
                let buckets: Vec<u32> = buckets.into_iter().map(|bucket| bucket % among).collect();
                let mut counts = std::collections::BTreeMap::<u32, u32>::new();
                buckets.iter().for_each(|bucket| *counts.entry(*bucket).or_default() += 1);
                let coordinate = |i: usize| -> f64 {
                    let part = |(bucket, count): (&u32, &u32)| {
                        let length = (f64::from(*count) / buckets.len() as f64).sqrt() / (projection.dims() as f64).sqrt();
                        if signs(*bucket, i / 64) >> (i % 64) & 1 == 1 { -length } else { length }
                    };
                    counts.iter().map(part).sum()
                };
                for (i, x) in projection.of_buckets(&buckets, &mut scratch).into_iter().enumerate() {
                    let expected = coordinate(i);
                    prop_assert!((f64::from(x) - expected).abs() < 1e-5, "{} for {}", x, expected);
                }
            }
        }

        #[test]
        fn bits_are_counted(words in proptest::collection::vec(any::<u64>(), 0..300)) {
            let places: Vec<u32> = (0..words.len() as u32).collect();
            let found = count_bits(&places, |place| words[place as usize]);
            for (bit, count) in found.into_iter().enumerate() {
                prop_assert_eq!(count as usize, words.iter().filter(|word| **word >> bit & 1 == 1).count());
            }
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
        let point = projection.of_text("one two one", &featuriser, &mut scratch);
        assert_eq!(point, projection.of_buckets(&buckets, &mut PointScratch::default()));
        let mut list = BucketList::new(featuriser.buckets);
        list.extend(&buckets);
        assert_eq!(point, projection.of_list(&list, &mut PointScratch::default()));
        assert_eq!(projection.of_text("", &featuriser, &mut scratch), vec![0.0; 128]);
        // Golden: centres that were kept can only be used while points stay.
        assert_eq!([signs(0, 0), signs(7, 1)], GOLDEN_SIGNS);
    }

    /// The first is the first number of SplitMix64 from 0.
    const GOLDEN_SIGNS: [u64; 2] = [0xE220_A839_7B1D_CDAF, 7_719_219_691_324_923_119];
}
