//! CSV with a heading: where records end, whatever stands in quotes, and records as rows.
//!
//! Values are strings. Only of columns that hold losses and other numbers, or whose types were named, is more expected.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, new_null_array};
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::ReadSettings;
use super::columns::Wanted;
use crate::select::FieldType;

/// Rows that are made at a time.
const BATCH_ROWS: usize = 1024;

/// Follows bytes through quotes to the ends of records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RecordEnds {
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Before a record; empty lines count for nothing.
    #[default]
    Record,
    Field,
    Unquoted,
    Quoted,
    /// After a quote within quotes: the end of them, or the first of two that stand for one.
    Quote,
}

impl RecordEnds {
    /// Goes over `bytes`, and says where each record ends in them: behind its line break.
    pub fn follow(&mut self, bytes: &[u8], mut end: impl FnMut(usize)) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let skipped = match self.state {
                State::Quoted => memchr::memchr(b'"', rest),
                State::Unquoted => memchr::memchr3(b',', b'\n', b'\r', rest),
                State::Record | State::Field | State::Quote => Some(0),
            };
            let Some(skipped) = skipped else { return };
            at += skipped + 1;
            self.state = match (self.state, rest[skipped]) {
                (State::Record, b'\n' | b'\r') => State::Record,
                (State::Field | State::Unquoted | State::Quote, b'\n' | b'\r') => {
                    end(at);
                    State::Record
                }
                (State::Record | State::Field, b'"') | (State::Quote, b'"') => State::Quoted,
                (State::Quoted, _) => State::Quote,
                (_, b',') => State::Field,
                _ => State::Unquoted,
            };
        }
    }

    /// Whether a record has begun that has not ended.
    pub fn is_within(self) -> bool {
        self.state != State::Record
    }
}

/// What the columns of a file hold.
#[derive(Debug, Clone)]
pub(super) struct CsvColumns {
    schema: SchemaRef,
    /// Those that are read.
    projection: Vec<usize>,
    text: usize,
    skips_bad: bool,
}

impl CsvColumns {
    /// From the first record of a file.
    pub fn of_heading(heading: &[u8], settings: &ReadSettings, wanted: Wanted) -> Result<Self, String> {
        let (found, _) = Format::default().with_header(true).infer_schema(heading, Some(0)).map_err(|e| message(&e))?;
        let names: Vec<&str> = found.fields().iter().map(|field| field.name().as_str()).collect();
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(format!("two columns are called `{}`", twice.1));
        }
        let fields = &settings.decoder.fields;
        let Some(text) = names.iter().position(|name| *name == fields.text) else {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            return Err(format!("no column `{}`; its columns are {}", fields.text, names.join(", ")));
        };
        let is_named = |name: &&str| settings.names_column(name);
        let projection = (0..names.len()).filter(|i| wanted == Wanted::All || is_named(&names[*i])).collect();
        let types = names.iter().map(|name| Field::new(*name, data_type(name, settings), true));
        let schema = Arc::new(Schema::new(types.collect::<Vec<_>>()));
        Ok(CsvColumns { schema, projection, text, skips_bad: settings.skip_bad_lines })
    }

    /// Whole records as rows. One that cannot be read is an error with its number, counted from `first`; or a row of nulls where bad
    /// lines are passed over.
    pub fn for_each_batch(
        &self,
        records: &[u8],
        first: u64,
        mut each: impl FnMut(&RecordBatch) -> Result<(), String>,
    ) -> Result<(), String> {
        // All are looked at before any is handed out, so that none is handed out twice.
        match self.batches(records) {
            Ok(batches) => batches.iter().try_for_each(each),
            Err(_) => {
                for (number, record) in (first..).zip(each_record(records)) {
                    match self.batches(record) {
                        Ok(batches) => batches.iter().try_for_each(&mut each)?,
                        Err(_) if self.skips_bad => each(&self.nulls())?,
                        // Alone it is the first of its line.
                        Err(problem) => return Err(format!("record {number}: {problem}")),
                    }
                }
                Ok(())
            }
        }
    }

    pub fn n_rows(&self, records: &[u8]) -> usize {
        each_record(records).count()
    }

    fn batches(&self, records: &[u8]) -> Result<Vec<RecordBatch>, String> {
        let reader = arrow::csv::ReaderBuilder::new(self.schema.clone())
            .with_batch_size(BATCH_ROWS)
            .with_projection(self.projection.clone())
            .build_buffered(records)
            .map_err(|e| message(&e))?;
        reader.map(|batch| batch.map_err(|e| message(&e)).and_then(|batch| self.with_texts(&batch))).collect()
    }

    /// Empty texts are texts: CSV cannot tell them from missing ones.
    fn with_texts(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let Some(text) = self.projection.iter().position(|column| *column == self.text) else {
            return Ok(batch.clone());
        };
        let mut columns = batch.columns().to_vec();
        if columns[text].null_count() > 0 {
            let texts = columns[text].as_string::<i32>().iter().map(|text| Some(text.unwrap_or_default()));
            columns[text] = Arc::new(texts.collect::<StringArray>());
        }
        RecordBatch::try_new(batch.schema(), columns).map_err(|e| message(&e))
    }

    fn nulls(&self) -> RecordBatch {
        let schema = Arc::new(self.schema.project(&self.projection).expect("columns of the schema"));
        let columns =
            schema.fields().iter().map(|field| new_null_array(field.data_type(), 1)).collect::<Vec<ArrayRef>>();
        RecordBatch::try_new(schema, columns).expect("nulls of the types of the schema")
    }
}

fn data_type(name: &str, settings: &ReadSettings) -> DataType {
    let fields = &settings.decoder.fields;
    let is_loss = [&fields.loss, &fields.reference_loss].into_iter().flatten().any(|loss| loss == name);
    if is_loss || settings.extra.numbers.iter().any(|number| number == name) {
        return DataType::Float64;
    }
    match settings.types.get(name) {
        Some(FieldType::Integer) => DataType::Int64,
        Some(FieldType::Double) => DataType::Float64,
        Some(FieldType::Boolean) => DataType::Boolean,
        Some(FieldType::String) | None => DataType::Utf8,
    }
}

fn each_record(records: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut ends = RecordEnds::default();
    let mut places = Vec::new();
    ends.follow(records, |end| places.push(end));
    if ends.is_within() {
        places.push(records.len());
    }
    let mut start = 0;
    places.into_iter().map(move |end| &records[std::mem::replace(&mut start, end)..end])
}

fn message(error: &ArrowError) -> String {
    match error {
        ArrowError::CsvError(said) | ArrowError::ParseError(said) => said.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::Decoder;

    fn columns(heading: &str) -> CsvColumns {
        CsvColumns::of_heading(heading.as_bytes(), &ReadSettings::new(Decoder::for_files()), Wanted::All).unwrap()
    }

    fn rows(columns: &CsvColumns, records: &[u8]) -> Vec<Vec<Option<String>>> {
        let mut rows = Vec::new();
        let read = |batch: &RecordBatch| {
            let value = |column: &ArrayRef, row| {
                let column = column.as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_owned())
            };
            rows.extend((0..batch.num_rows()).map(|row| batch.columns().iter().map(|c| value(c, row)).collect()));
            Ok(())
        };
        columns.for_each_batch(records, 1, read).unwrap();
        rows
    }

    proptest! {
        /// Wherever the bytes come in two, and whatever stands in quotes: the records are those that the reader of rows finds.
        #[test]
        fn records_end_where_the_reader_says(
            fields in prop::collection::vec(("[ab,\"\n\r]{0,6}", any::<bool>(), "\n|\r\n|\r|\n\n"), 1..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut csv = Vec::new();
            for (field, is_quoted, end) in &fields {
                let plain = field.replace([',', '"', '\n', '\r'], "");
                let field = if *is_quoted { format!("\"{}\"", field.replace('"', "\"\"")) } else { format!("x{plain}") };
                csv.extend_from_slice(format!("{field},{field}{end}").as_bytes());
            }
            let columns = columns("text,id\n");
            let (found, each): (Vec<_>, Vec<_>) = (rows(&columns, &csv), each_record(&csv).collect());
            prop_assert_eq!(found.len(), fields.len());
            prop_assert_eq!(each.len(), fields.len());
            let alone: Vec<_> = each.iter().flat_map(|record| rows(&columns, record)).collect();
            prop_assert_eq!(&alone, &found);
            let (first, second) = csv.split_at(cut.index(csv.len()));
            let (mut ends, mut places) = (RecordEnds::default(), Vec::new());
            ends.follow(first, |end| places.push(end));
            ends.follow(second, |end| places.push(first.len() + end));
            let mut whole = Vec::new();
            RecordEnds::default().follow(&csv, |end| whole.push(end));
            prop_assert_eq!(places, whole);
        }
    }

    #[test]
    fn a_bad_record_is_told_or_passed_over() {
        let mut columns = columns("text,id\n");
        let problem = columns.for_each_batch(b"a,1\nb\nc,3\n", 7, |_| Ok(())).unwrap_err();
        assert!(problem.starts_with("record 8: "), "{problem}");
        columns.skips_bad = true;
        let found = rows(&columns, b"a,1\nb\n,3\n");
        let text = |s: &str| Some(s.to_owned());
        assert_eq!(found, [vec![text("a"), text("1")], vec![None, None], vec![text(""), text("3")]]);
    }
}
