//! Keeps the calls under a rate: no window of a minute ever holds more than so many.
//!
//! A call that was made cannot be taken back, and a client that is alone may use all of them at
//! once. But one that has half of a window's calls makes the others wait no longer than they can:
//! what it must itself wait for, it gets only while a quarter of a window is left to them in time.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::shares::{ClientNetwork, Tally};

/// A minute, and a margin for calls that take a little longer to arrive than the ones before.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// Hands out the times at which calls may be made, in order. It keeps the times of the calls of
/// the last window: a token bucket would let nearly twice as many into one.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The calls that count: when they are made, and for whom.
    times: VecDeque<(Instant, ClientNetwork)>,
    /// Those who were told that there is time for them, and have not taken their turn yet.
    reserved: Tally,
}

/// The position of one who will take a turn; given up when dropped.
#[derive(Debug)]
pub(super) struct ReservationGuard<'a> {
    pace: &'a Pace,
    client: ClientNetwork,
}

/// The time of one call. Given back when dropped before it has come: a request that is given up
/// shall not cost the others a call.
#[derive(Debug)]
pub(super) struct PacePermit<'a> {
    pace: &'a Pace,
    client: ClientNetwork,
    time: Instant,
    is_used: bool,
}

impl Pace {
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, window, state: Mutex::default() }
    }

    /// Takes a position if there will be time for a call, after all who have a position already; if
    /// not, the error says how long to wait. Who is told so at once need not wait in a queue in vain.
    pub(super) fn reserve(
        &self,
        client: ClientNetwork,
        now: Instant,
        deadline: Instant,
    ) -> Result<ReservationGuard<'_>, Duration> {
        let mut state = self.state(now);
        let time = self.forecast(&state, now, 0);
        let is_late = time >= deadline;
        let must_leave = time > now && state.calls_of(client) >= self.limit.div_ceil(2);
        if is_late || must_leave && self.forecast(&state, now, self.limit / 4) >= deadline {
            return Err(time - now);
        }
        state.reserved.add(client, 1);
        Ok(ReservationGuard { pace: self, client })
    }

    /// When a call could be made if so many others still come before it.
    fn forecast(&self, state: &State, now: Instant, more: usize) -> Instant {
        let State { times, reserved } = state;
        let ahead = usize::try_from(reserved.total()).unwrap_or(usize::MAX);
        let (mut position, mut wait) = (times.len() + ahead + more, Duration::ZERO);
        // Each call comes a window after the one that is `limit` before it.
        while position >= times.len() {
            let Some(before) = position.checked_sub(self.limit) else { return now + wait };
            (position, wait) = (before, wait + self.window);
        }
        times[position].0 + wait
    }

    /// Takes the next free time; if that is not before the deadline, none is taken, and the error
    /// says how long to wait.
    pub(super) fn take(
        &self,
        client: ClientNetwork,
        now: Instant,
        deadline: Instant,
    ) -> Result<PacePermit<'_>, Duration> {
        let times = &mut self.state(now).times;
        // Never before those who came first, and a window after the call that is `limit` before it.
        let last = times.back().map(|(time, _)| *time);
        let full = times.len().checked_sub(self.limit).map(|index| times[index].0 + self.window);
        let time = [last, full].into_iter().flatten().fold(now, Instant::max);
        if time >= deadline {
            return Err(time - now);
        }
        times.push_back((time, client));
        Ok(PacePermit { pace: self, client, time, is_used: false })
    }

    /// What counts now.
    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        // The queue is whole whatever panicked elsewhere.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.times.front().is_some_and(|(time, _)| *time + self.window <= now) {
            state.times.pop_front();
        }
        state
    }
}

impl State {
    /// A client's calls, those that are reserved included.
    fn calls_of(&self, client: ClientNetwork) -> usize {
        let reserved = usize::try_from(self.reserved.of(client)).unwrap_or(usize::MAX);
        self.times.iter().filter(|(_, of)| *of == client).count() + reserved
    }
}

impl Drop for ReservationGuard<'_> {
    fn drop(&mut self) {
        self.pace.state(Instant::now()).reserved.remove(self.client, 1);
    }
}

impl PacePermit<'_> {
    /// Waits until the time has come.
    pub(super) async fn wait(mut self) {
        sleep_until(self.time).await;
        self.is_used = true;
    }
}

impl Drop for PacePermit<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            let times = &mut self.pace.state(Instant::now()).times;
            if let Some(index) = times.iter().rposition(|call| *call == (self.time, self.client)) {
                times.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const ONE: ClientNetwork = ClientNetwork::UNKNOWN;
    const OTHER: ClientNetwork = ClientNetwork(IpAddr::V6(Ipv6Addr::LOCALHOST));

    /// Takes a turn for good.
    fn take(pace: &Pace, now: Instant, patience: Duration) -> Result<Instant, Duration> {
        let mut permit = pace.take(ONE, now, now + patience)?;
        permit.is_used = true;
        Ok(permit.time)
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
                    drop(pace.take(ONE, now, now + Duration::from_secs(60)));
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
        let reservations =
            [pace.reserve(ONE, now, deadline).unwrap(), pace.reserve(ONE, now, deadline).unwrap()];
        assert_eq!(pace.reserve(ONE, now, deadline).unwrap_err(), WINDOW);
        drop(reservations);
        assert!(pace.reserve(ONE, now, deadline).is_ok());
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
            let forecast = pace.forecast(&pace.state(now), now, ahead);
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
            drop(pace.take(ONE, now, now + patience));
        }
        assert_eq!(take(&pace, now, patience), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn one_client_alone_may_call_as_often_as_the_pace_allows_and_never_keeps_another_out(
            requests in proptest::collection::vec((0u64..8_000, 0usize..20), 1..200),
            limit in 4u32..50,
        ) {
            let pace = Pace::new(limit, WINDOW);
            // A little longer than the window: in the last moment of a full window there is no
            // time left for anybody.
            let (mut now, patience) = (Instant::now(), WINDOW + Duration::from_secs(1));
            let mut reservations = VecDeque::new();
            for (gap, kept) in requests {
                now += Duration::from_millis(gap);
                let waits = pace.forecast(&pace.state(now), now, 0) > now;
                match pace.reserve(ONE, now, now + patience) {
                    Ok(reservation) => reservations.push_back(reservation),
                    Err(_) => prop_assert!(waits, "what is free now is anybody's"),
                }
                prop_assert!(pace.reserve(OTHER, now, now + patience).is_ok());
                // Some take their turn at once, others wait for a permit first.
                while reservations.len() > kept {
                    drop(reservations.pop_front());
                    // It may have become too late for it.
                    let _ = take(&pace, now, patience);
                }
            }
        }
    }

    #[test]
    fn nothing_is_kept_of_a_client_whose_calls_are_over() {
        let (pace, now) = (Pace::new(4, WINDOW), Instant::now());
        drop(pace.reserve(ONE, now, now + WINDOW).unwrap());
        assert_eq!(take(&pace, now, WINDOW), Ok(now));
        let state = pace.state(now + WINDOW);
        assert!(state.times.is_empty() && format!("{:?}", state.reserved).contains("{}"));
    }
}
