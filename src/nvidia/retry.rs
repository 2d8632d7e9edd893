//! Decides whether and when a failed call to NVIDIA is retried. All pictures share one budget of
//! retries.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Error, ErrorKind,
    pace::{PacePermit, ReservationGuard},
};
use crate::{shares::ClientNetwork, telemetry::Metrics};

/// How often and after which waits the calls for one picture are retried.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// The most attempts for one picture if all fail with transient errors. Other attempts are not
    /// counted.
    pub max_attempts: u32,
    /// The longest backoff before the second attempt. Before each further attempt, the longest
    /// backoff doubles.
    pub base: Duration,
    /// The longest backoff before any attempt.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 3, base: Duration::from_millis(250), cap: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// Decides what follows a failed attempt. `time_left` is the time until the deadline. `random`
    /// is a random number from 0 to 1.
    fn next_attempt(
        &self,
        failed: &FailedAttempt,
        time_left: Duration,
        random: f64,
    ) -> NextAttempt {
        if !failed.kind.is_transient() || failed.transient_failures >= self.max_attempts {
            return NextAttempt::Never;
        }
        // NVIDIA may send the same `Retry-After` to many calls. The added random backoff spreads
        // their retries.
        let retry_after = failed.retry_after.unwrap_or_default();
        let wait = retry_after.saturating_add(self.backoff(failed.transient_failures, random));
        if wait < time_left { NextAttempt::After(wait) } else { NextAttempt::TooLate }
    }

    /// Returns a random wait from zero to the longest backoff, which doubles with each failed attempt
    /// up to `cap`. This is "full jitter": calls that failed at the same time are retried at
    /// different times. See
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    fn backoff(&self, failures: u32, random: f64) -> Duration {
        // The cap is reached long before twenty doublings. More than 31 would overflow the shift.
        let doublings = failures.saturating_sub(1).min(20);
        let longest = self.base.saturating_mul(1 << doublings).min(self.cap);
        longest.mul_f64(random)
    }
}

/// A failed attempt.
struct FailedAttempt {
    kind: ErrorKind,
    /// How long NVIDIA asks to wait. `None` if it did not ask.
    retry_after: Option<Duration>,
    /// The number of attempts with a transient error so far, including this one if its error is
    /// transient.
    transient_failures: u32,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextAttempt {
    /// Another attempt after this wait.
    After(Duration),
    /// No further attempt: the error is permanent, or this was the last allowed attempt.
    Never,
    /// No further attempt: the wait would end after the deadline.
    TooLate,
}

/// Limits the retries of all pictures together. Each picture for which NVIDIA is called adds a
/// quarter of a retry to the budget. So in a long outage, there is at most one retry for four
/// pictures.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// The initial budget, which is also the largest: a hundred retries, in quarters of a retry.
    const MAX_QUARTERS: u32 = 400;
    const QUARTERS_PER_RETRY: u32 = 4;

    /// Adds a quarter of a retry, unless the budget is full. Call this once for each picture for
    /// which NVIDIA is called.
    pub(super) fn add_quarter_retry(&self) {
        let add = |quarters: u32| (quarters < Self::MAX_QUARTERS).then_some(quarters + 1);
        // An error means that the budget is full.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes one retry from the budget. Returns false if less than one retry is left.
    fn try_take_retry(&self) -> bool {
        let take = |quarters: u32| quarters.checked_sub(Self::QUARTERS_PER_RETRY);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(Self::MAX_QUARTERS))
    }
}

/// What all calls for one picture share, such as the number of transient failures and the deadline.
pub struct RetryState<'a> {
    pub(super) policy: &'a RetryPolicy,
    pub(super) retry_budget: &'a RetryBudget,
    pub(super) metrics: &'a Metrics,
    /// The network of the client that sent the picture.
    pub client_network: ClientNetwork,
    /// The reserved call. `None` if calls per minute are not limited, or if a permit has already
    /// replaced the reservation.
    pub(super) reservation: Option<ReservationGuard>,
    /// The unused permit for the next inference. Always `None` if calls per minute are not limited.
    pub(super) pace_permit: Option<PacePermit>,
    /// When the embedding must be ready.
    pub deadline: Instant,
    /// The number of attempts that ended with a transient error.
    pub(super) transient_failures: u32,
    /// The number of inferences sent so far.
    pub(super) sent_inferences: u32,
}

impl RetryState<'_> {
    /// The instant halfway between now and the deadline.
    pub fn halfway_to_deadline(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }

    /// The number of inferences sent so far.
    pub fn sent_inferences(&self) -> u32 {
        self.sent_inferences
    }

    /// Waits until the next attempt may start, after one that failed with `error`. For an upload,
    /// `deadline` may be earlier than `self.deadline`.
    ///
    /// # Errors
    /// Returns `error` if the policy, the budget or `deadline` does not allow another attempt.
    pub(super) async fn wait_for_next(
        &mut self,
        error: Error,
        deadline: Instant,
    ) -> Result<(), Error> {
        // A permanent error is not counted. It must not cost an attempt of the inline call that may
        // follow a failed upload.
        self.transient_failures += u32::from(error.kind.is_transient());
        let Error { kind, retry_after, .. } = error;
        let transient_failures = self.transient_failures;
        let failed = FailedAttempt { kind, retry_after, transient_failures };
        let time_left = deadline.saturating_duration_since(Instant::now());
        let next = self.policy.next_attempt(&failed, time_left, fastrand::f64());
        match next {
            NextAttempt::After(wait) if self.retry_budget.try_take_retry() => {
                tracing::debug!(
                    %error,
                    failed = transient_failures,
                    ?wait,
                    "a failed call to NVIDIA is retried"
                );
                self.metrics.retries.with([error.operation.name()]).inc();
                sleep(wait).await;
                Ok(())
            }
            _ => Err(Error {
                sent_inferences: self.sent_inferences,
                only_deadline_prevents_retry: error.only_deadline_prevents_retry
                    || next == NextAttempt::TooLate,
                ..error
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_backoff_doubles_with_each_failure_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let longest: Vec<_> =
            (1..8).map(|failures| policy.backoff(failures, 1.0).as_millis()).collect();
        assert_eq!(longest, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(policy.backoff(3, 0.5), Duration::from_millis(500));
        assert_eq!(policy.backoff(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn only_a_transient_error_is_retried_if_attempts_and_time_are_left() {
        let policy = RetryPolicy::default();
        let wait_of = |seconds| Some(Duration::from_secs(seconds));
        let time_left = Duration::from_secs(10);
        let after = |millis| NextAttempt::After(Duration::from_millis(millis));
        let longest_backoff = 1.0;
        for (kind, retry_after, transient_failures, next) in [
            (ErrorKind::Unavailable, None, 1, after(250)),
            (ErrorKind::AttemptTimeout, None, 2, after(500)),
            (ErrorKind::RateLimited, wait_of(2), 1, after(2250)),
            (ErrorKind::PolledResultGone, wait_of(0), 1, after(250)),
            (ErrorKind::Unavailable, None, 3, NextAttempt::Never),
            (ErrorKind::RateLimited, wait_of(10), 1, NextAttempt::TooLate),
            (ErrorKind::RateLimited, Some(Duration::MAX), 1, NextAttempt::TooLate),
            (ErrorKind::PictureRefused, None, 1, NextAttempt::Never),
            (ErrorKind::KeyRefused, wait_of(1), 1, NextAttempt::Never),
        ] {
            let failed = FailedAttempt { kind, retry_after, transient_failures };
            let actual = policy.next_attempt(&failed, time_left, longest_backoff);
            assert_eq!(actual, next, "{kind:?} {transient_failures}");
        }
    }

    #[test]
    fn there_is_at_most_one_retry_for_four_pictures_after_the_initial_budget() {
        let budget = RetryBudget::default();
        let mut retries = 0;
        for _ in 0..1500 {
            budget.add_quarter_retry();
            retries += u32::from(budget.try_take_retry());
        }
        assert!(!budget.try_take_retry(), "the loop should have taken every whole retry");
        // The first picture adds nothing to the full initial budget of 100 retries.
        assert_eq!(retries, 100 + 1499 / 4);
    }
}
