//! Stores the calls of the last window, and decides which call is next and when. A window is any period
//! of the length [`Rule::window`]. Nothing here reads the clock: the time is an argument. Calls of other
//! replicas count toward the limit, but not for any of this replica's clients.

use std::{
    collections::{HashMap, VecDeque},
    iter,
    time::Duration,
};

use tokio::time::Instant;

use crate::shares::{ClientNetwork, Clients};

/// The limit, and how clients share it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// The most calls in any period of length `window`.
    pub calls_per_window: usize,
    /// The length of the period.
    pub window: Duration,
    /// How many replicas share `calls_per_window`. 0 counts as 1.
    pub replicas: usize,
    pub clients: Clients,
}

/// A call and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimedCall {
    pub time: Instant,
    /// Differs for each call of this replica. Unused, and 0, for calls of other replicas and for
    /// simulated calls.
    pub id: u64,
    /// The client network that the call is made for. `None` for a call of another replica.
    pub client_network: Option<ClientNetwork>,
}

/// A client's calls that are not made yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub client_network: ClientNetwork,
    /// Whether the calls keep a distance from each other, even if the window allows them now. The
    /// client's first [`Rule::burst`] calls in a window need no distance.
    pub is_spread: bool,
    pub count: usize,
}

/// The calls of the last window, sorted by time.
#[derive(Debug)]
pub(super) struct CallLog {
    rule: Rule,
    calls: VecDeque<TimedCall>,
    /// This replica's calls, by client. A client without a call in the last window has no entry.
    by_client: HashMap<ClientNetwork, ClientCalls>,
    /// When the next call may be made, according to the Valkey. `None` if the Valkey names no time.
    not_before: Option<Instant>,
}

/// A client's calls in the last window.
#[derive(Debug, Clone, Copy)]
struct ClientCalls {
    count: usize,
    last: Instant,
}

impl CallLog {
    /// A log without calls.
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, calls: VecDeque::new(), by_client: HashMap::new(), not_before: None }
    }

    /// Changes the limit, and how many replicas share it.
    pub(super) fn set_limit(&mut self, calls_per_window: usize, replicas: usize) {
        self.rule = Rule { calls_per_window, replicas, ..self.rule };
    }

    /// The most calls in a window.
    pub(super) fn limit(&self) -> usize {
        self.rule.calls_per_window
    }

    /// Replaces the calls of other replicas.
    pub(super) fn replace_others(&mut self, times: impl IntoIterator<Item = Instant>) {
        self.calls.retain(|call| call.client_network.is_some());
        let other = |time| TimedCall { time, id: 0, client_network: None };
        self.calls.extend(times.into_iter().map(other));
        self.calls.make_contiguous().sort_by_key(|call| call.time);
    }

    /// Sets when the next call may be made, according to the Valkey.
    pub(super) fn set_not_before(&mut self, time: Option<Instant>) {
        self.not_before = time;
    }

    /// The calls of this replica.
    pub(super) fn own(&self) -> impl Iterator<Item = &TimedCall> {
        self.calls.iter().filter(|call| call.client_network.is_some())
    }

    /// Removes the calls that are at least one window old.
    pub(super) fn expire(&mut self, now: Instant) {
        while self.pop_expired(now).is_some() {}
    }

    /// Removes and returns the oldest call if it is at least one window old.
    fn pop_expired(&mut self, now: Instant) -> Option<TimedCall> {
        let call = *self.calls.front()?;
        if call.time + self.rule.window > now {
            return None;
        }
        self.calls.pop_front();
        self.uncount(call);
        Some(call)
    }

    /// Adds a call of this replica.
    pub(super) fn record(&mut self, call: TimedCall) {
        let index = self.calls.partition_point(|known| known.time <= call.time);
        self.calls.insert(index, call);
        self.count(call);
    }

    /// Adds a call to the count of its client. Calls of other replicas have no client.
    fn count(&mut self, call: TimedCall) {
        let Some(client_network) = call.client_network else { return };
        let new = ClientCalls { count: 0, last: call.time };
        let client_calls = self.by_client.entry(client_network).or_insert(new);
        client_calls.count += 1;
        client_calls.last = client_calls.last.max(call.time);
    }

    /// Removes a call. Does nothing if the call has expired already.
    pub(super) fn remove(&mut self, call: TimedCall) {
        let Some(index) = self.calls.iter().rposition(|known| *known == call) else { return };
        self.calls.remove(index);
        self.uncount(call);
        if let Some(client_network) = call.client_network
            && let Some(client_calls) = self.by_client.get_mut(&client_network)
        {
            // The client's last call may have been this one.
            let mut newest_first = self.calls.iter().rev();
            let last = newest_first.find(|known| known.client_network == call.client_network);
            client_calls.last = last.map_or(client_calls.last, |last| last.time);
        }
    }

    /// Removes a call from the count of its client.
    fn uncount(&mut self, call: TimedCall) {
        if let Some(client_network) = call.client_network
            && let Some(client_calls) = self.by_client.get_mut(&client_network)
        {
            client_calls.count -= 1;
            if client_calls.count == 0 {
                self.by_client.remove(&client_network);
            }
        }
    }

    /// When the oldest call is one window old.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.calls.front().map(|call| call.time + self.rule.window)
    }

    /// The index of the demand that gets the next call, and the earliest time of that call. Both may
    /// change when a call of this log expires. `None` if there are no demands.
    ///
    /// The next call is the one that may be made earliest. Among equally early ones, it is the call of
    /// the client with the fewest calls in the window, and then that of the first demand.
    pub(super) fn next(
        &self,
        demands: impl Iterator<Item = Demand>,
        now: Instant,
    ) -> Option<(usize, Instant)> {
        let calls = demands.enumerate().map(|(index, demand)| {
            let made = self.made_by(demand.client_network);
            (self.earliest(demand, now), made, index)
        });
        calls.min().map(|(time, _, index)| (index, time))
    }

    /// When the last call of the last demand can be made, if no other calls are added.
    pub(super) fn expected_time(&mut self, demands: Vec<Demand>, now: Instant) -> Instant {
        // Simulates the calls in this log, and then restores the log. To copy a large log would be slow.
        let (len, by_client) = (self.calls.len(), self.by_client.clone());
        let mut expired = Vec::new();
        let time = self.simulate(demands, now, &mut expired);
        for call in expired.into_iter().rev() {
            self.calls.push_front(call);
        }
        self.calls.truncate(len);
        self.by_client = by_client;
        time
    }

    /// Adds simulated calls to the log until the last demand has all of its calls. Returns the time of the
    /// last call. Moves the calls that expire until then to `expired`.
    fn simulate(
        &mut self,
        mut demands: Vec<Demand>,
        mut now: Instant,
        expired: &mut Vec<TimedCall>,
    ) -> Instant {
        while demands.last().is_some_and(|demand| demand.count > 0) {
            expired.extend(iter::from_fn(|| self.pop_expired(now)));
            let waiting = demands.iter().copied().filter(|demand| demand.count > 0);
            let Some((index, time)) = self.next(waiting, now) else { break };
            match self.next_expiry() {
                Some(expiry) if expiry < time => now = expiry,
                _ => {
                    now = time;
                    let mut waiting = demands.iter_mut().filter(|demand| demand.count > 0);
                    if let Some(demand) = waiting.nth(index) {
                        demand.count -= 1;
                        let client_network = Some(demand.client_network);
                        let call = TimedCall { time, id: 0, client_network };
                        // `expected_time` removes the simulated calls from the end.
                        self.calls.push_back(call);
                        self.count(call);
                    }
                }
            }
        }
        now
    }

    /// How many more calls the window allows now.
    fn free(&self) -> usize {
        self.rule.calls_per_window.saturating_sub(self.calls.len())
    }

    /// Whether the window has room for this many calls of one client, besides the [`Rule::spare`] calls.
    pub(super) fn fits(&self, count: usize) -> bool {
        count.saturating_add(self.rule.spare()) <= self.free()
    }

    /// The number of the client's calls in the window.
    fn made_by(&self, client_network: ClientNetwork) -> usize {
        self.by_client.get(&client_network).map_or(0, |client_calls| client_calls.count)
    }

    /// The earliest time of the client's next call, if no call expires before then.
    fn earliest(&self, demand: Demand, now: Instant) -> Instant {
        let Rule { calls_per_window, window, .. } = self.rule;
        let mut time = self.not_before.map_or(now, |not_before| not_before.max(now));
        // The next call must be at least one window later than the call that is `calls_per_window`
        // positions before it.
        if let Some(index) = self.calls.len().checked_sub(calls_per_window) {
            time = time.max(self.calls[index].time + window);
        }
        let client_calls = self.by_client.get(&demand.client_network);
        if let (Some(client_calls), Some(expiry)) = (client_calls, self.next_expiry())
            && demand.is_spread
            && client_calls.count >= self.rule.burst()
        {
            let last_call_to_expiry = expiry.saturating_duration_since(client_calls.last);
            // Up to `usable` calls divide this time into equal gaps. A gap is never shorter than if all calls
            // of a window were spread evenly.
            let usable = self.free().saturating_sub(self.rule.spare());
            let gaps = usable.saturating_add(1);
            let spacing = divide(window, calls_per_window).max(divide(last_call_to_expiry, gaps));
            time = time.max(client_calls.last + spacing);
        }
        time
    }
}

impl Rule {
    /// How many calls in a window a client may make at this replica before its further calls are spread.
    fn burst(self) -> usize {
        match self.clients {
            // Half of the limit. A balancer may send the client's requests to all replicas, so each
            // replica allows only its part of this half.
            Clients::Many => self.calls_per_window.div_ceil(2 * self.replicas.max(1)),
            // A tenth of the limit. The only client makes calls for a long time. A large burst at its
            // start would only delay its later calls.
            Clients::One => self.calls_per_window.div_ceil(10),
        }
    }

    /// The number of calls in a window that one client leaves free for others: one. But with
    /// [`Clients::One`], or with a limit below 20, a client may use all calls.
    fn spare(self) -> usize {
        usize::from(self.clients == Clients::Many && self.calls_per_window >= 20)
    }
}

/// Divides a time by a number. 0 counts as 1, and a number beyond `u32` as `u32::MAX`.
fn divide(time: Duration, number: usize) -> Duration {
    time / u32::try_from(number).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
