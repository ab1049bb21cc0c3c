//! Dead letters as Parquet: one file beside a shard, in the same publication.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Int32Builder, Int64Builder, StringBuilder, TimestampMillisecondBuilder,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::row_groups::Ahead;
use super::scratch::{FinishedFile, ScratchParquet};
use super::shard::{WriterSettings, properties};
use super::{FullDisk, SinkError};
use crate::record::TopicPartition;
use crate::window::DeadLetter;

/// Rows and bytes of a row group.
const GROUP_ROWS: usize = 4096;
const GROUP_BYTES: usize = 4 << 20;

/// A dead letter as people look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    pub at: TopicPartition,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub reason: String,
    pub detail: String,
    /// As much as is kept of it; `None`: the record had none.
    pub payload: Option<Vec<u8>>,
    /// Of the whole payload.
    pub payload_bytes: i64,
}

impl StoredDeadLetter {
    /// Whether the payload is kept whole.
    pub fn is_whole(&self) -> bool {
        self.payload.as_ref().map_or(0, Vec::len) as i64 == self.payload_bytes
    }
}

/// The schema of every file of dead letters.
pub fn dead_letter_schema() -> SchemaRef {
    let field = |name, data_type| Field::new(name, data_type, false);
    let timestamp = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        field("topic", DataType::Utf8),
        field("partition", DataType::Int32),
        field("offset", DataType::Int64),
        Field::new("timestamp", timestamp, true),
        field("reason", DataType::Utf8),
        field("detail", DataType::Utf8),
        Field::new("payload", DataType::Binary, true),
        field("payload_bytes", DataType::Int64),
    ]))
}

/// Writes the dead letters of one publication into a scratch file.
pub struct DeadLetterWriter {
    file: ScratchParquet,
    rows: Rows,
    total: u64,
}

#[derive(Default)]
struct Rows {
    n: usize,
    bytes: usize,
    topic: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    timestamp: TimestampMillisecondBuilder,
    reason: StringBuilder,
    detail: StringBuilder,
    payload: BinaryBuilder,
    payload_bytes: Int64Builder,
}

impl DeadLetterWriter {
    pub fn create(
        shard: &str,
        scratch_dir: Option<&Path>,
        zstd_level: i32,
        full_disk: Arc<dyn FullDisk>,
    ) -> Result<Self, SinkError> {
        let settings =
            WriterSettings { row_group_rows: GROUP_ROWS, row_group_bytes: GROUP_BYTES, zstd_level, shuffle: None };
        let (schema, properties) = (dead_letter_schema(), properties(&settings));
        let file = ScratchParquet::create(shard, scratch_dir, schema, properties, Ahead::NONE, full_disk)?;
        Ok(DeadLetterWriter { file, rows: Rows::default(), total: 0 })
    }

    pub fn append(&mut self, at: &TopicPartition, letter: &DeadLetter) -> Result<(), SinkError> {
        let rows = &mut self.rows;
        rows.n += 1;
        rows.bytes += letter.size_bytes();
        rows.topic.append_value(&*at.topic);
        rows.partition.append_value(at.partition);
        rows.offset.append_value(letter.offset);
        rows.timestamp.append_option(letter.record_timestamp_ms);
        rows.reason.append_value(letter.reject.reason.as_str());
        rows.detail.append_value(&letter.reject.detail);
        rows.payload.append_option(letter.payload.as_deref());
        rows.payload_bytes.append_value(letter.payload_bytes as i64);
        self.total += 1;
        if rows.n == GROUP_ROWS || rows.bytes >= GROUP_BYTES { self.end_row_group() } else { Ok(()) }
    }

    pub fn rows(&self) -> u64 {
        self.total
    }

    /// Estimate of the file's size if it ended now.
    pub fn bytes(&self) -> u64 {
        (self.file.bytes() + self.rows.bytes) as u64
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.file.held_bytes() + self.rows.bytes
    }

    pub fn finish(mut self, metadata: Vec<(String, String)>) -> Result<FinishedFile, SinkError> {
        self.end_row_group()?;
        self.file.finish(self.total, metadata)
    }

    fn end_row_group(&mut self) -> Result<(), SinkError> {
        if self.rows.n == 0 {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(rows.topic.finish()),
            Arc::new(rows.partition.finish()),
            Arc::new(rows.offset.finish()),
            Arc::new(rows.timestamp.finish().with_timezone("UTC")),
            Arc::new(rows.reason.finish()),
            Arc::new(rows.detail.finish()),
            Arc::new(rows.payload.finish()),
            Arc::new(rows.payload_bytes.finish()),
        ];
        self.file
            .write(RecordBatch::try_new(dead_letter_schema(), columns).expect("the builders follow the schema"))?;
        self.file.end_row_group()
    }
}

/// Reads a file of dead letters, a few at a time.
pub fn read_dead_letters(
    path: &str,
    content: Bytes,
) -> Result<impl Iterator<Item = Result<StoredDeadLetter, SinkError>> + use<>, SinkError> {
    let path = path.to_owned();
    let damaged = move |problem: String| SinkError::Damaged { path: path.clone(), problem };
    let reader = ParquetRecordBatchReaderBuilder::try_new(content).and_then(|b| b.with_batch_size(64).build());
    let reader = reader.map_err(|e| damaged(e.to_string()))?;
    Ok(reader.flat_map(move |batch| {
        let letters = batch.map_err(|e| e.to_string()).and_then(|batch| letters_of(&batch));
        match letters {
            Ok(letters) => letters.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(problem) => vec![Err(damaged(problem))],
        }
    }))
}

fn letters_of(batch: &RecordBatch) -> Result<Vec<StoredDeadLetter>, String> {
    if batch.schema().fields() != dead_letter_schema().fields() {
        return Err("is no file of dead letters".to_owned());
    }
    let (topic, reason) = (batch.column(0).as_string::<i32>(), batch.column(4).as_string::<i32>());
    let (partition, offset) =
        (batch.column(1).as_primitive::<Int32Type>(), batch.column(2).as_primitive::<Int64Type>());
    let timestamp = batch.column(3).as_primitive::<TimestampMillisecondType>();
    let (detail, payload) = (batch.column(5).as_string::<i32>(), batch.column(6).as_binary::<i32>());
    let payload_bytes = batch.column(7).as_primitive::<Int64Type>();
    let letter = |i| StoredDeadLetter {
        at: TopicPartition::new(topic.value(i), partition.value(i)),
        offset: offset.value(i),
        timestamp_ms: timestamp.is_valid(i).then(|| timestamp.value(i)),
        reason: reason.value(i).to_owned(),
        detail: detail.value(i).to_owned(),
        payload: payload.is_valid(i).then(|| payload.value(i).to_owned()),
        payload_bytes: payload_bytes.value(i),
    };
    Ok((0..batch.num_rows()).map(letter).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::record::{Reject, RejectReason};

    #[test]
    fn letters_come_back_as_they_were() {
        let payloads =
            [None, Some(b"".to_vec()), Some(vec![0xFF; 3 << 20]), Some(vec![0; 2 << 20]), Some(b"{".to_vec())];
        let at = TopicPartition::new("docs", 3);
        let mut writer = DeadLetterWriter::create("s", None, 1, Arc::new(crate::sink::GiveUp)).unwrap();
        for (i, payload) in payloads.iter().enumerate() {
            let letter = DeadLetter {
                offset: 7 + i as i64,
                record_timestamp_ms: (i > 0).then_some(i as i64),
                reject: Reject::new(RejectReason::MalformedJson, "nul \0 and ü"),
                payload_bytes: payload.as_ref().map_or(0, Vec::len) as u64 + u64::from(i == 4),
                payload: payload.clone(),
            };
            writer.append(&at, &letter).unwrap();
            assert!(writer.held_bytes() < GROUP_BYTES + (3 << 20), "a row group bounds the memory");
        }
        assert_eq!(writer.rows(), 5);
        let finished = writer.finish(Vec::new()).unwrap();
        let mut content = Vec::new();
        finished.file.rewound().unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, finished.bytes);
        let letters: Vec<_> = read_dead_letters("x", content.into()).unwrap().map(Result::unwrap).collect();
        assert_eq!(letters.iter().map(|l| l.payload.clone()).collect::<Vec<_>>(), payloads);
        assert_eq!(letters.iter().map(|l| l.offset).collect::<Vec<_>>(), [7, 8, 9, 10, 11]);
        assert_eq!(letters.iter().map(StoredDeadLetter::is_whole).collect::<Vec<_>>(), [true, true, true, true, false]);
        assert_eq!((letters[0].timestamp_ms, letters[1].timestamp_ms), (None, Some(1)));
        assert_eq!((&*letters[4].reason, &*letters[4].detail), ("malformed_json", "nul \0 and ü"));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let error = read_dead_letters("dead-letters/x.parquet", Bytes::from_static(b"no")).err().unwrap();
        assert!(error.to_string().starts_with("`dead-letters/x.parquet`"), "{error}");
    }
}
