//! Calculates how much space may be granted, from the free space and from what was granted and
//! written.

use std::ops::AddAssign;

use tokio::time::Instant;

use super::size_on_disk;

/// If less than this is free above the reserve, every grant needs a new measurement: other programs
/// also write to the disk.
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
    /// The number of inodes that must stay free: one in a hundred, up to a maximum.
    fn reserve(self) -> u64 {
        (self.total / 100).min(MAX_RESERVED_INODES)
    }
}

/// The disk has too few free bytes or inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Bytes.
    #[error("{free} bytes are free on the disk, {wanted} are wanted, and {reserve} must stay free")]
    Bytes {
        /// Free bytes.
        free: u64,
        /// The bytes that this file and other granted files still need.
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
        /// The inodes that this file and other granted files still need.
        wanted: u64,
        /// Inodes that must stay free.
        reserve: u64,
    },
}

impl FreeSpace {
    /// Checks that one more small file would take nothing of the reserves of bytes and inodes.
    ///
    /// # Errors
    /// [`Shortage`] if it would.
    pub fn check(self, reserve: u64) -> Result<(), Shortage> {
        self.check_amount(Amount::of_file(1), reserve, Amount::default())
    }

    /// Checks that the reserve and `margin` stay free if `wanted` is taken.
    fn check_amount(self, wanted: Amount, reserve: u64, margin: Amount) -> Result<(), Shortage> {
        let Self { bytes: free, inodes } = self;
        let needed = wanted.bytes.saturating_add(reserve).saturating_add(margin.bytes);
        // Without a reserve, bytes are not checked: a write to a full disk fails by itself.
        if reserve > 0 && free < needed {
            return Err(Shortage::Bytes { free, wanted: wanted.bytes, reserve });
        }
        match inodes {
            Some(inodes) if inodes.free < wanted.files + inodes.reserve() + margin.files => {
                let (free, reserve) = (inodes.free, inodes.reserve());
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
    /// The ledger's `written` before the measurement. Its space is not part of `free`.
    pub(super) written: Amount,
}

/// The space that all files together were granted and have written since the process started.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Includes what was written.
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

    /// Checks by the latest measurement that the reserve stays free if `more` is granted.
    pub(super) fn check(&self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.check_with_margin(more, reserve, Amount::default())
    }

    /// Grants `more` if the reserve stays free according to the latest measurement.
    pub(super) fn grant(&mut self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.check(more, reserve)?;
        self.granted += more;
        Ok(())
    }

    /// Grants `more` if the latest measurement was taken after `since`, and the reserve and
    /// [`MARGIN`] stay free. Returns whether it was granted.
    pub(super) fn try_grant_by_recent_measurement(
        &mut self,
        more: Amount,
        reserve: u64,
        since: Option<Instant>,
    ) -> bool {
        let is_recent =
            self.last.is_some_and(|last| since.is_none_or(|since| last.taken_at > since));
        let is_granted = is_recent && self.check_with_margin(more, reserve, MARGIN).is_ok();
        if is_granted {
            self.granted += more;
        }
        is_granted
    }

    fn check_with_margin(
        &self,
        more: Amount,
        reserve: u64,
        margin: Amount,
    ) -> Result<(), Shortage> {
        // Before the first measurement, nothing counts as free.
        let (free, written) = match self.last {
            Some(last) => (last.free, last.written),
            None => (FreeSpace { bytes: 0, inodes: None }, Amount::default()),
        };
        let mut wanted = self.granted.saturating_sub(written);
        wanted += more;
        free.check_amount(wanted, reserve, margin)
    }

    pub(super) fn mark_written(&mut self, more: Amount) {
        self.written += more;
    }

    /// Takes back space that was granted but not written.
    pub(super) fn release(&mut self, unwritten: Amount) {
        self.granted = self.granted.saturating_sub(unwritten);
    }
}
