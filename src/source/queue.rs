//! The queue between the polling thread and the worker, bounded by the bytes of the batches in it.
//!
//! Control events pass at any time, in order with the batches: they hold a rebalance up and are small.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Batch, SourceEvent};

/// Gives the two ends of a queue for up to `limit_bytes` of batches. A single larger batch passes when it is empty.
pub fn queue(limit_bytes: usize) -> (QueueSender, QueueReceiver) {
    let room = Arc::new(Room { queued: Mutex::new(0), freed: Condvar::new(), limit_bytes });
    let (sender, receiver) = mpsc::unbounded_channel();
    (QueueSender { sender, room: room.clone() }, QueueReceiver { receiver, room })
}

struct Room {
    queued: Mutex<usize>,
    freed: Condvar,
    limit_bytes: usize,
}

impl Room {
    fn queued(&self) -> std::sync::MutexGuard<'_, usize> {
        self.queued.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        let bytes = batch.size_bytes();
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

    /// Sends at once.
    pub fn control(&self, event: SourceEvent) -> Result<(), Closed> {
        self.sender.send(event).map_err(|_| Closed)
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

    /// Makes the room of a batch free once it has been dealt with.
    pub fn release(&self, batch_bytes: usize) {
        *self.room.queued() -= batch_bytes;
        self.room.freed.notify_one();
    }

    pub fn queued_bytes(&self) -> usize {
        *self.room.queued()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::TopicPartition;
    use crate::source::Record;

    fn batch(bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let at = TopicPartition::new("t", 0);
        batch.push(Record { at: &at, owner_epoch: 1, offset: 0, timestamp_ms: None, payload: Some(&vec![0; bytes]) });
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
        receiver.release(first.size_bytes());
        assert!(waiting.join().unwrap());
        assert!(matches!(receiver.next().await, Some(SourceEvent::ReachedEnd(_))));
        drop(receiver);
        assert_eq!(sender.control(SourceEvent::ReachedEnd(Vec::new())), Err(Closed));
    }
}
