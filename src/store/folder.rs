//! The downloads folder. This process locks it, receives pictures into `.incoming/`, and saves each
//! picture completely or not at all.
//!
//! A picture is synced, then renamed into the folder, and then the folder is synced. So each file in
//! the folder is complete and durable, even if the process is killed.
//!
//! One process owns the folder, and locks it as long as the process runs. Several processes could
//! not share the folder, because each must know the size of all files. Also, each removes unfinished
//! files when it starts, and another process might still be writing them.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{Settings, readiness::NotReadyReason};
use crate::{disk_space::size_on_disk, sampler::Sampler, spool::Staging};

pub(super) mod decision;
pub(super) mod save;

/// Why the folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns the folder.
    #[error("{0} is in use by another imagesvc: give each process its own IMAGESVC_DOWNLOADS_DIR")]
    InUse(PathBuf),
    /// The file system reported an error.
    #[error("the downloads folder cannot be used: {path}")]
    Io {
        /// The folder or file with the error.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The downloads folder of this process.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) incoming: Staging,
    /// The result of the latest readiness check.
    pub(super) readiness: Sampler<Vec<NotReadyReason>>,
    /// The ids of the pictures that running requests have saved or are saving. These pictures must not
    /// be removed because of their age or of the size limit.
    ids_in_use: Mutex<HashSet<Uuid>>,
    /// The size of all saved pictures. Until [`Store::sweep`](super::Store::sweep) has listed the folder
    /// once, the size of the pictures that this process has saved.
    pub(super) saved_bytes: AtomicU64,
    /// The most bytes that all saved pictures together may take.
    max_bytes: u64,
    /// Notified when the saved pictures exceed their limit.
    pub(super) over_limit: Notify,
    /// The folder is locked while this file is open. When the process ends, the system closes it.
    _lock: File,
}

impl Folder {
    /// Creates the folder if it is missing, locks it, and removes the unfinished files of an earlier
    /// process. A file that cannot be removed is logged, and is no error. Blocks the thread.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process owns the folder. [`OpenError::Io`] if the file system
    /// reports another error.
    pub(super) fn open(settings: &Settings) -> Result<Self, OpenError> {
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
        Ok(Self {
            path,
            incoming: Staging::new(incoming, settings.space.clone()),
            readiness: Sampler::default(),
            ids_in_use: Mutex::default(),
            saved_bytes: AtomicU64::new(0),
            max_bytes: settings.retention.max_bytes.unwrap_or(u64::MAX),
            over_limit: Notify::new(),
            _lock: lock,
        })
    }

    /// Locks the ids of the pictures that running requests have saved or are saving.
    pub(super) fn ids_in_use(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // The set stays consistent even if a holder of the lock panicked.
        self.ids_in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a running request has saved the picture with this id, or is saving it.
    pub(super) fn is_in_use(&self, id: Uuid) -> bool {
        self.ids_in_use().contains(&id)
    }

    /// Counts a newly saved picture of `len` bytes, and notifies `over_limit` if the limit is exceeded.
    fn add_saved_bytes(&self, len: u64) {
        let bytes = size_on_disk(len);
        let before = self.saved_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.max_bytes {
            self.over_limit.notify_one();
        }
    }
}
