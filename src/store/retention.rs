//! Removes saved pictures that are too old or exceed the size limit, the oldest first.

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

use super::{Error, Folder, Store, cannot};
use crate::{disk_space::size_on_disk, image::Format, telemetry::Metrics};

/// The longest time between two sweeps.
const INTERVAL: Duration = Duration::from_secs(60);

/// The shortest time between two sweeps.
const PAUSE: Duration = Duration::from_secs(1);

/// How long saved pictures are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// Older pictures are removed.
    pub max_age: Option<Duration>,
    /// The most bytes of all pictures together, counted in whole blocks.
    pub max_bytes: Option<u64>,
}

/// The result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// The number of removed pictures.
    pub removed: u64,
    /// The bytes of the pictures that remain.
    pub left_bytes: u64,
}

impl Store {
    /// Sweeps for ever: at intervals, and soon after the saved pictures exceed their limit.
    pub async fn run_retention(self, metrics: Arc<Metrics>) {
        let Retention { max_age, max_bytes } = self.retention;
        if max_age.is_none() && max_bytes.is_none() {
            return pending().await;
        }
        let interval = max_age.map_or(INTERVAL, |age| (age / 4).clamp(PAUSE, INTERVAL));
        loop {
            let store = self.clone();
            match spawn_blocking(move || store.sweep(SystemTime::now())).await {
                Ok(Ok(swept)) if swept.removed > 0 => {
                    tracing::info!(removed = swept.removed, "old pictures were removed");
                    metrics.removed.inc_by(swept.removed);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "old pictures could not be removed"),
                Err(error) => {
                    tracing::error!(%error, "the thread that removes old pictures panicked");
                }
            }
            sleep(PAUSE).await;
            let saved_bytes = self.folder.saved_bytes.load(Ordering::Relaxed);
            if max_bytes.is_some_and(|max| saved_bytes > max) {
                continue; // requests that were at work may have ended
            }
            // At the end of the interval, the next sweep starts even without a notification.
            let _ = timeout(interval, self.folder.over_limit.notified()).await;
        }
    }

    /// Removes pictures that are too old at `now`, and the oldest pictures beyond the size limit.
    /// Pictures whose request is still at work stay, and so does everything that the service did
    /// not save. Blocks the thread.
    ///
    /// # Errors
    /// If the folder cannot be read, or none of the pictures could be removed.
    pub fn sweep(&self, now: SystemTime) -> Result<Swept, Error> {
        let Retention { max_age, max_bytes } = self.retention;
        let before = self.folder.saved_bytes.load(Ordering::Relaxed);
        let pictures = self.folder.pictures()?;
        let mut swept = Swept { removed: 0, left_bytes: pictures.iter().map(|p| p.bytes).sum() };
        let room = match max_bytes {
            // Removes more than necessary, so that not every new picture causes a sweep.
            Some(max) if swept.left_bytes > max => max - max / 16,
            _ => u64::MAX,
        };
        let mut failure = None;
        for picture in pictures {
            let age = now.duration_since(picture.saved_at()).unwrap_or_default();
            let is_old = max_age.is_some_and(|max| age > max);
            if !(is_old || swept.left_bytes > room) || self.folder.is_at_work(picture.id) {
                continue;
            }
            match fs::remove_file(self.folder.path.join(picture.name())) {
                Ok(()) => swept.removed += 1,
                // Somebody else removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    failure = Some(cannot("remove an old picture")(error));
                    continue;
                }
            }
            swept.left_bytes -= picture.bytes;
        }
        // Pictures that were saved meanwhile may be missing from the list. Counting them twice is
        // better than not at all.
        let recount = |now: u64| Some(swept.left_bytes + now.saturating_sub(before));
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.folder.saved_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, recount);
        match failure {
            Some(failure) if swept.removed == 0 => Err(failure),
            _ => Ok(swept),
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

    /// Taken from the name, because copying a file changes its timestamps.
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
                Ok(about) if about.is_file() => {
                    pictures.push(SavedPicture { id, format, bytes: size_on_disk(about.len()) });
                }
                // The service does not create links or folders, whatever their names; a file may
                // have been removed by now.
                _ => {}
            }
        }
        pictures.sort_unstable_by_key(|picture| picture.id);
        Ok(pictures)
    }
}

/// The id and format of a picture, if the name is one that the service gives: a UUID v7 in its
/// usual form, and the extension of a format.
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

    const NOW: u64 = 1_800_000_000;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn store(max_age: Option<u64>, max_bytes: Option<u64>) -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let retention = Retention { max_age: max_age.map(Duration::from_secs), max_bytes };
        let path = folder.path().to_owned();
        let space = DiskSpace::new(path.clone(), 0);
        let settings = Settings { folder: path, space, retention };
        let store = Store::open(&settings).unwrap();
        (folder, store)
    }

    /// Creates a picture that was saved this many seconds ago.
    fn put(folder: &Path, seconds: u64, bytes: usize) -> String {
        let time = Timestamp::from_unix(NoContext, NOW - seconds, 0);
        let name = format!("{}.jpg", Uuid::new_v7(time));
        fs::write(folder.join(&name), vec![0; bytes]).unwrap();
        name
    }

    fn left(folder: &Path) -> Vec<String> {
        let names =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    #[test]
    fn pictures_older_than_the_limit_are_removed() {
        let (folder, store) = store(Some(100), None);
        let [_, _, kept, new] = [500, 101, 99, 0].map(|seconds| put(folder.path(), seconds, 10));
        assert_eq!(store.sweep(now()).unwrap(), Swept { removed: 2, left_bytes: 2 * 4096 });
        assert_eq!(left(folder.path()), [kept, new]);
    }

    #[test]
    fn beyond_the_size_limit_the_oldest_pictures_are_removed() {
        let (folder, store) = store(None, Some(10 * 4096));
        let names: Vec<_> = (0..20).rev().map(|n| put(folder.path(), n, 4000)).collect();
        assert_eq!(store.sweep(now()).unwrap(), Swept { removed: 11, left_bytes: 9 * 4096 });
        assert_eq!(left(folder.path()), names[11..]);
        assert_eq!(store.sweep(now()).unwrap().removed, 0);
    }

    #[test]
    fn what_the_service_did_not_write_is_never_touched() {
        let (folder, store) = store(Some(1), Some(1));
        let old = Uuid::new_v7(Timestamp::from_unix(NoContext, 1000, 0));
        let strangers = [
            "holiday.jpg".to_owned(),
            ".gitkeep".to_owned(),
            format!("{}.jpg", Uuid::new_v4()),
            format!("{}.jpg", old.simple()),
            format!("{}.jpg", old.to_string().to_uppercase()),
            format!("{old}.pdf"),
            format!("{old}.jpg.bak"),
            format!("{old}"),
        ];
        for name in &strangers {
            fs::write(folder.path().join(name), "not ours").unwrap();
        }
        fs::create_dir(folder.path().join(format!("{old}.png"))).unwrap();
        std::os::unix::fs::symlink("holiday.jpg", folder.path().join(format!("{old}.gif")))
            .unwrap();
        let own = put(folder.path(), 10, 10);
        let before = left(folder.path()).len();
        assert_eq!(store.sweep(now()).unwrap(), Swept { removed: 1, left_bytes: 0 });
        assert_eq!(left(folder.path()).len(), before - 1);
        assert!(!folder.path().join(own).exists());
        assert!(strangers.iter().all(|name| folder.path().join(name).exists()));
    }

    #[tokio::test]
    async fn a_picture_stays_while_its_request_is_at_work() {
        let (folder, store) = store(None, Some(1));
        let mut spool = store.spool(100);
        spool.write(&Bytes::from_static(b"picture")).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let saved = store.save(spool.finish().await.unwrap(), "png", deadline, ()).await.unwrap();
        assert_eq!(store.sweep(now()).unwrap(), Swept { removed: 0, left_bytes: 4096 });
        let name = saved.name().to_owned();
        assert_eq!(left(folder.path()), [name]);
        drop(saved);
        assert_eq!(store.sweep(now()).unwrap(), Swept { removed: 1, left_bytes: 0 });
    }
}
