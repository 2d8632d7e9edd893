//! One small file for each embedding, at `<2 hex>/<64 hex>`, named by its key.
//!
//! Files, and not an embedded database, because nothing here needs transactions: a lost or damaged
//! file costs one call, and an operator can look at the folder or delete it with the usual tools. A
//! file is written in a staging folder and renamed, so that it is either complete or absent. It is
//! not synced, so a power cut can leave wrong content; the checksum detects that and any other
//! damage, and a damaged file is ignored. Every function here blocks.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use serde_json::value::RawValue;

use super::{CacheKey, CachedEmbedding};
use crate::{
    disk_space::{DiskSpace, size_on_disk},
    embed::Prepared,
    nvidia::Vector,
    sha256::Sha256,
};

/// Every file begins with this; the number is the version of the format.
const MAGIC: &str = "imagesvc-vector 2";

/// The longest file that is read, in bytes: NVIDIA's answers are read up to 1 MiB.
const MAX_FILE: u64 = (1 << 20) + 256;

/// Files are written here before they are renamed.
const STAGING_FOLDER: &str = ".staged";

/// The files of a folder that nobody else writes to, with a bound on their total size.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    limit: u64,
    space: DiskSpace,
    /// The size of all files in bytes; unknown until the folder was listed.
    used: Mutex<Option<u64>>,
    /// The prefixes of all keys; unknown until the folder was listed. This lock is never held for
    /// long.
    keys: Mutex<Option<HashSet<u64>>>,
    next: AtomicU64,
    is_failing: AtomicBool,
}

/// The files in the folder.
struct Listing {
    /// When each file was written, its size, and its key. Paths are not kept: many thousands of
    /// small strings would fragment the heap.
    files: Vec<(SystemTime, u64, CacheKey)>,
    /// Whether the list is complete; it is not if an entry could not be read.
    is_complete: bool,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("its content is not what was written")]
    Damaged,
}

impl Disk {
    /// A cache in this folder, with at most `limit` bytes in its files, on the disk that `space`
    /// describes.
    pub(super) fn new(folder: PathBuf, limit: u64, space: DiskSpace) -> Self {
        Self {
            folder,
            limit,
            space,
            used: Mutex::new(None),
            keys: Mutex::new(None),
            next: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        }
    }

    /// Whether a file for the key may exist, so that a new picture rarely costs a disk access. Does
    /// not block.
    pub(super) fn may_hold(&self, key: &CacheKey) -> bool {
        self.keys().as_ref().is_none_or(|keys| keys.contains(&key.prefix()))
    }

    pub(super) fn read(&self, key: &CacheKey) -> Option<CachedEmbedding> {
        match self.try_read(key) {
            Ok(cached) => Some(cached),
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, %key, "a cached embedding cannot be used: NVIDIA is called again");
                None
            }
        }
    }

    pub(super) fn write(&self, key: &CacheKey, cached: &CachedEmbedding) {
        self.log_change(self.try_write(key, cached));
    }

    /// Removes unfinished files, and the oldest files beyond the limit.
    pub(super) fn clean_up(&self) {
        self.log_change(self.try_clean_up());
    }

    /// Logs once when the cache starts to fail, and once when it works again.
    fn log_change(&self, outcome: io::Result<()>) {
        let failed = self.is_failing.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(error) if !failed => {
                tracing::warn!(%error, "embeddings cannot be cached on disk: after a restart they must be paid for again");
            }
            Ok(()) if failed => tracing::info!("embeddings are cached on disk again"),
            _ => {}
        }
    }

    fn try_read(&self, key: &CacheKey) -> Result<CachedEmbedding, Unusable> {
        let mut bytes = Vec::new();
        File::open(self.path(key))?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        decode(key, &bytes).ok_or(Unusable::Damaged)
    }

    fn try_write(&self, key: &CacheKey, cached: &CachedEmbedding) -> io::Result<()> {
        let bytes = encode(key, cached);
        let size = size_on_disk(bytes.len() as u64);
        let path = self.path(key);
        let staging = self.folder.join(STAGING_FOLDER);
        let staging_file = staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        if size > self.limit {
            return Ok(());
        }
        let mut permit = self.space.empty_permit();
        permit.grow_to_blocking(bytes.len() as u64)?;
        let mut used = self.used();
        let in_use = self.make_room(&mut used, size)?;
        let replaced = match self.may_hold(key) {
            true => fs::metadata(&path).map_or(0, |file| size_on_disk(file.len())),
            false => 0,
        };
        let write = || {
            File::create(&staging_file)?.write_all(&bytes)?;
            fs::rename(&staging_file, &path)
        };
        let written = write().or_else(|error| match (error.kind(), path.parent()) {
            (io::ErrorKind::NotFound, Some(folder)) => {
                fs::create_dir_all(&staging)?;
                fs::create_dir_all(folder)?;
                write()
            }
            _ => Err(error),
        });
        if let Err(error) = written {
            // The first error matters. The next start removes the leftover file.
            let _ = fs::remove_file(&staging_file);
            return Err(error);
        }
        permit.mark_written(bytes.len() as u64);
        *used = Some((in_use + size).saturating_sub(replaced));
        if let Some(keys) = &mut *self.keys() {
            keys.insert(key.prefix());
        }
        Ok(())
    }

    /// Makes room for `size` bytes, and returns how many are in use.
    fn make_room(&self, used: &mut Option<u64>, size: u64) -> io::Result<u64> {
        let keep = match used.take() {
            Some(in_use) if in_use.saturating_add(size) <= self.limit => {
                return Ok(*used.insert(in_use));
            }
            // Evicts more than necessary, so that not every new picture has to list all files.
            Some(_) => self.limit - self.limit / 8,
            None => self.limit,
        };
        Ok(*used.insert(self.evict(keep.saturating_sub(size))?))
    }

    fn try_clean_up(&self) -> io::Result<()> {
        let mut used = self.used();
        for leftover in entries(&self.folder.join(STAGING_FOLDER))? {
            fs::remove_file(leftover?.path())?;
        }
        *used = Some(self.evict(self.limit)?);
        Ok(())
    }

    /// Removes the oldest files until at most `limit` bytes are left, and returns how many are
    /// left. Files that cannot be read are not counted and files that cannot be removed stay: one
    /// bad file must not turn the cache off.
    fn evict(&self, limit: u64) -> io::Result<u64> {
        let Listing { mut files, is_complete } = self.files()?;
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        let mut keys = HashSet::new();
        for (_, size, key) in files {
            if total > limit {
                let path = self.path(&key);
                match fs::remove_file(&path) {
                    Ok(()) => {
                        total -= size;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(%error, ?path, "an old embedding could not be removed");
                    }
                }
            }
            keys.insert(key.prefix());
        }
        *self.keys() = is_complete.then_some(keys);
        Ok(total)
    }

    fn files(&self) -> io::Result<Listing> {
        let (mut files, mut is_complete) = (Vec::new(), true);
        for folder in entries(&self.folder)? {
            let listing =
                folder.and_then(|folder| match folder.file_name() == OsStr::new(STAGING_FOLDER) {
                    true => Ok(Vec::new()),
                    false => entries(&folder.path())?.collect(),
                });
            is_complete &= listing.is_ok();
            for file in listing.into_iter().flatten() {
                // The cache did not write files with other names.
                let hash = Sha256::from_hex(file.file_name().as_encoded_bytes());
                let Some(key) = hash.map(CacheKey) else { continue };
                match file.metadata() {
                    Ok(about) if about.is_file() => {
                        let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        files.push((written, size_on_disk(about.len()), key));
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

    fn keys(&self) -> MutexGuard<'_, Option<HashSet<u64>>> {
        // The set stays consistent even if a holder of the lock panicked.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> MutexGuard<'_, Option<u64>> {
        // A panic may have left a wrong number, so the files are counted again.
        self.used.lock().unwrap_or_else(|poisoned| {
            self.used.clear_poison();
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

/// A line that describes the vector, then its text, so that `head` and `jq` can read the file.
fn encode(key: &CacheKey, cached: &CachedEmbedding) -> Vec<u8> {
    let (text, prepared) = (cached.vector.json().get(), cached.prepared.name());
    let checksum = checksum(key, prepared, text.as_bytes());
    format!("{MAGIC} {prepared} {} {checksum}\n{text}\n", text.len()).into()
}

fn decode(key: &CacheKey, bytes: &[u8]) -> Option<CachedEmbedding> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, rest) = text.split_once('\n')?;
    let text = rest.strip_suffix('\n')?;
    let mut fields = head.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let (name, length, sum) = (fields.next()?, fields.next()?, fields.next()?);
    if length != text.len().to_string() || sum != checksum(key, name, text.as_bytes()) {
        return None;
    }
    let prepared = Prepared::ALL.into_iter().find(|prepared| prepared.name() == name)?;
    let vector = Vector::from_json(serde_json::from_str::<&RawValue>(text).ok()?).ok()?;
    Some(CachedEmbedding { vector, prepared, valid_until: None })
}

/// A CRC-32 detects damage. It need not resist forgery: whoever can write here can write any
/// vector. It covers the key, so that a file under another key's name counts as damaged.
fn checksum(key: &CacheKey, prepared: &str, text: &[u8]) -> String {
    let mut sum = crc32fast::Hasher::new();
    for part in [key.0.bytes(), prepared.as_bytes(), text] {
        sum.update(part);
    }
    format!("{:08x}", sum.finalize())
}

#[cfg(test)]
mod tests;
