//! Selected documents of files as Parquet: files of bounded size in a folder, with the columns of the daemon's shards as
//! far as files have them.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, StringBuilder, UInt32Builder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;

use super::row_groups::{Ahead, RowGroupWriter};
use super::shard::{WriterSettings, properties, weight_column};

/// Rows of one file, at most.
const FILE_ROWS: usize = 1 << 20;
/// Of its uncompressed bytes.
const FILE_BYTES: usize = 1 << 30;
const SETTINGS: WriterSettings =
    WriterSettings { row_group_rows: 8192, row_group_bytes: 16 << 20, zstd_level: 1, shuffle: None };
const BATCH_ROWS: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Of row groups that wait for others, at most.
const AHEAD_BYTES: usize = 64 << 20;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedRow {
    pub text: String,
    pub id: String,
    pub source: Option<String>,
    pub n_tokens: u32,
    /// By the tokenizer of the selection; `None` of a text that it fails on.
    pub counted_tokens: Option<u32>,
    /// For every target, and which of them chose the document.
    pub log_importance_weights: Vec<f64>,
    pub target: usize,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
    pub metadata: Option<String>,
    /// Its own loss, if it has one, and the log of the weight that this gives it, where losses count.
    pub loss: Option<f64>,
    pub loss_weight: Option<f64>,
}

/// Columns that not every selection has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectionColumns {
    /// The names of the targets if there are several, else nothing.
    pub targets: Vec<String>,
    pub has_losses: bool,
    /// The column of the tokenizer, if there is one.
    pub tokenizer: Option<String>,
}

/// Writes `selected-00000.parquet` and so on into a folder.
pub struct SelectionWriter {
    folder: PathBuf,
    schema: SchemaRef,
    columns: SelectionColumns,
    metadata: Vec<KeyValue>,
    rows: Rows,
    ahead: Ahead,
    open: Option<RowGroupWriter<BufWriter<File>>>,
    file_rows: usize,
    file_bytes: usize,
    group_rows: usize,
    group_bytes: usize,
    written: Vec<(String, u64)>,
}

#[derive(Default)]
struct Rows {
    n: usize,
    bytes: usize,
    text: StringBuilder,
    id: StringBuilder,
    source: StringBuilder,
    n_tokens: UInt32Builder,
    log_importance_weight: Float64Builder,
    target: StringBuilder,
    by_target: Vec<Float64Builder>,
    selection_key: Float64Builder,
    inclusion_probability: Float64Builder,
    sample_weight: Float64Builder,
    metadata: StringBuilder,
    /// Of selections in which losses count.
    loss: Option<(Float64Builder, Float64Builder)>,
    /// Of selections with a tokenizer.
    counted_tokens: Option<UInt32Builder>,
}

impl SelectionWriter {
    /// `metadata` goes into the footer of every file. Compression takes no more than so many threads.
    pub fn new(folder: &Path, columns: SelectionColumns, metadata: Vec<(String, String)>, threads: usize) -> Self {
        let by_target = columns.targets.iter().map(|_| Float64Builder::new()).collect();
        let rows = Rows { by_target, loss: columns.has_losses.then(Default::default), ..Rows::default() };
        let rows = Rows { counted_tokens: columns.tokenizer.as_ref().map(|_| Default::default()), ..rows };
        SelectionWriter {
            folder: folder.to_owned(),
            schema: schema(&columns),
            columns,
            metadata: metadata.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect(),
            rows,
            ahead: Ahead::of_threads(threads, AHEAD_BYTES),
            open: None,
            file_rows: 0,
            file_bytes: 0,
            group_rows: 0,
            group_bytes: 0,
            written: Vec::new(),
        }
    }

    pub fn write(&mut self, row: &SelectedRow) -> Result<(), ParquetError> {
        let optional = |s: &Option<String>| s.as_ref().map_or(0, String::len);
        let bytes = row.text.len() + row.id.len() + optional(&row.source) + optional(&row.metadata) + 48;
        if self.file_rows > 0 && (self.file_rows >= FILE_ROWS || self.file_bytes + bytes > FILE_BYTES) {
            self.end_file()?;
        }
        if self.group_rows > 0
            && (self.group_rows >= SETTINGS.row_group_rows || self.group_bytes + bytes > SETTINGS.row_group_bytes)
        {
            self.write_batch()?;
            if let Some(writer) = &mut self.open {
                writer.end_row_group()?;
            }
            (self.group_rows, self.group_bytes) = (0, 0);
        }
        self.rows.push(row, bytes, &self.columns.targets);
        self.file_rows += 1;
        self.file_bytes += bytes;
        self.group_rows += 1;
        self.group_bytes += bytes;
        if self.rows.n >= BATCH_ROWS || self.rows.bytes >= BATCH_BYTES { self.write_batch() } else { Ok(()) }
    }

    /// Ends the last file and gives the names of all with their rows. A selection of nothing is one file without rows.
    pub fn finish(mut self) -> Result<Vec<(String, u64)>, ParquetError> {
        if self.file_rows > 0 || self.written.is_empty() {
            self.end_file()?;
        }
        Ok(self.written)
    }

    fn name(&self) -> String {
        format!("selected-{:05}.parquet", self.written.len())
    }

    fn write_batch(&mut self) -> Result<(), ParquetError> {
        let mut writer = match self.open.take() {
            Some(writer) => writer,
            None => {
                let file = BufWriter::with_capacity(256 << 10, File::create(self.folder.join(self.name()))?);
                RowGroupWriter::new(file, self.schema.clone(), properties(&SETTINGS), self.ahead)?
            }
        };
        if self.rows.n > 0 {
            writer.write(self.rows.take(&self.schema)?)?;
        }
        self.open = Some(writer);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), ParquetError> {
        self.write_batch()?;
        if let Some(writer) = self.open.take() {
            writer.finish(self.metadata.clone(), |file| file.get_ref().sync_all())??;
        }
        self.written.push((self.name(), self.file_rows as u64));
        (self.file_rows, self.file_bytes, self.group_rows, self.group_bytes) = (0, 0, 0, 0);
        Ok(())
    }
}

fn schema(columns: &SelectionColumns) -> SchemaRef {
    let SelectionColumns { targets, has_losses, tokenizer } = columns;
    let mut fields = vec![
        Field::new("text", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, true),
        Field::new("n_tokens", DataType::UInt32, false),
        Field::new("log_importance_weight", DataType::Float64, false),
    ];
    if !targets.is_empty() {
        fields.push(Field::new("target", DataType::Utf8, false));
    }
    for name in targets {
        fields.push(Field::new(weight_column(name), DataType::Float64, false));
    }
    fields.extend(
        ["selection_key", "inclusion_probability", "sample_weight"].map(|n| Field::new(n, DataType::Float64, false)),
    );
    fields.push(Field::new("metadata", DataType::Utf8, true));
    if *has_losses {
        fields.extend(["loss", "loss_weight"].map(|name| Field::new(name, DataType::Float64, true)));
    }
    fields.extend(tokenizer.iter().map(|column| Field::new(column, DataType::UInt32, true)));
    Arc::new(Schema::new(fields))
}

impl Rows {
    fn push(&mut self, row: &SelectedRow, bytes: usize, targets: &[String]) {
        self.n += 1;
        self.bytes += bytes;
        self.text.append_value(&row.text);
        self.id.append_value(&row.id);
        self.source.append_option(row.source.as_deref());
        self.n_tokens.append_value(row.n_tokens);
        self.log_importance_weight.append_value(row.log_importance_weights[row.target]);
        if let Some(name) = targets.get(row.target) {
            self.target.append_value(name);
        }
        self.by_target.iter_mut().zip(&row.log_importance_weights).for_each(|(column, w)| column.append_value(*w));
        self.selection_key.append_value(row.selection_key);
        self.inclusion_probability.append_value(row.inclusion_probability);
        self.sample_weight.append_value(row.sample_weight);
        self.metadata.append_option(row.metadata.as_deref());
        if let Some((loss, loss_weight)) = &mut self.loss {
            loss.append_option(row.loss);
            loss_weight.append_option(row.loss_weight);
        }
        if let Some(counted_tokens) = &mut self.counted_tokens {
            counted_tokens.append_option(row.counted_tokens);
        }
    }

    fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, ParquetError> {
        (self.n, self.bytes) = (0, 0);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.text.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.source.finish()),
            Arc::new(self.n_tokens.finish()),
            Arc::new(self.log_importance_weight.finish()),
        ];
        if !self.by_target.is_empty() {
            columns.push(Arc::new(self.target.finish()));
        }
        columns.extend(self.by_target.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        columns.push(Arc::new(self.selection_key.finish()));
        columns.push(Arc::new(self.inclusion_probability.finish()));
        columns.push(Arc::new(self.sample_weight.finish()));
        columns.push(Arc::new(self.metadata.finish()));
        if let Some((loss, loss_weight)) = &mut self.loss {
            columns.extend([loss, loss_weight].map(|column| Arc::new(column.finish()) as ArrayRef));
        }
        columns.extend(self.counted_tokens.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}
