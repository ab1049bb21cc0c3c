//! Bytes of closed windows that are on their way into a shard.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counted up by the worker, down by the publisher.
#[derive(Default)]
pub struct InFlight {
    bytes: Mutex<usize>,
    freed: Condvar,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, bytes: usize) {
        *self.lock() += bytes;
    }

    pub fn release(&self, bytes: usize) {
        *self.lock() -= bytes;
        self.freed.notify_all();
    }

    pub fn bytes(&self) -> usize {
        *self.lock()
    }

    /// Waits until something is released, or for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let bytes = self.lock();
        let before = *bytes;
        // A time-out is as good as a release: the caller looks again.
        drop(self.freed.wait_timeout_while(bytes, timeout, |now| *now >= before && *now > 0));
    }
}
