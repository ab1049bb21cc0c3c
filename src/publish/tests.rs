use proptest::prelude::*;

use super::*;

/// A catalog row and a checkpoint as a transaction sees them, with a rival that may take the partition over.
struct World {
    staged: bool,
    uploaded: bool,
    published: bool,
    rival: bool,
    /// A commit that was cut off and may still land.
    in_flight: bool,
}

impl World {
    fn commit_lands(&mut self) -> bool {
        let lands = !self.published && !self.rival;
        assert!(!lands || (self.staged && self.uploaded), "a commit before stage and upload");
        self.published |= lands;
        lands
    }
}

proptest! {
    /// Whatever fails wherever, and whenever a lost COMMIT lands: the end agrees with what the catalog holds.
    #[test]
    fn outcome_always_agrees_with_the_catalog(has_file: bool, chances in proptest::collection::vec(0u8..6, 1..200)) {
        let mut world = World { staged: false, uploaded: !has_file, published: false, rival: false, in_flight: false };
        let mut publication = Publication::new(has_file);
        for chance in chances {
            if world.in_flight && chance % 2 == 0 {
                world.in_flight = false;
                world.commit_lands();
            }
            let event = match (publication.step(), chance) {
                (Step::Finished | Step::Abandon, _) => break,
                (_, 0) => Event::Failed,
                (Step::Stage, _) => { world.staged = true; Event::Staged }
                (Step::Upload, _) => { world.uploaded = true; Event::Uploaded }
                (Step::Commit, 1) => { world.in_flight = true; Event::CommitUnknown }
                (Step::Commit, 2) => { world.commit_lands(); Event::CommitUnknown }
                (Step::Commit, 3) if !world.published => { world.rival = true; Event::Fenced }
                (Step::Commit, _) => if world.commit_lands() { Event::Committed } else { Event::Fenced },
                (Step::ReadBack, _) if world.published => Event::FoundPublished,
                (Step::ReadBack, _) => Event::FoundStaged,
            };
            publication.observe(event);
        }
        match publication.step() {
            Step::Finished => prop_assert!(world.published),
            Step::Abandon => {
                // A commit still in flight can no longer land: whatever fenced us moved the checkpoint.
                world.commit_lands();
                prop_assert!(!world.published);
            }
            _ => {}
        }
    }
}

#[test]
fn progress_without_rows_needs_no_upload() {
    let mut publication = Publication::new(false);
    publication.observe(Event::Staged);
    assert_eq!(publication.step(), Step::Commit);
}

#[test]
fn backoff_doubles_to_a_limit_and_success_resets_it() {
    let mut publication = Publication::new(true);
    assert_eq!(publication.backoff(), Duration::ZERO);
    let mut waits = Vec::new();
    for _ in 0..40 {
        publication.observe(Event::Failed);
        waits.push(publication.backoff().as_millis());
    }
    assert_eq!(waits[..4], [100, 200, 400, 800]);
    assert_eq!(waits[39], 10_000);
    publication.observe(Event::Staged);
    assert_eq!(publication.backoff(), Duration::ZERO);
}

#[test]
fn a_commit_that_never_happens_is_asked_about_at_once_and_tried_again_later() {
    let mut publication = Publication::new(false);
    publication.observe(Event::Staged);
    let mut waits = Vec::new();
    for _ in 0..4 {
        publication.observe(Event::CommitUnknown);
        assert_eq!((publication.step(), publication.backoff()), (Step::ReadBack, Duration::ZERO));
        publication.observe(Event::FoundStaged);
        waits.push(publication.backoff().as_millis());
    }
    assert_eq!(waits, [100, 200, 400, 800]);
}
