//! Keeps calls below a rate: no window of a minute ever contains more than the limit.
//!
//! A call cannot be undone, and a client that is alone may use the whole rate. But a client that
//! has used half of a window's calls must leave room for others: if its next call would have to
//! wait, it is allowed only if others could still make a quarter of a window's calls before the
//! deadline.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::shares::{ClientNetwork, Tally};

/// A minute, and a margin in case a call takes longer to arrive at NVIDIA than the ones before it.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// Hands out the times of calls in order. It remembers the times of the last window's calls; a
/// token bucket would be simpler but allows nearly twice the limit within one window. Cheap to
/// clone; clones share the limit.
#[derive(Debug, Clone)]
pub(super) struct Pace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The calls in the current window: when each is made, and for which client.
    times: VecDeque<(Instant, ClientNetwork)>,
    /// Reserved calls that do not have a permit yet.
    reserved: Tally,
}

/// Reserved calls without a time yet. Dropping it frees the reservation.
#[derive(Debug)]
pub(super) struct ReservationGuard {
    pace: Arc<Inner>,
    client: ClientNetwork,
    count: usize,
}

/// Permission to call at a certain time. Dropping it earlier frees the time, so that a cancelled
/// request costs the others nothing.
#[derive(Debug)]
pub(super) struct PacePermit<'a> {
    pace: &'a Inner,
    client: ClientNetwork,
    time: Instant,
    is_used: bool,
}

impl Pace {
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self(Arc::new(Inner { limit, window, state: Mutex::default() }))
    }

    /// Reserves `count` calls if all of them can be made before the deadline, after all calls that
    /// are already reserved. Otherwise it reserves none, and the error is the time until the last
    /// of them could be made, so that a hopeless request fails at once instead of waiting in a
    /// queue first.
    pub(super) fn reserve(
        &self,
        client: ClientNetwork,
        count: usize,
        now: Instant,
        deadline: Instant,
    ) -> Result<ReservationGuard, Duration> {
        let mut state = self.0.state(now);
        self.0.check(&state, client, count, now, deadline)?;
        state.reserved.add(client, count as u64);
        Ok(ReservationGuard { pace: Arc::clone(&self.0), client, count })
    }

    /// The most calls, up to `at_most`, that one client could reserve within `time` if nobody else
    /// made any.
    pub(super) fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        let (state, now) = (State::default(), Instant::now());
        let fits = |count: &usize| {
            self.0.check(&state, ClientNetwork::UNKNOWN, *count, now, now + time).is_ok()
        };
        (1..=at_most).rev().find(fits).unwrap_or(0)
    }

    /// Takes the next free time. If it is not before the deadline, takes nothing and returns the
    /// time to wait.
    pub(super) fn take(
        &self,
        client: ClientNetwork,
        now: Instant,
        deadline: Instant,
    ) -> Result<PacePermit<'_>, Duration> {
        let times = &mut self.0.state(now).times;
        // Not before earlier calls, and one window after the call `limit` positions before it.
        let last = times.back().map(|(time, _)| *time);
        let full =
            times.len().checked_sub(self.0.limit).map(|index| times[index].0 + self.0.window);
        let time = [last, full].into_iter().flatten().fold(now, Instant::max);
        if time >= deadline {
            return Err(time - now);
        }
        times.push_back((time, client));
        Ok(PacePermit { pace: &self.0, client, time, is_used: false })
    }
}

impl Inner {
    /// Whether a client may reserve `count` calls; if not, the time until the last of them could
    /// be made. The module's documentation explains the rule.
    fn check(
        &self,
        state: &State,
        client: ClientNetwork,
        count: usize,
        now: Instant,
        deadline: Instant,
    ) -> Result<(), Duration> {
        let Some(before_last) = count.checked_sub(1) else { return Ok(()) };
        let last = self.forecast(state, now, before_last);
        let is_late = last >= deadline;
        let calls = state.calls_of(client) + before_last;
        let must_leave_room = last > now && calls >= self.limit.div_ceil(2);
        let leaves_room = || self.forecast(state, now, before_last + self.limit / 4) < deadline;
        if is_late || must_leave_room && !leaves_room() { Err(last - now) } else { Ok(()) }
    }

    /// When the next call can be made if `more` other calls come before it.
    fn forecast(&self, state: &State, now: Instant, more: usize) -> Instant {
        let State { times, reserved } = state;
        let ahead = usize::try_from(reserved.total()).unwrap_or(usize::MAX);
        let (mut position, mut wait) = (times.len() + ahead + more, Duration::ZERO);
        // Each call comes one window after the call `limit` positions before it.
        while position >= times.len() {
            let Some(before) = position.checked_sub(self.limit) else { return now + wait };
            (position, wait) = (before, wait + self.window);
        }
        times[position].0 + wait
    }

    /// The state without calls that have left the window.
    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        // The queue stays consistent even if a holder of the lock panicked.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.times.front().is_some_and(|(time, _)| *time + self.window <= now) {
            state.times.pop_front();
        }
        state
    }
}

impl State {
    /// The calls of a client, reserved ones included.
    fn calls_of(&self, client: ClientNetwork) -> usize {
        let reserved = usize::try_from(self.reserved.of(client)).unwrap_or(usize::MAX);
        self.times.iter().filter(|(_, of)| *of == client).count() + reserved
    }
}

impl ReservationGuard {
    /// Moves one call, if there is one left, to a reservation of its own.
    pub(super) fn split_one(&mut self) -> Self {
        let count = self.count.min(1);
        self.count -= count;
        Self { pace: Arc::clone(&self.pace), client: self.client, count }
    }
}

impl Drop for ReservationGuard {
    fn drop(&mut self) {
        self.pace.state(Instant::now()).reserved.remove(self.client, self.count as u64);
    }
}

impl PacePermit<'_> {
    /// Waits until the permitted time.
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

    /// Takes a permit and uses it.
    fn take(pace: &Pace, now: Instant, timeout: Duration) -> Result<Instant, Duration> {
        let mut permit = pace.take(ONE, now, now + timeout)?;
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
    fn reserved_calls_count_before_they_have_a_permit() {
        let (pace, now) = (Pace::new(2, WINDOW), Instant::now());
        let deadline = now + Duration::from_secs(60);
        let reservations = [
            pace.reserve(ONE, 1, now, deadline).unwrap(),
            pace.reserve(ONE, 1, now, deadline).unwrap(),
        ];
        assert_eq!(pace.reserve(ONE, 1, now, deadline).unwrap_err(), WINDOW);
        drop(reservations);
        assert!(pace.reserve(ONE, 1, now, deadline).is_ok());
    }

    #[test]
    fn who_cannot_be_served_in_time_learns_how_long_to_wait() {
        let (pace, now, timeout) = (Pace::new(1, WINDOW), Instant::now(), Duration::from_secs(30));
        assert_eq!(take(&pace, now, timeout), Ok(now));
        assert_eq!(take(&pace, now, timeout), Err(WINDOW));
        assert_eq!(take(&pace, now + WINDOW, timeout), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn a_forecast_matches_when_the_call_can_be_made(
            (taken, ahead, limit) in (0usize..12, 0usize..12, 1u32..5),
        ) {
            let (pace, now) = (Pace::new(limit, WINDOW), Instant::now());
            let timeout = WINDOW * 100;
            for _ in 0..taken {
                take(&pace, now, timeout).unwrap();
            }
            let forecast = pace.0.forecast(&pace.0.state(now), now, ahead);
            for _ in 0..ahead {
                take(&pace, now, timeout).unwrap();
            }
            prop_assert_eq!(take(&pace, now, timeout), Ok(forecast));
        }
    }

    #[test]
    fn the_time_of_a_dropped_permit_is_free_again() {
        let (pace, now, timeout) = (Pace::new(1, WINDOW), Instant::now(), Duration::from_secs(90));
        assert_eq!(take(&pace, now, timeout), Ok(now));
        for _ in 0..10 {
            drop(pace.take(ONE, now, now + timeout));
        }
        assert_eq!(take(&pace, now, timeout), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn one_client_alone_may_use_the_whole_pace_and_never_keeps_another_out(
            requests in proptest::collection::vec((0u64..8_000, 0usize..20), 1..200),
            limit in 4u32..50,
        ) {
            let pace = Pace::new(limit, WINDOW);
            // Slightly longer than a window: at the end of a full window nobody has any time left.
            let (mut now, timeout) = (Instant::now(), WINDOW + Duration::from_secs(1));
            let mut reservations = VecDeque::new();
            for (gap, kept) in requests {
                now += Duration::from_millis(gap);
                let waits = pace.0.forecast(&pace.0.state(now), now, 0) > now;
                match pace.reserve(ONE, 1, now, now + timeout) {
                    Ok(reservation) => reservations.push_back(reservation),
                    Err(_) => prop_assert!(waits, "a call that is free now is refused to nobody"),
                }
                prop_assert!(pace.reserve(OTHER, 1, now, now + timeout).is_ok());
                // Some take their permit at once, others wait in the queue first.
                while reservations.len() > kept {
                    drop(reservations.pop_front());
                    // It may be too late by now.
                    let _ = take(&pace, now, timeout);
                }
            }
        }
    }

    #[test]
    fn nothing_is_remembered_of_a_client_whose_calls_are_over() {
        let (pace, now) = (Pace::new(4, WINDOW), Instant::now());
        drop(pace.reserve(ONE, 1, now, now + WINDOW).unwrap());
        assert_eq!(take(&pace, now, WINDOW), Ok(now));
        let state = pace.0.state(now + WINDOW);
        assert!(state.times.is_empty() && format!("{:?}", state.reserved).contains("{}"));
    }
}
