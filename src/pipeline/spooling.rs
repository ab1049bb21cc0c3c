//! Documents that wait on disk for their window, and what is done when there are too many: one partition alone is read until
//! its window is decided, which gives room back, and the others are paused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::SpoolConfig;
use crate::record::TopicPartition;
use crate::select::SelectorSettings;
use crate::sink::{SinkError, Spool, SpoolFolder};
use crate::telemetry::{SpoolStatus, Telemetry};
use crate::window::SpooledRow;

/// Rows that are kept are written when there are so many bytes of them: some chunks for every core.
const WRITE_BYTES: usize = 4 << 20;
/// How often it is logged that partitions are paused.
const REMIND: Duration = Duration::from_secs(60);

pub(super) struct Spooling {
    folder: Arc<SpoolFolder>,
    max_bytes: u64,
    /// Beyond it one partition alone goes on: what is left is room for its window, and for what was read before.
    pause_bytes: u64,
    only: Option<TopicPartition>,
    said: Option<Instant>,
    is_wanted: bool,
}

/// An open window with documents on disk.
#[derive(Debug, Clone)]
pub(super) struct Waiting<'a> {
    pub at: &'a TopicPartition,
    pub bytes: u64,
    /// Its partition has been read to the end, so that it may take long to close.
    pub is_at_end: bool,
}

impl Spooling {
    pub fn new(folder: Arc<SpoolFolder>, config: &SpoolConfig, selector: &SelectorSettings) -> Self {
        let pause_bytes = config.max_bytes.saturating_sub(config.reserve_bytes);
        let (max_bytes, is_wanted) = (config.max_bytes, selector.sees_whole_windows());
        Spooling { folder, max_bytes, pause_bytes, only: None, said: None, is_wanted }
    }

    /// Takes a row into the spool of its window, which is opened when the first one comes.
    pub fn push(&self, spool: &mut Option<Spool>, row: &SpooledRow) {
        spool.get_or_insert_with(|| self.folder.open()).push(row);
    }

    /// The rows of these numbers alone, after `look` has seen each: the others give their room back.
    pub fn keep(
        &self,
        spool: Option<Spool>,
        numbers: &[u32],
        look: &mut dyn FnMut(&SpooledRow),
    ) -> Result<Option<Spool>, SinkError> {
        let Some(spool) = spool else { return Ok(None) };
        let mut kept = self.folder.open();
        spool.rows(numbers, |mut row| {
            look(&row);
            // It has said what it had to say.
            row.point = Vec::new();
            kept.push(&row);
            if kept.full_bytes() < WRITE_BYTES { Ok(()) } else { Spool::write([&mut kept].into_iter()) }
        })?;
        Spool::write([&mut kept].into_iter())?;
        Ok(Some(kept))
    }

    pub fn is_beyond_budget(&self) -> bool {
        self.folder.used_bytes() > self.max_bytes
    }

    /// Which partition alone is to be read now, if that has changed: the inner `None` is all of them.
    pub fn next<'a>(&mut self, waiting: impl Iterator<Item = Waiting<'a>>) -> Option<Option<TopicPartition>> {
        let used = self.folder.used_bytes();
        if self.only.is_none() && used <= self.pause_bytes {
            return None;
        }
        let only = only(used, self.pause_bytes, self.only.as_ref(), waiting);
        if only == self.only {
            return None;
        }
        self.say(only.as_ref(), used);
        self.only.clone_from(&only);
        Some(only)
    }

    fn say(&mut self, only: Option<&TopicPartition>, used: u64) {
        let (used, max) = (used >> 20, self.max_bytes >> 20);
        match only {
            Some(at) if self.said.is_none_or(|said| said.elapsed() >= REMIND) => {
                self.said = Some(Instant::now());
                tracing::warn!(
                    topic = &*at.topic,
                    partition = at.partition,
                    "documents of open windows take {used} MB of disk, allowed are {max} MB: partition {at} alone is read \
                     until its window is decided, then the next; raise spool.max_bytes or lower window.max_documents"
                );
            }
            Some(at) => tracing::debug!("documents of open windows take {used} MB of disk: {at} alone is read"),
            None => tracing::info!("documents of open windows take {used} MB of disk: all partitions are read"),
        }
    }

    pub fn show(&self, telemetry: &Telemetry, n_partitions: usize) {
        if !self.is_wanted {
            return;
        }
        let status = SpoolStatus {
            bytes: self.folder.used_bytes(),
            max_bytes: self.max_bytes,
            files: self.folder.n_files(),
            paused_partitions: if self.only.is_some() { n_partitions.saturating_sub(1) as u64 } else { 0 },
        };
        telemetry.show_spool(status, self.folder.take_errors());
    }
}

/// Once there is room for a while again, all partitions go on. Until then the one that has begun to, unless its window is
/// decided, or it has come to its end while others have not.
fn only<'a>(
    used: u64,
    pause_bytes: u64,
    current: Option<&TopicPartition>,
    waiting: impl Iterator<Item = Waiting<'a>>,
) -> Option<TopicPartition> {
    if used <= pause_bytes - pause_bytes / 8 {
        return None;
    }
    let mut waiting: Vec<_> = waiting.filter(|of| of.bytes > 0).collect();
    // The fullest one: it is decided soonest.
    waiting.sort_by_key(|of| (of.is_at_end, std::cmp::Reverse(of.bytes)));
    let first = waiting.first()?;
    let goes_on = waiting.iter().find(|of| Some(of.at) == current && of.is_at_end == first.is_at_end);
    Some(goes_on.unwrap_or(first).at.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("docs", partition)
    }

    #[test]
    fn the_fullest_window_goes_on_until_it_is_decided() {
        let partitions = [at(0), at(1), at(2)];
        let decide = |used, current: Option<i32>, waiting: [(u64, bool); 3]| {
            let waiting = partitions.iter().zip(waiting);
            let waiting = waiting.map(|(at, (bytes, is_at_end))| Waiting { at, bytes, is_at_end });
            only(used, 800, current.map(at).as_ref(), waiting).map(|at| at.partition)
        };
        assert_eq!(decide(700, None, [(300, false), (400, false), (0, false)]), None);
        assert_eq!(decide(801, None, [(300, false), (400, false), (101, false)]), Some(1));
        // Not the fullest any more, but nearly done.
        assert_eq!(decide(850, Some(0), [(400, false), (420, false), (30, false)]), Some(0));
        // Decided: the next one.
        assert_eq!(decide(820, Some(0), [(0, false), (420, false), (400, false)]), Some(1));
        // At its end: the others have more to read.
        assert_eq!(decide(820, Some(1), [(10, false), (420, true), (390, false)]), Some(2));
        // Nobody has: it goes on.
        assert_eq!(decide(820, Some(1), [(410, true), (20, true), (390, true)]), Some(1));
        // Not before there is room for a while; and nothing waits but what was decided.
        assert_eq!(decide(701, Some(2), [(300, false), (301, false), (100, false)]), Some(2));
        assert_eq!(decide(700, Some(2), [(300, false), (300, false), (100, false)]), None);
        assert_eq!(decide(900, Some(2), [(0, false), (0, true), (0, false)]), None);
        assert_eq!(decide(900, Some(7), [(0, false), (5, false), (0, false)]), Some(1));
    }
}
