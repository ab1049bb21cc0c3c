//! A file without a name, which goes with the process however that ends, and what the page cache is told of it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::sink::FullDisk;
use crate::sink::patience::{Abandon, Patience};

/// What will be done with a part of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Soon,
    Never,
}

pub(super) struct SpoolFile {
    /// Dropped before the file.
    pub(super) _abandon: Abandon,
    pub(super) patience: Patience,
    pub(super) file: File,
}

impl SpoolFile {
    /// Tells the page cache what will be done with a part of the file; where that cannot be said, reading takes longer.
    pub fn advise(&self, range: Range<u64>, plan: Plan) {
        // No length would be all of it.
        let Some(bytes) = std::num::NonZeroU64::new(range.end - range.start) else { return };
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::Advice::{DontNeed, WillNeed};
            let advice = if plan == Plan::Soon { WillNeed } else { DontNeed };
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(bytes), advice);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (&self.file, bytes, plan);
    }

    pub fn create(folder: &Path, full_disk: &Arc<dyn FullDisk>) -> io::Result<Self> {
        let (patience, _abandon) = Patience::new(folder.to_owned(), full_disk.clone());
        let file = patience.with(|| tempfile::tempfile_in(folder))?;
        Ok(SpoolFile { _abandon, patience, file })
    }

    pub fn read_exact_at(&self, bytes: &mut [u8], start: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, start)
    }

    pub fn write(&self, bytes: &[u8], start: u64) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            let write = || self.file.write_at(&bytes[written..], start + written as u64);
            match self.patience.with(write) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
