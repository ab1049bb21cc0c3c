//! N-grams on disk between the pass that counts them and the model that weighs them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Files that take pieces from several threads and give them back. Each thread has a file of its own, because the system lets
/// only one at a time write to a file. Once something has gone wrong (no room, say) nothing more is taken: what it is for can be
/// had without it, more slowly.
pub struct Spool {
    files: Vec<File>,
    used_bytes: AtomicU64,
    n_writers: AtomicUsize,
    limit_bytes: u64,
    has_failed: AtomicBool,
    problem: Mutex<Option<String>>,
}

/// Of a place's start; the files together are no larger than that.
const OFFSET_BITS: u32 = 48;

/// Appends to one of the files.
pub struct SpoolWriter<'a> {
    spool: &'a Spool,
    file: usize,
    next: u64,
}

/// Where a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the file, and below it where in that.
    pub start: u64,
    pub len: usize,
}

impl Spool {
    /// With a file for each writer that there will be.
    pub fn new(files: impl Iterator<Item = io::Result<File>>, limit_bytes: u64) -> Self {
        let (files, problem) = match files.collect() {
            Ok(files) => (files, None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        };
        Spool {
            has_failed: AtomicBool::new(files.is_empty()),
            files,
            used_bytes: AtomicU64::new(0),
            n_writers: AtomicUsize::new(0),
            limit_bytes: limit_bytes.min(1 << OFFSET_BITS),
            problem: Mutex::new(problem),
        }
    }

    /// Takes the next file.
    pub fn writer(&self) -> SpoolWriter<'_> {
        SpoolWriter { spool: self, file: self.n_writers.fetch_add(1, Ordering::Relaxed), next: 0 }
    }

    /// Fills `piece` with what was appended.
    pub fn read(&self, place: Place, piece: &mut Vec<u8>) -> io::Result<()> {
        piece.resize(place.len, 0);
        let (file, offset) = (place.start >> OFFSET_BITS, place.start & ((1 << OFFSET_BITS) - 1));
        match self.files.get(file as usize) {
            Some(file) => file.read_exact_at(piece, offset),
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

impl SpoolWriter<'_> {
    /// `None` once something has gone wrong.
    pub fn append(&mut self, piece: &[u8]) -> Option<Place> {
        let SpoolWriter { spool, file, next: start } = *self;
        let to = spool.files.get(file).filter(|_| !spool.has_failed())?;
        let bytes = piece.len() as u64;
        if spool.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > spool.limit_bytes {
            spool.fail(format!("they take more than {} GiB (--scratch-gib)", spool.limit_bytes >> 30));
            return None;
        }
        match to.write_all_at(piece, start) {
            Ok(()) => {
                self.next += bytes;
                Some(Place { start: (file as u64) << OFFSET_BITS | start, len: piece.len() })
            }
            Err(e) => {
                spool.fail(e.to_string());
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_whoever_wrote_them() {
        let spool = Spool::new((0..4).map(|_| tempfile::tempfile()), 1 << 20);
        let places: Vec<Vec<(u8, Place)>> = std::thread::scope(|scope| {
            let write = |n: u8, mut writer: SpoolWriter<'_>| {
                (0..50).filter_map(|i| Some((n, writer.append(&vec![n; 7 * i])?))).collect()
            };
            let writers = (0..4u8).map(|n| (n, spool.writer()));
            let spawned: Vec<_> = writers.map(|(n, writer)| scope.spawn(move || write(n, writer))).collect();
            spawned.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut piece = Vec::new();
        assert_eq!(places.iter().map(Vec::len).sum::<usize>(), 200);
        for (n, place) in places.into_iter().flatten() {
            spool.read(place, &mut piece).unwrap();
            assert!(piece.len() == place.len && piece.iter().all(|byte| *byte == n));
        }
        assert!(!spool.has_failed());
    }

    #[test]
    fn a_full_spool_says_so_once_and_takes_nothing_more() {
        let spool = Spool::new((0..2).map(|_| tempfile::tempfile()), 100);
        let (mut one, mut other) = (spool.writer(), spool.writer());
        assert!(one.append(&[1; 60]).is_some());
        assert!(other.append(&[1; 60]).is_none(), "the limit is that of all files together");
        assert!(one.append(&[1; 1]).is_none(), "what is not whole is of no use");
        assert!(spool.has_failed());
        assert_eq!(spool.problem().unwrap(), "they take more than 0 GiB (--scratch-gib)");
        let none = Spool::new([tempfile::tempfile(), Err(io::ErrorKind::PermissionDenied.into())].into_iter(), 100);
        assert!(none.writer().append(&[1]).is_none());
        assert_eq!(none.problem().unwrap(), "permission denied");
    }
}
