//! Record batches as a table for people, as CSV, JSON lines or Parquet: on standard output, or as a file that is complete or not
//! there.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions, array_value_to_string};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tempfile::NamedTempFile;

use super::Format;

/// Rows that a table shows.
const TABLE_ROWS: usize = 1000;
/// Characters of a value that a table shows.
const CELL_CHARS: usize = 60;

type Target = Box<dyn Write + Send>;

pub struct Output {
    writer: Writer,
    file: Option<(NamedTempFile, PathBuf)>,
}

enum Writer {
    /// What EXPLAIN says, as it is laid out.
    Plan(Target),
    Table {
        schema: SchemaRef,
        rows: Vec<Vec<String>>,
        has_more: bool,
        to: Target,
    },
    Csv(Box<csv::Writer<Target>>),
    Json(LineDelimitedWriter<Target>),
    Parquet(Box<ArrowWriter<Target>>),
}

impl Output {
    pub fn begin(format: Format, out: Option<&Path>, schema: &SchemaRef) -> anyhow::Result<Self> {
        let mut file = None;
        let to: Target = match out {
            None => Box::new(Stdout(io::stdout())),
            Some(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let partial = NamedTempFile::new_in(folder).with_context(|| format!("`{}`", path.display()))?;
                let to = partial.reopen().with_context(|| format!("`{}`", path.display()))?;
                file = Some((partial, path.to_owned()));
                Box::new(to)
            }
        };
        let to: Target = Box::new(BufWriter::new(to));
        let writer = match format {
            Format::Table if schema.fields().iter().map(|field| field.name()).eq(["plan_type", "plan"]) => {
                Writer::Plan(to)
            }
            Format::Table => Writer::Table { schema: schema.clone(), rows: Vec::new(), has_more: false, to },
            Format::Csv => {
                let mut writer = csv::Writer::new(to);
                // An answer without rows has a heading, too.
                writer.write(&RecordBatch::new_empty(schema.clone()))?;
                Writer::Csv(Box::new(writer))
            }
            Format::Json => Writer::Json(LineDelimitedWriter::new(to)),
            Format::Parquet => {
                let compression = Compression::ZSTD(ZstdLevel::try_new(1)?);
                let properties = WriterProperties::builder().set_compression(compression).build();
                Writer::Parquet(Box::new(ArrowWriter::try_new(to, schema.clone(), Some(properties))?))
            }
        };
        Ok(Output { writer, file })
    }

    /// Tells whether more is wanted.
    pub fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<bool> {
        match &mut self.writer {
            Writer::Plan(to) => {
                for row in 0..batch.num_rows() {
                    let text = |column: usize| array_value_to_string(batch.column(column), row);
                    writeln!(to, "{}\n{}", text(0)?, text(1)?)?;
                }
            }
            Writer::Table { rows, has_more, .. } => {
                let left = TABLE_ROWS - rows.len();
                *has_more = batch.num_rows() > left;
                let options = FormatOptions::default().with_null("");
                let columns: Vec<_> =
                    batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<_, _>>()?;
                rows.extend(
                    (0..batch.num_rows().min(left))
                        .map(|row| columns.iter().map(|c| cell(&c.value(row).to_string())).collect()),
                );
                return Ok(!*has_more);
            }
            Writer::Csv(writer) => writer.write(batch)?,
            Writer::Json(writer) => writer.write(batch)?,
            Writer::Parquet(writer) => writer.write(batch)?,
        }
        Ok(true)
    }

    pub fn finish(self) -> anyhow::Result<()> {
        match self.writer {
            Writer::Plan(mut to) => to.flush()?,
            Writer::Table { schema, rows, has_more, mut to } => {
                to.write_all(table(&schema, &rows, has_more).as_bytes())?;
                to.flush()?;
            }
            Writer::Csv(writer) => writer.into_inner().flush()?,
            Writer::Json(mut writer) => {
                writer.finish()?;
                writer.into_inner().flush()?;
            }
            Writer::Parquet(writer) => writer.into_inner()?.flush()?,
        }
        if let Some((file, path)) = self.file {
            file.as_file().sync_all()?;
            file.persist(&path).with_context(|| format!("`{}`", path.display()))?;
        }
        Ok(())
    }
}

/// Standard output; a reader that has seen enough (`| head`) is no error.
struct Stdout(io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

/// One line, whatever a document says.
fn cell(value: &str) -> String {
    let mut shown = String::new();
    for (i, character) in value.chars().enumerate() {
        if i == CELL_CHARS {
            shown.push('…');
            break;
        }
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

fn table(schema: &SchemaRef, rows: &[Vec<String>], has_more: bool) -> String {
    let names: Vec<String> = schema.fields().iter().map(|field| cell(field.name())).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| &row[column]).chain([&names[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..names.len()).map(width).collect();
    let is_number: Vec<bool> = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        let mut shown = String::new();
        for ((cell, &width), &is_number) in cells.iter().zip(&widths).zip(&is_number) {
            let _ = if is_number { write!(shown, "{cell:>width$}  ") } else { write!(shown, "{cell:<width$}  ") };
        }
        text.push_str(shown.trim_end());
        text.push('\n');
    };
    line(&names);
    rows.iter().for_each(|row| line(row));
    if has_more {
        let _ = writeln!(text, "… more than {TABLE_ROWS} rows: LIMIT them, or ask for --format csv, json or parquet");
    }
    text
}
