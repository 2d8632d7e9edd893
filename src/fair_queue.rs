//! Permits that clients share fairly, the memory that may come with them, and the queue for both.
//!
//! No client can make another wait for all of its jobs. A free permit goes to the client that
//! holds the fewest; among equals to the one that was served longest ago; and among one client's
//! jobs to the first. So a client that is alone can use all permits, and a client that arrives gets
//! the next one, however many jobs the others have queued.
//!
//! Large jobs must not block small ones, nor the other way round. Part of the memory, and one of
//! several permits, are never given to large jobs, which are those that need more than that part.
//! While the next job is a large one that must wait for memory, small jobs may overtake it only
//! within their own part, so that the memory for the large job becomes free.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::shares::ClientNetwork;

/// The permits and their queue. Cheap to clone; clones share both.
#[derive(Debug, Clone)]
pub(crate) struct FairQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// How long a permit is typically held, smoothed, in microseconds.
    typical_hold: AtomicU64,
}

/// What the queue can hand out.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    permits: u64,
    /// In bytes.
    memory: u64,
    /// The part of the memory that is kept for small jobs, in bytes.
    for_small: u64,
}

/// Who holds permits, and who waits.
#[derive(Debug)]
struct State {
    capacity: Capacity,
    /// Clients that hold permits or wait; others are not stored.
    clients: HashMap<ClientNetwork, ClientState>,
    queue: VecDeque<Waiter>,
    /// How many permits were ever granted.
    served: u64,
    held: u64,
    held_by_large: u64,
    /// The memory of small jobs, in bytes.
    small_memory: u64,
    /// The memory of large jobs, in bytes.
    large_memory: u64,
}

/// What a client holds and waits for.
#[derive(Debug, Clone, Copy, Default)]
struct ClientState {
    held: u64,
    waiting: u64,
    /// The number of its latest permit, counted over all clients.
    last_served: u64,
}

/// A job in the queue.
#[derive(Debug)]
struct Waiter {
    client: ClientNetwork,
    memory: u64,
    grant: oneshot::Sender<()>,
}

/// The job's side of a [`Waiter`]. Dropping it leaves the queue.
struct QueueGuard {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    granted: oneshot::Receiver<()>,
}

/// A permit and its memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    /// When the permit was granted; `None` if it was not used.
    used_since: Option<Instant>,
}

impl FairQueue {
    /// A queue for `permits` permits (at least one) and `memory` bytes, of which `for_small` bytes
    /// are kept for small jobs.
    pub(crate) fn new(permits: usize, memory: u64, for_small: u64) -> Self {
        let capacity = Capacity { permits: permits.max(1) as u64, memory, for_small };
        let state = State {
            capacity,
            clients: HashMap::new(),
            queue: VecDeque::new(),
            served: 0,
            held: 0,
            held_by_large: 0,
            small_memory: 0,
            large_memory: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), typical_hold: AtomicU64::new(0) }))
    }

    /// Waits for a permit with `memory` bytes, which must not exceed what large jobs may have.
    /// Returns `None` if the deadline passes.
    pub(crate) async fn take(
        &self,
        client: ClientNetwork,
        memory: u64,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut guard = self.enqueue(client, memory);
        timeout_at(deadline, &mut guard.granted).await.ok()?.ok()?;
        let queue = Arc::clone(&self.0);
        Some(Permit { queue, client, memory, used_since: Some(Instant::now()) })
    }

    /// Like [`Self::take`] without memory. Also returns `None` if less time is left than a permit
    /// is typically held: the work would be paid for and come too late.
    pub(crate) async fn take_in_time(
        &self,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut permit = self.take(client, 0, deadline).await?;
        if Instant::now() + self.0.typical_hold() < deadline {
            return Some(permit);
        }
        permit.used_since = None; // an unused permit says nothing about typical times
        None
    }

    /// How many jobs wait in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.0.state().queue.len()
    }

    /// How long a job that this client submits now will probably wait, by how long permits were
    /// held recently.
    pub(crate) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        let state = self.0.state();
        let permits = state.capacity.permits;
        if state.held < permits {
            return Duration::ZERO;
        }
        let position = state.ahead_of(client) + 1;
        self.0.typical_hold().mul_f64(position as f64 / permits as f64)
    }

    /// Adds a job to the queue, and grants its permit at once if possible.
    fn enqueue(&self, client: ClientNetwork, memory: u64) -> QueueGuard {
        let (grant, granted) = oneshot::channel();
        let mut state = self.0.state();
        debug_assert!(memory <= state.capacity.large_memory(), "the job would wait for ever");
        state.queue.push_back(Waiter { client, memory, grant });
        state.change(client, |client| client.waiting += 1);
        state.grant_permits();
        QueueGuard { queue: Arc::clone(&self.0), client, memory, granted }
    }
}

impl Inner {
    /// How long permits were typically held recently.
    fn typical_hold(&self) -> Duration {
        Duration::from_micros(self.typical_hold.load(Ordering::Relaxed))
    }

    fn record_hold(&self, held: Duration) {
        let held = u64::try_from(held.as_micros()).unwrap_or(u64::MAX / 8);
        let smooth = |typical_hold: u64| Some(typical_hold - typical_hold / 8 + held / 8);
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.typical_hold.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smooth);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a holder of the lock panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capacity {
    /// The memory that all large jobs together may have.
    fn large_memory(self) -> u64 {
        self.memory - self.for_small
    }

    /// The permits that all large jobs together may have.
    fn large_permits(self) -> u64 {
        let for_small = u64::from(self.for_small > 0);
        (self.permits - for_small).max(1)
    }

    fn is_large(self, memory: u64) -> bool {
        memory > self.for_small
    }
}

impl State {
    /// Grants permits in order while there is room.
    fn grant_permits(&mut self) {
        while let Some(waiter) = self.next().and_then(|at| self.queue.remove(at)) {
            let Waiter { client, memory, grant } = waiter;
            self.change(client, |client| client.waiting -= 1);
            // If sending fails, the job has left the queue.
            if grant.send(()).is_ok() {
                self.served += 1;
                let served = self.served;
                self.change(client, |client| {
                    client.held += 1;
                    client.last_served = served;
                });
                self.held += 1;
                if self.capacity.is_large(memory) {
                    self.held_by_large += 1;
                    self.large_memory += memory;
                } else {
                    self.small_memory += memory;
                }
            }
        }
    }

    /// Takes a permit back.
    fn release(&mut self, client: ClientNetwork, memory: u64) {
        self.change(client, |client| client.held -= 1);
        self.held -= 1;
        if self.capacity.is_large(memory) {
            self.held_by_large -= 1;
            self.large_memory -= memory;
        } else {
            self.small_memory -= memory;
        }
        self.grant_permits();
    }

    /// Removes the jobs that have left the queue.
    fn remove_closed(&mut self) {
        let Self { queue, clients, .. } = self;
        queue.retain(|waiter| {
            let is_closed = waiter.grant.is_closed();
            if is_closed && let Some(client) = clients.get_mut(&waiter.client) {
                client.waiting -= 1;
            }
            !is_closed
        });
        clients.retain(|_, client| client.held + client.waiting > 0);
        // The job that left may have been the only reason why others waited.
        self.grant_permits();
    }

    fn change(&mut self, client: ClientNetwork, change: impl FnOnce(&mut ClientState)) {
        let mut state = self.client(client);
        change(&mut state);
        if state.held + state.waiting > 0 {
            self.clients.insert(client, state);
        } else {
            self.clients.remove(&client);
        }
    }

    /// What a client holds and waits for. An unknown client counts as served just before the latest
    /// one: it goes before that client, but not before clients that have waited longer.
    fn client(&self, client: ClientNetwork) -> ClientState {
        let last_served = self.served.saturating_sub(1);
        let unknown = ClientState { last_served, ..ClientState::default() };
        self.clients.get(&client).copied().unwrap_or(unknown)
    }

    /// The position of the next job in the queue, if there is room for it.
    fn next(&self) -> Option<usize> {
        let at = self.first(|_| true)?;
        let memory = self.queue.get(at)?.memory;
        if self.has_room(memory) {
            Some(at)
        } else if self.capacity.is_large(memory) {
            let for_small = self.capacity.for_small;
            self.first(|memory| self.small_memory + memory <= for_small && self.has_room(memory))
        } else {
            None
        }
    }

    /// The first job in order among those whose memory fits.
    fn first(&self, fits: impl Fn(u64) -> bool) -> Option<usize> {
        let fitting = self.queue.iter().enumerate().filter(|(_, waiter)| fits(waiter.memory));
        let order = |(at, waiter): &(usize, &Waiter)| {
            let client = self.client(waiter.client);
            (client.held, client.last_served, *at)
        };
        fitting.min_by_key(order).map(|(at, _)| at)
    }

    /// Whether there is room for a job of this much memory.
    fn has_room(&self, memory: u64) -> bool {
        let Self { capacity, small_memory, large_memory, .. } = self;
        let fits = |taken: u64, bound: u64| taken.saturating_add(memory) <= bound;
        self.held < capacity.permits
            && fits(small_memory + large_memory, capacity.memory)
            && (!capacity.is_large(memory)
                || self.held_by_large < capacity.large_permits()
                    && fits(*large_memory, capacity.large_memory()))
    }

    /// How many jobs go before one that this client submits now: its own, and of each other client
    /// as many as it takes until that client holds more permits.
    fn ahead_of(&self, client: ClientNetwork) -> u64 {
        let own = self.client(client);
        let then_held = own.held + own.waiting;
        let others = self.clients.iter().filter(|(other, _)| **other != client);
        let go_first = others.map(|(_, other)| {
            let until_as_many = then_held.saturating_sub(other.held);
            let is_first_of_equals =
                other.held <= then_held && other.last_served <= own.last_served;
            other.waiting.min(until_as_many + u64::from(is_first_of_equals))
        });
        own.waiting + go_first.sum::<u64>()
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        if self.granted.is_terminated() {
            return; // granted and received: the `Permit` gives it back
        }
        let mut state = self.queue.state();
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            // Granted, but the job left before it received the permit.
            state.release(self.client, self.memory);
        } else {
            state.remove_closed();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(since) = self.used_since {
            self.queue.record_hold(since.elapsed());
        }
        self.queue.state().release(self.client, self.memory);
    }
}

#[cfg(test)]
mod tests;
