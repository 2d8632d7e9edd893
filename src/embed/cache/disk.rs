//! Stores each embedding in a small file. The file's name is the embedding's key in 64 hexadecimal
//! digits; its folder's name is the first two of these digits.
//!
//! A database such as SQLite would offer transactions, but nothing here needs them: a lost or damaged
//! file costs one call to NVIDIA. An operator can list or delete files with the usual tools.
//!
//! A file is written in a staging folder and then renamed, so that it is complete or absent.
//! The file is not synced, so its content may be wrong after a power cut. A checksum detects
//! damage, and a damaged file is ignored. Every function here that accesses the disk blocks
//! the thread.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::{
    CacheKey, CachedEmbedding,
    format::{MAX_LEN, decode, encode},
};
use crate::{
    disk_space::{DiskSpace, size_on_disk},
    sha256::Sha256,
};

/// Files are written here before they are renamed.
const STAGING_FOLDER: &str = ".staged";

/// A folder of files whose total size is limited. Only this process writes to the folder.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    max_bytes: u64,
    space: DiskSpace,
    /// The size of all files; `None` while it is unknown: the folder must then be listed. The lock is
    /// held during each write, so that only one thread writes.
    used_bytes: Mutex<Option<u64>>,
    /// The first eight bytes of each key; `None` if the last listing of the folder was incomplete, or if
    /// there was none. The lock is never held during a disk access, so that [`Self::may_contain`] does
    /// not wait for the disk.
    key_prefixes: Mutex<Option<HashSet<u64>>>,
    /// The name of the next staging file.
    next_staging_name: AtomicU64,
    /// Whether the last write or clean-up failed.
    is_failing: AtomicBool,
}

/// The files in the folder.
struct Listing {
    files: Vec<CacheFile>,
    /// `false` if an entry of the folder or of a subfolder could not be read.
    is_complete: bool,
}

/// A file in the folder. The fields are in this order so that the oldest file is the first after sorting.
/// The path is not stored, because many thousands of small strings would fragment the heap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct CacheFile {
    written_at: SystemTime,
    bytes: u64,
    key: CacheKey,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the file is damaged")]
    Damaged,
}

impl Disk {
    /// Creates a cache whose files take at most `max_bytes` on the disk. `space` reserves space on
    /// the folder's disk.
    pub(super) fn new(folder: PathBuf, max_bytes: u64, space: DiskSpace) -> Self {
        Self {
            folder,
            max_bytes,
            space,
            used_bytes: Mutex::new(None),
            key_prefixes: Mutex::new(None),
            next_staging_name: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Whether a file for the key may exist. Does not block. For most pictures that are not cached,
    /// this check avoids a disk access.
    pub(super) fn may_contain(&self, key: &CacheKey) -> bool {
        self.key_prefixes().as_ref().is_none_or(|prefixes| prefixes.contains(&key.prefix()))
    }

    /// Returns the embedding, or `None` if there is no file or if the file cannot be used.
    pub(super) fn read(&self, key: &CacheKey) -> Option<CachedEmbedding> {
        match self.try_read(key) {
            Ok(cached) => Some(cached),
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, %key, "a cached embedding cannot be used: NVIDIA is called again");
                None
            }
        }
    }

    /// Writes an embedding. Writes nothing if its file alone would exceed `max_bytes`. A failure is
    /// only logged.
    pub(super) fn write(&self, key: &CacheKey, cached: &CachedEmbedding) {
        self.log_if_health_changed(self.try_write(key, cached));
    }

    /// Removes unfinished files, and then the oldest files until the limit is met.
    pub(super) fn clean_up(&self) {
        self.log_if_health_changed(self.try_clean_up());
    }

    /// Logs once when the cache starts to fail, and once when it works again.
    fn log_if_health_changed(&self, outcome: io::Result<()>) {
        let was_failing = self.is_failing.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(error) if !was_failing => {
                tracing::warn!(%error, "embeddings cannot be cached on disk: after a restart they must be paid for again");
            }
            Ok(()) if was_failing => tracing::info!("embeddings are cached on disk again"),
            _ => {}
        }
    }

    fn try_read(&self, key: &CacheKey) -> Result<CachedEmbedding, ReadError> {
        let mut bytes = Vec::new();
        File::open(self.path(key))?.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes)?;
        decode(key, &bytes).ok_or(ReadError::Damaged)
    }

    fn try_write(&self, key: &CacheKey, cached: &CachedEmbedding) -> io::Result<()> {
        let bytes = encode(key, cached);
        let size = size_on_disk(bytes.len() as u64);
        let path = self.path(key);
        let staging_folder = self.folder.join(STAGING_FOLDER);
        let staging_name = self.next_staging_name.fetch_add(1, Ordering::Relaxed);
        let staging_file = staging_folder.join(staging_name.to_string());
        if size > self.max_bytes {
            return Ok(());
        }
        let mut permit = self.space.empty_permit();
        permit.blocking_grow_to(bytes.len() as u64)?;
        let mut used = self.used_bytes();
        let remaining = self.make_space(&mut used, size)?;
        let replaced_size = if self.may_contain(key) {
            fs::metadata(&path).map_or(0, |file| size_on_disk(file.len()))
        } else {
            0
        };
        let write_and_rename = || {
            File::create(&staging_file)?.write_all(&bytes)?;
            fs::rename(&staging_file, &path)
        };
        let outcome = write_and_rename().or_else(|error| match (error.kind(), path.parent()) {
            // The folders do not exist yet, or somebody has removed them.
            (io::ErrorKind::NotFound, Some(folder)) => {
                fs::create_dir_all(&staging_folder)?;
                fs::create_dir_all(folder)?;
                write_and_rename()
            }
            _ => Err(error),
        });
        if let Err(error) = outcome {
            // If the removal fails as well, the next start removes the file.
            let _ = fs::remove_file(&staging_file);
            return Err(error);
        }
        permit.mark_written(bytes.len() as u64);
        *used = Some((remaining + size).saturating_sub(replaced_size));
        if let Some(prefixes) = &mut *self.key_prefixes() {
            prefixes.insert(key.prefix());
        }
        Ok(())
    }

    /// Makes space for a file of `size` bytes: removes old files if necessary. Returns the total
    /// size of the remaining files, without the new file. Sets `used` to the same number, or to
    /// `None` if the folder cannot be listed.
    fn make_space(&self, used: &mut Option<u64>, size: u64) -> io::Result<u64> {
        let max_total = match used.take() {
            Some(total) if total.saturating_add(size) <= self.max_bytes => {
                return Ok(*used.insert(total));
            }
            // Removes more files than necessary, so that the next writes need not list all files.
            Some(_) => self.max_bytes - self.max_bytes / 8,
            None => self.max_bytes,
        };
        Ok(*used.insert(self.evict(max_total.saturating_sub(size))?))
    }

    fn try_clean_up(&self) -> io::Result<()> {
        let mut used = self.used_bytes();
        for leftover in entries(&self.folder.join(STAGING_FOLDER))? {
            fs::remove_file(leftover?.path())?;
        }
        *used = Some(self.evict(self.max_bytes)?);
        Ok(())
    }

    /// Removes the oldest files until the remaining files take at most `max_total` bytes. Sets
    /// `key_prefixes`. Returns the size of the remaining files.
    ///
    /// A file whose size cannot be read is not counted. A file that cannot be removed stays.
    /// Neither is an error: one bad file must not turn the cache off.
    fn evict(&self, max_total: u64) -> io::Result<u64> {
        let Listing { mut files, is_complete } = self.files()?;
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|file| file.bytes).sum();
        let mut key_prefixes = HashSet::new();
        for CacheFile { key, bytes, .. } in files {
            if total > max_total {
                let path = self.path(&key);
                match fs::remove_file(&path) {
                    Ok(()) => {
                        total -= bytes;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(%error, ?path, "an old embedding could not be removed");
                    }
                }
            }
            key_prefixes.insert(key.prefix());
        }
        *self.key_prefixes() = is_complete.then_some(key_prefixes);
        Ok(total)
    }

    fn files(&self) -> io::Result<Listing> {
        let (mut files, mut is_complete) = (Vec::new(), true);
        for folder in entries(&self.folder)? {
            let entries_of_folder: io::Result<Vec<_>> = match folder {
                Ok(folder) if folder.file_name() == STAGING_FOLDER => continue,
                Ok(folder) => entries(&folder.path()).and_then(Iterator::collect),
                Err(error) => Err(error),
            };
            is_complete &= entries_of_folder.is_ok();
            for file in entries_of_folder.into_iter().flatten() {
                // A file whose name is not a key was not written by the cache.
                let hash = Sha256::from_hex(file.file_name().as_encoded_bytes());
                let Some(key) = hash.map(CacheKey) else { continue };
                match file.metadata() {
                    Ok(metadata) if metadata.is_file() => {
                        let written_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        files.push(CacheFile {
                            written_at,
                            bytes: size_on_disk(metadata.len()),
                            key,
                        });
                    }
                    Ok(_) => {}
                    Err(_) => is_complete = false,
                }
            }
        }
        Ok(Listing { files, is_complete })
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        let name = key.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    fn key_prefixes(&self) -> MutexGuard<'_, Option<HashSet<u64>>> {
        // The set stays consistent even if a holder of the lock panicked.
        self.key_prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used_bytes(&self) -> MutexGuard<'_, Option<u64>> {
        // A panic may have left a wrong number, so the files are counted again.
        self.used_bytes.lock().unwrap_or_else(|poisoned| {
            self.used_bytes.clear_poison();
            let mut used = PoisonError::into_inner(poisoned);
            *used = None;
            used
        })
    }
}

/// The entries of a folder, or none if it does not exist.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(entries.into_iter().flatten())
}

#[cfg(test)]
mod tests;
