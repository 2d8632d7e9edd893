//! Whether pictures can be saved, for load balancers. The disk is checked at most once a second
//! however many ask, and a hanging disk blocks only one thread.

use std::time::Duration;

use super::{Error, Store};
use crate::{
    disk_space::{self, Shortage},
    sampler::NoAnswer,
    spool::StagingFile,
};

/// The shortest time between two checks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a check may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why pictures cannot be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Another picture would use the disk's reserve of bytes.
    DiskUnderReserve,
    /// Another file would use the disk's reserve of inodes.
    InodesUnderReserve,
    /// No file can be created.
    NotWritable,
    /// The disk does not answer in time.
    DiskHangs,
}

impl Fault {
    /// The name in `/ready`.
    pub fn name(self) -> &'static str {
        match self {
            Self::DiskUnderReserve => "disk_under_reserve",
            Self::InodesUnderReserve => "inodes_under_reserve",
            Self::NotWritable => "downloads_not_writable",
            Self::DiskHangs => "disk_not_answering",
        }
    }
}

impl Store {
    /// Why pictures cannot be saved, as checked at most a second ago.
    pub async fn faults(&self) -> Vec<Fault> {
        let store = self.clone();
        let found = self.folder.checks.sample(INTERVAL, TIMEOUT, move || store.check()).await;
        found.unwrap_or_else(|NoAnswer| vec![Fault::DiskHangs])
    }

    /// Checks the disk and the folder. Blocks the thread.
    fn check(&self) -> Vec<Fault> {
        let shortage = match self.space.measure_and_check_room() {
            Ok(()) => None,
            Err(disk_space::Error::Shortage(Shortage::Bytes { .. })) => {
                Some(Fault::DiskUnderReserve)
            }
            Err(disk_space::Error::Shortage(Shortage::Inodes { .. })) => {
                Some(Fault::InodesUnderReserve)
            }
            // Without a known free space, no picture is received either.
            Err(disk_space::Error::Unknown(_) | disk_space::Error::NoAnswer) => {
                return vec![Fault::NotWritable];
            }
        };
        let made = self.folder.incoming.file().map(StagingFile::remove).map_err(Error::from);
        let fault = match made {
            // The shortage is already reported.
            Err(error) if shortage.is_some() && error.is_full() => None,
            Err(_) => Some(Fault::NotWritable),
            Ok(()) => None,
        };
        [shortage, fault].into_iter().flatten().collect()
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

    fn store(free: impl Fn() -> FreeSpace + Send + Sync + 'static) -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let space = DiskSpace::with_measure(path.clone(), RESERVE, move |_: &Path| Ok(free()));
        let settings = Settings { folder: path, space, retention: Retention::default() };
        let store = Store::open(&settings).unwrap();
        (folder, store)
    }

    fn free(bytes: u64, inodes: u64) -> FreeSpace {
        FreeSpace { bytes, inodes: Some(Inodes { free: inodes, total: 1000 }) }
    }

    #[tokio::test]
    async fn each_fault_is_named() {
        for (free, faults) in [
            (free(1 << 30, 500), vec![]),
            (free(RESERVE, 500), vec![Fault::DiskUnderReserve]),
            (free(1 << 30, 10), vec![Fault::InodesUnderReserve]),
            (FreeSpace { bytes: 1 << 30, inodes: None }, vec![]),
        ] {
            assert_eq!(store(move || free).1.faults().await, faults);
        }
        let (folder, store) = store(|| free(1 << 30, 500));
        fs::remove_dir(folder.path().join(".incoming")).unwrap();
        assert_eq!(store.faults().await, [Fault::NotWritable]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_disk_is_checked_once_a_second_however_many_ask() {
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let (_folder, store) = store(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            free(1 << 30, 500)
        });
        for seconds in 1..=3 {
            for _ in 0..10 {
                join_all((0..100).map(|_| store.faults())).await;
            }
            assert_eq!(looks.load(Ordering::SeqCst), seconds);
            advance(INTERVAL).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_a_fault_and_blocks_one_thread() {
        let (release, hanging) = mpsc::channel::<()>();
        let (looks, hanging) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hanging));
        let counted = Arc::clone(&looks);
        let (_folder, store) = store(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = hanging.lock().unwrap().recv();
            free(1 << 30, 500)
        });
        let mut first = Box::pin(store.faults());
        assert!(poll!(&mut first).is_pending());
        advance(TIMEOUT).await;
        assert_eq!(first.await, [Fault::DiskHangs]);
        for _ in 0..100 {
            advance(INTERVAL).await;
            assert_eq!(store.faults().await, [Fault::DiskHangs]);
        }
        drop(release);
        while store.faults().await == [Fault::DiskHangs] {
            tokio::task::yield_now().await;
        }
        assert!(store.faults().await.is_empty());
        assert_eq!(looks.load(Ordering::SeqCst), 2);
    }
}
