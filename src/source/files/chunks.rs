//! Cuts files into chunks: whole lines of about a mebibyte, or row groups. Where it cuts depends on the files alone.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;

use super::columns::{Rows, Wanted};
use super::inputs::Format;
use super::{FileError, Input, ReadSettings};

/// Lines that are handed out together; a longer line makes a larger chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// Longest line that is taken into memory.
const MAX_LINE_BYTES: usize = 256 << 20;

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
        buffer.resize(len, 0);
        let read = File::open(path).and_then(|file| file.read_exact_at(buffer, start));
        match read {
            Ok(()) => {
                let (file_bytes, place) = (len as u64, Some(*self));
                Ok(Chunk { number, input, first_line, file_bytes, place, content: Content::Lines })
            }
            Err(e) => Err(FileError { path: path.clone(), line: Some(first_line), problem: e.to_string() }),
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
    failed: bool,
}

enum Open {
    Lines(Lines),
    Parquet(super::columns::ParquetFile),
}

struct Lines {
    reader: Box<dyn Read + Send>,
    file_bytes: Arc<AtomicU64>,
    /// The beginning of a line that the last chunk did not hold to its end.
    rest: Vec<u8>,
    next_line: u64,
    /// Where the next chunk begins, after decompression.
    next_start: u64,
    is_plain: bool,
}

impl<'a> Chunks<'a> {
    pub fn new(inputs: &'a [Input], settings: &'a ReadSettings, wanted: Wanted) -> Self {
        Chunks { inputs, settings, wanted, n_chunks: 0, input: 0, open: None, failed: false }
    }

    /// The next chunk, its lines in `buffer`; `None` at the end, or after an error.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Option<Result<Chunk, FileError>> {
        while !self.failed && self.input < self.inputs.len() {
            match self.next_of_file(buffer) {
                Ok(Some(chunk)) => return Some(Ok(chunk)),
                Ok(None) => {
                    self.open = None;
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

    fn next_of_file(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Chunk>, (Option<u64>, String)> {
        if self.open.is_none() {
            let opened = Open::input(&self.inputs[self.input], self.settings, self.wanted);
            self.open = Some(opened.map_err(|problem| (None, problem))?);
        }
        let Some(open) = &mut self.open else { return Ok(None) };
        let (number, input) = (self.n_chunks, self.input);
        let mut place = None;
        let (first_line, file_bytes, content) = match open {
            Open::Lines(lines) => match lines.next(buffer).map_err(|e| (Some(lines.next_line), e))? {
                Some((first_line, start)) => {
                    place =
                        lines.is_plain.then_some(ChunkPlace { number, input, first_line, start, len: buffer.len() });
                    (first_line, lines.file_bytes.swap(0, Ordering::Relaxed), Content::Lines)
                }
                None => return Ok(None),
            },
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
        let file = File::open(&input.path).map_err(|e| e.to_string())?;
        if input.format == Format::Parquet {
            let file = super::columns::ParquetFile::open(input.path.clone(), &file, settings, wanted)?;
            return Ok(Open::Parquet(file));
        }
        let file_bytes = Arc::new(AtomicU64::new(0));
        let file = CountingFile { file, bytes: file_bytes.clone() };
        let reader: Box<dyn Read + Send> = match input.format {
            Format::JsonlGzip => Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(128 << 10, file))),
            Format::JsonlZstd => Box::new(zstd::Decoder::new(file).map_err(|e| e.to_string())?),
            Format::Jsonl | Format::Parquet => Box::new(file),
        };
        let is_plain = input.format == Format::Jsonl && input.is_regular;
        Ok(Open::Lines(Lines { reader, file_bytes, rest: Vec::new(), next_line: 1, next_start: 0, is_plain }))
    }
}

impl Lines {
    /// Fills the buffer with whole lines and gives the number of the first and where it begins; `None` at the end of the
    /// file.
    fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<(u64, u64)>, String> {
        buffer.clear();
        buffer.append(&mut self.rest);
        let mut searched = 0;
        let mut limit = CHUNK_BYTES;
        loop {
            let missing = limit.saturating_sub(buffer.len());
            buffer.reserve(missing);
            let read = self.reader.by_ref().take(missing as u64).read_to_end(buffer).map_err(|e| e.to_string())?;
            let is_end = read < missing;
            match memchr::memrchr(b'\n', &buffer[searched..]) {
                _ if is_end => break,
                Some(last) => {
                    self.rest.extend_from_slice(&buffer[searched + last + 1..]);
                    buffer.truncate(searched + last + 1);
                    break;
                }
                None if buffer.len() > MAX_LINE_BYTES => {
                    return Err(format!("too_large: longer than {} MiB", MAX_LINE_BYTES >> 20));
                }
                None => {
                    searched = buffer.len();
                    limit = 2 * buffer.len();
                }
            }
        }
        if buffer.is_empty() {
            return Ok(None);
        }
        let first = (self.next_line, self.next_start);
        self.next_line += memchr::memchr_iter(b'\n', buffer).count() as u64;
        self.next_start += buffer.len() as u64;
        Ok(Some(first))
    }
}

/// Counts what is read of a file, for the progress bar.
struct CountingFile {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for CountingFile {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(into)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
