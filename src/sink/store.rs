//! The object store: complete objects only, durable before anyone is told of them.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use tokio::io::AsyncReadExt;

use super::{ShardFile, SinkError};
use crate::config::SinkConfig;

const MANIFEST: &str = "manifest.jsonl";
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

    /// Puts a file at `path` and returns when it is complete and durable. May be repeated.
    pub async fn upload(&self, file: &ShardFile, bytes: u64, path: &str) -> Result<(), SinkError> {
        let key = ObjectPath::from(path);
        let store_error = |source| self.store_error(path, source);
        let read_error = |source| file.error(source);
        let mut reader = tokio::fs::File::from_std(file.rewound()?);
        if bytes <= PART_BYTES as u64 {
            let mut content = Vec::with_capacity(bytes as usize);
            reader.read_to_end(&mut content).await.map_err(read_error)?;
            self.store.put(&key, content.into()).await.map_err(store_error)?;
        } else {
            let upload = self.store.put_multipart(&key).await.map_err(store_error)?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            let mut buffer = vec![0; 1 << 20];
            loop {
                // One part in flight bounds the memory; the end of the loop waits for all of them.
                parts.wait_for_capacity(1).await.map_err(store_error)?;
                match reader.read(&mut buffer).await.map_err(read_error)? {
                    0 => break,
                    n => parts.write(&buffer[..n]),
                }
            }
            parts.finish().await.map_err(store_error)?;
        }
        self.make_durable(path).await?;
        let found = self.store.head(&key).await.map_err(store_error)?.size;
        if found != bytes {
            return Err(SinkError::Torn { store: self.name.clone(), path: path.to_owned(), expected: bytes, found });
        }
        Ok(())
    }

    /// Replaces the manifest by these lines, all that there are.
    pub async fn write_manifest(&self, lines: &[String]) -> Result<(), SinkError> {
        let content = joined(lines);
        match &self.local_root {
            Some(root) => {
                let root = root.clone();
                // Synced before it takes the old one's place: a crash leaves one or the other, whole.
                self.local_manifest(move || {
                    let mut file = tempfile::Builder::new()
                        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
                        .tempfile_in(&root)?;
                    file.write_all(&content)?;
                    file.as_file().sync_all()?;
                    file.persist(root.join(MANIFEST))?;
                    File::open(&root)?.sync_all()
                })
                .await
            }
            None => {
                let (key, payload) = (ObjectPath::from(MANIFEST), PutPayload::from(Bytes::from(content)));
                self.store.put(&key, payload).await.map(drop).map_err(|e| self.store_error(MANIFEST, e))
            }
        }
    }

    /// Whether [`ShardStore::append_manifest`] works here. Object stores only replace.
    pub fn can_append(&self) -> bool {
        self.local_root.is_some()
    }

    /// Adds lines to a manifest that was written by this process. After an error it has to be written whole.
    ///
    /// # Panics
    /// If the store cannot append.
    pub async fn append_manifest(&self, lines: &[String]) -> Result<(), SinkError> {
        let path = self.local_root.as_ref().expect("the caller asked `can_append`").join(MANIFEST);
        let content = joined(lines);
        self.local_manifest(move || {
            let mut file = File::options().append(true).open(path)?;
            file.write_all(&content)?;
            file.sync_all()
        })
        .await
    }

    async fn local_manifest(
        &self,
        write: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), SinkError> {
        let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        written.map_err(|source| SinkError::Sync { store: self.name.clone(), path: MANIFEST.to_owned(), source })
    }

    fn store_error(&self, path: &str, source: object_store::Error) -> SinkError {
        SinkError::Store { store: self.name.clone(), path: path.to_owned(), source }
    }

    /// Refuses a store whose manifest is not the beginning of `lines`: it would be overwritten.
    pub async fn check_manifest(&self, lines: &[String]) -> Result<(), SinkError> {
        let store_error = |source| self.store_error(MANIFEST, source);
        let present = match self.store.get(&ObjectPath::from(MANIFEST)).await {
            Ok(object) => object.bytes().await.map_err(store_error)?,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(e) => return Err(store_error(e)),
        };
        if joined(lines).starts_with(&present) {
            return Ok(());
        }
        Err(SinkError::ForeignManifest { store: self.name.clone(), path: MANIFEST.to_owned() })
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

fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;
    use std::path::Path;

    fn open(folder: &Path) -> ShardStore {
        let url = url::Url::from_directory_path(folder).unwrap();
        ShardStore::open(&SinkConfig { url, scratch_dir: None }).unwrap()
    }

    #[tokio::test]
    async fn uploads_small_and_multipart_files_whole_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder.path().join("new/root"));
        let mut file = tempfile::tempfile().unwrap();
        let shard = ShardFile::new(file.try_clone().unwrap(), folder.path().to_owned());
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

    #[tokio::test]
    async fn a_manifest_only_grows() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let lines = |n: usize| (0..n).map(|i| format!("{{\"sequence\":{i}}}")).collect::<Vec<_>>();
        store.check_manifest(&lines(0)).await.unwrap();
        store.write_manifest(&lines(2)).await.unwrap();
        store.check_manifest(&lines(3)).await.unwrap();
        store.append_manifest(&lines(3)[2..]).await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("manifest.jsonl")).unwrap();
        assert_eq!(text, "{\"sequence\":0}\n{\"sequence\":1}\n{\"sequence\":2}\n");
        let foreign = store.check_manifest(&["{\"sequence\":9}".to_owned()]).await.unwrap_err();
        assert!(matches!(foreign, SinkError::ForeignManifest { .. }));
        assert!(store.check_manifest(&lines(2)).await.is_err(), "lines would be lost");
    }
}
