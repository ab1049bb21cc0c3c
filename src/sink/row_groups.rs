//! A Parquet file whose rows are compressed beside the taking of further ones, on all cores, and stand in the file in their order.
//!
//! In: batches of rows, and where row groups end. Out: the file, the same to the last byte whoever compresses what. One thread at a time
//! compresses a row group; where that takes longer than its rows need to come, others begin with the next ones.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

/// What may wait to be compressed, or for row groups before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Row groups that have ended, at most. 0: whoever brings rows compresses them.
    pub groups: usize,
    /// The bytes of their rows, at most; half as much of rows that are not compressed yet.
    pub bytes: usize,
}

impl Ahead {
    pub const NONE: Ahead = Ahead { groups: 0, bytes: 0 };

    /// For as many threads, as far as there are cores.
    pub fn of_threads(threads: usize, bytes: usize) -> Self {
        Ahead { groups: threads.min(rayon::current_num_threads()) - 1, bytes }
    }
}

pub(super) struct RowGroupWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    shared: Arc<Shared>,
    ahead: Ahead,
    /// The row group that takes rows.
    open: Option<Arc<Group>>,
    /// Those that have ended, oldest first.
    ended: VecDeque<Arc<Group>>,
    /// Of the file, ended or not.
    n_groups: usize,
}

/// What all row groups of a file need.
struct Shared {
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    /// Bytes of rows before they were compressed, and after.
    compressed: Mutex<(u64, u64)>,
}

struct Group {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Something was compressed.
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Rows that are not compressed yet, with their bytes.
    rows: VecDeque<(RecordBatch, usize)>,
    /// Of these, and of what is just being compressed.
    waiting_bytes: usize,
    /// Of all rows.
    bytes: usize,
    /// What they are compressed to, about.
    compressed_bytes: usize,
    has_ended: bool,
    work: Work,
}

#[derive(Default)]
enum Work {
    /// Nobody is at it.
    Idle(Vec<ArrowColumnWriter>),
    #[default]
    Begun,
    Done(Result<Vec<ArrowColumnChunk>, ParquetError>),
}

impl<W: Write + Send> RowGroupWriter<W> {
    pub fn new(file: W, schema: SchemaRef, properties: WriterProperties, ahead: Ahead) -> Result<Self, ParquetError> {
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))?;
        let (file, factory) = writer.into_serialized_writer()?;
        let shared = Arc::new(Shared { factory, schema, compressed: Mutex::default() });
        Ok(RowGroupWriter { file, shared, ahead, open: None, ended: VecDeque::new(), n_groups: 0 })
    }

    /// Takes rows into the row group that is open.
    pub fn write(&mut self, batch: RecordBatch) -> Result<(), ParquetError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let open = match &self.open {
            Some(open) => open,
            None => self.open.insert(Group::begin(&self.shared, self.n_groups)?),
        };
        open.push(batch);
        open.go_on(self.ahead);
        while self.groups().map(|group| group.lock().waiting_bytes).sum::<usize>() > self.ahead.bytes / 2 {
            // The oldest is what the file needs first.
            let Some(oldest) = self.groups().find(|group| group.lock().waiting_bytes > 0) else { break };
            oldest.compress_some();
        }
        Ok(())
    }

    /// Ends the row group; one without rows is none.
    pub fn end_row_group(&mut self) -> Result<(), ParquetError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.lock().has_ended = true;
        open.go_on(self.ahead);
        self.n_groups += 1;
        self.ended.push_back(open);
        while self.ended.len() > self.ahead.groups || self.ended_bytes() > self.ahead.bytes {
            self.append_oldest()?;
        }
        Ok(())
    }

    /// Moves the oldest row group that has ended to the file.
    fn append_oldest(&mut self) -> Result<(), ParquetError> {
        let Some(oldest) = self.ended.pop_front() else { return Ok(()) };
        let chunks = oldest.chunks()?;
        let mut group = self.file.next_row_group()?;
        chunks.into_iter().try_for_each(|chunk| chunk.append_to_row_group(&mut group))?;
        group.close().map(drop)
    }

    /// Those that are not in the file, oldest first.
    fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.ended.iter().chain(&self.open)
    }

    fn ended_bytes(&self) -> usize {
        self.ended.iter().map(|group| group.lock().bytes).sum()
    }

    /// Estimate of the file's size if it ended now: rows that are not compressed yet are taken to become as much smaller as those
    /// before, if there are any.
    pub fn bytes(&self) -> usize {
        let ratio = match *lock(&self.shared.compressed) {
            (0, _) => 1.0,
            (before, after) => after as f64 / before as f64,
        };
        let of_group = |group: &Arc<Group>| {
            let state = group.lock();
            state.compressed_bytes + (state.waiting_bytes as f64 * ratio) as usize
        };
        self.file.bytes_written() + self.groups().map(of_group).sum::<usize>()
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        let of_group = |group: &Arc<Group>| {
            let state = group.lock();
            state.compressed_bytes + state.waiting_bytes
        };
        self.groups().map(of_group).sum()
    }

    /// Ends the file, with these pairs in its footer, and gives what `ended` makes of what it was written to, down to which all has gone.
    pub fn finish<R>(
        mut self,
        metadata: impl IntoIterator<Item = KeyValue>,
        ended: impl FnOnce(&mut W) -> R,
    ) -> Result<R, ParquetError> {
        self.end_row_group()?;
        while !self.ended.is_empty() {
            self.append_oldest()?;
        }
        metadata.into_iter().for_each(|pair| self.file.append_key_value_metadata(pair));
        // `into_inner` would tell of a full disk in words only.
        self.file.finish()?;
        Ok(ended(self.file.inner_mut()))
    }
}

impl Group {
    fn begin(shared: &Arc<Shared>, number: usize) -> Result<Arc<Self>, ParquetError> {
        let work = Work::Idle(shared.factory.create_column_writers(number)?);
        let state = Mutex::new(State { work, ..State::default() });
        Ok(Arc::new(Group { shared: shared.clone(), state, moved: Condvar::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn push(&self, batch: RecordBatch) {
        let bytes = bytes_of(&batch);
        let mut state = self.lock();
        // It has failed, which is told when it is to go into the file.
        if matches!(state.work, Work::Done(_)) {
            return;
        }
        state.waiting_bytes += bytes;
        state.bytes += bytes;
        state.rows.push_back((batch, bytes));
    }

    /// Has compressed what has come. Whoever needs it first does it, so that nobody waits for a thread of the pool that never comes.
    fn go_on(self: &Arc<Self>, ahead: Ahead) {
        if ahead.groups == 0 {
            return while self.step() {};
        }
        let group = self.clone();
        rayon::spawn(move || while group.step() {});
    }

    /// Does what is to be done next, and tells whether there was anything, unless another thread is at it.
    fn step(&self) -> bool {
        let (columns, next) = {
            let mut state = self.lock();
            let columns = match std::mem::take(&mut state.work) {
                Work::Idle(columns) if state.has_ended || !state.rows.is_empty() => columns,
                other => {
                    state.work = other;
                    return false;
                }
            };
            (columns, state.rows.pop_front())
        };
        let bytes = next.as_ref().map(|(_, bytes)| *bytes);
        // A thread of the pool that panicked would leave the others waiting.
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.compress(columns, next)));
        let work = work.unwrap_or_else(|_| Work::Done(Err(ParquetError::General("compression panicked".to_owned()))));
        let mut state = self.lock();
        state.waiting_bytes -= bytes.unwrap_or(0);
        let before = state.compressed_bytes;
        state.compressed_bytes = match &work {
            Work::Idle(columns) => columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum(),
            Work::Begun | Work::Done(_) => before,
        };
        if let Some(bytes) = bytes {
            let mut compressed = lock(&self.shared.compressed);
            compressed.0 += bytes as u64;
            compressed.1 += state.compressed_bytes.saturating_sub(before) as u64;
        }
        if matches!(work, Work::Done(Err(_))) {
            // Whoever asks for the row group is told.
            state.rows.clear();
            state.waiting_bytes = 0;
        }
        state.work = work;
        drop(state);
        self.moved.notify_all();
        true
    }

    fn compress(&self, mut columns: Vec<ArrowColumnWriter>, rows: Option<(RecordBatch, usize)>) -> Work {
        match rows {
            Some((batch, _)) => match compress(&mut columns, &self.shared.schema, &batch) {
                Ok(()) => Work::Idle(columns),
                Err(e) => Work::Done(Err(e)),
            },
            None => Work::Done(columns.into_iter().map(ArrowColumnWriter::close).collect()),
        }
    }

    /// Returns when a part of what waits is compressed, or nothing waits.
    fn compress_some(&self) {
        let before = self.lock().waiting_bytes;
        if !self.step() {
            let state = self.lock();
            let is_as_before = |state: &mut State| state.waiting_bytes >= before && matches!(state.work, Work::Begun);
            drop(self.moved.wait_while(state, is_as_before).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// All that it has become, once it has ended.
    fn chunks(&self) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
        loop {
            while self.step() {}
            let state = self.lock();
            let mut state = self
                .moved
                .wait_while(state, |state| matches!(state.work, Work::Begun))
                .unwrap_or_else(PoisonError::into_inner);
            if matches!(state.work, Work::Done(_))
                && let Work::Done(chunks) = std::mem::take(&mut state.work)
            {
                return chunks;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without what its buffers have room for beyond that.
fn bytes_of(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|array| array.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

fn compress(columns: &mut [ArrowColumnWriter], schema: &SchemaRef, batch: &RecordBatch) -> Result<(), ParquetError> {
    let mut columns = columns.iter_mut();
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        for (leaf, column) in compute_leaves(field, array)?.iter().zip(&mut columns) {
            column.write(leaf)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema};
    use proptest::prelude::*;

    use super::*;

    fn schema() -> SchemaRef {
        let item = Arc::new(Field::new_list_field(DataType::Int32, true));
        let fields = [("text", DataType::Utf8), ("n", DataType::Int64), ("several", DataType::List(item))];
        Arc::new(Schema::new(fields.map(|(name, of)| Field::new(name, of, true)).to_vec()))
    }

    fn batch(first: usize, rows: usize) -> RecordBatch {
        let text = |i: usize| format!("{i} ").repeat(i % 50);
        let several = |i: usize| (!i.is_multiple_of(3)).then(|| (0..i % 3).map(|n| Some(n as i32)).collect::<Vec<_>>());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values((first..first + rows).map(text))),
            Arc::new(Int64Array::from_iter_values((first..first + rows).map(|i| i as i64))),
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>((first..first + rows).map(several))),
        ];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    fn pair() -> KeyValue {
        KeyValue::new("key".to_owned(), "value".to_owned())
    }

    /// Rows of the batches of each row group.
    fn written(groups: &[Vec<usize>], ahead: Ahead) -> Vec<u8> {
        let mut writer = RowGroupWriter::new(Vec::new(), schema(), WriterProperties::default(), ahead).unwrap();
        let mut first = 0;
        for group in groups {
            for &rows in group {
                writer.write(batch(first, rows)).unwrap();
                first += rows;
                let waiting: usize = writer.groups().map(|group| group.lock().waiting_bytes).sum();
                assert!(waiting <= ahead.bytes / 2, "{waiting} bytes wait");
            }
            writer.end_row_group().unwrap();
            let waiting: usize = writer.groups().map(|group| group.lock().waiting_bytes).sum();
            assert!(
                writer.ended.len() <= ahead.groups && writer.ended_bytes() <= ahead.bytes && waiting <= ahead.bytes
            );
        }
        writer.finish([pair()], std::mem::take).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// As the library's own writer writes it, whichever row groups are compressed beside others.
        #[test]
        fn the_file_is_the_same_however_it_is_compressed(
            groups in proptest::collection::vec(proptest::collection::vec(1usize..200, 0..4), 0..8),
            n_ahead in 0usize..4,
            bytes in prop_oneof![Just(usize::MAX >> 8), 0usize..100_000],
        ) {
            let mut expected = ArrowWriter::try_new(Vec::new(), schema(), Some(WriterProperties::default())).unwrap();
            let mut first = 0;
            for group in &groups {
                for &rows in group {
                    expected.write(&batch(first, rows)).unwrap();
                    first += rows;
                }
                expected.flush().unwrap();
            }
            expected.append_key_value_metadata(pair());
            let expected = expected.into_inner().unwrap();
            let ahead = Ahead { groups: n_ahead, bytes };
            prop_assert!(written(&groups, ahead) == expected, "{} bytes expected", expected.len());
        }
    }

    /// Threads of the pool that all write files of their own: none may wait for another one to be free.
    #[test]
    fn threads_of_the_pool_may_write_themselves() {
        let groups = vec![vec![100; 4]; 6];
        let ahead = Ahead { groups: 3, bytes: usize::MAX >> 8 };
        let expected = written(&groups, Ahead::NONE);
        let all = rayon::broadcast(|_| written(&groups, ahead));
        assert!(all.iter().all(|file| *file == expected));
    }

    #[test]
    fn the_size_is_told_before_row_groups_are_in_the_file() {
        for groups in [0, 1, 3] {
            let ahead = Ahead { groups, bytes: usize::MAX >> 8 };
            let mut writer = RowGroupWriter::new(Vec::new(), schema(), WriterProperties::default(), ahead).unwrap();
            (0..20).for_each(|i| {
                writer.write(batch(i * 1000, 1000)).unwrap();
                writer.end_row_group().unwrap();
            });
            writer.groups().next().inspect(|oldest| oldest.compress_some());
            let told = writer.bytes();
            let bytes = writer.finish([], |file| file.len()).unwrap();
            assert!(told > bytes / 2 && told < bytes * 3 / 2, "{told} for {bytes}");
        }
    }

    /// Text in a column of numbers: no writer takes it.
    #[test]
    fn what_cannot_be_compressed_is_told() {
        for groups in [0, 2] {
            let ahead = Ahead { groups, bytes: 1000 };
            let mut writer = RowGroupWriter::new(Vec::new(), schema(), WriterProperties::default(), ahead).unwrap();
            let turned = RecordBatch::from(arrow::array::StructArray::from(vec![
                (Arc::new(Field::new("n", DataType::Int64, true)), batch(0, 9).column(1).clone()),
                (Arc::new(Field::new("text", DataType::Utf8, true)), batch(0, 9).column(0).clone()),
                (schema().field(2).clone().into(), batch(0, 9).column(2).clone()),
            ]));
            let outcome = (0..9).try_for_each(|_| {
                writer.write(turned.clone())?;
                writer.end_row_group()
            });
            assert!(outcome.is_err() || writer.finish([], |_| ()).is_err(), "{groups} row groups ahead");
        }
    }
}
