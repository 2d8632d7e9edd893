//! Grants disk space to files before they are written, so that a reserve always stays free.
//!
//! Each file needs a [`SpacePermit`] before it is written. Because of the permits, many files that
//! are written at the same time cannot use up the reserve. A permit grows as bytes arrive, and not
//! by a declared length: a client that declares a large picture but sends few bytes takes no space
//! from others.
//!
//! Usually, free space is measured at most once a second. If little more than the reserve is free,
//! the free space is measured before each grant.

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

/// The space that a file of `len` bytes takes on the disk, in bytes: at least one block, and whole
/// blocks of 4096 bytes, which most file systems use.
pub(crate) fn size_on_disk(len: u64) -> u64 {
    len.max(1).checked_next_multiple_of(4096).unwrap_or(u64::MAX)
}

/// Whether the error means that the disk or a quota is full, or that a file would exceed the file
/// size limit of the process.
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

/// Why no space was granted, or why the free space is unknown.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// With the file, fewer bytes or inodes than the reserve would stay free.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The free space could not be measured.
    #[error("cannot measure the free disk space")]
    Unknown(#[source] Arc<io::Error>),
    /// The free space was not measured in time.
    #[error("the disk does not answer")]
    MeasurementTimedOut,
}

impl Error {
    /// Whether the free space is known and too small.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Shortage(_))
    }
}

impl From<NoAnswer> for Error {
    fn from(_: NoAnswer) -> Self {
        Self::MeasurementTimedOut
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Shortage(_) => io::ErrorKind::StorageFull,
            Error::Unknown(source) => source.kind(),
            Error::MeasurementTimedOut => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// The disk of a folder, and the reserve that must stay free on it. Clones share their ledger:
/// space that one clone has granted is not granted again by another clone.
#[derive(Clone)]
pub struct DiskSpace(Arc<Inner>);

type Measure = dyn Fn(&Path) -> io::Result<FreeSpace> + Send + Sync;

struct Inner {
    folder: PathBuf,
    min_free_bytes: u64,
    measure: Box<Measure>,
    ledger: Mutex<Ledger>,
    sampler: Sampler<Result<FreeSpace, Error>>,
}

impl fmt::Debug for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { folder, min_free_bytes, .. } = &*self.0;
        f.debug_struct("DiskSpace")
            .field("folder", folder)
            .field("min_free_bytes", min_free_bytes)
            .finish_non_exhaustive()
    }
}

impl DiskSpace {
    /// The disk of `folder`, where `min_free_bytes` must stay free; 0 means that bytes are not checked.
    /// Inodes have a reserve of their own, which is always checked.
    pub fn new(folder: PathBuf, min_free_bytes: u64) -> Self {
        Self::with_measure(folder, min_free_bytes, free_space)
    }

    /// Like [`Self::new`], with a function that measures free space, for tests.
    pub fn with_measure(
        folder: PathBuf,
        min_free_bytes: u64,
        measure: impl Fn(&Path) -> io::Result<FreeSpace> + Send + Sync + 'static,
    ) -> Self {
        let measure = Box::new(measure);
        let (ledger, sampler) = (Mutex::default(), Sampler::default());
        Self(Arc::new(Inner { folder, min_free_bytes, measure, ledger, sampler }))
    }

    /// The bytes that must stay free.
    pub fn min_free_bytes(&self) -> u64 {
        self.0.min_free_bytes
    }

    /// The free space, measured at most a second ago.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::MeasurementTimedOut`]
    pub async fn free_space(&self) -> Result<FreeSpace, Error> {
        self.free_space_no_older_than(MAX_AGE).await
    }

    /// Checks that there is space for one more small file.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn check_space(&self) -> Result<(), Error> {
        self.empty_permit().grow_to(1).await
    }

    /// Like [`Self::check_space`], but always measures. Blocks the thread.
    ///
    /// # Errors
    /// [`Error`]
    pub fn measure_and_check_space(&self) -> Result<(), Error> {
        self.measure()?;
        Ok(self.ledger().check(Amount::of_file(1), self.0.min_free_bytes)?)
    }

    /// Returns a permit for one file. At first, the permit grants no space.
    pub fn empty_permit(&self) -> SpacePermit {
        let (granted, written) = (Amount::default(), Amount::default());
        SpacePermit { space: self.clone(), granted, written }
    }

    async fn acquire(&self, more: Amount) -> Result<(), Error> {
        if !self.try_grant_by_recent_measurement(more) {
            // The free space is close to the reserve, or the latest measurement is too old.
            self.free_space_no_older_than(Duration::ZERO).await?;
            self.ledger().grant(more, self.0.min_free_bytes)?;
        }
        Ok(())
    }

    fn blocking_acquire(&self, more: Amount) -> Result<(), Error> {
        if !self.try_grant_by_recent_measurement(more) {
            self.measure()?;
            self.ledger().grant(more, self.0.min_free_bytes)?;
        }
        Ok(())
    }

    fn try_grant_by_recent_measurement(&self, more: Amount) -> bool {
        // `None` if the system's clock began less than `MAX_AGE` ago: then no measurement is too old.
        let taken_after = Instant::now().checked_sub(MAX_AGE);
        self.ledger().try_grant_by_recent_measurement(more, self.0.min_free_bytes, taken_after)
    }

    async fn free_space_no_older_than(&self, max_age: Duration) -> Result<FreeSpace, Error> {
        let space = self.clone();
        self.0.sampler.sample(max_age, MEASURE_TIMEOUT, move || space.measure()).await?
    }

    /// Measures the free space and records it. Blocks the thread.
    fn measure(&self) -> Result<FreeSpace, Error> {
        // Gets `written` before the measurement. Bytes that are written in between count twice: as used
        // on the disk, and as not written yet. In the other order, they would count as free.
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

/// A reservation of disk space for one file. Dropping the permit releases the space that was not
/// written.
#[derive(Debug)]
pub struct SpacePermit {
    space: DiskSpace,
    granted: Amount,
    written: Amount,
}

impl SpacePermit {
    /// Grows the permit to a file of `len` bytes. A permit for a longer file stays as it is.
    ///
    /// # Errors
    /// [`Error`]. After an error, the permit is unchanged.
    pub async fn grow_to(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).saturating_sub(self.granted);
        if more != Amount::default() {
            self.space.acquire(more).await?;
            self.granted += more;
        }
        Ok(())
    }

    /// Like [`Self::grow_to`], but blocks the thread.
    ///
    /// # Errors
    /// [`Error`]. After an error, the permit is unchanged.
    pub fn blocking_grow_to(&mut self, len: u64) -> Result<(), Error> {
        let more = Amount::of_file(len).saturating_sub(self.granted);
        if more != Amount::default() {
            self.space.blocking_acquire(more)?;
            self.granted += more;
        }
        Ok(())
    }

    /// Records that the first `len` bytes of the file are written: the system no longer reports the
    /// space of these bytes as free.
    pub fn mark_written(&mut self, len: u64) {
        let more = Amount::of_file(len).min(self.granted).saturating_sub(self.written);
        self.space.ledger().mark_written(more);
        self.written += more;
    }
}

impl Drop for SpacePermit {
    fn drop(&mut self) {
        self.space.ledger().release(self.granted.saturating_sub(self.written));
    }
}

#[cfg(test)]
mod tests;
