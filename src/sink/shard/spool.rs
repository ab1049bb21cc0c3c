//! Rows that wait in a scratch file until all are there, to be taken in another order than they came in.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::row::Row;
use crate::sink::patience::{Abandon, Patience};
use crate::sink::{FullDisk, SinkError};

/// Of one in so many blocks it is measured how far they compress.
const MEASURED_BLOCKS: usize = 8;
const BLOCK_BYTES: usize = 256 << 10;
/// What is read back at a time, at most, but for a row that is larger.
const READ_ROWS: usize = 1024;
const READ_BYTES: usize = 8 << 20;

pub(super) struct Spool {
    /// Dropped before the file.
    _abandon: Abandon,
    to: PatientFile,
    from: File,
    folder: PathBuf,
    places: Vec<Place>,
    next: u64,
    zstd_level: i32,
    block: Vec<u8>,
    n_blocks: usize,
    /// Bytes of measured blocks, and what they compress to.
    measured: (usize, usize),
}

struct Place {
    key: u128,
    start: u64,
    len: u32,
}

/// Waits for room where the disk is full.
struct PatientFile {
    file: BufWriter<File>,
    patience: Patience,
}

impl Write for PatientFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.patience.with(|| self.file.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.patience.with(|| self.file.flush())
    }
}

impl Spool {
    pub fn create(
        scratch_dir: Option<&Path>,
        zstd_level: i32,
        full_disk: Arc<dyn FullDisk>,
    ) -> Result<Self, SinkError> {
        let folder = scratch_dir.map_or_else(std::env::temp_dir, PathBuf::from);
        let (patience, _abandon) = Patience::new(folder.clone(), full_disk);
        let files = || -> std::io::Result<(File, File)> {
            let from = patience.with(|| tempfile::tempfile_in(&folder))?;
            Ok((from.try_clone()?, from))
        };
        let (to, from) = files().map_err(|source| SinkError::Scratch { folder: folder.clone(), source })?;
        Ok(Spool {
            _abandon,
            to: PatientFile { file: BufWriter::with_capacity(BLOCK_BYTES, to), patience },
            from,
            folder,
            places: Vec::new(),
            next: 0,
            zstd_level,
            block: Vec::new(),
            n_blocks: 0,
            measured: (0, 0),
        })
    }

    /// Takes a row, which will come back in the order of the keys.
    pub fn push(&mut self, key: u128, row: &Row<'_>) -> Result<(), SinkError> {
        let before = self.block.len();
        row.encode(&mut self.block);
        let len = self.block.len() - before;
        self.places.push(Place { key, start: self.next, len: len as u32 });
        self.next += len as u64;
        if self.block.len() >= BLOCK_BYTES { self.write_block() } else { Ok(()) }
    }

    fn write_block(&mut self) -> Result<(), SinkError> {
        let wrote = self.to.write_all(&self.block);
        wrote.map_err(|source| self.error(source))?;
        if self.n_blocks.is_multiple_of(MEASURED_BLOCKS) {
            let compressed = zstd::bulk::compress(&self.block, self.zstd_level).map_err(|source| self.error(source))?;
            self.measured.0 += self.block.len();
            self.measured.1 += compressed.len();
        }
        self.n_blocks += 1;
        self.block.clear();
        Ok(())
    }

    /// Estimate of what the rows take when they are compressed, by the blocks that were measured.
    pub fn compressed_bytes(&self) -> usize {
        match self.measured {
            (0, _) => self.next as usize,
            (bytes, compressed) => (self.next as f64 * compressed as f64 / bytes as f64) as usize,
        }
    }

    /// Bytes of what is known of the rows.
    pub fn places_bytes(&self) -> usize {
        self.places.len() * size_of::<Place>()
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.places_bytes() + self.block.len() + BLOCK_BYTES
    }

    /// Gives every row to `take`, by ascending key.
    pub fn drain(mut self, mut take: impl FnMut(&Row<'_>) -> Result<(), SinkError>) -> Result<(), SinkError> {
        self.write_block()?;
        let flushed = self.to.flush();
        flushed.map_err(|source| self.error(source))?;
        self.places.sort_unstable_by_key(|place| place.key);
        let mut places = &self.places[..];
        let mut bytes = Vec::new();
        while !places.is_empty() {
            let (now, later) = places.split_at(at_a_time(places));
            let starts = self.read(now, &mut bytes).map_err(|source| self.error(source))?;
            for (place, start) in now.iter().zip(starts) {
                let row = Row::decode(&bytes[start..start + place.len as usize]);
                let damaged = || std::io::Error::other("a row that waited there is damaged");
                take(&row.ok_or_else(|| self.error(damaged()))?)?;
            }
            places = later;
        }
        Ok(())
    }

    /// Reads rows in the order of the file; gives where in `bytes` each stands, in their own order.
    fn read(&self, places: &[Place], bytes: &mut Vec<u8>) -> std::io::Result<Vec<usize>> {
        let mut by_start: Vec<usize> = (0..places.len()).collect();
        by_start.sort_unstable_by_key(|i| places[*i].start);
        let mut starts = vec![0; places.len()];
        bytes.clear();
        for i in by_start {
            let Place { start, len, .. } = places[i];
            starts[i] = bytes.len();
            bytes.resize(starts[i] + len as usize, 0);
            self.from.read_exact_at(&mut bytes[starts[i]..], start)?;
        }
        Ok(starts)
    }

    fn error(&self, source: std::io::Error) -> SinkError {
        SinkError::Scratch { folder: self.folder.clone(), source }
    }
}

fn at_a_time(places: &[Place]) -> usize {
    let mut bytes = 0;
    let fits = places.iter().take(READ_ROWS).take_while(|place| {
        bytes += place.len as usize;
        bytes <= READ_BYTES
    });
    fits.count().max(1)
}
