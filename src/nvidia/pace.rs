//! Keeps the calls under a rate: no 60 s window ever holds more than so many.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// A minute, and a margin for calls that take a little longer to arrive than the ones before.
const WINDOW: Duration = Duration::from_millis(60_500);

/// Hands out the times at which calls may be made, in order. It keeps the times of the calls of
/// the last window: a token bucket would let nearly twice as many into one.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    times: Mutex<VecDeque<Instant>>,
}

/// The time of one call. Given back when dropped before it has come: a request that is given up
/// shall not cost the others a call.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pace: &'a Pace,
    time: Instant,
    is_taken: bool,
}

impl Pace {
    pub(super) fn per_minute(limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, times: Mutex::default() }
    }

    /// Takes the next free time; if that is not before the deadline, none is taken, and the error
    /// says how long to wait.
    pub(super) fn reserve(&self, now: Instant, deadline: Instant) -> Result<Turn<'_>, Duration> {
        let mut times = self.times();
        while times.front().is_some_and(|time| *time + WINDOW <= now) {
            times.pop_front();
        }
        // Never before those who came first, and a window after the call that is `limit` before it.
        let last = times.back().copied();
        let full = times.len().checked_sub(self.limit).map(|index| times[index] + WINDOW);
        let time = [last, full].into_iter().flatten().fold(now, Instant::max);
        if time >= deadline {
            return Err(time - now);
        }
        times.push_back(time);
        Ok(Turn { pace: self, time, is_taken: false })
    }

    fn times(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        // The queue is whole whatever panicked elsewhere.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Waits until the time has come.
    pub(super) async fn wait(mut self) {
        sleep_until(self.time).await;
        self.is_taken = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            let mut times = self.pace.times();
            if let Some(index) = times.iter().rposition(|time| *time == self.time) {
                times.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a turn for good.
    fn take(pace: &Pace, now: Instant, patience: Duration) -> Result<Instant, Duration> {
        let mut turn = pace.reserve(now, now + patience)?;
        turn.is_taken = true;
        Ok(turn.time)
    }

    proptest! {
        #[test]
        fn no_window_of_a_minute_holds_more_calls_than_the_limit(
            requests in proptest::collection::vec((0u64..5_000, any::<bool>()), 1..300),
            limit in 1u32..50,
        ) {
            let pace = Pace::per_minute(limit);
            let mut now = Instant::now();
            let mut times = Vec::new();
            for (gap, is_given_up) in requests {
                now += Duration::from_millis(gap);
                if is_given_up {
                    drop(pace.reserve(now, now + Duration::from_secs(60)));
                } else if let Ok(time) = take(&pace, now, Duration::from_secs(60)) {
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
        let (pace, now, patience) = (Pace::per_minute(1), Instant::now(), Duration::from_secs(30));
        assert_eq!(take(&pace, now, patience), Ok(now));
        assert_eq!(take(&pace, now, patience), Err(WINDOW));
        assert_eq!(take(&pace, now + WINDOW, patience), Ok(now + WINDOW));
    }

    #[test]
    fn a_turn_that_is_given_up_is_free_again() {
        let (pace, now, patience) = (Pace::per_minute(1), Instant::now(), Duration::from_secs(90));
        assert_eq!(take(&pace, now, patience), Ok(now));
        for _ in 0..10 {
            drop(pace.reserve(now, now + patience));
        }
        assert_eq!(take(&pace, now, patience), Ok(now + WINDOW));
    }
}
