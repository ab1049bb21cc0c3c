//! What is known of the steps seen last. The oldest are forgotten, so that memory is bounded.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

/// A step of a run.
pub type StepKey = (String, u64);

/// A value for each of so many steps.
#[derive(Debug)]
pub struct KnownSteps<V> {
    capacity: usize,
    values: BTreeMap<StepKey, V>,
    /// Oldest first.
    order: VecDeque<StepKey>,
}

/// What there was when a value was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// Nothing, or it is forgotten.
    New,
    Same,
    /// Another value, which stays.
    Other,
}

impl<V: PartialEq> KnownSteps<V> {
    pub fn new(capacity: usize) -> Self {
        KnownSteps { capacity, values: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Enters a value unless there is one. A step that is entered again is no younger for that.
    pub fn enter(&mut self, key: StepKey, value: V) -> Entered {
        match self.values.entry(key) {
            Entry::Occupied(known) if *known.get() == value => return Entered::Same,
            Entry::Occupied(_) => return Entered::Other,
            Entry::Vacant(vacant) => {
                self.order.push_back(vacant.key().clone());
                vacant.insert(value);
            }
        }
        while self.order.len() > self.capacity {
            let forgotten = self.order.pop_front();
            forgotten.map(|key| self.values.remove(&key));
        }
        Entered::New
    }

    pub fn get(&self, key: &StepKey) -> Option<&V> {
        self.values.get(key)
    }
}
