//! When NVIDIA may be called again: a `Retry-After` on one 429 or 503 applies to every call with
//! the key.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Client, Error, FailureKind, Operation};

/// The longest wait that is honoured. If a gateway asks for a day, NVIDIA is called again sooner,
/// so that the service is not down for a day.
const LONGEST: Duration = Duration::from_secs(600);

/// The earliest time for new calls, if NVIDIA asked to wait.
#[derive(Debug, Default)]
pub(super) struct NotBefore(Mutex<Option<Instant>>);

impl NotBefore {
    /// Records that NVIDIA asks to wait this long from now.
    pub(super) fn record(&self, wait: Duration, now: Instant) {
        let until = now + wait.min(LONGEST);
        let mut known = self.lock();
        *known = Some(known.map_or(until, |known| known.max(until)));
    }

    /// The time to wait for, if it is in the future.
    pub(super) fn pending(&self, now: Instant) -> Option<Instant> {
        self.lock().filter(|until| *until > now)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant stays valid even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Fails if no new call is allowed before the deadline.
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
                let log_detail =
                    "NVIDIA asked another call to wait longer than this request can".into();
                let error = Error::new(operation, FailureKind::RateLimited, log_detail);
                Err(Error { retry_after: Some(until - now), lacks_time: true, ..error })
            }
            until => Ok(until),
        }
    }

    /// Waits until NVIDIA allows new inferences. Call this before taking anything that others could
    /// use meanwhile.
    ///
    /// # Errors
    /// [`FailureKind::RateLimited`] with the time to wait, if that ends after the deadline.
    pub async fn wait_until_ready(&self, deadline: Instant) -> Result<(), Error> {
        self.wait_for_not_before(Operation::Infer, deadline).await
    }

    /// Waits until NVIDIA allows new calls.
    ///
    /// # Errors
    /// As [`Self::check_not_before`].
    pub(super) async fn wait_for_not_before(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<(), Error> {
        // Meanwhile NVIDIA may ask another call to wait longer.
        while let Some(until) = self.check_not_before(operation, deadline)? {
            // A random spread, so that not all calls start at once: NVIDIA may ask the first ones
            // to wait again.
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
    fn the_latest_time_applies_up_to_the_longest_wait() {
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
