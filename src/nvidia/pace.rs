//! Limits the calls to NVIDIA in any period of one minute. Such a period is called a window.
//!
//! The limiter stores the times of the calls in the last window. A token bucket would be simpler, but it
//! allows nearly twice the limit within one window.
//!
//! Clients share the calls. The next call is made for the client with the fewest calls in the window, so
//! a new client does not wait behind the calls of others. After a client has made half of a window's
//! calls, its further calls are spread evenly, so that a new client soon finds a free call. The calls of
//! a batch are made at once if they all fit into the window.

use std::{
    collections::VecDeque,
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::shares::{ClientNetwork, Clients, Tally};
use call_log::{CallLog, Demand, Rule, TimedCall};

mod call_log;

/// A minute and a margin. The margin is needed because two calls may take different times to arrive at
/// NVIDIA: they may arrive closer together than they were sent.
pub const WINDOW: Duration = Duration::from_millis(60_500);

/// A sliding-window limiter. Clones are cheap, and share the limit.
#[derive(Debug, Clone)]
pub(super) struct PaceLimiter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rule: Rule,
    state: Mutex<State>,
    /// Notified when another waiting call may have become the next one, or may be made earlier than
    /// before.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    log: CallLog,
    /// The number of each client's reserved calls that do not wait for a permit yet.
    reserved: Tally,
    /// The clients with calls that wait for a permit, in the order of their arrival.
    waiting: Vec<ClientQueue>,
    next_id: u64,
}

/// A client's waiting calls.
#[derive(Debug)]
struct ClientQueue {
    client_network: ClientNetwork,
    /// As in [`Demand`]: whether the calls are spread.
    is_spread: bool,
    /// The ids of the calls, in the order of their arrival.
    ids: VecDeque<u64>,
}

/// A call in [`State::waiting`]. Dropping the guard removes the call.
struct WaitGuard<'a> {
    pace: &'a Inner,
    id: u64,
}

/// Reserved calls that do not wait for a permit yet. Dropping the guard frees the reservation.
#[derive(Debug)]
pub(super) struct ReservationGuard {
    pace: Arc<Inner>,
    client_network: ClientNetwork,
    is_spread: bool,
    count: usize,
}

/// Permission to make a call now or later. Dropping an unused permit allows another call instead.
#[derive(Debug)]
pub(super) struct PacePermit {
    pace: Arc<Inner>,
    call: TimedCall,
    is_used: bool,
}

impl PaceLimiter {
    /// A limiter of `calls_per_window` calls in any period of length `window`.
    pub(super) fn new(calls_per_window: u32, window: Duration, clients: Clients) -> Self {
        let calls_per_window = usize::try_from(calls_per_window).unwrap_or(usize::MAX);
        let rule = Rule { calls_per_window, window, clients };
        Self(Arc::new(Inner { rule, state: Mutex::new(State::new(rule)), changed: Notify::new() }))
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

    /// The most calls, up to `at_most`, that one client can reserve within `period` while no other
    /// calls are made.
    pub(super) fn largest_reservation(&self, at_most: usize, period: Duration) -> usize {
        let (mut state, now) = (State::new(self.0.rule), Instant::now());
        let mut fits = |count: usize| {
            let (client_network, is_spread) = (ClientNetwork::UNKNOWN, state.must_spread(count));
            state.expected_time(Demand { client_network, is_spread, count }, now) < now + period
        };
        (1..=at_most).rev().find(|count| fits(*count)).unwrap_or(0)
    }

    /// Waits until a call may be made. `is_spread` is false only for a call of a batch whose calls all
    /// fit into the window.
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
            let wake = {
                let mut state = self.0.state(now);
                match state.next(now) {
                    Some((id, time)) if id == guard.id => {
                        was_next = true;
                        if time <= now {
                            let call = TimedCall { time: now, client_network };
                            state.log.record(call);
                            let pace = Arc::clone(&self.0);
                            return Ok(PacePermit { pace, call, is_used: false });
                        }
                        state.log.next_expiry().map_or(time, |expiry| expiry.min(time))
                    }
                    _ => {
                        // This call was the next one. After an expiry, another call may be the next one,
                        // and its task must wake up.
                        if mem::take(&mut was_next) {
                            self.0.changed.notify_waiters();
                        }
                        deadline
                    }
                }
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(wake.min(deadline)) => {}
            }
        }
    }

    /// The number of calls that wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.0.state(Instant::now()).waiting.iter().map(|queue| queue.ids.len()).sum()
    }
}

impl Inner {
    /// Locks the state, and removes the calls that are older than a window.
    fn state(&self, now: Instant) -> MutexGuard<'_, State> {
        // The state is consistent even if a thread panicked while it held the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.log.expire(now);
        state
    }
}

impl State {
    fn new(rule: Rule) -> Self {
        let (reserved, waiting) = Default::default();
        Self { log: CallLog::new(rule), reserved, waiting, next_id: 0 }
    }

    /// Adds a waiting call, and returns its id.
    fn enqueue(&mut self, client_network: ClientNetwork, is_spread: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut queues = self.waiting.iter_mut();
        let same = |queue: &&mut ClientQueue| {
            (queue.client_network, queue.is_spread) == (client_network, is_spread)
        };
        match queues.find(same) {
            Some(queue) => queue.ids.push_back(id),
            None => {
                self.waiting.push(ClientQueue { client_network, is_spread, ids: [id].into() });
            }
        }
        id
    }

    fn dequeue(&mut self, id: u64) {
        for queue in &mut self.waiting {
            queue.ids.retain(|known| *known != id);
        }
        self.waiting.retain(|queue| !queue.ids.is_empty());
    }

    /// The waiting call that is made next, and its earliest time.
    fn next(&self, now: Instant) -> Option<(u64, Instant)> {
        let (index, time) = self.log.next(self.waiting.iter().map(ClientQueue::demand), now)?;
        Some((*self.waiting.get(index)?.ids.front()?, time))
    }

    /// Whether the calls of a request with `count` calls are spread. This is so for a single call, and
    /// for a batch that does not fit into the window.
    fn must_spread(&self, count: usize) -> bool {
        let waiting: usize = self.waiting.iter().map(|queue| queue.ids.len()).sum();
        let reserved = usize::try_from(self.reserved.total()).unwrap_or(usize::MAX);
        count <= 1 || !self.log.fits(waiting.saturating_add(reserved).saturating_add(count))
    }

    /// When the last call of a new demand can be made, if all waiting and reserved calls are made.
    fn expected_time(&mut self, demand: Demand, now: Instant) -> Instant {
        let waiting = self.waiting.iter().map(ClientQueue::demand);
        let reserved = self.reserved.iter().map(|(client_network, count)| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            Demand { client_network, is_spread: true, count }
        });
        // The client's earlier calls come before its new ones, so both are one demand.
        let (of_client, mut demands): (Vec<_>, Vec<_>) = waiting
            .chain(reserved)
            .partition(|other| other.client_network == demand.client_network);
        let earlier: usize = of_client.iter().map(|other| other.count).sum();
        demands.push(Demand { count: earlier.saturating_add(demand.count), ..demand });
        self.log.expected_time(demands, now)
    }
}

impl ClientQueue {
    fn demand(&self) -> Demand {
        let Self { client_network, is_spread, ref ids } = *self;
        Demand { client_network, is_spread, count: ids.len() }
    }
}

impl ReservationGuard {
    /// The argument of [`PaceLimiter::take_permit`] for the reserved calls.
    pub(super) fn is_spread(&self) -> bool {
        self.is_spread
    }

    /// Moves one of the reserved calls, if any is left, to a guard of its own.
    pub(super) fn split_one(&mut self) -> Self {
        let count = self.count.min(1);
        self.count -= count;
        Self { pace: Arc::clone(&self.pace), count, ..*self }
    }
}

impl Drop for ReservationGuard {
    fn drop(&mut self) {
        let count = self.count as u64;
        self.pace.state(Instant::now()).reserved.remove(self.client_network, count);
        self.pace.changed.notify_waiters();
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.pace.state(Instant::now()).dequeue(self.id);
        self.pace.changed.notify_waiters();
    }
}

impl PacePermit {
    /// Uses the permit for a call that is made now. The call counts from now on, and not from when the
    /// permit was taken: the window would otherwise end too early.
    pub(super) fn use_now(mut self) {
        self.is_used = true;
        let now = Instant::now();
        let mut state = self.pace.state(now);
        state.log.remove(self.call);
        state.log.record(TimedCall { time: now, ..self.call });
    }
}

impl Drop for PacePermit {
    fn drop(&mut self) {
        if !self.is_used {
            self.pace.state(Instant::now()).log.remove(self.call);
            self.pace.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests;
