//! Cuts files into chunks: whole lines or records of about a mebibyte, or row groups. Where it cuts depends on the files alone.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::columns::{Rows, Wanted};
use super::csv::{CsvColumns, RecordEnds};
use super::inputs::{Compression, Format};
use super::{FileError, Input, ReadSettings};

/// Lines that are handed out together; a longer line makes a larger chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// What some programs begin text with, to say that it is Unicode.
const MARK: &[u8] = b"\xEF\xBB\xBF";
/// What stands for a line that was too long to be taken into memory: neither JSON nor CSV has such a byte.
const TOO_LONG: &[u8] = b"\xFF";

/// A stretch of one file.
pub struct Chunk {
    /// 0, 1, 2, … over all inputs.
    pub number: usize,
    pub input: usize,
    /// Number of its first line or row, from 1.
    pub first_line: u64,
    /// Bytes of the file that were read for it.
    pub file_bytes: u64,
    /// `None` where it cannot be found again without reading the file from its beginning.
    pub place: Option<ChunkPlace>,
    pub(super) content: Content,
}

/// Where a chunk of whole lines lies in a file that is not compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The chunk's number.
    pub number: usize,
    pub input: usize,
    pub first_line: u64,
    start: u64,
    len: usize,
}

impl ChunkPlace {
    /// Reads the chunk again, its lines into `buffer`.
    pub(super) fn read(&self, inputs: &[Input], buffer: &mut Vec<u8>) -> Result<Chunk, FileError> {
        let ChunkPlace { number, input, first_line, start, len } = *self;
        let path = &inputs[input].path;
        let read = match &inputs[input].object {
            Some(object) => object.bytes(start, len as u64).map_err(|e| e.to_string()).map(|bytes| {
                buffer.clear();
                buffer.extend_from_slice(&bytes);
            }),
            None => {
                buffer.resize(len, 0);
                inputs[input].open_file().and_then(|file| {
                    let read = file.read_exact_at(buffer, start).map_err(|e| e.to_string());
                    // Afterwards, too: it may have changed under the reading.
                    inputs[input].check_unchanged(&file).and(read)
                })
            }
        };
        match read {
            Ok(()) => {
                let (file_bytes, place) = (len as u64, Some(*self));
                Ok(Chunk { number, input, first_line, file_bytes, place, content: Content::Lines })
            }
            Err(problem) => Err(FileError { path: path.clone(), line: Some(first_line), problem }),
        }
    }
}

pub(super) enum Content {
    /// In the buffer that was given to [`Chunks::next`].
    Lines,
    Rows(Rows),
}

/// The chunks of all inputs, one after the other.
pub(super) struct Chunks<'a> {
    inputs: &'a [Input],
    settings: &'a ReadSettings,
    wanted: Wanted,
    n_chunks: usize,
    input: usize,
    open: Option<Open>,
    /// See [`Input::watch`].
    watched: Option<File>,
    failed: bool,
}

enum Open {
    Lines(Lines),
    /// `None` until the heading is read.
    Csv(Lines, Option<CsvColumns>),
    Parquet(super::columns::ParquetFile),
}

struct Lines {
    reader: Box<dyn Read + Send>,
    file_bytes: Arc<AtomicU64>,
    /// The beginning of a line that the last chunk did not hold to its end.
    rest: Vec<u8>,
    /// Of a line, or of a record of CSV.
    next_line: u64,
    /// Where the next chunk begins, after decompression.
    next_start: u64,
    is_plain: bool,
    is_csv: bool,
    max_line_bytes: usize,
    skips_bad: bool,
}

impl<'a> Chunks<'a> {
    pub fn new(inputs: &'a [Input], settings: &'a ReadSettings, wanted: Wanted) -> Self {
        Chunks { inputs, settings, wanted, n_chunks: 0, input: 0, open: None, watched: None, failed: false }
    }

    /// The next chunk, its lines in `buffer`; `None` at the end, or after an error.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Option<Result<Chunk, FileError>> {
        while !self.failed && self.input < self.inputs.len() {
            let next = self.next_of_file(buffer);
            // What is wrong with a file that changes is that it changes.
            match self.check_unchanged().and(next) {
                Ok(Some(chunk)) => return Some(Ok(chunk)),
                Ok(None) => {
                    (self.open, self.watched) = (None, None);
                    self.input += 1;
                }
                Err((line, problem)) => {
                    self.failed = true;
                    let path = self.inputs[self.input].path.clone();
                    return Some(Err(FileError { path, line, problem }));
                }
            }
        }
        None
    }

    fn check_unchanged(&self) -> Result<(), (Option<u64>, String)> {
        let Some(file) = &self.watched else { return Ok(()) };
        self.inputs[self.input].check_unchanged(file).map_err(|problem| (None, problem))
    }

    fn next_of_file(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Chunk>, (Option<u64>, String)> {
        if self.open.is_none() {
            let input = &self.inputs[self.input];
            self.watched = input.watch().map_err(|problem| (None, problem))?;
            let opened = Open::input(input, self.settings, self.wanted);
            self.open = Some(opened.map_err(|problem| (None, problem))?);
        }
        let Some(open) = &mut self.open else { return Ok(None) };
        let (number, input) = (self.n_chunks, self.input);
        let mut place = None;
        let (first_line, file_bytes, content) = match open {
            Open::Lines(lines) => match lines.next(buffer).map_err(|e| (Some(lines.next_line), e))? {
                Some((first_line, start)) => {
                    // Of a line that was too long that is its first byte, which is no document either.
                    place =
                        lines.is_plain.then_some(ChunkPlace { number, input, first_line, start, len: buffer.len() });
                    (first_line, lines.file_bytes.swap(0, Ordering::Relaxed), Content::Lines)
                }
                None => return Ok(None),
            },
            Open::Csv(lines, columns) => {
                let line = lines.next_line;
                let at = |problem: String| (Some(line), problem);
                let columns = match columns {
                    Some(columns) => columns,
                    none => match lines.heading().map_err(|problem| (None, problem))? {
                        Some(heading) => {
                            let columns = CsvColumns::of_heading(&heading, self.settings, self.wanted);
                            none.insert(columns.map_err(|problem| (None, problem))?)
                        }
                        None => return Ok(None),
                    },
                };
                match lines.next(buffer).map_err(at)? {
                    Some((first, _)) => {
                        let bytes = lines.file_bytes.swap(0, Ordering::Relaxed);
                        (first, bytes, Content::Rows(Rows::Csv(columns.clone())))
                    }
                    None => return Ok(None),
                }
            }
            Open::Parquet(file) => match file.next().map_err(|e| (None, e))? {
                Some((first_row, bytes, rows)) => (first_row + 1, bytes, Content::Rows(rows)),
                None => return Ok(None),
            },
        };
        let chunk = Chunk { number, input, first_line, file_bytes, place, content };
        self.n_chunks += 1;
        Ok(Some(chunk))
    }
}

impl Open {
    fn input(input: &Input, settings: &ReadSettings, wanted: Wanted) -> Result<Self, String> {
        if input.format == Format::Parquet {
            return super::columns::ParquetFile::open(input, settings, wanted).map(Open::Parquet);
        }
        let file_bytes = Arc::new(AtomicU64::new(0));
        let stored: Box<dyn Read + Send> = match &input.object {
            Some(object) => Box::new(object.reader()),
            None => Box::new(input.open_file()?),
        };
        let reader = input.compression.of(CountingReader { stored, bytes: file_bytes.clone() });
        let is_csv = input.format == Format::Csv;
        let is_plain = !is_csv && input.compression == Compression::None && input.is_regular;
        let reader = reader.map_err(|e| e.to_string())?;
        let ReadSettings { max_line_bytes, skip_bad_lines: skips_bad, .. } = *settings;
        let mut lines = Lines {
            reader,
            file_bytes,
            rest: Vec::new(),
            next_line: 1,
            next_start: 0,
            is_plain,
            is_csv,
            max_line_bytes,
            skips_bad,
        };
        lines.pass_over_mark().map_err(|e| e.to_string())?;
        Ok(if is_csv { Open::Csv(lines, None) } else { Open::Lines(lines) })
    }
}

impl Lines {
    /// Fills the buffer with whole lines and gives the number of the first and where it begins; `None` at the end of the
    /// file.
    fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<(u64, u64)>, String> {
        let first = (self.next_line, self.next_start);
        match self.fill(buffer)? {
            Filled::Lines(n) => {
                self.next_line += n;
                self.next_start += buffer.len() as u64;
            }
            Filled::TooLong => {
                if !self.skips_bad {
                    return Err(format!("{} (--skip-bad-lines passes over such lines)", self.too_long()));
                }
                self.next_line += 1;
                self.next_start += self.drop_line(buffer)?;
            }
        }
        Ok((!buffer.is_empty()).then_some(first))
    }

    /// What marks a file as Unicode is no part of its first line.
    fn pass_over_mark(&mut self) -> std::io::Result<()> {
        self.reader.by_ref().take(MARK.len() as u64).read_to_end(&mut self.rest)?;
        if self.rest == MARK {
            self.rest.clear();
            self.next_start = MARK.len() as u64;
        }
        Ok(())
    }

    fn too_long(&self) -> String {
        match self.max_line_bytes >> 20 {
            0 => format!("too_large: longer than {} bytes", self.max_line_bytes),
            mebibytes => format!("too_large: longer than {mebibytes} MiB"),
        }
    }

    /// The first record of CSV.
    fn heading(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut buffer = Vec::new();
        match self.fill(&mut buffer)? {
            Filled::Lines(0) => return Ok(None),
            Filled::Lines(_) => {}
            // Without it no record can be read.
            Filled::TooLong => return Err(format!("heading: {}", self.too_long())),
        }
        let mut first_end = None;
        RecordEnds::default().follow(&buffer, |end| first_end = first_end.or(Some(end)));
        let end = first_end.unwrap_or(buffer.len());
        let mut rest = buffer.split_off(end);
        rest.append(&mut self.rest);
        self.rest = rest;
        Ok(Some(buffer))
    }

    /// Fills the buffer with whole lines, or records of CSV; or with the beginning of one that is too long, and no other.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<Filled, String> {
        buffer.clear();
        buffer.append(&mut self.rest);
        let mut ends = Ends { is_csv: self.is_csv, records: RecordEnds::default(), searched: 0, n: 0, last: 0 };
        // The longest line and its end. More is never held.
        let most = self.max_line_bytes.saturating_add(1);
        let mut limit = CHUNK_BYTES.min(most);
        loop {
            let missing = limit.saturating_sub(buffer.len());
            buffer.reserve_exact(missing);
            let read = self.reader.by_ref().take(missing as u64).read_to_end(buffer).map_err(|e| e.to_string())?;
            ends.search(buffer);
            if read < missing {
                return Ok(Filled::Lines(ends.all()));
            }
            if ends.last > 0 {
                self.rest.extend_from_slice(&buffer[ends.last..]);
                buffer.truncate(ends.last);
                return Ok(Filled::Lines(ends.n));
            }
            if buffer.len() >= most {
                return Ok(Filled::TooLong);
            }
            limit = limit.max(2 * buffer.len()).min(most);
        }
    }

    /// Passes over a line, or a record of CSV, whose beginning is in the buffer, in which something stays that is no document. Gives
    /// the bytes of the line.
    fn drop_line(&mut self, buffer: &mut Vec<u8>) -> Result<u64, String> {
        let mut records = RecordEnds::default();
        records.follow(buffer, |_| {});
        let mut dropped = buffer.len() as u64;
        // What a long line has taken is given back.
        *buffer = Vec::new();
        let at_once = CHUNK_BYTES.min(self.max_line_bytes) as u64;
        loop {
            buffer.clear();
            let read = self.reader.by_ref().take(at_once).read_to_end(buffer).map_err(|e| e.to_string())?;
            let mut end = None;
            if self.is_csv {
                records.follow(buffer, |found| end = end.or(Some(found)));
            } else {
                end = memchr::memchr(b'\n', buffer).map(|found| found + 1);
            }
            dropped += end.unwrap_or(read) as u64;
            if end.is_some() || read == 0 {
                self.rest.extend_from_slice(&buffer[end.unwrap_or(0)..]);
                *buffer = TOO_LONG.to_vec();
                return Ok(dropped);
            }
        }
    }
}

/// What is in a buffer.
enum Filled {
    /// So many.
    Lines(u64),
    TooLong,
}

/// Where lines or records end in a buffer that grows.
struct Ends {
    is_csv: bool,
    records: RecordEnds,
    searched: usize,
    n: u64,
    last: usize,
}

impl Ends {
    fn search(&mut self, buffer: &[u8]) {
        let (new, from) = (&buffer[self.searched..], self.searched);
        self.searched = buffer.len();
        if self.is_csv {
            let Ends { records, n, last, .. } = self;
            records.follow(new, |end| (*n, *last) = (*n + 1, from + end));
        } else if let Some(last) = memchr::memrchr(b'\n', new) {
            self.n += memchr::memchr_iter(b'\n', new).count() as u64;
            self.last = from + last + 1;
        }
    }

    /// At the end of a file.
    fn all(&self) -> u64 {
        self.n + u64::from(self.is_csv && self.records.is_within())
    }
}

/// Counts what is read of a file, for the progress bar.
struct CountingReader {
    stored: Box<dyn Read + Send>,
    bytes: Arc<AtomicU64>,
}

impl Read for CountingReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stored.read(into)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
