//! Places where a test lets the process end as by `kill -9`. Debug builds only: a release has nothing of it.

/// Every place, in the order in which a daemon passes them; the last one only where a group rebalances.
pub const POINTS: [&str; 20] = [
    "claim.before_commit",
    "claim.committed",
    "start.stored",
    "shard.finished",
    "publish.staged",
    "upload.half",
    "upload.before_sync",
    "upload.done",
    "commit.checkpoints_moved",
    "commit.before",
    "commit.after",
    "manifest.opened",
    "manifest.half",
    "manifest.written",
    "side_file.half",
    "side_file.written",
    "feedback.checkpoints_moved",
    "feedback.before_commit",
    "feedback.committed",
    "revoke.drained",
];

/// Ends the process here if the environment says `CRASH_POINT=NAME:N` and this is the N-th time.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: LazyLock<Option<(String, u64)>> = LazyLock::new(|| {
        let wanted = std::env::var("CRASH_POINT").ok()?;
        let (name, n) = wanted.rsplit_once(':')?;
        Some((name.to_owned(), n.parse().ok()?))
    });
    static SEEN: AtomicU64 = AtomicU64::new(0);

    debug_assert!(POINTS.contains(&name), "crash point {name} is not in the list");
    let Some((wanted, n)) = &*WANTED else { return };
    if wanted == name && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *n {
        // What is written to standard error is with the system: it survives.
        eprintln!("crash point {name} reached for the {n}. time");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::MAX);
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point(_name: &str) {}
