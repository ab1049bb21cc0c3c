//! Intervals of offsets and how they add up: what a publication advances a checkpoint by. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::TopicPartition;

/// Offsets `from..to` of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    #[serde(rename = "from_offset")]
    pub from: i64,
    #[serde(rename = "to_offset")]
    pub to: i64,
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.from, self.to)
    }
}

/// Why an interval cannot follow those before it. Each is a fault of the program, never of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntervalError {
    #[error("partition {at}: offsets {next} overlap {held}")]
    Overlap { at: TopicPartition, held: Interval, next: Interval },
    #[error("partition {at}: offsets {next} leave a gap after {held}")]
    Gap { at: TopicPartition, held: Interval, next: Interval },
    #[error("partition {at}: offsets {next} are empty")]
    Empty { at: TopicPartition, next: Interval },
}

/// One contiguous interval a partition: the sum of the windows in a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress(BTreeMap<TopicPartition, Interval>);

impl Progress {
    /// Adds the interval that follows what is held of its partition.
    pub fn append(&mut self, at: &TopicPartition, next: Interval) -> Result<(), IntervalError> {
        if next.to <= next.from {
            return Err(IntervalError::Empty { at: at.clone(), next });
        }
        match self.0.get_mut(at) {
            None => {
                self.0.insert(at.clone(), next);
            }
            Some(held) if next.from == held.to => held.to = next.to,
            Some(&mut held) if next.from > held.to => return Err(IntervalError::Gap { at: at.clone(), held, next }),
            Some(&mut held) => return Err(IntervalError::Overlap { at: at.clone(), held, next }),
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, at: &TopicPartition) -> bool {
        self.0.contains_key(at)
    }

    /// Partitions in ascending order, so that every writer locks rows in the same order.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, Interval)> {
        self.0.iter().map(|(at, &interval)| (at, interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn contiguous_pieces_add_up_to_the_whole(lengths in proptest::collection::vec(1i64..50, 1..20), start in 0i64..1000) {
            let at = TopicPartition::new("t", 0);
            let mut progress = Progress::default();
            let mut from = start;
            for length in lengths {
                progress.append(&at, Interval { from, to: from + length }).unwrap();
                from += length;
            }
            prop_assert_eq!(progress.iter().collect::<Vec<_>>(), vec![(&at, Interval { from: start, to: from })]);
        }
    }

    #[test]
    fn gaps_overlaps_and_empty_pieces_are_refused() {
        let at = TopicPartition::new("t", 3);
        let mut progress = Progress::default();
        progress.append(&at, Interval { from: 100, to: 140 }).unwrap();
        let mut error = |from, to| progress.append(&at, Interval { from, to }).unwrap_err().to_string();
        assert_eq!(error(120, 180), "partition t/3: offsets 120..180 overlap 100..140");
        assert_eq!(error(141, 180), "partition t/3: offsets 141..180 leave a gap after 100..140");
        assert_eq!(error(140, 140), "partition t/3: offsets 140..140 are empty");
    }
}
