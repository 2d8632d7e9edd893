//! Receives bytes: counted and hashed as they come, in memory while they are few, in a staging file
//! once they are not. It knows no store: what is received may be saved, sent on, or dropped.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256 as Hasher};
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use crate::{disk_space::lacks_room, image::Content, sha256::Sha256};

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
    /// The thread that writes died.
    #[error("the thread that writes died")]
    Died(#[from] JoinError),
}

impl Error {
    /// Whether the cause is a lack of room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if lacks_room(source))
    }
}

fn while_(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action, source }
}

/// A folder for staging files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Staging(Arc<Path>);

impl Staging {
    /// A folder that exists.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder.into())
    }

    /// Makes an empty file. Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn file(&self) -> Result<Staged, Error> {
        let path = self.0.join(Uuid::now_v7().to_string());
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
        let pending = BytesMut::with_capacity(keep.min(PIECE));
        Spool { staging: self.clone(), keep, pending, staged: None, hasher: Hasher::new(), len: 0 }
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

    /// Gives the file another name, in a folder of the same disk. It is still removed when dropped.
    /// Blocks.
    ///
    /// # Errors
    /// What the disk says.
    pub fn rename(&mut self, to: PathBuf) -> io::Result<()> {
        if let Some(from) = &self.path {
            fs::rename(from, &to)?;
        }
        self.path = Some(to);
        Ok(())
    }

    /// Lets the file stay.
    pub fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Here and not on another thread: a removal that waits its turn is lost when the process ends.
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, "a staging file could not be removed; the next start will");
        }
    }
}

/// Bytes that are being received.
#[derive(Debug)]
pub struct Spool {
    staging: Staging,
    keep: usize,
    pending: BytesMut,
    staged: Option<Staged>,
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
        })
    }

    /// Writes what is in memory, and what comes after that.
    async fn flush(&mut self, more: Bytes) -> Result<(), Error> {
        let bytes = self.pending.split();
        let staged = self.staged.take();
        let staging = self.staging.clone();
        let (staged, mut bytes) = spawn_blocking(move || {
            let staged = match staged {
                Some(staged) => staged,
                None => staging.file()?,
            };
            staged.append(&bytes)?;
            staged.append(&more)?;
            Ok::<_, Error>((staged, bytes))
        })
        .await??;
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
}
