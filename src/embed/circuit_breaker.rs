//! A circuit breaker: after an operation failed, callers do not try it again for a while.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// A circuit breaker. While it is open, callers must not try the operation. It is closed at first. An
/// open breaker closes by itself at the instant that was passed to [`Self::open_until`].
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker(Mutex<Option<Instant>>);

impl CircuitBreaker {
    /// Opens the breaker until `end`. Replaces the end that was set before.
    pub(super) fn open_until(&self, end: Instant) {
        *self.lock() = Some(end);
    }

    /// Whether callers must not try the operation.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        now < self.closes_at(now)
    }

    /// When the breaker closes, or `now` if it is closed.
    pub(super) fn closes_at(&self, now: Instant) -> Instant {
        self.lock().map_or(now, |end| end.max(now))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant stays valid even if a holder of the lock panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_breaker_is_open_until_the_instant_that_was_set_last() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let breaker = CircuitBreaker::default();
        assert!(!breaker.is_open(start));
        breaker.open_until(after(600));
        assert!(breaker.is_open(start) && breaker.is_open(after(599)));
        assert_eq!(
            (breaker.closes_at(start), breaker.closes_at(after(601))),
            (after(600), after(601)),
            "a closed breaker should return `now`"
        );
        assert!(!breaker.is_open(after(600)));
        breaker.open_until(after(60));
        assert!(breaker.is_open(after(59)) && !breaker.is_open(after(60)));
        breaker.open_until(start);
        assert!(!breaker.is_open(start), "a breaker whose end is now should be closed");
    }
}
