//! `winnowd score`: every document of files with its log importance weight, in the order of the input.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, StringBuilder, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::files::{Files, LossFieldArguments, OutFile, ReadArguments, total_bytes, unwritten};
use super::progress::Progress;
use super::select::significant;
use super::tokenizer::TokenizerArguments;
use super::{UsageError, print};
use crate::features::Scratch;
use crate::score::ModelId;
use crate::select::QuantileSketch;
use crate::source::files::{ChunkReader, FileError, Wanted};
use crate::tokenizer::Tokenizer;

#[derive(clap::Args)]
pub struct ScoreArguments {
    /// A model that `winnowd fit` made
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,
    /// Documents: JSONL and CSV (plain, .gz, .zst) or Parquet; folders, patterns, s3://BUCKET/PREFIX
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    input: Vec<PathBuf>,
    /// Where to write id, source, n_tokens and log_importance_weight (of several targets, log_importance_weight_NAME):
    /// FILE.parquet, FILE.jsonl or FILE.jsonl.zst; with --loss-field also loss, of which 1 % and 99 % are printed; with --tokenizer
    /// n_tokens_NAME
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    read: ReadArguments,
    #[command(flatten)]
    losses: LossFieldArguments,
    #[command(flatten)]
    tokenizer: TokenizerArguments,
}

pub fn score(arguments: &ScoreArguments) -> anyhow::Result<()> {
    let (model, id) = super::model::load(&arguments.model)?;
    let inputs = arguments.read.inputs(&arguments.input, false)?;
    let file = OutFile::create(&arguments.out)?;
    let files = Files::new(&arguments.read)?.with_losses(&arguments.losses);
    let weights = super::weights::Weights::new(&model);
    let columns = Columns {
        weights: weights.columns().to_vec(),
        has_losses: arguments.losses.has_losses(),
        tokenizer: arguments.tokenizer.load()?,
    };
    let mut out = Out::new(&arguments.out, file.handle()?, &columns, &id)?;
    let is_parquet = matches!(out, Out::Parquet(_));
    let mut losses = QuantileSketch::default();

    let progress = Progress::new("score", total_bytes(&inputs));
    let (mut documents, mut bad_lines) = (0, 0);
    files.reader(&inputs).scan(
        Wanted::Named,
        files.states(Scratch::default),
        |scratch, chunk| Scored::of(chunk, &weights, scratch, &columns, is_parquet),
        |scored| {
            documents += scored.documents;
            bad_lines += scored.bad_lines;
            losses.merge(&scored.losses);
            progress.add(scored.documents, scored.file_bytes);
            out.write(&scored.rows).map_err(|e| unwritten(&arguments.out, e))
        },
    )?;
    files.check_interrupted()?;
    out.finish().map_err(|e| unwritten(&arguments.out, e))?;
    file.publish()?;
    progress.finish();
    let bad = if bad_lines > 0 { format!(", {bad_lines} bad lines passed over") } else { String::new() };
    let range = match losses.quantile(0.01).zip(losses.quantile(0.99)) {
        Some(ends) => {
            let (low, high) = (significant(ends.0), significant(ends.1));
            format!("{} have a loss: 1 % are below about {low} nats, 99 % below about {high}\n", losses.len())
        }
        None if arguments.losses.has_losses() => "none has a loss\n".to_owned(),
        None => String::new(),
    };
    print(&format!("{}: {documents} documents{bad}\n{range}", arguments.out.display()))
}

/// What is written beside id, source and number of tokens.
struct Columns {
    weights: Vec<String>,
    has_losses: bool,
    /// Its column stands last.
    tokenizer: Option<Arc<Tokenizer>>,
}

/// The rows of one chunk.
struct Scored {
    documents: u64,
    bad_lines: u64,
    file_bytes: u64,
    /// Of the documents that have one; of all of them together too many to be held.
    losses: QuantileSketch,
    rows: Rows,
}

enum Rows {
    Parquet(RecordBatch),
    Jsonl(Vec<u8>),
}

impl Scored {
    fn of(
        chunk: &ChunkReader<'_>,
        weights: &super::weights::Weights,
        scratch: &mut Scratch,
        names: &Columns,
        is_parquet: bool,
    ) -> Result<Self, FileError> {
        let (mut ids, mut sources) = (StringBuilder::new(), StringBuilder::new());
        let (mut n_tokens, mut values) = (Vec::new(), vec![Vec::new(); weights.len()]);
        let (mut losses, mut counted) = (Vec::new(), Vec::new());
        let mut bad_lines = 0;
        chunk.for_each_document(|record| match record {
            Some(record) => {
                ids.append_value(chunk.id(&record));
                sources.append_option(record.source);
                losses.push(record.loss);
                counted.extend(names.tokenizer.as_ref().map(|tokenizer| tokenizer.count(record.text)));
                n_tokens.push(weights.score(record.text, scratch, |target, weight| values[target].push(weight)));
            }
            None => bad_lines += 1,
        })?;
        let documents = n_tokens.len() as u64;
        let (ids, sources) = (ids.finish(), sources.finish());
        // All of them are finite.
        let mut present = QuantileSketch::default();
        losses.iter().flatten().for_each(|loss| present.add(*loss));
        let rows = if is_parquet {
            let mut columns: Vec<ArrayRef> =
                vec![Arc::new(ids), Arc::new(sources), Arc::new(UInt32Array::from(n_tokens))];
            columns.extend(values.into_iter().map(|column| Arc::new(Float64Array::from(column)) as ArrayRef));
            if names.has_losses {
                columns.push(Arc::new(Float64Array::from(losses)));
            }
            if names.tokenizer.is_some() {
                columns.push(Arc::new(UInt32Array::from(counted)));
            }
            Rows::Parquet(RecordBatch::try_new(schema(names), columns).expect("the columns follow the schema"))
        } else {
            let mut lines = Vec::new();
            for (row, n_tokens) in n_tokens.iter().enumerate() {
                let id = serde_json::Value::from(ids.value(row));
                let source = if arrow::array::Array::is_null(&sources, row) {
                    serde_json::Value::Null
                } else {
                    sources.value(row).into()
                };
                let _ = write!(lines, "{{\"id\":{id},\"source\":{source},\"n_tokens\":{n_tokens}");
                for (name, values) in weights.columns().iter().zip(&values) {
                    let _ = write!(lines, ",\"{name}\":{}", serde_json::Value::from(values[row]));
                }
                if names.has_losses {
                    let _ = write!(lines, ",\"loss\":{}", serde_json::Value::from(losses[row]));
                }
                if let Some(tokenizer) = &names.tokenizer {
                    let _ = write!(lines, ",\"{}\":{}", tokenizer.column(), serde_json::Value::from(counted[row]));
                }
                lines.extend_from_slice(b"}\n");
            }
            Rows::Jsonl(lines)
        };
        Ok(Scored { documents, bad_lines, file_bytes: chunk.chunk.file_bytes, losses: present, rows })
    }
}

fn schema(columns: &Columns) -> Arc<Schema> {
    let mut fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("source", DataType::Utf8, true),
        Field::new("n_tokens", DataType::UInt32, false),
    ];
    fields.extend(columns.weights.iter().map(|name| Field::new(name, DataType::Float64, false)));
    if columns.has_losses {
        fields.push(Field::new("loss", DataType::Float64, true));
    }
    fields.extend(columns.tokenizer.iter().map(|of| Field::new(of.column(), DataType::UInt32, true)));
    Arc::new(Schema::new(fields))
}

/// Rows that are encoded before they are written.
const ROW_GROUP_ROWS: usize = 128 << 10;

enum Out {
    Parquet(Box<ArrowWriter<BufWriter<std::fs::File>>>),
    Jsonl(BufWriter<std::fs::File>),
    Zstd(zstd::Encoder<'static, std::fs::File>),
}

impl Out {
    fn new(path: &std::path::Path, file: std::fs::File, columns: &Columns, id: &ModelId) -> anyhow::Result<Self> {
        let name = path.to_string_lossy();
        if name.ends_with(".jsonl") {
            return Ok(Out::Jsonl(BufWriter::with_capacity(256 << 10, file)));
        } else if name.ends_with(".jsonl.zst") {
            return Ok(Out::Zstd(zstd::Encoder::new(file, 1)?));
        } else if !name.ends_with(".parquet") {
            let problem = format!("--out {name}: must end in .parquet, .jsonl or .jsonl.zst");
            return Err(UsageError(problem).into());
        }
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_key_value_metadata(Some(vec![KeyValue::new("winnowd.model".to_owned(), id.as_str().to_owned())]))
            .build();
        let file = BufWriter::with_capacity(256 << 10, file);
        Ok(Out::Parquet(Box::new(ArrowWriter::try_new(file, schema(columns), Some(properties))?)))
    }

    fn write(&mut self, rows: &Rows) -> Result<(), ParquetError> {
        match (self, rows) {
            (Out::Parquet(writer), Rows::Parquet(batch)) => writer.write(batch)?,
            (Out::Jsonl(writer), Rows::Jsonl(lines)) => writer.write_all(lines)?,
            (Out::Zstd(writer), Rows::Jsonl(lines)) => writer.write_all(lines)?,
            _ => return Err(ParquetError::General("rows were made for another format".to_owned())),
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ParquetError> {
        match self {
            // Down to the file, whose error would else be lost.
            Out::Parquet(mut writer) => drop(writer.finish()?),
            Out::Jsonl(mut writer) => writer.flush()?,
            Out::Zstd(writer) => drop(writer.finish()?),
        }
        Ok(())
    }
}
