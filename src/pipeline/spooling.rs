//! Documents that wait on disk for their window, and what is done when there are too many: one partition alone is read until
//! its window is decided, which gives room back, and the others are paused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::idleness::Reading;
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
    /// Beyond it one partition alone goes on: what is left is room for its window and what that selects, and for what was read before.
    pause_bytes: u64,
    /// What goes on alone, and where the window begins that is to be decided.
    only: Option<(TopicPartition, i64)>,
    said: Option<Instant>,
    is_wanted: bool,
}

/// An open window with documents on disk.
#[derive(Debug, Clone)]
pub(super) struct Waiting<'a> {
    pub at: &'a TopicPartition,
    /// Its first offset.
    pub from: i64,
    pub bytes: u64,
    /// Its partition goes on alone and has been read to its end, so that it may take long to close.
    pub is_at_end: bool,
    /// The number of the last such end; 0 of a partition that has none, or records since.
    pub last_end: u64,
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

    /// Whether so many of its rows can be written while all of them are there.
    pub fn has_room_to_keep(&self, spool: &Spool, n_rows: usize) -> bool {
        let share = n_rows as f64 / f64::from(spool.n_rows().max(1));
        self.folder.used_bytes() + (share * spool.bytes() as f64) as u64 <= self.max_bytes
    }

    /// Whether a window that was decided gives its room back by itself.
    pub fn is_room_coming(&self) -> bool {
        self.folder.deleting_bytes() > 0
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
        let at = |only: &Option<(TopicPartition, i64)>| only.as_ref().map(|(at, _)| at.clone());
        let (before, now) = (at(&self.only), at(&only));
        self.only = only;
        if now == before {
            return None;
        }
        self.say(now.as_ref(), used);
        Some(now)
    }

    pub fn reading(&self, at: &TopicPartition) -> Reading {
        match &self.only {
            None => Reading::WithAll,
            Some((only, _)) if only == at => Reading::Alone,
            Some(_) => Reading::Paused,
        }
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
/// decided, or it has come to its end: then the others are looked at in turn, since nobody knows what waits in them.
fn only<'a>(
    used: u64,
    pause_bytes: u64,
    current: Option<&(TopicPartition, i64)>,
    waiting: impl Iterator<Item = Waiting<'a>>,
) -> Option<(TopicPartition, i64)> {
    if used <= pause_bytes - pause_bytes / 8 {
        return None;
    }
    let waiting: Vec<_> = waiting.filter(|of| of.bytes > 0).collect();
    // What its partition has already of the next window is no reason to go on with that.
    let goes_on =
        |of: &&Waiting<'_>| current.is_some_and(|(at, from)| (of.at, of.from) == (at, *from)) && !of.is_at_end;
    // The fullest one: it is decided soonest.
    let next = || waiting.iter().min_by_key(|of| (of.last_end, std::cmp::Reverse(of.bytes)));
    waiting.iter().find(goes_on).or_else(next).map(|of| (of.at.clone(), of.from))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::Document;
    use crate::score::Score;
    use crate::select::Fraction;
    use crate::sink::GiveUp;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("docs", partition)
    }

    /// By partition: where its window begins, its bytes, and the number of its last end. The current one is at its end if it has one.
    fn decide(used: u64, current: Option<(i32, i64)>, waiting: [(i64, u64, u64); 3]) -> Option<(i32, i64)> {
        let partitions = [at(0), at(1), at(2)];
        let waiting = partitions.iter().zip(waiting).map(|(at, (from, bytes, last_end))| {
            let is_at_end = last_end > 0 && current.is_some_and(|(current, _)| current == at.partition);
            Waiting { at, from, bytes, is_at_end, last_end }
        });
        let current = current.map(|(partition, from)| (at(partition), from));
        only(used, 800, current.as_ref(), waiting).map(|(at, from)| (at.partition, from))
    }

    #[test]
    fn the_fullest_window_goes_on_until_it_is_decided() {
        assert_eq!(decide(700, None, [(0, 300, 0), (0, 400, 0), (0, 0, 0)]), None);
        assert_eq!(decide(801, None, [(0, 300, 0), (7, 400, 0), (0, 101, 0)]), Some((1, 7)));
        // Not the fullest any more, but nearly done.
        assert_eq!(decide(850, Some((0, 0)), [(0, 400, 0), (0, 420, 0), (0, 30, 0)]), Some((0, 0)));
        // Decided: the next one.
        assert_eq!(decide(820, Some((0, 0)), [(9, 0, 0), (0, 420, 0), (0, 400, 0)]), Some((1, 0)));
        // Not before there is room for a while; and nothing waits but what was decided.
        assert_eq!(decide(701, Some((2, 0)), [(0, 300, 0), (0, 301, 0), (0, 100, 0)]), Some((2, 0)));
        assert_eq!(decide(700, Some((2, 0)), [(0, 300, 0), (0, 300, 0), (0, 100, 0)]), None);
        assert_eq!(decide(900, Some((2, 0)), [(0, 0, 0), (0, 0, 0), (0, 0, 0)]), None);
        assert_eq!(decide(900, Some((7, 0)), [(0, 0, 0), (0, 5, 0), (0, 0, 0)]), Some((1, 0)));
    }

    /// Decided in the middle of a batch, the rest of which waits already.
    #[test]
    fn the_next_window_of_a_partition_is_another_one() {
        assert_eq!(decide(820, Some((0, 0)), [(1_000, 10, 0), (0, 420, 0), (0, 390, 0)]), Some((1, 0)));
        assert_eq!(decide(820, Some((0, 0)), [(1_000, 500, 0), (0, 220, 0), (0, 100, 0)]), Some((0, 1_000)));
    }

    #[test]
    fn at_its_end_a_partition_leaves_off_for_those_that_nobody_has_looked_at_for_longest() {
        assert_eq!(decide(820, Some((1, 0)), [(0, 10, 0), (0, 420, 1), (0, 390, 0)]), Some((2, 0)));
        assert_eq!(decide(820, Some((2, 0)), [(0, 10, 0), (0, 420, 1), (0, 390, 2)]), Some((0, 0)));
        assert_eq!(decide(820, Some((0, 0)), [(0, 10, 3), (0, 420, 1), (0, 390, 2)]), Some((1, 0)));
        assert_eq!(decide(820, Some((1, 0)), [(0, 10, 3), (0, 420, 4), (0, 390, 2)]), Some((2, 0)));
        // No other has anything.
        assert_eq!(decide(820, Some((1, 0)), [(0, 0, 3), (0, 820, 4), (0, 0, 2)]), Some((1, 0)));
    }

    /// At the least room that a configuration may give, whatever share is selected: rows of the old spool and of the new one are there
    /// at the same time.
    #[test]
    fn windows_are_decided_within_the_bound() {
        const ROWS: u64 = 24;
        const PARTITIONS: i32 = 5;
        let text = "x".repeat(128 << 10);
        let document = Document { id: "d".into(), text, source: None, timestamp_ms: None, metadata: None };
        let row = SpooledRow { document, score: Score::default(), other_weights: vec![], point: vec![] };
        for share in ["0.1", "0.9", "1"] {
            let place = tempfile::tempdir().unwrap();
            let folder = SpoolFolder::new(Some(place.path().to_owned()), false, Arc::new(GiveUp));
            let mut one = folder.open();
            one.push(&row);
            Spool::write([&mut one].into_iter()).unwrap();
            let (row_bytes, share) = (one.bytes(), share.parse::<Fraction>().unwrap());
            drop(one);
            let n_selected = share.at_most(ROWS);
            // A row is what is read before partitions are paused.
            let reserve_bytes = SpoolConfig::reserve_bytes(ROWS * row_bytes, share, 4 * row_bytes);
            let max_bytes = 2 * reserve_bytes;
            let pause_bytes = max_bytes - reserve_bytes;
            let (only, said, is_wanted) = (None, None, true);
            let mut spooling = Spooling { folder: folder.clone(), max_bytes, pause_bytes, only, said, is_wanted };
            let mut windows: BTreeMap<TopicPartition, (i64, Option<Spool>)> =
                (0..PARTITIONS).map(|partition| (at(partition), (0, None))).collect();
            // The publisher has one at a time.
            let mut in_flight: Option<Spool> = None;
            let (mut most_bytes, mut n_decided, mut were_paused) = (0, 0, false);
            for _ in 0..20 * ROWS {
                for partition in 0..PARTITIONS {
                    let at = at(partition);
                    if spooling.reading(&at) == Reading::Paused {
                        were_paused = true;
                        continue;
                    }
                    let (from, spool) = windows.get_mut(&at).unwrap();
                    spooling.push(spool, &row);
                    Spool::write(spool.as_mut().into_iter()).unwrap();
                    if spool.as_ref().is_some_and(|spool| u64::from(spool.n_rows()) == ROWS) {
                        let decided = spool.take();
                        if !spooling.has_room_to_keep(decided.as_ref().unwrap(), n_selected as usize) {
                            drop(in_flight.take());
                        }
                        let before = folder.used_bytes();
                        let numbers: Vec<u32> = (0..n_selected as u32).collect();
                        let kept = spooling.keep(decided, &numbers, &mut |_| ()).unwrap();
                        most_bytes = most_bytes.max(before + kept.as_ref().unwrap().bytes());
                        in_flight = kept;
                        (*from, n_decided) = (*from + ROWS as i64, n_decided + 1);
                    }
                    most_bytes = most_bytes.max(folder.used_bytes());
                    assert!(most_bytes <= max_bytes, "{most_bytes} bytes of {max_bytes} for {share}");
                    let waiting = windows.iter().filter_map(|(at, (from, spool))| {
                        let bytes = spool.as_ref()?.bytes();
                        Some(Waiting { at, from: *from, bytes, is_at_end: false, last_end: 0 })
                    });
                    let _ = spooling.next(waiting);
                }
            }
            assert!(n_decided > 10 && were_paused, "{n_decided} windows were decided");
        }
    }
}
