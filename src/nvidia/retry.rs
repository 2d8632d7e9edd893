//! What is retried, when, and how often: data and pure functions, and one budget for all requests.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Error, FailureKind, pace::ReservationGuard};
use crate::{shares::ClientNetwork, telemetry::Metrics};

/// How often and how soon a call is retried.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// The most attempts, the first one included.
    pub max_attempts: u32,
    /// The longest wait before the second attempt; it doubles with each attempt.
    pub base: Duration,
    /// The longest wait before any attempt.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 3, base: Duration::from_millis(250), cap: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// What follows a failed attempt, given the time that is `left`. `random` is between 0 and 1.
    fn next_attempt(&self, failed: &FailedAttempt, left: Duration, random: f64) -> NextAttempt {
        if !failed.kind.is_transient() || failed.number >= self.max_attempts {
            return NextAttempt::Never;
        }
        // The backoff is added to what NVIDIA asks for, so that clients that were told the same
        // time spread out.
        let asked = failed.retry_after.unwrap_or_default();
        let wait = asked.saturating_add(self.backoff(failed.number, random));
        if wait < left { NextAttempt::After(wait) } else { NextAttempt::TooLate }
    }

    /// A random wait up to a bound that doubles with each attempt ("full jitter", so that clients
    /// that failed together do not return together). See
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    fn backoff(&self, attempt: u32, random: f64) -> Duration {
        let bound =
            self.base.saturating_mul(1 << (attempt.saturating_sub(1)).min(20)).min(self.cap);
        bound.mul_f64(random)
    }
}

/// A failed attempt.
struct FailedAttempt {
    kind: FailureKind,
    /// How long NVIDIA asks to wait.
    retry_after: Option<Duration>,
    /// Its number, starting at 1.
    number: u32,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextAttempt {
    /// Another attempt after this wait.
    After(Duration),
    /// No attempt: the failure is permanent, or this was the last attempt.
    Never,
    /// No attempt: the wait would exceed the deadline.
    TooLate,
}

/// Bounds the retries of all requests together. Each request earns a quarter of a retry, so that in
/// a long outage retries add at most a quarter to the calls.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// In quarters: the budget starts with 100 retries and never holds more.
    const FULL: u32 = 400;
    const RETRY: u32 = 4;

    pub(super) fn earn(&self) {
        let add = |quarters: u32| (quarters < Self::FULL).then_some(quarters + 1);
        // If the budget is full, nothing is added.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn spend(&self) -> bool {
        let take = |quarters: u32| quarters.checked_sub(Self::RETRY);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(Self::FULL))
    }
}

/// The attempts for one picture, shared by all its calls.
pub struct Attempts<'a> {
    pub(super) policy: &'a RetryPolicy,
    pub(super) retry_budget: &'a RetryBudget,
    pub(super) metrics: &'a Metrics,
    /// The client that sent the picture.
    pub client: ClientNetwork,
    /// The reserved call, until the first inference takes its permit.
    pub(super) reservation: Option<ReservationGuard>,
    /// When the answer must be ready.
    pub deadline: Instant,
    /// Attempts that failed transiently.
    pub(super) failed_attempts: u32,
    /// Inferences that were sent.
    pub(super) inferences: u32,
}

impl Attempts<'_> {
    /// The middle of the time that is left.
    pub fn halfway(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }

    /// Inferences sent so far.
    pub fn inferences(&self) -> u32 {
        self.inferences
    }

    /// Waits for the next attempt, which must end by `deadline`. Returns the failure if the policy
    /// or the budget allows no other attempt.
    pub(super) async fn wait_for_next(
        &mut self,
        failure: Error,
        deadline: Instant,
    ) -> Result<(), Error> {
        // A permanent failure does not count as an attempt: the fallback that follows it may fail
        // transiently, too.
        self.failed_attempts += u32::from(failure.kind.is_transient());
        let Error { kind, retry_after, .. } = failure;
        let failed = FailedAttempt { kind, retry_after, number: self.failed_attempts };
        let left = deadline.saturating_duration_since(Instant::now());
        let next = self.policy.next_attempt(&failed, left, fastrand::f64());
        match next {
            NextAttempt::After(wait) if self.retry_budget.spend() => {
                tracing::debug!(%failure, failed = self.failed_attempts, ?wait, "retrying");
                self.metrics.retries.with([failure.operation.name()]).inc();
                sleep(wait).await;
                Ok(())
            }
            _ => Err(Error {
                attempts: self.inferences,
                lacks_time: failure.lacks_time || next == NextAttempt::TooLate,
                ..failure
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let bounds: Vec<_> =
            (1..8).map(|attempt| policy.backoff(attempt, 1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(policy.backoff(3, 0.5), Duration::from_millis(500));
        assert_eq!(policy.backoff(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn there_is_no_attempt_after_a_permanent_failure_the_last_attempt_or_too_long_a_wait() {
        let policy = RetryPolicy::default();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let left = Duration::from_secs(10);
        let after = |millis| NextAttempt::After(Duration::from_millis(millis));
        for (kind, retry_after, number, next) in [
            (FailureKind::Unavailable, None, 1, after(250)),
            (FailureKind::AttemptTimeout, None, 2, after(500)),
            (FailureKind::RateLimited, seconds(2), 1, after(2250)),
            (FailureKind::ResultGone, seconds(0), 1, after(250)),
            (FailureKind::Unavailable, None, 3, NextAttempt::Never),
            (FailureKind::RateLimited, seconds(10), 1, NextAttempt::TooLate),
            (FailureKind::RateLimited, Some(Duration::MAX), 1, NextAttempt::TooLate),
            (FailureKind::Picture, None, 1, NextAttempt::Never),
            (FailureKind::Key, seconds(1), 1, NextAttempt::Never),
        ] {
            let failed = FailedAttempt { kind, retry_after, number };
            assert_eq!(policy.next_attempt(&failed, left, 1.0), next, "{kind:?} {number}");
        }
    }

    #[test]
    fn retries_add_at_most_a_quarter_to_the_calls() {
        let budget = RetryBudget::default();
        let retries = (0..1500)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count()
            + (0..1500).filter(|_| budget.spend()).count();
        assert!((470..=100 + 1500 / 4).contains(&retries), "{retries}");
    }
}
