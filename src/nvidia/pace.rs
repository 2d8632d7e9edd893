//! Keeps the calls under a rate: no 60 s window ever holds more than so many.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A minute, and a margin for calls that take a little longer to arrive than the ones before.
const WINDOW: Duration = Duration::from_millis(60_500);

/// Hands out the times at which calls may be made. It keeps the times of the last `limit` calls:
/// a token bucket would let nearly twice as many into one window.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    times: Mutex<VecDeque<Instant>>,
}

impl Pace {
    pub(super) fn per_minute(limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, times: Mutex::new(VecDeque::new()) }
    }

    /// Takes the next free time; if that is not before the deadline, none is taken, and the error
    /// says how long to wait.
    pub(super) fn reserve(&self, now: Instant, deadline: Instant) -> Result<Instant, Duration> {
        // The queue is whole whatever panicked elsewhere.
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if times.len() < self.limit { None } else { times.front() };
        let time = oldest.map_or(now, |oldest| now.max(*oldest + WINDOW));
        if time >= deadline {
            return Err(time - now);
        }
        if times.len() >= self.limit {
            times.pop_front();
        }
        times.push_back(time);
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_window_of_a_minute_holds_more_calls_than_the_limit(
            gaps in proptest::collection::vec(0u64..5_000, 1..300),
            limit in 1u32..50,
        ) {
            let pace = Pace::per_minute(limit);
            let mut now = Instant::now();
            let mut times = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Ok(time) = pace.reserve(now, now + Duration::from_secs(60)) {
                    times.push(time);
                }
            }
            for window in times.windows(limit as usize + 1) {
                prop_assert!(window[limit as usize] - window[0] > Duration::from_secs(60));
            }
        }
    }

    #[test]
    fn who_cannot_be_served_in_time_is_told_how_long_to_wait() {
        let pace = Pace::per_minute(1);
        let now = Instant::now();
        let deadline = now + Duration::from_secs(30);
        assert_eq!(pace.reserve(now, deadline), Ok(now));
        assert_eq!(pace.reserve(now, deadline), Err(WINDOW));
        assert_eq!(pace.reserve(now + WINDOW, deadline + WINDOW), Ok(now + WINDOW));
    }
}
