//! Rows on local disk between their arrival and the decision of their window.
//!
//! In: rows, one after the other. Out: some of them, by their numbers in order, one after the other. Rows stand in chunks,
//! compressed unless that is not wanted, with a checksum; a chunk is read once for all rows that are wanted of it. Chunks are compressed on all
//! cores, and read on all cores, a few at a time and, unless they are large, ahead of whoever takes their rows. The file has no name, so
//! that it goes with the process however that ends. There is none until a full chunk is written.
//!
//! No Arrow IPC: rows come and go one by one and whole, columns would only be taken apart again.

mod codec;
mod file;
mod rows;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::{FullDisk, SinkError};
use crate::score::Score;
use crate::window::SpooledRow;
use codec::{Borrowed, ChunkReader, PLAIN_LEVEL, Spare, ZSTD_LEVEL, compressor};
use file::{Plan, SpoolFile};
use rows::{Encoded, encode};

/// Rows that are compressed together, at least, unless they are the last.
const CHUNK_BYTES: usize = 128 << 10;
/// Rows that are read together, at most, unless they are of one chunk. Beside more of them than that no others are held.
const READ_BYTES: usize = 4 << 20;
/// So many times that are asked for from the disk before they are read.
const PREPARED: usize = 3;
/// How far back what was read is forgotten, more than once: some of it may be in use the first time.
const FORGET_BYTES: u64 = 16 << 20;
/// A file of so many bytes may be more than the page cache holds, and takes its time to be deleted. Smaller ones may be gone before
/// anything of them reaches the disk.
const LARGE_BYTES: u64 = 1 << 30;

/// Where rows wait, and how much of them.
pub struct SpoolFolder {
    folder: PathBuf,
    zstd_level: i32,
    used_bytes: AtomicU64,
    /// Those of them whose file is being deleted.
    deleting_bytes: AtomicU64,
    n_files: AtomicU64,
    n_errors: AtomicU64,
    full_disk: Arc<dyn FullDisk>,
    large_bytes: u64,
    /// For those who come next: making them takes as long as using them once.
    compressors: Spare<zstd::bulk::Compressor<'static>>,
    readers: Spare<ChunkReader>,
}

/// The rows of one window.
pub struct Spool {
    of: Arc<SpoolFolder>,
    file: Option<SpoolFile>,
    chunks: Vec<Chunk>,
    /// In the file.
    bytes: u64,
    n_rows: u32,
    /// Rows that are not in the file yet: those of full chunks, and the last ones.
    full: Vec<Pending>,
    pending: Pending,
}

/// Rows in memory, encoded.
#[derive(Default)]
struct Pending {
    /// Number of the first one.
    first: u32,
    rows: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    /// Number of its first row.
    first: u32,
    compressed_bytes: u32,
    start: u64,
    bytes: usize,
}

/// Whether rows that are read now are expected to be read once more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Yes,
    No,
}

/// Where rows are that are wanted.
#[derive(Clone, Copy)]
enum Place<'a> {
    File(Chunk),
    Memory(&'a Pending),
}

/// Places whose rows are read together, and the bytes of all rows there.
struct Portion<'a> {
    places: Vec<(Place<'a>, &'a [u32])>,
    bytes: usize,
}

impl SpoolFolder {
    /// `folder`: by default the system's folder for temporary files. Where the disk is full, writers wait for room as long as
    /// `full_disk` does. Rows that are not compressed take twice the disk and a fraction of the time.
    pub fn new(folder: Option<PathBuf>, is_compressed: bool, full_disk: Arc<dyn FullDisk>) -> Arc<Self> {
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        let zstd_level = if is_compressed { ZSTD_LEVEL } else { PLAIN_LEVEL };
        Arc::new(SpoolFolder {
            folder,
            zstd_level,
            used_bytes: AtomicU64::new(0),
            deleting_bytes: AtomicU64::new(0),
            n_files: AtomicU64::new(0),
            n_errors: AtomicU64::new(0),
            full_disk,
            large_bytes: LARGE_BYTES,
            compressors: Spare::default(),
            readers: Spare::default(),
        })
    }

    /// On disk, of all windows.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Of those on disk the ones that nobody wants any more: they are given back by themselves. Whoever sees none sees
    /// [`SpoolFolder::used_bytes`] without them.
    pub fn deleting_bytes(&self) -> u64 {
        self.deleting_bytes.load(Ordering::Acquire)
    }

    pub fn n_files(&self) -> u64 {
        self.n_files.load(Ordering::Relaxed)
    }

    /// Files that could not be made, written or read, since the last call.
    pub fn take_errors(&self) -> u64 {
        self.n_errors.swap(0, Ordering::Relaxed)
    }

    /// An empty spool.
    pub fn open(self: &Arc<Self>) -> Spool {
        Spool {
            of: self.clone(),
            file: None,
            chunks: Vec::new(),
            bytes: 0,
            n_rows: 0,
            full: Vec::new(),
            pending: Pending::default(),
        }
    }

    fn error(&self, source: io::Error) -> SinkError {
        self.n_errors.fetch_add(1, Ordering::Relaxed);
        SinkError::Scratch { folder: self.folder.clone(), source }
    }
}

impl Spool {
    /// Takes the next row. What it is given stays in memory until [`Spool::write`] comes.
    pub fn push(&mut self, row: &SpooledRow) {
        encode(row, &mut self.pending.rows);
        self.n_rows += 1;
        if self.pending.rows.len() >= CHUNK_BYTES {
            let rows = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
            let next = Pending { first: self.n_rows, rows };
            self.full.push(std::mem::replace(&mut self.pending, next));
        }
    }

    /// Bytes of full chunks that are not in the file yet.
    pub fn full_bytes(&self) -> usize {
        self.full.iter().map(|full| full.rows.len()).sum()
    }

    /// Moves full chunks to the files of their spools, which are of one folder.
    pub fn write<'a>(spools: impl Iterator<Item = &'a mut Spool>) -> Result<(), SinkError> {
        let mut spools: Vec<&mut Spool> = spools.filter(|spool| !spool.full.is_empty()).collect();
        let Some(of) = spools.first().map(|spool| spool.of.clone()) else { return Ok(()) };
        let full: Vec<&Pending> = spools.iter().flat_map(|spool| &spool.full).collect();
        let compress = |by: &mut Borrowed<'_, _>, pending: &Pending| -> io::Result<Vec<u8>> {
            by.get_or_try(|| compressor(of.zstd_level))?.compress(&pending.rows)
        };
        let compressed: Vec<io::Result<Vec<u8>>> =
            full.into_par_iter().map_init(|| of.compressors.borrow(), compress).collect();
        let mut compressed = compressed.into_iter();
        for spool in &mut spools {
            let compressed = compressed.by_ref().take(spool.full.len()).collect::<io::Result<Vec<_>>>();
            let written = compressed.and_then(|compressed| spool.append(&compressed));
            written.map_err(|source| spool.of.error(source))?;
        }
        Ok(())
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        let full: usize = self.full.iter().map(|full| full.rows.capacity()).sum();
        full + self.pending.rows.capacity() + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// On disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn n_rows(&self) -> u32 {
        self.n_rows
    }

    /// Gives the rows with these numbers, which ascend, one after the other to `each`. They are expected to be read once only.
    pub fn rows<E: From<SinkError>>(
        &self,
        numbers: &[u32],
        each: impl FnMut(SpooledRow) -> Result<(), E>,
    ) -> Result<(), E> {
        self.visit(numbers, Again::No, |mut row| row.row(), each)
    }

    /// The same of their scores and points alone.
    pub fn points<E: From<SinkError>>(&self, numbers: &[u32], mut each: impl FnMut(&Score, &[f32])) -> Result<(), E> {
        self.visit(
            numbers,
            Again::Yes,
            |mut row| row.numbers(),
            |row| {
                each(&row.score, &row.point);
                Ok(())
            },
        )
    }

    /// What `read` makes of each of these rows. Those of the next places are read while `each` is given those before.
    fn visit<T: Send, E: From<SinkError>>(
        &self,
        numbers: &[u32],
        again: Again,
        read: impl Fn(Encoded<'_>) -> io::Result<T> + Sync,
        mut each: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut wanted = self.wanted(numbers).peekable();
        let mut portions = std::iter::from_fn(|| {
            let mut places = vec![wanted.next()?];
            let mut bytes = places[0].0.bytes();
            while let Some(next) = wanted.next_if(|(place, _)| bytes + place.bytes() <= READ_BYTES) {
                bytes += next.0.bytes();
                places.push(next);
            }
            let portion = Portion { places, bytes };
            self.prepare(&portion);
            Some(portion)
        });
        let mut coming = VecDeque::with_capacity(PREPARED);
        let mut portions = std::iter::from_fn(|| {
            coming.extend(portions.by_ref().take(PREPARED - coming.len()));
            coming.pop_front()
        });
        let read = |portion: Portion<'_>| -> Vec<io::Result<Vec<T>>> {
            if again == Again::No {
                self.forget(&portion);
            }
            let of_place = |from: &mut Borrowed<'_, _>, (place, numbers): (Place<'_>, &[u32])| {
                self.rows_of(from.get_or_try(ChunkReader::new)?, place, numbers, &read)
            };
            portion.places.into_par_iter().map_init(|| self.of.readers.borrow(), of_place).collect()
        };
        let mut give = |rows: Vec<io::Result<Vec<T>>>| {
            rows.into_iter()
                .try_for_each(|rows| rows.map_err(|source| self.of.error(source))?.into_iter().try_for_each(&mut each))
        };
        let Some(first) = portions.next() else { return Ok(()) };
        let mut bytes = first.bytes;
        let mut rows = read(first);
        for next in portions {
            let is_large = bytes.max(next.bytes) > READ_BYTES;
            bytes = next.bytes;
            if is_large {
                give(rows)?;
                rows = read(next);
                continue;
            }
            let mut ahead = Vec::new();
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| ahead = read(next));
                give(rows)
            })?;
            rows = ahead;
        }
        give(rows)
    }

    /// Has the disk read what will be wanted of a large file.
    fn prepare(&self, portion: &Portion<'_>) {
        let Some(file) = self.large_file() else { return };
        let chunks = portion.places.iter().filter_map(|(place, _)| place.chunk());
        // Most follow each other.
        let mut range = 0..0;
        for chunk in chunks {
            if range.end != chunk.start {
                file.advise(range, Plan::Soon);
                range = chunk.start..chunk.start;
            }
            range.end += u64::from(chunk.compressed_bytes);
        }
        file.advise(range, Plan::Soon);
    }

    /// Lets the page cache forget what is not read again of a large file, rather than what is still to be read: of a window larger than
    /// memory it would hold nothing any more when it is wanted. But not the end, which may not have been written out: to be
    /// forgotten it would have to be.
    fn forget(&self, portion: &Portion<'_>) {
        let chunk = portion.places.first().and_then(|(place, _)| place.chunk());
        if let Some((file, chunk)) = self.large_file().zip(chunk) {
            let end = chunk.start.min(self.bytes - self.bytes / 4);
            file.advise(end.saturating_sub(FORGET_BYTES)..end, Plan::Never);
        }
    }

    fn large_file(&self) -> Option<&SpoolFile> {
        self.file.as_ref().filter(|_| self.bytes >= self.of.large_bytes)
    }

    /// The places of these rows, with those that are wanted of each.
    fn wanted<'a>(&'a self, numbers: &'a [u32]) -> impl Iterator<Item = (Place<'a>, &'a [u32])> {
        let in_memory = self.full.iter().chain([&self.pending]).map(Place::Memory);
        let mut places = self.chunks.iter().map(|chunk| Place::File(*chunk)).chain(in_memory).peekable();
        let mut left = numbers;
        std::iter::from_fn(move || {
            let place = places.next()?;
            // What is beyond the last row is looked for in the last place, where it is an error.
            let n = places.peek().map_or(left.len(), |next| left.partition_point(|number| *number < next.first()));
            let (here, after) = left.split_at(n);
            left = after;
            Some((place, here))
        })
        .filter(|(_, here)| !here.is_empty())
    }

    /// Those of one place.
    fn rows_of<T>(
        &self,
        from: &mut ChunkReader,
        place: Place<'_>,
        numbers: &[u32],
        read: &impl Fn(Encoded<'_>) -> io::Result<T>,
    ) -> io::Result<Vec<T>> {
        let bytes = match place {
            Place::File(chunk) => {
                let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
                from.read(file, &chunk)?
            }
            Place::Memory(pending) => &pending.rows,
        };
        let (mut encoded, mut next) = (Encoded(bytes), place.first());
        let row = |number: &u32| {
            let mut read_next = || {
                for _ in next..*number {
                    let length = encoded.number()?;
                    encoded.take(length)?;
                }
                let length = encoded.number()?;
                encoded.take(length).map(Encoded).and_then(read)
            };
            let row = read_next()
                .map_err(|e| io::Error::new(e.kind(), format!("row {number} of {} cannot be read: {e}", self.n_rows)));
            next = number + 1;
            row
        };
        numbers.iter().map(row).collect()
    }

    /// Writes what the full chunks were compressed to.
    fn append(&mut self, compressed: &[Vec<u8>]) -> io::Result<()> {
        for (Pending { first, rows }, compressed) in std::mem::take(&mut self.full).iter().zip(compressed) {
            let start = self.bytes;
            let file = match &mut self.file {
                Some(file) => file,
                none => {
                    let created = SpoolFile::create(&self.of.folder, &self.of.full_disk)?;
                    self.of.n_files.fetch_add(1, Ordering::Relaxed);
                    none.insert(created)
                }
            };
            file.write(compressed, start)?;
            let compressed_bytes = compressed.len() as u32;
            self.chunks.push(Chunk { first: *first, compressed_bytes, start, bytes: rows.len() });
            self.bytes += u64::from(compressed_bytes);
            self.of.used_bytes.fetch_add(compressed_bytes.into(), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Place<'_> {
    fn chunk(&self) -> Option<Chunk> {
        match self {
            Place::File(chunk) => Some(*chunk),
            Place::Memory(_) => None,
        }
    }

    /// Number of the first row.
    fn first(&self) -> u32 {
        match self {
            Place::File(chunk) => chunk.first,
            Place::Memory(pending) => pending.first,
        }
    }

    /// Of its rows, encoded.
    fn bytes(&self) -> usize {
        match self {
            Place::File(chunk) => chunk.bytes,
            Place::Memory(pending) => pending.rows.len(),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        let (of, bytes) = (self.of.clone(), self.bytes);
        of.deleting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let delete = move || {
            drop(file);
            of.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            of.n_files.fetch_sub(1, Ordering::Relaxed);
            // The last of them: who sees it sees the others.
            of.deleting_bytes.fetch_sub(bytes, Ordering::Release);
        };
        // To give back the blocks of very many takes seconds, in which others can be filled.
        if bytes >= self.of.large_bytes { rayon::spawn(delete) } else { delete() }
    }
}

#[cfg(test)]
mod tests;
