//! Decides how often and for how long a picture is tried, for `embed` and for `nearest`.

use std::time::Duration;

use tokio::time::Instant;

/// The most attempts of a picture. Refusals because the service is busy do not count.
const MAX_ATTEMPTS: u32 = 5;

/// The longest time for one request. With the default settings, the service ends it sooner.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(420);

/// The least time for one request, even if the picture's deadline is nearer or has passed.
const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The wait before the second attempt. It doubles with each further attempt.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

/// The attempts of one picture.
#[derive(Debug)]
pub(super) struct Attempts {
    /// How many have failed, without those that the busy service refused.
    failed: u32,
    /// The time from the start of the first attempt to the deadline.
    time_limit: Duration,
    /// When the wait after the latest failure ends. `None` before the first failure.
    wait_end: Option<Instant>,
    /// No attempt is planned for this time or later. An attempt that was planned for an earlier time
    /// still starts, with at least [`MIN_REQUEST_TIMEOUT`]. `None` before the first attempt.
    deadline: Option<Instant>,
}

impl Attempts {
    /// No attempt yet. The deadline will be this long after the start of the first attempt.
    pub(super) fn within(time_limit: Duration) -> Self {
        Self { failed: 0, time_limit, wait_end: None, deadline: None }
    }

    /// Counts an attempt that has failed now.
    pub(super) fn add_failure(&mut self) {
        let doublings = self.failed.min(MAX_ATTEMPTS);
        self.failed = self.failed.saturating_add(1);
        self.wait_end = Some(Instant::now() + FIRST_BACKOFF * 2_u32.pow(doublings));
    }

    /// How much longer to wait before the next attempt. Zero before the first failure. The wait begins at
    /// the failure, so it also passes while the picture is in the queue.
    pub(super) fn backoff(&self) -> Duration {
        let now = Instant::now();
        self.wait_end.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }

    /// Returns how long a request that starts now may take. The first call sets the deadline.
    pub(super) fn next_timeout(&mut self) -> Duration {
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert(now + self.time_limit);
        let left = deadline.saturating_duration_since(now);
        left.clamp(MIN_REQUEST_TIMEOUT, REQUEST_TIMEOUT)
    }

    /// Whether to plan another attempt, which cannot start before `earliest`.
    pub(super) fn may_continue(&self, earliest: Instant) -> bool {
        let is_late = self.deadline.is_some_and(|deadline| earliest >= deadline);
        self.failed < MAX_ATTEMPTS && !is_late
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_picture_has_five_attempts_with_waits_that_double() {
        let mut attempts = Attempts::within(900 * SECOND);
        let mut waits = Vec::new();
        while attempts.may_continue(Instant::now()) {
            waits.push(attempts.backoff().as_secs());
            attempts.add_failure();
        }
        assert_eq!(waits, [0, 1, 2, 4, 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_since_the_failure_is_a_part_of_the_wait() {
        let mut attempts = Attempts::within(900 * SECOND);
        for _ in 0..3 {
            attempts.add_failure();
        }
        assert_eq!(attempts.backoff(), 4 * SECOND);
        advance(3 * SECOND).await;
        assert_eq!(attempts.backoff(), SECOND);
        advance(3 * SECOND).await;
        assert_eq!(attempts.backoff(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_first_request_and_shortens_later_ones() {
        let mut attempts = Attempts::within(900 * SECOND);
        advance(10_000 * SECOND).await; // more than the limit, but no request has started
        assert!(attempts.may_continue(Instant::now()));
        assert_eq!(attempts.next_timeout(), REQUEST_TIMEOUT);
        advance(800 * SECOND).await;
        assert_eq!(attempts.next_timeout(), 100 * SECOND);
        assert!(attempts.may_continue(Instant::now() + 99 * SECOND));
        assert!(!attempts.may_continue(Instant::now() + 100 * SECOND));
        advance(200 * SECOND).await;
        assert_eq!(attempts.next_timeout(), MIN_REQUEST_TIMEOUT);
    }
}
