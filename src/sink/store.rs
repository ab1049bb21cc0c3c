//! The object store: complete objects only, durable before anyone is told of them.

use std::fs::{File, TryLockError};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientOptions, GetResult, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig, UpdateVersion,
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::{ScratchFile, SinkError};
use crate::config::SinkConfig;
use crate::crash;

const MANIFEST: &str = "manifest.jsonl";
/// Beside a local manifest: whoever adds to it has it locked. The system frees it however a process ends.
const MANIFEST_LOCK: &str = ".manifest.lock";
/// How long to wait for another worker, which may have been stopped while it had the manifest locked.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(5);
/// Part size of uploads; smaller files go in one request.
const PART_BYTES: usize = 8 << 20;
/// Of one request to an object store. What fails for longer than the retries is tried again by whoever asked.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES: usize = 5;

/// Where shards and their manifest go.
#[derive(Clone)]
pub struct ShardStore {
    store: Arc<dyn ObjectStore>,
    name: String,
    /// The folder behind a local store. It does not sync what it writes, so this module does.
    local_root: Option<PathBuf>,
}

impl ShardStore {
    /// Opens the store of the configuration, creating a local folder where it is missing.
    pub fn open(config: &SinkConfig) -> Result<Self, SinkError> {
        let name = config.url.to_string();
        if config.url.scheme() != "file" {
            let store = remote(config);
            let store =
                store.map_err(|source| SinkError::Store { store: name.clone(), path: String::new(), source })?;
            return Ok(ShardStore { store: Arc::from(store), name, local_root: None });
        }
        let failed = |source| SinkError::Sync { store: name.clone(), path: String::new(), source };
        let root = config.url.to_file_path().map_err(|()| failed(std::io::ErrorKind::InvalidInput.into()))?;
        std::fs::create_dir_all(&root).map_err(failed)?;
        let store = LocalFileSystem::new_with_prefix(&root);
        let store = store.map_err(|source| SinkError::Store { store: name.clone(), path: String::new(), source })?;
        Ok(ShardStore { store: Arc::new(store), name, local_root: Some(root) })
    }

    /// The key of a shard, relative to the root.
    pub fn shard_path(shard: &str) -> String {
        format!("shards/{shard}.parquet")
    }

    /// The key of the dead letters that are published with a shard.
    pub fn dead_letter_path(shard: &str) -> String {
        format!("dead-letters/{shard}.parquet")
    }

    /// Puts a file at `path` and returns when it is complete and durable. May be repeated.
    pub async fn upload(&self, file: &ScratchFile, bytes: u64, path: &str) -> Result<(), SinkError> {
        let key = ObjectPath::from(path);
        let store_error = |source| self.store_error(path, source);
        let read_error = |source| file.error(source);
        let mut reader = tokio::fs::File::from_std(file.rewound()?);
        if bytes <= PART_BYTES as u64 {
            let mut content = Vec::with_capacity(bytes as usize);
            reader.read_to_end(&mut content).await.map_err(read_error)?;
            crash::point("upload.half");
            self.store.put(&key, content.into()).await.map_err(store_error)?;
        } else {
            let mut upload = self.store.put_multipart(&key).await.map_err(store_error)?;
            let done = self.put_parts(&mut *upload, reader, file, path).await;
            if done.is_err() {
                // Parts of an upload that is neither completed nor aborted are paid for and never seen. The store may be out of
                // reach altogether: what matters is the first error.
                let _ = upload.abort().await;
            }
            done?;
        }
        crash::point("upload.before_sync");
        self.make_durable(path).await?;
        let found = self.store.head(&key).await.map_err(store_error)?.size;
        if found != bytes {
            return Err(SinkError::Torn { store: self.name.clone(), path: path.to_owned(), expected: bytes, found });
        }
        Ok(())
    }

    /// One part after the other: that bounds the memory.
    async fn put_parts(
        &self,
        upload: &mut dyn MultipartUpload,
        mut reader: tokio::fs::File,
        file: &ScratchFile,
        path: &str,
    ) -> Result<(), SinkError> {
        let store_error = |source| self.store_error(path, source);
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            let n = (&mut reader).take(PART_BYTES as u64).read_to_end(&mut part).await.map_err(|e| file.error(e))?;
            if n == 0 {
                return upload.complete().await.map(drop).map_err(store_error);
            }
            upload.put_part(part.into()).await.map_err(store_error)?;
            crash::point("upload.half");
        }
    }

    /// Whether all that publishing needs can be done here: writing, writing only what is not there yet, deleting.
    pub async fn probe(&self) -> Result<(), SinkError> {
        let path = format!(".winnowd-check-{}", uuid::Uuid::now_v7());
        let key = ObjectPath::from(path.as_str());
        let store_error = |source| self.store_error(&path, source);
        let put = async || self.store.put_opts(&key, PutPayload::from_static(b"check"), PutMode::Create.into()).await;
        put().await.map_err(store_error)?;
        let again = put().await;
        self.store.delete(&key).await.map_err(store_error)?;
        match again {
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(()),
            Err(e) => Err(store_error(e)),
            Ok(_) => Err(SinkError::Unconditional { store: self.name.clone() }),
        }
    }

    /// Bytes and SHA-256 (in hexadecimal) of an object; `None` when there is none.
    pub async fn digest(&self, path: &str) -> Result<Option<(u64, String)>, SinkError> {
        let store_error = |source| self.store_error(path, source);
        let mut content = match self.store.get(&ObjectPath::from(path)).await {
            Ok(object) => object.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(store_error(e)),
        };
        let (mut bytes, mut digest) = (0, Sha256::new());
        while let Some(part) = content.next().await {
            let part = part.map_err(store_error)?;
            bytes += part.len() as u64;
            digest.update(&part);
        }
        Ok(Some((bytes, crate::hex(&digest.finalize()))))
    }

    /// A whole object.
    pub async fn read(&self, path: &str) -> Result<Bytes, SinkError> {
        let object = self.store.get(&ObjectPath::from(path)).await.map_err(|e| self.store_error(path, e))?;
        object.bytes().await.map_err(|e| self.store_error(path, e))
    }

    /// A file with the content of an object: the object itself in a local store, else a scratch file without a name. `None`
    /// when there is none.
    pub async fn download(&self, path: &str, scratch_dir: Option<&Path>) -> Result<Option<File>, SinkError> {
        let store_error = |source| self.store_error(path, source);
        let mut content = match self.store.get(&ObjectPath::from(path)).await {
            Ok(GetResult { payload: GetResultPayload::File(file, _), .. }) => return Ok(Some(file)),
            Ok(object) => object.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(store_error(e)),
        };
        let folder = scratch_dir.map_or_else(std::env::temp_dir, PathBuf::from);
        let scratch_error = |source| SinkError::Scratch { folder: folder.clone(), source };
        let mut file = tempfile::tempfile_in(&folder).map_err(scratch_error)?;
        while let Some(part) = content.next().await {
            file.write_all(&part.map_err(store_error)?).map_err(scratch_error)?;
        }
        Ok(Some(file))
    }

    /// Deletes an object; tells whether there was one.
    pub async fn delete(&self, path: &str) -> Result<bool, SinkError> {
        let key = ObjectPath::from(path);
        match self.store.head(&key).await {
            Ok(_) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(e) => return Err(self.store_error(path, e)),
        }
        match self.store.delete(&key).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.store_error(path, e)),
        }
    }

    /// Opens the manifest to add lines to it. Of several workers only one has a local manifest open at a time; of those
    /// that change one on an object store only the first succeeds.
    pub async fn open_manifest(&self) -> Result<Manifest, SinkError> {
        let Some(root) = self.local_root.clone() else { return self.open_remote_manifest().await };
        let open = move || {
            let lock = File::options().create(true).append(true).open(root.join(MANIFEST_LOCK))?;
            lock_soon(&lock)?;
            let options = File::options().create(true).truncate(false).read(true).write(true).clone();
            let mut file = options.open(root.join(MANIFEST))?;
            let (last_sequence, end) = whole_lines(&mut file)?;
            // A crash while lines were added left half of one.
            if end < file.metadata()?.len() {
                file.set_len(end)?;
            }
            file.seek(SeekFrom::End(0))?;
            if end == 0 {
                File::open(&root)?.sync_all()?;
            }
            Ok((last_sequence, Place::Local { file, lock }))
        };
        let (last_sequence, place) = self.local(open).await?;
        Ok(Manifest { store: self.clone(), last_sequence, place })
    }

    async fn open_remote_manifest(&self) -> Result<Manifest, SinkError> {
        let store_error = |source| self.store_error(MANIFEST, source);
        let (content, version) = match self.store.get(&ObjectPath::from(MANIFEST)).await {
            Ok(object) => {
                let version = UpdateVersion { e_tag: object.meta.e_tag.clone(), version: object.meta.version.clone() };
                (object.bytes().await.map_err(store_error)?.to_vec(), Some(version))
            }
            Err(object_store::Error::NotFound { .. }) => (Vec::new(), None),
            Err(e) => return Err(store_error(e)),
        };
        let (last_sequence, _) = whole_lines(&mut Cursor::new(&content)).map_err(|e| self.manifest_error(e))?;
        Ok(Manifest { store: self.clone(), last_sequence, place: Place::Remote { content, version } })
    }

    async fn local<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let done = tokio::task::spawn_blocking(act).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        done.map_err(|e| self.manifest_error(e))
    }

    fn manifest_error(&self, source: std::io::Error) -> SinkError {
        SinkError::Sync { store: self.name.clone(), path: MANIFEST.to_owned(), source }
    }

    /// The manifest as it is, to be compared with what it should be.
    pub async fn manifest(&self) -> Result<Vec<u8>, SinkError> {
        let store_error = |source| self.store_error(MANIFEST, source);
        match self.store.get(&ObjectPath::from(MANIFEST)).await {
            Ok(object) => Ok(object.bytes().await.map_err(store_error)?.to_vec()),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(e) => Err(store_error(e)),
        }
    }

    /// Refuses a store whose `manifest`, up to its last line break, is not the beginning of `lines`: it belongs to another
    /// catalog. The lines must have been read after it, since other workers may be adding to both.
    pub fn check_manifest(&self, manifest: &[u8], lines: &[String]) -> Result<(), SinkError> {
        let end = memchr::memrchr(b'\n', manifest).map_or(0, |last| last + 1);
        if joined(lines).starts_with(&manifest[..end]) {
            return Ok(());
        }
        Err(SinkError::ForeignManifest { store: self.name.clone(), path: MANIFEST.to_owned() })
    }

    fn store_error(&self, path: &str, source: object_store::Error) -> SinkError {
        SinkError::Store { store: self.name.clone(), path: path.to_owned(), source }
    }

    /// Syncs a local file and every folder up to the root, since each may be new. Remote stores acknowledge durably.
    async fn make_durable(&self, path: &str) -> Result<(), SinkError> {
        let Some(root) = self.local_root.clone() else { return Ok(()) };
        let file = root.join(path);
        let sync = move || {
            for part in file.ancestors() {
                File::open(part)?.sync_all()?;
                if part == root {
                    break;
                }
            }
            Ok(())
        };
        let result = tokio::task::spawn_blocking(sync).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        result.map_err(|source| SinkError::Sync { store: self.name.clone(), path: path.to_owned(), source })
    }
}

/// A manifest that is open for lines to be added.
pub struct Manifest {
    store: ShardStore,
    /// Of its last line; 0 when it has none.
    pub last_sequence: i64,
    place: Place,
}

enum Place {
    /// With the lock, which is freed when its file is closed.
    Local {
        file: File,
        lock: File,
    },
    Remote {
        content: Vec<u8>,
        version: Option<UpdateVersion>,
    },
}

impl Manifest {
    /// Adds lines. On an object store it fails if the manifest has changed since it was opened.
    pub async fn append(self, lines: &[String]) -> Result<(), SinkError> {
        if lines.is_empty() {
            return Ok(());
        }
        let new = joined(lines);
        let Manifest { store, place, .. } = self;
        match place {
            Place::Local { mut file, lock } => {
                let append = move || {
                    let end = file.metadata()?.len();
                    let write = |file: &mut File| {
                        let (first_half, second_half) = new.split_at(new.len() / 2);
                        file.write_all(first_half)?;
                        crash::point("manifest.half");
                        file.write_all(second_half)?;
                        file.sync_all()
                    };
                    let written = write(&mut file);
                    if written.is_err() {
                        // A disk that is full has taken half a line; should this fail too, whoever opens it next cuts it off.
                        let _ = file.set_len(end);
                    }
                    drop(lock);
                    written
                };
                store.local(append).await
            }
            Place::Remote { mut content, version } => {
                content.extend_from_slice(&new);
                let mode = version.map_or(PutMode::Create, PutMode::Update);
                let payload = PutPayload::from(Bytes::from(content));
                let put = store.store.put_opts(&ObjectPath::from(MANIFEST), payload, mode.into()).await;
                put.map(drop).map_err(|e| store.store_error(MANIFEST, e))
            }
        }
    }
}

/// Locks a file within [`MANIFEST_PATIENCE`].
fn lock_soon(file: &File) -> std::io::Result<()> {
    let deadline = Instant::now() + MANIFEST_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Err(std::io::Error::other("another worker has it locked")),
        }
    }
}

/// The sequence number of the last whole line, 0 when there is none, and where that line ends.
fn whole_lines(file: &mut (impl Read + Seek)) -> std::io::Result<(i64, u64)> {
    let len = file.seek(SeekFrom::End(0))?;
    let mut tail = 64u64 << 10;
    loop {
        let start = len.saturating_sub(tail);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(len - start).read_to_end(&mut bytes)?;
        let end = memchr::memrchr(b'\n', &bytes);
        let begin = end.and_then(|end| memchr::memrchr(b'\n', &bytes[..end]).map(|before| before + 1));
        match (begin, end) {
            (Some(begin), Some(end)) => return Ok((sequence_of(&bytes[begin..end])?, start + end as u64 + 1)),
            (None, Some(end)) if start == 0 => return Ok((sequence_of(&bytes[..end])?, end as u64 + 1)),
            (None, None) if start == 0 => return Ok((0, 0)),
            _ => tail *= 4,
        }
    }
}

fn sequence_of(line: &[u8]) -> std::io::Result<i64> {
    #[derive(serde::Deserialize)]
    struct Line {
        sequence: i64,
    }
    let line: Result<Line, _> = serde_json::from_slice(line);
    line.map(|line| line.sequence).map_err(|e| std::io::Error::other(format!("its last line is damaged: {e}")))
}

/// The object store of a URL, below its prefix.
fn remote(config: &SinkConfig) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    /// The same for every kind of builder: the environment, the URL, then our options.
    macro_rules! build {
        ($builder:ty, $with:expr) => {{
            let client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
            let retry = RetryConfig { retry_timeout: RETRY_TIMEOUT, max_retries: RETRIES, ..RetryConfig::default() };
            let builder = <$builder>::from_env().with_client_options(client).with_retry(retry);
            let mut builder = $with(builder.with_url(config.url.as_str()));
            for (option, value) in &config.options {
                builder = builder.with_config(option.parse()?, value.reveal());
            }
            Box::new(PrefixStore::new(builder.build()?, ObjectPath::from_url_path(config.url.path())?))
        }};
    }
    Ok(match config.url.scheme() {
        "s3" => build!(AmazonS3Builder, |b: AmazonS3Builder| b.with_checksum_algorithm(Checksum::SHA256)),
        "gs" => build!(GoogleCloudStorageBuilder, |b| b),
        _ => build!(MicrosoftAzureBuilder, |b| b),
    })
}

fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Secret;
    use std::path::Path;

    fn open(folder: &Path) -> ShardStore {
        let url = url::Url::from_directory_path(folder).unwrap();
        ShardStore::open(&SinkConfig { url, options: BTreeMap::new(), scratch_dir: None }).unwrap()
    }

    #[tokio::test]
    async fn uploads_small_and_multipart_files_whole_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("new/root"));
        let mut file = tempfile::tempfile().unwrap();
        let shard = ScratchFile::new(file.try_clone().unwrap(), folder.path().to_owned());
        for bytes in [0, 1000, PART_BYTES, 3 * PART_BYTES + 17] {
            let content: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            file.rewind().unwrap();
            file.write_all(&content).unwrap();
            for _ in 0..2 {
                store.upload(&shard, bytes as u64, "shards/x.parquet").await.unwrap();
                assert!(std::fs::read(folder.path().join("new/root/shards/x.parquet")).unwrap() == content);
            }
        }
        let torn = store.upload(&shard, 5, "shards/x.parquet").await.unwrap_err();
        assert!(torn.to_string().contains("bytes after the upload of 5"), "{torn}");
    }

    fn lines(range: std::ops::RangeInclusive<i64>) -> Vec<String> {
        range.map(|i| format!("{{\"sequence\":{i},\"path\":\"{}\"}}", "x".repeat(i as usize % 7))).collect()
    }

    async fn extend(store: &ShardStore, all: &[String]) -> Result<(), SinkError> {
        let manifest = store.open_manifest().await?;
        let missing = &all[manifest.last_sequence as usize..];
        manifest.append(missing).await
    }

    #[tokio::test]
    async fn a_manifest_only_grows() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let present = async || store.manifest().await.unwrap();
        store.check_manifest(&present().await, &[]).unwrap();
        for n in [0, 2, 2, 3] {
            extend(&store, &lines(1..=n)).await.unwrap();
            assert_eq!(present().await, joined(&lines(1..=n)));
        }
        store.check_manifest(&present().await, &lines(1..=3)).unwrap();
        store.check_manifest(&present().await, &lines(1..=4)).unwrap();
        let foreign = store.check_manifest(&present().await, &["{\"sequence\":9}".to_owned()]);
        assert!(matches!(foreign, Err(SinkError::ForeignManifest { .. })));
        assert!(store.check_manifest(&present().await, &lines(1..=2)).is_err(), "lines would be lost");
        // A crash in the middle of a line, and lines longer than what is read of the end.
        let mut torn = File::options().append(true).open(folder.path().join("manifest.jsonl")).unwrap();
        torn.write_all(b"{\"sequence\":4,\"pa").unwrap();
        store.check_manifest(&present().await, &lines(1..=4)).unwrap();
        let mut all = lines(1..=4);
        all.push(format!("{{\"sequence\":5,\"path\":\"{}\"}}", "y".repeat(300_000)));
        all.push("{\"sequence\":6}".to_owned());
        for n in 4..=6 {
            extend(&store, &all[..n]).await.unwrap();
            assert_eq!(present().await, joined(&all[..n]));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_write_one_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let all = Arc::new(lines(1..=200));
        let known = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let workers = (0..4).map(|_| {
            let (store, all, known) = (open(folder.path()), all.clone(), known.clone());
            tokio::spawn(async move {
                for _ in 0..50 {
                    // As in a catalog, what is known only grows, and is asked for after the manifest was opened.
                    known.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let manifest = store.open_manifest().await.unwrap();
                    let until = known.load(std::sync::atomic::Ordering::SeqCst);
                    let missing = &all[manifest.last_sequence as usize..until];
                    manifest.append(missing).await.unwrap();
                }
            })
        });
        futures::future::join_all(workers).await.into_iter().for_each(|worker| worker.unwrap());
        assert_eq!(open(folder.path()).manifest().await.unwrap(), joined(&all));
    }

    /// The bucket of `S3_ENDPOINT`; without one there is nothing to test.
    fn s3(secret: &str) -> Option<ShardStore> {
        let Ok(endpoint) = std::env::var("S3_ENDPOINT") else {
            eprintln!("skipped: S3_ENDPOINT names no store");
            return None;
        };
        let options = [
            ("aws_endpoint", endpoint.as_str()),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "winnowd"),
            ("aws_secret_access_key", secret),
            ("aws_allow_http", "true"),
        ];
        let options = options.map(|(option, value)| (option.to_owned(), Secret::new(value)));
        let url = format!("s3://test/{}", uuid::Uuid::now_v7()).parse().unwrap();
        Some(ShardStore::open(&SinkConfig { url, options: options.into(), scratch_dir: None }).unwrap())
    }

    #[tokio::test]
    async fn shards_go_to_s3_whole_and_again() {
        let Some(store) = s3("secret-of-winnowd") else { return };
        let folder = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let shard = ScratchFile::new(file.try_clone().unwrap(), folder.path().to_owned());
        for bytes in [1, 1000, PART_BYTES, 2 * PART_BYTES + 17] {
            let content: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            file.rewind().unwrap();
            file.write_all(&content).unwrap();
            for _ in 0..2 {
                store.upload(&shard, bytes as u64, "shards/x.parquet").await.unwrap();
                let found = store.store.get(&ObjectPath::from("shards/x.parquet")).await.unwrap();
                assert!(found.bytes().await.unwrap() == content);
            }
        }
    }

    #[tokio::test]
    async fn a_store_is_probed_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).probe().await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        if let Some(store) = s3("secret-of-winnowd") {
            store.probe().await.unwrap();
            assert_eq!(store.store.list(None).count().await, 0);
        }
        if let Some(store) = s3("wrong") {
            let refused = store.probe().await.unwrap_err().to_string();
            assert!(refused.contains("403"), "{refused}");
        }
    }

    #[tokio::test]
    async fn s3_refuses_a_wrong_key_and_says_so() {
        let Some(store) = s3("wrong") else { return };
        let refused = store.open_manifest().await.err().unwrap().to_string();
        assert!(refused.contains("manifest.jsonl") && refused.contains("403"), "{refused}");
    }

    /// Object stores that nobody can append to: conditional puts decide.
    #[tokio::test]
    async fn of_two_changes_of_a_remote_manifest_one_fails() {
        let memory = Arc::new(object_store::memory::InMemory::new());
        let memory = ShardStore { store: memory, name: "memory".into(), local_root: None };
        for store in [Some(memory), s3("secret-of-winnowd")].into_iter().flatten() {
            of_two_changes_one_fails(&store).await;
        }
    }

    async fn of_two_changes_one_fails(store: &ShardStore) {
        for n in [2, 5] {
            let (first, second) = (store.open_manifest().await.unwrap(), store.open_manifest().await.unwrap());
            let after = first.last_sequence;
            first.append(&lines(after + 1..=n)).await.unwrap();
            let late = second.append(&lines(after + 1..=n)).await;
            assert!(matches!(late, Err(SinkError::Store { .. })), "{late:?}");
            assert_eq!(store.manifest().await.unwrap(), joined(&lines(1..=n)));
        }
    }
}
