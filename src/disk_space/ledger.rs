//! What is free, promised and written: pure arithmetic.

use std::ops::AddAssign;

use tokio::time::Instant;

use super::whole_blocks;

/// Where no more than this is free beyond the reserve, each step is looked at: others write, too.
const NEAR: Amount = Amount { bytes: 16 << 20, files: 1000 };

/// The most inodes that stay free.
const MOST_RESERVED_INODES: u64 = 10_000;

/// What is free on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// Bytes that a user without privileges may take.
    pub bytes: u64,
    /// Inodes; none where the file system makes them as they are needed.
    pub inodes: Option<Inodes>,
}

/// The inodes of a file system: each file takes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    /// Those that a user without privileges may take.
    pub free: u64,
    /// All of them.
    pub total: u64,
}

impl Inodes {
    /// How many stay free: one in a hundred, which is few on a small disk.
    fn reserve(self) -> u64 {
        (self.total / 100).min(MOST_RESERVED_INODES)
    }
}

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Bytes.
    #[error("{free} bytes are free on the disk, {wanted} are wanted, and {reserve} must stay free")]
    Bytes {
        /// Free bytes.
        free: u64,
        /// Bytes that files want which are being written, this one included.
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
        /// Files that are to be made, this one included.
        wanted: u64,
        /// Inodes that must stay free.
        reserve: u64,
    },
}

impl FreeSpace {
    /// Whether one more file, however small, leaves the reserve of so many bytes, and that of inodes.
    ///
    /// # Errors
    /// [`Shortage`] if not.
    pub fn check(self, reserve: u64) -> Result<(), Shortage> {
        self.allow(Amount::of_file(1), reserve, Amount::default())
    }

    /// Whether so much leaves the reserve, and so much more.
    fn allow(self, wanted: Amount, reserve: u64, more: Amount) -> Result<(), Shortage> {
        let Self { bytes: free, inodes } = self;
        // Without a reserve the system itself says when there is no room.
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

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

impl Amount {
    /// One file of so many bytes.
    pub(super) fn of_file(len: u64) -> Self {
        Self { bytes: whole_blocks(len), files: 1 }
    }

    /// What is missing in another amount.
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

/// What the system said was free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) asked: Instant,
    pub(super) free: FreeSpace,
    /// What had been written when it was asked: surely no part of what it says is free.
    pub(super) written: Amount,
}

/// What all together were promised and wrote, since the process began.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    promised: Amount,
    written: Amount,
    last: Option<Sample>,
}

impl Ledger {
    pub(super) fn written(&self) -> Amount {
        self.written
    }

    pub(super) fn remember(&mut self, sample: Sample) {
        if self.last.is_none_or(|last| last.asked <= sample.asked) {
            self.last = Some(sample);
        }
    }

    /// Whether so much more leaves the reserve, by what was said last.
    pub(super) fn check(&self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.allow(more, reserve, Amount::default())
    }

    /// Promises so much more, if that leaves the reserve by what was said last.
    pub(super) fn take(&mut self, more: Amount, reserve: u64) -> Result<(), Shortage> {
        self.check(more, reserve)?;
        self.promised += more;
        Ok(())
    }

    /// The same where it leaves much more, and that was said after this time; else says no.
    pub(super) fn take_far_from_reserve(
        &mut self,
        more: Amount,
        reserve: u64,
        since: Option<Instant>,
    ) -> bool {
        let is_young = self.last.is_some_and(|last| since.is_none_or(|since| last.asked > since));
        let takes = is_young && self.allow(more, reserve, NEAR).is_ok();
        if takes {
            self.promised += more;
        }
        takes
    }

    fn allow(&self, more: Amount, reserve: u64, left: Amount) -> Result<(), Shortage> {
        // What was never asked for is not known to be free.
        let nothing = (FreeSpace { bytes: 0, inodes: None }, Amount::default());
        let (free, written) = self.last.map_or(nothing, |last| (last.free, last.written));
        let mut wanted = self.promised.beyond(written);
        wanted += more;
        free.allow(wanted, reserve, left)
    }

    pub(super) fn write(&mut self, more: Amount) {
        self.written += more;
    }

    /// Takes back what was promised, and never written.
    pub(super) fn give_back(&mut self, rest: Amount) {
        self.promised = self.promised.beyond(rest);
    }
}
