//! Rows on local disk between their arrival and the decision of their window.
//!
//! In: rows, one after the other. Out: some of them, by their numbers in order. Rows stand in compressed chunks with a
//! checksum; a chunk is read once for all rows that are wanted of it. The file loses its name when it is made, so that it
//! goes with the process however that ends; what a crash in between may leave behind is removed at the next start.
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

/// Names of files begin so as long as they have one.
const PREFIX: &str = "winnowd-spool-";
/// Rows that are compressed together, at least, unless they are the last.
const CHUNK_BYTES: usize = 256 << 10;
const ZSTD_LEVEL: i32 = 1;
/// The length of what is not there.
const ABSENT: u64 = u64::MAX;

/// Where rows wait, and how much of them.
pub struct SpoolFolder {
    folder: PathBuf,
    max_bytes: u64,
    used_bytes: AtomicU64,
    full_disk: Arc<dyn FullDisk>,
}

/// The rows of one window.
pub struct Spool {
    of: Arc<SpoolFolder>,
    file: File,
    patience: Patience,
    _abandon: Abandon,
    chunks: Vec<Chunk>,
    /// In the file.
    bytes: u64,
    n_rows: u32,
    /// Rows that are not in the file yet, and the number of the first one.
    pending: Vec<u8>,
    first_pending: u32,
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
    pub fn new(folder: Option<PathBuf>, max_bytes: u64, full_disk: Arc<dyn FullDisk>) -> Self {
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        SpoolFolder { folder, max_bytes, used_bytes: AtomicU64::new(0), full_disk }
    }

    /// Removes files that a crash has left between their making and the loss of their name; gives how many.
    pub fn remove_leftovers(&self) -> Result<u64, SinkError> {
        let remove = || {
            let mut removed = 0;
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    continue;
                }
                match std::fs::remove_file(entry.path()) {
                    Ok(()) => removed += 1,
                    // Its maker was quicker.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(removed)
        };
        remove().map_err(|source| self.error(source))
    }

    /// On disk, of all windows.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub fn is_full(&self) -> bool {
        self.used_bytes() > self.max_bytes
    }

    /// An empty spool.
    pub fn open(self: &Arc<Self>) -> Result<Spool, SinkError> {
        let (patience, abandon) = Patience::new(self.folder.clone(), self.full_disk.clone());
        let make = || tempfile::Builder::new().prefix(PREFIX).tempfile_in(&self.folder);
        let file = patience.with(make).map_err(|source| self.error(source))?.into_file();
        Ok(Spool {
            of: self.clone(),
            file,
            patience,
            _abandon: abandon,
            chunks: Vec::new(),
            bytes: 0,
            n_rows: 0,
            pending: Vec::new(),
            first_pending: 0,
        })
    }

    fn error(&self, source: io::Error) -> SinkError {
        SinkError::Scratch { folder: self.folder.clone(), source }
    }
}

impl Spool {
    /// Takes the next row.
    pub fn push(&mut self, row: &SpooledRow) -> Result<(), SinkError> {
        encode(row, &mut self.pending);
        self.n_rows += 1;
        if self.pending.len() >= CHUNK_BYTES { self.write() } else { Ok(()) }
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.pending.capacity() + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// On disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The rows with these numbers, which ascend.
    pub fn rows(&mut self, numbers: &[u32]) -> Result<Vec<SpooledRow>, SinkError> {
        self.write()?;
        let mut rows = Vec::with_capacity(numbers.len());
        let mut left = numbers;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let end = self.chunks.get(i + 1).map_or(self.n_rows, |next| next.first);
            let (here, after) = left.split_at(left.partition_point(|number| *number < end));
            left = after;
            if !here.is_empty() {
                self.read(*chunk, here, &mut rows).map_err(|source| self.of.error(source))?;
            }
        }
        match left.first() {
            None => Ok(rows),
            Some(number) => {
                let problem = format!("row {number} is wanted of {}", self.n_rows);
                Err(self.of.error(io::Error::new(io::ErrorKind::InvalidInput, problem)))
            }
        }
    }

    fn read(&self, chunk: Chunk, numbers: &[u32], rows: &mut Vec<SpooledRow>) -> io::Result<()> {
        let mut compressed = vec![0; chunk.compressed_bytes];
        self.file.read_exact_at(&mut compressed, chunk.start)?;
        let bytes = zstd::bulk::decompress(&compressed, chunk.bytes)?;
        let mut encoded = Encoded(&bytes);
        let mut next = chunk.first;
        for &number in numbers {
            for _ in next..number {
                let length = encoded.number()?;
                encoded.take(length)?;
            }
            rows.push(encoded.row()?);
            next = number + 1;
        }
        Ok(())
    }

    /// Moves what is pending to the file.
    fn write(&mut self) -> Result<(), SinkError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let compress = || {
            let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
            compressor.include_checksum(true)?;
            compressor.compress(&self.pending)
        };
        let compressed = compress().map_err(|source| self.of.error(source))?;
        let mut written = 0;
        while written < compressed.len() {
            let write = || self.file.write_at(&compressed[written..], self.bytes + written as u64);
            match self.patience.with(write).map_err(|source| self.of.error(source))? {
                0 => return Err(self.of.error(io::ErrorKind::WriteZero.into())),
                n => written += n,
            }
        }
        self.chunks.push(Chunk {
            first: self.first_pending,
            start: self.bytes,
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

impl Drop for Spool {
    fn drop(&mut self) {
        self.of.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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
        score.log_importance_weight.to_bits(),
        u64::from(score.loss.is_some()),
        score.loss.unwrap_or_default().to_bits(),
        score.expected_loss_weight.to_bits(),
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
        let log_importance_weight = row.real()?;
        let (has_loss, loss) = (row.number()? == 1, row.real()?);
        let expected_loss_weight = row.real()?;
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
        let score = Score { n_tokens, log_importance_weight, loss, expected_loss_weight };
        Ok(SpooledRow { document, score, other_weights })
    }
}

#[cfg(test)]
mod tests;
