//! What the user named: files, and folders of files.

use std::path::{Path, PathBuf};

use super::FileError;

/// One file and how it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub path: PathBuf,
    pub format: Format,
    /// On disk; 0 for what is no regular file.
    pub bytes: u64,
    pub is_regular: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Jsonl,
    JsonlGzip,
    JsonlZstd,
    Parquet,
}

/// Names that a folder is searched for.
const IN_FOLDERS: [&str; 4] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"];

impl Format {
    /// By the end of the name; what has no known end is plain JSONL.
    fn of(path: &Path) -> Self {
        match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => Format::Parquet,
            Some("gz") => Format::JsonlGzip,
            Some("zst") => Format::JsonlZstd,
            _ => Format::Jsonl,
        }
    }
}

/// The files that `paths` name, in order. A folder stands for the JSONL and Parquet files in it, by name.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<Input>, FileError> {
    let mut inputs = Vec::new();
    for path in paths {
        let error = |problem: String| FileError { path: path.clone(), line: None, problem };
        let metadata = path.metadata().map_err(|e| error(e.to_string()))?;
        if !metadata.is_dir() {
            inputs.push(input(path.clone(), &metadata));
            continue;
        }
        let mut found = Vec::new();
        for entry in path.read_dir().map_err(|e| error(e.to_string()))? {
            let path = entry.map_err(|e| error(e.to_string()))?.path();
            let name = path.to_string_lossy();
            let metadata = path.metadata().map_err(|e| error(e.to_string()))?;
            if metadata.is_file() && IN_FOLDERS.iter().any(|end| name.ends_with(end)) {
                found.push(input(path, &metadata));
            }
        }
        if found.is_empty() {
            return Err(error(format!("a folder without files that end in {}", IN_FOLDERS.join(", "))));
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        inputs.append(&mut found);
    }
    Ok(inputs)
}

fn input(path: PathBuf, metadata: &std::fs::Metadata) -> Input {
    Input { format: Format::of(&path), bytes: metadata.len(), is_regular: metadata.is_file(), path }
}
