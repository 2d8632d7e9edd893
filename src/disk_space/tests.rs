use std::sync::{
    atomic::{AtomicU64, Ordering},
    mpsc,
};

use futures_util::{future::join_all, poll};

use super::*;

const BLOCK: u64 = 4096;
const RESERVE: u64 = 1 << 20;

/// A disk in memory, whose free room is what a test says.
#[derive(Clone, Default)]
struct FakeDisk {
    free: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
}

impl FakeDisk {
    fn with_free(bytes: u64) -> Self {
        let disk = Self::default();
        disk.free.store(bytes, Ordering::SeqCst);
        disk
    }

    fn space(&self) -> DiskSpace {
        let Self { free, asked } = self.clone();
        DiskSpace::with_question("unused".into(), RESERVE, move |_| {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(FreeSpace { bytes: free.load(Ordering::SeqCst), inodes: None })
        })
    }

    fn write(&self, bytes: u64) {
        self.free.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn is_shortage(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Shortage(Shortage::Bytes { .. })))
}

#[tokio::test]
async fn what_many_are_promised_never_comes_to_more_than_is_free_beside_the_reserve() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    let space = disk.space();
    let mut promises: Vec<_> = (0..30).map(|_| space.promise()).collect();
    let taken = join_all(promises.iter_mut().map(|promise| promise.grow_to(BLOCK))).await;
    assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 10);
    assert!(taken.iter().all(|taken| taken.is_ok() || is_shortage(taken)));
    assert!(is_shortage(&space.check().await) && is_shortage(&space.check_now()));
    drop(promises);
    space.check().await.unwrap();
}

#[tokio::test]
async fn what_is_written_is_counted_once_by_the_promise_or_by_the_system() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    let space = disk.space();
    let mut promise = space.promise();
    for written in 1..=10 {
        promise.grow_to(written * BLOCK).await.unwrap();
        disk.write(BLOCK);
        promise.wrote(written * BLOCK);
    }
    assert!(is_shortage(&promise.grow_to(11 * BLOCK).await));
    // It was written: nothing of it is given back.
    drop(promise);
    assert!(is_shortage(&space.check().await));
}

#[tokio::test]
async fn what_is_written_while_the_system_is_asked_is_not_lost() {
    let disk = FakeDisk::with_free(RESERVE + 10 * BLOCK);
    let (asked, answer) = (mpsc::channel::<()>(), mpsc::channel::<u64>());
    let answers = Mutex::new(answer.1);
    let (tell, free) = (Mutex::new(asked.0), Arc::clone(&disk.free));
    let space = DiskSpace::with_question("unused".into(), RESERVE, move |_| {
        let bytes = free.load(Ordering::SeqCst);
        tell.lock().unwrap().send(()).unwrap();
        let _ = answers.lock().unwrap().recv();
        Ok(FreeSpace { bytes, inodes: None })
    });
    let go_on = || answer.0.send(0).unwrap();
    go_on();
    let mut first = space.promise();
    first.grow_to(8 * BLOCK).await.unwrap();
    asked.1.recv().unwrap();

    let mut second = space.promise();
    {
        let mut growing = Box::pin(second.grow_to(8 * BLOCK));
        assert!(poll!(&mut growing).is_pending());
        asked.1.recv().unwrap();
        // The system has looked, and not answered yet.
        disk.write(8 * BLOCK);
        first.wrote(8 * BLOCK);
        go_on();
        assert!(is_shortage(&growing.await));
    }
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn far_from_the_reserve_the_system_is_asked_once_a_second_and_near_it_each_time() {
    let disk = FakeDisk::with_free(RESERVE + (1 << 30));
    let space = disk.space();
    let mut promise = space.promise();
    for step in 1..=1000 {
        promise.grow_to(step << 16).await.unwrap();
    }
    space.check().await.unwrap();
    space.free().await.unwrap();
    assert_eq!(disk.asked(), 1);
    tokio::time::advance(MAX_AGE).await;
    space.check().await.unwrap();
    assert_eq!(disk.asked(), 2);

    let disk = FakeDisk::with_free(RESERVE + (1 << 20));
    let space = disk.space();
    for asked in 1..=5 {
        space.check().await.unwrap();
        assert_eq!(disk.asked(), asked);
    }
    // Whoever makes room is believed at once.
    disk.free.store(0, Ordering::SeqCst);
    assert!(is_shortage(&space.check().await));
    disk.free.store(1 << 30, Ordering::SeqCst);
    space.check().await.unwrap();
}

#[tokio::test]
async fn inodes_are_counted_where_there_is_a_fixed_number_of_them() {
    let space = |inodes: Option<Inodes>| {
        DiskSpace::with_question("unused".into(), 0, move |_| Ok(FreeSpace { bytes: 0, inodes }))
    };
    // As btrfs and many in user space say it: no figure, and so no bound.
    space(None).check().await.unwrap();
    let few = space(Some(Inodes { free: 102, total: 10_000 }));
    let mut promises: Vec<_> = (0..3).map(|_| few.promise()).collect();
    let taken = join_all(promises.iter_mut().map(|promise| promise.grow_to(1 << 30))).await;
    assert_eq!(taken.iter().filter(|taken| taken.is_ok()).count(), 2);
    let none_left = few.check().await.unwrap_err();
    assert!(matches!(none_left, Error::Shortage(Shortage::Inodes { free: 102, reserve: 100, .. })));
}

#[tokio::test]
async fn a_system_that_says_nothing_promises_nothing() {
    let space = DiskSpace::with_question("unused".into(), RESERVE, |_| {
        Err(io::ErrorKind::PermissionDenied.into())
    });
    assert!(matches!(space.check().await, Err(Error::Unknown(_))));
    assert!(matches!(space.promise().grow_to_blocking(1), Err(Error::Unknown(_))));
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_is_asked_for_the_folders_own_disk() {
    let free = free_space(Path::new("/proc/self")).unwrap();
    assert_eq!((free.bytes, free.inodes), (0, None), "a file system without either");
    assert!(free_space(Path::new("/no such folder")).is_err());
}
