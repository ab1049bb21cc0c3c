//! What has been published, as tables. Documents are the rows of the files that the catalog names, and of no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::TableType;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use object_store::ObjectStore;
use serde::Serialize;
use url::Url;

use super::SqlError;
use crate::manifest::{DeadLetterFile, ShardManifest};
use crate::window::WindowSummary;

/// Names the sink within a session, whatever it is.
const SINK: &str = "winnowd://sink/";

/// A file of a publication, with its size, if it has it.
type FileOf = dyn Fn(&ShardManifest) -> Option<(String, u64)>;

/// What a catalog knew of a pipeline at one time.
pub struct Published {
    pub store: Arc<dyn ObjectStore>,
    /// In order of publication, with their sequence numbers.
    pub shards: Vec<(i64, ShardManifest)>,
    /// Those that published nothing else among them.
    pub windows: Vec<WindowSummary>,
    pub dead_letters: Vec<DeadLetterFile>,
    /// The columns that a shard has today, for want of any shard.
    pub schema: SchemaRef,
    pub dead_letter_schema: SchemaRef,
}

impl Published {
    /// Leaves what was published with the shards up to `sequence`.
    pub fn until(mut self, sequence: i64) -> Self {
        self.shards.retain(|(number, _)| *number <= sequence);
        self.windows = self.shards.iter().flat_map(|(_, shard)| shard.windows.iter().cloned()).collect();
        self.dead_letters = self.shards.iter().filter_map(|(_, shard)| shard.dead_letters.clone()).collect();
        self
    }

    pub(super) async fn register(self, context: &SessionContext) -> Result<(), SqlError> {
        let url = Url::parse(SINK).map_err(|e| SqlError::Internal(e.to_string()))?;
        context.register_object_store(&url, self.store.clone());
        let shards = table_of(shard_schema(), &self.shards.iter().map(shard_row).collect::<Vec<_>>())?;
        context.register_table("shards", shards)?;
        context.register_table("windows", table_of(window_schema(), &self.window_rows())?)?;

        // One file of each sort tells which columns it has: another model may have other targets, and versions add columns.
        let for_training = |shard: &ShardManifest| shard.path.clone().map(|path| (path, shard.bytes));
        let held_out = |shard: &ShardManifest| shard.validation.as_ref().map(|file| (file.path.clone(), file.bytes));
        let tables: [(&str, &FileOf); 2] = [("documents", &for_training), ("validation", &held_out)];
        for (table, file_of) in tables {
            let (mut documents, mut sorts) = (Vec::new(), HashMap::new());
            for (_, shard) in &self.shards {
                if let Some((path, bytes)) = file_of(shard) {
                    let file = PartitionedFile::new(path, bytes);
                    documents.push(file.clone());
                    let sort =
                        (&shard.model, &shard.selector, &shard.columns, shard.tokenizer.as_ref().map(|of| &of.name));
                    let sort = serde_json::to_string(&sort);
                    sorts.insert(sort.map_err(|e| SqlError::Internal(e.to_string()))?, file);
                }
            }
            let sorts = sorts.into_values().collect();
            context.register_table(table, files(context, &self.store, documents, sorts, &self.schema).await?)?;
        }

        let letters: Vec<_> =
            self.dead_letters.iter().map(|file| PartitionedFile::new(&file.path, file.bytes)).collect();
        let newest = letters.last().cloned().into_iter().collect();
        let letters = files(context, &self.store, letters, newest, &self.dead_letter_schema).await?;
        context.register_table("dead_letters", letters)?;
        Ok(())
    }

    fn window_rows(&self) -> Vec<WindowRow<'_>> {
        let mut shards: BTreeMap<String, (i64, &str)> = BTreeMap::new();
        for (sequence, shard) in &self.shards {
            shards.extend(shard.windows.iter().map(|window| (window.id(), (*sequence, shard.shard.as_str()))));
        }
        let row = |window| {
            let published = shards.get(&WindowSummary::id(window)).copied();
            window_row(window, published.map(|(sequence, _)| sequence), published.map(|(_, shard)| shard))
        };
        self.windows.iter().map(row).collect()
    }
}

/// Parquet files below the sink; `of_each_sort` have all columns among them, which the others may lack. `schema` if there are none.
async fn files(
    context: &SessionContext,
    store: &Arc<dyn ObjectStore>,
    files: Vec<PartitionedFile>,
    of_each_sort: Vec<PartitionedFile>,
    schema: &SchemaRef,
) -> Result<Arc<dyn TableProvider>, SqlError> {
    if files.is_empty() {
        return Ok(Arc::new(EmptyTable::new(schema.clone())));
    }
    let state = context.state();
    let mut schemas = Vec::new();
    for file in of_each_sort {
        schemas.push(nullable(&*format(&state).infer_schema(&state, store, &[file.object_meta]).await?));
    }
    let differ = |e| SqlError::Store(format!("shards hold columns of one name and two types: {e}"));
    let merged = Schema::try_merge(schemas).map_err(differ)?;
    Ok(Arc::new(KnownFiles { schema: Arc::new(in_order(&merged, schema)), files }))
}

fn format(state: &dyn Session) -> ParquetFormat {
    ParquetFormat::default().with_options(state.default_table_options().parquet)
}

/// Files that are there and of known sizes. DataFusion's own table lists objects, and takes one that is gone for an empty folder:
/// the answer would lack its rows without a word.
#[derive(Debug)]
struct KnownFiles {
    schema: SchemaRef,
    files: Vec<PartitionedFile>,
}

#[async_trait]
impl TableProvider for KnownFiles {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        // Files are pruned by it, and it is looked at again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let format = format(state);
        let source = format.file_source(TableSchema::from(&self.schema));
        let groups = FileGroup::new(self.files.clone()).split_files(state.config().target_partitions());
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::parse(SINK)?, source)
            .with_file_groups(groups)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        format.create_physical_plan(state, scan).await
    }
}

/// A file that lacks a column has null there.
fn nullable(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>())
}

/// The columns that every shard has first, in their order, then the others by name: whichever file came first.
fn in_order(found: &Schema, known: &Schema) -> Schema {
    let mut fields: Vec<_> = found.fields().iter().cloned().collect();
    fields.sort_by_cached_key(|field| {
        let place = known.fields().iter().position(|known| known.name() == field.name());
        (place.unwrap_or(usize::MAX), field.name().clone())
    });
    Schema::new(fields)
}

fn table_of<R: Serialize>(schema: SchemaRef, rows: &[R]) -> Result<Arc<dyn TableProvider>, SqlError> {
    let internal = |e: arrow::error::ArrowError| SqlError::Internal(e.to_string());
    let mut decoder =
        ReaderBuilder::new(schema.clone()).with_batch_size(rows.len().max(1)).build_decoder().map_err(internal)?;
    decoder.serialize(rows).map_err(internal)?;
    let batch = decoder.flush().map_err(internal)?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone()));
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    Arc::new(Schema::new(fields.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)).collect::<Vec<_>>()))
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

#[derive(Serialize)]
struct ShardRow<'a> {
    sequence: i64,
    shard: &'a str,
    path: Option<&'a str>,
    rows: u64,
    bytes: u64,
    digest: Option<&'a str>,
    model: String,
    n_windows: u64,
    created_at: i64,
}

fn shard_schema() -> SchemaRef {
    use DataType::{Int64, UInt64, Utf8};
    schema(&[
        ("sequence", Int64),
        ("shard", Utf8),
        ("path", Utf8),
        ("rows", UInt64),
        ("bytes", UInt64),
        ("digest", Utf8),
        ("model", Utf8),
        ("n_windows", UInt64),
        ("created_at", time()),
    ])
}

fn shard_row((sequence, shard): &(i64, ShardManifest)) -> ShardRow<'_> {
    ShardRow {
        sequence: *sequence,
        shard: &shard.shard,
        path: shard.path.as_deref(),
        rows: shard.rows,
        bytes: shard.bytes,
        digest: shard.digest.as_deref(),
        model: shard.model.to_string(),
        n_windows: shard.windows.len() as u64,
        created_at: shard.created_at_ms,
    }
}

#[derive(Serialize)]
struct WindowRow<'a> {
    window: String,
    topic: &'a str,
    partition: i32,
    from_offset: i64,
    to_offset: i64,
    sequence: Option<i64>,
    shard: Option<&'a str>,
    closed_by: serde_json::Value,
    n_records: u64,
    n_selected: u64,
    n_rejected: u64,
    n_too_short: u64,
    n_filtered: Option<u64>,
    n_dead_letters: u64,
    payload_bytes: u64,
    threshold: Option<f64>,
    kl_reduction: Option<f64>,
    random_kl_reduction: Option<f64>,
    effective_sample_size: Option<f64>,
    auc_pr: Option<f64>,
    auc_pr_of_random: Option<f64>,
    raw_version: Option<i64>,
    selected_version: Option<i64>,
}

fn window_schema() -> SchemaRef {
    use DataType::{Float64, Int32, Int64, UInt64, Utf8};
    schema(&[
        ("window", Utf8),
        ("topic", Utf8),
        ("partition", Int32),
        ("from_offset", Int64),
        ("to_offset", Int64),
        ("sequence", Int64),
        ("shard", Utf8),
        ("closed_by", Utf8),
        ("n_records", UInt64),
        ("n_selected", UInt64),
        ("n_rejected", UInt64),
        ("n_too_short", UInt64),
        ("n_filtered", UInt64),
        ("n_dead_letters", UInt64),
        ("payload_bytes", UInt64),
        ("threshold", Float64),
        ("kl_reduction", Float64),
        ("random_kl_reduction", Float64),
        ("effective_sample_size", Float64),
        ("auc_pr", Float64),
        ("auc_pr_of_random", Float64),
        ("raw_version", Int64),
        ("selected_version", Int64),
    ])
}

fn window_row<'a>(window: &'a WindowSummary, sequence: Option<i64>, shard: Option<&'a str>) -> WindowRow<'a> {
    WindowRow {
        window: window.id(),
        topic: &window.at.topic,
        partition: window.at.partition,
        from_offset: window.interval.from,
        to_offset: window.interval.to,
        sequence,
        shard,
        // As manifests spell it.
        closed_by: serde_json::to_value(window.closed_by).unwrap_or_default(),
        n_records: window.n_records,
        n_selected: window.n_selected,
        n_rejected: window.n_rejected,
        n_too_short: window.n_too_short,
        n_filtered: window.n_filtered,
        n_dead_letters: window.n_dead_letters,
        payload_bytes: window.payload_bytes,
        threshold: window.threshold,
        kl_reduction: window.kl_reduction,
        random_kl_reduction: window.random_kl_reduction,
        effective_sample_size: window.diagnostics.as_ref().and_then(|d| d.effective_sample_size),
        auc_pr: window.spread.map(|spread| spread.auc_pr),
        auc_pr_of_random: window.spread.map(|spread| spread.auc_pr_of_random),
        raw_version: window.raw_version,
        selected_version: window.against_selected.map(|selected| selected.version),
    }
}
