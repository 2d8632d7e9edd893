//! Permits that clients share, with memory where that is scarce, and the queue for them.
//!
//! No client may keep the others waiting. A permit that becomes free goes to the client that holds
//! the fewest of them; among those that hold as many, to the one that was served longest ago, and of
//! one client's takers to the first. So a client that is alone uses all permits, and one that comes
//! beside others gets the next one, however long the queue and however many they are.
//!
//! Nor may large takers keep the small ones waiting. A part of the memory, and one permit of several,
//! are never given to large ones: those that need more than that part. While the next in the queue
//! is a large one for which there is no room yet, small ones pass it within their part only, so that
//! its room can become free.

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

/// Permits, and the queue for them. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct FairQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// For how long a permit is held, smoothed, in microseconds.
    typical: AtomicU64,
}

/// What there is to be given out.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    permits: u64,
    /// In bytes.
    memory: u64,
    /// The part of the memory that is left to small takers, in bytes.
    for_small: u64,
}

/// Who has permits, and who waits for one.
#[derive(Debug)]
struct State {
    capacity: Capacity,
    /// Those who hold permits or wait for one; nobody else is remembered.
    clients: HashMap<ClientNetwork, Client>,
    queue: VecDeque<Waiter>,
    /// Permits that were ever given out.
    served: u64,
    held: u64,
    held_by_large: u64,
    /// In bytes.
    small_memory: u64,
    /// In bytes.
    large_memory: u64,
}

/// What a client holds and wants.
#[derive(Debug, Clone, Copy, Default)]
struct Client {
    held: u64,
    waiting: u64,
    /// The number of the permit that it was given last.
    last_served: u64,
}

/// One who waits in the queue.
#[derive(Debug)]
struct Waiter {
    client: ClientNetwork,
    memory: u64,
    call: oneshot::Sender<()>,
}

/// The other end of a [`Waiter`]; leaves the queue when dropped.
struct Waiting {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    called: oneshot::Receiver<()>,
}

/// A permit and its memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    /// When its use began, if it was used.
    used_since: Option<Instant>,
}

impl FairQueue {
    /// So many permits (at least one), and so many bytes of memory that come with them, of which a
    /// part is left to small takers.
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
        Self(Arc::new(Inner { state: Mutex::new(state), typical: AtomicU64::new(0) }))
    }

    /// Waits for a permit with so many bytes, at most those that are not left to small takers; `None`
    /// at the deadline.
    pub(crate) async fn take(
        &self,
        client: ClientNetwork,
        memory: u64,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut waiting = self.enter(client, memory);
        timeout_at(deadline, &mut waiting.called).await.ok()?.ok()?;
        let queue = Arc::clone(&self.0);
        Some(Permit { queue, client, memory, used_since: Some(Instant::now()) })
    }

    /// The same without memory; `None` also when the time that is left is less than a permit is
    /// usually held: what would be asked for would be paid for, and come too late.
    pub(crate) async fn take_in_time(
        &self,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut permit = self.take(client, 0, deadline).await?;
        if Instant::now() + self.0.typical() < deadline {
            return Some(permit);
        }
        permit.used_since = None; // how long that took says nothing
        None
    }

    /// How many wait in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.0.state().queue.len()
    }

    /// How long a client that comes now is likely to wait, by how long permits are held of late.
    pub(crate) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        let state = self.0.state();
        let permits = state.capacity.permits;
        if state.held < permits {
            return Duration::ZERO;
        }
        let turn = state.ahead_of(client) + 1;
        self.0.typical().mul_f64(turn as f64 / permits as f64)
    }

    /// Joins the queue, and is called at once where there is room.
    fn enter(&self, client: ClientNetwork, memory: u64) -> Waiting {
        let (call, called) = oneshot::channel();
        let mut state = self.0.state();
        debug_assert!(memory <= state.capacity.large_memory(), "it would wait for ever");
        state.queue.push_back(Waiter { client, memory, call });
        state.change(client, |client| client.waiting += 1);
        state.give_out();
        Waiting { queue: Arc::clone(&self.0), client, memory, called }
    }
}

impl Inner {
    /// How long permits are held of late.
    fn typical(&self) -> Duration {
        Duration::from_micros(self.typical.load(Ordering::Relaxed))
    }

    fn note(&self, held: Duration) {
        let held = u64::try_from(held.as_micros()).unwrap_or(u64::MAX / 8);
        let smooth = |typical: u64| Some(typical - typical / 8 + held / 8);
        // Always `Some`: it cannot fail.
        let _ = self.typical.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smooth);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole whatever panicked elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capacity {
    /// The memory that large takers may have together.
    fn large_memory(self) -> u64 {
        self.memory - self.for_small
    }

    /// The permits that large takers may have together.
    fn large_permits(self) -> u64 {
        let for_small = u64::from(self.for_small > 0);
        (self.permits - for_small).max(1)
    }

    fn is_large(self, memory: u64) -> bool {
        memory > self.for_small
    }
}

impl State {
    /// Calls those whose turn it is, as long as there is room.
    fn give_out(&mut self) {
        while let Some(waiter) = self.next().and_then(|at| self.queue.remove(at)) {
            let Waiter { client, memory, call } = waiter;
            self.change(client, |client| client.waiting -= 1);
            // Who does not hear it has left.
            if call.send(()).is_ok() {
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

    /// Takes a client's permit back.
    fn take_back(&mut self, client: ClientNetwork, memory: u64) {
        self.change(client, |client| client.held -= 1);
        self.held -= 1;
        if self.capacity.is_large(memory) {
            self.held_by_large -= 1;
            self.large_memory -= memory;
        } else {
            self.small_memory -= memory;
        }
        self.give_out();
    }

    /// Forgets those who left the queue.
    fn remove_closed(&mut self) {
        let Self { queue, clients, .. } = self;
        queue.retain(|waiter| {
            let is_closed = waiter.call.is_closed();
            if is_closed && let Some(client) = clients.get_mut(&waiter.client) {
                client.waiting -= 1;
            }
            !is_closed
        });
        clients.retain(|_, client| client.held + client.waiting > 0);
        // Others may have waited for one of them alone.
        self.give_out();
    }

    fn change(&mut self, client: ClientNetwork, change: impl FnOnce(&mut Client)) {
        let mut state = self.client(client);
        change(&mut state);
        if state.held + state.waiting > 0 {
            self.clients.insert(client, state);
        } else {
            self.clients.remove(&client);
        }
    }

    /// What a client holds and wants. One that is not remembered counts as served just before the last
    /// one was: before that one it gets its turn, but not before those that have waited longer.
    fn client(&self, client: ClientNetwork) -> Client {
        let last_served = self.served.saturating_sub(1);
        let unknown = Client { last_served, ..Client::default() };
        self.clients.get(&client).copied().unwrap_or(unknown)
    }

    /// Whose turn it is, if there is room.
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

    /// The first of those whose memory fits, in the order of turns.
    fn first(&self, fits: impl Fn(u64) -> bool) -> Option<usize> {
        let fitting = self.queue.iter().enumerate().filter(|(_, waiter)| fits(waiter.memory));
        let turn = |(at, waiter): &(usize, &Waiter)| {
            let client = self.client(waiter.client);
            (client.held, client.last_served, *at)
        };
        fitting.min_by_key(turn).map(|(at, _)| at)
    }

    /// Whether a taker of so many bytes finds room.
    fn has_room(&self, memory: u64) -> bool {
        let Self { capacity, small_memory, large_memory, .. } = self;
        let fits = |taken: u64, bound: u64| taken.saturating_add(memory) <= bound;
        self.held < capacity.permits
            && fits(small_memory + large_memory, capacity.memory)
            && (!capacity.is_large(memory)
                || self.held_by_large < capacity.large_permits()
                    && fits(*large_memory, capacity.large_memory()))
    }

    /// How many in the queue go before a client that comes now: its own, and of each other one as
    /// many as it takes to hold more than this one then does.
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

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.called.is_terminated() {
            return; // called, and heard: the permit is its own
        }
        let mut state = self.queue.state();
        self.called.close();
        if self.called.try_recv().is_ok() {
            // Called, and gone before it heard of it.
            state.take_back(self.client, self.memory);
        } else {
            state.remove_closed();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(since) = self.used_since {
            self.queue.note(since.elapsed());
        }
        self.queue.state().take_back(self.client, self.memory);
    }
}

#[cfg(test)]
mod tests;
