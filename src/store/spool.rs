//! Receives one picture into `.incoming/`, and gives it its name once it is durable.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{Error, Folder, while_};
use crate::image::Content;

/// How many bytes wait to be written together, once a picture is too large to be kept in memory; and
/// the memory that every picture begins with.
const PIECE: usize = 64 * 1024;

/// A file in `.incoming/`, removed when dropped unless it was saved.
#[derive(Debug)]
pub(super) struct Staged {
    file: Arc<File>,
    path: Option<PathBuf>,
}

impl Staged {
    /// Makes an empty one. Blocks.
    pub(super) fn new(folder: &Folder) -> Result<Self, Error> {
        let path = folder.incoming.join(Uuid::now_v7().to_string());
        let file = File::options()
            .create_new(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(while_("make a file"))?;
        Ok(Self { file: Arc::new(file), path: Some(path) })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Here and not on another thread: a removal that waits its turn is lost when the process ends.
        if let Some(path) = self.path.take()
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, "an unfinished picture could not be removed; the next start will");
        }
    }
}

/// A picture that is being received: hashed as it comes, in memory while it is small, in
/// `.incoming/` once it is not.
#[derive(Debug)]
pub struct Spool {
    folder: Arc<Folder>,
    keep: usize,
    pending: BytesMut,
    staged: Option<Staged>,
    hasher: Sha256,
    len: u64,
}

impl Spool {
    pub(super) fn new(folder: Arc<Folder>, keep: usize) -> Self {
        let pending = BytesMut::with_capacity(keep.min(PIECE));
        Self { folder, keep, pending, staged: None, hasher: Sha256::new(), len: 0 }
    }

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

    /// Ends receiving. A picture of at most `keep` bytes is in memory and nowhere else yet.
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
            sha256: self.hasher.finalize().into(),
            staged: self.staged,
            folder: self.folder,
        })
    }

    /// Writes what is in memory, and what comes after that.
    async fn flush(&mut self, more: Bytes) -> Result<(), Error> {
        let bytes = self.pending.split();
        let staged = self.staged.take();
        let folder = Arc::clone(&self.folder);
        let (staged, mut bytes) = spawn_blocking(move || {
            let staged = match staged {
                Some(staged) => staged,
                None => Staged::new(&folder)?,
            };
            let mut file = &*staged.file;
            file.write_all(&bytes)
                .and_then(|()| file.write_all(&more))
                .map_err(while_("write a picture"))?;
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

/// A saved picture. As long as this is held, the picture counts as worked on and is not removed.
#[derive(Debug)]
pub struct SavedFile {
    name: String,
    id: Uuid,
    folder: Arc<Folder>,
}

impl SavedFile {
    fn new(folder: &Arc<Folder>, extension: &str) -> Self {
        let id = Uuid::now_v7();
        // Before the file has its name: it shall not be there a moment without being worked on.
        folder.at_work().insert(id);
        Self { name: format!("{id}.{extension}"), id, folder: Arc::clone(folder) }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for SavedFile {
    fn drop(&mut self) {
        self.folder.at_work().remove(&self.id);
    }
}

/// A received picture, not saved yet. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct Spooled {
    /// The bytes; they stay readable while and after the picture is saved.
    pub content: Content,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    staged: Option<Staged>,
    folder: Arc<Folder>,
}

impl Spooled {
    /// Saves the picture under a new name (a UUID v7, so that names sort by time) with this
    /// extension, and returns the name once it is durable. Goes on to its end when the caller
    /// stops waiting.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn save(self, extension: &'static str) -> Result<SavedFile, Error> {
        spawn_blocking(move || self.save_blocking(extension)).await?
    }

    fn save_blocking(mut self, extension: &str) -> Result<SavedFile, Error> {
        let mut staged = match (self.staged.take(), &self.content) {
            (Some(staged), _) => staged,
            (None, Content::Memory(bytes)) => {
                let staged = Staged::new(&self.folder)?;
                (&*staged.file).write_all(bytes).map_err(while_("write a picture"))?;
                staged
            }
            (None, Content::File(..)) => {
                return Err(while_("find a picture's file")(io::ErrorKind::NotFound.into()));
            }
        };
        staged.file.sync_all().map_err(while_("sync a picture"))?;
        let file = SavedFile::new(&self.folder, extension);
        let saved = self.folder.path.join(&file.name);
        if let Some(from) = &staged.path {
            fs::rename(from, &saved).map_err(while_("name a picture"))?;
        }
        staged.path = Some(saved); // until the name is durable, a failure takes it back
        File::open(&self.folder.path)
            .and_then(|folder| folder.sync_all())
            .map_err(while_("sync the downloads folder"))?;
        staged.path = None;
        self.folder.add_saved_bytes(self.content.len());
        Ok(file)
    }
}
