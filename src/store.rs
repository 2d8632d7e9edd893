//! The downloads folder: receives pictures into `.incoming/`, and saves each picture completely or
//! not at all.
//!
//! A picture is synced, then renamed into the folder, and then the folder is synced. So each file in
//! the folder is complete and durable, even if the process is killed.
//!
//! One process owns the folder, and locks it as long as the process runs. Several processes could
//! not share the folder: each must know the size of all files, and removes unfinished files at its
//! start, which another process might still be writing.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    disk_space::{self, DiskSpace, FreeSpace, is_out_of_space, size_on_disk},
    sampler::Sampler,
    spool::{self, Spool, Spooled, Staging},
};

mod decision;
mod readiness;
mod retention;
mod saved;

pub use readiness::NotReadyReason;
pub use retention::{Retention, SweepReport};
pub use saved::SavedFileGuard;

/// How long a request waits for the removal of a refused picture.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Where pictures are saved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; created if it is missing.
    pub folder: PathBuf,
    /// Measures and reserves the space on the folder's disk.
    pub space: DiskSpace,
    /// Which saved pictures are removed.
    pub retention: Retention,
}

/// Why a picture could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is below its reserve, or its free space is unknown.
    #[error(transparent)]
    Space(#[from] disk_space::Error),
    /// The file system reported an error.
    #[error("cannot {action}")]
    Io {
        /// What the store was doing.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The picture could not be received.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The deadline passed before the picture was saved.
    #[error("the disk did not finish in time")]
    Timeout,
    /// The thread that saves the picture panicked.
    #[error("the thread that saves the picture panicked")]
    Panicked(#[from] JoinError),
}

impl Error {
    /// Whether the disk has too little space.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Space(error) => error.is_shortage(),
            Self::Io { source, .. } => is_out_of_space(source),
            Self::Spool(error) => error.is_full(),
            Self::Timeout | Self::Panicked(_) => false,
        }
    }
}

/// For `map_err`: adds to an error what the store was doing.
fn cannot(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// Why the folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns the folder.
    #[error("{0} is in use by another imagesvc: give each process its own IMAGESVC_DOWNLOADS_DIR")]
    InUse(PathBuf),
    /// The file system reported an error.
    #[error("the downloads folder cannot be used: {path}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The downloads folder of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    folder: Arc<Folder>,
    space: DiskSpace,
    retention: Retention,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    incoming: Staging,
    /// The result of the latest readiness check.
    readiness: Sampler<Vec<NotReadyReason>>,
    /// The ids of saved pictures whose request has not ended.
    in_use: Mutex<HashSet<Uuid>>,
    /// The size of all saved pictures. Before the first sweep, the size of the new pictures only.
    saved_bytes: AtomicU64,
    /// The most bytes that all saved pictures together may take.
    max_bytes: u64,
    /// Notified when the saved pictures exceed their limit.
    over_limit: Notify,
    /// The folder is locked while this file is open. When the process ends, the system closes it.
    _lock: File,
}

impl Folder {
    fn in_use(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // The set stays consistent even if a holder of the lock panicked.
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_in_use(&self, id: Uuid) -> bool {
        self.in_use().contains(&id)
    }

    /// Counts a newly saved picture of `len` bytes.
    fn add_saved_bytes(&self, len: u64) {
        let bytes = size_on_disk(len);
        let before = self.saved_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.max_bytes {
            self.over_limit.notify_one();
        }
    }
}

impl Store {
    /// Creates the folder if it is missing, locks it, and removes the unfinished files of an earlier
    /// process. Blocks the thread.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process owns the folder.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let path = settings.folder.clone();
        let incoming = path.join(".incoming");
        let error_at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        fs::create_dir_all(&incoming).map_err(error_at(&incoming))?;
        let lock_path = path.join(".lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&lock_path)
            .map_err(error_at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(error_at(&lock_path)(source)),
        }
        for entry in fs::read_dir(&incoming).map_err(error_at(&incoming))? {
            let leftover = entry.map_err(error_at(&incoming))?;
            if let Err(error) = fs::remove_file(leftover.path()) {
                tracing::warn!(%error, name = ?leftover.file_name(), "a leftover in .incoming could not be removed");
            }
        }
        let folder = Arc::new(Folder {
            path,
            incoming: Staging::new(incoming, settings.space.clone()),
            readiness: Sampler::default(),
            in_use: Mutex::default(),
            saved_bytes: AtomicU64::new(0),
            max_bytes: settings.retention.max_bytes.unwrap_or(u64::MAX),
            over_limit: Notify::new(),
            _lock: lock,
        });
        let space = settings.space.clone();
        Ok(Self { folder, space, retention: settings.retention })
    }

    /// The free space on the folder's disk, measured at most a second ago.
    ///
    /// # Errors
    /// [`Error::Space`] if it cannot be measured.
    pub async fn free_space(&self) -> Result<FreeSpace, Error> {
        Ok(self.space.free_space().await?)
    }

    /// Checks that the disk has space for another picture. The reserve and the pictures that are
    /// being received count as used.
    ///
    /// # Errors
    /// [`Error::Space`] if the space is missing or cannot be measured.
    pub async fn check_space(&self) -> Result<(), Error> {
        Ok(self.space.check_space().await?)
    }

    /// Removes a saved picture. Waits for the removal at most a second; after that, the removal
    /// continues in the background.
    pub async fn remove(&self, name: String) {
        let path = self.folder.path.join(&name);
        let removal = spawn_blocking(move || {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, name, "the file of a refused picture could not be removed");
            }
        });
        // The thread logs its error itself, and does not panic.
        let _ = timeout(REMOVAL_TIMEOUT, removal).await;
    }

    /// The staging folder for files that will not be saved.
    pub fn staging(&self) -> Staging {
        self.folder.incoming.clone()
    }

    /// Saves a picture, and returns when the file is durable. The file's name is a new UUID v7 with
    /// this extension; such names sort by time. No file remains if the deadline passes, if the
    /// future is dropped, or if the returned guard is dropped before it is confirmed.
    ///
    /// `permits` are dropped when the saving thread ends. If the disk hangs, that may be after the
    /// deadline.
    ///
    /// # Errors
    /// The disk's error, or [`Error::Timeout`].
    pub async fn save(
        &self,
        spooled: Spooled,
        extension: &'static str,
        deadline: Instant,
        permits: impl Send + 'static,
    ) -> Result<SavedFileGuard, Error> {
        let folder = Arc::clone(&self.folder);
        decision::save_before(deadline, move |decision| {
            let _permits = permits;
            saved::save(&folder, spooled, extension, |stage| decision.enter(stage))
        })
        .await
    }

    /// Starts to receive a picture that will be saved. A picture of at most `memory_limit` bytes
    /// stays in memory until it is saved.
    pub fn spool(&self, memory_limit: usize) -> Spool {
        self.folder.incoming.spool_for_disk(memory_limit)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn open(folder: &Path) -> Result<Store, OpenError> {
        open_on(DiskSpace::new(folder.to_owned(), 0), folder)
    }

    fn open_on(space: DiskSpace, folder: &Path) -> Result<Store, OpenError> {
        let retention = Retention::default();
        Store::open(&Settings { folder: folder.to_owned(), space, retention })
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// The names of the files in a folder, without hidden files.
    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    async fn receive(store: &Store, memory_limit: usize, chunks: &[&'static [u8]]) -> Spooled {
        let mut spool = store.spool(memory_limit);
        for chunk in chunks {
            spool.write(&Bytes::from_static(chunk)).await.unwrap();
        }
        spool.finish().await.unwrap()
    }

    #[tokio::test]
    async fn pictures_in_memory_and_in_staging_files_are_saved_completely() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        for memory_limit in [100, 3, 0] {
            let spooled = receive(&store, memory_limit, &[b"hello ", b"wor", b"ld"]).await;
            // The hash of "hello world".
            assert!(spooled.sha256.to_string().starts_with("b94d27b9"));
            let content = spooled.content.clone();
            let mut saved = store.save(spooled, "jpg", in_a_minute(), ()).await.unwrap();
            saved.confirm();
            assert!(saved.name().ends_with(".jpg"));
            assert_eq!(fs::read(folder.path().join(saved.name())).unwrap(), b"hello world");
            assert_eq!(&content.read_at(6, 100).unwrap()[..], b"world");
        }
        assert_eq!(files(folder.path()).len(), 3);
        assert!(files(&folder.path().join(".incoming")).is_empty());
    }

    #[tokio::test]
    async fn a_received_picture_that_is_dropped_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let spooled = receive(&store, 3, &[b"hello ", b"world"]).await;
        assert_eq!(files(&folder.path().join(".incoming")).len(), 1);
        drop(spooled);
        assert!(files(folder.path()).is_empty());
        // The removal runs on another thread.
        while !files(&folder.path().join(".incoming")).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn unfinished_files_are_removed_at_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".incoming")).unwrap();
        fs::write(folder.path().join(".incoming/unfinished"), "unfinished").unwrap();
        fs::write(folder.path().join("saved.jpg"), "saved").unwrap();
        open(folder.path()).unwrap();
        assert!(files(&folder.path().join(".incoming")).is_empty());
        assert_eq!(files(folder.path()), ["saved.jpg"]);
    }

    #[test]
    fn a_folder_cannot_be_opened_twice_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(OpenError::InUse(_))));
        drop(first);
        open(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn a_disk_with_less_free_space_than_the_reserve_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let space = DiskSpace::new(folder.path().to_owned(), u64::MAX);
        let store = open_on(space, folder.path()).unwrap();
        assert!(store.check_space().await.unwrap_err().is_full());
    }

    #[tokio::test]
    async fn disk_space_is_reserved_for_a_picture_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        // There is space for one small picture.
        let free = FreeSpace { bytes: (1 << 20) + 4096, inodes: None };
        let space = DiskSpace::with_measure(folder.path().to_owned(), 1 << 20, move |_| Ok(free));
        let store = open_on(space, folder.path()).unwrap();
        let picture = receive(&store, 100, &[b"hello"]).await;
        assert!(store.check_space().await.unwrap_err().is_full());
        let another = store.spool(100).write(&Bytes::from_static(b"hello")).await;
        assert!(another.unwrap_err().is_full());
        drop(picture);
        store.check_space().await.unwrap();
    }
}
