//! When NVIDIA may be asked again: what one call is told by a 429 or a 503 holds for every call with
//! the key.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Client, Error, FailureKind, Operation};

/// The longest that one answer is believed. A gateway that asks for a day shall not stop the service
/// for a day: it is asked again before.
const LONGEST: Duration = Duration::from_secs(600);

/// The earliest instant at which new work may be asked for, if there is one.
#[derive(Debug, Default)]
pub(super) struct NotBefore(Mutex<Option<Instant>>);

impl NotBefore {
    /// NVIDIA asks to wait so long from now.
    pub(super) fn record(&self, wait: Duration, now: Instant) {
        let until = now + wait.min(LONGEST);
        let mut known = self.lock();
        *known = Some(known.map_or(until, |known| known.max(until)));
    }

    /// The instant to wait for, if it lies ahead.
    pub(super) fn pending(&self, now: Instant) -> Option<Instant> {
        self.lock().filter(|until| *until > now)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant is whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Fails if new work may not be asked for before the deadline.
    ///
    /// # Errors
    /// [`FailureKind::RateLimited`], with the time to wait.
    pub(super) fn check_not_before(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        match self.0.not_before.pending(now) {
            Some(until) if until >= deadline => {
                let log_detail = "NVIDIA asked another call not to come before".into();
                let error = Error::new(operation, FailureKind::RateLimited, log_detail);
                Err(Error { retry_after: Some(until - now), lacks_time: true, ..error })
            }
            until => Ok(until),
        }
    }

    /// Waits until an embedding may be asked for, which NVIDIA may have put off. To be called before
    /// anything is held that others could use.
    ///
    /// # Errors
    /// [`FailureKind::RateLimited`], with the time to wait, when that is not before the deadline.
    pub async fn wait_until_ready(&self, deadline: Instant) -> Result<(), Error> {
        self.wait_for_not_before(Operation::Infer, deadline).await
    }

    /// Waits until new work may be asked for.
    ///
    /// # Errors
    /// As [`Self::check_not_before`].
    pub(super) async fn wait_for_not_before(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<(), Error> {
        // Meanwhile, others may be told another one.
        while let Some(until) = self.check_not_before(operation, deadline)? {
            // Not all at the same instant: the first ones may be told to wait once more.
            let spread = self.0.settings.retry.base.mul_f64(fastrand::f64());
            sleep_until(until + spread).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_instant_holds_and_none_is_believed_for_long() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let not_before = NotBefore::default();
        assert_eq!(not_before.pending(start), None);
        not_before.record(Duration::from_secs(120), start);
        not_before.record(Duration::from_secs(1), start);
        assert_eq!(not_before.pending(after(119)), Some(after(120)));
        assert_eq!(not_before.pending(after(120)), None);
        not_before.record(Duration::MAX, after(120));
        assert_eq!(not_before.pending(after(200)), Some(after(720)));
    }
}
