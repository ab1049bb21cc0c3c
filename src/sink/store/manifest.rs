//! The manifest of a store, `manifest.jsonl`: one line for each published shard, written by all workers and only ever added to.

use std::fs::{File, TryLockError};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutMode, PutPayload, UpdateVersion};

use super::{ShardStore, SinkError};
use crate::crash;

const MANIFEST: &str = "manifest.jsonl";
/// Beside a local manifest: whoever adds to it has it locked. The system frees it however a process ends.
pub(super) const MANIFEST_LOCK: &str = ".manifest.lock";
/// How long to wait for another worker, which may have been stopped while it had the manifest locked.
pub(super) const MANIFEST_PATIENCE: Duration = Duration::from_secs(5);

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

impl ShardStore {
    /// Opens the manifest to add lines to it. Of several workers only one has a local manifest open at a time; of those
    /// that change one on an object store only the first succeeds.
    pub async fn open_manifest(&self) -> Result<Manifest, SinkError> {
        let Some(root) = self.local_root.clone() else { return self.open_remote_manifest().await };
        let open = move || {
            let lock = File::options().create(true).append(true).open(root.join(MANIFEST_LOCK))?;
            lock_within(&lock, MANIFEST_PATIENCE)?;
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

/// Locks a file, or tells that somebody else has it locked for so long.
pub(super) fn lock_within(file: &File, patience: Duration) -> std::io::Result<()> {
    let deadline = Instant::now() + patience;
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

fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{open, s3};
    use super::*;

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
