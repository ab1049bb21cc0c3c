//! Chunks of rows to what stands on disk, with a checksum, and back; what that takes is used again.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::SpoolFile;
use super::{CHUNK_BYTES, Chunk};

/// Twice as fast as level 1, and what it writes is two fifths larger: every document passes here, and most never come back
/// (benches/README.md, "Large windows").
pub(super) const ZSTD_LEVEL: i32 = -3;
/// The lowest there is looks for nothing: what comes out is what goes in, with a checksum, at the speed of a copy.
pub(super) const PLAIN_LEVEL: i32 = -(128 << 10);

/// What is used again by whoever needs it next, and by one at a time.
pub(super) struct Spare<T>(Mutex<Vec<T>>);

/// Goes back to the others.
pub(super) struct Borrowed<'a, T> {
    one: Option<T>,
    of: &'a Spare<T>,
}

/// Reads chunks one after the other into the same memory: there are very many of them.
pub(super) struct ChunkReader {
    decompressor: zstd::bulk::Decompressor<'static>,
    compressed: Vec<u8>,
    rows: Vec<u8>,
}

impl ChunkReader {
    pub fn new() -> io::Result<Self> {
        Ok(ChunkReader { decompressor: zstd::bulk::Decompressor::new()?, compressed: Vec::new(), rows: Vec::new() })
    }

    /// The rows of a chunk, one after the other.
    pub fn read(&mut self, file: &SpoolFile, chunk: &Chunk) -> io::Result<&[u8]> {
        // One that was large is no measure of the next ones.
        for buffer in [&mut self.compressed, &mut self.rows] {
            if buffer.capacity() > 4 * CHUNK_BYTES {
                *buffer = Vec::new();
            }
        }
        // What is there is overwritten: only what it grows by is made zeros.
        self.compressed.resize(chunk.compressed_bytes as usize, 0);
        file.read_exact_at(&mut self.compressed, chunk.start)?;
        self.rows.clear();
        self.rows.reserve(chunk.bytes);
        self.decompressor.decompress_to_buffer(&self.compressed[..], &mut self.rows)?;
        Ok(&self.rows)
    }
}

pub(super) fn compressor(level: i32) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    compressor.include_checksum(true)?;
    Ok(compressor)
}

impl<T> Spare<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn borrow(&self) -> Borrowed<'_, T> {
        Borrowed { one: self.lock().pop(), of: self }
    }
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Spare(Mutex::default())
    }
}

impl<T> Borrowed<'_, T> {
    /// The one that there is, or a new one.
    pub fn get_or_try<E>(&mut self, make: impl FnOnce() -> Result<T, E>) -> Result<&mut T, E> {
        Ok(match &mut self.one {
            Some(one) => one,
            none => none.insert(make()?),
        })
    }
}

impl<T> Drop for Borrowed<'_, T> {
    fn drop(&mut self) {
        self.of.lock().extend(self.one.take());
    }
}
