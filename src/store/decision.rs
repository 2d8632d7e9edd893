//! Whether a picture is kept: the request that waits and the thread that saves must agree on one
//! answer.
//!
//! A thread that hangs in a disk call cannot be stopped. So before each stage the thread asks
//! whether the picture is still wanted, and a request reports a picture as not saved only after it
//! has made sure that the thread will stop or undo its work.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::Error;

/// How long after the deadline a request still waits if the picture is already being renamed.
const NAMING_TIME: Duration = Duration::from_secs(1);

/// How far saving has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The picture is written and synced; nobody can see it.
    #[default]
    Writing,
    /// The picture is renamed, and the folder is synced.
    Naming,
    /// The picture is kept.
    Kept,
    /// The picture is given up, and the thread removes it.
    GivenUp,
}

/// The stage that the thread and the waiting request agree on.
#[derive(Debug, Default)]
pub(super) struct Decision(Mutex<Stage>);

impl Decision {
    /// Advances to a stage.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the picture was given up.
    pub(super) fn enter(&self, stage: Stage) -> Result<(), Error> {
        let mut now = self.stage();
        if *now == Stage::GivenUp {
            return Err(Error::Timeout);
        }
        *now = stage;
        Ok(())
    }

    /// Gives the picture up unless it has reached this stage. Returns whether it is given up.
    fn give_up_before(&self, stage: Stage) -> bool {
        let mut now = self.stage();
        if *now < stage {
            *now = Stage::GivenUp;
        }
        *now == Stage::GivenUp
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // A stage stays valid even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the picture up if the waiting request is dropped.
struct GiveUpGuard(Arc<Decision>);

impl Drop for GiveUpGuard {
    fn drop(&mut self) {
        self.0.give_up_before(Stage::Kept);
    }
}

/// Runs `save` on a thread, and waits for it until the deadline.
///
/// # Errors
/// The thread's error; [`Error::Timeout`], and then the picture is not kept.
pub(super) async fn save_before<T: Send + 'static>(
    deadline: Instant,
    save: impl FnOnce(&Decision) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let decision = Arc::new(Decision::default());
    let guard = GiveUpGuard(Arc::clone(&decision));
    let mut thread = spawn_blocking(move || save(&decision));
    if let Ok(saved) = timeout_at(deadline, &mut thread).await {
        return saved?;
    }
    if guard.0.give_up_before(Stage::Naming) {
        return Err(Error::Timeout);
    }
    if let Ok(saved) = timeout(NAMING_TIME, &mut thread).await {
        return saved?;
    }
    if guard.0.give_up_before(Stage::Kept) {
        return Err(Error::Timeout);
    }
    // The picture is kept, and the thread has nothing slow left to do.
    thread.await?
}

#[cfg(test)]
mod tests {
    use std::{
        fs, iter,
        path::Path,
        sync::mpsc::{Receiver, Sender, channel},
    };

    use bytes::Bytes;
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;
    use crate::{
        disk_space::DiskSpace,
        store::{Retention, SavedFileGuard, Settings, Store, saved},
    };

    const TIME: Duration = Duration::from_secs(60);

    /// A disk that hangs before each stage until the test lets it continue.
    struct SlowDisk {
        folder: TempDir,
        store: Store,
        /// The stages that the thread has come to.
        arrived: Receiver<Stage>,
        arrive: Option<Sender<Stage>>,
        go_on: Sender<()>,
        may_go_on: Option<Receiver<()>>,
    }

    impl SlowDisk {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            let space = DiskSpace::new(path.clone(), 0);
            let settings = Settings { folder: path, space, retention: Retention::default() };
            let store = Store::open(&settings).unwrap();
            let ((arrive, arrived), (go_on, may_go_on)) = (channel(), channel());
            let (arrive, may_go_on) = (Some(arrive), Some(may_go_on));
            Self { folder, store, arrived, arrive, go_on, may_go_on }
        }

        /// Starts to save a picture.
        async fn save(&mut self) -> impl Future<Output = Result<SavedFileGuard, Error>> + use<> {
            let mut spool = self.store.spool(0);
            spool.write(&Bytes::from_static(b"picture")).await.unwrap();
            let spooled = spool.finish().await.unwrap();
            let folder = Arc::clone(&self.store.folder);
            let (arrive, may_go_on) = (self.arrive.take().unwrap(), self.may_go_on.take().unwrap());
            save_before(Instant::now() + TIME, move |decision| {
                saved::save(&folder, spooled, "jpg", |stage| {
                    arrive.send(stage).unwrap();
                    may_go_on.recv().unwrap();
                    decision.enter(stage)
                })
            })
        }

        /// Lets the thread run until it comes to a stage, but not enter it.
        fn come_to(&self, stage: Stage) {
            while self.arrived.recv().unwrap() != stage {
                self.go_on.send(()).unwrap();
            }
        }

        /// Lets the thread finish, and returns the stages that it comes to.
        fn end(&self) -> Vec<Stage> {
            let next = || self.go_on.send(()).ok().and_then(|()| self.arrived.recv().ok());
            iter::from_fn(next).collect()
        }

        fn saved(&self) -> usize {
            assert!(files(&self.folder.path().join(".incoming")).is_empty());
            files(self.folder.path()).len()
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_that_is_reported_as_not_saved_in_time_never_appears() {
        for late in [Stage::Writing, Stage::Naming] {
            let mut disk = SlowDisk::new();
            let save = tokio::spawn(disk.save().await);
            tokio::task::yield_now().await;
            disk.come_to(late);
            advance(TIME).await;
            assert!(matches!(save.await.unwrap(), Err(Error::Timeout)), "{late:?}");
            assert!(disk.end().is_empty(), "it was not renamed even for a moment");
            assert_eq!(disk.saved(), 0, "{late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_that_is_renamed_at_the_deadline_is_waited_for_a_moment() {
        let mut disk = SlowDisk::new();
        let save = tokio::spawn(disk.save().await);
        tokio::task::yield_now().await;
        disk.come_to(Stage::Kept);
        advance(TIME).await;
        tokio::task::yield_now().await;
        assert!(!save.is_finished());
        disk.end();
        let saved = save.await.unwrap().unwrap();
        assert_eq!(files(disk.folder.path()), [saved.name()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_whose_folder_is_not_synced_in_that_moment_is_removed_again() {
        let mut disk = SlowDisk::new();
        let save = tokio::spawn(disk.save().await);
        tokio::task::yield_now().await;
        disk.come_to(Stage::Kept);
        advance(TIME).await;
        tokio::task::yield_now().await;
        advance(NAMING_TIME).await;
        assert!(matches!(save.await.unwrap(), Err(Error::Timeout)));
        disk.end();
        assert_eq!(disk.saved(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_that_nobody_waits_for_any_more_is_not_kept() {
        for left in [Stage::Writing, Stage::Naming, Stage::Kept] {
            let mut disk = SlowDisk::new();
            let save = tokio::spawn(disk.save().await);
            tokio::task::yield_now().await;
            disk.come_to(left);
            save.abort();
            assert!(save.await.unwrap_err().is_cancelled());
            disk.end();
            assert_eq!(disk.saved(), 0, "{left:?}");
        }
    }

    #[tokio::test]
    async fn a_picture_that_is_saved_in_time_is_kept() {
        let mut disk = SlowDisk::new();
        let save = tokio::spawn(disk.save().await);
        tokio::task::yield_now().await;
        disk.end();
        save.await.unwrap().unwrap();
        assert_eq!(disk.saved(), 1);
    }
}
