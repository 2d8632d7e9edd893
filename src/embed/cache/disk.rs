//! One small file for each embedding, `<2 hex>/<64 hex>`, named by its key.
//!
//! A file is written beside and renamed, so that it is whole or not there; it is not synced, so a
//! power cut may leave one that is not what was written. That, and anything else that is wrong
//! with it, the checksum tells: such a file is as good as none. All of this blocks.

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

use super::{CacheKey, Stored};
use crate::{
    disk_space::{DiskSpace, whole_blocks},
    embed::Prepared,
    nvidia::Vector,
    sha256::Sha256,
};

/// What files begin with; the number is the version of their form.
const MAGIC: &str = "imagesvc-vector 2";

/// The longest file that is read, in bytes: NVIDIA's answers are read up to 1 MiB.
const MAX_FILE: u64 = (1 << 20) + 256;

/// Where files are written before they get their name.
const STAGED: &str = ".staged";

/// The files of a folder that nobody else writes to, bounded in bytes together.
#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    limit: u64,
    space: DiskSpace,
    /// Bytes in all files; unknown until the folder was looked through.
    used: Mutex<Option<u64>>,
    /// The prefixes of the keys of all files; unknown until the folder was looked through. Never
    /// locked for long.
    keys: Mutex<Option<HashSet<u64>>>,
    next: AtomicU64,
    fails: AtomicBool,
}

/// What is in the folder.
struct Listing {
    /// When each file was written, what it takes, and the key that names it: a path for each of
    /// many thousands would leave the heap in pieces.
    files: Vec<(SystemTime, u64, CacheKey)>,
    /// Whether these are all: not if something could not be looked at.
    all_seen: bool,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not what was written")]
    Damaged,
}

impl Disk {
    /// A folder, the bytes that its files may have, and the disk that it is on.
    pub(super) fn new(folder: PathBuf, limit: u64, space: DiskSpace) -> Self {
        Self {
            folder,
            limit,
            space,
            used: Mutex::new(None),
            keys: Mutex::new(None),
            next: AtomicU64::new(0),
            fails: AtomicBool::new(false),
        }
    }

    /// Whether it is worth while to look for a file: nearly never for a picture that is new. Does
    /// not block.
    pub(super) fn may_hold(&self, key: &CacheKey) -> bool {
        self.keys().as_ref().is_none_or(|keys| keys.contains(&key.prefix()))
    }

    pub(super) fn read(&self, key: &CacheKey) -> Option<Stored> {
        match self.try_read(key) {
            Ok(stored) => Some(stored),
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(%error, %key, "an embedding on disk cannot be used: NVIDIA is asked again");
                None
            }
        }
    }

    pub(super) fn write(&self, key: &CacheKey, stored: &Stored) {
        self.note(self.try_write(key, stored));
    }

    /// Removes what was left unfinished, and the oldest files beyond the limit.
    pub(super) fn tidy(&self) {
        self.note(self.try_tidy());
    }

    /// Says it once when the cache begins to fail, and when it works again.
    fn note(&self, outcome: io::Result<()>) {
        let failed = self.fails.swap(outcome.is_err(), Ordering::Relaxed);
        match outcome {
            Err(error) if !failed => {
                tracing::warn!(%error, "embeddings cannot be kept on disk: a restart will pay for them again");
            }
            Ok(()) if failed => tracing::info!("embeddings are kept on disk again"),
            _ => {}
        }
    }

    fn try_read(&self, key: &CacheKey) -> Result<Stored, Unusable> {
        let mut bytes = Vec::new();
        File::open(self.path(key))?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        decode(key, &bytes).ok_or(Unusable::Damaged)
    }

    fn try_write(&self, key: &CacheKey, stored: &Stored) -> io::Result<()> {
        let bytes = encode(key, stored);
        let size = whole_blocks(bytes.len() as u64);
        let path = self.path(key);
        let staged = self.folder.join(STAGED);
        let staged_file = staged.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        if size > self.limit {
            return Ok(());
        }
        let mut promise = self.space.promise();
        promise.grow_to_blocking(bytes.len() as u64)?;
        let mut used = self.lock();
        let in_use = self.make_room(&mut used, size)?;
        let replaced = match self.may_hold(key) {
            true => fs::metadata(&path).map_or(0, |file| whole_blocks(file.len())),
            false => 0,
        };
        let write = || {
            File::create(&staged_file)?.write_all(&bytes)?;
            fs::rename(&staged_file, &path)
        };
        let written = write().or_else(|error| match (error.kind(), path.parent()) {
            (io::ErrorKind::NotFound, Some(folder)) => {
                fs::create_dir_all(&staged)?;
                fs::create_dir_all(folder)?;
                write()
            }
            _ => Err(error),
        });
        if let Err(error) = written {
            // The first error is what matters; what is left, the next start removes.
            let _ = fs::remove_file(&staged_file);
            return Err(error);
        }
        promise.wrote(bytes.len() as u64);
        *used = Some((in_use + size).saturating_sub(replaced));
        if let Some(keys) = &mut *self.keys() {
            keys.insert(key.prefix());
        }
        Ok(())
    }

    /// Sees to it that so many bytes fit, and says how many are in use.
    fn make_room(&self, used: &mut Option<u64>, size: u64) -> io::Result<u64> {
        let keep = match used.take() {
            Some(in_use) if in_use.saturating_add(size) <= self.limit => {
                return Ok(*used.insert(in_use));
            }
            // More goes than must, so that not every picture looks through all files.
            Some(_) => self.limit - self.limit / 8,
            None => self.limit,
        };
        Ok(*used.insert(self.sweep(keep.saturating_sub(size))?))
    }

    fn try_tidy(&self) -> io::Result<()> {
        let mut used = self.lock();
        for leftover in entries(&self.folder.join(STAGED))? {
            fs::remove_file(leftover?.path())?;
        }
        *used = Some(self.sweep(self.limit)?);
        Ok(())
    }

    /// Removes the oldest files until at most so many bytes are left, and says how many are. What
    /// cannot be looked at is not counted, what cannot be removed stays: one bad file shall not
    /// turn the cache off.
    fn sweep(&self, limit: u64) -> io::Result<u64> {
        let Listing { mut files, all_seen } = self.files()?;
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
                    Err(error) => tracing::debug!(%error, ?path, "an old embedding stays"),
                }
            }
            keys.insert(key.prefix());
        }
        *self.keys() = all_seen.then_some(keys);
        Ok(total)
    }

    fn files(&self) -> io::Result<Listing> {
        let (mut files, mut all_seen) = (Vec::new(), true);
        for folder in entries(&self.folder)? {
            let listing =
                folder.and_then(|folder| match folder.file_name() == OsStr::new(STAGED) {
                    true => Ok(Vec::new()),
                    false => entries(&folder.path())?.collect(),
                });
            all_seen &= listing.is_ok();
            for file in listing.into_iter().flatten() {
                // What has another name, somebody else put there.
                let hash = Sha256::from_hex(file.file_name().as_encoded_bytes());
                let Some(key) = hash.map(CacheKey) else { continue };
                match file.metadata() {
                    Ok(about) if about.is_file() => {
                        let written = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                        files.push((written, whole_blocks(about.len()), key));
                    }
                    Ok(_) => {}
                    Err(_) => all_seen = false,
                }
            }
        }
        Ok(Listing { files, all_seen })
    }

    fn path(&self, key: &CacheKey) -> PathBuf {
        let name = key.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    fn keys(&self) -> MutexGuard<'_, Option<HashSet<u64>>> {
        // The set is whole whatever panicked elsewhere.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        // After a panic the number may be off: it is counted anew.
        self.used.lock().unwrap_or_else(|poisoned| {
            self.used.clear_poison();
            let mut used = PoisonError::into_inner(poisoned);
            *used = None;
            used
        })
    }
}

/// The entries of a folder; none if it is not there.
fn entries(folder: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(entries.into_iter().flatten())
}

/// A line that describes the text, and the text: `head` and `jq` read it.
fn encode(key: &CacheKey, stored: &Stored) -> Vec<u8> {
    let (text, prepared) = (stored.vector.json().get(), stored.prepared.name());
    let checksum = checksum(key, prepared, text.as_bytes());
    format!("{MAGIC} {prepared} {} {checksum}\n{text}\n", text.len()).into()
}

fn decode(key: &CacheKey, bytes: &[u8]) -> Option<Stored> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, rest) = text.split_once('\n')?;
    let text = rest.strip_suffix('\n')?;
    let mut fields = head.strip_prefix(MAGIC)?.strip_prefix(' ')?.split(' ');
    let (name, length, sum) = (fields.next()?, fields.next()?, fields.next()?);
    if length != text.len().to_string() || sum != checksum(key, name, text.as_bytes()) {
        return None;
    }
    let prepared = Prepared::ALL.into_iter().find(|prepared| prepared.name() == name)?;
    let vector = Vector::check(serde_json::from_str::<&RawValue>(text).ok()?).ok()?;
    Some(Stored { vector, prepared, valid_until: None })
}

/// A CRC-32 against damage: whoever can write here needs no forgery. The key is in it: a file under
/// another's name is a damaged one.
fn checksum(key: &CacheKey, prepared: &str, text: &[u8]) -> String {
    let mut sum = crc32fast::Hasher::new();
    for part in [key.0.bytes(), prepared.as_bytes(), text] {
        sum.update(part);
    }
    format!("{:08x}", sum.finalize())
}

#[cfg(test)]
mod tests;
