//! Tests of permits for disk space.

use std::sync::{
    atomic::{AtomicU64, Ordering},
    mpsc,
};

use futures_util::{future::join_all, poll};

use super::*;

const BLOCK: u64 = 4096;
const RESERVE: u64 = 1 << 20;

/// A fake disk whose free space is set by the test. Counts the measurements.
#[derive(Clone, Default)]
struct FakeDisk {
    free: Arc<AtomicU64>,
    measurements: Arc<AtomicU64>,
}

impl FakeDisk {
    fn with_free(bytes: u64) -> Self {
        let disk = Self::default();
        disk.free.store(bytes, Ordering::SeqCst);
        disk
    }

    fn space(&self) -> DiskSpace {
        let Self { free, measurements } = self.clone();
        DiskSpace::with_measure("unused".into(), RESERVE, move |_| {
            measurements.fetch_add(1, Ordering::SeqCst);
            Ok(FreeSpace { bytes: free.load(Ordering::SeqCst), inodes: None })
        })
    }

    fn write(&self, bytes: u64) {
        self.free.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn measurements(&self) -> u64 {
        self.measurements.load(Ordering::SeqCst)
    }
}

fn is_shortage(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Shortage(Shortage::Bytes { .. })))
}

#[tokio::test]
async fn all_permits_together_never_exceed_the_free_space_above_the_reserve() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    let space = disk.space();
    let mut permits: Vec<_> = (0..30).map(|_| space.empty_permit()).collect();
    let results = join_all(permits.iter_mut().map(|permit| permit.grow_to(BLOCK))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 10);
    assert!(results.iter().all(|result| result.is_ok() || is_shortage(result)));
    assert!(is_shortage(&space.check_space().await));
    assert!(is_shortage(&space.measure_and_check_space()));
    drop(permits);
    space.check_space().await.unwrap();
}

#[tokio::test]
async fn written_bytes_are_counted_only_once() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    let space = disk.space();
    let mut permit = space.empty_permit();
    // A byte that was written lowers the free space. The permit must not reserve it any more.
    for written in 1..=10 {
        permit.grow_to(written * BLOCK).await.unwrap();
        disk.write(BLOCK);
        permit.mark_written(written * BLOCK);
    }
    assert!(is_shortage(&permit.grow_to(11 * BLOCK).await));
    // All bytes were written, so dropping the permit releases nothing.
    drop(permit);
    assert!(is_shortage(&space.check_space().await));
}

#[tokio::test]
async fn bytes_that_are_written_during_a_measurement_do_not_count_as_free() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    // Each measurement reads the free space, sends to `was_read`, and waits for the test to resume
    // it.
    let (report_read, was_read) = mpsc::channel::<()>();
    let (resume, wait_for_resume) = mpsc::channel::<()>();
    let (report_read, wait_for_resume) = (Mutex::new(report_read), Mutex::new(wait_for_resume));
    let free = Arc::clone(&disk.free);
    let space = DiskSpace::with_measure("unused".into(), RESERVE, move |_| {
        let bytes = free.load(Ordering::SeqCst);
        report_read.lock().unwrap().send(()).unwrap();
        // An error means that the test has ended.
        let _ = wait_for_resume.lock().unwrap().recv();
        Ok(FreeSpace { bytes, inodes: None })
    });
    resume.send(()).unwrap(); // for the first measurement
    let mut first = space.empty_permit();
    first.grow_to(8 * BLOCK).await.unwrap();
    was_read.recv().unwrap();

    let mut second = space.empty_permit();
    // Near the reserve, each grant needs a new measurement. This starts the second one.
    let mut growing = Box::pin(second.grow_to(8 * BLOCK));
    assert!(poll!(&mut growing).is_pending());
    was_read.recv().unwrap();
    // The free space has been read, but the measurement has not returned yet.
    disk.write(8 * BLOCK);
    first.mark_written(8 * BLOCK);
    resume.send(()).unwrap();
    assert!(is_shortage(&growing.await));
}

#[tokio::test(start_paused = true)]
async fn free_space_is_measured_once_a_second_or_at_each_check_near_the_reserve() {
    // A gibibyte more than the reserve is far from the reserve.
    let disk = FakeDisk::with_free(RESERVE + (1 << 30));
    let space = disk.space();
    let mut permit = space.empty_permit();
    for n in 1..=1000 {
        permit.grow_to(n * (64 << 10)).await.unwrap();
    }
    space.check_space().await.unwrap();
    space.free_space().await.unwrap();
    assert_eq!(disk.measurements(), 1);
    tokio::time::advance(MAX_AGE).await;
    space.check_space().await.unwrap();
    assert_eq!(disk.measurements(), 2);

    // Less than 16 MiB more than the reserve is near the reserve.
    let disk = FakeDisk::with_free(RESERVE + (1 << 20));
    let space = disk.space();
    for count in 1..=5 {
        space.check_space().await.unwrap();
        assert_eq!(disk.measurements(), count);
    }
    // Near the reserve, each change of the free space is noticed at once.
    disk.free.store(0, Ordering::SeqCst);
    assert!(is_shortage(&space.check_space().await));
    disk.free.store(1 << 30, Ordering::SeqCst);
    space.check_space().await.unwrap();
}

#[tokio::test]
async fn inodes_are_limited_if_their_number_is_fixed() {
    // The reserve of 0 bytes turns the check of bytes off, so only inodes are checked.
    let space = |inodes: Option<Inodes>| {
        DiskSpace::with_measure("unused".into(), 0, move |_| Ok(FreeSpace { bytes: 0, inodes }))
    };
    // btrfs and many user-space file systems report no number of inodes.
    space(None).check_space().await.unwrap();
    // One percent of all inodes must stay free: 100 of the 102 that are free. So two permits
    // are granted: a file of any length takes one inode.
    let few = space(Some(Inodes { free: 102, total: 10_000 }));
    let mut permits: Vec<_> = (0..3).map(|_| few.empty_permit()).collect();
    let results = join_all(permits.iter_mut().map(|permit| permit.grow_to(1 << 30))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    let error = few.check_space().await.unwrap_err();
    assert!(matches!(error, Error::Shortage(Shortage::Inodes { free: 102, reserve: 100, .. })));
}

#[tokio::test]
async fn nothing_is_granted_if_free_space_cannot_be_measured() {
    let space = DiskSpace::with_measure("unused".into(), RESERVE, |_| {
        Err(io::ErrorKind::PermissionDenied.into())
    });
    assert!(matches!(space.check_space().await, Err(Error::Unknown(_))));
    assert!(matches!(space.empty_permit().blocking_grow_to(1), Err(Error::Unknown(_))));
}

#[cfg(target_os = "linux")]
#[test]
fn free_space_is_measured_on_the_disk_of_the_folder() {
    let free = free_space(Path::new("/proc/self")).unwrap();
    assert_eq!((free.bytes, free.inodes), (0, None), "procfs must report 0 bytes and no inodes");
    assert!(free_space(Path::new("/no such folder")).is_err());
}
