//! One shard under construction: constant schema, bounded row groups, rows in the order of their windows or shuffled.

mod row;
mod spool;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Builder, Int32Builder, Int64Builder, StringBuilder, TimestampMillisecondBuilder, UInt32Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::row_groups::Ahead;
use super::scratch::{FinishedFile, ScratchParquet};
use super::{FullDisk, SinkError};
use crate::record::TopicPartition;
use crate::score::ModelId;
use crate::select::Noise;
use crate::window::SelectedDocument;
use row::Row;
use spool::Spool;

/// Names, types and nullability of the columns, in order. Only ever added to, at the end. Several targets have further ones
/// after them: see [`schema`].
pub const COLUMNS: [(&str, DataType, bool); 18] = [
    ("text", DataType::Utf8, false),
    ("id", DataType::Utf8, false),
    ("source", DataType::Utf8, true),
    ("topic", DataType::Utf8, false),
    ("partition", DataType::Int32, false),
    ("offset", DataType::Int64, false),
    ("timestamp", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ("n_tokens", DataType::UInt32, false),
    ("log_importance_weight", DataType::Float64, false),
    ("selection_key", DataType::Float64, false),
    ("inclusion_probability", DataType::Float64, false),
    ("sample_weight", DataType::Float64, false),
    ("window", DataType::Utf8, false),
    ("model", DataType::Utf8, false),
    ("metadata", DataType::Utf8, true),
    ("loss", DataType::Float64, true),
    ("loss_weight", DataType::Float64, true),
    ("expected_loss", DataType::Float64, true),
];

/// Whether shards have a column of their own that is called so; readers often do not look at case.
pub fn is_shard_column(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    COLUMNS.iter().any(|(known, ..)| *known == name) || name == "target" || name.starts_with(&weight_column(""))
}

/// The schema of every shard of a model with one target, or with several of these names: then it also tells which of them
/// chose a document, and its weight for each, under the names that selections of files have. Derived columns stand last.
pub fn schema(targets: &[String], derived: &[Field]) -> SchemaRef {
    let field = |(name, data_type, nullable): (&str, DataType, bool)| match data_type {
        DataType::Timestamp(unit, _) => Field::new(name, DataType::Timestamp(unit, Some("UTC".into())), nullable),
        other => Field::new(name, other, nullable),
    };
    let mut fields = COLUMNS.map(field).to_vec();
    if !targets.is_empty() {
        fields.push(Field::new("target", DataType::Utf8, false));
    }
    fields.extend(targets.iter().map(|name| Field::new(weight_column(name), DataType::Float64, false)));
    fields.extend(derived.iter().cloned());
    Arc::new(Schema::new(fields))
}

/// Of columns of types that `documents.columns` allows.
fn values_of(derived: &[Field]) -> Option<RowConverter> {
    let fields = derived.iter().map(|field| SortField::new(field.data_type().clone())).collect();
    (!derived.is_empty()).then(|| RowConverter::new(fields).expect("types that can be rows"))
}

/// The column of the weights for one of several targets.
pub(super) fn weight_column(target: &str) -> String {
    format!("log_importance_weight_{target}")
}

/// Limits of a file's parts, and the order of its rows.
#[derive(Debug, Clone, Copy)]
pub struct WriterSettings {
    pub row_group_rows: usize,
    /// Of the rows' bytes in the file before compression.
    pub row_group_bytes: usize,
    pub zstd_level: i32,
    /// The seed by which the rows of a shard are shuffled; `None`: they stand in the order of their windows.
    pub shuffle: Option<u64>,
}

/// The two sides that documents are on. Each has files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    Validation,
}

impl Split {
    /// As footers, and the libraries of trainers, call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

/// Rows that are turned into Arrow arrays at a time, at most. More need not be given to a writer together.
pub const BATCH_ROWS: usize = 256;
pub const BATCH_BYTES: usize = 4 << 20;
/// A page holds no more rows: of numbers a whole row group would fit into one, and its page index would tell nothing.
const PAGE_ROWS: usize = 1024;

/// Writes one shard into a scratch file. Rows that are to be shuffled wait in a second one until all are there.
pub struct ShardWriter {
    file: ScratchParquet,
    settings: WriterSettings,
    schema: SchemaRef,
    /// The values of a row's derived columns as bytes, and back; `None` without any.
    derived: Option<RowConverter>,
    batch: Batch,
    group: RowGroup,
    spool: Option<Spool>,
    rows: u64,
}

impl ShardWriter {
    /// `targets`: their names if there are several, else nothing. `derived`: further columns. Where the disk is full, this and all
    /// else here waits for room, as long as `full_disk` does.
    pub fn create(
        shard: &str,
        scratch_dir: Option<&Path>,
        settings: WriterSettings,
        targets: &[String],
        derived: &[Field],
        full_disk: Arc<dyn FullDisk>,
    ) -> Result<Self, SinkError> {
        let schema = schema(targets, derived);
        let spool = || Spool::create(scratch_dir, settings.zstd_level, full_disk.clone());
        let spool = settings.shuffle.map(|_| spool()).transpose()?;
        let (properties, ahead) = (properties(&settings), Ahead::of_threads(2, settings.row_group_bytes / 2));
        let file = ScratchParquet::create(shard, scratch_dir, schema.clone(), properties, ahead, full_disk)?;
        let (batch, group) = (Batch::of_targets(targets), RowGroup::default());
        Ok(ShardWriter { file, settings, schema, derived: values_of(derived), batch, group, spool, rows: 0 })
    }

    /// Adds documents that the window of this id has selected from a partition. All windows of a shard were selected with the same
    /// model. `derived`: of each derived column an array of its type, as long as there are documents.
    pub fn append(
        &mut self,
        documents: &[&SelectedDocument],
        at: &TopicPartition,
        window: &str,
        model: &ModelId,
        derived: &[ArrayRef],
    ) -> Result<(), SinkError> {
        model.as_str().clone_into(&mut self.batch.model_name);
        let noise = self.settings.shuffle.map(|seed| Noise::new(seed, at));
        let derived =
            self.derived.as_ref().map(|values| values.convert_columns(derived).expect("arrays of these types"));
        for (i, document) in documents.iter().enumerate() {
            let of_derived = derived.as_ref().map_or(&[][..], |values| values.row(i).data());
            let row = Row::of(document, at, window, of_derived);
            self.rows += 1;
            match (&mut self.spool, &noise) {
                (Some(spool), Some(noise)) => spool.push(noise.shuffle(row.offset), &row)?,
                _ => self.write(&row)?,
            }
        }
        Ok(())
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Estimate of the file's size if it ended now.
    pub fn bytes(&self) -> u64 {
        let waiting = self.spool.as_ref().map_or(0, Spool::compressed_bytes);
        (self.file.bytes() + self.batch.bytes + waiting) as u64
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.file.held_bytes() + self.batch.bytes + self.spool.as_ref().map_or(0, Spool::held_bytes)
    }

    /// Bytes of what is known of rows that wait to be shuffled: it grows with every row until the shard ends.
    pub fn waiting_bytes(&self) -> usize {
        self.spool.as_ref().map_or(0, Spool::places_bytes)
    }

    /// Ends the file with `metadata` in its footer.
    pub fn finish(mut self, metadata: Vec<(String, String)>) -> Result<FinishedFile, SinkError> {
        if let Some(spool) = self.spool.take() {
            spool.drain(|row| self.write(row))?;
        }
        self.end_row_group()?;
        self.file.finish(self.rows, metadata)
    }

    fn write(&mut self, row: &Row<'_>) -> Result<(), SinkError> {
        let bytes = self.group.bytes_of(row);
        let full = self.group.rows == self.settings.row_group_rows
            || (self.group.rows > 0 && self.group.bytes + bytes > self.settings.row_group_bytes);
        if full {
            self.end_row_group()?;
        }
        if self.batch.rows == BATCH_ROWS || self.batch.bytes + row.plain_bytes() > BATCH_BYTES {
            self.write_batch()?;
        }
        self.group.add(row);
        self.batch.push(row);
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), SinkError> {
        if self.batch.rows == 0 {
            return Ok(());
        }
        self.file.write(self.batch.take(&self.schema, self.derived.as_ref()))
    }

    fn end_row_group(&mut self) -> Result<(), SinkError> {
        self.write_batch()?;
        self.group = RowGroup::default();
        self.file.end_row_group()
    }
}

/// The row group that rows are written to.
#[derive(Default)]
struct RowGroup {
    rows: usize,
    bytes: usize,
    /// Strings that its dictionaries hold.
    known: HashSet<Box<str>>,
}

impl RowGroup {
    /// What a row adds to its bytes before compression.
    fn bytes_of(&self, row: &Row<'_>) -> usize {
        let new = |string: &str| if self.known.contains(string) { 0 } else { 4 + string.len() };
        row.plain_bytes() + new(row.window) + row.source.map_or(0, new)
    }

    fn add(&mut self, row: &Row<'_>) {
        self.bytes += self.bytes_of(row);
        self.rows += 1;
        for string in [Some(row.window), row.source].into_iter().flatten() {
            if !self.known.contains(string) {
                self.known.insert(string.into());
            }
        }
    }
}

pub(super) fn properties(settings: &WriterSettings) -> WriterProperties {
    let level = ZstdLevel::try_new(settings.zstd_level).expect("the configuration allows levels 1 to 22 only");
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("winnowd ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        // Row groups end where `append` says so.
        .set_max_row_group_row_count(None)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_size_limit(1 << 20)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(BATCH_ROWS);
    for repeated in ["source", "topic", "partition", "window", "model", "target", "reason"] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(repeated), true);
    }
    for free_text in ["text", "metadata", "payload"] {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(free_text), EnabledStatistics::None);
    }
    properties.build()
}

/// Rows on their way into Arrow arrays, in the order of the schema.
#[derive(Default)]
struct Batch {
    /// Names of several targets.
    targets: Vec<String>,
    model_name: String,
    rows: usize,
    bytes: usize,
    text: StringBuilder,
    id: StringBuilder,
    source: StringBuilder,
    topic: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    timestamp: TimestampMillisecondBuilder,
    n_tokens: UInt32Builder,
    log_importance_weight: Float64Builder,
    selection_key: Float64Builder,
    inclusion_probability: Float64Builder,
    sample_weight: Float64Builder,
    window: StringBuilder,
    model: StringBuilder,
    metadata: StringBuilder,
    loss: Float64Builder,
    loss_weight: Float64Builder,
    expected_loss: Float64Builder,
    target: StringBuilder,
    by_target: Vec<Float64Builder>,
    /// The derived columns of its rows, one after the other, and where each ends.
    derived: Vec<u8>,
    derived_ends: Vec<usize>,
}

impl Batch {
    fn of_targets(targets: &[String]) -> Self {
        let by_target = targets.iter().map(|_| Float64Builder::new()).collect();
        Batch { targets: targets.to_vec(), by_target, ..Batch::default() }
    }

    fn push(&mut self, row: &Row<'_>) {
        self.rows += 1;
        self.bytes += row.plain_bytes();
        self.text.append_value(row.text);
        self.id.append_value(row.id);
        self.source.append_option(row.source);
        self.topic.append_value(row.topic);
        self.partition.append_value(row.partition);
        self.offset.append_value(row.offset);
        self.timestamp.append_option(row.timestamp_ms);
        self.n_tokens.append_value(row.n_tokens);
        self.log_importance_weight.append_value(row.log_importance_weight);
        self.selection_key.append_value(row.selection_key);
        self.inclusion_probability.append_value(row.inclusion_probability);
        self.sample_weight.append_value(row.sample_weight);
        self.window.append_value(row.window);
        self.model.append_value(&self.model_name);
        self.metadata.append_option(row.metadata);
        self.loss.append_option(row.loss);
        self.loss_weight.append_option(row.loss_weight);
        self.expected_loss.append_option(row.expected_loss);
        if let Some(name) = self.targets.get(row.target as usize) {
            self.target.append_value(name);
        }
        let by_target = self.by_target.iter_mut().zip(row.log_importance_weights.iter());
        by_target.for_each(|(column, weight)| column.append_value(*weight));
        self.derived.extend_from_slice(row.derived);
        self.derived_ends.push(self.derived.len());
    }

    fn take(&mut self, schema: &SchemaRef, derived: Option<&RowConverter>) -> RecordBatch {
        self.rows = 0;
        self.bytes = 0;
        let timestamp = self.timestamp.finish().with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.text.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.topic.finish()),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(timestamp),
            Arc::new(self.n_tokens.finish()),
            Arc::new(self.log_importance_weight.finish()),
            Arc::new(self.selection_key.finish()),
            Arc::new(self.inclusion_probability.finish()),
            Arc::new(self.sample_weight.finish()),
            Arc::new(self.window.finish()),
            Arc::new(self.model.finish()),
            Arc::new(self.metadata.finish()),
            Arc::new(self.loss.finish()),
            Arc::new(self.loss_weight.finish()),
            Arc::new(self.expected_loss.finish()),
        ];
        if !self.targets.is_empty() {
            columns.push(Arc::new(self.target.finish()));
        }
        columns.extend(self.by_target.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        let (bytes, ends) = (std::mem::take(&mut self.derived), std::mem::take(&mut self.derived_ends));
        if let Some(derived) = derived {
            let parser = derived.parser();
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let rows = starts.zip(&ends).map(|(start, end)| parser.parse(&bytes[start..*end]));
            columns.extend(derived.convert_rows(rows).expect("what was converted comes back"));
        }
        RecordBatch::try_new(schema.clone(), columns).expect("the builders follow the schema")
    }
}

#[cfg(test)]
mod tests;
