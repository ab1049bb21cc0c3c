//! Files as a table: JSONL, Parquet, CSV.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::SessionContext;

use super::SqlError;
use crate::source::files::{Input, expand};

/// Files of one kind, told by the end of their names; what has no known end is JSONL.
pub struct FileTable {
    kind: Kind,
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jsonl,
    Parquet,
    Csv,
}

impl Kind {
    fn of(input: &Input) -> Result<Self, SqlError> {
        let end = input.path.extension().and_then(|end| end.to_str()).unwrap_or_default();
        match end {
            "parquet" => Ok(Kind::Parquet),
            "csv" => Ok(Kind::Csv),
            "gz" | "zst" => Err(SqlError::Question(format!(
                "`{}` is compressed, which SQL does not read: decompress it, or make Parquet of it with `winnowd score`",
                input.path.display()
            ))),
            _ => Ok(Kind::Jsonl),
        }
    }
}

impl FileTable {
    /// A folder stands for the JSONL and Parquet files in it.
    pub fn of(paths: &[PathBuf]) -> Result<Self, SqlError> {
        let inputs = expand(paths).map_err(|error| SqlError::Question(error.to_string()))?;
        let mut kinds = inputs.iter().map(|input| Kind::of(input).map(|kind| (kind, input)));
        let (kind, first) = kinds.next().ok_or_else(|| SqlError::Question("no files".to_owned()))??;
        for other in kinds {
            let (other, input) = other?;
            if other != kind {
                return Err(SqlError::Question(format!(
                    "`{}` and `{}` are of two kinds: a table has one",
                    first.path.display(),
                    input.path.display()
                )));
            }
        }
        Ok(FileTable { kind, files: inputs.into_iter().map(|input| input.path).collect() })
    }

    pub(super) async fn register(self, name: &str, context: &SessionContext) -> Result<(), SqlError> {
        let format: Arc<dyn FileFormat> = match self.kind {
            Kind::Jsonl => Arc::new(JsonFormat::default()),
            Kind::Parquet => Arc::new(ParquetFormat::default()),
            Kind::Csv => Arc::new(CsvFormat::default().with_has_header(true)),
        };
        let url = |path: &PathBuf| {
            let path = std::path::absolute(path).map_err(|e| SqlError::Store(format!("`{}`: {e}", path.display())))?;
            // Not as a path, in which `*` would stand for anything.
            let url = url::Url::from_file_path(&path);
            let url = url.map_err(|()| SqlError::Question(format!("`{}` is no path", path.display())))?;
            Ok::<_, SqlError>(ListingTableUrl::try_new(url, None)?)
        };
        let urls = self.files.iter().map(url).collect::<Result<_, _>>()?;
        let options = ListingOptions::new(format).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        let config = config.infer_schema(&context.state()).await?;
        let table: Arc<dyn TableProvider> = Arc::new(ListingTable::try_new(config)?);
        context.register_table(name, table)?;
        Ok(())
    }
}
