//! A Parquet file under construction in a scratch file without a name, which goes with the process however that ends. Its bytes are
//! digested as they are written.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use sha2::{Digest, Sha256};

use super::patience::{Abandon, Patience};
use super::row_groups::{Ahead, RowGroupWriter};
use super::{FullDisk, SinkError};

pub(super) struct ScratchParquet {
    /// For messages.
    shard: String,
    /// Dropped before the file.
    _abandon: Abandon,
    writer: RowGroupWriter<HashingFile>,
    scratch: File,
    folder: PathBuf,
}

/// A complete Parquet file in the scratch folder.
pub struct FinishedFile {
    pub file: ScratchFile,
    pub rows: u64,
    pub bytes: u64,
    /// `sha256:` and hex.
    pub digest: String,
}

/// A complete scratch file.
pub struct ScratchFile {
    file: File,
    folder: PathBuf,
}

impl ScratchFile {
    pub fn new(file: File, folder: PathBuf) -> Self {
        ScratchFile { file, folder }
    }

    /// A handle at the beginning of the file. All handles share one position: read one at a time.
    pub fn rewound(&self) -> Result<File, SinkError> {
        let rewind = || {
            let mut file = self.file.try_clone()?;
            file.rewind()?;
            Ok(file)
        };
        rewind().map_err(|source| self.error(source))
    }

    pub(super) fn error(&self, source: std::io::Error) -> SinkError {
        SinkError::Scratch { folder: self.folder.clone(), source }
    }
}

impl ScratchParquet {
    /// `scratch_dir`: by default the system's folder for temporary files. Where the disk is full, this and all else here waits
    /// for room, as long as `full_disk` does.
    pub fn create(
        shard: &str,
        scratch_dir: Option<&Path>,
        schema: SchemaRef,
        properties: WriterProperties,
        ahead: Ahead,
        full_disk: Arc<dyn FullDisk>,
    ) -> Result<Self, SinkError> {
        let folder = scratch_dir.map_or_else(std::env::temp_dir, PathBuf::from);
        let io_error = |source| SinkError::Scratch { folder: folder.clone(), source };
        let (patience, _abandon) = Patience::new(folder.clone(), full_disk);
        let scratch = patience.with(|| tempfile::tempfile_in(&folder)).map_err(io_error)?;
        let file = HashingFile {
            file: BufWriter::with_capacity(256 << 10, scratch.try_clone().map_err(io_error)?),
            digest: Sha256::new(),
            patience,
        };
        let parquet_error = |source| parquet_error(shard, &folder, source);
        let writer = RowGroupWriter::new(file, schema, properties, ahead).map_err(parquet_error)?;
        Ok(ScratchParquet { shard: shard.to_owned(), _abandon, writer, scratch, folder })
    }

    pub fn write(&mut self, batch: RecordBatch) -> Result<(), SinkError> {
        self.writer.write(batch).map_err(|source| parquet_error(&self.shard, &self.folder, source))
    }

    pub fn end_row_group(&mut self) -> Result<(), SinkError> {
        self.writer.end_row_group().map_err(|source| parquet_error(&self.shard, &self.folder, source))
    }

    /// Estimate of the file's size if it ended now.
    pub fn bytes(&self) -> usize {
        self.writer.bytes()
    }

    /// Bytes held in memory.
    pub fn held_bytes(&self) -> usize {
        self.writer.held_bytes()
    }

    /// Ends the file with `metadata` in its footer.
    pub fn finish(self, rows: u64, metadata: Vec<(String, String)>) -> Result<FinishedFile, SinkError> {
        let ScratchParquet { shard, _abandon, writer, scratch, folder } = self;
        let metadata = metadata.into_iter().map(|(key, value)| KeyValue::new(key, value));
        let ended = |to: &mut HashingFile| (to.file.get_ref().metadata(), to.digest.clone().finalize());
        let (file, digest) = writer.finish(metadata, ended).map_err(|source| parquet_error(&shard, &folder, source))?;
        let bytes = file.map_err(|source| SinkError::Scratch { folder: folder.clone(), source })?.len();
        let digest = format!("sha256:{}", crate::hex(&digest));
        Ok(FinishedFile { file: ScratchFile::new(scratch, folder), rows, bytes, digest })
    }
}

/// What went wrong with the file below, a full disk above all, is said of its folder.
fn parquet_error(shard: &str, folder: &Path, source: ParquetError) -> SinkError {
    match file_error(source) {
        Ok(source) => SinkError::Scratch { folder: folder.to_owned(), source },
        Err(source) => SinkError::Parquet { shard: shard.to_owned(), source },
    }
}

/// The error of the file below, if that is what failed; otherwise the error as it was.
pub fn file_error(error: ParquetError) -> Result<std::io::Error, ParquetError> {
    match error {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(cause) => Ok(*cause),
            Err(cause) => Err(ParquetError::External(cause)),
        },
        other => Err(other),
    }
}

/// A file that digests what passes through.
struct HashingFile {
    file: BufWriter<File>,
    digest: Sha256,
    patience: Patience,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.patience.with(|| self.file.write(bytes))?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.patience.with(|| self.file.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_is_told_by_its_folder() {
        let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = parquet_error("s", Path::new("/scratch"), ParquetError::External(Box::new(io)));
        assert!(matches!(error, SinkError::Scratch { .. }), "{error}");
        let error = parquet_error("s", Path::new("/scratch"), ParquetError::General("no".into()));
        assert!(matches!(error, SinkError::Parquet { .. }), "{error}");
        let missing = ScratchParquet::create(
            "s",
            Some(Path::new("/no/such/folder")),
            Arc::new(arrow::datatypes::Schema::empty()),
            WriterProperties::default(),
            Ahead::NONE,
            Arc::new(crate::sink::GiveUp),
        );
        assert!(missing.err().unwrap().to_string().contains("/no/such/folder"));
    }
}
