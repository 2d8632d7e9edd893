//! Receives bytes: counted and hashed as they come, in memory while they are few, in a staging file
//! once they are not. It knows no store: what is received may be saved, sent on, or dropped.

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
    disk_space::{self, DiskSpace, Promise, lacks_room},
    image::Content,
    sha256::Sha256,
};

/// How many bytes wait to be written together, once they are too many to be kept in memory; and the
/// memory that receiving begins with.
const PIECE: usize = 64 * 1024;

/// Why bytes could not be received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refuses.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The disk has no room for it.
    #[error(transparent)]
    Space(#[from] disk_space::Error),
    /// The thread that writes died.
    #[error("the thread that writes died")]
    Died(#[from] JoinError),
}

impl Error {
    /// Whether the cause is a lack of room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => lacks_room(source),
            Self::Space(error) => error.is_shortage(),
            Self::Died(_) => false,
        }
    }
}

fn while_(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// A folder for staging files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Staging {
    folder: Arc<Path>,
    space: DiskSpace,
}

impl Staging {
    /// A folder that exists, and the disk that it is on.
    pub fn new(folder: PathBuf, space: DiskSpace) -> Self {
        Self { folder: folder.into(), space }
    }

    /// Makes an empty file. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn file(&self) -> Result<Staged, Error> {
        let path = self.folder.join(Uuid::now_v7().to_string());
        let file = File::options()
            .create_new(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(while_("make a file"))?;
        Ok(Staged { file: Arc::new(file), path: Some(path) })
    }

    /// Begins to receive, with up to `keep` bytes in memory.
    pub fn spool(&self, keep: usize) -> Spool {
        Spool {
            staging: self.clone(),
            keep,
            is_for_disk: false,
            pending: BytesMut::with_capacity(keep.min(PIECE)),
            staged: None,
            promise: self.space.promise(),
            hasher: Hasher::new(),
            len: 0,
        }
    }

    /// The same, of what is going to be on the disk in the end: it finds room there as it comes.
    pub fn spool_for_disk(&self, keep: usize) -> Spool {
        Spool { is_for_disk: true, ..self.spool(keep) }
    }
}

/// A staging file, removed when dropped unless it was moved.
#[derive(Debug)]
pub struct Staged {
    file: Arc<File>,
    path: Option<PathBuf>,
}

impl Staged {
    /// Appends bytes. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        (&*self.file).write_all(bytes).map_err(while_("write a picture"))
    }

    /// Writes the bytes through to the disk. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Moves the file to another folder of the same disk: it is no staging file any more. Blocks.
    ///
    /// # Errors
    /// What the disk says; the file is then removed.
    pub fn move_to(mut self, path: &Path) -> io::Result<()> {
        if let Some(from) = &self.path {
            fs::rename(from, path)?;
        }
        self.path = None;
        Ok(())
    }

    /// Removes the file now, and not on another thread. Blocks.
    pub fn remove(mut self) {
        if let Some(path) = self.path.take() {
            remove(&path);
        }
    }
}

impl Drop for Staged {
    /// Dropped in a task, the file is removed on another thread: a disk that hangs must not stop those
    /// that answer. Should the process end before, the next start removes it.
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
        tracing::warn!(%error, "a staging file could not be removed; the next start will");
    }
}

/// Bytes that are being received.
#[derive(Debug)]
pub struct Spool {
    staging: Staging,
    keep: usize,
    is_for_disk: bool,
    pending: BytesMut,
    staged: Option<Staged>,
    /// The room for what is on the disk, or is going to be.
    promise: Promise,
    hasher: Hasher,
    len: u64,
}

impl Spool {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn write(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        if self.is_for_disk {
            self.promise.grow_to(self.len).await?;
        }
        let room = if self.staged.is_some() { PIECE } else { self.keep };
        let len = self.pending.len() + bytes.len();
        if len > room {
            return self.flush(bytes.clone()).await;
        }
        if len > self.pending.capacity() {
            // Once, and no more than it can come to.
            self.pending.reserve(room - self.pending.len());
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes taken so far.
    pub fn received(&self) -> u64 {
        self.len
    }

    /// Ends receiving. At most `keep` bytes are in memory, and nowhere else.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn finish(mut self) -> Result<Spooled, Error> {
        let content = if self.staged.is_some() {
            self.flush(Bytes::new()).await?;
            self.staged.as_ref().map(|staged| Content::File(Arc::clone(&staged.file), self.len))
        } else {
            None
        };
        Ok(Spooled {
            content: content.unwrap_or_else(|| Content::Memory(self.pending.split().freeze())),
            sha256: Sha256::of(self.hasher),
            staged: self.staged,
            promise: self.promise,
        })
    }

    /// Writes what is in memory, and what comes after that.
    async fn flush(&mut self, more: Bytes) -> Result<(), Error> {
        let len = self.len;
        self.promise.grow_to(len).await?;
        let bytes = self.pending.split();
        let staged = self.staged.take();
        let staging = self.staging.clone();
        // It goes along: the thread writes on when nobody waits for it any more.
        let nothing = staging.space.promise();
        let mut promise = mem::replace(&mut self.promise, nothing);
        let (staged, promise, mut bytes) = spawn_blocking(move || {
            let staged = match staged {
                Some(staged) => staged,
                None => staging.file()?,
            };
            staged.append(&bytes)?;
            staged.append(&more)?;
            promise.wrote(len);
            Ok::<_, Error>((staged, promise, bytes))
        })
        .await??;
        self.promise = promise;
        // Its memory is used again, unless that is what a picture in memory takes.
        bytes.clear();
        self.pending =
            if bytes.capacity() > PIECE { BytesMut::with_capacity(PIECE) } else { bytes };
        self.staged = Some(staged);
        Ok(())
    }
}

/// Received bytes. Dropping them leaves nothing behind.
#[derive(Debug)]
pub struct Spooled {
    /// The bytes; they stay readable while and after the staging file is moved.
    pub content: Content,
    /// SHA-256 of the bytes.
    pub sha256: Sha256,
    /// The staging file, if there is one.
    pub staged: Option<Staged>,
    promise: Promise,
}

impl Spooled {
    /// Drops what was received; its file is removed when this returns. Blocks.
    pub fn discard(self) {
        if let Some(staged) = self.staged {
            staged.remove();
        }
    }

    /// The staging file; made now, if the bytes are in memory. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn into_file(mut self, staging: &Staging) -> Result<Staged, Error> {
        match (self.staged, &self.content) {
            (Some(staged), _) => Ok(staged),
            (None, Content::Memory(bytes)) => {
                let len = bytes.len() as u64;
                self.promise.grow_to_blocking(len)?;
                let staged = staging.file()?;
                staged.append(bytes)?;
                self.promise.wrote(len);
                Ok(staged)
            }
            (None, Content::File(..)) => {
                Err(while_("find a picture's file")(io::ErrorKind::NotFound.into()))
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
        // One thread that may block, and it hangs: a removal would have to wait for it.
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
