//! N-grams on disk between the pass that counts them and the model that weighs them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A file that takes pieces from several threads and gives them back. Once something has gone wrong (no room, say) it takes
/// nothing more: what it is for can be had without it, more slowly.
pub struct Spool {
    file: Option<File>,
    next: AtomicU64,
    limit_bytes: u64,
    has_failed: AtomicBool,
    problem: Mutex<Option<String>>,
}

/// Where a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub start: u64,
    pub len: usize,
}

impl Spool {
    pub fn new(file: io::Result<File>, limit_bytes: u64) -> Self {
        let (file, problem) = match file {
            Ok(file) => (Some(file), None),
            Err(e) => (None, Some(e.to_string())),
        };
        Spool {
            has_failed: AtomicBool::new(file.is_none()),
            file,
            next: AtomicU64::new(0),
            limit_bytes,
            problem: Mutex::new(problem),
        }
    }

    /// `None` once something has gone wrong.
    pub fn append(&self, piece: &[u8]) -> Option<Place> {
        let file = self.file.as_ref().filter(|_| !self.has_failed())?;
        let start = self.next.fetch_add(piece.len() as u64, Ordering::Relaxed);
        if start + piece.len() as u64 > self.limit_bytes {
            self.fail(format!("they take more than {} GiB (--scratch-gib)", self.limit_bytes >> 30));
            return None;
        }
        match file.write_all_at(piece, start) {
            Ok(()) => Some(Place { start, len: piece.len() }),
            Err(e) => {
                self.fail(e.to_string());
                None
            }
        }
    }

    /// Fills `piece` with what was appended.
    pub fn read(&self, place: Place, piece: &mut Vec<u8>) -> io::Result<()> {
        piece.resize(place.len, 0);
        match &self.file {
            Some(file) => file.read_exact_at(piece, place.start),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// What went wrong first, for people.
    pub fn problem(self) -> Option<String> {
        self.problem.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn fail(&self, problem: String) {
        self.has_failed.store(true, Ordering::Relaxed);
        self.problem.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_whoever_wrote_them() {
        let spool = Spool::new(tempfile::tempfile(), 1 << 20);
        let places: Vec<Vec<(u8, Place)>> = std::thread::scope(|scope| {
            let write = |n: u8| (0..50).filter_map(|i| Some((n, spool.append(&vec![n; 7 * i])?))).collect();
            let spawned: Vec<_> = (0..4u8).map(|n| scope.spawn(move || write(n))).collect();
            spawned.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut piece = Vec::new();
        for (n, place) in places.into_iter().flatten() {
            spool.read(place, &mut piece).unwrap();
            assert!(piece.len() == place.len && piece.iter().all(|byte| *byte == n));
        }
        assert!(!spool.has_failed());
    }

    #[test]
    fn a_full_spool_says_so_once_and_takes_nothing_more() {
        let spool = Spool::new(tempfile::tempfile(), 100);
        assert!(spool.append(&[1; 60]).is_some());
        assert!(spool.append(&[1; 60]).is_none());
        assert!(spool.append(&[1; 1]).is_none(), "a hole would be read as n-grams");
        assert!(spool.has_failed());
        assert_eq!(spool.problem().unwrap(), "they take more than 0 GiB (--scratch-gib)");
        let none = Spool::new(Err(io::ErrorKind::PermissionDenied.into()), 100);
        assert!(none.append(&[1]).is_none());
        assert_eq!(none.problem().unwrap(), "permission denied");
    }
}
