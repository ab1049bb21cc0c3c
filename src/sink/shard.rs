//! One shard under construction: constant schema, bounded row groups.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float64Builder, Int32Builder, Int64Builder, StringBuilder, TimestampMillisecondBuilder,
    UInt32Builder,
};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::scratch::{FinishedFile, ScratchParquet};
use super::{FullDisk, SinkError};
use crate::score::ModelId;
use crate::window::{ClosedWindow, SelectedDocument};

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

/// The column of the weights for one of several targets.
pub(super) fn weight_column(target: &str) -> String {
    format!("log_importance_weight_{target}")
}

/// Limits of a file's parts.
#[derive(Debug, Clone, Copy)]
pub struct WriterSettings {
    pub row_group_rows: usize,
    /// Of the rows' uncompressed bytes.
    pub row_group_bytes: usize,
    pub zstd_level: i32,
}

/// Rows that are turned into Arrow arrays at a time, at most.
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

/// Writes one shard into a scratch file.
pub struct ShardWriter {
    file: ScratchParquet,
    settings: WriterSettings,
    schema: SchemaRef,
    batch: Batch,
    rows: u64,
    row_group_rows: usize,
    row_group_bytes: usize,
}

impl ShardWriter {
    /// `targets`: their names if there are several, else nothing. `derived`: further columns, see [`ShardWriter::append_with`]. Where the disk is full, this and all else here waits for
    /// room, as long as `full_disk` does.
    pub fn create(
        shard: &str,
        scratch_dir: Option<&Path>,
        settings: WriterSettings,
        targets: &[String],
        derived: &[Field],
        full_disk: Arc<dyn FullDisk>,
    ) -> Result<Self, SinkError> {
        let schema = schema(targets, derived);
        let file = ScratchParquet::create(shard, scratch_dir, schema.clone(), properties(&settings), full_disk)?;
        let batch = Batch::new(targets, derived.len());
        Ok(ShardWriter { file, settings, schema, batch, rows: 0, row_group_rows: 0, row_group_bytes: 0 })
    }

    /// Adds the selection of a window to a shard without further columns.
    pub fn append(&mut self, window: &ClosedWindow, model: &ModelId) -> Result<(), SinkError> {
        self.append_with(window, model, &mut |_| Vec::new())
    }

    /// The same where there are some: `derive` gives their values for rows, a few megabytes of them at a time.
    pub fn append_with(
        &mut self,
        window: &ClosedWindow,
        model: &ModelId,
        derive: &mut dyn FnMut(&[SelectedDocument]) -> Vec<ArrayRef>,
    ) -> Result<(), SinkError> {
        let mut rest = &window.selected[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |row: &&SelectedDocument| {
                bytes += row.document.size_bytes();
                bytes <= BATCH_BYTES
            };
            let n = rest.iter().take(BATCH_ROWS).take_while(fits).count().max(1);
            let (rows, others) = rest.split_at(n);
            self.append_rows(rows, window, model, &derive(rows))?;
            rest = others;
        }
        Ok(())
    }

    fn append_rows(
        &mut self,
        rows: &[SelectedDocument],
        window: &ClosedWindow,
        model: &ModelId,
        derived: &[ArrayRef],
    ) -> Result<(), SinkError> {
        let id = window.summary.id();
        let derived_bytes =
            derived.iter().map(|array| array.get_array_memory_size()).sum::<usize>() / rows.len().max(1);
        // Rows of `derived` before it are in the batch, or written.
        let mut taken = 0;
        for (i, row) in rows.iter().enumerate() {
            let bytes = row.document.size_bytes() + derived_bytes;
            let full = self.row_group_rows == self.settings.row_group_rows
                || (self.row_group_rows > 0 && self.row_group_bytes + bytes > self.settings.row_group_bytes);
            if full || self.batch.rows == BATCH_ROWS || self.batch.bytes + bytes > BATCH_BYTES {
                self.batch.take_derived(derived, std::mem::replace(&mut taken, i), i);
                self.write_batch()?;
            }
            if full {
                self.end_row_group()?;
            }
            self.batch.push(row, bytes, window, &id, model);
            self.row_group_rows += 1;
            self.row_group_bytes += bytes;
            self.rows += 1;
        }
        self.batch.take_derived(derived, taken, rows.len());
        Ok(())
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Estimate of the file's size if it ended now.
    pub fn bytes(&self) -> u64 {
        (self.file.bytes() + self.batch.bytes) as u64
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.file.held_bytes() + self.batch.bytes
    }

    /// Ends the file with `metadata` in its footer.
    pub fn finish(mut self, metadata: Vec<(String, String)>) -> Result<FinishedFile, SinkError> {
        self.end_row_group()?;
        self.file.finish(self.rows, metadata)
    }

    fn write_batch(&mut self) -> Result<(), SinkError> {
        if self.batch.rows == 0 {
            return Ok(());
        }
        let batch = self.batch.take(&self.schema);
        self.file.write(&batch)
    }

    fn end_row_group(&mut self) -> Result<(), SinkError> {
        self.write_batch()?;
        self.row_group_rows = 0;
        self.row_group_bytes = 0;
        self.file.end_row_group()
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
    /// Parts of each derived column.
    derived: Vec<Vec<ArrayRef>>,
}

impl Batch {
    fn new(targets: &[String], n_derived: usize) -> Self {
        let by_target = targets.iter().map(|_| Float64Builder::new()).collect();
        Batch { targets: targets.to_vec(), by_target, derived: vec![Vec::new(); n_derived], ..Batch::default() }
    }

    /// The derived columns of rows that have been pushed.
    fn take_derived(&mut self, derived: &[ArrayRef], from: usize, to: usize) {
        if from < to {
            self.derived.iter_mut().zip(derived).for_each(|(parts, array)| parts.push(array.slice(from, to - from)));
        }
    }

    fn push(&mut self, row: &SelectedDocument, bytes: usize, window: &ClosedWindow, window_id: &str, model: &ModelId) {
        self.rows += 1;
        self.bytes += bytes;
        self.text.append_value(&row.document.text);
        self.id.append_value(&row.document.id);
        self.source.append_option(row.document.source.as_deref());
        self.topic.append_value(&*window.summary.at.topic);
        self.partition.append_value(window.summary.at.partition);
        self.offset.append_value(row.offset);
        self.timestamp.append_option(row.document.timestamp_ms);
        self.n_tokens.append_value(row.score.n_tokens);
        self.log_importance_weight.append_value(row.score.log_importance_weight);
        self.selection_key.append_value(row.selection_key);
        self.inclusion_probability.append_value(row.inclusion_probability);
        self.sample_weight.append_value(row.inclusion_probability.recip());
        self.window.append_value(window_id);
        self.model.append_value(model.as_str());
        self.metadata.append_option(row.document.metadata.as_deref());
        self.loss.append_option(row.score.loss);
        self.loss_weight.append_option(row.loss_weight);
        self.expected_loss.append_option(row.score.expected_loss);
        if let Some(name) = self.targets.get(row.target) {
            self.target.append_value(name);
        }
        self.by_target.iter_mut().zip(&row.log_importance_weights).for_each(|(column, w)| column.append_value(*w));
    }

    fn take(&mut self, schema: &SchemaRef) -> RecordBatch {
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
        for parts in &mut self.derived {
            let parts = std::mem::take(parts);
            let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
            columns.push(concat(&parts).expect("parts of one type"));
        }
        RecordBatch::try_new(schema.clone(), columns).expect("the builders follow the schema")
    }
}

#[cfg(test)]
mod tests;
