//! The queue between the polling thread and the worker, bounded by the bytes of the batches in it.
//!
//! Control events pass at any time, in order with the batches: they hold a rebalance up and are small. Batches that have been
//! dealt with go back to be filled again: a fresh megabyte costs more in page faults than the records' copy.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Batch, SourceEvent};
use crate::record::TopicPartition;

/// Gives the two ends of a queue for up to `limit_bytes` of batches. A single larger batch passes when it is empty.
pub fn queue(limit_bytes: usize) -> (QueueSender, QueueReceiver) {
    let room = Room {
        queued: Mutex::new(0),
        freed: Condvar::new(),
        limit_bytes,
        spare: Mutex::default(),
        only: Mutex::default(),
    };
    let room = Arc::new(room);
    let (sender, receiver) = mpsc::unbounded_channel();
    (QueueSender { sender, room: room.clone() }, QueueReceiver { receiver, room })
}

/// Emptied batches that are kept; one is being filled and one looked at, so more are hardly ever wanted at once.
const MAX_SPARE: usize = 2;
/// Larger ones are not kept: they held a single large record.
const MAX_SPARE_BYTES: usize = 4 << 20;

struct Room {
    queued: Mutex<usize>,
    freed: Condvar,
    limit_bytes: usize,
    spare: Mutex<Vec<Batch>>,
    only: Mutex<Only>,
}

/// What alone is to be read, and how often that was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Only {
    pub partition: Option<TopicPartition>,
    pub version: u64,
}

impl Room {
    fn queued(&self) -> std::sync::MutexGuard<'_, usize> {
        self.queued.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<Batch>> {
        self.spare.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn only(&self) -> std::sync::MutexGuard<'_, Only> {
        self.only.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn has_room(&self, queued: usize, bytes: usize) -> bool {
        queued == 0 || queued + bytes <= self.limit_bytes
    }
}

#[derive(Clone)]
pub struct QueueSender {
    sender: mpsc::UnboundedSender<SourceEvent>,
    room: Arc<Room>,
}

/// The worker has gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

impl QueueSender {
    /// Waits up to `timeout` for room and sends; gives the batch back if there was none.
    pub fn batch(&self, batch: Batch, timeout: Duration) -> Result<Option<Batch>, Closed> {
        let bytes = batch.held_bytes();
        let queued = self.room.queued();
        let wait = |queued: &mut usize| !self.room.has_room(*queued, bytes);
        let (mut queued, waited) = match self.room.freed.wait_timeout_while(queued, timeout, wait) {
            Ok(done) => done,
            Err(poisoned) => poisoned.into_inner(),
        };
        if waited.timed_out() {
            return Ok(Some(batch));
        }
        *queued += bytes;
        drop(queued);
        self.sender.send(SourceEvent::Batch(batch)).map(|()| None).map_err(|_| Closed)
    }

    /// An empty batch, with the memory of one that has been dealt with if there is one.
    pub fn empty_batch(&self) -> Batch {
        self.room.spare().pop().unwrap_or_default()
    }

    /// Sends at once.
    pub fn control(&self, event: SourceEvent) -> Result<(), Closed> {
        self.sender.send(event).map_err(|_| Closed)
    }

    /// What alone is to be read.
    pub fn only(&self) -> Only {
        self.room.only().clone()
    }

    pub fn is_half_empty(&self) -> bool {
        *self.room.queued() <= self.room.limit_bytes / 2
    }
}

pub struct QueueReceiver {
    receiver: mpsc::UnboundedReceiver<SourceEvent>,
    room: Arc<Room>,
}

impl QueueReceiver {
    /// The next event; `None` when every sender has gone.
    pub async fn next(&mut self) -> Option<SourceEvent> {
        self.receiver.recv().await
    }

    /// Takes a batch back that has been dealt with: its room is free.
    pub fn release(&self, mut batch: Batch) {
        let bytes = batch.held_bytes();
        batch.clear();
        {
            let mut spare = self.room.spare();
            if spare.len() < MAX_SPARE && bytes <= MAX_SPARE_BYTES {
                spare.push(batch);
            }
        }
        *self.room.queued() -= bytes;
        self.room.freed.notify_one();
    }

    /// Has all other partitions paused from now on, or with `None` no partition. What was read before still comes.
    pub fn read_only(&self, partition: Option<TopicPartition>) {
        let mut only = self.room.only();
        *only = Only { partition, version: only.version + 1 };
    }

    pub fn queued_bytes(&self) -> usize {
        *self.room.queued()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Parts, TopicPartition};
    use crate::source::Record;

    fn batch(bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let at = TopicPartition::new("t", 0);
        let payload = vec![0; bytes];
        let (payload, parts) = (Some(&*payload), Parts::default());
        batch.push(Record { at: &at, owner_epoch: 1, offset: 0, timestamp_ms: None, payload, parts });
        batch
    }

    #[tokio::test]
    async fn batches_wait_for_room_and_control_does_not() {
        let (sender, mut receiver) = queue(1000);
        let none = Duration::ZERO;
        assert!(sender.batch(batch(5000), none).unwrap().is_none(), "an empty queue takes any batch");
        assert!(sender.batch(batch(1), none).unwrap().is_some(), "a full queue gives it back");
        sender.control(SourceEvent::ReachedEnd(Vec::new())).unwrap();
        assert!(!sender.is_half_empty());

        let Some(SourceEvent::Batch(first)) = receiver.next().await else { panic!("the batch comes first") };
        assert!(sender.batch(batch(1), none).unwrap().is_some(), "room is made by release, not by taking");
        let waiting = std::thread::spawn({
            let sender = sender.clone();
            move || sender.batch(batch(1), Duration::from_secs(60)).unwrap().is_none()
        });
        receiver.release(first);
        assert!(waiting.join().unwrap());
        assert!(matches!(receiver.next().await, Some(SourceEvent::ReachedEnd(_))));
        drop(receiver);
        assert_eq!(sender.control(SourceEvent::ReachedEnd(Vec::new())), Err(Closed));
    }

    #[test]
    fn what_alone_is_read_is_known_at_the_other_end() {
        let (sender, receiver) = queue(1000);
        assert_eq!(sender.only(), Only::default());
        let at = TopicPartition::new("t", 3);
        receiver.read_only(Some(at.clone()));
        assert_eq!(sender.only(), Only { partition: Some(at), version: 1 });
        receiver.read_only(None);
        assert_eq!(sender.only(), Only { partition: None, version: 2 });
    }

    #[tokio::test]
    async fn batches_are_filled_again_and_large_ones_are_not_kept() {
        let (sender, mut receiver) = queue(usize::MAX);
        let sizes = [1000, 3000, 2000, MAX_SPARE_BYTES + 1];
        for bytes in sizes {
            assert!(sender.batch(batch(bytes), Duration::ZERO).unwrap().is_none());
        }
        let mut batches = Vec::new();
        for _ in sizes {
            let Some(SourceEvent::Batch(batch)) = receiver.next().await else { panic!("a batch") };
            batches.push(batch);
        }
        assert_eq!(receiver.queued_bytes(), batches.iter().map(Batch::held_bytes).sum::<usize>());
        // The large one first, when there is room for it.
        batches.into_iter().rev().for_each(|batch| receiver.release(batch));
        assert_eq!(receiver.queued_bytes(), 0);
        let held = [(); 3].map(|()| {
            let batch = sender.empty_batch();
            assert!(batch.is_empty());
            batch.held_bytes()
        });
        assert!((3000..4000).contains(&held[0]) && (2000..3000).contains(&held[1]) && held[2] == 0, "{held:?}");
    }
}
