//! What is known of the end of a partition: since when nothing came, and whether that can be said at all. Of a partition that is
//! paused it cannot: records may wait there that nobody has looked for.

use std::time::{Duration, Instant};

/// How a partition is read while documents of open windows wait on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// As all are.
    WithAll,
    Alone,
    /// For want of disk.
    Paused,
}

#[derive(Debug)]
pub(super) struct Idleness {
    reading: Reading,
    /// Since when the end has been reached and nothing came.
    since: Option<Instant>,
    /// It has been read to its end since it is read alone: whoever goes on is told of the end once more, after all records before it.
    is_at_end: bool,
    /// The end that was last told of it while it was read alone, as they were numbered; 0: none, or records came since.
    last_end: u64,
}

impl Idleness {
    pub fn new(reading: Reading) -> Self {
        Idleness { reading, since: None, is_at_end: false, last_end: 0 }
    }

    pub fn on_record(&mut self) {
        (self.since, self.is_at_end, self.last_end) = (None, false, 0);
    }

    /// `number`: of this end among all that are told, from 1 on.
    pub fn on_end(&mut self, number: u64, now: Instant) {
        match self.reading {
            // Nothing has come since the end was reached for the first time, also while it was paused.
            Reading::Alone => {
                self.since.get_or_insert(now);
                (self.is_at_end, self.last_end) = (true, number);
            }
            Reading::WithAll | Reading::Paused => self.since = Some(now),
        }
    }

    pub fn is_read(&mut self, reading: Reading, now: Instant) {
        if reading == Reading::WithAll {
            self.last_end = 0;
            if self.reading == Reading::Paused {
                self.since = self.since.map(|_| now);
            }
        }
        self.is_at_end &= reading == self.reading;
        self.reading = reading;
    }

    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    pub fn last_end(&self) -> u64 {
        self.last_end
    }

    /// Whether nothing came for so long.
    pub fn is_beyond(&self, timeout: Duration, now: Instant) -> bool {
        let is_known = match self.reading {
            Reading::WithAll => true,
            Reading::Alone => self.is_at_end,
            Reading::Paused => false,
        };
        is_known && self.since.is_some_and(|since| now.saturating_duration_since(since) >= timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn nothing_is_idle_while_it_is_paused_nor_before_it_is_known_that_nothing_came() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut idleness = Idleness::new(Reading::WithAll);
        assert!(!idleness.is_beyond(TIMEOUT, at(1_000)));
        idleness.on_end(1, at(0));
        assert!(!idleness.is_beyond(TIMEOUT, at(29)) && idleness.is_beyond(TIMEOUT, at(30)));
        idleness.is_read(Reading::Paused, at(10));
        assert!(!idleness.is_beyond(TIMEOUT, at(1_000)), "records may wait that nobody has looked for");
        // An end that was on its way when it was paused.
        idleness.on_end(2, at(11));
        assert!(!idleness.is_beyond(TIMEOUT, at(1_000)) && !idleness.is_at_end());
        // All are read again: the time begins anew.
        idleness.is_read(Reading::WithAll, at(1_000));
        assert!(!idleness.is_beyond(TIMEOUT, at(1_029)) && idleness.is_beyond(TIMEOUT, at(1_030)));
        idleness.on_record();
        idleness.is_read(Reading::Paused, at(1_040));
        idleness.is_read(Reading::WithAll, at(1_050));
        assert!(!idleness.is_beyond(TIMEOUT, at(9_000)), "its end is not known");
    }

    #[test]
    fn what_is_read_alone_is_idle_once_its_end_is_told_again() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut idleness = Idleness::new(Reading::WithAll);
        idleness.on_end(1, at(0));
        assert!((idleness.is_at_end(), idleness.last_end()) == (false, 0));
        idleness.is_read(Reading::Paused, at(10));
        idleness.is_read(Reading::Alone, at(1_000));
        assert!(!idleness.is_beyond(TIMEOUT, at(2_000)), "records that waited come before the end is told");
        // Nothing waited: it has been idle all the time.
        idleness.on_end(2, at(1_001));
        assert!(idleness.is_beyond(TIMEOUT, at(1_001)) && idleness.is_at_end() && idleness.last_end() == 2);
        // Another one's turn, and its own again.
        idleness.is_read(Reading::Paused, at(1_002));
        assert!((idleness.is_at_end(), idleness.last_end()) == (false, 2));
        idleness.is_read(Reading::Alone, at(1_003));
        assert!(!idleness.is_at_end() && !idleness.is_beyond(TIMEOUT, at(1_003)));
        idleness.on_record();
        assert!((idleness.is_at_end(), idleness.last_end()) == (false, 0));
        idleness.on_end(3, at(1_005));
        assert!(!idleness.is_beyond(TIMEOUT, at(1_034)) && idleness.is_beyond(TIMEOUT, at(1_035)));
        // It goes on with the others, and has never been paused.
        idleness.is_read(Reading::WithAll, at(1_006));
        assert!((idleness.is_at_end(), idleness.last_end()) == (false, 0) && idleness.is_beyond(TIMEOUT, at(1_035)));
    }
}
