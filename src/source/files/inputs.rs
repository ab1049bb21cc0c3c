//! What the user named: files, folders of files, patterns of names; on this machine, or in an object store.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::{MatchOptions, Pattern};
use object_store::path::Path as ObjectPath;

use super::FileError;
use super::objects::{Bucket, Object};
use crate::config::STORE_SCHEMES;
use crate::store::StoreOptions;

/// One file and how it is read.
#[derive(Debug, Clone)]
pub struct Input {
    /// What it is called: its path, or the URL of an object.
    pub path: PathBuf,
    pub format: Format,
    pub compression: Compression,
    /// As they are stored; 0 for what is no regular file.
    pub bytes: u64,
    /// It can be read twice, and from any place on.
    pub is_regular: bool,
    /// `None`: it is a file on this machine.
    pub object: Option<Object>,
    /// As it was found; `None` for what is no regular file on this machine.
    identity: Option<Identity>,
}

/// What tells a file from another one of its name, and from itself before somebody wrote to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

/// What is said of an input of which two readings do not belong together.
pub const CHANGED: &str = "the input has changed while it was read";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Jsonl,
    Csv,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// One member after the other.
    Gzip,
    /// One frame after the other.
    Zstd,
}

/// As much as the format's own program writes (`--long=31`). A frame says how much it needs, files are decompressed one at a time, and of
/// the window only what has been written to takes memory: at most 2 GiB, for those who chose such files.
const MAX_WINDOW_LOG: u32 = 31;

/// Names that a folder is searched for.
const IN_FOLDERS: [&str; 7] = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".csv.gz", ".csv.zst"];

/// A `*` stands for a part of one name, `**` for any folders.
const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

impl Format {
    /// By the end of the name; what has no known end is JSONL.
    fn of(name: &str) -> (Self, Compression) {
        let (name, compression) = match name.rsplit_once('.') {
            Some((name, "gz")) => (name, Compression::Gzip),
            Some((name, "zst")) => (name, Compression::Zstd),
            _ => (name, Compression::None),
        };
        let format = match (name.rsplit_once('.'), compression) {
            (Some((_, "csv")), _) => Format::Csv,
            (Some((_, "parquet")), Compression::None) => Format::Parquet,
            _ => Format::Jsonl,
        };
        (format, compression)
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl Input {
    fn file(path: PathBuf, metadata: &Metadata) -> Self {
        let (format, compression) = Format::of(&path.to_string_lossy());
        let (bytes, is_regular) = (metadata.len(), metadata.is_file());
        let identity = is_regular.then(|| Identity::of(metadata));
        Input { path, format, compression, bytes, is_regular, object: None, identity }
    }

    fn object(object: Object) -> Self {
        let (format, compression) = Format::of(object.key.as_ref());
        let (path, bytes) = (PathBuf::from(object.name()), object.size);
        Input { path, format, compression, bytes, is_regular: true, object: Some(object), identity: None }
    }

    /// What it is called, as text.
    pub fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// The file on this machine, if it is still the one that was found.
    pub(super) fn open_file(&self) -> Result<File, String> {
        let file = File::open(&self.path).map_err(|e| e.to_string())?;
        self.check_unchanged(&file)?;
        Ok(file)
    }

    /// A handle for [`Input::check_unchanged`] while others read; `None` where nothing could be seen by it. A pipe must
    /// not be opened twice.
    pub(super) fn watch(&self) -> Result<Option<File>, String> {
        self.identity.map(|_| self.open_file()).transpose()
    }

    /// Refuses an open file that is another than the one that was found, or has been written to since: numbers of
    /// documents, and places in it, would mean others.
    pub(super) fn check_unchanged(&self, file: &File) -> Result<(), String> {
        let Some(identity) = self.identity else { return Ok(()) };
        let found = file.metadata().map_err(|e| e.to_string())?;
        if Identity::of(&found) == identity { Ok(()) } else { Err(CHANGED.to_owned()) }
    }

    /// What it holds, decompressed, from the beginning.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, FileError> {
        let stored: std::io::Result<Box<dyn Read + Send>> = match &self.object {
            Some(object) => Ok(Box::new(object.reader())),
            None => File::open(&self.path).map(|file| Box::new(file) as Box<dyn Read + Send>),
        };
        let opened = stored.and_then(|stored| self.compression.of(stored));
        opened.map_err(|e| FileError { path: self.path.clone(), line: None, problem: e.to_string() })
    }
}

impl Compression {
    /// What stands behind compressed bytes.
    pub(super) fn of(self, stored: impl Read + Send + 'static) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Compression::None => Box::new(stored),
            Compression::Gzip => {
                let stored = std::io::BufReader::with_capacity(128 << 10, stored);
                Box::new(flate2::bufread::MultiGzDecoder::new(stored))
            }
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::new(stored)?;
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// The files that `paths` name, in order. A folder stands for the JSONL, CSV and Parquet files in it, and a pattern (`*`, `?`,
/// `[…]`, `**`) for those that match it, by name. `options` are those of stores.
pub fn expand(paths: &[PathBuf], options: &StoreOptions) -> Result<Vec<Input>, FileError> {
    let mut buckets = Buckets { options, open: BTreeMap::new() };
    let mut inputs = Vec::new();
    for path in paths {
        let found = match path.to_str().filter(|path| is_url(path)) {
            Some(url) => buckets.expand(url),
            None => expand_local(path),
        };
        let mut found = found.map_err(|problem| FileError { path: path.clone(), line: None, problem })?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        inputs.append(&mut found);
    }
    Ok(inputs)
}

/// Whether it names an object, and no file.
pub fn is_url(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| STORE_SCHEMES.contains(&scheme))
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

fn is_of_folder(name: &str) -> bool {
    IN_FOLDERS.iter().any(|end| name.ends_with(end))
}

fn none_in_folder(has_folders: bool) -> String {
    let hint = if has_folders { "; it holds folders, whose files FOLDER/**/*.parquet would name" } else { "" };
    format!("a folder without files that end in {}{hint}", IN_FOLDERS.join(", "))
}

const NO_MATCH: &str = "no file matches this";

fn expand_local(path: &Path) -> Result<Vec<Input>, String> {
    let metadata = match (path.metadata(), path.to_str()) {
        (Ok(metadata), _) => metadata,
        // What is there by this name is meant, whatever it looks like.
        (Err(e), Some(pattern)) if e.kind() == std::io::ErrorKind::NotFound && is_pattern(pattern) => {
            return expand_pattern(pattern);
        }
        (Err(e), _) => return Err(e.to_string()),
    };
    if !metadata.is_dir() {
        return Ok(vec![Input::file(path.to_owned(), &metadata)]);
    }
    let (mut found, mut has_folders) = (Vec::new(), false);
    for entry in path.read_dir().map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let metadata = path.metadata().map_err(|e| e.to_string())?;
        has_folders |= metadata.is_dir();
        if metadata.is_file() && is_of_folder(&path.to_string_lossy()) {
            found.push(Input::file(path, &metadata));
        }
    }
    if found.is_empty() { Err(none_in_folder(has_folders)) } else { Ok(found) }
}

fn expand_pattern(pattern: &str) -> Result<Vec<Input>, String> {
    let mut found = Vec::new();
    for path in glob::glob_with(pattern, MATCHING).map_err(|e| e.to_string())? {
        let path = path.map_err(|e| e.to_string())?;
        let metadata = path.metadata().map_err(|e| e.to_string())?;
        if metadata.is_file() {
            found.push(Input::file(path, &metadata));
        }
    }
    if found.is_empty() { Err(NO_MATCH.to_owned()) } else { Ok(found) }
}

/// Stores that have been asked, by their URLs without a path.
struct Buckets<'a> {
    options: &'a StoreOptions,
    open: BTreeMap<String, Arc<Bucket>>,
}

impl Buckets<'_> {
    fn expand(&mut self, url: &str) -> Result<Vec<Input>, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        // Not as the path of a URL, in which `?` and `%` mean something.
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket = self.bucket(scheme, host)?;
        let path = |key: &str| ObjectPath::parse(key.trim_matches('/')).map_err(|e| e.to_string());
        let problem = |e: std::io::Error| e.to_string();
        if !key.is_empty() && !key.ends_with('/') && !key.contains("**") {
            // What is there by this name is meant, whatever it looks like.
            if let Some(object) = bucket.find(path(key)?).map_err(problem)? {
                return Ok(vec![Input::object(object)]);
            }
        }
        let inputs = |objects: Vec<Object>, is_meant: &dyn Fn(&str) -> bool| {
            // An object of this kind stands for the folder itself.
            let objects = objects.into_iter().filter(|object| !object.key.as_ref().ends_with('/'));
            objects.filter(|object| is_meant(object.key.as_ref())).map(Input::object).collect::<Vec<_>>()
        };
        if is_pattern(key) {
            let pattern = Pattern::new(key).map_err(|e| e.to_string())?;
            let literal = &key[..key.find(['*', '?', '[']).unwrap_or_default()];
            let folder = literal.rsplit_once('/').map_or("", |(folder, _)| folder);
            let deep = key[folder.len()..].trim_start_matches('/').contains('/');
            let (objects, _) = bucket.list(path(folder)?, deep).map_err(problem)?;
            let found = inputs(objects, &|key| pattern.matches_with(key, MATCHING));
            return if found.is_empty() { Err(NO_MATCH.to_owned()) } else { Ok(found) };
        }
        let (objects, has_folders) = bucket.list(path(key)?, false).map_err(problem)?;
        let is_there = has_folders || !objects.is_empty();
        let found = inputs(objects, &is_of_folder);
        match (found.is_empty(), is_there) {
            (false, _) => Ok(found),
            (true, true) => Err(none_in_folder(has_folders)),
            (true, false) => Err("there is no such object, and no object in such a folder".to_owned()),
        }
    }

    fn bucket(&mut self, scheme: &str, host: &str) -> Result<Arc<Bucket>, String> {
        if host.is_empty() {
            return Err(format!("expected {scheme}://BUCKET/KEY"));
        }
        let url = format!("{scheme}://{host}");
        if let Some(bucket) = self.open.get(&url) {
            return Ok(bucket.clone());
        }
        let parsed = url::Url::parse(&url).map_err(|e| e.to_string())?;
        let options = self.options.iter().filter(|(option, _)| crate::config::is_store_option(scheme, option));
        let options = options.map(|(option, value)| (option.clone(), value.clone())).collect();
        let store = crate::store::open(&parsed, &options).map_err(|e| e.to_string())?;
        let bucket = Arc::new(Bucket { store: Arc::from(store), url: parsed });
        self.open.insert(url, bucket.clone());
        Ok(bucket)
    }
}
