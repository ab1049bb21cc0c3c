//! Rows on local disk between their arrival and the decision of their window.
//!
//! In: rows, one after the other. Out: some of them, by their numbers in order, one after the other. Rows stand in compressed
//! chunks with a checksum; a chunk is read once for all rows that are wanted of it, and no two are held at a time. The file has
//! no name, so that it goes with the process however that ends. There is none until a chunk is full.
//!
//! No Arrow IPC: rows come and go one by one and whole, columns would only be taken apart again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::patience::{Abandon, Patience};
use super::{FullDisk, SinkError};
use crate::record::Document;
use crate::score::Score;
use crate::window::SpooledRow;

/// Rows that are compressed together, at least, unless they are the last.
const CHUNK_BYTES: usize = 128 << 10;
const ZSTD_LEVEL: i32 = 1;
/// The length of what is not there.
const ABSENT: u64 = u64::MAX;

/// Where rows wait, and how much of them.
pub struct SpoolFolder {
    folder: PathBuf,
    used_bytes: AtomicU64,
    n_files: AtomicU64,
    n_errors: AtomicU64,
    full_disk: Arc<dyn FullDisk>,
}

/// The rows of one window.
pub struct Spool {
    of: Arc<SpoolFolder>,
    file: Option<SpoolFile>,
    chunks: Vec<Chunk>,
    /// In the file.
    bytes: u64,
    n_rows: u32,
    /// Rows that are not in the file yet, and the number of the first one.
    pending: Vec<u8>,
    first_pending: u32,
}

struct SpoolFile {
    /// Dropped before the file.
    _abandon: Abandon,
    patience: Patience,
    file: File,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    /// Number of its first row.
    first: u32,
    start: u64,
    compressed_bytes: usize,
    bytes: usize,
}

impl SpoolFolder {
    /// `folder`: by default the system's folder for temporary files. Where the disk is full, writers wait for room as long as
    /// `full_disk` does.
    pub fn new(folder: Option<PathBuf>, full_disk: Arc<dyn FullDisk>) -> Arc<Self> {
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        let (used_bytes, n_files, n_errors) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(SpoolFolder { folder, used_bytes, n_files, n_errors, full_disk })
    }

    /// On disk, of all windows.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
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
            pending: Vec::new(),
            first_pending: 0,
        }
    }

    fn error(&self, source: io::Error) -> SinkError {
        self.n_errors.fetch_add(1, Ordering::Relaxed);
        SinkError::Scratch { folder: self.folder.clone(), source }
    }
}

impl Spool {
    /// Takes the next row.
    pub fn push(&mut self, row: &SpooledRow) -> Result<(), SinkError> {
        encode(row, &mut self.pending);
        self.n_rows += 1;
        if self.pending.len() < CHUNK_BYTES {
            return Ok(());
        }
        self.write().map_err(|source| self.of.error(source))
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.pending.capacity() + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// On disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn n_rows(&self) -> u32 {
        self.n_rows
    }

    /// Gives the rows with these numbers, which ascend, one after the other to `each`.
    pub fn rows<E: From<SinkError>>(
        &self,
        numbers: &[u32],
        mut each: impl FnMut(SpooledRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = numbers;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let end = self.chunks.get(i + 1).map_or(self.first_pending, |next| next.first);
            let (here, after) = left.split_at(left.partition_point(|number| *number < end));
            left = after;
            if !here.is_empty() {
                let bytes = self.read(*chunk).map_err(|source| self.of.error(source))?;
                self.rows_of(&bytes, chunk.first, here, &mut each)?;
            }
        }
        self.rows_of(&self.pending, self.first_pending, left, &mut each)
    }

    /// Those of a chunk.
    fn rows_of<E: From<SinkError>>(
        &self,
        bytes: &[u8],
        first: u32,
        numbers: &[u32],
        each: &mut impl FnMut(SpooledRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut encoded, mut next) = (Encoded(bytes), first);
        for &number in numbers {
            let mut read = || {
                for _ in next..number {
                    let length = encoded.number()?;
                    encoded.take(length)?;
                }
                encoded.row()
            };
            let row = read().map_err(|e| {
                let problem = format!("row {number} of {} cannot be read: {e}", self.n_rows);
                self.of.error(io::Error::new(e.kind(), problem))
            })?;
            next = number + 1;
            each(row)?;
        }
        Ok(())
    }

    fn read(&self, chunk: Chunk) -> io::Result<Vec<u8>> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut compressed = vec![0; chunk.compressed_bytes];
        file.file.read_exact_at(&mut compressed, chunk.start)?;
        zstd::bulk::decompress(&compressed, chunk.bytes)
    }

    /// Moves what is pending to the file.
    fn write(&mut self) -> io::Result<()> {
        let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        compressor.include_checksum(true)?;
        let compressed = compressor.compress(&self.pending)?;
        let start = self.bytes;
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(SpoolFile::create(&self.of)?),
        };
        file.write(&compressed, start)?;
        self.chunks.push(Chunk {
            first: self.first_pending,
            start,
            compressed_bytes: compressed.len(),
            bytes: self.pending.len(),
        });
        self.bytes += compressed.len() as u64;
        self.of.used_bytes.fetch_add(compressed.len() as u64, Ordering::Relaxed);
        self.first_pending = self.n_rows;
        self.pending.clear();
        // One large document must not hold its room for ever.
        self.pending.shrink_to(2 * CHUNK_BYTES);
        Ok(())
    }
}

impl SpoolFile {
    fn create(of: &SpoolFolder) -> io::Result<Self> {
        let (patience, _abandon) = Patience::new(of.folder.clone(), of.full_disk.clone());
        let file = patience.with(|| tempfile::tempfile_in(&of.folder))?;
        of.n_files.fetch_add(1, Ordering::Relaxed);
        Ok(SpoolFile { _abandon, patience, file })
    }

    fn write(&self, bytes: &[u8], start: u64) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            let write = || self.file.write_at(&bytes[written..], start + written as u64);
            match self.patience.with(write) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.of.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.of.n_files.fetch_sub(u64::from(self.file.is_some()), Ordering::Relaxed);
    }
}

/// The length of the row, then its parts.
fn encode(row: &SpooledRow, out: &mut Vec<u8>) {
    let SpooledRow { document, score, other_weights } = row;
    let Document { id, text, source, timestamp_ms, metadata } = document;
    let begin = out.len();
    out.extend_from_slice(&[0; 8]);
    let numbers = [
        u64::from(score.n_tokens),
        score.counted_tokens.map_or(ABSENT, u64::from),
        score.log_importance_weight.to_bits(),
        u64::from(score.loss.is_some()),
        score.loss.unwrap_or_default().to_bits(),
        score.expected_loss_weight.to_bits(),
        u64::from(score.expected_loss.is_some()),
        score.expected_loss.unwrap_or_default().to_bits(),
        u64::from(timestamp_ms.is_some()),
        timestamp_ms.unwrap_or_default().cast_unsigned(),
        other_weights.len() as u64,
    ];
    let weights = other_weights.iter().map(|weight| weight.to_bits());
    numbers.into_iter().chain(weights).for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    for part in [Some(id), Some(text), source.as_ref(), metadata.as_ref()] {
        out.extend_from_slice(&part.map_or(ABSENT, |part| part.len() as u64).to_le_bytes());
        out.extend_from_slice(part.map_or(&[], |part| part.as_bytes()));
    }
    let length = (out.len() - begin - 8) as u64;
    out[begin..begin + 8].copy_from_slice(&length.to_le_bytes());
}

/// What is left to be read.
struct Encoded<'a>(&'a [u8]);

impl<'a> Encoded<'a> {
    fn take(&mut self, length: u64) -> io::Result<&'a [u8]> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
        let Some(length) = length else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let (taken, left) = self.0.split_at(length);
        self.0 = left;
        Ok(taken)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn real(&mut self) -> io::Result<f64> {
        self.number().map(f64::from_bits)
    }

    fn text(&mut self) -> io::Result<Option<String>> {
        let length = self.number()?;
        if length == ABSENT {
            return Ok(None);
        }
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    fn row(&mut self) -> io::Result<SpooledRow> {
        let length = self.number()?;
        let mut row = Encoded(self.take(length)?);
        let n_tokens = row.number()? as u32;
        let counted_tokens = Some(row.number()?).filter(|n| *n != ABSENT).map(|n| n as u32);
        let log_importance_weight = row.real()?;
        let (has_loss, loss) = (row.number()? == 1, row.real()?);
        let expected_loss_weight = row.real()?;
        let (has_expected_loss, expected_loss) = (row.number()? == 1, row.real()?);
        let (has_timestamp, timestamp_ms) = (row.number()? == 1, row.number()?.cast_signed());
        let n_others = row.number()?;
        let other_weights = (0..n_others).map(|_| row.real()).collect::<io::Result<_>>()?;
        let missing = || io::Error::from(io::ErrorKind::InvalidData);
        let document = Document {
            id: row.text()?.ok_or_else(missing)?,
            text: row.text()?.ok_or_else(missing)?,
            source: row.text()?,
            timestamp_ms: has_timestamp.then_some(timestamp_ms),
            metadata: row.text()?,
        };
        let loss = has_loss.then_some(loss);
        let expected_loss = has_expected_loss.then_some(expected_loss);
        let score =
            Score { n_tokens, counted_tokens, log_importance_weight, loss, expected_loss_weight, expected_loss };
        Ok(SpooledRow { document, score, other_weights })
    }
}

#[cfg(test)]
mod tests;
