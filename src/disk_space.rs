//! The room on a disk: what is free, what must stay free, and what was granted to files that are
//! not written yet.
//!
//! Whoever writes a file first takes a [`SpacePermit`], which grows as bytes arrive. Growing with
//! the bytes, and not with a declared length, means that a client that only announces much takes no
//! room from others; and because every writer holds a permit, many writers at once cannot use up
//! the reserve. Free space is measured at most once a second, or before each grant when it is close
//! to the reserve.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::sampler::{NoAnswer, Sampler};
use ledger::{Amount, Ledger, Measurement};

mod ledger;

pub use ledger::{FreeSpace, Inodes, Shortage};

/// How old a measurement may be while free space is far above the reserve.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How long the system may take to measure free space.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(2);

/// The bytes that a file of `len` bytes takes on the disk: rounded up to blocks of 4096 bytes, which most
/// file systems use, and at least one block.
pub(crate) fn size_on_disk(len: u64) -> u64 {
    len.max(1).checked_next_multiple_of(4096).unwrap_or(u64::MAX)
}

/// Whether the error means that the disk or a quota is full, or that a file would exceed the process's
/// limit.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Measures the free space on the disk of a folder. Blocks the thread.
///
/// # Errors
/// The system's error.
pub fn free_space(folder: &Path) -> io::Result<FreeSpace> {
    let stat = rustix::fs::statvfs(folder)?;
    // File systems without a fixed number of inodes report a total of 0.
    let inodes = (stat.f_files > 0).then_some(Inodes { free: stat.f_favail, total: stat.f_files });
    Ok(FreeSpace { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}

/// Why a permit cannot grow.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file would use the reserve.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The system could not tell what is free.
    #[error("cannot measure the free disk space")]
    Unknown(#[source] Arc<io::Error>),
    /// The system did not answer in time.
    #[error("the disk does not answer")]
    NoAnswer,
}

impl Error {
    /// Whether the disk is known to have too little room.
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

/// The disk of a folder, and what must stay free on it. Clones share one ledger, so that a
/// permit from any of them counts for all.
#[derive(Clone)]
pub struct DiskSpace(Arc<Inner>);

type Measure = dyn Fn(&Path) -> io::Result<FreeSpace> + Send + Sync;

struct Inner {
    folder: PathBuf,
    reserve: u64,
    measure: Box<Measure>,
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
    /// The disk of `folder`, where `reserve` bytes must stay free; 0 means no reserve.
    pub fn new(folder: PathBuf, reserve: u64) -> Self {
        Self::with_measure(folder, reserve, free_space)
    }

    /// Like [`Self::new`], with a function that measures free space, for tests.
    pub fn with_measure(
        folder: PathBuf,
        reserve: u64,
        measure: impl Fn(&Path) -> io::Result<FreeSpace> + Send + Sync + 'static,
    ) -> Self {
        let measure = Box::new(measure);
        let (ledger, sampler) = (Mutex::default(), Sampler::default());
        Self(Arc::new(Inner { folder, reserve, measure, ledger, sampler }))
    }

    /// The bytes that must stay free.
    pub fn reserve(&self) -> u64 {
        self.0.reserve
    }

    /// The free space, measured at most a second ago.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::NoAnswer`]
    pub async fn free_space(&self) -> Result<FreeSpace, Error> {
        self.free_space_no_older_than(MAX_AGE).await
    }

    /// Whether there is room for one more file, however small.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn check_room(&self) -> Result<(), Error> {
        self.empty_permit().grow_to(1).await
    }

    /// Like [`Self::check_room`], but always measures. Blocks the thread.
    ///
    /// # Errors
    /// [`Error`]
    pub fn measure_and_check_room(&self) -> Result<(), Error> {
        self.measure()?;
        Ok(self.ledger().check(Amount::of_file(1), self.0.reserve)?)
    }

    /// Returns a permit for one file that grants no space yet.
    pub fn empty_permit(&self) -> SpacePermit {
        let (granted, written) = (Amount::default(), Amount::default());
        SpacePermit { space: self.clone(), granted, written }
    }

    async fn acquire(&self, more: Amount) -> Result<(), Error> {
        if !self.try_grant_by_recent_measurement(more) {
            // The disk is close to its reserve, or the latest measurement is too old: measure again.
            self.free_space_no_older_than(Duration::ZERO).await?;
            self.ledger().grant(more, self.0.reserve)?;
        }
        Ok(())
    }

    fn acquire_blocking(&self, more: Amount) -> Result<(), Error> {
        if !self.try_grant_by_recent_measurement(more) {
            self.measure()?;
            self.ledger().grant(more, self.0.reserve)?;
        }
        Ok(())
    }

    fn try_grant_by_recent_measurement(&self, more: Amount) -> bool {
        let since = Instant::now().checked_sub(MAX_AGE);
        self.ledger().try_grant_by_recent_measurement(more, self.0.reserve, since)
    }

    async fn free_space_no_older_than(&self, max_age: Duration) -> Result<FreeSpace, Error> {
        let space = self.clone();
        self.0.sampler.sample(max_age, MEASURE_TIMEOUT, move || space.measure()).await?
    }

    /// Measures the free space and records it. Blocks the thread.
    fn measure(&self) -> Result<FreeSpace, Error> {
        // The total is taken before measuring, so that bytes written meanwhile are counted twice rather than not
        // at all.
        let (taken_at, written) = (Instant::now(), self.ledger().written());
        let free = (self.0.measure)(&self.0.folder).map_err(|e| Error::Unknown(Arc::new(e)))?;
        self.ledger().record(Measurement { taken_at, free, written });
        Ok(free)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each change is a single step, so the ledger stays consistent even if a holder of the lock
        // panicked.
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reservation of disk space for one file. Dropping it releases what was not written.
#[derive(Debug)]
pub struct SpacePermit {
    space: DiskSpace,
    granted: Amount,
    written: Amount,
}

impl SpacePermit {
    /// Grows the permit to a file of `len` bytes.
    ///
    /// # Errors
    /// [`Error`]; the permit keeps what it has.
    pub async fn grow_to(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).beyond(self.granted);
        if more != Amount::default() {
            self.space.acquire(more).await?;
            self.granted += more;
        }
        Ok(())
    }

    /// Like [`Self::grow_to`], for callers that may block.
    ///
    /// # Errors
    /// [`Error`]; the permit keeps what it has.
    pub fn grow_to_blocking(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).beyond(self.granted);
        if more != Amount::default() {
            self.space.acquire_blocking(more)?;
            self.granted += more;
        }
        Ok(())
    }

    /// Records that `len` bytes of the file are on the disk, where the system counts them from now
    /// on.
    pub fn mark_written(&mut self, len: u64) {
        let more = Amount::of_file(len).at_most(self.granted).beyond(self.written);
        self.space.ledger().mark_written(more);
        self.written += more;
    }
}

impl Drop for SpacePermit {
    fn drop(&mut self) {
        self.space.ledger().release(self.granted.beyond(self.written));
    }
}

#[cfg(test)]
mod tests;
