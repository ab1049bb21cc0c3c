//! Numbers of candidates, by number of the candidate: so many that what a vector keeps free for more would count.

use std::cmp::Ordering;

/// Beyond it a column grows by an eighth instead of doubling: at most so much of it is free. Where it is large, the memory is
/// mapped anew and not copied.
const DOUBLED: usize = 1 << 12;

/// Adds a number to a column.
pub(super) fn push<T>(column: &mut Vec<T>, number: T) {
    if column.len() == column.capacity() && column.len() >= DOUBLED {
        column.reserve_exact(column.len() / 8);
    }
    column.push(number);
}

/// Bytes that a column holds.
pub(super) fn held_bytes<T>(column: &Vec<T>) -> usize {
    column.capacity() * size_of::<T>()
}

/// Offsets that ascend, in four bytes each: as distances from the one that they follow most of the time, the first.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// From which number on distances are from which offset.
    bases: Vec<(u32, i64)>,
    distances: Vec<u32>,
}

impl Offsets {
    /// # Panics
    /// If it is below the first ones.
    pub fn push(&mut self, offset: i64) {
        let distance = self.bases.last().and_then(|(_, base)| u32::try_from(offset - base).ok());
        let distance = distance.unwrap_or_else(|| {
            assert!(self.bases.last().is_none_or(|(_, base)| offset > *base), "offset {offset} does not ascend");
            self.bases.push((self.distances.len() as u32, offset));
            0
        });
        push(&mut self.distances, distance);
    }

    /// # Panics
    /// If there are not so many.
    pub fn get(&self, number: u32) -> i64 {
        let base = self.bases.partition_point(|(first, _)| *first <= number) - 1;
        self.bases[base].1 + i64::from(self.distances[number as usize])
    }

    /// The number of this offset, if it is one of them.
    pub fn find(&self, offset: i64) -> Option<u32> {
        let (mut low, mut high) = (0, self.distances.len() as u32);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle).cmp(&offset) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    pub fn len(&self) -> usize {
        self.distances.len()
    }

    pub fn held_bytes(&self) -> usize {
        held_bytes(&self.bases) + held_bytes(&self.distances)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn offsets_come_back(
            first in 0i64..1 << 40,
            gaps in proptest::collection::vec(prop_oneof![9 => 1i64..5, 1 => 1i64..1 << 33], 0..200),
        ) {
            let expected: Vec<i64> = gaps.iter().scan(first, |at, gap| {
                *at += gap;
                Some(*at)
            }).collect();
            let mut offsets = Offsets::default();
            expected.iter().for_each(|offset| offsets.push(*offset));
            prop_assert_eq!(offsets.len(), expected.len());
            prop_assert_eq!((0..offsets.len() as u32).map(|number| offsets.get(number)).collect::<Vec<_>>(), &expected[..]);
            for offset in expected.iter().flat_map(|offset| [offset - 1, *offset, offset + 1]) {
                prop_assert_eq!(offsets.find(offset), expected.binary_search(&offset).ok().map(|number| number as u32));
            }
        }
    }

    #[test]
    fn no_more_than_an_eighth_is_free() {
        let mut column = Vec::new();
        let mut offsets = Offsets::default();
        for number in 0..300_000u32 {
            push(&mut column, number);
            offsets.push(i64::from(number) * 2);
            let n = column.len();
            assert!(n < 2 * DOUBLED || (held_bytes(&column) <= n * 9 / 2 && offsets.held_bytes() <= n * 9 / 2 + 64));
        }
        assert!(column.iter().copied().eq(0..300_000));
    }
}
