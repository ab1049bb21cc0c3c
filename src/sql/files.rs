//! Files as a table: JSONL, CSV, Parquet, here or in an object store.

use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::new_null_array;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use url::Url;

use super::SqlError;
use crate::source::files::{Compression, Format, Input, expand};
use crate::store::StoreOptions;

/// Rows of a file that types are told by.
const ROWS_FOR_TYPES: usize = 1000;
/// Batches that a file is read ahead.
const BATCHES_AHEAD: usize = 2;

/// Files of one kind, told by the end of their names; what has no known end is JSONL.
pub struct FileTable {
    format: Format,
    files: Vec<Input>,
}

impl FileTable {
    /// `paths` as everywhere where files are named; `options` are those of stores.
    pub fn of(paths: &[PathBuf], options: &StoreOptions) -> Result<Self, SqlError> {
        let files = expand(paths, options).map_err(|error| match error.is_of_store() {
            true => SqlError::Store(error.to_string()),
            false => SqlError::Question(error.to_string()),
        })?;
        let first = files.first().ok_or_else(|| SqlError::Question("no files".to_owned()))?;
        if let Some(other) = files.iter().find(|other| other.format != first.format) {
            return Err(SqlError::Question(format!(
                "`{}` and `{}` are of two kinds: a table has one",
                first.path.display(),
                other.path.display()
            )));
        }
        Ok(FileTable { format: first.format, files })
    }

    pub(super) async fn register(self, name: &str, context: &SessionContext) -> Result<(), SqlError> {
        // DataFusion cuts CSV at line breaks, and texts have some.
        let is_one_stream =
            |file: &Input| file.compression != Compression::None || file.format == Format::Csv || has_mark(file);
        let is_unpacked = self.files.iter().any(is_one_stream);
        let table = if is_unpacked { self.unpacked().await? } else { self.listed(context).await? };
        context.register_table(name, table)?;
        Ok(())
    }

    /// Files that can be read at any place, and Parquet files by the conditions of a question.
    async fn listed(&self, context: &SessionContext) -> Result<Arc<dyn TableProvider>, SqlError> {
        let format: Arc<dyn FileFormat> = match self.format {
            Format::Parquet => Arc::new(ParquetFormat::default()),
            Format::Jsonl | Format::Csv => Arc::new(JsonFormat::default()),
        };
        for object in self.files.iter().filter_map(|file| file.object.as_ref()) {
            context.register_object_store(&object.bucket.url, object.bucket.store.clone());
        }
        let urls = self.files.iter().map(url).collect::<Result<_, _>>()?;
        let options = ListingOptions::new(format).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        let config = config.infer_schema(&context.state()).await?;
        Ok(Arc::new(ListingTable::try_new(config)?))
    }

    /// Files that are read from their beginnings, each by one thread.
    async fn unpacked(self) -> Result<Arc<dyn TableProvider>, SqlError> {
        let FileTable { format, files } = self;
        let schema = move || {
            let schemas = files.iter().map(|file| {
                let problem = |problem: String| SqlError::Row(format!("`{}`: {problem}", file.path.display()));
                infer(file, format).map_err(|e| problem(e.to_string()))
            });
            let merged = Schema::try_merge(schemas.collect::<Result<Vec<_>, _>>()?);
            merged.map(|schema| (schema, files)).map_err(|e| SqlError::Question(e.to_string()))
        };
        let (schema, files) =
            tokio::task::spawn_blocking(schema).await.map_err(|e| SqlError::Internal(e.to_string()))??;
        let schema = Arc::new(schema);
        let stream =
            |input| -> Arc<dyn PartitionStream> { Arc::new(Unpacked { schema: schema.clone(), format, input }) };
        let streams = files.into_iter().map(stream).collect();
        Ok(Arc::new(StreamingTable::try_new(schema.clone(), streams)?))
    }
}

fn url(file: &Input) -> Result<ListingTableUrl, SqlError> {
    let no_path = || SqlError::Question(format!("`{}` is no path", file.path.display()));
    // Not as a path, in which `*` would stand for anything.
    let url = match &file.object {
        Some(object) => {
            let mut url = object.bucket.url.clone();
            url.path_segments_mut().map_err(|()| no_path())?.clear().extend(object.key.as_ref().split('/'));
            url
        }
        None => {
            let path = std::path::absolute(&file.path);
            let path = path.map_err(|e| SqlError::Store(format!("`{}`: {e}", file.path.display())))?;
            Url::from_file_path(&path).map_err(|()| no_path())?
        }
    };
    Ok(ListingTableUrl::try_new(url, None)?)
}

/// What its first rows hold.
fn infer(file: &Input, format: Format) -> Result<Schema, ArrowError> {
    let reader = open(file)?;
    let (schema, _) = match format {
        Format::Csv => csv_format().infer_schema(reader, Some(ROWS_FOR_TYPES))?,
        Format::Jsonl | Format::Parquet => {
            arrow::json::reader::infer_json_schema(BufReader::new(reader), Some(ROWS_FOR_TYPES))?
        }
    };
    Ok(schema)
}

/// What some programs begin text with, to say that it is Unicode.
const MARK: &[u8] = b"\xEF\xBB\xBF";

/// Whether DataFusion would stumble over it. Objects are not asked: each would be a request of its own.
fn has_mark(file: &Input) -> bool {
    let begins_with_it = || {
        let mut first = [0; MARK.len()];
        std::fs::File::open(&file.path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == MARK
    };
    file.format == Format::Jsonl && file.is_regular && file.object.is_none() && begins_with_it()
}

/// Without what marks it as Unicode.
fn open(file: &Input) -> Result<Box<dyn Read + Send>, ArrowError> {
    let mut reader = file.open().map_err(|e| ArrowError::ExternalError(Box::new(e)))?;
    let mut first = Vec::new();
    reader.by_ref().take(MARK.len() as u64).read_to_end(&mut first)?;
    let first = if first == MARK { Vec::new() } else { first };
    Ok(Box::new(Cursor::new(first).chain(reader)))
}

/// The columns of a CSV file in its own order, of the types of the table.
fn csv_schema(file: &Input, table: &Schema) -> Result<SchemaRef, ArrowError> {
    let (found, _) = csv_format().infer_schema(open(file)?, Some(0))?;
    let fields = found.fields().iter().map(|field| table.field_with_name(field.name()).cloned());
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<_>, _>>()?)))
}

/// The columns of a table; those that the file lacks are null.
fn as_table(batch: &RecordBatch, table: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &Arc<Field>| match batch.column_by_name(field.name()) {
        Some(column) => column.clone(),
        None => new_null_array(field.data_type(), batch.num_rows()),
    };
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(table.clone(), table.fields().iter().map(column).collect(), &options)
}

fn csv_format() -> arrow::csv::reader::Format {
    arrow::csv::reader::Format::default().with_header(true)
}

/// A file whose rows are those of a table.
#[derive(Debug)]
struct Unpacked {
    schema: SchemaRef,
    format: Format,
    input: Input,
}

impl PartitionStream for Unpacked {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, format, input) = (self.schema.clone(), self.format, self.input.clone());
        let batch_rows = context.session_config().batch_size();
        let mut stream = RecordBatchReceiverStream::builder(schema.clone(), BATCHES_AHEAD);
        let batches = stream.tx();
        stream.spawn_blocking(move || {
            let deliver = |batch| batches.blocking_send(Ok(batch)).is_ok();
            read(&input, format, &schema, batch_rows, deliver).map_err(|e| failed(&input.path, &e))
        });
        stream.build()
    }
}

/// Until `deliver` wants no more.
fn read(
    input: &Input,
    format: Format,
    schema: &SchemaRef,
    batch_rows: usize,
    mut deliver: impl FnMut(RecordBatch) -> bool,
) -> Result<(), ArrowError> {
    let mut all = |batches: &mut dyn Iterator<Item = Result<RecordBatch, ArrowError>>| {
        for batch in batches {
            if !deliver(batch?) {
                break;
            }
        }
        Ok(())
    };
    match format {
        Format::Csv => {
            let csv = arrow::csv::ReaderBuilder::new(csv_schema(input, schema)?).with_format(csv_format());
            let batches = csv.with_batch_size(batch_rows).build(open(input)?)?;
            all(&mut batches.map(|batch| as_table(&batch?, schema)))
        }
        Format::Jsonl | Format::Parquet => {
            let json = arrow::json::ReaderBuilder::new(schema.clone()).with_batch_size(batch_rows);
            all(&mut json.build(BufReader::new(open(input)?))?)
        }
    }
}

fn failed(path: &Path, error: &ArrowError) -> DataFusionError {
    DataFusionError::Execution(format!("`{}`: {error}", path.display()))
}
