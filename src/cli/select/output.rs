//! The folder of a selection: built under another name beside its place, and moved there when it is complete.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;

use super::rows::Rows;
use super::spool::Spool;
use crate::cli::UsageError;
use crate::cli::files::{WriteError, unwritable, unwritten};
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
    /// By the user.
    named: PathBuf,
    out: PathBuf,
    replaces: bool,
}

impl Folder {
    /// Refuses places where something stands, and those that no folder can take, before hours are spent.
    pub fn prepare(named: &Path, overwrite: bool) -> anyhow::Result<Self> {
        let shown = named.display();
        let cannot = |e: io::Error| unwritable(named, e);
        let out = std::path::absolute(named)?;
        // Where a link leads: no folder can take the place of the link itself.
        let out = match out.canonicalize() {
            Ok(found) => found,
            Err(_) if out.is_symlink() => {
                return Err(UsageError(format!("--out `{shown}` is a link to nothing: name a folder")).into());
            }
            Err(_) => out,
        };
        let parent = out.parent().unwrap_or(Path::new("/"));
        let mut replaces = false;
        if out.exists() {
            let device = |of: &Path| of.metadata().map(|found| found.dev());
            if device(&out).map_err(cannot)? != device(parent).map_err(cannot)? {
                let problem = format!(
                    "--out `{shown}` is a file system of its own, which cannot be replaced: name a new folder inside it"
                );
                return Err(UsageError(problem).into());
            }
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
        std::fs::create_dir_all(parent).map_err(cannot)?;
        let building = tempfile::Builder::new()
            .prefix(".winnowd-select-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(parent)
            .map_err(cannot)?;
        Ok(Folder { building, named: named.to_owned(), out, replaces })
    }

    fn path(&self) -> &Path {
        self.building.path()
    }

    /// Files for n-grams beside what will be published, without names: whatever happens, they do not stay.
    pub fn spool(&self, limit_bytes: u64, threads: usize) -> Spool {
        Spool::new((0..threads).map(|_| tempfile::tempfile_in(self.path())), limit_bytes)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let write = || {
            let mut file = File::create(self.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        Ok(write().map_err(|e| self.failed(e))?)
    }

    pub fn create(&self, name: &str) -> anyhow::Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(self.path().join(name)).map_err(|e| self.failed(e))?))
    }

    /// What is said when a file in it cannot be written.
    pub fn failed(&self, e: io::Error) -> WriteError {
        WriteError::new(&self.named, e)
    }

    /// The same of a file of the selection.
    pub fn unwritten(&self, e: ParquetError) -> anyhow::Error {
        unwritten(&self.named, e)
    }

    /// Moves the folder to its place. What it replaces is there until then. A selection that cannot be moved is kept.
    pub fn publish(self) -> anyhow::Result<()> {
        sync(self.path()).map_err(|e| self.failed(e))?;
        let old = self.path().with_extension("replaced");
        if let Err(e) = self.take_place(&old) {
            let cannot = unwritable(&self.named, e);
            let mut left = format!("the selection is complete in `{}`", self.building.keep().display());
            if old.exists() {
                left += &format!(", what it was to replace is in `{}`", old.display());
            }
            return Err(cannot.context(left));
        }
        sync(self.out.parent().unwrap_or(Path::new("/"))).map_err(|e| self.failed(e))?;
        if self.replaces {
            std::fs::remove_dir_all(&old)?;
        }
        Ok(())
    }

    fn take_place(&self, old: &Path) -> io::Result<()> {
        if self.replaces {
            std::fs::rename(&self.out, old)?;
        }
        let moved = std::fs::rename(self.path(), &self.out);
        if moved.is_err() && self.replaces {
            // Where it stays otherwise is said.
            let _ = std::fs::rename(old, &self.out);
        }
        moved
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
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

    pub fn write(&mut self, rows: &Rows) -> Result<(), ParquetError> {
        match (self, rows) {
            (Output::Parquet(writer), Rows::Columns(rows)) => rows.iter().try_for_each(|row| writer.write(row)),
            (Output::Lines(lines), Rows::Lines(bytes)) => Ok(lines.write(bytes)?),
            _ => Err(ParquetError::General("rows were made for another format".to_owned())),
        }
    }

    /// Names of the files and their rows.
    pub fn finish(self) -> Result<Vec<(String, u64)>, ParquetError> {
        match self {
            Output::Parquet(writer) => writer.finish(),
            Output::Lines(mut lines) => {
                if lines.written.is_empty() && lines.open.is_none() {
                    lines.begin()?;
                }
                lines.end()?;
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

    fn begin(&mut self) -> io::Result<()> {
        let file = File::create(self.folder.join(self.name()))?;
        let writer =
            if self.is_compressed { LineWriter::Zstd(zstd::Encoder::new(file, 1)?) } else { LineWriter::Plain(file) };
        self.open = Some(OpenLines { writer, rows: 0, bytes: 0 });
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
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

    fn end(&mut self) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever came to stand in its place meanwhile.
    #[test]
    fn a_selection_that_cannot_be_moved_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        let folder = Folder::prepare(&out, false).unwrap();
        folder.write("report.json", b"{}").unwrap();
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("thesis.tex"), "").unwrap();
        let kept = folder.path().to_owned();
        let said = format!("{:#}", folder.publish().unwrap_err());
        assert!(said.contains(&format!("the selection is complete in `{}`", kept.display())), "{said}");
        assert!(said.contains(&format!("--out `{}` cannot be written", out.display())), "{said}");
        assert_eq!(std::fs::read(kept.join("report.json")).unwrap(), b"{}");
        assert!(out.join("thesis.tex").exists());
    }

    #[test]
    fn a_selection_is_kept_when_what_it_replaces_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("report.json"), "old").unwrap();
        let folder = Folder::prepare(&out, true).unwrap();
        folder.write("report.json", b"new").unwrap();
        std::fs::remove_dir_all(&out).unwrap();
        let kept = folder.path().to_owned();
        assert!(folder.publish().is_err());
        assert_eq!(std::fs::read(kept.join("report.json")).unwrap(), b"new");
    }
}
