//! Receives bytes: counts and hashes them as they arrive, and keeps them in memory or, if they are
//! many, in a staging file. It does not know the store: what is received may be saved, sent
//! elsewhere, or dropped.

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

/// How many bytes are collected before they are written to the file; also the initial buffer.
const PIECE: usize = 64 * 1024;

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
    /// The disk has no room.
    #[error(transparent)]
    Space(#[from] disk_space::Error),
    /// The thread that writes panicked.
    #[error("the thread that writes panicked")]
    Panicked(#[from] JoinError),
}

impl Error {
    /// Whether the cause is a lack of room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_out_of_space(source),
            Self::Space(error) => error.is_shortage(),
            Self::Panicked(_) => false,
        }
    }
}

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
    /// Creates a handle for an existing folder on the disk that `space` describes.
    pub fn new(folder: PathBuf, space: DiskSpace) -> Self {
        Self { folder: folder.into(), space }
    }

    /// Creates an empty file. Blocks the thread.
    ///
    /// # Errors
    /// The disk's error.
    pub fn file(&self) -> Result<StagingFile, Error> {
        let path = self.folder.join(Uuid::now_v7().to_string());
        let file = File::options()
            .create_new(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(cannot("make a file"))?;
        Ok(StagingFile { file: Arc::new(file), path: Some(path) })
    }

    /// Starts to receive; up to `memory_limit` bytes stay in memory.
    pub fn spool(&self, memory_limit: usize) -> Spool {
        Spool {
            staging: self.clone(),
            memory_limit,
            ends_on_disk: false,
            pending: BytesMut::with_capacity(memory_limit.min(PIECE)),
            staging_file: None,
            permit: self.space.empty_permit(),
            hasher: Hasher::new(),
            len: 0,
        }
    }

    /// Like [`Self::spool`], for bytes that will end up on the disk: room for them is reserved as
    /// they arrive.
    pub fn spool_for_disk(&self, memory_limit: usize) -> Spool {
        Spool { ends_on_disk: true, ..self.spool(memory_limit) }
    }
}

/// A staging file, removed when dropped unless it was moved.
#[derive(Debug)]
pub struct StagingFile {
    file: Arc<File>,
    path: Option<PathBuf>,
}

impl StagingFile {
    /// Appends bytes. Blocks the thread.
    ///
    /// # Errors
    /// The disk's error.
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

    /// Moves the file to another folder of the same disk, where it is not removed when dropped.
    /// Blocks the thread.
    ///
    /// # Errors
    /// The disk's error; the file is then removed.
    pub fn move_to(mut self, path: &Path) -> io::Result<()> {
        if let Some(from) = &self.path {
            fs::rename(from, path)?;
        }
        self.path = None;
        Ok(())
    }

    /// Removes the file before this returns. Blocks the thread.
    pub fn remove(mut self) {
        if let Some(path) = self.path.take() {
            remove(&path);
        }
    }
}

impl Drop for StagingFile {
    /// Inside a runtime the file is removed on another thread, because a hanging disk must not
    /// block the threads that answer. If the process ends first, the next start removes the file.
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove(&path))),
            Err(_) => remove(&path),
        }
    }
}

fn remove(staging_file: &Path) {
    if let Err(error) = fs::remove_file(staging_file) {
        tracing::warn!(%error, "a staging file could not be removed; the next start will remove it");
    }
}

/// Bytes that are being received.
#[derive(Debug)]
pub struct Spool {
    staging: Staging,
    memory_limit: usize,
    ends_on_disk: bool,
    pending: BytesMut,
    staging_file: Option<StagingFile>,
    /// Permission for the room that the bytes take or will take on the disk.
    permit: SpacePermit,
    hasher: Hasher,
    len: u64,
}

impl Spool {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        if self.ends_on_disk {
            self.permit.grow_to(self.len).await?;
        }
        let room = if self.staging_file.is_some() { PIECE } else { self.memory_limit };
        let len = self.pending.len() + bytes.len();
        if len > room {
            return self.flush(bytes.clone()).await;
        }
        if len > self.pending.capacity() {
            // Grows the buffer only once, to the most that it can need.
            self.pending.reserve(room - self.pending.len());
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// The number of bytes received so far.
    pub fn received(&self) -> u64 {
        self.len
    }

    /// Ends receiving. Up to `memory_limit` bytes are then in memory only; more are in the file
    /// only.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn finish(mut self) -> Result<Spooled, Error> {
        let content = if self.staging_file.is_some() {
            self.flush(Bytes::new()).await?;
            self.staging_file
                .as_ref()
                .map(|staging_file| Content::File(Arc::clone(&staging_file.file), self.len))
        } else {
            None
        };
        Ok(Spooled {
            content: content.unwrap_or_else(|| Content::Memory(self.pending.split().freeze())),
            sha256: Sha256::of(self.hasher),
            staging_file: self.staging_file,
            permit: self.permit,
        })
    }

    /// Writes the buffered bytes and then `more` to the file.
    async fn flush(&mut self, more: Bytes) -> Result<(), Error> {
        let len = self.len;
        self.permit.grow_to(len).await?;
        let bytes = self.pending.split();
        let staging_file = self.staging_file.take();
        let staging = self.staging.clone();
        // The permit moves to the thread, which goes on writing even if nobody waits for it any
        // more.
        let empty = staging.space.empty_permit();
        let mut permit = mem::replace(&mut self.permit, empty);
        let (staging_file, permit, mut bytes) = spawn_blocking(move || {
            let staging_file = match staging_file {
                Some(staging_file) => staging_file,
                None => staging.file()?,
            };
            staging_file.append(&bytes)?;
            staging_file.append(&more)?;
            permit.mark_written(len);
            Ok::<_, Error>((staging_file, permit, bytes))
        })
        .await??;
        self.permit = permit;
        // The buffer is reused, unless it has the size of a picture in memory.
        bytes.clear();
        self.pending =
            if bytes.capacity() > PIECE { BytesMut::with_capacity(PIECE) } else { bytes };
        self.staging_file = Some(staging_file);
        Ok(())
    }
}

/// The received bytes. Dropping this removes them.
#[derive(Debug)]
pub struct Spooled {
    /// The bytes. They stay readable while the staging file is moved, and after that.
    pub content: Content,
    /// SHA-256 of the bytes.
    pub sha256: Sha256,
    /// The staging file, if there is one.
    pub staging_file: Option<StagingFile>,
    permit: SpacePermit,
}

impl Spooled {
    /// Drops the bytes; their file is removed before this returns. Blocks the thread.
    pub fn discard(self) {
        if let Some(staging_file) = self.staging_file {
            staging_file.remove();
        }
    }

    /// Returns the staging file, which is written first if the bytes are in memory. Blocks the thread.
    ///
    /// # Errors
    /// The disk's error.
    pub fn into_file(mut self, staging: &Staging) -> Result<StagingFile, Error> {
        match (self.staging_file, &self.content) {
            (Some(staging_file), _) => Ok(staging_file),
            (None, Content::Memory(bytes)) => {
                let len = bytes.len() as u64;
                self.permit.grow_to_blocking(len)?;
                let staging_file = staging.file()?;
                staging_file.append(bytes)?;
                self.permit.mark_written(len);
                Ok(staging_file)
            }
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
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        // The only blocking thread hangs, so that a removal has to wait for it.
        let runtime = builder.max_blocking_threads(1).build().unwrap();
        let (release, hanging) = mpsc::channel::<()>();
        runtime.block_on(async {
            let thread = spawn_blocking(move || hanging.recv().is_err());
            drop(staging.file().unwrap());
            assert_eq!(files(), 1, "it is still there");
            drop(release);
            assert!(thread.await.unwrap());
            spawn_blocking(|| {}).await.unwrap();
            assert_eq!(files(), 0);
        });
    }

    #[test]
    fn a_staging_file_that_is_removed_explicitly_is_gone_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let staging = Staging::new(path.clone(), DiskSpace::new(path, 0));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { staging.file().unwrap().remove() });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
