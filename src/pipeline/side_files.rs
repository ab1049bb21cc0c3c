//! Side files of the store: brought up to the catalog's lines of the manifest, together with whoever else does.

use super::{DaemonError, Shared};
use crate::crash;
use crate::manifest::ManifestEntry;
use crate::sink::schema;

/// Adds to each what has been published since. Loses nothing where it fails: the next one finds the same lines.
pub(super) async fn extend_side_files(shared: &Shared) -> Result<(), DaemonError> {
    let Shared { config, model, catalog, store, .. } = shared;
    for &file in &config.sink.side_files {
        let open = store.open_side_file(file).await?;
        let lines = catalog.manifest_lines(&config.pipeline, open.last_sequence).await?;
        let entries: Result<Vec<ManifestEntry>, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
        let entries = entries.map_err(|e| DaemonError::Internal(format!("a line of the manifest: {e}")))?;
        if !entries.is_empty() {
            open.extend(&entries, &column_types(model.division.targets())).await?;
            crash::point("side_file.written");
        }
    }
    Ok(())
}

/// Of the shards' columns, as Arrow's Python library calls them.
fn column_types(targets: &[String]) -> Vec<String> {
    use arrow::datatypes::{DataType, TimeUnit};
    let name = |data_type: &DataType| match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Timestamp(TimeUnit::Millisecond, Some(zone)) => format!("timestamp[ms, tz={zone}]"),
        // Integers, of which shards have three kinds.
        other => other.to_string().to_lowercase(),
    };
    schema(targets).fields().iter().map(|field| name(field.data_type())).collect()
}
