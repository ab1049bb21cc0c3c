//! Reports of ranks become global batches. A pure state machine: reports and the time go in, batches come out.
//!
//! Promises: a report is in at most one batch; a batch comes out once, when all its ranks have reported, when its deadline has
//! passed, or when it is the oldest and memory is short; what waits takes no more than the bound. Whatever the order in which
//! the reports of a step come, and however often each, the batch is the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Entered, GlobalBatch, KnownSteps, StepKey};
use crate::record::{LossReport, TopicPartition};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssemblySettings {
    /// From the first report of a step to its answer, whoever is missing.
    pub deadline_ms: i64,
    /// Of all reports that wait.
    pub max_pending_bytes: usize,
    /// Steps of which it is remembered that they were answered.
    pub remembered_steps: usize,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It waits for other ranks, or is the last one: see [`Assembly::next_batch`].
    Kept,
    /// The rank has said the same before.
    Repeated,
    /// The rank has said something else before, which stays.
    OtherLosses,
    /// Its world has another size than that of the step's first report.
    OtherWorld,
    /// The step has been answered.
    Late,
}

impl Taken {
    pub const ALL: [Taken; 5] = [Taken::Kept, Taken::Repeated, Taken::OtherLosses, Taken::OtherWorld, Taken::Late];

    pub fn as_str(self) -> &'static str {
        match self {
            Taken::Kept => "kept",
            Taken::Repeated => "repeated",
            Taken::OtherLosses => "other_losses",
            Taken::OtherWorld => "other_world_size",
            Taken::Late => "late",
        }
    }
}

/// Why a batch came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Complete,
    Deadline,
    Memory,
}

impl Why {
    pub const ALL: [Why; 3] = [Why::Complete, Why::Deadline, Why::Memory];

    pub fn as_str(self) -> &'static str {
        match self {
            Why::Complete => "complete",
            Why::Deadline => "deadline",
            Why::Memory => "memory",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Assembled {
    pub batch: GlobalBatch,
    pub why: Why,
}

#[derive(Debug)]
pub struct Assembly {
    settings: AssemblySettings,
    pending: BTreeMap<StepKey, Pending>,
    /// By the time of their first report.
    oldest: BTreeSet<(i64, StepKey)>,
    pending_bytes: usize,
    answered: KnownSteps<()>,
    ready: VecDeque<Assembled>,
}

#[derive(Debug)]
struct Pending {
    began_ms: i64,
    world_size: u32,
    size_bytes: usize,
    /// By rank.
    reports: BTreeMap<u32, LossReport>,
    /// Of each partition that reports came from, the first offset.
    first_offsets: BTreeMap<TopicPartition, i64>,
}

impl Assembly {
    pub fn new(settings: AssemblySettings) -> Self {
        Assembly {
            settings,
            pending: BTreeMap::new(),
            oldest: BTreeSet::new(),
            pending_bytes: 0,
            answered: KnownSteps::new(settings.remembered_steps),
            ready: VecDeque::new(),
        }
    }

    /// Takes the report that stood at an offset of a partition.
    pub fn take(&mut self, report: LossReport, at: &TopicPartition, offset: i64, now_ms: i64) -> Taken {
        let key = (report.run_id.clone(), report.step);
        if self.answered.get(&key).is_some() {
            return Taken::Late;
        }
        let pending = self.pending.entry(key.clone()).or_insert_with(|| {
            self.oldest.insert((now_ms, key.clone()));
            Pending {
                began_ms: now_ms,
                world_size: report.world_size,
                size_bytes: 0,
                reports: BTreeMap::new(),
                first_offsets: BTreeMap::new(),
            }
        });
        if pending.world_size != report.world_size {
            return Taken::OtherWorld;
        }
        if let Some(known) = pending.reports.get(&report.rank) {
            return if says_the_same(known, &report) { Taken::Repeated } else { Taken::OtherLosses };
        }
        let size_bytes = report.size_bytes();
        pending.size_bytes += size_bytes;
        self.pending_bytes += size_bytes;
        pending.reports.insert(report.rank, report);
        pending.first_offsets.entry(at.clone()).or_insert(offset);
        if pending.reports.len() == pending.world_size as usize {
            self.finish(&key, Why::Complete);
        }
        while self.pending_bytes > self.settings.max_pending_bytes
            && let Some((_, key)) = self.oldest.first().cloned()
        {
            self.finish(&key, Why::Memory);
        }
        Taken::Kept
    }

    /// The next batch that is due; ask until there is none.
    pub fn next_batch(&mut self, now_ms: i64) -> Option<Assembled> {
        while let Some((began_ms, key)) = self.oldest.first().cloned()
            && now_ms.saturating_sub(began_ms) >= self.settings.deadline_ms
        {
            self.finish(&key, Why::Deadline);
        }
        self.ready.pop_front()
    }

    fn finish(&mut self, key: &StepKey, why: Why) {
        let Some(pending) = self.remove(key) else { return };
        let newly = self.answered.enter(key.clone(), ());
        debug_assert_eq!(newly, Entered::New, "a step that waits is not answered");
        let (run_id, step) = key.clone();
        let reports = pending.reports.into_values().collect();
        let batch = GlobalBatch { run_id, step, world_size: pending.world_size, reports };
        self.ready.push_back(Assembled { batch, why });
    }

    fn remove(&mut self, key: &StepKey) -> Option<Pending> {
        let pending = self.pending.remove(key)?;
        self.oldest.remove(&(pending.began_ms, key.clone()));
        self.pending_bytes -= pending.size_bytes;
        Some(pending)
    }

    /// Drops what came from partitions that another member reads now, and from the beginning of what was not answered.
    pub fn forget(&mut self, partitions: &[TopicPartition]) {
        let is_theirs = |pending: &Pending| partitions.iter().any(|at| pending.first_offsets.contains_key(at));
        let theirs = self.pending.iter().filter(|(_, pending)| is_theirs(pending)).map(|(key, _)| key.clone());
        for key in theirs.collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Where a reader must begin again, were everything lost that waits: at most `next_offset`, behind what was read.
    pub fn safe_offset(&self, at: &TopicPartition, next_offset: i64) -> i64 {
        let first = self.pending.values().filter_map(|pending| pending.first_offsets.get(at)).min();
        first.map_or(next_offset, |first| (*first).min(next_offset))
    }

    /// Steps that wait for ranks.
    pub fn n_pending(&self) -> usize {
        self.pending.len()
    }

    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }
}

/// Bad entries are compared too; where the trainer stood in the manifest is not.
fn says_the_same(a: &LossReport, b: &LossReport) -> bool {
    (&a.losses, &a.bad) == (&b.losses, &b.bad)
}
