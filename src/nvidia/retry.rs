//! What is tried again, when, and how often in all: data and pure functions.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Error, FailureKind, pace::ReservationGuard};
use crate::{shares::ClientNetwork, telemetry::Metrics};

/// How often and how soon a call is tried again.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries in all, the first one included.
    pub max_attempts: u32,
    /// The longest wait before the second try; it doubles from try to try.
    pub base: Duration,
    /// The longest wait before any try.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 3, base: Duration::from_millis(250), cap: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// What becomes of a try that failed, in the time that is left. `random` is from 0 to 1.
    fn next(&self, failed: &FailedAttempt, left: Duration, random: f64) -> NextAttempt {
        if !failed.kind.is_transient() || failed.number >= self.max_attempts {
            return NextAttempt::Never;
        }
        // On top of what NVIDIA asks for, so that those who were told the same time spread out.
        let asked = failed.retry_after.unwrap_or_default();
        let wait = asked.saturating_add(self.backoff(failed.number, random));
        if wait < left { NextAttempt::After(wait) } else { NextAttempt::TooLate }
    }

    /// Anything up to a bound that doubles with each try ("full jitter", so that clients that failed
    /// together do not come back together). See
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    fn backoff(&self, attempt: u32, random: f64) -> Duration {
        let bound = self.base.saturating_mul(1 << (attempt.saturating_sub(1)).min(20)).min(self.cap);
        bound.mul_f64(random)
    }
}

/// A try that failed.
struct FailedAttempt {
    kind: FailureKind,
    /// How long NVIDIA asks to wait.
    retry_after: Option<Duration>,
    /// Tries so far, this one included.
    number: u32,
}

/// What becomes of a try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextAttempt {
    /// Another try, after this time.
    After(Duration),
    /// None: the failure is for good, or it was the last try.
    Never,
    /// None: the wait would pass the deadline.
    TooLate,
}

/// Bounds the tries of all requests together: each request earns a quarter of a retry, so that in
/// a long outage retries add at most a quarter to the calls.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicU32);

impl RetryBudget {
    /// In quarters: 100 retries to begin with, and never more saved up.
    const FULL: u32 = 400;
    const RETRY: u32 = 4;

    pub(super) fn earn(&self) {
        let add = |quarters: u32| (quarters < Self::FULL).then_some(quarters + 1);
        // Full is full: nothing is lost that could be used.
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

/// What the calls for one picture may still cost: all of them together have so many tries.
pub struct Attempts<'a> {
    pub(super) policy: &'a RetryPolicy,
    pub(super) retry_budget: &'a RetryBudget,
    pub(super) metrics: &'a Metrics,
    /// For whom they are.
    pub client: ClientNetwork,
    /// The place before the pace, until the first inference takes its turn.
    pub(super) reservation: Option<ReservationGuard<'a>>,
    /// When the answer must be there.
    pub deadline: Instant,
    /// Calls that failed in passing.
    pub(super) failed_attempts: u32,
    /// Inferences that were asked for.
    pub(super) inferences: u32,
}

impl Attempts<'_> {
    /// The middle of the time that is left.
    pub fn halfway(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 2
    }

    /// Inferences that were asked for so far.
    pub fn inferences(&self) -> u32 {
        self.inferences
    }

    /// Waits until the next try, which must be over by `deadline`; or gives the failure back when
    /// there is none by the policy or the budget.
    pub(super) async fn wait_for_next(&mut self, failure: Error, deadline: Instant) -> Result<(), Error> {
        // A refusal costs no try: what is done instead may fail in passing as well.
        self.failed_attempts += u32::from(failure.kind.is_transient());
        let Error { kind, retry_after, .. } = failure;
        let failed = FailedAttempt { kind, retry_after, number: self.failed_attempts };
        let left = deadline.saturating_duration_since(Instant::now());
        let next = self.policy.next(&failed, left, fastrand::f64());
        match next {
            NextAttempt::After(wait) if self.retry_budget.spend() => {
                tracing::debug!(%failure, failed = self.failed_attempts, ?wait, "trying again");
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
        let bounds: Vec<_> = (1..8).map(|attempt| policy.backoff(attempt, 1.0).as_millis()).collect();
        assert_eq!(bounds, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(policy.backoff(3, 0.5), Duration::from_millis(500));
        assert_eq!(policy.backoff(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_failure_stands_if_it_is_for_good_or_the_last_or_its_wait_too_long() {
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
            assert_eq!(policy.next(&failed, left, 1.0), next, "{kind:?} {number}");
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
