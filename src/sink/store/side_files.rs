//! Side files: written whole, by all workers, and only ever with more in them.

use std::fs::File;
use std::io::Write;

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

use super::manifest::{MANIFEST_LOCK, MANIFEST_PATIENCE, lock_within};
use super::{ShardStore, SinkError};
use crate::crash;
use crate::manifest::{ManifestEntry, SideFile};

/// What a local one is until it is whole.
const NEW: &str = ".side-file.new";

/// A side file that is open for entries to be added.
pub struct OpenSideFile {
    store: ShardStore,
    file: SideFile,
    present: Vec<u8>,
    /// That it has come to.
    pub last_sequence: i64,
    place: Place,
}

enum Place {
    /// With the lock of the manifest, which is freed when its file is closed.
    Local(File),
    Remote(Option<UpdateVersion>),
}

impl ShardStore {
    /// Opens a side file. Of several workers only one has a local one open at a time; of those that change one on an object store only
    /// the first succeeds.
    pub async fn open_side_file(&self, file: SideFile) -> Result<OpenSideFile, SinkError> {
        let path = file.path();
        let (present, place) = match self.local_root.clone() {
            Some(root) => {
                let open = move || {
                    let lock = File::options().create(true).append(true).open(root.join(MANIFEST_LOCK))?;
                    lock_within(&lock, MANIFEST_PATIENCE)?;
                    let present = match std::fs::read(root.join(path)) {
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                        present => present?,
                    };
                    Ok((present, Place::Local(lock)))
                };
                self.blocking(path, open).await?
            }
            None => match self.store.get(&ObjectPath::from(path)).await {
                Ok(object) => {
                    let (e_tag, version) = (object.meta.e_tag.clone(), object.meta.version.clone());
                    let present = object.bytes().await.map_err(|e| self.store_error(path, e))?.to_vec();
                    (present, Place::Remote(Some(UpdateVersion { e_tag, version })))
                }
                Err(object_store::Error::NotFound { .. }) => (Vec::new(), Place::Remote(None)),
                Err(e) => return Err(self.store_error(path, e)),
            },
        };
        let last_sequence = file.sequence(&present);
        Ok(OpenSideFile { store: self.clone(), file, present, last_sequence, place })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        path: &str,
        act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let done = tokio::task::spawn_blocking(act).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        done.map_err(|source| SinkError::Sync { store: self.name.clone(), path: path.to_owned(), source })
    }
}

impl OpenSideFile {
    /// Replaces the file by one with these entries as well: readers see the one or the other. On an object store it fails if the file
    /// has changed since it was opened.
    pub async fn extend(self, entries: &[ManifestEntry], column_types: &[String]) -> Result<(), SinkError> {
        let OpenSideFile { store, file, present, place, .. } = self;
        let path = file.path();
        let content = file.extended(&present, entries, column_types);
        if content == present {
            return Ok(());
        }
        match (place, store.local_root.clone()) {
            (Place::Local(lock), Some(root)) => {
                let replace = move || {
                    let target = root.join(path);
                    let folder = target.parent().unwrap_or(root.as_path());
                    std::fs::create_dir_all(folder)?;
                    // Whoever has the lock is alone with it; what a crash leaves is overwritten by the next one.
                    let new = root.join(NEW);
                    let mut written = File::create(&new)?;
                    written.write_all(&content)?;
                    written.sync_all()?;
                    crash::point("side_file.half");
                    std::fs::rename(&new, &target)?;
                    [folder, root.as_path()].into_iter().try_for_each(|folder| File::open(folder)?.sync_all())?;
                    drop(lock);
                    Ok(())
                };
                store.blocking(path, replace).await
            }
            (Place::Local(_), None) => unreachable!("a local file was opened below a local root"),
            (Place::Remote(version), _) => {
                let mode = version.map_or(PutMode::Create, PutMode::Update);
                let put = store.store.put_opts(&ObjectPath::from(path), PutPayload::from(content), mode.into()).await;
                put.map(drop).map_err(|e| store.store_error(path, e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::{open, s3};
    use super::*;
    use crate::score::ModelId;

    const ALL: [SideFile; 3] = [SideFile::LitdataTrain, SideFile::LitdataValidation, SideFile::FmsCounts];

    fn entries(n: i64) -> Vec<ManifestEntry> {
        let entry = |sequence| ManifestEntry {
            sequence,
            shard: format!("s{sequence}"),
            pipeline: "p".into(),
            path: format!("shards/s{sequence}.parquet"),
            rows: 3,
            bytes: 100,
            digest: "sha256:00".into(),
            model: ModelId::of(b"m"),
            windows: vec![],
            tokenizer: None,
            validation: None,
            created_at: "2026-01-31T12:00:00.000Z".into(),
        };
        (1..=n).map(entry).collect()
    }

    async fn present(store: &ShardStore, file: SideFile) -> Vec<u8> {
        store.read(file.path()).await.unwrap().to_vec()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_workers_write_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let all = Arc::new(entries(60));
        let known = Arc::new(AtomicUsize::new(0));
        let workers = (0..4).map(|_| {
            let (store, all, known) = (open(folder.path()), all.clone(), known.clone());
            tokio::spawn(async move {
                for _ in 0..15 {
                    known.fetch_add(1, Ordering::SeqCst);
                    for file in ALL {
                        let open = store.open_side_file(file).await.unwrap();
                        let until = known.load(Ordering::SeqCst);
                        let after = open.last_sequence as usize;
                        open.extend(&all[after..until], &["string".to_owned()]).await.unwrap();
                    }
                }
            })
        });
        futures::future::join_all(workers).await.into_iter().for_each(|worker| worker.unwrap());
        let store = open(folder.path());
        for file in ALL {
            assert_eq!(present(&store, file).await, file.extended(b"", &all, &["string".to_owned()]));
            // One that is gone, or is not what it should be, is made anew.
            std::fs::write(folder.path().join(file.path()), "{").unwrap();
            let open = store.open_side_file(file).await.unwrap();
            assert_eq!(open.last_sequence, 0);
            open.extend(&all, &["string".to_owned()]).await.unwrap();
            assert_eq!(present(&store, file).await, file.extended(b"", &all, &["string".to_owned()]));
        }
        assert!(!folder.path().join(NEW).exists());
    }

    #[tokio::test]
    async fn of_two_changes_on_an_object_store_one_fails() {
        let memory = Arc::new(object_store::memory::InMemory::new());
        let memory = ShardStore { store: memory, name: "memory".into(), local_root: None };
        for store in [Some(memory), s3("secret-of-winnowd")].into_iter().flatten() {
            let all = entries(5);
            for file in ALL {
                for n in [2, 5] {
                    let first = store.open_side_file(file).await.unwrap();
                    let second = store.open_side_file(file).await.unwrap();
                    let after = first.last_sequence as usize;
                    first.extend(&all[after..n], &[]).await.unwrap();
                    let late = second.extend(&all[after..n], &[]).await.unwrap_err();
                    assert!(late.is_conflict(), "{late}");
                    assert_eq!(present(&store, file).await, file.extended(b"", &all[..n], &[]));
                }
            }
        }
    }
}
