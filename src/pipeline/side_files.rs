//! Side files of the store: brought up to the catalog's lines of the manifest, together with whoever else does.

use arrow::datatypes::{DataType, TimeUnit};

use super::{DaemonError, Shared};
use crate::crash;
use crate::manifest::ManifestEntry;
use crate::sink::schema;

/// Adds to each what has been published since. Loses nothing where it fails: the next one finds the same lines.
pub(super) async fn extend_side_files(shared: &Shared) -> Result<(), DaemonError> {
    let Shared { config, model, catalog, store, columns, .. } = shared;
    let further = columns.fields();
    let types: Vec<String> =
        schema(model.division.targets(), &further).fields().iter().map(|field| arrow_name(field.data_type())).collect();
    for &file in &config.sink.side_files {
        let open = store.open_side_file(file).await?;
        let lines = catalog.manifest_lines(&config.pipeline, open.last_sequence).await?;
        let entries: Result<Vec<ManifestEntry>, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
        let entries = entries.map_err(|e| DaemonError::Internal(format!("a line of the manifest: {e}")))?;
        if !entries.is_empty() {
            open.extend(&entries, &types).await?;
            crash::point("side_file.written");
        }
    }
    Ok(())
}

/// Of a shard's column, as Arrow's Python library calls it.
fn arrow_name(data_type: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Date32 => "date32[day]".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal128({precision}, {scale})"),
        DataType::Timestamp(of, Some(zone)) => format!("timestamp[{}, tz={zone}]", unit(of)),
        DataType::Timestamp(of, None) => format!("timestamp[{}]", unit(of)),
        DataType::List(item) => format!("list<{}: {}>", item.name(), arrow_name(item.data_type())),
        integer => integer.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    /// As `pyarrow` 26 writes them, columns that only `documents.columns` makes among them.
    #[test]
    fn types_are_called_as_readers_call_them() {
        let derived = [
            DataType::Boolean,
            DataType::Float32,
            DataType::Date32,
            DataType::Decimal128(10, 2),
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            DataType::new_list(DataType::Utf8, true),
            DataType::UInt8,
        ];
        let derived = derived.map(|data_type| Field::new("c", data_type, true));
        let names: Vec<String> =
            schema(&[], &derived).fields().iter().map(|field| arrow_name(field.data_type())).collect();
        assert_eq!(
            names[..8],
            ["string", "string", "string", "string", "int32", "int64", "timestamp[ms, tz=UTC]", "uint32"]
        );
        let of_derived =
            ["bool", "float", "date32[day]", "decimal128(10, 2)", "timestamp[ns]", "list<item: string>", "uint8"];
        assert_eq!(names[names.len() - 7..], of_derived);
    }
}
