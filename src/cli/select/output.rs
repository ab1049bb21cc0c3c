//! The folder of a selection: built under another name beside its place, and moved there when it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::rows::Rows;
use super::spool::Spool;
use crate::cli::UsageError;
use crate::sink::{SelectionColumns, SelectionWriter};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Parquet,
    Jsonl,
    #[value(name = "jsonl.zst")]
    JsonlZst,
}

/// Bytes of lines in one file, before compression, at most (unless a line is longer).
const FILE_BYTES: u64 = 1 << 30;

/// A folder that is not yet where it is meant to be.
pub struct Folder {
    building: tempfile::TempDir,
    out: PathBuf,
    replaces: bool,
}

impl Folder {
    /// Refuses places where something stands, before hours are spent.
    pub fn prepare(out: &Path, overwrite: bool) -> anyhow::Result<Self> {
        let shown = out.display();
        let out = std::path::absolute(out)?;
        let mut replaces = false;
        if out.exists() {
            let entries = out.read_dir().map_err(|e| UsageError(format!("--out `{shown}`: {e}")))?;
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if !is_own(&name) {
                    let problem =
                        format!("--out `{shown}` holds `{name}`, which is not of a selection: name another folder");
                    return Err(UsageError(problem).into());
                }
                replaces = true;
            }
        }
        if replaces && !overwrite {
            let problem = format!("--out `{shown}` holds a selection already: name another folder, or add --overwrite");
            return Err(UsageError(problem).into());
        }
        let parent = out.parent().unwrap_or(Path::new("/"));
        let cannot = |e: std::io::Error| UsageError(format!("--out `{shown}` cannot be created: {e}"));
        std::fs::create_dir_all(parent).map_err(cannot)?;
        let building = tempfile::Builder::new()
            .prefix(".winnowd-select-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(cannot)?;
        Ok(Folder { building, out, replaces })
    }

    fn path(&self) -> &Path {
        self.building.path()
    }

    /// Files for n-grams beside what will be published, without names: whatever happens, they do not stay.
    pub fn spool(&self, limit_bytes: u64, threads: usize) -> Spool {
        Spool::new((0..threads).map(|_| tempfile::tempfile_in(self.path())), limit_bytes)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut file = File::create(self.path().join(name)).with_context(|| name.to_owned())?;
        file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| name.to_owned())
    }

    pub fn create(&self, name: &str) -> anyhow::Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(self.path().join(name)).with_context(|| name.to_owned())?))
    }

    /// Moves the folder to its place. What it replaces is there until then.
    pub fn publish(self) -> anyhow::Result<()> {
        let cannot = |e: std::io::Error| UsageError(format!("--out `{}`: {e}", self.out.display()));
        File::open(self.path())?.sync_all()?;
        let old = self.path().with_extension("replaced");
        if self.replaces {
            std::fs::rename(&self.out, &old).map_err(cannot)?;
        }
        if let Err(e) = std::fs::rename(self.path(), &self.out) {
            if self.replaces {
                std::fs::rename(&old, &self.out).map_err(cannot)?;
            }
            return Err(cannot(e).into());
        }
        if let Some(parent) = self.out.parent() {
            File::open(parent)?.sync_all()?;
        }
        if self.replaces {
            std::fs::remove_dir_all(&old)?;
        }
        Ok(())
    }
}

fn is_own(name: &str) -> bool {
    let is_selection = |end: &str| name.starts_with("selected-") && name.ends_with(end);
    matches!(name, "report.json" | "model.wnw" | super::explain::DECISIONS)
        || [".parquet", ".jsonl", ".jsonl.zst"].into_iter().any(is_selection)
}

/// Files of selected rows.
pub enum Output {
    Parquet(Box<SelectionWriter>),
    Lines(Lines),
}

impl Output {
    /// `footer`: of Parquet files. `threads`: that compress them, at most.
    pub fn new(
        folder: &Folder,
        format: Format,
        columns: SelectionColumns,
        footer: Vec<(String, String)>,
        threads: usize,
    ) -> Self {
        match format {
            Format::Parquet => Output::Parquet(Box::new(SelectionWriter::new(folder.path(), columns, footer, threads))),
            Format::Jsonl | Format::JsonlZst => Output::Lines(Lines {
                folder: folder.path().to_owned(),
                is_compressed: format == Format::JsonlZst,
                open: None,
                written: Vec::new(),
            }),
        }
    }

    pub fn write(&mut self, rows: &Rows) -> anyhow::Result<()> {
        match (self, rows) {
            (Output::Parquet(writer), Rows::Columns(rows)) => {
                rows.iter().try_for_each(|row| writer.write(row)).context("selection")
            }
            (Output::Lines(lines), Rows::Lines(bytes)) => lines.write(bytes).context("selection"),
            _ => anyhow::bail!("rows were made for another format"),
        }
    }

    /// Names of the files and their rows.
    pub fn finish(self) -> anyhow::Result<Vec<(String, u64)>> {
        match self {
            Output::Parquet(writer) => writer.finish().context("selection"),
            Output::Lines(mut lines) => {
                if lines.written.is_empty() && lines.open.is_none() {
                    lines.begin()?;
                }
                lines.end().context("selection")?;
                Ok(lines.written)
            }
        }
    }
}

/// JSONL files, plain or compressed.
pub struct Lines {
    folder: PathBuf,
    is_compressed: bool,
    open: Option<OpenLines>,
    written: Vec<(String, u64)>,
}

struct OpenLines {
    writer: LineWriter,
    rows: u64,
    bytes: u64,
}

enum LineWriter {
    Plain(File),
    Zstd(zstd::Encoder<'static, File>),
}

impl Lines {
    fn name(&self) -> String {
        let end = if self.is_compressed { ".zst" } else { "" };
        format!("selected-{:05}.jsonl{end}", self.written.len())
    }

    fn begin(&mut self) -> std::io::Result<()> {
        let file = File::create(self.folder.join(self.name()))?;
        let writer =
            if self.is_compressed { LineWriter::Zstd(zstd::Encoder::new(file, 1)?) } else { LineWriter::Plain(file) };
        self.open = Some(OpenLines { writer, rows: 0, bytes: 0 });
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let is_full = |open: &OpenLines| open.bytes > 0 && open.bytes + lines.len() as u64 > FILE_BYTES;
        if self.open.as_ref().is_some_and(is_full) {
            self.end()?;
        }
        if self.open.is_none() {
            self.begin()?;
        }
        if let Some(open) = &mut self.open {
            match &mut open.writer {
                LineWriter::Plain(file) => file.write_all(lines)?,
                LineWriter::Zstd(encoder) => encoder.write_all(lines)?,
            }
            open.rows += memchr::memchr_iter(b'\n', lines).count() as u64;
            open.bytes += lines.len() as u64;
        }
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let file = match open.writer {
            LineWriter::Plain(file) => file,
            LineWriter::Zstd(encoder) => encoder.finish()?,
        };
        file.sync_all()?;
        self.written.push((self.name(), open.rows));
        Ok(())
    }
}
