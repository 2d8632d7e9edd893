//! A circuit breaker: what fails, or is refused, is left alone for a while.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Closed at first; once opened, it closes by itself.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker(Mutex<Option<Instant>>);

impl CircuitBreaker {
    /// Opens until this instant, whatever was said before.
    pub(super) fn open_until(&self, end: Instant) {
        *self.end() = Some(end);
    }

    /// Whether what it guards is to be left alone.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        now < self.closes(now)
    }

    /// When it closes: now, if it is closed.
    pub(super) fn closes(&self, now: Instant) -> Instant {
        self.end().map_or(now, |end| end.max(now))
    }

    fn end(&self) -> MutexGuard<'_, Option<Instant>> {
        // An instant is whole whatever panicked elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_open_until_the_instant_that_was_said_last() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let breaker = CircuitBreaker::default();
        assert!(!breaker.is_open(start));
        breaker.open_until(after(600));
        assert!(breaker.is_open(start) && breaker.is_open(after(599)));
        assert_eq!((breaker.closes(start), breaker.closes(after(601))), (after(600), after(601)));
        assert!(!breaker.is_open(after(600)));
        breaker.open_until(after(60));
        assert!(breaker.is_open(after(59)) && !breaker.is_open(after(60)));
        breaker.open_until(start);
        assert!(!breaker.is_open(start), "no time is none");
    }
}
