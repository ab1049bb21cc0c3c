//! Patience with a full disk: what does not fit is written again once there is room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a writer does while its disk is full.
pub trait FullDisk: Send + Sync {
    /// Waits a moment, on the writer's thread. `false`: give up.
    fn wait(&self, folder: &Path, error: &io::Error) -> bool;

    /// Called once after one wait or more: what did not fit is written.
    fn is_over(&self);
}

/// Whoever has no time for a full disk.
pub struct GiveUp;

impl FullDisk for GiveUp {
    fn wait(&self, _: &Path, _: &io::Error) -> bool {
        false
    }

    fn is_over(&self) {}
}

/// Repeats what a full disk refused.
#[derive(Clone)]
pub(super) struct Patience {
    folder: PathBuf,
    full_disk: Arc<dyn FullDisk>,
    /// The file is not wanted any more.
    abandoned: Arc<AtomicBool>,
}

/// Ends the patience of a file when it is dropped: buffers above the file are flushed as they are dropped, and must not wait
/// for room then.
pub(super) struct Abandon(Arc<AtomicBool>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Patience {
    pub fn new(folder: PathBuf, full_disk: Arc<dyn FullDisk>) -> (Self, Abandon) {
        let abandoned = Arc::new(AtomicBool::new(false));
        (Patience { folder, full_disk, abandoned: abandoned.clone() }, Abandon(abandoned))
    }

    /// `act` must have taken nothing of its input where it fails.
    pub fn with<T>(&self, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut waited = false;
        loop {
            match act() {
                Err(e)
                    if is_full(&e)
                        && !self.abandoned.load(Ordering::Relaxed)
                        && self.full_disk.wait(&self.folder, &e) =>
                {
                    waited = true;
                }
                done => {
                    if waited && done.is_ok() {
                        self.full_disk.is_over();
                    }
                    return done;
                }
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use super::*;

    /// Waits so many times.
    #[derive(Default)]
    struct Waits {
        left: Mutex<u32>,
        over: AtomicBool,
    }

    impl FullDisk for Waits {
        fn wait(&self, _: &Path, _: &io::Error) -> bool {
            let mut left = self.left.lock().unwrap();
            *left -= u32::from(*left > 0);
            *left > 0
        }

        fn is_over(&self) {
            self.over.store(true, Ordering::Relaxed);
        }
    }

    /// Full for the first `refusals` writes.
    struct Disk {
        refusals: u32,
        kind: io::ErrorKind,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.refusals > 0 {
                self.refusals -= 1;
                return Err(self.kind.into());
            }
            self.written.extend_from_slice(&bytes[..bytes.len().min(3)]);
            Ok(bytes.len().min(3))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn patience(waits: u32) -> (Patience, Abandon, Arc<Waits>) {
        let full_disk = Arc::new(Waits { left: Mutex::new(waits), over: AtomicBool::new(false) });
        let (patience, abandon) = Patience::new("/scratch".into(), full_disk.clone());
        (patience, abandon, full_disk)
    }

    #[test]
    fn what_a_full_disk_refused_is_written_once() {
        let disk = Disk { refusals: 3, kind: io::ErrorKind::StorageFull, written: Vec::new() };
        let mut file = io::BufWriter::with_capacity(8, disk);
        let (patience, _abandon, full_disk) = patience(10);
        for piece in [&b"abcdef"[..], b"ghi", b"jklmnopqrstuvwxyz", b"."] {
            let mut rest = piece;
            while !rest.is_empty() {
                let n = patience.with(|| file.write(rest)).unwrap();
                rest = &rest[n..];
            }
        }
        patience.with(|| file.flush()).unwrap();
        assert_eq!(file.get_ref().written, b"abcdefghijklmnopqrstuvwxyz.");
        assert!(full_disk.over.load(Ordering::Relaxed));
    }

    #[test]
    fn other_errors_an_end_of_patience_and_an_abandoned_file_are_errors_at_once() {
        let fails = |waits, refusals, kind, abandoned: bool| {
            let mut disk = Disk { refusals, kind, written: Vec::new() };
            let (patience, abandon, full_disk) = patience(waits);
            // Dropped at once where the file is abandoned.
            let _kept = (!abandoned).then_some(abandon);
            let error = patience.with(|| disk.write(b"x")).unwrap_err();
            assert!(error.kind() == kind && !full_disk.over.load(Ordering::Relaxed));
            refusals - disk.refusals
        };
        assert_eq!(fails(10, 9, io::ErrorKind::PermissionDenied, false), 1);
        assert_eq!(fails(3, 9, io::ErrorKind::StorageFull, false), 3);
        assert_eq!(fails(10, 9, io::ErrorKind::QuotaExceeded, true), 1);
    }
}
