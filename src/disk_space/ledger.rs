//! Decides whether a file may get more disk space. The decision depends on the measured free space,
//! and on the space that files were granted and have used.

use std::ops::AddAssign;

use tokio::time::Instant;

use super::size_on_disk;

/// A reserve of disk space must stay free. If the free space exceeds the reserve by less than this
/// margin, the free space is measured again before every grant, because other programs also write
/// to the disk.
const MARGIN: Amount = Amount { bytes: 16 << 20, files: 1000 };

/// The largest reserve of inodes.
const MAX_RESERVED_INODES: u64 = 10_000;

/// The free space of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// The free bytes that an unprivileged user may take.
    pub bytes: u64,
    /// The inodes; `None` if the file system creates inodes on demand.
    pub inodes: Option<Inodes>,
}

/// The inodes of a file system. Each file takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// The free inodes that an unprivileged user may take.
    pub free: u64,
    /// The total number of inodes, free and used.
    pub total: u64,
}

impl Inodes {
    /// The number of inodes that must stay free: one in a hundred, up to
    /// [`MAX_RESERVED_INODES`].
    fn reserved(self) -> u64 {
        (self.total / 100).min(MAX_RESERVED_INODES)
    }
}

/// The disk has too few free bytes or inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Too few bytes are free.
    #[error("{free} bytes are free on the disk, {wanted} are wanted, and {reserve} must stay free")]
    Bytes {
        /// The free bytes.
        free: u64,
        /// The bytes that this file needs, and those that were granted to other files but not yet
        /// written.
        wanted: u64,
        /// The bytes that must stay free.
        reserve: u64,
    },
    /// Too few inodes are free.
    #[error(
        "{free} inodes are free on the disk, {wanted} are wanted, and {reserve} must stay free"
    )]
    Inodes {
        /// The free inodes.
        free: u64,
        /// The inodes that this file needs, and those that were granted to other files but not yet
        /// used.
        wanted: u64,
        /// The inodes that must stay free.
        reserve: u64,
    },
}

impl FreeSpace {
    /// Checks that the disk has space for one more small file besides the reserves of bytes and
    /// inodes.
    ///
    /// # Errors
    /// [`Shortage`]
    pub fn check(self, min_free_bytes: u64) -> Result<(), Shortage> {
        self.check_amount(Amount::of_file(1), min_free_bytes, Amount::default())
    }

    /// Checks that the reserves and `margin` stay free if `wanted` is taken.
    fn check_amount(
        self,
        wanted: Amount,
        min_free_bytes: u64,
        margin: Amount,
    ) -> Result<(), Shortage> {
        let Self { bytes: free, inodes } = self;
        let needed = wanted.bytes.saturating_add(min_free_bytes).saturating_add(margin.bytes);
        // Without a reserve, bytes are not checked: a write to a full disk fails by itself.
        if min_free_bytes > 0 && free < needed {
            return Err(Shortage::Bytes { free, wanted: wanted.bytes, reserve: min_free_bytes });
        }
        match inodes {
            Some(inodes) if inodes.free < wanted.files + inodes.reserved() + margin.files => {
                let (free, reserve) = (inodes.free, inodes.reserved());
                Err(Shortage::Inodes { free, wanted: wanted.files, reserve })
            }
            _ => Ok(()),
        }
    }
}

/// An amount of disk space: bytes and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    /// The number of files; each takes one inode.
    pub(super) files: u64,
}

impl Amount {
    /// One file of `len` bytes.
    pub(super) fn of_file(len: u64) -> Self {
        Self { bytes: size_on_disk(len), files: 1 }
    }

    pub(super) fn saturating_sub(self, other: Self) -> Self {
        let bytes = self.bytes.saturating_sub(other.bytes);
        Self { bytes, files: self.files.saturating_sub(other.files) }
    }

    pub(super) fn min(self, other: Self) -> Self {
        Self { bytes: self.bytes.min(other.bytes), files: self.files.min(other.files) }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files = self.files.saturating_add(other.files);
    }
}

/// The free space that the system reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measurement {
    pub(super) taken_at: Instant,
    pub(super) free: FreeSpace,
    /// The value of [`Ledger::written`] just before the measurement. `free` no longer includes this
    /// space.
    pub(super) written: Amount,
}

/// How much space all files together were granted, and how much of it was written, since the
/// process started.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Includes the space that was written.
    granted: Amount,
    written: Amount,
    latest: Option<Measurement>,
}

impl Ledger {
    pub(super) fn written(&self) -> Amount {
        self.written
    }

    /// Records a measurement, unless one that was taken later is recorded already: measurements may
    /// overlap.
    pub(super) fn record(&mut self, measurement: Measurement) {
        if self.latest.is_none_or(|latest| latest.taken_at <= measurement.taken_at) {
            self.latest = Some(measurement);
        }
    }

    /// Checks by the latest measurement that the reserve stays free if `more` is granted.
    pub(super) fn check(&self, more: Amount, min_free_bytes: u64) -> Result<(), Shortage> {
        self.check_with_margin(more, min_free_bytes, Amount::default())
    }

    /// Grants `more` if the reserve stays free according to the latest measurement.
    pub(super) fn grant(&mut self, more: Amount, min_free_bytes: u64) -> Result<(), Shortage> {
        self.check(more, min_free_bytes)?;
        self.granted += more;
        Ok(())
    }

    /// Grants `more` if the latest measurement was taken later than `taken_after`, and if the
    /// reserve and [`MARGIN`] stay free. If `taken_after` is `None`, the measurement may be of any
    /// age. Returns whether `more` was granted.
    pub(super) fn try_grant_by_recent_measurement(
        &mut self,
        more: Amount,
        min_free_bytes: u64,
        taken_after: Option<Instant>,
    ) -> bool {
        let is_recent = self
            .latest
            .is_some_and(|latest| taken_after.is_none_or(|earliest| latest.taken_at > earliest));
        let is_granted = is_recent && self.check_with_margin(more, min_free_bytes, MARGIN).is_ok();
        if is_granted {
            self.granted += more;
        }
        is_granted
    }

    fn check_with_margin(
        &self,
        more: Amount,
        min_free_bytes: u64,
        margin: Amount,
    ) -> Result<(), Shortage> {
        // Before the first measurement, no bytes count as free.
        let (free, written_when_measured) = match self.latest {
            Some(latest) => (latest.free, latest.written),
            None => (FreeSpace { bytes: 0, inodes: None }, Amount::default()),
        };
        // The measurement counted granted space as free if it was not yet written, or was granted later.
        // So this space is wanted, too.
        let mut wanted = self.granted.saturating_sub(written_when_measured);
        wanted += more;
        free.check_amount(wanted, min_free_bytes, margin)
    }

    pub(super) fn mark_written(&mut self, more: Amount) {
        self.written += more;
    }

    /// Takes back space that was granted but not written.
    pub(super) fn release(&mut self, unwritten: Amount) {
        self.granted = self.granted.saturating_sub(unwritten);
    }
}
