//! The object store: complete objects only, durable before anyone is told of them.

mod manifest;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{GetResult, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::{ScratchFile, SinkError};
use crate::config::SinkConfig;
use crate::crash;

/// Part size of uploads; smaller files go in one request.
const PART_BYTES: usize = 8 << 20;

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

    /// What reads its objects by their keys, relative to the root.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
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

/// The object store of a URL, below its prefix.
fn remote(config: &SinkConfig) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    let store = crate::store::open(&config.url, &config.options)?;
    Ok(Box::new(PrefixStore::new(store, ObjectPath::from_url_path(config.url.path())?)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::io::Seek;

    use super::*;
    use crate::config::Secret;

    pub fn open(folder: &Path) -> ShardStore {
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

    /// The bucket of `S3_ENDPOINT`; without one there is nothing to test.
    pub fn s3(secret: &str) -> Option<ShardStore> {
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
}
