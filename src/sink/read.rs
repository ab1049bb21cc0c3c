//! Rows of published shards, read back.

use std::collections::BTreeMap;
use std::fs::File;

use arrow::array::{Array, ArrayRef, Float64Array, Int32Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;

use super::SinkError;
use super::shard::{Split, weight_column};
use crate::record::TopicPartition;
use crate::select::Noise;

/// What identifies a row of a shard, and what its selection rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedRow {
    pub id: String,
    pub offset: i64,
    pub log_importance_weight: f64,
    pub selection_key: f64,
    pub inclusion_probability: f64,
    pub sample_weight: f64,
    pub window: String,
    /// Whether the file is one of the validation split.
    pub held_out: bool,
    /// The target that chose it, and its log importance weight for each; nothing where there was one.
    pub target: Option<String>,
    pub log_importance_weights: Vec<(String, f64)>,
    /// Of its losses, by column: those that the shard has, since older ones have fewer.
    pub losses: Vec<(&'static str, Option<f64>)>,
    /// Of the derived columns that were asked for, those that the shard has: arrays of one value.
    pub derived: Vec<(String, ArrayRef)>,
}

const COLUMNS: [&str; 7] =
    ["id", "offset", "log_importance_weight", "selection_key", "inclusion_probability", "sample_weight", "window"];

/// Columns of losses. Shards that were written before a column came do not have it.
const LOSSES: [&str; 3] = ["loss", "loss_weight", "expected_loss"];

/// Where the footer of a file says which split it is of.
pub const SPLIT: &str = "winnowd.split";

/// A published shard.
pub struct ShardReader {
    shard: String,
    file: File,
    metadata: ArrowReaderMetadata,
}

impl ShardReader {
    pub fn open(shard: &str, file: File) -> Result<Self, SinkError> {
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new());
        let metadata = metadata.map_err(|source| SinkError::Parquet { shard: shard.to_owned(), source })?;
        Ok(ShardReader { shard: shard.to_owned(), file, metadata })
    }

    /// The rows of these windows, wherever they stand in the shard, each window's by ascending offsets, with the `derived` columns of
    /// these names. Reads all rows, and holds those.
    pub fn windows(&self, ids: &[String], derived: &[&str]) -> Result<BTreeMap<String, Vec<PublishedRow>>, SinkError> {
        let mut by_window: BTreeMap<String, Vec<PublishedRow>> =
            ids.iter().map(|id| (id.clone(), Vec::new())).collect();
        let footer = self.metadata.metadata().file_metadata().key_value_metadata();
        // Shards of earlier versions do not say, and are for training.
        let validation = Some(Split::Validation.as_str());
        let held_out = footer.into_iter().flatten().any(|kv| kv.key == SPLIT && kv.value.as_deref() == validation);
        let mut read = || -> Result<(), ParquetError> {
            let is_of_targets = |name: &str| name == "target" || name.starts_with(&weight_column(""));
            let of_targets = self.metadata.schema().fields().iter().map(|field| field.name().as_str());
            let of_targets = of_targets.filter(|name| is_of_targets(name));
            for batch in
                self.columns(COLUMNS.into_iter().chain(LOSSES).chain(of_targets).chain(derived.iter().copied()))?
            {
                push_rows(&batch?, held_out, derived, &mut by_window)?;
            }
            Ok(())
        };
        read().map_err(|source| SinkError::Parquet { shard: self.shard.clone(), source })?;
        by_window.values_mut().for_each(|rows| rows.sort_by_key(|row| row.offset));
        Ok(by_window)
    }

    /// The first row, from 0, that does not stand where this seed shuffles it to; `None`: all do.
    pub fn first_out_of_order(&self, seed: u64) -> Result<Option<u64>, SinkError> {
        let find = || -> Result<Option<u64>, ParquetError> {
            let mut noises: BTreeMap<TopicPartition, Noise> = BTreeMap::new();
            let (mut number, mut last) = (0, None);
            for batch in self.columns(["topic", "partition", "offset"])? {
                let batch = batch?;
                let (topics, offsets) =
                    (column::<StringArray>(&batch, "topic")?, column::<Int64Array>(&batch, "offset")?);
                let partitions = column::<Int32Array>(&batch, "partition")?;
                for i in 0..batch.num_rows() {
                    let at = TopicPartition::new(topics.value(i), partitions.value(i));
                    let noise = noises.entry(at).or_insert_with_key(|at| Noise::new(seed, at));
                    let key = Some(noise.shuffle(offsets.value(i)));
                    if key <= last {
                        return Ok(Some(number));
                    }
                    (number, last) = (number + 1, key);
                }
            }
            Ok(None)
        };
        find().map_err(|source| SinkError::Parquet { shard: self.shard.clone(), source })
    }

    fn columns<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, ParquetError>>, ParquetError> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.try_clone()?, self.metadata.clone());
        // Lists have columns of their own below.
        let names: Vec<&str> = names.into_iter().collect();
        let wanted =
            builder.schema().fields().iter().enumerate().filter(|(_, field)| names.contains(&field.name().as_str()));
        let columns = ProjectionMask::roots(builder.parquet_schema(), wanted.map(|(i, _)| i).collect::<Vec<_>>());
        let reader: ParquetRecordBatchReader = builder.with_projection(columns).build()?;
        Ok(reader.map(|batch| batch.map_err(ParquetError::from)))
    }
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, ParquetError> {
    let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
    column.ok_or_else(|| ParquetError::General(format!("it has no column `{name}` of the type it should have")))
}

/// Adds those of windows that are wanted.
fn push_rows(
    batch: &RecordBatch,
    held_out: bool,
    derived: &[&str],
    by_window: &mut BTreeMap<String, Vec<PublishedRow>>,
) -> Result<(), ParquetError> {
    let (ids, windows) = (column::<StringArray>(batch, "id")?, column::<StringArray>(batch, "window")?);
    let offsets = column::<Int64Array>(batch, "offset")?;
    let numbers = |name| column::<Float64Array>(batch, name);
    let (weights, keys) = (numbers("log_importance_weight")?, numbers("selection_key")?);
    let (probabilities, sample_weights) = (numbers("inclusion_probability")?, numbers("sample_weight")?);
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
    let of_derived: Vec<(String, &ArrayRef)> = of_derived.collect();
    for i in 0..batch.num_rows() {
        let Some(rows) = by_window.get_mut(windows.value(i)) else { continue };
        rows.push(PublishedRow {
            id: ids.value(i).to_owned(),
            offset: offsets.value(i),
            log_importance_weight: weights.value(i),
            selection_key: keys.value(i),
            inclusion_probability: probabilities.value(i),
            sample_weight: sample_weights.value(i),
            window: windows.value(i).to_owned(),
            held_out,
            target: targets.map(|targets| targets.value(i).to_owned()),
            log_importance_weights: by_target.iter().map(|(name, weights)| (name.clone(), weights.value(i))).collect(),
            losses: of_losses.iter().map(|(name, c)| (*name, c.is_valid(i).then(|| c.value(i)))).collect(),
            derived: of_derived.iter().map(|(name, column)| (name.clone(), column.slice(i, 1))).collect(),
        });
    }
    Ok(())
}
