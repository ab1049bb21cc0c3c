//! Records of several partitions in one allocation, as they leave the polling thread.

use std::ops::Range;

use crate::record::{Parts, RawRecord, TopicPartition};

/// Payloads one behind the other, with an index.
#[derive(Debug, Default)]
pub struct Batch {
    partitions: Vec<(TopicPartition, i64)>,
    payloads: Vec<u8>,
    index: Vec<Entry>,
    /// Of each record as many, where they stand in `payloads`.
    parts: Vec<Option<Range<usize>>>,
}

#[derive(Debug)]
struct Entry {
    partition: u32,
    offset: i64,
    timestamp_ms: Option<i64>,
    start: usize,
    /// `None`: the record has no value.
    len: Option<usize>,
}

/// One record of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub at: &'a TopicPartition,
    /// Under which its partition was consumed; a later assignment has another.
    pub owner_epoch: i64,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub payload: Option<&'a [u8]>,
    /// Where it comes from a batch: what [`Batch::push_part`] has added.
    pub parts: Parts<'a>,
}

impl<'a> Record<'a> {
    pub fn raw(&self) -> RawRecord<'a> {
        let Record { at, offset, timestamp_ms, payload, parts, .. } = *self;
        RawRecord { at, offset, timestamp_ms, payload, parts }
    }
}

impl Batch {
    /// Its parts are added behind it.
    pub fn push(&mut self, record: Record<'_>) {
        let same = |(at, epoch): &(TopicPartition, i64)| at == record.at && *epoch == record.owner_epoch;
        // Records come in runs of one partition.
        let last = self.partitions.len().wrapping_sub(1);
        let partition = match self.partitions.last() {
            Some(p) if same(p) => last,
            _ => self.partitions.iter().position(same).unwrap_or_else(|| {
                self.partitions.push((record.at.clone(), record.owner_epoch));
                self.partitions.len() - 1
            }),
        };
        let start = self.payloads.len();
        self.payloads.extend_from_slice(record.payload.unwrap_or_default());
        self.index.push(Entry {
            partition: partition as u32,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            start,
            len: record.payload.map(<[u8]>::len),
        });
    }

    /// Adds what else is wanted of the last record: of each record as many parts, in the same order.
    pub fn push_part(&mut self, part: Option<&[u8]>) {
        let start = self.payloads.len();
        self.payloads.extend_from_slice(part.unwrap_or_default());
        self.parts.push(part.map(|part| start..start + part.len()));
    }

    /// Forgets the records and keeps the memory, for the next ones.
    pub fn clear(&mut self) {
        self.partitions.clear();
        self.payloads.clear();
        self.index.clear();
        self.parts.clear();
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of its records.
    pub fn size_bytes(&self) -> usize {
        self.payloads.len() + self.index.len() * size_of::<Entry>() + size_of_val(&*self.parts)
    }

    /// Bytes that it holds on to, used or not.
    pub fn held_bytes(&self) -> usize {
        let parts = self.parts.capacity() * size_of::<Option<Range<usize>>>();
        self.payloads.capacity() + self.index.capacity() * size_of::<Entry>() + parts
    }

    /// Its partitions, each with the epoch under which it was consumed; [`Batch::partition_of`] counts them.
    pub fn partitions(&self) -> &[(TopicPartition, i64)] {
        &self.partitions
    }

    /// The number of a record's partition.
    ///
    /// # Panics
    /// If there is no such record.
    pub fn partition_of(&self, i: usize) -> usize {
        self.index[i].partition as usize
    }

    /// Of one record; 0 of one without a value.
    ///
    /// # Panics
    /// If there is no such record.
    pub fn payload_bytes(&self, i: usize) -> u64 {
        self.index[i].len.unwrap_or_default() as u64
    }

    /// # Panics
    /// If there is no such record.
    pub fn get(&self, i: usize) -> Record<'_> {
        let entry = &self.index[i];
        let (at, owner_epoch) = &self.partitions[entry.partition as usize];
        let payload = entry.len.map(|len| &self.payloads[entry.start..entry.start + len]);
        let n_parts = if self.parts.is_empty() { 0 } else { self.parts.len() / self.index.len() };
        let parts = Parts::new(&self.payloads, &self.parts[i * n_parts..(i + 1) * n_parts]);
        let Entry { offset, timestamp_ms, .. } = *entry;
        Record { at, owner_epoch: *owner_epoch, offset, timestamp_ms, payload, parts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let (a, b) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
        let parts = Parts::default();
        let records = [
            Record { at: &a, owner_epoch: 1, offset: 5, timestamp_ms: Some(9), payload: Some(b"one"), parts },
            Record { at: &b, owner_epoch: 1, offset: 0, timestamp_ms: None, payload: None, parts },
            Record { at: &a, owner_epoch: 2, offset: 5, timestamp_ms: None, payload: Some(b""), parts },
            Record { at: &a, owner_epoch: 1, offset: 6, timestamp_ms: None, payload: Some(b"two"), parts },
        ];
        let mut batch = Batch::default();
        records.iter().for_each(|r| batch.push(*r));
        assert_eq!(batch.len(), 4);
        for (i, r) in records.iter().enumerate() {
            let back = batch.get(i);
            assert_eq!((back.at, back.owner_epoch, back.offset), (r.at, r.owner_epoch, r.offset));
            assert_eq!((back.timestamp_ms, back.payload), (r.timestamp_ms, r.payload));
        }
        assert_eq!(batch.partitions().len(), 3);
        assert_eq!([0, 1, 2, 3].map(|i| batch.partition_of(i)), [0, 1, 2, 0]);

        let (used, held) = (batch.size_bytes(), batch.held_bytes());
        assert!(used > 0 && held >= used);
        batch.clear();
        assert!(batch.is_empty() && batch.partitions().is_empty());
        assert_eq!((batch.size_bytes(), batch.held_bytes()), (0, held), "the memory is kept");
    }
}
