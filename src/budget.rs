//! A bound on bytes of memory that all requests share.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// The unit that the semaphore counts: its permits are `u32`, bytes are more.
const UNIT: u64 = 1024;

/// Memory that may be in use at once, in bytes. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    total: u64,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Reserved(OwnedSemaphorePermit);

/// Why bytes could not be reserved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// More than the whole budget: waiting would not help.
    #[error("{wanted} bytes are wanted of a budget of {total}")]
    TooLarge {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there are in all.
        total: u64,
    },
    /// Others did not give enough back in time.
    #[error("the memory budget stayed in use")]
    Exhausted,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(total: u64) -> Self {
        let units = usize::try_from(total / UNIT).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(units)), total }
    }

    /// Reserves bytes, waiting for others to give theirs back, first come first served.
    ///
    /// # Errors
    /// [`Error::TooLarge`] at once, [`Error::Exhausted`] at the deadline.
    pub async fn reserve(&self, bytes: u64, deadline: Instant) -> Result<Reserved, Error> {
        let units = self.units(bytes)?;
        match timeout_at(deadline, Arc::clone(&self.free).acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Reserved(permit)),
            // Closed never happens: nothing closes the semaphore.
            Ok(Err(_)) | Err(_) => Err(Error::Exhausted),
        }
    }

    /// Reserves bytes if they are free now.
    ///
    /// # Errors
    /// [`Error`]
    pub fn try_reserve(&self, bytes: u64) -> Result<Reserved, Error> {
        let units = self.units(bytes)?;
        let permit = Arc::clone(&self.free).try_acquire_many_owned(units);
        permit.map(Reserved).map_err(|_| Error::Exhausted)
    }

    fn units(&self, bytes: u64) -> Result<u32, Error> {
        match u32::try_from(bytes.div_ceil(UNIT)) {
            Ok(units) if u64::from(units) <= self.total / UNIT => Ok(units),
            _ => Err(Error::TooLarge { wanted: bytes, total: self.total }),
        }
    }
}

impl Reserved {
    /// Gives back all but so many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let excess = self.0.num_permits().saturating_sub(keep);
        drop(self.0.split(excess));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_reserved_is_missing_until_given_back() {
        let budget = Budget::new(10 * UNIT);
        let now = Instant::now();
        let mut held = budget.reserve(8 * UNIT, now).await.unwrap();
        assert_eq!(budget.try_reserve(3 * UNIT).unwrap_err(), Error::Exhausted);
        assert_eq!(budget.reserve(3 * UNIT, now).await.unwrap_err(), Error::Exhausted);
        held.shrink_to(7 * UNIT);
        drop(budget.try_reserve(3 * UNIT).unwrap());
        drop(held);
        budget.try_reserve(10 * UNIT).unwrap();
    }

    #[tokio::test]
    async fn more_than_there_is_fails_at_once() {
        let budget = Budget::new(UNIT);
        let too_large = Error::TooLarge { wanted: UNIT + 1, total: UNIT };
        let deadline = Instant::now() + std::time::Duration::from_secs(3600);
        assert_eq!(budget.reserve(UNIT + 1, deadline).await.unwrap_err(), too_large);
        assert_eq!(budget.try_reserve(UNIT + 1).unwrap_err(), too_large);
    }
}
