//! Makes all new calls wait if NVIDIA answers one call with `Retry-After`: until the wait has ended, no
//! inference starts, not even as a retry, and no asset is created.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{Client, Error, ErrorKind, Operation};

/// The longest wait after a `Retry-After`. If NVIDIA asks to wait longer, the service calls NVIDIA
/// again after this time: a faulty gateway may ask for a wait of a day.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The time until which no new calls may be made, if NVIDIA asked to wait.
#[derive(Debug, Default)]
pub(super) struct RetryAfterWait(Mutex<Option<Instant>>);

impl RetryAfterWait {
    /// Records that NVIDIA asks to wait this long from now. A wait that was recorded earlier still
    /// applies if it ends later.
    pub(super) fn record(&self, wait: Duration, now: Instant) {
        let end = now + wait.min(MAX_WAIT);
        let mut earliest_call = self.lock();
        *earliest_call = Some(earliest_call.map_or(end, |recorded| recorded.max(end)));
    }

    /// The recorded time, if it is in the future.
    pub(super) fn pending(&self, now: Instant) -> Option<Instant> {
        self.lock().filter(|earliest_call| *earliest_call > now)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // The time is valid even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Returns the time until which new calls must wait, or `None` if they need not wait.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`] with the time to wait, if the wait does not end before the deadline.
    pub(super) fn check_retry_after(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<Option<Instant>, Error> {
        let now = Instant::now();
        match self.0.retry_after_wait.pending(now) {
            Some(earliest_call) if earliest_call >= deadline => {
                let log_detail =
                    "NVIDIA asked another call to wait until after this request's deadline".into();
                let error = Error::new(operation, ErrorKind::RateLimited, log_detail);
                Err(Error {
                    retry_after: Some(earliest_call - now),
                    only_deadline_prevents_retry: true,
                    ..error
                })
            }
            earliest_call => Ok(earliest_call),
        }
    }

    /// Waits until NVIDIA allows new calls.
    ///
    /// # Errors
    /// The error of [`Self::check_retry_after`].
    pub(super) async fn wait_for_retry_after(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<(), Error> {
        // Another call may receive a `Retry-After` during this wait, so the time is checked again.
        while let Some(earliest_call) = self.check_retry_after(operation, deadline)? {
            // All calls wait until the same moment. If they all started then, NVIDIA might ask to wait
            // again. So each call has a random delay, as before a first retry.
            let delay = self.0.settings.retry.base.mul_f64(fastrand::f64());
            sleep_until(earliest_call + delay).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_wait_for_the_latest_recorded_end_but_never_longer_than_the_maximum() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let wait = RetryAfterWait::default();
        assert_eq!(wait.pending(start), None);
        wait.record(Duration::from_secs(120), start);
        wait.record(Duration::from_secs(1), start);
        assert_eq!(wait.pending(after(119)), Some(after(120)));
        assert_eq!(wait.pending(after(120)), None);
        // The maximum is 600 s.
        wait.record(Duration::MAX, after(120));
        assert_eq!(wait.pending(after(200)), Some(after(720)));
    }
}
