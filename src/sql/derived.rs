//! `documents.columns`: expressions that are compiled once and give selected documents further columns in their shard.
//!
//! In: selected documents. Out: for each column an array of the type that was found when it was compiled, whatever the documents
//! say. A document's value depends on nothing but the document; where an expression fails on one, or a field that it names is of
//! another type, the value is null, and counted.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, new_empty_array, new_null_array};
use arrow::compute::{cast, concat, nullif};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::physical_expr::PhysicalExpr;

use super::filter::{FilterError, MAX_FILTER_BYTES, context, df_schema, evaluable, refuse_what_changes, sql_error};
use super::rows::Columns;
use crate::manifest::DerivedSettings;
use crate::record::TopicPartition;
use crate::sink::is_shard_column;
use crate::window::SelectedDocument;

/// Of the name of a column.
const MAX_NAME_BYTES: usize = 128;

/// Compiled expressions, in the order of their names.
#[derive(Debug)]
pub struct DerivedColumns {
    settings: DerivedSettings,
    columns: Columns,
    schema: SchemaRef,
    expressions: Vec<Expression>,
}

#[derive(Debug)]
struct Expression {
    /// Name and type in the shard.
    field: Field,
    value: Arc<dyn PhysicalExpr>,
    /// The columns of `columns` that it names.
    named: BTreeSet<String>,
}

/// The columns of some documents.
#[derive(Debug)]
pub struct Derived {
    /// One for each column, as long as there are documents.
    pub arrays: Vec<ArrayRef>,
    /// For each column, how many values are null because there is none.
    pub failed: Vec<u64>,
}

impl DerivedColumns {
    /// Expressions may name what a filter may. What is wrong is told for every column, with its name and expression.
    pub fn compile(settings: &DerivedSettings) -> Result<Self, Vec<(String, FilterError)>> {
        let (mut expressions, mut wrong) = (Vec::new(), Vec::new());
        let columns = Columns::all(&settings.fields);
        for (name, sql) in &settings.columns {
            match compile(name, sql, &columns) {
                Ok(expression) => expressions.push(expression),
                Err(error) => wrong.push((name.clone(), error)),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        // Only what is named is made. All expressions see the same columns.
        let columns = columns.only(|name| expressions.iter().any(|expression| expression.named.contains(name)));
        let schema = columns.schema();
        for expression in &mut expressions {
            let sql = &settings.columns[expression.field.name()];
            match physical(sql, &schema) {
                Ok((value, _)) => expression.value = value,
                Err(error) => wrong.push((expression.field.name().clone(), error)),
            }
        }
        match wrong.is_empty() {
            true => Ok(DerivedColumns { settings: settings.clone(), columns, schema, expressions }),
            false => Err(wrong),
        }
    }

    /// What they were compiled from.
    pub fn settings(&self) -> &DerivedSettings {
        &self.settings
    }

    /// Names and types in a shard.
    pub fn fields(&self) -> Vec<Field> {
        self.expressions.iter().map(|expression| expression.field.clone()).collect()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.expressions.iter().map(|expression| expression.field.name().as_str())
    }

    /// The values of documents of a partition, in their order. Their texts are copied: some megabytes at a time.
    pub fn of(&self, documents: &[&SelectedDocument], at: &TopicPartition) -> Derived {
        let borrowed: Vec<_> = documents
            .iter()
            .map(|selected| {
                selected.document.borrowed(at, selected.offset, selected.score.loss, self.columns.has_fields())
            })
            .collect();
        let values: Vec<_> = borrowed.iter().map(|document| self.columns.values_or_null(document)).collect();
        let (values, of_other_type): (Vec<_>, Vec<Vec<&str>>) = values.into_iter().unzip();
        let rows: Vec<_> = borrowed.iter().zip(values).collect();
        let batch = self.columns.batch(&self.schema, &rows);
        let of = |expression: &Expression| {
            let is_bad = |names: &Vec<&str>| names.iter().any(|name| expression.named.contains(*name));
            let bad: Vec<bool> = of_other_type.iter().map(is_bad).collect();
            let (array, mut failed) = expression.values(&batch);
            if !bad.contains(&true) {
                return (array, failed.iter().filter(|failed| **failed).count() as u64);
            }
            failed.iter_mut().zip(&bad).for_each(|(failed, bad)| *failed |= bad);
            let n_failed = failed.iter().filter(|failed| **failed).count() as u64;
            let array = nullif(&array, &BooleanArray::from(bad)).expect("as many rows");
            (array, n_failed)
        };
        let (arrays, failed) = self.expressions.iter().map(of).unzip();
        Derived { arrays, failed }
    }
}

impl Expression {
    /// For each row its value, and whether there is none because it fails.
    fn values(&self, batch: &RecordBatch) -> (ArrayRef, Vec<bool>) {
        let n = batch.num_rows();
        let to = self.field.data_type();
        if n == 0 {
            return (new_empty_array(to), Vec::new());
        }
        // All rows together evaluate at least what a row alone does, so that none that succeeds here fails alone.
        let found = self.value.evaluate(batch).and_then(|value| value.into_array(n)).ok();
        match found.and_then(|array| cast(&array, to).ok()) {
            Some(array) => (array, vec![false; n]),
            None if n == 1 => (new_null_array(to, 1), vec![true]),
            None => {
                let each = (0..n).map(|row| self.values(&batch.slice(row, 1)));
                let (arrays, failed): (Vec<_>, Vec<_>) = each.unzip();
                let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
                (concat(&arrays).expect("arrays of one type"), failed.concat())
            }
        }
    }
}

fn compile(name: &str, sql: &str, columns: &Columns) -> Result<Expression, FilterError> {
    let is_of_name = |(i, c): (usize, char)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit());
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.char_indices().all(is_of_name) {
        return Err(FilterError::Name);
    }
    if is_shard_column(name) {
        return Err(FilterError::Taken);
    }
    let (value, named) = physical(sql, &columns.schema())?;
    let found = value.data_type(&columns.schema()).map_err(|e| sql_error(&e))?;
    let data_type = in_shard(&found).ok_or(FilterError::NoColumn { found })?;
    Ok(Expression { field: Field::new(name, data_type, true), value, named })
}

/// An expression over columns, and which of them it names.
fn physical(sql: &str, schema: &SchemaRef) -> Result<(Arc<dyn PhysicalExpr>, BTreeSet<String>), FilterError> {
    if sql.len() > MAX_FILTER_BYTES {
        return Err(FilterError::TooLong { found: sql.len() });
    }
    let context = context();
    let schema = df_schema(schema)?;
    let expression = context.parse_sql_expr(sql, &schema).map_err(|e| sql_error(&e))?;
    refuse_what_changes(&expression)?;
    let named = expression.column_refs().into_iter().map(|column| column.name.clone()).collect();
    let value = evaluable(&context, expression, &schema)?;
    Ok((value, named))
}

/// The type in which a shard holds it: one that every reader knows.
fn in_shard(found: &DataType) -> Option<DataType> {
    use DataType as D;
    Some(match found {
        D::Utf8 | D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::Dictionary(_, values) => return in_shard(values),
        D::Boolean | D::Date32 | D::Timestamp(..) | D::Float32 | D::Float64 => found.clone(),
        found if found.is_integer() => found.clone(),
        D::Decimal128(..) => found.clone(),
        D::List(item) | D::LargeList(item) | D::FixedSizeList(item, _) if !item.data_type().is_nested() => {
            D::new_list(in_shard(item.data_type())?, true)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
