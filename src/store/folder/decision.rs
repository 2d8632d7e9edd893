//! Decides whether a picture is saved or given up, so that the waiting request and the saving thread
//! always agree.
//!
//! A thread that hangs in a disk call cannot be stopped. So at the deadline, the request first gives the
//! picture up, and then reports that it was not saved. The thread checks before each stage whether the
//! picture was given up, and removes it in that case.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::super::Error;

/// How long after the deadline a request still waits for a picture that is already being renamed.
const RENAMING_GRACE: Duration = Duration::from_secs(1);

/// A stage of saving. `give_up_before` compares stages by their order here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::store) enum Stage {
    /// The thread writes and syncs the picture in the staging folder.
    #[default]
    Writing,
    /// The thread renames the picture into the downloads folder, and syncs that folder.
    Renaming,
    /// The picture is in the downloads folder. Its `FileGuard` decides whether it stays there.
    Saved,
    /// The picture is given up: the thread removes it.
    GivenUp,
}

/// The current stage of saving, shared by the thread and the waiting request.
#[derive(Debug, Default)]
pub(in crate::store) struct Progress(Mutex<Stage>);

impl Progress {
    /// Records that the thread begins a stage.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the picture was given up.
    pub(in crate::store) fn enter(&self, stage: Stage) -> Result<(), Error> {
        let mut current = self.stage();
        if *current == Stage::GivenUp {
            return Err(Error::Timeout);
        }
        *current = stage;
        Ok(())
    }

    /// Gives the picture up if the thread has not reached `stage` yet. Returns whether the picture is
    /// given up, now or already before.
    fn give_up_before(&self, stage: Stage) -> bool {
        let mut current = self.stage();
        if *current < stage {
            *current = Stage::GivenUp;
        }
        *current == Stage::GivenUp
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // A stage stays valid even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the picture up if the waiting request is dropped.
struct GiveUpGuard(Arc<Progress>);

impl Drop for GiveUpGuard {
    fn drop(&mut self) {
        self.0.give_up_before(Stage::Saved);
    }
}

/// Runs `save` on a thread, and waits for its result until the deadline, or slightly longer if the
/// picture is already being renamed.
///
/// # Errors
/// The thread's error, or [`Error::Timeout`]. After an error, no file remains once the thread has
/// ended.
pub(in crate::store) async fn save_before<T: Send + 'static>(
    deadline: Instant,
    save: impl FnOnce(&Progress) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let progress = Arc::new(Progress::default());
    let guard = GiveUpGuard(Arc::clone(&progress));
    let mut thread = spawn_blocking(move || save(&progress));
    if let Ok(saved) = timeout_at(deadline, &mut thread).await {
        return saved?;
    }
    if guard.0.give_up_before(Stage::Renaming) {
        return Err(Error::Timeout);
    }
    if let Ok(saved) = timeout(RENAMING_GRACE, &mut thread).await {
        return saved?;
    }
    if guard.0.give_up_before(Stage::Saved) {
        return Err(Error::Timeout);
    }
    // The picture is saved, so the thread makes no more disk calls and ends at once.
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
    use tokio::{task::JoinHandle, time::advance};

    use super::*;
    use crate::{
        disk_space::DiskSpace,
        store::{
            Retention, Settings, Store,
            folder::save::{self, FileGuard},
        },
    };

    const TIMEOUT: Duration = Duration::from_secs(60);

    /// A store whose saving thread stops before each stage, until the test lets it continue.
    struct SteppedStore {
        folder: TempDir,
        store: Store,
        /// Receives each stage before which the thread stops.
        stops: Receiver<Stage>,
        /// The thread's end of `stops`, until `start_saving` takes it.
        stops_sender: Option<Sender<Stage>>,
        /// A message lets the thread continue.
        resume: Sender<()>,
        /// The thread's end of `resume`, until `start_saving` takes it.
        resume_receiver: Option<Receiver<()>>,
    }

    impl SteppedStore {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            let space = DiskSpace::new(path.clone(), 0); // 0: free bytes are not checked
            let settings = Settings { folder: path, space, retention: Retention::default() };
            let store = Store::open(&settings).unwrap();
            let (stops_sender, stops) = channel();
            let (resume, resume_receiver) = channel();
            let (stops_sender, resume_receiver) = (Some(stops_sender), Some(resume_receiver));
            Self { folder, store, stops, stops_sender, resume, resume_receiver }
        }

        /// Receives a picture, and starts a task that saves it on a thread. Returns when the thread
        /// has started.
        async fn start_saving(&mut self) -> JoinHandle<Result<FileGuard, Error>> {
            let mut spool = self.store.spool(0); // keeps no bytes in memory
            spool.write(&Bytes::from_static(b"picture")).await.unwrap();
            let spooled = spool.finish().await.unwrap();
            let folder = Arc::clone(&self.store.folder);
            let stops_sender = self.stops_sender.take().unwrap();
            let resume_receiver = self.resume_receiver.take().unwrap();
            let save = save_before(Instant::now() + TIMEOUT, move |progress| {
                save::save(&folder, spooled, "jpg", |stage| {
                    stops_sender.send(stage).unwrap();
                    resume_receiver.recv().unwrap();
                    progress.enter(stage)
                })
            });
            let task = tokio::spawn(save);
            tokio::task::yield_now().await; // lets the task start the thread
            task
        }

        /// Lets the thread run until it stops before `stage`.
        fn run_until_before(&self, stage: Stage) {
            while self.stops.recv().unwrap() != stage {
                self.resume.send(()).unwrap();
            }
        }

        /// Lets the thread run to its end, and returns the stages before which it stopped.
        fn run_to_end(&self) -> Vec<Stage> {
            let next = || self.resume.send(()).ok().and_then(|()| self.stops.recv().ok());
            iter::from_fn(next).collect()
        }

        /// The number of saved files.
        fn saved_count(&self) -> usize {
            files(self.folder.path()).len()
        }

        fn assert_no_staging_file(&self) {
            assert!(files(&self.folder.path().join(".incoming")).is_empty());
        }
    }

    /// The names in a folder that do not begin with a dot.
    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_whose_renaming_has_not_begun_by_the_deadline_is_never_renamed() {
        for stage in [Stage::Writing, Stage::Renaming] {
            let mut store = SteppedStore::new();
            let save = store.start_saving().await;
            store.run_until_before(stage);
            advance(TIMEOUT).await;
            assert!(matches!(save.await.unwrap(), Err(Error::Timeout)), "{stage:?}");
            assert!(store.run_to_end().is_empty(), "the thread must not enter another stage");
            store.assert_no_staging_file();
            assert_eq!(store.saved_count(), 0, "{stage:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_beyond_the_deadline_while_its_picture_is_being_renamed() {
        let mut store = SteppedStore::new();
        let save = store.start_saving().await;
        store.run_until_before(Stage::Saved);
        advance(TIMEOUT).await;
        tokio::task::yield_now().await;
        assert!(!save.is_finished());
        store.run_to_end();
        let saved = save.await.unwrap().unwrap();
        assert_eq!(files(store.folder.path()), [saved.name()]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_whose_renaming_takes_too_long_is_removed() {
        let mut store = SteppedStore::new();
        let save = store.start_saving().await;
        store.run_until_before(Stage::Saved);
        advance(TIMEOUT).await;
        tokio::task::yield_now().await;
        advance(RENAMING_GRACE).await;
        assert!(matches!(save.await.unwrap(), Err(Error::Timeout)));
        store.run_to_end();
        store.assert_no_staging_file();
        assert_eq!(store.saved_count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_picture_whose_request_is_dropped_is_removed() {
        for stage in [Stage::Writing, Stage::Renaming, Stage::Saved] {
            let mut store = SteppedStore::new();
            let save = store.start_saving().await;
            store.run_until_before(stage);
            save.abort();
            assert!(save.await.unwrap_err().is_cancelled());
            store.run_to_end();
            store.assert_no_staging_file();
            assert_eq!(store.saved_count(), 0, "{stage:?}");
        }
    }

    #[tokio::test]
    async fn a_picture_that_is_saved_before_the_deadline_stays_if_its_guard_is_confirmed() {
        let mut store = SteppedStore::new();
        let save = store.start_saving().await;
        store.run_to_end();
        let mut file = save.await.unwrap().unwrap();
        store.assert_no_staging_file();
        assert_eq!(store.saved_count(), 1);
        file.confirm();
        drop(file);
        store.assert_no_staging_file();
        assert_eq!(store.saved_count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_saved_picture_is_removed_if_its_guard_is_never_confirmed() {
        let mut store = SteppedStore::new();
        let save = store.start_saving().await;
        store.run_to_end();
        drop(save.await.unwrap().unwrap());
        // The removal runs on another thread.
        while store.saved_count() > 0 {
            tokio::task::yield_now().await;
        }
        store.assert_no_staging_file();
    }
}
