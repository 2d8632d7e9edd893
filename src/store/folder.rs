//! The downloads folder. This process locks it, receives pictures into `.incoming/`, and saves each
//! picture completely or not at all.
//!
//! A picture is synced, then renamed into the folder, and then the folder is synced. So each file in
//! the folder is complete and durable, even if the process is killed.
//!
//! One process owns the folder, and locks it as long as the process runs. Several processes could
//! not share the folder. Each must know the size of all files. At its start, each removes unfinished
//! files, which another process might still be writing.

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
        /// The folder or file.
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
    /// The ids of saved pictures whose request has not ended.
    in_use: Mutex<HashSet<Uuid>>,
    /// The size of all saved pictures. Before the first sweep, the size of the new pictures only.
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
    /// process. Blocks the thread.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another process owns the folder.
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
            in_use: Mutex::default(),
            saved_bytes: AtomicU64::new(0),
            max_bytes: settings.retention.max_bytes.unwrap_or(u64::MAX),
            over_limit: Notify::new(),
            _lock: lock,
        })
    }

    pub(super) fn in_use(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // The set stays consistent even if a holder of the lock panicked.
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_in_use(&self, id: Uuid) -> bool {
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
