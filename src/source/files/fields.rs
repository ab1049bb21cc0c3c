//! Numbers, a vector and a word that come with the documents: losses, scores, an embedding, a language.

use std::borrow::Cow;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::record_batch::RecordBatch;

use super::columns::is_text;
use crate::record::{
    Base64Floats, DocumentRef, EmbeddingField, FieldNames, embedding, embedding_of_base64, is_embedding,
};

/// Names of fields or columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtraFields {
    pub numbers: Vec<String>,
    pub vector: Option<EmbeddingField>,
    pub word: Option<String>,
}

impl ExtraFields {
    pub(super) fn has(&self, name: &str) -> bool {
        let vector = self.vector.as_ref().map(|vector| &vector.field);
        self.numbers.iter().chain(vector).chain(&self.word).any(|field| field == name)
    }
}

/// Their values in one document.
#[derive(Debug, Default)]
pub(super) struct Extra {
    /// NaN where there is none.
    pub numbers: Vec<f64>,
    /// Empty where there is none.
    pub vector: Vec<f32>,
    pub word: Option<String>,
}

impl Extra {
    /// Of a JSON object: other values than numbers count as none. A field that stands twice counts as it stands last.
    pub fn read_document(&mut self, wanted: &ExtraFields, names: &FieldNames, document: &DocumentRef<'_>) {
        let members = || document.members.iter().rev();
        let value = |name: &str| members().find(|(member, _)| member == name).map(|(_, value)| *value);
        let number = |name: &String| {
            // Losses are no members: the decoder has taken them.
            let given = match Some(name) {
                name if name == names.loss.as_ref() => document.given_losses[0],
                name if name == names.reference_loss.as_ref() => document.given_losses[1],
                _ => value(name).and_then(|json| serde_json::from_str(json).ok()),
            };
            given.unwrap_or(f64::NAN)
        };
        self.numbers.clear();
        self.numbers.extend(wanted.numbers.iter().map(number));
        let vector =
            wanted.vector.as_ref().and_then(|EmbeddingField { field, base64 }| embedding(value(field)?, *base64));
        self.vector = vector.unwrap_or_default();
        self.word = wanted.word.as_deref().and_then(|field| document.word(field)).map(Cow::into_owned);
    }
}

/// The columns of a batch. A column that is not there holds nothing.
pub(super) struct ExtraColumns {
    numbers: Vec<Option<ArrayRef>>,
    vector: Option<(ArrayRef, Base64Floats)>,
    word: Option<ArrayRef>,
}

impl ExtraColumns {
    pub fn of(batch: &RecordBatch, wanted: &ExtraFields) -> Result<Self, String> {
        let cast = |name: &str, to: &DataType, expected: &str, is: fn(&DataType) -> bool| {
            let Some(column) = batch.column_by_name(name) else { return Ok(None) };
            if !is(column.data_type()) && column.data_type() != &DataType::Null {
                return Err(format!("column `{name}` is {}, expected {expected}", column.data_type()));
            }
            arrow::compute::cast(column, to).map(Some).map_err(|e| format!("column `{name}`: {e}"))
        };
        let number = |name: &String| cast(name, &DataType::Float64, "numbers", DataType::is_numeric);
        let numbers = wanted.numbers.iter().map(number).collect::<Result<_, _>>()?;
        let vectors = DataType::new_large_list(DataType::Float32, true);
        let vector = |EmbeddingField { field, base64 }: &EmbeddingField| {
            let holds_text = batch.column_by_name(field).is_some_and(|column| is_text(column.data_type()));
            let to = if holds_text { &DataType::Utf8 } else { &vectors };
            let column = cast(field, to, "lists of numbers or strings", |found| is_text(found) || is_vector(found))?;
            Ok::<_, String>(column.map(|column| (column, *base64)))
        };
        let word =
            wanted.word.as_ref().map(|name| cast(name, &DataType::Utf8, "strings, numbers or booleans", is_word));
        Ok(ExtraColumns {
            numbers,
            vector: wanted.vector.as_ref().map(vector).transpose()?.flatten(),
            word: word.transpose()?.flatten(),
        })
    }

    pub fn read(&self, row: usize, extra: &mut Extra) {
        let number = |column: &Option<ArrayRef>| match column {
            Some(column) if column.is_valid(row) => column.as_primitive::<Float64Type>().value(row),
            _ => f64::NAN,
        };
        extra.numbers.clear();
        extra.numbers.extend(self.numbers.iter().map(number));
        let word = self.word.as_ref().filter(|column| column.is_valid(row));
        extra.word = word.map(|column| column.as_string::<i32>().value(row).to_owned());
        extra.vector.clear();
        let Some((column, base64)) = self.vector.as_ref().filter(|(column, _)| column.is_valid(row)) else { return };
        if let Some(texts) = column.as_string_opt::<i32>() {
            // CSV has no lists, but texts that are.
            let text = texts.value(row).trim();
            let vector =
                if text.starts_with('[') { embedding(text, *base64) } else { embedding_of_base64(text, *base64) };
            extra.vector = vector.unwrap_or_default();
            return;
        }
        let vector = column.as_list::<i64>().value(row);
        // A part of it that is null is none that can be used, and neither is the vector then.
        let numbers = vector.as_primitive::<Float32Type>().values();
        if vector.null_count() == 0 && is_embedding(numbers) {
            extra.vector.extend_from_slice(numbers);
        }
    }
}

fn is_word(data_type: &DataType) -> bool {
    is_text(data_type) || data_type.is_numeric() || data_type == &DataType::Boolean
}

fn is_vector(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            item.data_type().is_numeric()
        }
        _ => false,
    }
}
