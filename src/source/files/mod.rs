//! Documents from files: JSONL and CSV (plain, `.gz`, `.zst`) and Parquet, here or in an object store, in the order of the input, on
//! any number of threads.
//!
//! Files are cut into [`Chunk`]s at places that depend on the files alone. Threads take chunks one after the other, work
//! on them side by side, and their results are delivered in order ([`Reader::scan`]): what comes out never depends on the
//! number of threads, and memory is bounded by it, not by the files.

mod chunks;
mod columns;
mod csv;
mod fields;
mod in_order;
mod inputs;
mod objects;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::record::{Decoder, DocumentRef, Reject, RejectReason, TextScratch, TopicPartition};
use crate::select::FieldType;
use crate::store::StoreOptions;

pub use chunks::{Chunk, ChunkPlace};
pub use columns::Wanted;
pub use fields::ExtraFields;
pub use in_order::in_order;
pub use inputs::{CHANGED, Compression, Format, Input, expand, is_url};
pub use objects::{Bucket, Object};

use chunks::{Chunks, Content};

#[derive(Debug, thiserror::Error)]
#[error("`{}`{}: {problem}", path.display(), line.map(|n| format!(", line {n}")).unwrap_or_default())]
pub struct FileError {
    pub path: PathBuf,
    pub line: Option<u64>,
    pub problem: String,
}

impl FileError {
    /// Whether an outside system is to blame, and not what the user named.
    pub fn is_of_store(&self) -> bool {
        self.problem.contains(objects::STORE_FAILED)
    }
}

/// How files are read.
#[derive(Debug, Clone)]
pub struct ReadSettings {
    pub decoder: Decoder,
    /// What is handed out beside text, id, source and loss.
    pub extra: ExtraFields,
    /// What fields of CSV hold, which are strings otherwise.
    pub types: BTreeMap<String, FieldType>,
    pub threads: usize,
    /// Lines that are no documents are counted and passed over; otherwise the first one is an error.
    pub skip_bad_lines: bool,
    /// Longest line that is taken into memory, without its end. A longer one is no document.
    pub max_line_bytes: usize,
}

const MAX_LINE_BYTES: usize = 256 << 20;

impl ReadSettings {
    pub fn new(decoder: Decoder) -> Self {
        let (extra, types) = (ExtraFields::default(), BTreeMap::new());
        ReadSettings { decoder, extra, types, threads: 1, skip_bad_lines: false, max_line_bytes: MAX_LINE_BYTES }
    }

    /// Whether a column has a use of its own.
    fn names_column(&self, name: &str) -> bool {
        let fields = &self.decoder.fields;
        let optional = [&fields.id, &fields.source, &fields.loss, &fields.reference_loss];
        fields.text == name || optional.into_iter().flatten().any(|field| field == name) || self.extra.has(name)
    }
}

/// Files to be read as often as one likes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    pub inputs: &'a [Input],
    pub settings: &'a ReadSettings,
    /// Once true, scans end early and without an error.
    pub stop: &'a AtomicBool,
}

/// What a thread keeps from chunk to chunk: its own state and its buffer.
struct Worker<S> {
    state: S,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Calls `work` with every chunk, on as many threads as there are `states`, and `deliver` with its results in the
    /// order of the input. Gives the states back.
    pub fn scan<S: Send, T: Send, E: From<FileError> + Send>(
        &self,
        wanted: Wanted,
        states: Vec<S>,
        work: impl Fn(&mut S, &ChunkReader<'_>) -> Result<T, FileError> + Sync,
        deliver: impl FnMut(T) -> Result<(), E> + Send,
    ) -> Result<Vec<S>, E> {
        let mut chunks = Chunks::new(self.inputs, self.settings, wanted);
        self.work(states, |buffer| chunks.next(buffer), |chunk, _| chunk, work, deliver)
    }

    /// The same for chunks of an earlier scan. Their threads read them side by side.
    pub fn scan_again<S: Send, T: Send, E: From<FileError> + Send>(
        &self,
        places: &[ChunkPlace],
        states: Vec<S>,
        work: impl Fn(&mut S, &ChunkReader<'_>) -> Result<T, FileError> + Sync,
        deliver: impl FnMut(T) -> Result<(), E> + Send,
    ) -> Result<Vec<S>, E> {
        let mut places = places.iter();
        self.work(states, |_| places.next(), |place, buffer| place.read(self.inputs, buffer), work, deliver)
    }

    fn work<S: Send, P, T: Send, E: From<FileError> + Send>(
        &self,
        states: Vec<S>,
        mut next: impl FnMut(&mut Vec<u8>) -> Option<P> + Send,
        read: impl Fn(P, &mut Vec<u8>) -> Result<Chunk, FileError> + Sync,
        work: impl Fn(&mut S, &ChunkReader<'_>) -> Result<T, FileError> + Sync,
        mut deliver: impl FnMut(T) -> Result<(), E> + Send,
    ) -> Result<Vec<S>, E> {
        let workers = states.into_iter().map(|state| Worker { state, buffer: Vec::new() }).collect();
        let next = |worker: &mut Worker<S>| {
            if self.stop.load(Ordering::Relaxed) { None } else { next(&mut worker.buffer) }
        };
        let work = |worker: &mut Worker<S>, piece: P| {
            let chunk = read(piece, &mut worker.buffer)?;
            let at = TopicPartition::new(&*self.inputs[chunk.input].path.to_string_lossy(), 0);
            let chunk = ChunkReader { reader: self, chunk, lines: &worker.buffer, at };
            work(&mut worker.state, &chunk)
        };
        let deliver = |result: Result<T, FileError>| deliver(result?);
        let workers = in_order(workers, next, work, deliver)?;
        Ok(workers.into_iter().map(|worker| worker.state).collect())
    }
}

/// A chunk in the hands of a thread.
pub struct ChunkReader<'a> {
    reader: &'a Reader<'a>,
    pub chunk: Chunk,
    lines: &'a [u8],
    /// For ids of documents without one.
    at: TopicPartition,
}

/// A document where it stands in its file.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Number of its line, or of its row in a Parquet file, from 1.
    pub line: u64,
    pub text: &'a str,
    pub own_id: Option<&'a str>,
    pub source: Option<&'a str>,
    pub loss: Option<f64>,
    /// Of [`ExtraFields::numbers`], in order; NaN where there is none.
    pub numbers: &'a [f64],
    /// Of [`ExtraFields::vector`]; empty where there is none.
    pub vector: &'a [f32],
    /// Of [`ExtraFields::word`]; see [`DocumentRef::word`].
    pub word: Option<&'a str>,
}

impl ChunkReader<'_> {
    /// The file's number among the inputs.
    pub fn input(&self) -> usize {
        self.chunk.input
    }

    fn path(&self) -> &Path {
        &self.reader.inputs[self.chunk.input].path
    }

    fn error(&self, line: Option<u64>, problem: String) -> FileError {
        FileError { path: self.path().to_owned(), line, problem }
    }

    /// Calls `each` with every record that is not blank: a document, or `None` for a bad line that is passed over.
    pub fn for_each_document(&self, each: impl FnMut(Option<Record<'_>>)) -> Result<(), FileError> {
        self.for_some_documents(|_| true, each)
    }

    /// The same for the records whose line numbers are `wanted`; the others are not looked into.
    pub fn for_some_documents(
        &self,
        mut wanted: impl FnMut(u64) -> bool,
        mut each: impl FnMut(Option<Record<'_>>),
    ) -> Result<(), FileError> {
        match &self.chunk.content {
            Content::Lines => {
                let fields = &self.reader.settings.decoder.fields;
                let mut scratch = TextScratch::default();
                let mut extra = fields::Extra::default();
                self.for_each_line(|line, bytes| {
                    if !wanted(line) {
                        return Ok(());
                    }
                    let document = self.decode(line, bytes, &mut scratch)?;
                    document.iter().for_each(|d| extra.read_document(&self.reader.settings.extra, fields, d));
                    each(document.as_ref().map(|d| Record {
                        line,
                        text: &d.text,
                        own_id: d.own_id.as_deref(),
                        source: d.source.as_deref(),
                        loss: d.loss,
                        numbers: &extra.numbers,
                        vector: &extra.vector,
                        word: extra.word.as_deref(),
                    }));
                    Ok(())
                })
            }
            Content::Rows(rows) => self.for_some_rows(rows, wanted, each),
        }
    }

    fn for_some_rows(
        &self,
        rows: &columns::Rows,
        mut wanted: impl FnMut(u64) -> bool,
        mut each: impl FnMut(Option<Record<'_>>),
    ) -> Result<(), FileError> {
        let settings = self.reader.settings;
        let fields = &settings.decoder.fields;
        let mut line = self.chunk.first_line;
        let mut failed = None;
        let mut extra = fields::Extra::default();
        let result = rows.for_each_batch((self.lines, self.chunk.first_line), |batch| {
            let columns = columns::Columns::of(batch, fields)?;
            let extra_columns = fields::ExtraColumns::of(batch, &settings.extra)?;
            for row in 0..batch.num_rows() {
                if wanted(line) {
                    let (own_id, source, loss) = (columns.id(row), columns.source(row), columns.loss(row));
                    extra_columns.read(row, &mut extra);
                    let (numbers, vector, word) = (&extra.numbers[..], &extra.vector[..], extra.word.as_deref());
                    let record = columns.text(row).map(|text| Record {
                        line,
                        text,
                        own_id,
                        source,
                        loss,
                        numbers,
                        vector,
                        word,
                    });
                    if record.is_none() {
                        let missing = format!("column `{}` is null", fields.text);
                        let bad = self.bad_line(line, &Reject::new(RejectReason::MissingText, missing));
                        bad.map_err(|e| failed.insert(e).problem.clone())?;
                    }
                    each(record);
                }
                line += 1;
            }
            Ok(())
        });
        result.map_err(|problem| failed.unwrap_or_else(|| self.error(None, problem)))
    }

    /// A document's own id, or its position.
    pub fn id<'r>(&self, record: &Record<'r>) -> Cow<'r, str> {
        record.own_id.map_or_else(|| Cow::Owned(self.at.position(record.line as i64)), Cow::Borrowed)
    }

    /// Calls `each` with the number and the JSON of records, those that are `wanted` by how many that are not blank
    /// stand before them in this chunk. Rows of Parquet files become JSON objects. Gives the number of records.
    pub fn for_some_objects(
        &self,
        mut wanted: impl FnMut(u64) -> bool,
        mut each: impl FnMut(u64, u64, &[u8]) -> Result<(), FileError>,
    ) -> Result<u64, FileError> {
        let mut n = 0;
        match &self.chunk.content {
            Content::Lines => self.for_each_line(|line, bytes| {
                n += 1;
                if wanted(n - 1) { each(n - 1, line, bytes) } else { Ok(()) }
            })?,
            Content::Rows(rows) => {
                let first = self.chunk.first_line;
                let mut failed = None;
                let result = rows.for_each_batch((self.lines, self.chunk.first_line), |batch| {
                    let chosen: Vec<u32> =
                        (0..batch.num_rows() as u32).filter(|&row| wanted(n + u64::from(row))).collect();
                    columns::objects(batch, &chosen, |row, object| {
                        let at = n + u64::from(row);
                        each(at, first + at, object).map_err(|e| failed.insert(e).problem.clone())
                    })?;
                    n += batch.num_rows() as u64;
                    Ok(())
                });
                result.map_err(|problem| failed.take().unwrap_or_else(|| self.error(None, problem)))?;
            }
        }
        Ok(n)
    }

    /// Calls `each` with the line number of every record that is not blank, without looking into it.
    pub fn for_each_place(&self, mut each: impl FnMut(u64)) {
        match &self.chunk.content {
            Content::Lines => {
                // Nothing in the closure fails.
                let _ = self.for_each_line(|line, _| {
                    each(line);
                    Ok(())
                });
            }
            Content::Rows(rows) => {
                (0..rows.n_rows(self.lines) as u64).for_each(|row| each(self.chunk.first_line + row));
            }
        }
    }

    /// The document of a line; `None` when it is bad and bad lines are passed over.
    pub fn decode<'d>(
        &'d self,
        line: u64,
        bytes: &'d [u8],
        scratch: &'d mut TextScratch,
    ) -> Result<Option<DocumentRef<'d>>, FileError> {
        match self.reader.settings.decoder.decode_ref(Some(bytes), &self.at, line as i64, None, scratch) {
            Ok(document) => Ok(Some(document)),
            Err(reject) => self.bad_line(line, &reject).map(|()| None),
        }
    }

    /// An error, unless bad lines are passed over.
    pub fn bad_line(&self, line: u64, reject: &Reject) -> Result<(), FileError> {
        if self.reader.settings.skip_bad_lines {
            return Ok(());
        }
        let problem =
            format!("{}: {} (--skip-bad-lines passes over such lines)", reject.reason.as_str(), reject.detail);
        Err(self.error(Some(line), problem))
    }

    /// Lines that are not blank, with their numbers.
    fn for_each_line(&self, mut each: impl FnMut(u64, &[u8]) -> Result<(), FileError>) -> Result<(), FileError> {
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', self.lines).chain([self.lines.len()]);
        for (number, end) in (self.chunk.first_line..).zip(ends) {
            let line = self.lines[start..end].trim_ascii_end();
            if !line.is_empty() {
                each(number, line)?;
            }
            start = (end + 1).min(self.lines.len());
        }
        Ok(())
    }
}

/// Calls `each` with every document of a file and the bytes of its line, in order. A bad line ends it with an error: a
/// model fitted on half a file would be wrong without a sign of it.
pub fn for_each_document<F: FnMut(&DocumentRef<'_>, u64) + Send>(
    path: &Path,
    decoder: &Decoder,
    each: F,
) -> Result<(), FileError> {
    let inputs = expand(std::slice::from_ref(&path.to_owned()), &StoreOptions::new())?;
    let settings = ReadSettings::new(decoder.clone());
    let reader = Reader { inputs: &inputs, settings: &settings, stop: &AtomicBool::new(false) };
    // On one thread the chunks come in order.
    let states = vec![(each, TextScratch::default())];
    let documents = |(each, scratch): &mut (F, TextScratch), chunk: &ChunkReader<'_>| {
        let each_line = |_, line, json: &[u8]| {
            if let Some(document) = chunk.decode(line, json, scratch)? {
                each(&document, json.len() as u64);
            }
            Ok(())
        };
        chunk.for_some_objects(|_| true, each_line).map(drop)
    };
    reader.scan(Wanted::All, states, documents, |()| Ok::<(), FileError>(())).map(drop)
}

#[cfg(test)]
mod tests;
