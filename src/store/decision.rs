//! Whether a picture is kept: whoever waits for it and the thread that saves it agree on one answer.
//!
//! A thread that hangs in the disk cannot be stopped. So it asks before each step whether the picture
//! is still wanted, and whoever is told that the picture is not saved has made sure that the thread
//! will hear the same.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::Error;

/// How much longer than the deadline a picture is waited for that has its name already.
const NAMING_TIME: Duration = Duration::from_secs(1);

/// How far a picture has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It is being written and synced; nobody can see it.
    #[default]
    Writing,
    /// It is given its name, and the folder is synced.
    Naming,
    /// It stays.
    Kept,
    /// It does not stay: the thread removes it.
    GivenUp,
}

/// What a thread and whoever waits for it agree on.
#[derive(Debug, Default)]
pub(super) struct Decision(Mutex<Stage>);

impl Decision {
    /// Goes on to a stage.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the picture was given up.
    pub(super) fn enter(&self, stage: Stage) -> Result<(), Error> {
        let mut now = self.stage();
        if *now == Stage::GivenUp {
            return Err(Error::Timeout);
        }
        *now = stage;
        Ok(())
    }

    /// Gives the picture up unless it came to this stage; says whether it is given up.
    fn give_up_before(&self, stage: Stage) -> bool {
        let mut now = self.stage();
        if *now < stage {
            *now = Stage::GivenUp;
        }
        *now == Stage::GivenUp
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // A stage is whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the picture up when nobody waits any more.
struct Waiting(Arc<Decision>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.give_up_before(Stage::Kept);
    }
}

/// Has a thread save a picture, step by step as decided, and waits for it until the deadline.
///
/// # Errors
/// What the thread says; [`Error::Timeout`], and then the picture does not stay.
pub(super) async fn agree<T: Send + 'static>(
    deadline: Instant,
    save: impl FnOnce(&Decision) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let decision = Arc::new(Decision::default());
    let waiting = Waiting(Arc::clone(&decision));
    let mut thread = spawn_blocking(move || save(&decision));
    if let Ok(saved) = timeout_at(deadline, &mut thread).await {
        return saved?;
    }
    if waiting.0.give_up_before(Stage::Naming) {
        return Err(Error::Timeout);
    }
    if let Ok(saved) = timeout(NAMING_TIME, &mut thread).await {
        return saved?;
    }
    if waiting.0.give_up_before(Stage::Kept) {
        return Err(Error::Timeout);
    }
    // It is kept, and the thread has nothing left to do that could take long.
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
        store::{Retention, SavedFile, Settings, Store, saved},
    };

    const TIME: Duration = Duration::from_secs(60);

    /// A disk that hangs before each stage until the test lets it go on.
    struct SlowDisk {
        folder: TempDir,
        store: Store,
        /// The stages as the thread comes to them.
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

        /// Begins to save a picture.
        async fn save(&mut self) -> impl Future<Output = Result<SavedFile, Error>> + use<> {
            let mut spool = self.store.spool(0);
            spool.write(&Bytes::from_static(b"picture")).await.unwrap();
            let spooled = spool.finish().await.unwrap();
            let folder = Arc::clone(&self.store.folder);
            let (arrive, may_go_on) = (self.arrive.take().unwrap(), self.may_go_on.take().unwrap());
            agree(Instant::now() + TIME, move |decision| {
                saved::save(&folder, spooled, "jpg", |stage| {
                    arrive.send(stage).unwrap();
                    may_go_on.recv().unwrap();
                    decision.enter(stage)
                })
            })
        }

        /// Lets the thread come to a stage, which it does not enter yet.
        fn come_to(&self, stage: Stage) {
            while self.arrived.recv().unwrap() != stage {
                self.go_on.send(()).unwrap();
            }
        }

        /// Lets the thread go on to its end, and says which stages it comes to on the way.
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
    async fn a_picture_that_is_told_as_not_saved_in_time_never_appears() {
        for late in [Stage::Writing, Stage::Naming] {
            let mut disk = SlowDisk::new();
            let save = tokio::spawn(disk.save().await);
            tokio::task::yield_now().await;
            disk.come_to(late);
            advance(TIME).await;
            assert!(matches!(save.await.unwrap(), Err(Error::Timeout)), "{late:?}");
            assert!(disk.end().is_empty(), "it has no name for a moment either");
            assert_eq!(disk.saved(), 0, "{late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_that_has_its_name_at_the_deadline_is_waited_for_a_moment() {
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
    async fn a_picture_whose_folder_is_not_synced_in_that_moment_is_taken_back() {
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
    async fn a_picture_that_nobody_waits_for_any_more_does_not_stay() {
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
    async fn a_picture_that_is_saved_in_time_stays() {
        let mut disk = SlowDisk::new();
        let save = tokio::spawn(disk.save().await);
        tokio::task::yield_now().await;
        disk.end();
        save.await.unwrap().unwrap();
        assert_eq!(disk.saved(), 1);
    }
}
