//! Checks for `/ready` whether pictures can be saved. All requests share one check per second. A
//! hanging disk blocks only one thread.

use std::time::Duration;

use super::{Error, Store};
use crate::{
    disk_space::{self, Shortage},
    sampler::NoAnswer,
    spool::StagingFile,
};

/// The shortest time between the starts of two checks.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// How long a check may take. After this time, requests get [`NotReadyReason::DiskHangs`] at once, until the
/// check ends.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why pictures cannot be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReadyReason {
    /// One more picture would leave fewer free bytes than the reserve.
    BytesUnderReserve,
    /// One more picture would leave fewer free inodes than the reserve.
    InodesUnderReserve,
    /// No file can be created, or the free space is unknown.
    NotWritable,
    /// The check did not finish in time.
    DiskHangs,
}

impl NotReadyReason {
    /// The reason's name in the answer of `/ready`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BytesUnderReserve => "disk_under_reserve",
            Self::InodesUnderReserve => "inodes_under_reserve",
            Self::NotWritable => "downloads_not_writable",
            Self::DiskHangs => "disk_not_answering",
        }
    }
}

impl Store {
    /// The reasons why pictures cannot be saved. The list is empty if pictures can be saved. Starts a
    /// check only if none is running and the last one began at least a second ago.
    pub async fn not_ready_reasons(&self) -> Vec<NotReadyReason> {
        let store = self.clone();
        let check = move || store.check_readiness();
        let reasons = self.folder.readiness.sample(MIN_INTERVAL, TIMEOUT, check).await;
        reasons.unwrap_or_else(|NoAnswer| vec![NotReadyReason::DiskHangs])
    }

    /// Checks the disk and the folder. Blocks the thread.
    fn check_readiness(&self) -> Vec<NotReadyReason> {
        let shortage = match self.space.measure_and_check_space() {
            Ok(()) => None,
            Err(disk_space::Error::Shortage(Shortage::Bytes { .. })) => {
                Some(NotReadyReason::BytesUnderReserve)
            }
            Err(disk_space::Error::Shortage(Shortage::Inodes { .. })) => {
                Some(NotReadyReason::InodesUnderReserve)
            }
            // While the free space is unknown, the service refuses all pictures. This measurement has no
            // timeout of its own, so `MeasurementTimedOut` does not occur here.
            Err(disk_space::Error::Unknown(_) | disk_space::Error::MeasurementTimedOut) => {
                return vec![NotReadyReason::NotWritable];
            }
        };
        let created = self.folder.incoming.create_file();
        let not_writable = match created.map(StagingFile::remove).map_err(Error::from) {
            // The shortage is already one of the reasons.
            Err(error) if shortage.is_some() && error.is_full() => None,
            Err(_) => Some(NotReadyReason::NotWritable),
            Ok(()) => None,
        };
        shortage.into_iter().chain(not_writable).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
    };

    use futures_util::{future::join_all, poll};
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;
    use crate::{
        disk_space::{DiskSpace, FreeSpace, Inodes},
        store::{Retention, Settings},
    };

    const RESERVE: u64 = 1 << 20;

    fn open_store(measure: impl Fn() -> FreeSpace + Send + Sync + 'static) -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let space = DiskSpace::with_measure(path.clone(), RESERVE, move |_: &Path| Ok(measure()));
        let settings = Settings { folder: path, space, retention: Retention::default() };
        let store = Store::open(&settings).unwrap();
        (folder, store)
    }

    /// A disk with 1000 inodes in total, of which 10 (1 %) must stay free.
    fn free_space(bytes: u64, inodes: u64) -> FreeSpace {
        FreeSpace { bytes, inodes: Some(Inodes { free: inodes, total: 1000 }) }
    }

    #[tokio::test]
    async fn each_shortage_and_a_missing_folder_have_their_own_reason() {
        for (measured, reasons) in [
            (free_space(1 << 30, 500), vec![]),
            (free_space(RESERVE, 500), vec![NotReadyReason::BytesUnderReserve]),
            (free_space(1 << 30, 10), vec![NotReadyReason::InodesUnderReserve]),
            (FreeSpace { bytes: 1 << 30, inodes: None }, vec![]),
        ] {
            let (_folder, store) = open_store(move || measured);
            assert_eq!(store.not_ready_reasons().await, reasons);
        }
        let (folder, store) = open_store(|| free_space(1 << 30, 500));
        fs::remove_dir(folder.path().join(".incoming")).unwrap();
        assert_eq!(store.not_ready_reasons().await, [NotReadyReason::NotWritable]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_check_the_disk_only_once_a_second() {
        let checks = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&checks);
        let (_folder, store) = open_store(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            free_space(1 << 30, 500)
        });
        for seconds in 1..=3 {
            for _ in 0..10 {
                join_all((0..100).map(|_| store.not_ready_reasons())).await;
            }
            assert_eq!(checks.load(Ordering::SeqCst), seconds);
            advance(MIN_INTERVAL).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_disk_is_reported_and_blocks_only_one_thread() {
        let (release, wait_for_release) = mpsc::channel::<()>();
        let wait_for_release = Mutex::new(wait_for_release);
        let checks = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&checks);
        let (_folder, store) = open_store(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let _ = wait_for_release.lock().unwrap().recv();
            free_space(1 << 30, 500)
        });
        let mut first = Box::pin(store.not_ready_reasons());
        assert!(poll!(&mut first).is_pending());
        advance(TIMEOUT).await;
        assert_eq!(first.await, [NotReadyReason::DiskHangs]);
        for _ in 0..100 {
            advance(MIN_INTERVAL).await;
            assert_eq!(store.not_ready_reasons().await, [NotReadyReason::DiskHangs]);
        }
        drop(release);
        while store.not_ready_reasons().await == [NotReadyReason::DiskHangs] {
            tokio::task::yield_now().await;
        }
        assert!(store.not_ready_reasons().await.is_empty());
        // There were two checks: the hanging one, and one after the release.
        assert_eq!(checks.load(Ordering::SeqCst), 2);
    }
}
