//! Limits the calls to NVIDIA in any window: a period that is as long as [`WINDOW`].
//!
//! The limiter stores the times of the calls in the last window. A token bucket would be simpler, but it
//! allows nearly twice the limit within one window.
//!
//! Clients share the calls. The next call is made for the client with the fewest calls in the window, so
//! a new client does not wait behind the calls of others. After a client has made half of a window's
//! calls, its further calls are spread evenly, so that a new client soon finds a free call. (With several
//! replicas, or with [`Clients::One`], calls are spread earlier: see [`Rule::burst`].) Batches are an
//! exception: the calls of a batch are made at once if they all fit into the window.

use std::{
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::shares::{ClientNetwork, Clients};
use call_log::{Demand, Rule, TimedCall};
use shared::{AskGuard, SharedPace};
use state::{State, Step};

mod call_log;
mod permit;
mod shared;
mod state;

pub(super) use permit::{PacePermit, ReservationGuard};
pub(super) use shared::SharedLimit;

/// A minute and a margin. The margin is needed because two calls may take different times to arrive at
/// NVIDIA: they may arrive closer together than they were sent.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// A sliding-window limiter. Clones are cheap, and share the limit.
#[derive(Debug, Clone)]
pub(super) struct PaceLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rule: Rule,
    /// `None` if there is no Valkey.
    shared: Option<SharedPace>,
    state: Mutex<State>,
    /// Notified when a different waiting call may be the next one, or when the next one may be made
    /// earlier than before.
    changed: Notify,
}

/// A waiting call. Dropping the guard removes the call from the state.
struct WaitGuard<'a> {
    pace: &'a Inner,
    id: u64,
}

/// What the task of a waiting call does while the state is not locked.
enum Action<'a> {
    /// Waits until this time, or until the state changes.
    Wait(Instant),
    /// Asks the Valkey for a turn for the call.
    AskForTurn(AskGuard<'a>),
    /// Asks the Valkey which calls other replicas have made.
    AskForCalls(AskGuard<'a>),
}

impl PaceLimiter {
    /// A limiter of `calls_per_window` calls in any period of length `window`, which is [`WINDOW`] except
    /// in tests. With a Valkey, the limit is for the calls of all replicas together, and this must be
    /// called in a runtime.
    pub(super) fn new(
        calls_per_window: u32,
        window: Duration,
        clients: Clients,
        shared: Option<SharedLimit>,
    ) -> Self {
        let calls_per_window = usize::try_from(calls_per_window).unwrap_or(usize::MAX);
        // `replicas` stays 1 without a Valkey. With a Valkey, `apply_mode` sets it in the state's copy.
        let rule = Rule { calls_per_window, window, replicas: 1, clients };
        let inner = Arc::new(Inner {
            rule,
            shared: shared.map(|limit| SharedPace::new(limit, calls_per_window, window)),
            state: Mutex::new(State::new(rule, Instant::now())),
            changed: Notify::new(),
        });
        inner.start_call_recorder();
        Self(inner)
    }

    /// Reserves `count` calls of a client. Reserves either all `count` calls or none.
    ///
    /// # Errors
    /// How long the last of the calls would have to wait, if that is too long for the deadline. The
    /// request can then fail at once, before it waits in any queue.
    pub(super) fn reserve(
        &self,
        client_network: ClientNetwork,
        count: usize,
        now: Instant,
        deadline: Instant,
    ) -> Result<ReservationGuard, Duration> {
        let mut state = self.0.state(now);
        let is_spread = state.must_spread(count);
        let demand = Demand { client_network, is_spread, count };
        let last_call = state.expected_time(demand, now);
        if last_call >= deadline {
            return Err(last_call - now);
        }
        state.reserved.add(client_network, count as u64);
        Ok(ReservationGuard { pace: Arc::clone(&self.0), client_network, is_spread, count })
    }

    /// The most calls, up to `at_most`, that can be made for one client within `period` if no other calls
    /// are made. Assumes the whole limit: while the Valkey cannot be used, fewer are possible.
    pub(super) fn largest_reservation(&self, at_most: usize, period: Duration) -> usize {
        let now = Instant::now();
        let mut state = State::new(self.0.rule, now);
        let mut fits = |count: usize| {
            let (client_network, is_spread) = (ClientNetwork::UNKNOWN, state.must_spread(count));
            state.expected_time(Demand { client_network, is_spread, count }, now) < now + period
        };
        (1..=at_most).rev().find(|count| fits(*count)).unwrap_or(0)
    }

    /// Waits until a call may be made. `is_spread`, as in [`Demand`], is false only for a call of a batch
    /// whose calls all fit into the window.
    ///
    /// # Errors
    /// How long the call would have to wait, if that is too long for the deadline. This is usually
    /// known at once. Zero means that the deadline has passed.
    pub(super) async fn take_permit(
        &self,
        client_network: ClientNetwork,
        is_spread: bool,
        deadline: Instant,
    ) -> Result<PacePermit, Duration> {
        let guard = {
            let now = Instant::now();
            let mut state = self.0.state(now);
            let time = state.expected_time(Demand { client_network, is_spread, count: 1 }, now);
            if time >= deadline {
                return Err(time - now);
            }
            WaitGuard { pace: &self.0, id: state.enqueue(client_network, is_spread) }
        };
        let mut was_next = false;
        loop {
            // Starts to listen before it reads the state. Otherwise, a change between the two would not
            // end the wait.
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let now = Instant::now();
            if now >= deadline {
                return Err(Duration::ZERO);
            }
            let action = {
                let mut state = self.0.state(now);
                let step = state.step(guard.id, now);
                if step == Step::WaitForOthers {
                    // If this call was the next one before, another call may be the next one now, for
                    // example because an old call has left the window. The other call's task must wake up.
                    if mem::take(&mut was_next) {
                        self.0.changed.notify_waiters();
                    }
                } else {
                    was_next = true;
                }
                match (step, &self.0.shared) {
                    // The calls of other replicas may delay this call past its deadline.
                    (Step::Wait { earliest, .. }, Some(_)) if earliest >= deadline => {
                        return Err(earliest - now);
                    }
                    (Step::Wait { until, .. }, _) => Action::Wait(until),
                    (Step::WaitForOthers, _) => Action::Wait(deadline),
                    (Step::AskForTurn, Some(shared)) => {
                        Action::AskForTurn(AskGuard::new(&self.0, shared, &mut state))
                    }
                    (Step::AskForCalls, Some(shared)) => {
                        Action::AskForCalls(AskGuard::new(&self.0, shared, &mut state))
                    }
                    // Only `Call` reaches this arm. The other two steps occur only with a Valkey. The arms
                    // above match them then.
                    (Step::Call | Step::AskForTurn | Step::AskForCalls, _) => {
                        let client_network = Some(client_network);
                        let call = TimedCall { time: now, id: guard.id, client_network };
                        state.log.record(call);
                        let pace = Arc::clone(&self.0);
                        return Ok(PacePermit { pace, call, asked: None, is_done: false });
                    }
                }
            };
            let wake = match action {
                Action::Wait(until) => until,
                Action::AskForTurn(ask) => {
                    match self.0.take_turn(ask, guard.id, client_network).await {
                        Some(permit) => return Ok(permit),
                        None => continue,
                    }
                }
                Action::AskForCalls(ask) => {
                    self.0.ask_for_calls(ask).await;
                    continue;
                }
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(wake.min(deadline)) => {}
            }
        }
    }

    /// The most calls that this replica may make in a window now. While the Valkey cannot be used, and
    /// shortly after, this is the replica's share of the limit, otherwise the whole limit.
    pub(super) fn limit(&self) -> usize {
        self.0.state(Instant::now()).limit()
    }

    /// The number of calls that wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.0.state(Instant::now()).waiting()
    }
}

impl Inner {
    /// Locks the state, forgets the calls that are older than a window, and sets the limit that applies
    /// now.
    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        // The state is consistent even if a thread panicked while it held the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.log.expire(now);
        self.apply_mode(&mut state, now);
        state
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.pace.state(Instant::now()).dequeue(self.id);
        self.pace.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
