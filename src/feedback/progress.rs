//! Which steps of a rank have been reported: the newest one, and a window of steps before it.

/// Steps that a rank may be behind its newest one.
const WINDOW: u64 = 1_024;
const WORDS: usize = (WINDOW / 64) as usize;

/// Of one rank of one run: 136 bytes, however long it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankProgress {
    newest: u64,
    /// One bit a step: step s stands at s modulo the window.
    seen: [u64; WORDS],
}

/// What a rank's step is to its progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepNews {
    New,
    /// A report of this step was taken before: this one is a copy, or the next part.
    SeenBefore,
    /// Whether it was taken before is not remembered.
    TooOld,
}

impl RankProgress {
    /// Of a rank whose first report is of this step.
    pub fn beginning_at(step: u64) -> Self {
        RankProgress { newest: step, seen: [0; WORDS] }
    }

    /// Notes that a report of a step has come.
    pub fn note(&mut self, step: u64) -> StepNews {
        if step > self.newest {
            // The places of the steps in between become free.
            for skipped in (self.newest + 1..=step).take(WINDOW as usize) {
                self.clear(skipped);
            }
            self.newest = step;
        } else if self.newest - step >= WINDOW {
            return StepNews::TooOld;
        }
        let (word, bit) = place(step);
        let before = self.seen[word] & bit;
        self.seen[word] |= bit;
        if before == 0 { StepNews::New } else { StepNews::SeenBefore }
    }

    fn clear(&mut self, step: u64) {
        let (word, bit) = place(step);
        self.seen[word] &= !bit;
    }

    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// The window, for the catalog.
    pub fn seen_bytes(&self) -> Vec<u8> {
        self.seen.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// `None` if these are not the bytes of a window.
    pub fn from_parts(newest: u64, seen: &[u8]) -> Option<Self> {
        let (words, rest) = seen.as_chunks::<8>();
        let seen: [u64; WORDS] = words.iter().map(|w| u64::from_le_bytes(*w)).collect::<Vec<_>>().try_into().ok()?;
        rest.is_empty().then_some(RankProgress { newest, seen })
    }
}

fn place(step: u64) -> (usize, u64) {
    let at = step % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// As a set of all steps would answer, inside the window.
        #[test]
        fn a_window_of_bits_answers_as_a_set_does(start in 0u64..5_000, moves in proptest::collection::vec((any::<bool>(), 0u64..1_500), 0..200)) {
            let mut progress = RankProgress::beginning_at(start);
            let (mut newest, mut seen) = (start, BTreeSet::new());
            for (is_forward, by) in moves {
                let step = if is_forward { newest + by } else { newest.saturating_sub(by) };
                newest = newest.max(step);
                let expected = match newest - step {
                    behind if behind >= WINDOW => StepNews::TooOld,
                    _ if seen.insert(step) => StepNews::New,
                    _ => StepNews::SeenBefore,
                };
                prop_assert_eq!(progress.note(step), expected);
                prop_assert_eq!(RankProgress::from_parts(progress.newest(), &progress.seen_bytes()), Some(progress.clone()));
            }
        }
    }
}
