//! Receives the bytes of a picture: counts and hashes them as they arrive, and stores them in memory
//! or, if they exceed a limit, in a staging file. The caller decides what happens to the received bytes.

use std::{
    fs::{self, File},
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256 as Hasher};
use tokio::{
    runtime::Handle,
    task::{JoinError, spawn_blocking},
};
use uuid::Uuid;

use crate::{
    disk_space::{self, DiskSpace, SpacePermit, is_out_of_space},
    image::Content,
    sha256::Sha256,
};

/// The size of the buffer in front of a staging file, in bytes.
const FILE_BUFFER_LEN: usize = 64 * 1024;

/// Why bytes could not be received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system reported an error.
    #[error("cannot {action}")]
    Io {
        /// What the spool was doing.
        action: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// Less than the reserve of [`DiskSpace`] would stay free, or the disk's free space is unknown.
    #[error(transparent)]
    Space(#[from] disk_space::Error),
    /// The thread that writes the file panicked.
    #[error("the thread that writes the file panicked")]
    Panicked(#[from] JoinError),
}

impl Error {
    /// Whether the cause of this error is that the disk has too little space.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_out_of_space(source),
            Self::Space(error) => error.is_shortage(),
            Self::Panicked(_) => false,
        }
    }
}

/// For `map_err`: adds to an error what the spool was doing.
fn cannot(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// A folder for staging files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Staging {
    folder: Arc<Path>,
    space: DiskSpace,
}

impl Staging {
    /// Creates a handle for an existing folder. `space` reserves space on the folder's disk.
    pub fn new(folder: PathBuf, space: DiskSpace) -> Self {
        Self { folder: folder.into(), space }
    }

    /// Creates an empty staging file. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_file(&self) -> Result<StagingFile, Error> {
        let path = self.folder.join(Uuid::now_v7().to_string());
        let file = File::options()
            .create_new(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(cannot("create a staging file"))?;
        Ok(StagingFile { file: Arc::new(file), path: Some(path) })
    }

    /// Starts to receive bytes. Up to `memory_limit` bytes stay in memory. If there are more, all of them
    /// are written to a staging file.
    pub fn spool(&self, memory_limit: usize) -> Spool {
        Spool {
            staging: self.clone(),
            memory_limit,
            reserves_on_arrival: false,
            buffer: BytesMut::with_capacity(memory_limit.min(FILE_BUFFER_LEN)),
            staging_file: None,
            permit: self.space.empty_permit(),
            hasher: Hasher::new(),
            len: 0,
        }
    }

    /// Like [`Self::spool`], for bytes that will be saved on the disk: space for them is reserved as
    /// they arrive, even while they are in memory.
    pub fn spool_for_disk(&self, memory_limit: usize) -> Spool {
        Spool { reserves_on_arrival: true, ..self.spool(memory_limit) }
    }
}

/// A staging file. Dropping it removes the file, unless it was moved.
#[derive(Debug)]
pub struct StagingFile {
    file: Arc<File>,
    /// Where the file is. `None` after [`Self::move_to`] and [`Self::remove`]: then `drop` does nothing.
    path: Option<PathBuf>,
}

impl StagingFile {
    /// Appends bytes. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        (&*self.file).write_all(bytes).map_err(cannot("write a picture"))
    }

    /// Syncs the file to the disk. Blocks the thread.
    ///
    /// # Errors
    /// The disk's error.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Moves the file to `path`, which must be on the same file system. Blocks the thread.
    ///
    /// # Errors
    /// The disk's error. The file is then removed, because this value is dropped.
    pub fn move_to(mut self, path: &Path) -> io::Result<()> {
        if let Some(from) = &self.path {
            fs::rename(from, path)?;
        }
        self.path = None;
        Ok(())
    }

    /// Removes the file before this function returns; dropping the value may remove it later. Blocks
    /// the thread.
    pub fn remove(mut self) {
        if let Some(path) = self.path.take() {
            remove_or_warn(&path);
        }
    }
}

impl Drop for StagingFile {
    /// Inside a runtime, another thread removes the file: a hanging disk must not block the
    /// runtime's own threads. If the process ends before the removal, the next start of the service
    /// removes the file.
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove_or_warn(&path))),
            Err(_) => remove_or_warn(&path),
        }
    }
}

fn remove_or_warn(staging_file: &Path) {
    if let Err(error) = fs::remove_file(staging_file) {
        tracing::warn!(%error, "a staging file could not be removed; the next start will remove it");
    }
}

/// Bytes that are being received.
#[derive(Debug)]
pub struct Spool {
    staging: Staging,
    memory_limit: usize,
    /// Whether disk space is reserved for bytes as they arrive, even if they are still in memory.
    reserves_on_arrival: bool,
    /// All bytes while there is no staging file; then the bytes that are not in the file yet.
    buffer: BytesMut,
    staging_file: Option<StagingFile>,
    /// The disk space that is reserved for the bytes.
    permit: SpacePermit,
    hasher: Hasher,
    len: u64,
}

impl Spool {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        if self.reserves_on_arrival {
            self.permit.grow_to(self.len).await?;
        }
        let max_buffered_len =
            if self.staging_file.is_some() { FILE_BUFFER_LEN } else { self.memory_limit };
        let new_buffered_len = self.buffer.len() + bytes.len();
        if new_buffered_len > max_buffered_len {
            return self.flush(bytes.clone()).await;
        }
        if new_buffered_len > self.buffer.capacity() {
            // Grows the buffer only once, to its maximum.
            self.buffer.reserve(max_buffered_len - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The number of bytes received so far.
    pub fn received(&self) -> u64 {
        self.len
    }

    /// Returns the received bytes: in memory if they are at most `memory_limit`, else in a file.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn finish(mut self) -> Result<Spooled, Error> {
        if self.staging_file.is_some() {
            self.flush(Bytes::new()).await?;
        }
        let content = match &self.staging_file {
            Some(staging_file) => Content::File(Arc::clone(&staging_file.file), self.len),
            None => Content::Memory(self.buffer.split().freeze()),
        };
        Ok(Spooled {
            content,
            sha256: Sha256::of(self.hasher),
            staging_file: self.staging_file,
            permit: self.permit,
        })
    }

    /// Writes the buffered bytes and then `more` to the staging file. Creates it first if there is none.
    async fn flush(&mut self, more: Bytes) -> Result<(), Error> {
        let len = self.len;
        self.permit.grow_to(len).await?;
        let buffer = self.buffer.split();
        let staging_file = self.staging_file.take();
        let staging = self.staging.clone();
        // The permit moves to the thread, because the thread continues to write, and needs the reserved
        // space, even if this future is dropped.
        let empty_permit = staging.space.empty_permit();
        let mut permit = mem::replace(&mut self.permit, empty_permit);
        let (staging_file, permit, mut buffer) = spawn_blocking(move || {
            let staging_file = match staging_file {
                Some(staging_file) => staging_file,
                None => staging.create_file()?,
            };
            staging_file.append(&buffer)?;
            staging_file.append(&more)?;
            permit.mark_written(len);
            Ok::<_, Error>((staging_file, permit, buffer))
        })
        .await??;
        self.permit = permit;
        buffer.clear();
        // The buffer may have grown to `memory_limit`. If that is more than the buffer of a file
        // needs, the buffer is replaced; otherwise it is reused.
        let is_too_large = buffer.capacity() > FILE_BUFFER_LEN;
        self.buffer = if is_too_large { BytesMut::with_capacity(FILE_BUFFER_LEN) } else { buffer };
        self.staging_file = Some(staging_file);
        Ok(())
    }
}

/// The received bytes. Dropping this value removes the staging file, if there is one.
#[derive(Debug)]
pub struct Spooled {
    /// The bytes. They stay readable while the staging file is moved, and after it was moved or
    /// removed.
    pub content: Content,
    /// SHA-256 of the bytes.
    pub sha256: Sha256,
    /// The staging file, unless the bytes are in memory.
    pub staging_file: Option<StagingFile>,
    /// The disk space that is reserved for the bytes. Dropping it releases what is not written.
    permit: SpacePermit,
}

impl Spooled {
    /// Removes the staging file, if there is one, before this function returns; dropping the value
    /// may remove it later. Blocks the thread.
    pub fn discard(self) {
        if let Some(staging_file) = self.staging_file {
            staging_file.remove();
        }
    }

    /// Returns the staging file. If the bytes are in memory, writes them to a new staging file first.
    /// Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Space`].
    pub fn into_file(mut self, staging: &Staging) -> Result<StagingFile, Error> {
        match (self.staging_file, &self.content) {
            (Some(staging_file), _) => Ok(staging_file),
            (None, Content::Memory(bytes)) => {
                let len = bytes.len() as u64;
                self.permit.blocking_grow_to(len)?;
                let staging_file = staging.create_file()?;
                staging_file.append(bytes)?;
                self.permit.mark_written(len);
                Ok(staging_file)
            }
            // Happens only if the caller has taken `staging_file` out of this value.
            (None, Content::File(..)) => {
                Err(cannot("find a picture's file")(io::ErrorKind::NotFound.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::disk_space::DiskSpace;

    #[test]
    fn a_task_that_drops_a_staging_file_does_not_wait_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let staging = Staging::new(path.clone(), DiskSpace::new(path, 0));
        let file_count = || fs::read_dir(folder.path()).unwrap().count();
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        // The runtime's only blocking thread hangs, so that the file's removal has to wait.
        let runtime = builder.max_blocking_threads(1).build().unwrap();
        let (release, wait_for_release) = mpsc::channel::<()>();
        runtime.block_on(async {
            // `recv` returns an error as soon as `release` is dropped.
            let hanging_task = spawn_blocking(move || wait_for_release.recv().is_err());
            drop(staging.create_file().unwrap());
            assert_eq!(file_count(), 1, "the file should stay while the blocking thread hangs");
            drop(release);
            assert!(hanging_task.await.unwrap());
            // This task runs on the blocking thread after the removal.
            spawn_blocking(|| {}).await.unwrap();
            assert_eq!(file_count(), 0);
        });
    }

    #[test]
    fn the_function_remove_returns_after_the_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let staging = Staging::new(path.clone(), DiskSpace::new(path, 0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { staging.create_file().unwrap().remove() });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
