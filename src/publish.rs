//! Publication of one shard as a sequence of decisions: observed facts in, next step out. Pure.
//!
//! The order is what makes it exactly-once: the staged row stands before any byte is uploaded (so an orphan is always
//! known), the upload is complete before the transaction (so a published shard always exists), and the transaction
//! moves checkpoints and shard together. Its outcome can be unknown when a connection breaks during COMMIT; then the
//! shard's own row tells.

use std::time::Duration;

/// What to do next. Every step may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write the staged row.
    Stage,
    /// Put the file under its own key.
    Upload,
    /// The one transaction.
    Commit,
    /// Read the shard's state from the catalog.
    ReadBack,
    /// Published: mirror the offsets, rewrite the manifest.
    Finished,
    /// Another owner has advanced a partition: nothing of this shard may be published.
    Abandon,
}

/// What happened at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Staged,
    Uploaded,
    Committed,
    /// The transaction was rolled back because a checkpoint or an owner epoch was not ours.
    Fenced,
    /// No answer to COMMIT: it may have happened.
    CommitUnknown,
    FoundPublished,
    FoundStaged,
    /// The step certainly had no effect; try it again later.
    Failed,
}

/// Where one publication stands.
#[derive(Debug, Clone)]
pub struct Publication {
    step: Step,
    has_file: bool,
    /// A commit without an answer came before: being fenced may be its own doing.
    uncertain: bool,
    /// Since the last step that succeeded.
    failures: u32,
    /// The last event was a failure.
    has_failed: bool,
}

impl Publication {
    /// `has_file`: whether anything was selected. Progress alone has no file to upload.
    pub fn new(has_file: bool) -> Self {
        Publication { step: Step::Stage, has_file, uncertain: false, failures: 0, has_failed: false }
    }

    pub fn step(&self) -> Step {
        self.step
    }

    /// Takes note of what happened at the current step.
    ///
    /// # Panics
    /// If the event cannot happen at this step.
    pub fn observe(&mut self, event: Event) {
        // A commit that turns out not to have happened is a failed one: a full disk answers like that, again and again.
        self.has_failed = matches!(event, Event::Failed | Event::FoundStaged);
        self.failures = match event {
            Event::CommitUnknown => self.failures,
            _ if self.has_failed => self.failures + 1,
            _ => 0,
        };
        self.step = match (self.step, event) {
            (Step::Finished | Step::Abandon, _) => panic!("{event:?} after the end of a publication"),
            (step, Event::Failed) => step,
            (Step::Stage, Event::Staged) if self.has_file => Step::Upload,
            (Step::Stage, Event::Staged) | (Step::Upload, Event::Uploaded) => Step::Commit,
            (Step::Commit, Event::Committed) | (Step::ReadBack, Event::FoundPublished) => Step::Finished,
            (Step::Commit, Event::CommitUnknown) => {
                self.uncertain = true;
                Step::ReadBack
            }
            (Step::Commit, Event::Fenced) if self.uncertain => {
                self.uncertain = false;
                Step::ReadBack
            }
            (Step::Commit, Event::Fenced) => Step::Abandon,
            // Not published (so far): the commit is tried again, and only a second refusal is believed.
            (Step::ReadBack, Event::FoundStaged) => Step::Commit,
            (step, event) => panic!("{event:?} cannot happen at {step:?}"),
        };
    }

    /// How long to wait before the current step: 0.1 s after a failure, doubling up to 10 s.
    pub fn backoff(&self) -> Duration {
        match self.failures {
            n if n == 0 || !self.has_failed => Duration::ZERO,
            n => Duration::from_millis(100 << (n - 1).min(7)).min(Duration::from_secs(10)),
        }
    }
}

#[cfg(test)]
mod tests;
