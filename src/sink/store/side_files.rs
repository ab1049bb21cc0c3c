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
