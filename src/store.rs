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
};

use tokio::{
    sync::Notify,
    task::{JoinError, spawn_blocking},
};
use uuid::Uuid;

use crate::{
    disk_space::{lacks_room, whole_blocks},
    spool::{self, Spool, Spooled, Staging},
};

mod retention;
mod saved;

pub use retention::{Retention, Swept};
pub use saved::SavedFile;

/// Where pictures are saved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; made if it is missing.
    pub folder: PathBuf,
    /// Free disk that is never used up, in bytes.
    pub min_free_bytes: u64,
    /// How long pictures are kept.
    pub retention: Retention,
}

/// Why a picture could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Less free disk than the reserve.
    #[error("{free} bytes are free on the disk, and {reserve} must stay so")]
    Reserve {
        /// Free bytes.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
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
    #[error("saving did not end in time")]
    Timeout,
    /// The thread that saves died.
    #[error("the thread that saves died")]
    Died(#[from] JoinError),
}

impl Error {
    /// Whether the cause is a lack of room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Reserve { .. } => true,
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
    min_free_bytes: u64,
    retention: Retention,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    incoming: Staging,
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
            incoming: Staging::new(incoming),
            at_work: Mutex::default(),
            saved_bytes: AtomicU64::new(0),
            max_bytes: settings.retention.max_bytes.unwrap_or(u64::MAX),
            outgrown: Notify::new(),
            _lock: lock,
        });
        let Settings { min_free_bytes, retention, .. } = *settings;
        Ok(Self { folder, min_free_bytes, retention })
    }

    /// Free bytes on the folder's disk. The call asks the kernel's own figures and does not wait
    /// for a disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        free_bytes(&self.folder.path)
    }

    /// Whether there is more free disk than the reserve.
    ///
    /// # Errors
    /// [`Error::Reserve`] if not.
    pub fn check_room(&self) -> Result<(), Error> {
        match self.free_bytes()? {
            free if free < self.min_free_bytes => {
                Err(Error::Reserve { free, reserve: self.min_free_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Whether files can be made, by making one. Blocks.
    ///
    /// # Errors
    /// What the system says.
    pub fn check_writable(&self) -> Result<(), Error> {
        Ok(self.folder.incoming.file().map(drop)?)
    }

    /// Removes a saved picture.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn remove(&self, name: String) -> Result<(), Error> {
        let path = self.folder.path.join(name);
        spawn_blocking(move || fs::remove_file(path).map_err(while_("remove a picture"))).await?
    }

    /// Where what is not to be saved may be staged.
    pub fn staging(&self) -> Staging {
        self.folder.incoming.clone()
    }

    /// Saves a picture under a new name (a UUID v7, so that names sort by time) with this extension,
    /// and returns the name once it is durable. Goes on to its end when the caller stops waiting.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn save(
        &self,
        spooled: Spooled,
        extension: &'static str,
    ) -> Result<SavedFile, Error> {
        let folder = Arc::clone(&self.folder);
        spawn_blocking(move || saved::save(&folder, spooled, extension)).await?
    }

    /// Begins to receive a picture, of which up to `keep` bytes stay in memory.
    pub fn spool(&self, keep: usize) -> Spool {
        self.folder.incoming.spool(keep)
    }
}

/// Free bytes on the disk of a folder.
///
/// # Errors
/// What the system says.
pub fn free_bytes(folder: &Path) -> Result<u64, Error> {
    let stat =
        rustix::fs::statvfs(folder).map_err(|error| while_("ask for free disk")(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn open(folder: &Path) -> Result<Store, OpenError> {
        let retention = Retention::default();
        Store::open(&Settings { folder: folder.to_owned(), min_free_bytes: 0, retention })
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
            let name = store.save(spooled, "jpg").await.unwrap();
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
        assert!(files(&folder.path().join(".incoming")).is_empty());
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

    #[test]
    fn a_disk_under_the_reserve_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let retention = Retention::default();
        let folder = folder.path().to_owned();
        let settings = Settings { folder, min_free_bytes: u64::MAX, retention };
        let error = Store::open(&settings).unwrap().check_room().unwrap_err();
        assert!(error.is_full());
    }
}
