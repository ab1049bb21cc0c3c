//! The buckets of a text, kept to be counted or scored again.

/// Buckets of n-grams in their order, packed: two bytes each where they all fit, as those of up to 65,536 buckets do, four
/// otherwise, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketList {
    width: BucketWidth,
    bytes: Vec<u8>,
}

/// Bytes of a packed bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketWidth {
    Two,
    Four,
}

/// Buckets that are handed out together.
const CHUNK: usize = 512;

impl BucketWidth {
    /// For a featuriser with so many buckets.
    pub fn of(buckets: u32) -> Self {
        if buckets <= 1 << 16 { BucketWidth::Two } else { BucketWidth::Four }
    }

    pub fn bytes(self) -> usize {
        match self {
            BucketWidth::Two => 2,
            BucketWidth::Four => 4,
        }
    }

    /// Calls `chunk` with all buckets that are packed in `bytes`, a bounded number at a time.
    pub fn for_each_chunk(self, bytes: &[u8], mut chunk: impl FnMut(&[u32])) {
        let mut buckets = [0; CHUNK];
        for packed in bytes.chunks(CHUNK * self.bytes()) {
            let n = packed.len() / self.bytes();
            let out = buckets.iter_mut();
            match self {
                BucketWidth::Two => {
                    out.zip(packed.as_chunks().0).for_each(|(b, p)| *b = u16::from_le_bytes(*p).into());
                }
                BucketWidth::Four => out.zip(packed.as_chunks().0).for_each(|(b, p)| *b = u32::from_le_bytes(*p)),
            }
            chunk(&buckets[..n]);
        }
    }
}

impl BucketList {
    /// An empty list for a featuriser with so many buckets.
    pub fn new(buckets: u32) -> Self {
        BucketList { width: BucketWidth::of(buckets), bytes: Vec::new() }
    }

    /// A list of buckets below 65,536, from [`BucketList::as_bytes`].
    pub fn of_two_bytes_each(bytes: Vec<u8>) -> Self {
        BucketList { width: BucketWidth::Two, bytes }
    }

    /// Empties it for another text, of a featuriser with so many buckets.
    pub fn begin(&mut self, buckets: u32) {
        self.width = BucketWidth::of(buckets);
        self.bytes.clear();
    }

    /// # Panics
    /// In debug builds, if a bucket is not one of as many as [`BucketList::new`] was told.
    pub fn extend(&mut self, buckets: &[u32]) {
        let begin = self.bytes.len();
        self.bytes.resize(begin + buckets.len() * self.width.bytes(), 0);
        let new = &mut self.bytes[begin..];
        match self.width {
            BucketWidth::Two => {
                debug_assert!(buckets.iter().all(|&bucket| bucket <= u32::from(u16::MAX)), "a list for fewer buckets");
                let packed = new.as_chunks_mut().0.iter_mut();
                packed.zip(buckets).for_each(|(p, &bucket)| *p = (bucket as u16).to_le_bytes());
            }
            BucketWidth::Four => {
                let packed = new.as_chunks_mut().0.iter_mut();
                packed.zip(buckets).for_each(|(p, &bucket)| *p = bucket.to_le_bytes());
            }
        }
    }

    /// The buckets, packed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Buckets that it holds.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.width.bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Bytes that it holds on to, beside itself.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Calls `chunk` with all buckets, a bounded number at a time.
    pub fn for_each_chunk(&self, chunk: impl FnMut(&[u32])) {
        self.width.for_each_chunk(&self.bytes, chunk);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn buckets_come_back_as_they_were(
            parts in proptest::collection::vec(proptest::collection::vec(0u32..65_536, 0..2_000), 0..4),
            is_wide in any::<bool>(),
        ) {
            let shift = if is_wide { 8 } else { 0 };
            let mut list = BucketList::new(if is_wide { 1 << 24 } else { 1 << 16 });
            let mut expected: Vec<u32> = Vec::new();
            for part in &parts {
                let part: Vec<u32> = part.iter().map(|bucket| bucket << shift).collect();
                list.extend(&part);
                expected.extend(part);
            }
            let mut found: Vec<u32> = Vec::new();
            list.for_each_chunk(|chunk| found.extend_from_slice(chunk));
            prop_assert_eq!(list.as_bytes().len(), expected.len() * if is_wide { 4 } else { 2 });
            prop_assert_eq!(found, expected);
        }
    }
}
