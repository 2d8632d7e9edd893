//! Limits the calls to NVIDIA in any period of one minute, which is called a window.
//!
//! While only one client makes calls, it may make all calls of a window. A client that has made half
//! of a window's calls must leave capacity for other clients: if its next call cannot be made at
//! once, the call is allowed only if other clients could then still make a quarter of a window's
//! calls before the deadline.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::shares::{ClientNetwork, Tally};

/// A minute and a margin. The margin is needed because a call may take longer to arrive at NVIDIA than
/// the next call: the two then arrive closer together than they were sent.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// A sliding-window limiter: assigns to each call, in the order of the requests, the time at which the
/// call may be made.
///
/// The limiter stores the times of the last window's calls. A token bucket would be simpler, but it
/// allows nearly twice the limit within one window. Clones are cheap, and share the limit.
#[derive(Debug, Clone)]
pub(super) struct PaceLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    calls_per_window: usize,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The calls of the last window, and the calls that have a permit for a later time. Sorted by
    /// time.
    calls: VecDeque<TimedCall>,
    /// The number of each client's reserved calls that do not have a permit yet.
    reserved: Tally,
}

/// The time of a call, and the client network that it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TimedCall {
    time: Instant,
    client_network: ClientNetwork,
}

/// Reserved calls that do not have a permit yet. Dropping the guard frees the reservation.
#[derive(Debug)]
pub(super) struct ReservationGuard {
    pace: Arc<Inner>,
    client_network: ClientNetwork,
    count: usize,
}

/// Permission to make a call at a certain time. If the permit is dropped before that time, another
/// call may use the time.
#[derive(Debug)]
pub(super) struct PacePermit<'a> {
    pace: &'a Inner,
    call: TimedCall,
    is_used: bool,
}

impl PaceLimiter {
    pub(super) fn new(calls_per_window: u32, window: Duration) -> Self {
        let calls_per_window = usize::try_from(calls_per_window).unwrap_or(usize::MAX);
        Self(Arc::new(Inner { calls_per_window, window, state: Mutex::default() }))
    }

    /// Reserves `count` calls, which come after all calls that are already reserved. Reserves either
    /// all `count` calls or none.
    ///
    /// # Errors
    /// How long the last of the calls would have to wait, if that is not allowed or too long for the
    /// deadline. The request can then fail at once, before it waits in any queue.
    pub(super) fn reserve(
        &self,
        client_network: ClientNetwork,
        count: usize,
        now: Instant,
        deadline: Instant,
    ) -> Result<ReservationGuard, Duration> {
        let mut state = self.0.state(now);
        self.0.check(&state, client_network, count, now, deadline)?;
        state.reserved.add(client_network, count as u64);
        Ok(ReservationGuard { pace: Arc::clone(&self.0), client_network, count })
    }

    /// The most calls, up to `at_most`, that one client can reserve within `time` while no other
    /// calls are made.
    pub(super) fn largest_reservation(&self, at_most: usize, time: Duration) -> usize {
        let (state, now) = (State::default(), Instant::now());
        let fits = |count: &usize| {
            self.0.check(&state, ClientNetwork::UNKNOWN, *count, now, now + time).is_ok()
        };
        (1..=at_most).rev().find(fits).unwrap_or(0)
    }

    /// Takes a permit for a call at the next free time.
    ///
    /// # Errors
    /// How long the call would have to wait, if the next free time is not before the deadline. Then
    /// no permit is taken.
    pub(super) fn take_permit(
        &self,
        client_network: ClientNetwork,
        now: Instant,
        deadline: Instant,
    ) -> Result<PacePermit<'_>, Duration> {
        let calls = &mut self.0.state(now).calls;
        let mut time = now;
        if let Some(last) = calls.back() {
            time = time.max(last.time);
        }
        // At least one window after the call that is `calls_per_window` positions before this call.
        if let Some(index) = calls.len().checked_sub(self.0.calls_per_window) {
            time = time.max(calls[index].time + self.0.window);
        }
        if time >= deadline {
            return Err(time - now);
        }
        let call = TimedCall { time, client_network };
        calls.push_back(call);
        Ok(PacePermit { pace: &self.0, call, is_used: false })
    }
}

impl Inner {
    /// Checks whether a client may make `count` more calls before the deadline. The module's
    /// documentation explains the rule.
    ///
    /// # Errors
    /// How long the last of the calls would have to wait.
    fn check(
        &self,
        state: &State,
        client_network: ClientNetwork,
        count: usize,
        now: Instant,
        deadline: Instant,
    ) -> Result<(), Duration> {
        let Some(calls_before) = count.checked_sub(1) else { return Ok(()) };
        let time = self.expected_time(state, now, calls_before);
        let own_calls = state.calls_of(client_network) + calls_before;
        let must_leave_capacity = time > now && own_calls >= self.calls_per_window.div_ceil(2);
        let quarter = self.calls_per_window / 4;
        if time >= deadline
            || must_leave_capacity
                && self.expected_time(state, now, calls_before + quarter) >= deadline
        {
            return Err(time - now);
        }
        Ok(())
    }

    /// When a new call can be made, if all reserved calls and `calls_before` further calls are made
    /// before the new call.
    fn expected_time(&self, state: &State, now: Instant, calls_before: usize) -> Instant {
        let State { calls, reserved } = state;
        let reserved = usize::try_from(reserved.total()).unwrap_or(usize::MAX);
        let (mut position, mut wait) = (calls.len() + reserved + calls_before, Duration::ZERO);
        // Goes back to a call whose time is known, in steps of `calls_per_window` positions: a call
        // is made one window after the call that is `calls_per_window` positions before it.
        while position >= calls.len() {
            let Some(earlier) = position.checked_sub(self.calls_per_window) else {
                return now + wait;
            };
            (position, wait) = (earlier, wait + self.window);
        }
        calls[position].time + wait
    }

    /// Locks the state, and removes the calls that are older than a window.
    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        // The state is consistent even if a thread panicked while it held the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.calls.front().is_some_and(|call| call.time + self.window <= now) {
            state.calls.pop_front();
        }
        state
    }
}

impl State {
    /// The number of a client's calls, including its reserved calls.
    fn calls_of(&self, client_network: ClientNetwork) -> usize {
        let reserved = usize::try_from(self.reserved.of(client_network)).unwrap_or(usize::MAX);
        let timed = self.calls.iter().filter(|call| call.client_network == client_network);
        timed.count() + reserved
    }
}

impl ReservationGuard {
    /// Moves one of the reserved calls, if any is left, to a guard of its own.
    pub(super) fn split_one(&mut self) -> Self {
        let count = self.count.min(1);
        self.count -= count;
        Self { pace: Arc::clone(&self.pace), client_network: self.client_network, count }
    }
}

impl Drop for ReservationGuard {
    fn drop(&mut self) {
        let count = self.count as u64;
        self.pace.state(Instant::now()).reserved.remove(self.client_network, count);
    }
}

impl PacePermit<'_> {
    /// Waits until the time of the call.
    pub(super) async fn wait(mut self) {
        sleep_until(self.call.time).await;
        self.is_used = true;
    }
}

impl Drop for PacePermit<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            let calls = &mut self.pace.state(Instant::now()).calls;
            if let Some(index) = calls.iter().rposition(|call| *call == self.call) {
                calls.remove(index);
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

    /// Takes a permit and uses it. Returns the time of the call.
    fn use_permit(
        pace: &PaceLimiter,
        now: Instant,
        timeout: Duration,
    ) -> Result<Instant, Duration> {
        let mut permit = pace.take_permit(ONE, now, now + timeout)?;
        permit.is_used = true;
        Ok(permit.call.time)
    }

    proptest! {
        #[test]
        fn no_minute_contains_more_calls_than_the_limit(
            requests in proptest::collection::vec((0u64..5_000, any::<bool>()), 1..300),
            limit in 1u32..50,
        ) {
            let pace = PaceLimiter::new(limit, WINDOW);
            let mut now = Instant::now();
            let mut times = Vec::new();
            for (millis_since_last, is_cancelled) in requests {
                now += Duration::from_millis(millis_since_last);
                if is_cancelled {
                    drop(pace.take_permit(ONE, now, now + Duration::from_secs(60)));
                } else if let Ok(time) = use_permit(&pace, now, Duration::from_secs(60)) {
                    times.push(time);
                }
            }
            for window in times.windows(limit as usize + 1) {
                prop_assert!(window[limit as usize] - window[0] > Duration::from_secs(60));
            }
        }
    }

    #[test]
    fn a_reserved_call_counts_before_it_has_a_permit() {
        let (pace, now) = (PaceLimiter::new(2, WINDOW), Instant::now());
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
    fn a_call_that_cannot_be_made_in_time_fails_with_the_time_to_wait() {
        let (pace, now, timeout) =
            (PaceLimiter::new(1, WINDOW), Instant::now(), Duration::from_secs(30));
        assert_eq!(use_permit(&pace, now, timeout), Ok(now));
        assert_eq!(use_permit(&pace, now, timeout), Err(WINDOW));
        assert_eq!(use_permit(&pace, now + WINDOW, timeout), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn a_call_is_made_at_its_expected_time(
            (earlier_calls, calls_before, limit) in (0usize..12, 0usize..12, 1u32..5),
        ) {
            let (pace, now) = (PaceLimiter::new(limit, WINDOW), Instant::now());
            let timeout = WINDOW * 100;
            for _ in 0..earlier_calls {
                use_permit(&pace, now, timeout).unwrap();
            }
            let expected_time = pace.0.expected_time(&pace.0.state(now), now, calls_before);
            for _ in 0..calls_before {
                use_permit(&pace, now, timeout).unwrap();
            }
            prop_assert_eq!(use_permit(&pace, now, timeout), Ok(expected_time));
        }
    }

    #[test]
    fn another_call_may_use_the_time_of_a_dropped_permit() {
        let (pace, now, timeout) =
            (PaceLimiter::new(1, WINDOW), Instant::now(), Duration::from_secs(90));
        assert_eq!(use_permit(&pace, now, timeout), Ok(now));
        for _ in 0..10 {
            drop(pace.take_permit(ONE, now, now + timeout));
        }
        assert_eq!(use_permit(&pace, now, timeout), Ok(now + WINDOW));
    }

    proptest! {
        #[test]
        fn a_client_may_use_all_free_calls_and_another_client_can_still_reserve_one(
            requests in proptest::collection::vec((0u64..8_000, 0usize..20), 1..200),
            limit in 4u32..50,
        ) {
            let pace = PaceLimiter::new(limit, WINDOW);
            // Longer than a window, because a call may have to wait for a whole window.
            let (mut now, timeout) = (Instant::now(), WINDOW + Duration::from_secs(1));
            let mut reservations = VecDeque::new();
            for (millis_since_last, max_reservations) in requests {
                now += Duration::from_millis(millis_since_last);
                let must_wait = pace.0.expected_time(&pace.0.state(now), now, 0) > now;
                match pace.reserve(ONE, 1, now, now + timeout) {
                    Ok(reservation) => reservations.push_back(reservation),
                    Err(_) => prop_assert!(must_wait, "a call that need not wait must be allowed"),
                }
                prop_assert!(pace.reserve(OTHER, 1, now, now + timeout).is_ok());
                // Some requests take their permit at once. Other requests wait in the queue first.
                while reservations.len() > max_reservations {
                    drop(reservations.pop_front());
                    // This fails if the request waited too long in the queue.
                    let _ = use_permit(&pace, now, timeout);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn calls_that_are_reserved_together_can_all_be_made_before_the_deadline(
            (earlier_calls, count) in (0usize..30, 1usize..30), limit in 1u32..10, seconds in 1u64..400,
        ) {
            let (pace, now) = (PaceLimiter::new(limit, WINDOW), Instant::now());
            for _ in 0..earlier_calls {
                use_permit(&pace, now, WINDOW * 100).unwrap();
            }
            let time = Duration::from_secs(seconds);
            if let Ok(reservation) = pace.reserve(ONE, count, now, now + time) {
                drop(reservation);
                for _ in 0..count {
                    prop_assert!(use_permit(&pace, now, time).is_ok());
                }
            }
            let unused = PaceLimiter::new(limit, WINDOW);
            let largest = unused.largest_reservation(100, time);
            prop_assert!(unused.reserve(ONE, largest, now, now + time).is_ok());
            prop_assert!(largest == 100 || unused.reserve(ONE, largest + 1, now, now + time).is_err());
        }
    }

    #[test]
    fn nothing_is_stored_about_a_client_one_window_after_its_last_call() {
        let (pace, now) = (PaceLimiter::new(4, WINDOW), Instant::now());
        drop(pace.reserve(ONE, 1, now, now + WINDOW).unwrap());
        assert_eq!(use_permit(&pace, now, WINDOW), Ok(now));
        let state = pace.0.state(now + WINDOW);
        assert!(state.calls.is_empty() && format!("{:?}", state.reserved).contains("{}"));
    }
}
