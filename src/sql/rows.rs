//! Documents as columns: those of every document, and fields of the record by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use serde_json::Value;

use crate::record::{DocumentRef, Reject, RejectReason};
use crate::select::FieldType;

/// What the columns of every document are called.
const OF_DOCUMENTS: [(&str, Column); 6] = [
    ("id", Column::Id),
    ("text", Column::Text),
    ("source", Column::Source),
    ("timestamp", Column::Timestamp),
    ("n_bytes", Column::Bytes),
    ("loss", Column::Loss),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Id,
    Text,
    Source,
    Timestamp,
    Bytes,
    Loss,
    Field(FieldType),
}

/// Columns by name.
#[derive(Debug)]
pub(super) struct Columns(Vec<(String, Column)>);

/// A field of a record that is there and not null.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FieldValue {
    String(String),
    Integer(i64),
    Double(f64),
    Boolean(bool),
}

/// A document with its fields, in the order of the columns that are fields.
pub(super) type Row<'a, 'd> = (&'a DocumentRef<'d>, Vec<Option<FieldValue>>);

impl Columns {
    pub fn all(fields: &BTreeMap<String, FieldType>) -> Self {
        let of_documents = OF_DOCUMENTS.iter().map(|(name, column)| ((*name).to_owned(), *column));
        let of_records = fields.iter().filter(|(name, _)| OF_DOCUMENTS.iter().all(|(known, _)| known != name));
        Columns(of_documents.chain(of_records.map(|(name, of)| (name.clone(), Column::Field(*of)))).collect())
    }

    pub fn only(mut self, is_named: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|(name, _)| is_named(name));
        self
    }

    pub fn schema(&self) -> SchemaRef {
        let field = |(name, column): &(String, Column)| Field::new(name, column.data_type(), column.is_nullable());
        Arc::new(Schema::new(self.0.iter().map(field).collect::<Vec<_>>()))
    }

    /// The fields of a document, or what is wrong with one.
    pub fn values(&self, document: &DocumentRef<'_>) -> Result<Vec<Option<FieldValue>>, Reject> {
        let fields = self.0.iter().filter_map(|(name, column)| match column {
            Column::Field(of) => Some((name, *of)),
            _ => None,
        });
        fields.map(|(name, of)| value(document, name, of)).collect()
    }

    /// The same, but that a field that is of another type, or stands there twice, is null; and the names of those.
    pub fn values_or_null(&self, document: &DocumentRef<'_>) -> (Vec<Option<FieldValue>>, Vec<&str>) {
        let (mut values, mut of_other_type) = (Vec::new(), Vec::new());
        for (name, column) in &self.0 {
            if let Column::Field(of) = column {
                values.push(value(document, name, *of).unwrap_or_else(|_| {
                    of_other_type.push(name.as_str());
                    None
                }));
            }
        }
        (values, of_other_type)
    }

    /// Whether any are fields of the record.
    pub fn has_fields(&self) -> bool {
        self.0.iter().any(|(_, column)| matches!(column, Column::Field(_)))
    }

    /// All rows. An expression may name no column at all.
    pub fn batch(&self, schema: &SchemaRef, rows: &[Row<'_, '_>]) -> RecordBatch {
        let mut n_fields = 0;
        let array = |(_, column): &(String, Column)| {
            let array = column.array(rows, n_fields);
            n_fields += usize::from(matches!(column, Column::Field(_)));
            array
        };
        let arrays = self.0.iter().map(array).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(schema.clone(), arrays, &options).expect("the arrays follow the schema")
    }
}

impl Column {
    fn data_type(self) -> DataType {
        match self {
            Column::Id | Column::Text | Column::Source | Column::Field(FieldType::String) => DataType::Utf8,
            Column::Timestamp => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            Column::Bytes | Column::Field(FieldType::Integer) => DataType::Int64,
            Column::Loss | Column::Field(FieldType::Double) => DataType::Float64,
            Column::Field(FieldType::Boolean) => DataType::Boolean,
        }
    }

    fn is_nullable(self) -> bool {
        !matches!(self, Column::Id | Column::Text | Column::Bytes)
    }

    /// `number`: of a field, among the fields.
    fn array(self, rows: &[Row<'_, '_>], number: usize) -> ArrayRef {
        let documents = rows.iter().map(|(document, _)| *document);
        let fields = rows.iter().map(|(_, fields)| fields.get(number).and_then(Option::as_ref));
        match self {
            Column::Id => Arc::new(StringArray::from_iter_values(documents.map(DocumentRef::id))),
            Column::Text => Arc::new(StringArray::from_iter_values(documents.map(|d| &*d.text))),
            Column::Source => Arc::new(documents.map(|d| d.source.as_deref()).collect::<StringArray>()),
            Column::Timestamp => {
                let times: TimestampMillisecondArray = documents.map(|d| d.timestamp_ms).collect();
                Arc::new(times.with_timezone("UTC"))
            }
            Column::Bytes => Arc::new(Int64Array::from_iter_values(documents.map(|d| d.text.len() as i64))),
            Column::Loss => Arc::new(documents.map(|d| d.loss).collect::<Float64Array>()),
            Column::Field(FieldType::String) => Arc::new(
                fields
                    .map(|v| if let Some(FieldValue::String(s)) = v { Some(s.as_str()) } else { None })
                    .collect::<StringArray>(),
            ),
            Column::Field(FieldType::Integer) => Arc::new(
                fields
                    .map(|v| if let Some(FieldValue::Integer(n)) = v { Some(*n) } else { None })
                    .collect::<Int64Array>(),
            ),
            Column::Field(FieldType::Double) => Arc::new(
                fields
                    .map(|v| if let Some(FieldValue::Double(x)) = v { Some(*x) } else { None })
                    .collect::<Float64Array>(),
            ),
            Column::Field(FieldType::Boolean) => Arc::new(
                fields
                    .map(|v| if let Some(FieldValue::Boolean(b)) = v { Some(*b) } else { None })
                    .collect::<BooleanArray>(),
            ),
        }
    }
}

/// `None`: it is not there, or null.
fn value(document: &DocumentRef<'_>, name: &str, of: FieldType) -> Result<Option<FieldValue>, Reject> {
    let mut found = document.members.iter().filter(|(member, _)| member == name).map(|(_, raw)| *raw);
    let Some(raw) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(Reject::new(RejectReason::DuplicateField, format!("field `{name}` stands there twice")));
    }
    let parsed = serde_json::from_str::<Value>(raw).ok();
    let value = match (of, &parsed) {
        (_, Some(Value::Null)) => return Ok(None),
        (FieldType::String, Some(Value::String(s))) => Some(FieldValue::String(s.clone())),
        (FieldType::Integer, Some(Value::Number(n))) => n.as_i64().map(FieldValue::Integer),
        (FieldType::Double, Some(Value::Number(n))) => n.as_f64().map(FieldValue::Double),
        (FieldType::Boolean, Some(Value::Bool(b))) => Some(FieldValue::Boolean(*b)),
        _ => None,
    };
    value.map(Some).ok_or_else(|| {
        let shown: String = raw.chars().take(40).collect();
        let detail = format!("field `{name}` is `{shown}`, documents.filter_fields says {}", of.as_str());
        Reject::new(RejectReason::FilterFailed, detail)
    })
}
