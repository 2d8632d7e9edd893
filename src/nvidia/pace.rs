//! Keeps the calls under a rate: no window of a minute ever holds more than so many.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// A minute, and a margin for calls that take a little longer to arrive than the ones before.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// Hands out the times at which calls may be made, in order. It keeps the times of the calls of
/// the last window: a token bucket would let nearly twice as many into one.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    window: Duration,
    times: Mutex<VecDeque<Instant>>,
    /// Those who were told that there is time for them, and have not taken their turn yet.
    expected: AtomicUsize,
}

/// The place of one who will take a turn; given up when dropped.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a AtomicUsize);

/// The time of one call. Given back when dropped before it has come: a request that is given up
/// shall not cost the others a call.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pace: &'a Pace,
    time: Instant,
    is_taken: bool,
}

impl Pace {
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, window, times: Mutex::default(), expected: AtomicUsize::new(0) }
    }

    /// Takes a place if there will be time for a call, after all who have a place already; if
    /// not, the error says how long to wait. Who is told so at once need not wait in a line in vain.
    pub(super) fn expect(&self, now: Instant, deadline: Instant) -> Result<Place<'_>, Duration> {
        let time = self.forecast(now, self.expected.load(Ordering::Relaxed));
        if time >= deadline {
            return Err(time - now);
        }
        self.expected.fetch_add(1, Ordering::Relaxed);
        Ok(Place(&self.expected))
    }

    /// When a call could be made if so many others come before it.
    fn forecast(&self, now: Instant, ahead: usize) -> Instant {
        let times = self.times(now);
        let (mut place, mut wait) = (times.len() + ahead, Duration::ZERO);
        // Each call comes a window after the one that is `limit` before it.
        while place >= times.len() {
            let Some(before) = place.checked_sub(self.limit) else { return now + wait };
            (place, wait) = (before, wait + self.window);
        }
        times[place] + wait
    }

    /// Takes the next free time; if that is not before the deadline, none is taken, and the error
    /// says how long to wait.
    pub(super) fn reserve(&self, now: Instant, deadline: Instant) -> Result<Turn<'_>, Duration> {
        let mut times = self.times(now);
        // Never before those who came first, and a window after the call that is `limit` before it.
        let last = times.back().copied();
        let full = times.len().checked_sub(self.limit).map(|index| times[index] + self.window);
        let time = [last, full].into_iter().flatten().fold(now, Instant::max);
        if time >= deadline {
            return Err(time - now);
        }
        times.push_back(time);
        Ok(Turn { pace: self, time, is_taken: false })
    }

    /// The times of the calls that still count.
    fn times(&self, now: Instant) -> MutexGuard<'_, VecDeque<Instant>> {
        // The queue is whole whatever panicked elsewhere.
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        while times.front().is_some_and(|time| *time + self.window <= now) {
            times.pop_front();
        }
        times
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
            let mut times = self.pace.times(Instant::now());
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
            let pace = Pace::new(limit, WINDOW);
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
    fn those_who_have_a_place_count_before_they_take_their_turn() {
        let (pace, now) = (Pace::new(2, WINDOW), Instant::now());
        let deadline = now + Duration::from_secs(60);
        let places = [pace.expect(now, deadline).unwrap(), pace.expect(now, deadline).unwrap()];
        assert_eq!(pace.expect(now, deadline).unwrap_err(), WINDOW);
        drop(places);
        assert!(pace.expect(now, deadline).is_ok());
    }

    #[test]
    fn who_cannot_be_served_in_time_is_told_how_long_to_wait() {
        let (pace, now, patience) = (Pace::new(1, WINDOW), Instant::now(), Duration::from_secs(30));
        assert_eq!(take(&pace, now, patience), Ok(now));
        assert_eq!(take(&pace, now, patience), Err(WINDOW));
        assert_eq!(take(&pace, now + WINDOW, patience), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn a_forecast_is_what_those_ahead_make_of_it(
            (taken, ahead, limit) in (0usize..12, 0usize..12, 1u32..5),
        ) {
            let (pace, now) = (Pace::new(limit, WINDOW), Instant::now());
            let patience = WINDOW * 100;
            for _ in 0..taken {
                take(&pace, now, patience).unwrap();
            }
            let forecast = pace.forecast(now, ahead);
            for _ in 0..ahead {
                take(&pace, now, patience).unwrap();
            }
            prop_assert_eq!(take(&pace, now, patience), Ok(forecast));
        }
    }

    #[test]
    fn a_turn_that_is_given_up_is_free_again() {
        let (pace, now, patience) = (Pace::new(1, WINDOW), Instant::now(), Duration::from_secs(90));
        assert_eq!(take(&pace, now, patience), Ok(now));
        for _ in 0..10 {
            drop(pace.reserve(now, now + patience));
        }
        assert_eq!(take(&pace, now, patience), Ok(now + WINDOW));
    }
}
