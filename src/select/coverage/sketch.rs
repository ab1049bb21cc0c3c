//! Quantiles of any number of scores in bounded memory. Counts by the leading bits of a number: the same sketch whatever the
//! order of the scores and however they were divided, and on every machine, since no logarithm is taken.
//!
//! Strata are cut by it, so their edges must be repeatable to the last bit, for scores of any sign and magnitude.
//! [`crate::score::FadingSketch`] is smaller and can forget, which is what statistics of losses need: but its sums of weights
//! depend on their order, and its bins are coarse, few, and only for positive numbers.
//!
//! The format of its bytes, little-endian:
//!
//! ```text
//! 8 bytes   magic "WNWQUANT"
//! u32       version of the format, now 1
//! u64       number of scores, then f64 smallest and f64 largest of them (absent if there are none)
//! u32, (i32 cell, u64 count)*   cells in order
//! 32 bytes  SHA-256 of everything before
//! ```

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"WNWQUANT";
const FORMAT_VERSION: u32 = 1;
const CHECKSUM_BYTES: usize = 32;
/// Leading bits of the mantissa that tell cells apart: 128 cells for every power of two.
const BITS: u32 = 7;
/// Magnitudes below 2^-64 are 0, those above 2^64 stand in the last cell.
const EXPONENTS: i64 = 64;
/// Cell of the numbers from 1 on, before the shift that makes 2^-64 the first.
const ONE: i64 = 1023 << BITS;
const LAST: i64 = (2 * EXPONENTS) << BITS;
/// Cells of a page: those of a power of two, about.
const PAGE_CELLS: usize = 1 << BITS;
const PAGES: usize = (2 * LAST as usize) / PAGE_CELLS + 1;

/// A mergeable sketch. Quantiles are off by at most [`QuantileSketch::RELATIVE_ERROR`] of their value (scores of
/// magnitudes from 2^-64 to 2^64; smaller ones count as 0); the smallest and the largest score are exact.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantileSketch {
    cells: Cells,
    n: u64,
    range: Option<(f64, f64)>,
}

/// Counts of at most twice 16,384 cells and one, in pages: every document of a stream adds to one, and the scores of a stream fall
/// into few pages.
#[derive(Debug, Clone, Default, PartialEq)]
struct Cells {
    /// By number; `None` without a count. All of them, unless there is none.
    pages: Vec<Option<Box<Page>>>,
}

type Page = [u64; PAGE_CELLS];

/// Why bytes are no sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantileSketchError {
    #[error("version {0} of the format is not known")]
    UnknownVersion(u32),
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl QuantileSketch {
    /// Half the width of a cell over its lower end.
    pub const RELATIVE_ERROR: f64 = 1.0 / (2 << BITS) as f64;

    /// # Panics
    /// If the score is not finite: such scores are rejected before.
    pub fn add(&mut self, score: f64) {
        assert!(score.is_finite(), "a score is not finite");
        self.cells.add(cell_of(score), 1);
        self.n += 1;
        self.widen(score, score);
    }

    /// Sketches of two sets of scores become that of their union.
    pub fn merge(&mut self, other: &QuantileSketch) {
        self.merge_times(other, 1);
    }

    /// The same with each of the other's scores so many times.
    pub fn merge_times(&mut self, other: &QuantileSketch, times: u64) {
        other.cells.iter().for_each(|(cell, count)| self.cells.add(cell, times * count));
        self.n += times * other.n;
        if let Some((low, high)) = other.range {
            self.widen(low, high);
        }
    }

    /// Keeps this share of every count, rounded down, and no cell that has fewer than `least` then. The smallest and the largest score
    /// go with their cells.
    pub fn fade(&mut self, kept: f64, least: u64) {
        let faded = |count: u64| Some((count as f64 * kept) as u64).filter(|count| *count >= least);
        self.cells.set_all(|count| faded(count).unwrap_or(0));
        self.n = self.cells.iter().map(|(_, count)| count).sum();
        let ends = self.cells.iter().next().zip(self.cells.iter().next_back());
        let ends = ends.map(|((first, _), (last, _))| (ends_of(first).0, ends_of(last).1));
        self.range = self.range.zip(ends).map(|(range, (low, high))| (range.0.max(low), range.1.min(high)));
    }

    fn widen(&mut self, low: f64, high: f64) {
        // Zero has two signs; which came first must not matter.
        let (low, high) = (low + 0.0, high + 0.0);
        self.range = Some(self.range.map_or((low, high), |(l, h)| (l.min(low), h.max(high))));
    }

    /// Number of scores.
    pub fn len(&self) -> u64 {
        self.n
    }

    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// The score with this share of all others below it, by nearest rank; `None` without scores.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.n.checked_sub(1)?;
        self.at_rank((share.clamp(0.0, 1.0) * last as f64).round() as u64)
    }

    /// The score that so many are before, in ascending order.
    pub fn at_rank(&self, rank: u64) -> Option<f64> {
        let (low, high) = self.range?;
        if rank == 0 || rank + 1 >= self.n {
            return Some(if rank == 0 { low } else { high });
        }
        let mut below = 0;
        let is_it = |(_, count): &(i32, u64)| {
            below += *count;
            below > rank
        };
        self.cells.iter().find(is_it).map(|(cell, _)| middle_of(cell).clamp(low, high))
    }

    /// The highest number that at most so many scores do not exceed, as far as cells tell; `None` where the lowest has more.
    pub fn end_of_lowest(&self, most: u64) -> Option<f64> {
        let cell = last_within(self.cells.iter(), most)?;
        Some(ends_of(cell).1)
    }

    /// The lowest number that at most so many scores reach.
    pub fn end_of_highest(&self, most: u64) -> Option<f64> {
        let cell = last_within(self.cells.iter().rev(), most)?;
        Some(ends_of(cell).0)
    }

    /// Bytes that it takes, about.
    pub fn held_bytes(&self) -> usize {
        size_of::<QuantileSketch>() + self.cells.held_bytes()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let n_cells = self.cells.iter().count();
        let mut bytes = Vec::with_capacity(80 + 12 * n_cells);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.n.to_le_bytes());
        if let Some((low, high)) = self.range {
            bytes.extend_from_slice(&low.to_le_bytes());
            bytes.extend_from_slice(&high.to_le_bytes());
        }
        bytes.extend_from_slice(&(n_cells as u32).to_le_bytes());
        for (cell, count) in self.cells.iter() {
            bytes.extend_from_slice(&cell.to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QuantileSketchError> {
        use QuantileSketchError::{Damaged, UnknownVersion};
        let rest = bytes.strip_prefix(MAGIC).ok_or(Damaged("they do not begin with `WNWQUANT`"))?;
        let mut rest = Rest(rest);
        match u32::from_le_bytes(rest.take()?) {
            FORMAT_VERSION => {}
            version => return Err(UnknownVersion(version)),
        }
        let body = bytes.len().saturating_sub(CHECKSUM_BYTES);
        if Sha256::digest(&bytes[..body])[..] != bytes[body..] {
            return Err(Damaged("the checksum does not match"));
        }
        let n = u64::from_le_bytes(rest.take()?);
        let range = match n {
            0 => None,
            _ => Some((f64::from_le_bytes(rest.take()?), f64::from_le_bytes(rest.take()?))),
        };
        let n_cells = u32::from_le_bytes(rest.take()?);
        let (mut cells, mut sum, mut last) = (Cells::default(), Some(0u64), None);
        for _ in 0..n_cells {
            let (cell, count) = (i32::from_le_bytes(rest.take()?), u64::from_le_bytes(rest.take()?));
            if i64::from(cell).abs() > LAST || last.is_some_and(|last| cell <= last) || count == 0 {
                return Err(Damaged("they are not counts of cells in order"));
            }
            cells.add(cell, count);
            (sum, last) = (sum.and_then(|sum| sum.checked_add(count)), Some(cell));
        }
        let is_whole = rest.0.len() == CHECKSUM_BYTES;
        let is_in_order = range.is_none_or(|(low, high)| low.is_finite() && high.is_finite() && low <= high);
        if !is_whole || sum != Some(n) || !is_in_order {
            return Err(Damaged("they are not counts of scores"));
        }
        Ok(QuantileSketch { cells, n, range })
    }
}

impl Cells {
    fn add(&mut self, cell: i32, count: u64) {
        if self.pages.is_empty() {
            self.pages = vec![None; PAGES];
        }
        let index = (i64::from(cell) + LAST) as usize;
        let page = self.pages[index / PAGE_CELLS].get_or_insert_with(|| Box::new([0; PAGE_CELLS]));
        page[index % PAGE_CELLS] += count;
    }

    /// Those with a count, in order.
    fn iter(&self) -> impl DoubleEndedIterator<Item = (i32, u64)> {
        self.pages.iter().enumerate().filter_map(|(number, page)| Some((number, page.as_deref()?))).flat_map(
            |(number, page)| {
                let cell = move |i: usize| ((number * PAGE_CELLS + i) as i64 - LAST) as i32;
                page.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(i, count)| (cell(i), *count))
            },
        )
    }

    /// Makes every count another one; what has none left is as if it had never had any.
    fn set_all(&mut self, change: impl Fn(u64) -> u64) {
        for slot in &mut self.pages {
            if let Some(page) = slot {
                page.iter_mut().for_each(|count| *count = change(*count));
                if page.iter().all(|count| *count == 0) {
                    *slot = None;
                }
            }
        }
        if self.pages.iter().all(Option::is_none) {
            self.pages = Vec::new();
        }
    }

    fn held_bytes(&self) -> usize {
        size_of_val(&self.pages[..]) + self.pages.iter().flatten().count() * size_of::<Page>()
    }
}

/// Bytes that have not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], QuantileSketchError> {
        let ended = QuantileSketchError::Damaged("they end too early");
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(ended)?;
        self.0 = tail;
        Ok(*head)
    }
}

/// Ascending with the score; 0 for what counts as 0, negative for negative scores.
fn cell_of(score: f64) -> i32 {
    // Exponent and leading bits of the mantissa as one whole number: the bits of positive doubles are in their order.
    let leading = (score.abs().to_bits() >> (52 - BITS)) as i64;
    let cell = (leading - ONE + (EXPONENTS << BITS) + 1).clamp(0, LAST) as i32;
    if score < 0.0 { -cell } else { cell }
}

/// The last of the cells that have no more scores than this together.
fn last_within(cells: impl Iterator<Item = (i32, u64)>, most: u64) -> Option<i32> {
    let mut sum = 0;
    let fits = |(_, count): &(i32, u64)| {
        sum += *count;
        sum <= most
    };
    cells.take_while(fits).last().map(|(cell, _)| cell)
}

/// The lowest and the highest number of a cell.
fn ends_of(cell: i32) -> (f64, f64) {
    let first = |cell: i64| f64::from_bits(((cell - 1 - (EXPONENTS << BITS) + ONE) as u64) << (52 - BITS));
    let magnitude = i64::from(cell.abs());
    let highest = if magnitude == LAST { f64::MAX } else { first(magnitude + 1).next_down() };
    match cell.signum() {
        0 => (-highest, highest),
        1 => (first(magnitude), highest),
        _ => (-highest, -first(magnitude)),
    }
}

fn middle_of(cell: i32) -> f64 {
    if cell == 0 {
        return 0.0;
    }
    let leading = (i64::from(cell.abs()) - 1 - (EXPONENTS << BITS) + ONE) as u64;
    let low = f64::from_bits(leading << (52 - BITS));
    let high = f64::from_bits((leading + 1) << (52 - BITS));
    (0.5 * (low + high)).copysign(f64::from(cell))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score() -> impl Strategy<Value = f64> {
        prop_oneof![
            -10.0f64..10.0,
            (-40.0f64..40.0).prop_map(f64::exp),
            (-40.0f64..40.0).prop_map(|x| -x.exp()),
            (-3i32..3).prop_map(f64::from),
        ]
    }

    fn sketch(scores: &[f64]) -> QuantileSketch {
        let mut sketch = QuantileSketch::default();
        scores.iter().for_each(|score| sketch.add(*score));
        sketch
    }

    proptest! {
        #[test]
        fn quantiles_are_off_by_no_more_than_is_said(mut scores in proptest::collection::vec(score(), 1..400), share in 0.0f64..=1.0) {
            let sketch = sketch(&scores);
            scores.sort_by(f64::total_cmp);
            let exact = scores[(share * (scores.len() - 1) as f64).round() as usize];
            let found = sketch.quantile(share).unwrap();
            prop_assert!((found - exact).abs() <= QuantileSketch::RELATIVE_ERROR * exact.abs() + 1e-18, "{found} for {exact}");
            prop_assert_eq!(sketch.quantile(0.0), Some(scores[0] + 0.0));
            prop_assert_eq!(sketch.quantile(1.0), scores.last().map(|last| last + 0.0));
        }

        #[test]
        fn order_and_division_do_not_matter(scores in proptest::collection::vec(score(), 0..200), cut in 0usize..200, rotate in 0usize..200) {
            let (cut, rotate) = (cut.min(scores.len()), rotate.min(scores.len()));
            let mut parts = sketch(&scores[cut..]);
            parts.merge(&sketch(&scores[..cut]));
            let mut turned = scores.clone();
            turned.rotate_left(rotate);
            prop_assert_eq!(&parts, &sketch(&scores));
            prop_assert_eq!(parts.to_bytes(), sketch(&turned).to_bytes());
        }

        #[test]
        fn bytes_come_back_and_damage_is_noticed(scores in proptest::collection::vec(score(), 0..100), at in 0usize..10_000, flip in 1u8..) {
            let sketch = sketch(&scores);
            let mut bytes = sketch.to_bytes();
            prop_assert_eq!(&QuantileSketch::from_bytes(&bytes).unwrap(), &sketch);
            let at = at % bytes.len();
            prop_assert!(QuantileSketch::from_bytes(&bytes[..at]).is_err());
            bytes[at] ^= flip;
            prop_assert!(QuantileSketch::from_bytes(&bytes).is_err());
        }

        #[test]
        fn cells_are_in_the_order_of_the_scores(a in score(), b in score()) {
            prop_assert!(a > b || cell_of(a) <= cell_of(b));
        }

        /// Both ends of a cell belong to it, and what is beyond them does not.
        #[test]
        fn cells_end_where_others_begin(score in score()) {
            let cell = cell_of(score);
            let (low, high) = ends_of(cell);
            prop_assert!(low <= score && score <= high);
            prop_assert_eq!((cell_of(low), cell_of(high)), (cell, cell));
            if high < f64::MAX && low > f64::MIN {
                prop_assert_eq!((cell_of(low.next_down()), cell_of(high.next_up())), (cell - 1, cell + 1));
            }
        }

        /// No more scores than are allowed lie beyond an end, and with those of the next cell there would be more.
        #[test]
        fn ends_leave_no_more_beyond_than_is_said(scores in proptest::collection::vec(score(), 1..200), most in 0usize..220) {
            let sketch = sketch(&scores);
            let mirrored = self::sketch(&scores.iter().map(|score| -score).collect::<Vec<_>>());
            let lowest = sketch.end_of_lowest(most as u64);
            prop_assert_eq!(mirrored.end_of_highest(most as u64), lowest.map(|end| -end));
            let beyond = |end: f64| scores.iter().filter(|score| **score <= end).count();
            let next = scores.iter().copied().filter(|score| lowest.is_none_or(|end| *score > end)).min_by(f64::total_cmp);
            prop_assert!(lowest.is_none_or(|end| beyond(end) <= most));
            prop_assert!(next.is_none_or(|next| beyond(ends_of(cell_of(next)).1) > most));
        }

        /// Half of a half is a quarter, and what is forgotten is no end any more. The outlier is beyond all scores.
        #[test]
        fn what_fades_is_forgotten(scores in proptest::collection::vec(score(), 0..200), outlier in 1e18f64..1e19) {
            let mut faded = QuantileSketch::default();
            faded.add(outlier);
            let mut scaled = QuantileSketch::default();
            scaled.merge_times(&faded, 4);
            scaled.merge_times(&sketch(&scores), 1024);
            scaled.fade(0.5, 4);
            let mut expected = QuantileSketch::default();
            expected.merge_times(&sketch(&scores), 512);
            prop_assert_eq!(scaled.len(), expected.len());
            prop_assert_eq!(&scaled.cells, &expected.cells);
            let (range, whole) = (scaled.range, expected.range);
            prop_assert_eq!(range.map(|range| range.0), whole.map(|range| range.0));
            prop_assert!(range.zip(whole).is_none_or(|(range, whole)| cell_of(range.1) == cell_of(whole.1) && range.1 >= whole.1));
            prop_assert_eq!(QuantileSketch::from_bytes(&scaled.to_bytes()), Ok(scaled.clone()));
            scaled.fade(0.001, 4);
            prop_assert_eq!(scaled.is_empty(), scaled.cells == Cells::default() && scaled.range.is_none());
        }
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut sketch = QuantileSketch::default();
        for exponent in -1074..1024 {
            for step in 0..16 {
                let score = f64::from(16 + step) * (f64::from(exponent) - 4.0).exp2();
                for score in [score, -score].into_iter().filter(|score| score.is_finite()) {
                    sketch.add(score);
                }
            }
        }
        assert!(sketch.cells.iter().count() as i64 <= 2 * LAST + 1);
        assert!(sketch.held_bytes() <= 300 << 10);
        let ends = [sketch.cells.iter().next(), sketch.cells.iter().next_back()];
        assert_eq!(ends.map(|end| end.map(|(cell, _)| i64::from(cell))), [Some(-LAST), Some(LAST)]);
        assert_eq!((cell_of(0.0), cell_of(-0.0), cell_of(1e-300)), (0, 0, 0));
        assert_eq!(QuantileSketch::default().quantile(0.5), None);
    }

    /// Beyond those that there are, twice, out of order, without a count: each with its own right checksum.
    #[test]
    fn counts_of_no_cells_are_damage() {
        let of_cells = |cells: &[(i32, u64)]| {
            let n: u64 = cells.iter().map(|(_, count)| count).sum();
            let mut bytes = [&MAGIC[..], &FORMAT_VERSION.to_le_bytes(), &n.to_le_bytes()].concat();
            bytes.extend([1.0f64, 2.0].iter().flat_map(|end| end.to_le_bytes()));
            bytes.extend((cells.len() as u32).to_le_bytes());
            bytes.extend(cells.iter().flat_map(|(cell, n)| [&cell.to_le_bytes()[..], &n.to_le_bytes()].concat()));
            let checksum = Sha256::digest(&bytes);
            bytes.extend_from_slice(&checksum);
            QuantileSketch::from_bytes(&bytes)
        };
        assert_eq!(of_cells(&[(8193, 1), (8321, 1)]).map(|sketch| sketch.len()), Ok(2));
        for wrong in [&[(16_385, 1)][..], &[(i32::MIN, 1)], &[(7, 1), (7, 1)], &[(8, 1), (7, 1)], &[(7, 0), (8, 2)]] {
            assert!(matches!(of_cells(wrong), Err(QuantileSketchError::Damaged(_))), "{wrong:?}");
        }
    }

    /// Golden: states that were kept can only be read while the cells stay.
    #[test]
    fn the_cell_of_a_score_never_changes() {
        let scores = [1.0, 1.01, -1.0, 2.0, 0.1, 3.5, 1e30, -1e-18, 1e-20];
        assert_eq!(scores.map(cell_of), [8193, 8194, -8193, 8321, 7757, 8417, 16384, -532, 0]);
    }
}
