//! The downloads folder: receives pictures into `.incoming/` and saves them whole.
//!
//! A file in the folder itself is complete and durable or not there, whatever kills the process:
//! it is synced before it gets its name, and the folder is synced after.

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
    disk_space::{self, DiskSpace, FreeSpace, lacks_room, whole_blocks},
    sampler::Sampler,
    spool::{self, Spool, Spooled, Staging},
};

mod decision;
mod readiness;
mod retention;
mod saved;

pub use readiness::Fault;
pub use retention::{Retention, Swept};
pub use saved::SavedFile;

/// How long the removal of a refused picture is waited for.
const REMOVAL_TIME: Duration = Duration::from_secs(1);

/// Where pictures are saved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; made if it is missing.
    pub folder: PathBuf,
    /// The disk that the folder is on, and what stays free there.
    pub space: DiskSpace,
    /// How long pictures are kept.
    pub retention: Retention,
}

/// Why a picture could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It would fall below the disk's reserve, or nobody knows.
    #[error(transparent)]
    Space(#[from] disk_space::Error),
    /// The file system refuses.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The picture could not be received.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The deadline passed first.
    #[error("the disk was not done in time")]
    Timeout,
    /// The thread that saves died.
    #[error("the thread that saves died")]
    Died(#[from] JoinError),
}

impl Error {
    /// Whether the cause is a lack of room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Space(error) => error.is_shortage(),
            Self::Io { source, .. } => lacks_room(source),
            Self::Spool(error) => error.is_full(),
            Self::Timeout | Self::Died(_) => false,
        }
    }
}

fn while_(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// A folder that cannot be used at start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error("{0} is in use by another imagesvc: give each its own IMAGESVC_DOWNLOADS_DIR")]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("the downloads folder cannot be used: {path}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
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
    /// What was found when the folder was looked at.
    looks: Sampler<Vec<Fault>>,
    /// Saved pictures whose request is not done.
    at_work: Mutex<HashSet<Uuid>>,
    /// Bytes of all saved pictures, as far as they were counted.
    saved_bytes: AtomicU64,
    max_bytes: u64,
    /// Told when the saved pictures are more than they may be.
    outgrown: Notify,
    /// Locked as long as it is open; the system unlocks it whatever ends the process.
    _lock: File,
}

impl Folder {
    fn at_work(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // The set is whole whatever panicked elsewhere.
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_at_work(&self, id: Uuid) -> bool {
        self.at_work().contains(&id)
    }

    /// Counts a picture that was saved.
    fn add_saved_bytes(&self, len: u64) {
        let bytes = whole_blocks(len);
        let before = self.saved_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.max_bytes {
            self.outgrown.notify_one();
        }
    }
}

impl Store {
    /// Makes the folder if needed, locks it, and removes what an earlier process left unfinished.
    /// Blocks.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let path = settings.folder.clone();
        let incoming = path.join(".incoming");
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        fs::create_dir_all(&incoming).map_err(fail(&incoming))?;
        let lock_path = path.join(".lock");
        let lock =
            File::options().create(true).append(true).open(&lock_path).map_err(fail(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(fail(&lock_path)(source)),
        }
        for entry in fs::read_dir(&incoming).map_err(fail(&incoming))? {
            let leftover = entry.map_err(fail(&incoming))?;
            if let Err(error) = fs::remove_file(leftover.path()) {
                tracing::warn!(%error, name = ?leftover.file_name(), "a leftover in .incoming stays");
            }
        }
        let folder = Arc::new(Folder {
            path,
            incoming: Staging::new(incoming, settings.space.clone()),
            looks: Sampler::default(),
            at_work: Mutex::default(),
            saved_bytes: AtomicU64::new(0),
            max_bytes: settings.retention.max_bytes.unwrap_or(u64::MAX),
            outgrown: Notify::new(),
            _lock: lock,
        });
        let space = settings.space.clone();
        Ok(Self { folder, space, retention: settings.retention })
    }

    /// What is free on the folder's disk, by a figure of at most a second ago.
    ///
    /// # Errors
    /// When the system does not say.
    pub async fn free_space(&self) -> Result<FreeSpace, Error> {
        Ok(self.space.free().await?)
    }

    /// Whether there is room for a picture beside the reserve and what is being received.
    ///
    /// # Errors
    /// [`Error::Space`] if not.
    pub async fn check_room(&self) -> Result<(), Error> {
        Ok(self.space.check().await?)
    }

    /// Removes a saved picture, and waits for that a moment: it goes on to its end all the same.
    pub async fn remove(&self, name: String) {
        let path = self.folder.path.join(&name);
        let remove = spawn_blocking(move || {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, name, "the file of a refused picture could not be removed");
            }
        });
        // It logs its own failure, and does not panic.
        let _ = timeout(REMOVAL_TIME, remove).await;
    }

    /// Where what is not to be saved may be staged.
    pub fn staging(&self) -> Staging {
        self.folder.incoming.clone()
    }

    /// Saves a picture under a new name (a UUID v7, so that names sort by time) with this extension,
    /// and returns the name once it is durable. By the deadline, or when the caller stops waiting, the
    /// picture is given up, and no file stays. What the picture occupies, `held`, is let go when the
    /// thread that saves it is done with it: a disk that hangs may keep both for longer.
    ///
    /// # Errors
    /// What the disk says; [`Error::Timeout`].
    pub async fn save(
        &self,
        spooled: Spooled,
        extension: &'static str,
        deadline: Instant,
        held: impl Send + 'static,
    ) -> Result<SavedFile, Error> {
        let folder = Arc::clone(&self.folder);
        decision::agree(deadline, move |decision| {
            let _held = held;
            saved::save(&folder, spooled, extension, |stage| decision.enter(stage))
        })
        .await
    }

    /// Begins to receive a picture that is to be saved, of which up to `keep` bytes stay in memory.
    pub fn spool(&self, keep: usize) -> Spool {
        self.folder.incoming.spool_for_disk(keep)
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

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    async fn spooled(store: &Store, keep: usize, chunks: &[&'static [u8]]) -> Spooled {
        let mut spool = store.spool(keep);
        for chunk in chunks {
            spool.write(&Bytes::from_static(chunk)).await.unwrap();
        }
        spool.finish().await.unwrap()
    }

    #[tokio::test]
    async fn small_and_large_pictures_are_saved_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        for keep in [100, 3, 0] {
            let spooled = spooled(&store, keep, &[b"hello ", b"wor", b"ld"]).await;
            assert!(spooled.sha256.to_string().starts_with("b94d27b9"));
            let content = spooled.content.clone();
            let name = store.save(spooled, "jpg", soon(), ()).await.unwrap();
            assert!(name.name().ends_with(".jpg"));
            assert_eq!(fs::read(folder.path().join(name.name())).unwrap(), b"hello world");
            assert_eq!(&content.read_at(6, 100).unwrap()[..], b"world");
        }
        assert_eq!(files(folder.path()).len(), 3);
        assert!(files(&folder.path().join(".incoming")).is_empty());
    }

    #[tokio::test]
    async fn a_picture_that_is_not_saved_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let spooled = spooled(&store, 3, &[b"hello ", b"world"]).await;
        assert_eq!(files(&folder.path().join(".incoming")).len(), 1);
        drop(spooled);
        assert!(files(folder.path()).is_empty());
        // On another thread.
        while !files(&folder.path().join(".incoming")).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn leftovers_are_removed_at_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".incoming")).unwrap();
        fs::write(folder.path().join(".incoming/half"), "half").unwrap();
        fs::write(folder.path().join("whole.jpg"), "whole").unwrap();
        open(folder.path()).unwrap();
        assert!(files(&folder.path().join(".incoming")).is_empty());
        assert_eq!(files(folder.path()), ["whole.jpg"]);
    }

    #[test]
    fn a_folder_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(OpenError::InUse(_))));
        drop(first);
        open(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn a_disk_under_the_reserve_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let space = DiskSpace::new(folder.path().to_owned(), u64::MAX);
        let store = open_on(space, folder.path()).unwrap();
        assert!(store.check_room().await.unwrap_err().is_full());
    }

    #[tokio::test]
    async fn a_picture_in_memory_has_its_room_on_the_disk_before_it_is_written_there() {
        let folder = tempfile::tempdir().unwrap();
        // Room for one small picture.
        let free = FreeSpace { bytes: (1 << 20) + 4096, inodes: None };
        let space = DiskSpace::with_question(folder.path().to_owned(), 1 << 20, move |_| Ok(free));
        let store = open_on(space, folder.path()).unwrap();
        let picture = spooled(&store, 100, &[b"hello"]).await;
        assert!(store.check_room().await.unwrap_err().is_full());
        let another = store.spool(100).write(&Bytes::from_static(b"hello")).await;
        assert!(another.unwrap_err().is_full());
        drop(picture);
        store.check_room().await.unwrap();
    }
}
