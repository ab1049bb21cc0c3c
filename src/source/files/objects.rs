//! Objects of a store, read like files: from the beginning, at any place, or column by column, in bounded memory.
//!
//! Requests run on threads of their own, so that whoever waits for them may do so on any thread.

use std::fmt;
use std::io::{Error, ErrorKind, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Buf, Bytes};
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::Runtime;

/// What is asked for at a time when an object is read from its beginning; as much again is on its way.
const BLOCK_BYTES: u64 = 4 << 20;
/// What is asked for at a time of each column of a row group.
const COLUMN_BLOCK_BYTES: u64 = 2 << 20;
/// Stands before what a store has failed to do, as opposed to what is wrong with an object.
pub(super) const STORE_FAILED: &str = "the store fails: ";

/// A store from its root on.
pub struct Bucket {
    pub store: Arc<dyn ObjectStore>,
    /// Its URL without a path.
    pub url: url::Url,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.url)
    }
}

/// An object as it was when it was found: one that has changed since is an error, not another content.
#[derive(Debug, Clone)]
pub struct Object {
    pub bucket: Arc<Bucket>,
    pub key: ObjectPath,
    pub size: u64,
    e_tag: Option<String>,
}

impl Bucket {
    /// The object of a key; `None`: there is none.
    pub(super) fn find(self: &Arc<Self>, key: ObjectPath) -> Result<Option<Object>, Error> {
        let store = self.store.clone();
        match wait(async move { store.head(&key).await })? {
            Ok(found) => Ok(Some(Object::of(self, found))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Objects whose keys lie in a folder, and whether there are folders in it; or with all folders below it.
    pub(super) fn list(self: &Arc<Self>, folder: ObjectPath, deep: bool) -> Result<(Vec<Object>, bool), Error> {
        let store = self.store.clone();
        let listed = wait(async move {
            if deep {
                let all: Vec<ObjectMeta> = futures::TryStreamExt::try_collect(store.list(Some(&folder))).await?;
                return Ok((all, false));
            }
            let listed = store.list_with_delimiter(Some(&folder)).await?;
            Ok((listed.objects, !listed.common_prefixes.is_empty()))
        });
        let (found, has_folders) = listed?.map_err(failed)?;
        Ok((found.into_iter().map(|found| Object::of(self, found)).collect(), has_folders))
    }
}

impl Object {
    fn of(bucket: &Arc<Bucket>, found: ObjectMeta) -> Self {
        Object { bucket: bucket.clone(), key: found.location, size: found.size, e_tag: found.e_tag }
    }

    /// As a URL, its key as it is written.
    pub fn name(&self) -> String {
        format!("{}/{}", self.bucket.url.as_str().trim_end_matches('/'), self.key)
    }

    /// Asks for bytes that lie within the object.
    fn ask(&self, from: u64, len: u64) -> Receiver<Result<Bytes, Error>> {
        let Object { bucket, key, e_tag, .. } = self.clone();
        let (done, answer) = sync_channel(1);
        let ask = async move {
            let range = Some(GetRange::Bounded(from..from + len));
            let options = GetOptions { range, if_match: e_tag, ..GetOptions::default() };
            let bytes = match bucket.store.get_opts(&key, options).await {
                Ok(found) => found.bytes().await,
                Err(e) => Err(e),
            };
            let bytes = bytes.map_err(failed).and_then(|bytes| match bytes.len() as u64 {
                n if n == len => Ok(bytes),
                n => {
                    Err(Error::new(ErrorKind::UnexpectedEof, format!("{n} bytes came instead of {len} from {from} on")))
                }
            });
            // Nobody waits for it where reading has ended early.
            let _ = done.send(bytes);
        };
        // Without threads the request is dropped, which whoever waits for it is told.
        if let Ok(runtime) = runtime() {
            runtime.spawn(ask);
        }
        answer
    }

    /// Bytes from a place on, waited for.
    pub(super) fn bytes(&self, from: u64, len: u64) -> Result<Bytes, Error> {
        if from + len > self.size {
            let problem = format!("has {} bytes, asked for were those from {from} to {}", self.size, from + len);
            return Err(Error::new(ErrorKind::UnexpectedEof, problem));
        }
        if len == 0 { Ok(Bytes::new()) } else { received(&self.ask(from, len)) }
    }

    /// From its beginning to its end.
    pub(super) fn reader(&self) -> ObjectReader {
        ObjectReader { object: self.clone(), asked: 0, coming: None, block: Bytes::new() }
    }
}

fn received(answer: &Receiver<Result<Bytes, Error>>) -> Result<Bytes, Error> {
    answer.recv().unwrap_or_else(|_| Err(Error::other("a request to the store was dropped")))
}

fn failed(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::new(ErrorKind::NotFound, "the object is gone"),
        object_store::Error::Precondition { .. } => Error::other("the object was replaced while it was read"),
        error => Error::other(format!("{STORE_FAILED}{error}")),
    }
}

/// Runs a request to its end.
fn wait<T: Send + 'static>(request: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
    let (done, answer) = sync_channel(1);
    runtime()?.spawn(async move { drop(done.send(request.await)) });
    answer.recv().map_err(|_| Error::other("a request to the store was dropped"))
}

fn runtime() -> Result<&'static Runtime, Error> {
    static RUNTIME: OnceLock<Result<Runtime, Error>> = OnceLock::new();
    let start =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("objects").enable_all().build();
    RUNTIME.get_or_init(start).as_ref().map_err(|e| Error::new(e.kind(), e.to_string()))
}

/// Reads an object one block after the other, the next one being on its way.
pub(super) struct ObjectReader {
    object: Object,
    /// So much has been asked for.
    asked: u64,
    coming: Option<Receiver<Result<Bytes, Error>>>,
    block: Bytes,
}

impl ObjectReader {
    fn ask_next(&mut self) {
        let len = BLOCK_BYTES.min(self.object.size - self.asked);
        self.coming = (len > 0).then(|| self.object.ask(self.asked, len));
        self.asked += len;
    }
}

impl Read for ObjectReader {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        if self.block.is_empty() && !into.is_empty() {
            if self.coming.is_none() {
                self.ask_next();
            }
            let Some(coming) = self.coming.take() else { return Ok(0) };
            self.block = received(&coming)?;
            self.ask_next();
        }
        let n = into.len().min(self.block.len());
        self.block.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}

/// A Parquet file whose columns are read side by side, each a block at a time: the decoder goes back and forth between them.
#[derive(Clone)]
pub(super) struct ObjectColumns(Arc<Blocks>);

struct Blocks {
    object: Object,
    /// Where each column of the row group begins, and the block of it that was read last.
    columns: Vec<Column>,
}

struct Column {
    from: u64,
    to: u64,
    block: Mutex<(u64, Bytes)>,
}

impl ObjectColumns {
    /// `columns`: first and next byte of each; what lies in none of them is one more.
    pub fn new(object: Object, columns: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let column = |(from, to)| Column { from, to, block: Mutex::default() };
        let size = object.size;
        let columns = columns.into_iter().chain([(0, size)]).map(column).collect();
        ObjectColumns(Arc::new(Blocks { object, columns }))
    }

    /// At least `least` bytes from a place on, or what the block holds of more; nothing at the end.
    fn bytes(&self, from: u64, least: u64) -> Result<Bytes, Error> {
        let Blocks { object, columns } = &*self.0;
        let is_in = |column: &&Column| column.from <= from && from < column.to;
        let Some(column) = columns.iter().find(is_in) else { return object.bytes(from, least) };
        let mut block = column.block.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |(start, bytes): &(u64, Bytes)| {
            let end = start + bytes.len() as u64;
            *start <= from && from < end && from + least <= end
        };
        if !has(&block) {
            let len = least.max(COLUMN_BLOCK_BYTES.min(column.to - from));
            *block = (from, object.bytes(from, len)?);
        }
        Ok(block.1.slice((from - block.0) as usize..))
    }
}

impl Length for ObjectColumns {
    fn len(&self) -> u64 {
        self.0.object.size
    }
}

impl ChunkReader for ObjectColumns {
    type T = ColumnReader;

    fn get_read(&self, start: u64) -> Result<ColumnReader, ParquetError> {
        Ok(ColumnReader { columns: self.clone(), at: start })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        Ok(self.bytes(start, length as u64)?.slice(..length))
    }
}

/// Reads on from a place.
pub(super) struct ColumnReader {
    columns: ObjectColumns,
    at: u64,
}

impl Read for ColumnReader {
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        if into.is_empty() || self.at >= self.columns.len() {
            return Ok(0);
        }
        let mut bytes = self.columns.bytes(self.at, 1)?;
        let n = into.len().min(bytes.len());
        bytes.copy_to_slice(&mut into[..n]);
        self.at += n as u64;
        Ok(n)
    }
}
