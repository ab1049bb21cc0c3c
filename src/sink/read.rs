//! Rows of published shards, read back.

use std::fs::File;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;

use super::SinkError;
use super::shard::weight_column;

/// What identifies a row of a shard, and what its selection rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedRow {
    pub id: String,
    pub offset: i64,
    pub log_importance_weight: f64,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub window: String,
    /// The target that chose it, and its log importance weight for each; nothing where there was one.
    pub target: Option<String>,
    pub log_importance_weights: Vec<(String, f64)>,
    /// Of its losses, by column: those that the shard has, since older ones have fewer.
    pub losses: Vec<(&'static str, Option<f64>)>,
    /// Of the derived columns that were asked for, those that the shard has: arrays of one value.
    pub derived: Vec<(String, ArrayRef)>,
}

const COLUMNS: [&str; 6] =
    ["id", "offset", "log_importance_weight", "selection_key", "inclusion_probability", "window"];

/// Columns of losses. Shards that were written before a column came do not have it.
const LOSSES: [&str; 3] = ["loss", "loss_weight", "expected_loss"];

/// A published shard.
pub struct ShardReader {
    shard: String,
    file: File,
    metadata: ArrowReaderMetadata,
}

impl ShardReader {
    pub fn open(shard: &str, file: File) -> Result<Self, SinkError> {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options);
        let metadata = metadata.map_err(|source| SinkError::Parquet { shard: shard.to_owned(), source })?;
        Ok(ShardReader { shard: shard.to_owned(), file, metadata })
    }

    /// `n` rows after the first `skip`, or fewer where the shard ends, with the `derived` columns of these names. Other rows are
    /// hardly read.
    pub fn rows(&self, skip: usize, n: usize, derived: &[&str]) -> Result<Vec<PublishedRow>, SinkError> {
        self.try_rows(skip, n, derived).map_err(|source| SinkError::Parquet { shard: self.shard.clone(), source })
    }

    fn try_rows(&self, skip: usize, n: usize, derived: &[&str]) -> Result<Vec<PublishedRow>, ParquetError> {
        let n_rows = self.metadata.metadata().file_metadata().num_rows().max(0) as usize;
        let skip = skip.min(n_rows);
        let n = n.min(n_rows - skip);
        if n == 0 {
            return Ok(Vec::new());
        }
        let selection = RowSelection::from(vec![RowSelector::skip(skip), RowSelector::select(n)]);
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.try_clone()?, self.metadata.clone());
        let is_of_targets = |name: &str| name == "target" || name.starts_with(&weight_column(""));
        let of_targets = builder.schema().fields().iter().map(|f| f.name().clone()).filter(|n| is_of_targets(n));
        let of_targets: Vec<String> = of_targets.collect();
        let names = COLUMNS.into_iter().chain(LOSSES).chain(of_targets.iter().map(String::as_str));
        // Lists have columns of their own below.
        let is_wanted = |name: &str| derived.contains(&name) || names.clone().any(|wanted| wanted == name);
        let wanted = builder.schema().fields().iter().enumerate().filter(|(_, field)| is_wanted(field.name()));
        let columns = ProjectionMask::roots(builder.parquet_schema(), wanted.map(|(i, _)| i).collect::<Vec<_>>());
        let mut rows = Vec::with_capacity(n);
        for batch in builder.with_projection(columns).with_row_selection(selection).build()? {
            push_rows(&batch?, derived, &mut rows)?;
        }
        Ok(rows)
    }
}

fn push_rows(batch: &RecordBatch, derived: &[&str], rows: &mut Vec<PublishedRow>) -> Result<(), ParquetError> {
    fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, ParquetError> {
        let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
        column.ok_or_else(|| ParquetError::General(format!("it has no column `{name}` of the type it should have")))
    }
    let (ids, windows) = (column::<StringArray>(batch, "id")?, column::<StringArray>(batch, "window")?);
    let offsets = column::<Int64Array>(batch, "offset")?;
    let numbers = |name| column::<Float64Array>(batch, name);
    let (weights, keys) = (numbers("log_importance_weight")?, numbers("selection_key")?);
    let probabilities = numbers("inclusion_probability")?;
    let targets = batch.column_by_name("target").map(|_| column::<StringArray>(batch, "target")).transpose()?;
    let of_losses = LOSSES.into_iter().filter(|name| batch.column_by_name(name).is_some());
    let of_losses: Vec<_> = of_losses.map(|name| Ok((name, numbers(name)?))).collect::<Result<_, ParquetError>>()?;
    let mut by_target = Vec::new();
    for field in batch.schema_ref().fields() {
        if let Some(target) = field.name().strip_prefix(&weight_column("")) {
            by_target.push((target.to_owned(), numbers(field.name())?));
        }
    }
    let of_derived = derived.iter().filter_map(|name| Some(((*name).to_owned(), batch.column_by_name(name)?)));
    let of_derived: Vec<_> = of_derived.collect();
    rows.extend((0..batch.num_rows()).map(|i| PublishedRow {
        id: ids.value(i).to_owned(),
        offset: offsets.value(i),
        log_importance_weight: weights.value(i),
        selection_key: keys.value(i),
        inclusion_probability: probabilities.value(i),
        window: windows.value(i).to_owned(),
        target: targets.map(|targets| targets.value(i).to_owned()),
        log_importance_weights: by_target.iter().map(|(name, weights)| (name.clone(), weights.value(i))).collect(),
        losses: of_losses.iter().map(|(name, c)| (*name, c.is_valid(i).then(|| c.value(i)))).collect(),
        derived: of_derived.iter().map(|(name, column)| (name.clone(), column.slice(i, 1))).collect(),
    }));
    Ok(())
}
