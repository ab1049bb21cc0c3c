//! Rows: those of Parquet files, by row groups, and of CSV; their named columns as documents, whole rows as JSON objects.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float64Type, Schema};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;

use super::csv::CsvColumns;
use super::objects::{Object, ObjectColumns};
use super::{Input, ReadSettings};
use crate::record::FieldNames;

/// Row groups up to this size, uncompressed, are decoded by the thread that takes them; larger ones batch by batch, before
/// they are handed out, so that no thread holds what is selected of a gigabyte.
const SMALL_ROW_GROUP_BYTES: u64 = 16 << 20;
/// Rows are decoded in batches of about so many bytes.
const BATCH_BYTES: u64 = 2 << 20;
const MAX_BATCH_ROWS: u64 = 1024;

/// Which columns are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Text, id, source and losses, and the extra fields of the settings.
    Named,
    All,
}

/// A Parquet file that is handed out piece by piece.
pub(super) struct ParquetFile {
    place: Place,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
    next_row_group: usize,
    next_row: u64,
    /// The row group that is decoded here, and the file's bytes for each of its rows.
    large: Option<(ParquetRecordBatchReader, f64)>,
}

/// Where it lies.
#[derive(Clone)]
pub(super) enum Place {
    Here(Arc<Input>),
    Stored(Object),
}

/// A piece of it, or of a CSV file.
pub(super) enum Rows {
    RowGroup {
        place: Place,
        metadata: ArrowReaderMetadata,
        projection: ProjectionMask,
        row_group: usize,
    },
    Batch(RecordBatch),
    /// In the buffer that was given to [`super::chunks::Chunks::next`].
    Csv(CsvColumns),
}

impl ParquetFile {
    pub fn open(input: &Input, settings: &ReadSettings, wanted: Wanted) -> Result<Self, String> {
        let (place, metadata) = match &input.object {
            Some(object) => {
                let file = ObjectColumns::new(object.clone(), []);
                (Place::Stored(object.clone()), ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()))
            }
            None => {
                let file = input.open_file()?;
                (Place::Here(Arc::new(input.clone())), ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()))
            }
        };
        let metadata = metadata.map_err(|e| e.to_string())?;
        let fields = &settings.decoder.fields;
        let schema = metadata.schema();
        let Ok(text) = schema.field_with_name(&fields.text) else {
            let names: Vec<_> = schema.fields().iter().map(|f| format!("`{}`", f.name())).collect();
            return Err(format!("no column `{}`; its columns are {}", fields.text, names.join(", ")));
        };
        if !is_text(text.data_type()) {
            return Err(format!("column `{}` is {}, expected strings", fields.text, text.data_type()));
        }
        check(schema.fields(), settings)?;
        let is_wanted = |&i: &usize| wanted == Wanted::All || settings.names_column(schema.field(i).name());
        let projection = ProjectionMask::roots(metadata.parquet_schema(), (0..schema.fields().len()).filter(is_wanted));
        Ok(ParquetFile { place, metadata, projection, next_row_group: 0, next_row: 0, large: None })
    }

    /// The number of rows before the next piece, the bytes of the file that it stands for, and the piece.
    pub fn next(&mut self) -> Result<Option<(u64, u64, Rows)>, String> {
        loop {
            let first_row = self.next_row;
            if let Some((reader, bytes_per_row)) = &mut self.large {
                match reader.next().transpose().map_err(|e| e.to_string())? {
                    Some(batch) => {
                        self.next_row += batch.num_rows() as u64;
                        let bytes = *bytes_per_row * batch.num_rows() as f64;
                        return Ok(Some((first_row, bytes as u64, Rows::Batch(batch))));
                    }
                    None => self.large = None,
                }
            }
            let groups = self.metadata.metadata().row_groups();
            let Some(group) = groups.get(self.next_row_group) else { return Ok(None) };
            let rows = group.num_rows().max(0) as u64;
            let file_bytes = group.compressed_size().max(0) as u64;
            let uncompressed = group.total_byte_size().max(0) as u64;
            let row_group = self.next_row_group;
            self.next_row_group += 1;
            if rows == 0 {
                continue;
            }
            let piece = Rows::RowGroup {
                place: self.place.clone(),
                metadata: self.metadata.clone(),
                projection: self.projection.clone(),
                row_group,
            };
            if uncompressed <= SMALL_ROW_GROUP_BYTES {
                self.next_row += rows;
                return Ok(Some((first_row, file_bytes, piece)));
            }
            self.large = Some((piece.reader()?, file_bytes as f64 / rows as f64));
        }
    }
}

impl Rows {
    /// `records`: those of CSV.
    pub fn n_rows(&self, records: &[u8]) -> usize {
        match self {
            Rows::Csv(columns) => columns.n_rows(records),
            Rows::Batch(batch) => batch.num_rows(),
            Rows::RowGroup { metadata, row_group, .. } => metadata.metadata().row_group(*row_group).num_rows() as usize,
        }
    }

    /// `records`: those of CSV, the number of the first of them.
    pub fn for_each_batch(
        &self,
        (records, first): (&[u8], u64),
        mut each: impl FnMut(&RecordBatch) -> Result<(), String>,
    ) -> Result<(), String> {
        match self {
            Rows::Batch(batch) => return each(batch),
            Rows::Csv(columns) => return columns.for_each_batch(records, first, each),
            Rows::RowGroup { .. } => {}
        }
        for batch in self.reader()? {
            each(&batch.map_err(|e| e.to_string())?)?;
        }
        Ok(())
    }

    fn reader(&self) -> Result<ParquetRecordBatchReader, String> {
        let Rows::RowGroup { place, metadata, projection, row_group } = self else {
            return Err("a batch has been read already".to_owned());
        };
        match place {
            // Handles of one open file share a position, so that every thread needs its own.
            Place::Here(input) => row_group_reader(input.open_file()?, metadata, projection, *row_group),
            Place::Stored(object) => {
                let columns = metadata.metadata().row_group(*row_group).columns().iter();
                let columns = columns.map(ColumnChunkMetaData::byte_range).map(|(from, len)| (from, from + len));
                let file = ObjectColumns::new(object.clone(), columns);
                row_group_reader(file, metadata, projection, *row_group)
            }
        }
    }
}

fn row_group_reader<F: ChunkReader + 'static>(
    file: F,
    metadata: &ArrowReaderMetadata,
    projection: &ProjectionMask,
    row_group: usize,
) -> Result<ParquetRecordBatchReader, String> {
    let group = metadata.metadata().row_group(row_group);
    let rows = group.num_rows().max(1) as u64;
    let batch_rows = (rows * BATCH_BYTES / group.total_byte_size().max(1) as u64).clamp(16, MAX_BATCH_ROWS);
    ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
        .with_row_groups(vec![row_group])
        .with_projection(projection.clone())
        .with_batch_size(batch_rows as usize)
        .build()
        .map_err(|e| e.to_string())
}

/// What would only be found when whole rows are read, after all documents were scored.
fn check(columns: &Fields, settings: &ReadSettings) -> Result<(), String> {
    for (i, column) in columns.iter().enumerate() {
        let name = column.name();
        if settings.names_column(name) && columns[..i].iter().any(|before| before.name() == name) {
            return Err(format!("two columns are called `{name}`: rename one of them, or leave it out"));
        }
        if json_field(column).is_none() {
            let data_type = column.data_type();
            let problem = "JSON has no such keys of maps; make them strings, or leave the column out";
            return Err(format!("column `{name}` is {data_type}: {problem}"));
        }
    }
    Ok(())
}

/// The column as JSON can hold it: with strings as keys of maps, wherever they stand in it. `None` if other keys are not
/// sure to become strings.
fn json_field(field: &FieldRef) -> Option<FieldRef> {
    if !field.data_type().is_nested() {
        return Some(field.clone());
    }
    let data_type = match field.data_type() {
        DataType::Map(entries, is_sorted) => {
            let DataType::Struct(of_entry) = entries.data_type() else { return None };
            let [key, value] = &of_entry[..] else { return None };
            let of_entry: Fields = vec![json_key(key)?, json_field(value)?].into();
            DataType::Map(of_type(entries, DataType::Struct(of_entry)), *is_sorted)
        }
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(json_field).collect::<Option<Fields>>()?),
        DataType::List(item) => DataType::List(json_field(item)?),
        DataType::LargeList(item) => DataType::LargeList(json_field(item)?),
        DataType::ListView(item) => DataType::ListView(json_field(item)?),
        DataType::LargeListView(item) => DataType::LargeListView(json_field(item)?),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(json_field(item)?, *length),
        other => other.clone(),
    };
    Some(of_type(field, data_type))
}

fn json_key(key: &FieldRef) -> Option<FieldRef> {
    match key.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(key.clone()),
        other if is_text(other) || other.is_integer() || other.is_floating() || other == &DataType::Boolean => {
            Some(of_type(key, DataType::Utf8))
        }
        _ => None,
    }
}

fn of_type(field: &FieldRef, data_type: DataType) -> FieldRef {
    Arc::new(Field::clone(field).with_data_type(data_type))
}

/// Rows as JSON can hold them, see [`json_field`].
fn json_rows(rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let fields: Option<Fields> = schema.fields().iter().map(json_field).collect();
    // What has none was refused when the file was opened.
    let Some(fields) = fields.filter(|fields| fields != schema.fields()) else { return Ok(rows) };
    let columns = rows.columns().iter().zip(&fields);
    let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()));
    let columns = columns.collect::<Result<Vec<ArrayRef>, ArrowError>>()?;
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

pub(super) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// The named columns of a batch.
pub(super) struct Columns {
    text: ArrayRef,
    id: Option<StringArray>,
    source: Option<StringArray>,
    loss: Option<Float64Array>,
    /// Where a reference is named: its column, if there is one.
    reference_loss: Option<Option<Float64Array>>,
}

impl Columns {
    pub fn of(batch: &RecordBatch, fields: &FieldNames) -> Result<Self, String> {
        let mut text = batch.column_by_name(&fields.text).ok_or("the text column is gone")?.clone();
        if matches!(text.data_type(), DataType::Dictionary(..)) {
            text = arrow::compute::cast(&text, &DataType::Utf8).map_err(|e| e.to_string())?;
        }
        let strings = |name: &Option<String>| -> Result<Option<StringArray>, String> {
            let Some((name, column)) = name.as_deref().and_then(|n| Some((n, batch.column_by_name(n)?))) else {
                return Ok(None);
            };
            let is_scalar = column.data_type().is_integer() || is_text(column.data_type());
            if !is_scalar && column.data_type() != &DataType::Null {
                return Err(format!("column `{name}` is {}, expected strings or integers", column.data_type()));
            }
            let column = arrow::compute::cast(column, &DataType::Utf8).map_err(|e| e.to_string())?;
            Ok(Some(column.as_string::<i32>().clone()))
        };
        let numbers = |name: &String| -> Result<Option<Float64Array>, String> {
            let Some(column) = batch.column_by_name(name) else { return Ok(None) };
            if !column.data_type().is_numeric() && column.data_type() != &DataType::Null {
                return Err(format!("column `{name}` is {}, expected numbers", column.data_type()));
            }
            let column = arrow::compute::cast(column, &DataType::Float64).map_err(|e| e.to_string())?;
            Ok(Some(column.as_primitive::<Float64Type>().clone()))
        };
        Ok(Columns {
            text,
            id: strings(&fields.id)?,
            source: strings(&fields.source)?,
            loss: fields.loss.as_ref().map(numbers).transpose()?.flatten(),
            reference_loss: fields.reference_loss.as_ref().map(numbers).transpose()?,
        })
    }

    /// `None`: it is null.
    pub fn text(&self, row: usize) -> Option<&str> {
        if self.text.is_null(row) {
            return None;
        }
        Some(match self.text.data_type() {
            DataType::LargeUtf8 => self.text.as_string::<i64>().value(row),
            DataType::Utf8View => self.text.as_string_view().value(row),
            _ => self.text.as_string::<i32>().value(row),
        })
    }

    pub fn id(&self, row: usize) -> Option<&str> {
        self.id.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row))
    }

    /// What is not finite counts as absent: columns know no other way to say so.
    pub fn loss(&self, row: usize) -> Option<f64> {
        let value = |column: &Float64Array| column.is_valid(row).then(|| column.value(row));
        let loss = value(self.loss.as_ref()?)?;
        let loss = match &self.reference_loss {
            None => loss,
            Some(reference) => loss - value(reference.as_ref()?)?,
        };
        loss.is_finite().then_some(loss)
    }

    pub fn source(&self, row: usize) -> Option<&str> {
        self.source.as_ref().filter(|c| c.is_valid(row)).map(|c| c.value(row))
    }
}

/// Calls `each` with the chosen rows as JSON objects; null values are left out, and keys of maps are strings.
pub(super) fn objects(
    batch: &RecordBatch,
    chosen: &[u32],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    if chosen.is_empty() {
        return Ok(());
    }
    let rows =
        arrow::compute::take_record_batch(batch, &UInt32Array::from(chosen.to_vec())).map_err(|e| e.to_string())?;
    let rows = json_rows(rows).map_err(|e| e.to_string())?;
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&rows).and_then(|()| writer.finish()).map_err(|e| e.to_string())?;
    let json = writer.into_inner();
    for (&row, object) in chosen.iter().zip(json.split(|&byte| byte == b'\n')) {
        each(row, object)?;
    }
    Ok(())
}
