//! Arithmetic on what is free, granted and written.

use std::ops::AddAssign;

use tokio::time::Instant;

use super::size_on_disk;

/// If less than this is free above the reserve, every grant needs a new measurement, because other
/// programs write, too.
const NEAR: Amount = Amount { bytes: 16 << 20, files: 1000 };

/// The most inodes that must stay free.
const MOST_RESERVED_INODES: u64 = 10_000;

/// The free space of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// The bytes that an unprivileged user may take.
    pub bytes: u64,
    /// The inodes; `None` if the file system creates them on demand.
    pub inodes: Option<Inodes>,
}

/// The inodes of a file system. Each file takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// Those that an unprivileged user may take.
    pub free: u64,
    /// The total number.
    pub total: u64,
}

impl Inodes {
    /// How many must stay free: one in a hundred, but no more than that maximum.
    fn reserve(self) -> u64 {
        (self.total / 100).min(MOST_RESERVED_INODES)
    }
}

/// What the disk has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Bytes.
    #[error("{free} bytes are free on the disk, {wanted} are wanted, and {reserve} must stay free")]
    Bytes {
        /// Free bytes.
        free: u64,
        /// The bytes of all files that are being written, this one included.
        wanted: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// Inodes.
    #[error(
        "{free} inodes are free on the disk, {wanted} are wanted, and {reserve} must stay free"
    )]
    Inodes {
        /// Free inodes.
        free: u64,
        /// The number of files that are to be created, this one included.
        wanted: u64,
        /// Inodes that must stay free.
        reserve: u64,
    },
}

impl FreeSpace {
    /// Whether one more file, however small, leaves the reserve of bytes and that of inodes
    /// untouched.
    ///
    /// # Errors
    /// [`Shortage`] if not.
    pub fn check(self, reserve: u64) -> Result<(), Shortage> {
        self.allow(Amount::of_file(1), reserve, Amount::default())
    }

    /// Whether `wanted` leaves the reserve untouched and `more` on top of it free.
    fn allow(self, wanted: Amount, reserve: u64, more: Amount) -> Result<(), Shortage> {
        let Self { bytes: free, inodes } = self;
        // Without a reserve, the system itself reports a full disk.
        let must_stay = wanted.bytes.saturating_add(reserve).saturating_add(more.bytes);
        if reserve > 0 && free < must_stay {
            return Err(Shortage::Bytes { free, wanted: wanted.bytes, reserve });
        }
        match inodes {
            Some(inodes) if inodes.free < wanted.files + inodes.reserve() + more.files => {
                let (free, reserve) = (inodes.free, inodes.reserve());
                Err(Shortage::Inodes { free, wanted: wanted.files, reserve })
            }
            _ => Ok(()),
        }
    }
}

/// The room that files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl Amount {
    /// One file of `len` bytes.
    pub(super) fn of_file(len: u64) -> Self {
        Self { bytes: size_on_disk(len), files: 1 }
    }

    /// What this has more than `other`.
    pub(super) fn beyond(self, other: Self) -> Self {
        let bytes = self.bytes.saturating_sub(other.bytes);
        Self { bytes, files: self.files.saturating_sub(other.files) }
    }

    pub(super) fn at_most(self, other: Self) -> Self {
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
    /// What had been written before the measurement, which therefore does not count it as free.
    pub(super) written: Amount,
}

/// What all files together were granted and have written since the process started.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    granted: Amount,
    written: Amount,
    last: Option<Measurement>,
}

impl Ledger {
    pub(super) fn written(&self) -> Amount {
        self.written
    }

    pub(super) fn record(&mut self, measurement: Measurement) {
        if self.last.is_none_or(|last| last.taken_at <= measurement.taken_at) {
            self.last = Some(measurement);
        }
    }

    /// Whether `more` leaves the reserve untouched, by the latest measurement.
    pub(super) fn check(&self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.allow(more, reserve, Amount::default())
    }

    /// Grants `more` if that leaves the reserve untouched, by the latest measurement.
    pub(super) fn grant(&mut self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.check(more, reserve)?;
        self.granted += more;
        Ok(())
    }

    /// Grants `more` if that leaves much more than the reserve, by a measurement after `since`.
    /// Returns whether it did.
    pub(super) fn try_grant_by_recent_measurement(
        &mut self,
        more: Amount,
        reserve: u64,
        since: Option<Instant>,
    ) -> bool {
        let is_recent =
            self.last.is_some_and(|last| since.is_none_or(|since| last.taken_at > since));
        let takes = is_recent && self.allow(more, reserve, NEAR).is_ok();
        if takes {
            self.granted += more;
        }
        takes
    }

    fn allow(&self, more: Amount, reserve: u64, left: Amount) -> Result<(), Shortage> {
        // Before the first measurement, nothing counts as free.
        let nothing = (FreeSpace { bytes: 0, inodes: None }, Amount::default());
        let (free, written) = self.last.map_or(nothing, |last| (last.free, last.written));
        let mut wanted = self.granted.beyond(written);
        wanted += more;
        free.allow(wanted, reserve, left)
    }

    pub(super) fn mark_written(&mut self, more: Amount) {
        self.written += more;
    }

    /// Takes back what was granted but not written.
    pub(super) fn release(&mut self, rest: Amount) {
        self.granted = self.granted.beyond(rest);
    }
}
