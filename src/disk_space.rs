//! Room on a disk: what is free, what must stay so, and what was promised to files that are not
//! written yet.
//!
//! Whoever is going to write takes a [`Promise`] first, which grows with the bytes as they arrive: a
//! length that is only declared takes no room from others. So many writers at once cannot together go
//! below the reserve. The system is asked at most once a second, or at each step once what is free is
//! close to the reserve.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::sampler::{NoAnswer, Sampler};
use ledger::{Amount, Ledger, Sample};

mod ledger;

pub use ledger::{FreeSpace, Inodes, Shortage};

/// How old a figure may be, where much more than the reserve is free.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How long the system may take to say what is free.
const PATIENCE: Duration = Duration::from_secs(2);

/// The whole blocks, of the size that most file systems have, of a file of so many bytes; in bytes.
pub(crate) fn whole_blocks(len: u64) -> u64 {
    len.max(1).checked_next_multiple_of(4096).unwrap_or(u64::MAX)
}

/// Whether the system says that there is no room.
pub(crate) fn lacks_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Asks the system what is free on the disk of a folder. Blocks.
///
/// # Errors
/// What the system says.
pub fn free_space(folder: &Path) -> io::Result<FreeSpace> {
    let stat = rustix::fs::statvfs(folder)?;
    // File systems without a fixed number of inodes say that they have none at all.
    let inodes = (stat.f_files > 0).then_some(Inodes { free: stat.f_favail, total: stat.f_files });
    Ok(FreeSpace { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}

/// Why nothing may be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It would fall below the reserve.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// What is free is not known.
    #[error("cannot ask for free disk")]
    Unknown(#[source] Arc<io::Error>),
    /// The system does not say what is free.
    #[error("the disk does not answer")]
    NoAnswer,
}

impl Error {
    /// Whether it is known that there is too little room.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Shortage(_))
    }
}

impl From<NoAnswer> for Error {
    fn from(_: NoAnswer) -> Self {
        Self::NoAnswer
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Shortage(_) => io::ErrorKind::StorageFull,
            Error::Unknown(source) => source.kind(),
            Error::NoAnswer => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// The disk of a folder, and what must stay free on it. Clones share what they promise.
#[derive(Clone)]
pub struct DiskSpace(Arc<Inner>);

type Question = dyn Fn(&Path) -> io::Result<FreeSpace> + Send + Sync;

struct Inner {
    folder: PathBuf,
    reserve: u64,
    question: Box<Question>,
    ledger: Mutex<Ledger>,
    sampler: Sampler<Result<FreeSpace, Error>>,
}

impl fmt::Debug for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { folder, reserve, .. } = &*self.0;
        f.debug_struct("DiskSpace")
            .field("folder", folder)
            .field("reserve", reserve)
            .finish_non_exhaustive()
    }
}

impl DiskSpace {
    /// The disk of a folder, with so many bytes that stay free; 0 bytes are no reserve.
    pub fn new(folder: PathBuf, reserve: u64) -> Self {
        Self::with_question(folder, reserve, free_space)
    }

    /// The same, where something else says what is free: for tests.
    pub fn with_question(
        folder: PathBuf,
        reserve: u64,
        question: impl Fn(&Path) -> io::Result<FreeSpace> + Send + Sync + 'static,
    ) -> Self {
        let question = Box::new(question);
        let (ledger, sampler) = (Mutex::default(), Sampler::default());
        Self(Arc::new(Inner { folder, reserve, question, ledger, sampler }))
    }

    /// The bytes that stay free.
    pub fn reserve(&self) -> u64 {
        self.0.reserve
    }

    /// What is free, by a figure of at most a second ago.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NoAnswer`]
    pub async fn free(&self) -> Result<FreeSpace, Error> {
        self.sample(MAX_AGE).await
    }

    /// Whether there is room for one more file, however small.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn check(&self) -> Result<(), Error> {
        self.promise().grow_to(1).await
    }

    /// The same by a figure of now. Blocks.
    ///
    /// # Errors
    /// [`Error`]
    pub fn check_now(&self) -> Result<(), Error> {
        self.ask()?;
        Ok(self.ledger().check(Amount::of_file(1), self.0.reserve)?)
    }

    /// A promise of nothing yet, for one file.
    pub fn promise(&self) -> Promise {
        let (promised, written) = (Amount::default(), Amount::default());
        Promise { space: self.clone(), promised, written }
    }

    async fn take(&self, more: Amount) -> Result<(), Error> {
        if !self.take_far_from_reserve(more) {
            // Near the reserve, or by a figure that is too old, only a new one says.
            self.sample(Duration::ZERO).await?;
            self.ledger().take(more, self.0.reserve)?;
        }
        Ok(())
    }

    fn take_blocking(&self, more: Amount) -> Result<(), Error> {
        if !self.take_far_from_reserve(more) {
            self.ask()?;
            self.ledger().take(more, self.0.reserve)?;
        }
        Ok(())
    }

    fn take_far_from_reserve(&self, more: Amount) -> bool {
        let since = Instant::now().checked_sub(MAX_AGE);
        self.ledger().take_far_from_reserve(more, self.0.reserve, since)
    }

    async fn sample(&self, max_age: Duration) -> Result<FreeSpace, Error> {
        let space = self.clone();
        self.0.sampler.sample(max_age, PATIENCE, move || space.ask()).await?
    }

    /// Asks the system, and remembers what it says. Blocks.
    fn ask(&self) -> Result<FreeSpace, Error> {
        // Before it is asked: what is written meanwhile is counted twice rather than never.
        let (asked, written) = (Instant::now(), self.ledger().written());
        let free = (self.0.question)(&self.0.folder).map_err(|e| Error::Unknown(Arc::new(e)))?;
        self.ledger().remember(Sample { asked, free, written });
        Ok(free)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each change of it is one step: it is whole whatever panicked elsewhere.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room that one file may take. What of it was not written is given back when this is dropped.
#[derive(Debug)]
pub struct Promise {
    space: DiskSpace,
    promised: Amount,
    written: Amount,
}

impl Promise {
    /// Room for a file of so many bytes in all.
    ///
    /// # Errors
    /// [`Error`]; what was promised before still is.
    pub async fn grow_to(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).beyond(self.promised);
        if more != Amount::default() {
            self.space.take(more).await?;
            self.promised += more;
        }
        Ok(())
    }

    /// The same for who may block.
    ///
    /// # Errors
    /// [`Error`]; what was promised before still is.
    pub fn grow_to_blocking(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).beyond(self.promised);
        if more != Amount::default() {
            self.space.take_blocking(more)?;
            self.promised += more;
        }
        Ok(())
    }

    /// The file is on the disk, with so many bytes: the system counts them from now on.
    pub fn wrote(&mut self, len: u64) {
        let more = Amount::of_file(len).at_most(self.promised).beyond(self.written);
        self.space.ledger().write(more);
        self.written += more;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.space.ledger().give_back(self.promised.beyond(self.written));
    }
}

#[cfg(test)]
mod tests;
