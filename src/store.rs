//! Where pictures are saved: in the downloads folder, or in a bucket.
//!
//! A picture that is too large for memory is received into the downloads folder's `.incoming/`, even
//! with a bucket. With a bucket, the folder contains no picture that must outlive its request.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, spawn_blocking},
    time::{Instant, timeout},
};

use crate::{
    bucket::{self, Bucket, Operation, RemovalTime},
    disk_space::{self, DiskSpace, FreeSpace, is_out_of_space},
    image::Format,
    spool::{self, Spool, Spooled, Staging},
};
use folder::{
    Folder,
    decision::save_before,
    save::{self, FileGuard},
};
use object::ObjectGuard;

mod folder;
mod object;
mod readiness;
mod retention;

pub use folder::OpenError;
pub use readiness::NotReadyReason;
pub use retention::{Retention, SweepReport};

/// How long [`Store::remove`] waits for the removal.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of the downloads folder. [`Store::with_bucket`] sets the bucket.
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
    /// The deadline passed before the disk had saved the picture.
    #[error("the disk did not finish in time")]
    Timeout,
    /// The bucket did not take the picture.
    #[error(transparent)]
    Bucket(#[from] bucket::Error),
    /// The thread or task that saves the picture panicked.
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
            Self::Timeout | Self::Bucket(_) | Self::Panicked(_) => false,
        }
    }
}

/// For `map_err`: adds to an error what the store was doing.
fn cannot(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// Saves pictures. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    folder: Arc<Folder>,
    space: DiskSpace,
    retention: Retention,
    /// Where pictures are saved instead of the folder.
    bucket: Option<Bucket>,
}

/// A saved picture. Retention does not remove the picture before this guard is dropped. If the guard
/// was not confirmed, no client knows of the picture, so dropping the guard removes the picture.
#[derive(Debug)]
pub struct SavedGuard(Place);

#[derive(Debug)]
enum Place {
    Folder(FileGuard),
    Bucket(ObjectGuard),
}

impl SavedGuard {
    /// The picture's name.
    pub fn name(&self) -> &str {
        match &self.0 {
            Place::Folder(file) => file.name(),
            Place::Bucket(object) => object.name(),
        }
    }

    /// Makes the picture stay when the guard is dropped.
    pub fn confirm(&mut self) {
        match &mut self.0 {
            Place::Folder(file) => file.confirm(),
            Place::Bucket(object) => object.confirm(),
        }
    }

    /// Whether the picture stays when the guard is dropped.
    pub fn is_confirmed(&self) -> bool {
        match &self.0 {
            Place::Folder(file) => file.is_confirmed(),
            Place::Bucket(object) => object.is_confirmed(),
        }
    }
}

impl Store {
    /// Creates the folder if it is missing, locks it, and removes the unfinished files of an earlier
    /// process. Blocks the thread.
    ///
    /// # Errors
    /// [`OpenError`]; it is [`OpenError::InUse`] if another process has locked the folder.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let folder = Arc::new(Folder::open(settings)?);
        let space = settings.space.clone();
        Ok(Self { folder, space, retention: settings.retention, bucket: None })
    }

    /// Returns a store that saves pictures in the bucket, if there is one.
    #[must_use]
    pub fn with_bucket(self, bucket: Option<Bucket>) -> Self {
        Self { bucket, ..self }
    }

    /// Checks that pictures can be written to the bucket, as far as earlier requests have shown. Makes no
    /// request. Without a bucket, always succeeds.
    ///
    /// # Errors
    /// [`Error::Bucket`] if the bucket fails at the moment.
    pub fn check_bucket(&self) -> Result<(), Error> {
        self.bucket.as_ref().map_or(Ok(()), |bucket| Ok(bucket.check(Operation::Write)?))
    }

    /// The bucket in which pictures are saved, if there is one.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// The free space on the folder's disk, measured at most a second ago.
    ///
    /// # Errors
    /// [`Error::Space`] if the space cannot be measured.
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

    /// Removes a saved picture that cannot be decoded. Waits for the removal at most a second; after that,
    /// the removal continues in the background.
    pub async fn remove(&self, name: String) {
        if let Some(bucket) = &self.bucket {
            let removal = bucket.remove(object::path(&name), RemovalTime::Now);
            // The task logs its error itself, and does not panic.
            let _ = timeout(REMOVAL_TIMEOUT, removal).await;
            return;
        }
        let path = self.folder.path.join(&name);
        let removal = spawn_blocking(move || {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, name, "the file of a refused picture could not be removed");
            }
        });
        // The thread logs its error itself, and does not panic.
        let _ = timeout(REMOVAL_TIMEOUT, removal).await;
    }

    /// The staging folder, for callers that receive files but do not save them.
    pub fn staging(&self) -> Staging {
        self.folder.incoming.clone()
    }

    /// Saves a picture, and returns when it is durable. The file's name is a new UUID v7 with the
    /// extension of the format; such names sort by time. After an error, nothing remains. Nor does anything
    /// remain if the future is dropped, or if the returned guard is dropped before it is confirmed.
    ///
    /// `permits` are dropped when the saving thread or task ends. If the disk hangs, that may be
    /// after the deadline.
    ///
    /// # Errors
    /// The error of the disk or of the bucket, or [`Error::Timeout`].
    pub async fn save(
        &self,
        spooled: Spooled,
        format: Format,
        deadline: Instant,
        permits: impl Send + 'static,
    ) -> Result<SavedGuard, Error> {
        if let Some(bucket) = &self.bucket {
            let object = object::save(bucket, spooled, format, deadline, permits).await?;
            return Ok(SavedGuard(Place::Bucket(object)));
        }
        let folder = Arc::clone(&self.folder);
        let saving = save_before(deadline, move |progress| {
            let _permits = permits;
            save::save(&folder, spooled, format.extension(), |stage| progress.enter(stage))
        });
        Ok(SavedGuard(Place::Folder(saving.await?)))
    }

    /// Starts to receive a picture that will be saved. A picture of at most `memory_limit` bytes
    /// stays in memory until it is saved.
    pub fn spool(&self, memory_limit: usize) -> Spool {
        match self.bucket {
            // A picture in memory is sent to the bucket directly, so it needs no reserved disk space.
            Some(_) => self.folder.incoming.spool(memory_limit),
            None => self.folder.incoming.spool_for_disk(memory_limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;

    fn open(folder: &Path) -> Result<Store, OpenError> {
        let reserve = 0; // turns off the check of free bytes
        open_on(DiskSpace::new(folder.to_owned(), reserve), folder)
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
        // The picture has 11 bytes: it stays in memory only with the first limit.
        for memory_limit in [100, 3, 0] {
            let spooled = receive(&store, memory_limit, &[b"hello ", b"wor", b"ld"]).await;
            // The hash of "hello world".
            assert!(spooled.sha256.to_string().starts_with("b94d27b9"));
            let content = spooled.content.clone();
            let mut saved = store.save(spooled, Format::Jpeg, in_a_minute(), ()).await.unwrap();
            saved.confirm();
            assert!(saved.name().ends_with(".jpg"));
            assert_eq!(fs::read(folder.path().join(saved.name())).unwrap(), b"hello world");
            // After the save, the content can still be read: here from byte 6 to its end.
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
        let reserve = u64::MAX;
        let space = DiskSpace::new(folder.path().to_owned(), reserve);
        let store = open_on(space, folder.path()).unwrap();
        assert!(store.check_space().await.unwrap_err().is_full());
    }

    #[tokio::test]
    async fn disk_space_is_reserved_for_a_picture_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = 1 << 20;
        // Besides the reserve, one block is free. A small picture takes a whole block.
        let block = 4096;
        let free = FreeSpace { bytes: reserve + block, inodes: None };
        let space = DiskSpace::with_measure(folder.path().to_owned(), reserve, move |_| Ok(free));
        let store = open_on(space, folder.path()).unwrap();
        let picture = receive(&store, 100, &[b"hello"]).await;
        assert!(store.check_space().await.unwrap_err().is_full());
        let another = store.spool(100).write(&Bytes::from_static(b"hello")).await;
        assert!(another.unwrap_err().is_full());
        drop(picture);
        store.check_space().await.unwrap();
    }
}
