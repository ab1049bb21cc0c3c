//! Partitions that nobody in the group owns. Pure: what the group says comes in, with the time.
//!
//! A partition moves in two rebalances: the first takes it from its owner, the second gives it to the next. When every member
//! ends in between, and comes back under the name that it had (static membership, KIP-345), the broker gives each its
//! assignment of before without a rebalance. The partition is in none of them, and stays so until something else makes the
//! group rebalance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::record::TopicPartition;

/// The wait until the next mending doubles up to so many times the grace: where mending does not help, a person must.
const MOST_GRACES: u32 = 16;
/// A static member is called by its `group.instance.id`, a dash, and a UUID.
const UUID_LEN: usize = 36;

/// What a settled group looks like.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What is assigned to each member, by the name that the group gives it.
    pub(super) members: BTreeMap<String, BTreeSet<TopicPartition>>,
    /// All partitions of the topics that are read.
    pub(super) partitions: BTreeSet<TopicPartition>,
}

/// What follows from a look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) unowned: Vec<TopicPartition>,
    /// This member shall make the group rebalance, for the sake of these, which have had no owner for the grace.
    pub(super) to_mend: Vec<TopicPartition>,
}

/// What is known so far.
pub(super) struct Ownership {
    /// `group.instance.id` of this member. Without one it never mends: others come back under new names, which rebalances.
    instance_id: Option<String>,
    grace: Duration,
    /// Since when a partition has had no owner, in every look.
    since: BTreeMap<TopicPartition, Instant>,
    /// Until the next mending.
    wait: Duration,
    mended: Option<Instant>,
}

impl Ownership {
    pub(super) fn new(instance_id: Option<String>, grace: Duration) -> Self {
        Ownership { instance_id, grace, since: BTreeMap::new(), wait: grace, mended: None }
    }

    /// The group is rebalancing: who owns what will be seen.
    pub(super) fn unsettled(&mut self) {
        self.since.clear();
    }

    pub(super) fn look(&mut self, look: &Look, now: Instant) -> Verdict {
        let owned: BTreeSet<&TopicPartition> = look.members.values().flatten().collect();
        let unowned: Vec<_> = look.partitions.iter().filter(|at| !owned.contains(at)).cloned().collect();
        self.since.retain(|at, _| !owned.contains(at) && look.partitions.contains(at));
        for at in &unowned {
            self.since.entry(at.clone()).or_insert(now);
        }
        if unowned.is_empty() {
            (self.wait, self.mended) = (self.grace, None);
        }
        // Two looks at least: one that finds it and one that finds it still so.
        let has_waited = |since: &Instant| *since < now && now - *since >= self.grace;
        let to_mend: Vec<_> =
            self.since.iter().filter(|(_, since)| has_waited(since)).map(|(at, _)| at.clone()).collect();
        let is_due = self.mended.is_none_or(|mended| now - mended >= self.wait);
        if to_mend.is_empty() || !is_due || !self.is_mine(look) {
            return Verdict { unowned, to_mend: Vec::new() };
        }
        if self.mended.replace(now).is_some() {
            self.wait = (self.wait * 2).min(self.grace * MOST_GRACES);
        }
        self.since.clear();
        Verdict { unowned, to_mend }
    }

    /// Every member sees the same group and finds the same one among it: who owns the least has the least to do again, and of
    /// several of these the first by name.
    fn is_mine(&self, look: &Look) -> bool {
        let chosen = look.members.iter().min_by_key(|(name, owned)| (owned.len(), name.as_str()));
        let suffix = chosen.and_then(|(name, _)| name.strip_prefix(self.instance_id.as_deref()?)?.strip_prefix('-'));
        suffix.is_some_and(|suffix| suffix.len() == UUID_LEN)
    }
}

/// Decodes what the group's leader has assigned to a member (`ConsumerProtocolAssignment`, any version); `None`: it is broken.
pub(super) fn assignment(mut bytes: &[u8]) -> Option<BTreeSet<TopicPartition>> {
    let mut owned = BTreeSet::new();
    // A member that has been given nothing yet.
    if bytes.is_empty() {
        return Some(owned);
    }
    let _version = i16::from_be_bytes(take(&mut bytes)?);
    for _ in 0..i32::from_be_bytes(take(&mut bytes)?) {
        let len = usize::try_from(i16::from_be_bytes(take(&mut bytes)?)).ok()?;
        let (name, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        let topic: std::sync::Arc<str> = std::str::from_utf8(name).ok()?.into();
        for _ in 0..i32::from_be_bytes(take(&mut bytes)?) {
            let partition = i32::from_be_bytes(take(&mut bytes)?);
            owned.insert(TopicPartition::new(topic.clone(), partition));
        }
    }
    Some(owned)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(30);

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("docs", partition)
    }

    fn name(member: &str) -> String {
        format!("{member}-01234567-89ab-cdef-0123-456789abcdef")
    }

    /// A group that reads four partitions.
    fn group(members: &[(&str, &[i32])]) -> Look {
        let owned = |partitions: &[i32]| partitions.iter().map(|p| at(*p)).collect();
        Look {
            members: members.iter().map(|(member, partitions)| (name(member), owned(partitions))).collect(),
            partitions: (0..4).map(at).collect(),
        }
    }

    fn member(name: &str) -> Ownership {
        Ownership::new(Some(name.to_owned()), GRACE)
    }

    #[test]
    fn the_member_that_owns_least_mends_what_has_no_owner_for_the_grace() {
        let (start, look) = (Instant::now(), group(&[("a", &[0, 1]), ("b", &[3]), ("b-b", &[]), ("c", &[])]));
        let after = |seconds| start + Duration::from_secs(seconds);
        let (mut a, mut b, mut bb, mut c) = (member("a"), member("b"), member("b-b"), member("c"));
        for seconds in [0, 29] {
            for member in [&mut a, &mut b, &mut bb, &mut c] {
                let verdict = member.look(&look, after(seconds));
                assert_eq!(verdict, Verdict { unowned: vec![at(2)], to_mend: vec![] }, "{seconds}");
            }
        }
        for other in [&mut a, &mut b, &mut c] {
            assert_eq!(other.look(&look, after(30)).to_mend, []);
        }
        assert_eq!(bb.look(&look, after(30)).to_mend, [at(2)]);
        assert_eq!(Ownership::new(None, GRACE).look(&look, after(30)).unowned, [at(2)]);
    }

    #[test]
    fn an_owner_or_a_rebalance_in_between_begins_the_grace_again() {
        let (start, look) = (Instant::now(), group(&[("a", &[0, 1, 3])]));
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut a = member("a");
        a.look(&look, start);
        a.unsettled();
        assert_eq!(a.look(&look, after(40)).to_mend, []);
        assert_eq!(a.look(&group(&[("a", &[0, 1, 2, 3])]), after(50)), Verdict { unowned: vec![], to_mend: vec![] });
        assert_eq!(a.look(&look, after(80)).to_mend, []);
        // Of another partition nothing is known yet.
        assert_eq!(a.look(&group(&[("a", &[0, 1])]), after(110)).to_mend, [at(2)]);
    }

    #[test]
    fn what_mending_does_not_help_is_tried_less_and_less_often() {
        let (start, look) = (Instant::now(), group(&[("a", &[0, 1, 3])]));
        let mut a = member("a");
        let mut mended = Vec::new();
        for seconds in (0..3_000).step_by(10) {
            if !a.look(&look, start + Duration::from_secs(seconds)).to_mend.is_empty() {
                mended.push(seconds);
            }
        }
        assert_eq!(mended, [30, 70, 130, 250, 490, 970, 1450, 1930, 2410, 2890]);
    }

    #[test]
    fn assignments_are_read_as_kafka_writes_them() {
        // Version 3, `docs` with 1 and 258, `d` with none, no user data.
        let bytes = b"\0\x03\0\0\0\x02\0\x04docs\0\0\0\x02\0\0\0\x01\0\0\x01\x02\0\x01d\0\0\0\0\xff\xff\xff\xff";
        assert_eq!(assignment(bytes), Some([at(1), at(258)].into()));
        assert_eq!(assignment(b""), Some(BTreeSet::new()));
        // Cut anywhere before the user data, it is broken.
        for len in 1..bytes.len() - 4 {
            assert_eq!(assignment(&bytes[..len]), None, "{len}");
        }
        assert_eq!(assignment(b"\0\0\0\0\0\x01\xff\xff"), None);
    }
}
