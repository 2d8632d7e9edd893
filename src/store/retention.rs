//! Removes saved pictures that are too old. When all saved pictures together are too large, also
//! removes the oldest.

use std::{
    fs,
    future::pending,
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use uuid::{Uuid, Version};

use super::{Error, Store, cannot, folder::Folder};
use crate::{disk_space::size_on_disk, image::Format, telemetry::Metrics};

/// Once [`MIN_INTERVAL`] has passed since a sweep, the next one starts within this time.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// The shortest time between two sweeps.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Which saved pictures are removed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// The age above which a saved picture is removed; `None` for no limit.
    pub max_age: Option<Duration>,
    /// The most bytes that all saved pictures together may take on the disk, in whole blocks; `None` for
    /// no limit.
    pub max_bytes: Option<u64>,
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// The number of removed pictures.
    pub removed: u64,
    /// The size of the pictures that remain, in bytes, counted in whole blocks of the disk.
    pub remaining_bytes: u64,
}

impl Store {
    /// Calls [`Self::sweep`] at intervals, and soon after the saved pictures exceed their size limit.
    /// Never returns.
    pub async fn run_retention(self, metrics: Arc<Metrics>) {
        let Retention { max_age, max_bytes } = self.retention;
        if max_age.is_none() && max_bytes.is_none() {
            return pending().await;
        }
        // A quarter of `max_age`, so that no picture stays much longer than `max_age`.
        let interval = match max_age {
            Some(max_age) => (max_age / 4).clamp(MIN_INTERVAL, MAX_INTERVAL),
            None => MAX_INTERVAL,
        };
        loop {
            let store = self.clone();
            match spawn_blocking(move || store.sweep(SystemTime::now())).await {
                Ok(Ok(report)) if report.removed > 0 => {
                    tracing::info!(removed = report.removed, "old pictures were removed");
                    metrics.removed_pictures.inc_by(report.removed);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "old pictures could not be removed"),
                Err(error) => {
                    tracing::error!(%error, "the thread that removes old pictures panicked");
                }
            }
            sleep(MIN_INTERVAL).await;
            let saved_bytes = self.folder.saved_bytes.load(Ordering::Relaxed);
            // A sweep does not remove the pictures of running requests, so the size limit may still
            // be exceeded. The end of these requests does not notify `over_limit`.
            if max_bytes.is_some_and(|max| saved_bytes > max) {
                continue;
            }
            // A timeout means that the interval is over.
            let _ = timeout(interval, self.folder.over_limit.notified()).await;
        }
    }

    /// Removes pictures that are too old at `now`. If all pictures together exceed the size limit, also
    /// removes the oldest until the rest is at least a sixteenth below the limit, or only pictures in
    /// use are left. A picture is in use, and stays, while its request is running. Files that the
    /// service did not save always stay. Blocks the thread.
    ///
    /// # Errors
    /// If the folder cannot be read, or if removals failed and no picture was removed.
    pub fn sweep(&self, now: SystemTime) -> Result<SweepReport, Error> {
        let Retention { max_age, max_bytes } = self.retention;
        let saved_bytes_before = self.folder.saved_bytes.load(Ordering::Relaxed);
        let pictures = self.folder.pictures()?;
        let mut removed = 0;
        let mut remaining_bytes = pictures.iter().map(|picture| picture.bytes).sum();
        let target_bytes = match max_bytes {
            // The target is a sixteenth below the limit. Otherwise, every new picture would cause a
            // sweep.
            Some(max) if remaining_bytes > max => max - max / 16,
            _ => u64::MAX,
        };
        let mut last_error = None;
        for picture in pictures {
            let age = now.duration_since(picture.saved_at()).unwrap_or_default();
            let is_too_old = max_age.is_some_and(|max| age > max);
            let must_go = is_too_old || remaining_bytes > target_bytes;
            if !must_go || self.folder.is_in_use(picture.id) {
                continue;
            }
            match fs::remove_file(self.folder.path.join(picture.name())) {
                Ok(()) => removed += 1,
                // Somebody else removed the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    last_error = Some(cannot("remove an old picture")(error));
                    continue;
                }
            }
            remaining_bytes -= picture.bytes;
        }
        // `pictures` may lack pictures that were saved during the sweep, so their bytes are added.
        // If it contains them, they are counted twice until the next sweep. At worst, that causes a
        // sweep too early.
        let recount = |saved_bytes: u64| {
            Some(remaining_bytes + saved_bytes.saturating_sub(saved_bytes_before))
        };
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.folder.saved_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, recount);
        match last_error {
            Some(error) if removed == 0 => Err(error),
            _ => Ok(SweepReport { removed, remaining_bytes }),
        }
    }
}

/// A picture that the service saved.
#[derive(Debug)]
struct SavedPicture {
    id: Uuid,
    format: Format,
    bytes: u64,
}

impl SavedPicture {
    fn name(&self) -> String {
        format!("{}.{}", self.id, self.format.extension())
    }

    /// When the picture was saved, according to its name: copying a file changes its timestamps.
    fn saved_at(&self) -> SystemTime {
        let (seconds, nanos) = self.id.get_timestamp().map_or((0, 0), |time| time.to_unix());
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
    }
}

impl Folder {
    /// The saved pictures, the oldest first.
    fn pictures(&self) -> Result<Vec<SavedPicture>, Error> {
        let mut pictures = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(cannot("list the pictures"))? {
            let entry = entry.map_err(cannot("list the pictures"))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some((id, format)) = parse_name(&name) else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => {
                    let bytes = size_on_disk(metadata.len());
                    pictures.push(SavedPicture { id, format, bytes });
                }
                // The service did not create this link or folder, or the file is already removed.
                _ => {}
            }
        }
        // An id begins with the time.
        pictures.sort_unstable_by_key(|picture| picture.id);
        Ok(pictures)
    }
}

/// Returns the id and format of a saved picture from its name, or `None` if the service does not
/// create such names. The service's names consist of a UUID v7 (`SortRand`), in lower case with
/// hyphens, and the extension of a format.
fn parse_name(name: &str) -> Option<(Uuid, Format)> {
    let (stem, extension) = name.split_once('.')?;
    let id = Uuid::try_parse(stem).ok()?;
    let format = Format::ALL.into_iter().find(|format| format.extension() == extension)?;
    let is_own = id.get_version() == Some(Version::SortRand) && id.to_string() == stem;
    is_own.then_some((id, format))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use tempfile::TempDir;
    use uuid::{NoContext, Timestamp};

    use super::*;
    use crate::{disk_space::DiskSpace, store::Settings};

    /// The time of the tests, in seconds since 1970.
    const NOW: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    /// Opens a store in a new folder. `max_age` is in seconds.
    fn open_store(max_age: Option<u64>, max_bytes: Option<u64>) -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let retention = Retention { max_age: max_age.map(Duration::from_secs), max_bytes };
        let path = folder.path().to_owned();
        let space = DiskSpace::new(path.clone(), 0);
        let settings = Settings { folder: path, space, retention };
        let store = Store::open(&settings).unwrap();
        (folder, store)
    }

    /// Creates a picture as if it had been saved some seconds ago. Up to 4096 bytes take one block.
    fn put(folder: &Path, seconds_ago: u64, bytes: usize) -> String {
        let time = Timestamp::from_unix(NoContext, NOW - seconds_ago, 0);
        let name = format!("{}.jpg", Uuid::new_v7(time));
        fs::write(folder.join(&name), vec![0; bytes]).unwrap();
        name
    }

    /// The names of the files that remain, without hidden files.
    fn remaining(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    #[test]
    fn pictures_older_than_the_limit_are_removed() {
        let (folder, store) = open_store(Some(100), None);
        let [_, _, young, new] = [500, 101, 99, 0].map(|age| put(folder.path(), age, 10));
        assert_eq!(
            store.sweep(now()).unwrap(),
            SweepReport { removed: 2, remaining_bytes: 2 * 4096 }
        );
        assert_eq!(remaining(folder.path()), [young, new]);
    }

    #[test]
    fn the_oldest_pictures_are_removed_if_all_together_exceed_the_size_limit() {
        let (folder, store) = open_store(None, Some(10 * 4096));
        let names: Vec<_> = (0..20).rev().map(|age| put(folder.path(), age, 4000)).collect();
        // The target is 15/16 of the limit, so 9 blocks remain.
        assert_eq!(
            store.sweep(now()).unwrap(),
            SweepReport { removed: 11, remaining_bytes: 9 * 4096 }
        );
        assert_eq!(remaining(folder.path()), names[11..]);
        assert_eq!(store.sweep(now()).unwrap().removed, 0);
    }

    #[test]
    fn files_that_the_service_did_not_save_are_never_removed() {
        let (folder, store) = open_store(Some(1), Some(1));
        let old = Uuid::new_v7(Timestamp::from_unix(NoContext, 1000, 0));
        let foreign_names = [
            "holiday.jpg".to_owned(),
            ".gitkeep".to_owned(),
            format!("{}.jpg", Uuid::new_v4()),
            format!("{}.jpg", old.simple()),
            format!("{}.jpg", old.to_string().to_uppercase()),
            format!("{old}.pdf"),
            format!("{old}.jpg.bak"),
            format!("{old}"),
        ];
        for name in &foreign_names {
            fs::write(folder.path().join(name), "saved by somebody else").unwrap();
        }
        fs::create_dir(folder.path().join(format!("{old}.png"))).unwrap();
        std::os::unix::fs::symlink("holiday.jpg", folder.path().join(format!("{old}.gif")))
            .unwrap();
        let saved = put(folder.path(), 10, 10);
        let before = remaining(folder.path()).len();
        assert_eq!(store.sweep(now()).unwrap(), SweepReport { removed: 1, remaining_bytes: 0 });
        assert_eq!(remaining(folder.path()).len(), before - 1);
        assert!(!folder.path().join(saved).exists());
        assert!(foreign_names.iter().all(|name| folder.path().join(name).exists()));
    }

    #[tokio::test]
    async fn a_picture_is_not_removed_while_its_request_is_running() {
        let (folder, store) = open_store(None, Some(1));
        let memory_limit = 100; // more than the picture needs
        let mut spool = store.spool(memory_limit);
        spool.write(&Bytes::from_static(b"picture")).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut saved =
            store.save(spool.finish().await.unwrap(), Format::Png, deadline, ()).await.unwrap();
        saved.confirm();
        assert_eq!(store.sweep(now()).unwrap(), SweepReport { removed: 0, remaining_bytes: 4096 });
        let name = saved.name().to_owned();
        assert_eq!(remaining(folder.path()), [name]);
        drop(saved); // as at the end of the request
        assert_eq!(store.sweep(now()).unwrap(), SweepReport { removed: 1, remaining_bytes: 0 });
    }
}
