//! A queue for permits that clients share fairly. A permit can include memory.
//!
//! One client cannot make another wait for all of its jobs. A free permit goes to the client that
//! has the fewest permits. Among clients with equally many, it goes to the one that was served
//! longest ago. Each client's jobs are served in the order of their arrival. A client that is alone
//! can thus use all permits. A client that arrives gets the next free permit, even if other clients
//! have queued many jobs.
//!
//! Large and small jobs must not block each other. Some memory is reserved for small jobs, and one
//! permit too if there are several. A job that needs more than the reserved memory is large, and
//! gets nothing that is reserved. While the next job is a large one that waits for memory, small
//! jobs may overtake it, but only with the reserved memory. Otherwise they would take the memory
//! that the large job waits for.

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
    /// How long permits were in use recently: a moving average, in microseconds.
    typical_hold_micros: AtomicU64,
}

/// How much the queue can grant at once.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    permits: u64,
    /// In bytes.
    memory: u64,
    /// The part of `memory` that is reserved for small jobs, in bytes.
    reserved_for_small: u64,
}

/// The granted permits and the queued jobs.
#[derive(Debug)]
struct State {
    capacity: Capacity,
    /// Clients that have permits or queued jobs. Other clients are not stored.
    clients: HashMap<ClientNetwork, ClientState>,
    queue: VecDeque<QueuedJob>,
    /// How many permits were ever granted.
    grant_count: u64,
    /// The permits in use.
    permits: u64,
    /// The permits in use by large jobs.
    permits_of_large: u64,
    /// The memory in use by small jobs, in bytes.
    memory_of_small: u64,
    /// The memory in use by large jobs, in bytes.
    memory_of_large: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct ClientState {
    /// The client's permits in use.
    permits: u64,
    /// The client's jobs in the queue.
    queued: u64,
    /// The value of [`State::grant_count`] when the client last got a permit.
    last_grant: u64,
}

#[derive(Debug)]
struct QueuedJob {
    client: ClientNetwork,
    /// In bytes.
    memory: u64,
    grant: oneshot::Sender<()>,
}

/// Belongs to the caller that submitted a [`QueuedJob`]. Dropping it removes the job from the queue.
struct QueueGuard {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    granted: oneshot::Receiver<()>,
}

/// A permit and its memory. Dropping it returns both to the queue.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    /// When the permit was granted; `None` if it was not used.
    used_since: Option<Instant>,
}

impl FairQueue {
    /// A queue for `permits` permits (at least one) and `memory` bytes, of which
    /// `reserved_for_small` bytes are reserved for small jobs.
    pub(crate) fn new(permits: usize, memory: u64, reserved_for_small: u64) -> Self {
        let capacity = Capacity { permits: permits.max(1) as u64, memory, reserved_for_small };
        let state = State {
            capacity,
            clients: HashMap::new(),
            queue: VecDeque::new(),
            grant_count: 0,
            permits: 0,
            permits_of_large: 0,
            memory_of_small: 0,
            memory_of_large: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), typical_hold_micros: AtomicU64::new(0) }))
    }

    /// Waits for a permit with `memory` bytes. Returns `None` if the deadline passes.
    ///
    /// `memory` must not exceed the memory that is not reserved for small jobs.
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

    /// Like [`Self::take`], without memory. Also returns `None` if the permit comes so late that the
    /// job would probably miss the deadline, by how long permits were in use recently.
    pub(crate) async fn take_in_time(
        &self,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut permit = self.take(client, 0, deadline).await?;
        if Instant::now() + self.0.typical_hold() < deadline {
            return Some(permit);
        }
        permit.used_since = None; // unused permits must not lower the average
        None
    }

    /// How many jobs wait in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.0.state().queue.len()
    }

    /// How long a job that this client submits now will probably wait, by how long permits were in
    /// use recently.
    pub(crate) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        let state = self.0.state();
        let permits = state.capacity.permits;
        if state.permits < permits {
            return Duration::ZERO;
        }
        let position = state.jobs_ahead_of(client) + 1;
        self.0.typical_hold().mul_f64(position as f64 / permits as f64)
    }

    /// How long a permit was typically in use recently.
    pub(crate) fn typical_hold(&self) -> Duration {
        self.0.typical_hold()
    }

    /// Adds a job to the queue, and grants its permit at once if possible.
    fn enqueue(&self, client: ClientNetwork, memory: u64) -> QueueGuard {
        let (grant, granted) = oneshot::channel();
        let mut state = self.0.state();
        debug_assert!(memory <= state.capacity.large_memory(), "the job would wait for ever");
        state.queue.push_back(QueuedJob { client, memory, grant });
        state.change(client, |client| client.queued += 1);
        state.grant_permits();
        QueueGuard { queue: Arc::clone(&self.0), client, memory, granted }
    }
}

impl Inner {
    /// How long permits were typically in use recently.
    fn typical_hold(&self) -> Duration {
        Duration::from_micros(self.typical_hold_micros.load(Ordering::Relaxed))
    }

    /// Adds how long one permit was in use to the moving average.
    fn record_hold(&self, hold: Duration) {
        let hold = u64::try_from(hold.as_micros()).unwrap_or(u64::MAX / 8);
        let update = |average: u64| Some(average - average / 8 + hold / 8);
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.typical_hold_micros.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a thread panicked while it had the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capacity {
    /// The memory that all large jobs together may use, in bytes.
    fn large_memory(self) -> u64 {
        self.memory - self.reserved_for_small
    }

    /// The permits that all large jobs together may use.
    fn large_permits(self) -> u64 {
        let reserved = u64::from(self.reserved_for_small > 0);
        (self.permits - reserved).max(1)
    }

    fn is_large(self, memory: u64) -> bool {
        memory > self.reserved_for_small
    }
}

impl State {
    /// Grants permits to queued jobs until none can be granted.
    fn grant_permits(&mut self) {
        while let Some(job) = self.next_job().and_then(|index| self.queue.remove(index)) {
            let QueuedJob { client, memory, grant } = job;
            self.change(client, |client| client.queued -= 1);
            // Sending fails if the caller no longer waits.
            if grant.send(()).is_ok() {
                self.grant_count += 1;
                let grant_count = self.grant_count;
                self.change(client, |client| {
                    client.permits += 1;
                    client.last_grant = grant_count;
                });
                self.permits += 1;
                if self.capacity.is_large(memory) {
                    self.permits_of_large += 1;
                    self.memory_of_large += memory;
                } else {
                    self.memory_of_small += memory;
                }
            }
        }
    }

    /// Takes a permit back.
    fn release(&mut self, client: ClientNetwork, memory: u64) {
        self.change(client, |client| client.permits -= 1);
        self.permits -= 1;
        if self.capacity.is_large(memory) {
            self.permits_of_large -= 1;
            self.memory_of_large -= memory;
        } else {
            self.memory_of_small -= memory;
        }
        self.grant_permits();
    }

    /// Removes the jobs whose callers no longer wait.
    fn remove_closed(&mut self) {
        let Self { queue, clients, .. } = self;
        queue.retain(|job| {
            let is_closed = job.grant.is_closed();
            if is_closed && let Some(client) = clients.get_mut(&job.client) {
                client.queued -= 1;
            }
            !is_closed
        });
        clients.retain(|_, client| client.permits + client.queued > 0);
        // A removed job may have been the only reason why others waited.
        self.grant_permits();
    }

    fn change(&mut self, client: ClientNetwork, change: impl FnOnce(&mut ClientState)) {
        let mut state = self.client(client);
        change(&mut state);
        if state.permits + state.queued > 0 {
            self.clients.insert(client, state);
        } else {
            self.clients.remove(&client);
        }
    }

    /// The state of a client. An unknown client counts as served just before the client that was
    /// served last. The unknown client thus goes before that client, but not before clients that
    /// have waited longer.
    fn client(&self, client: ClientNetwork) -> ClientState {
        let last_grant = self.grant_count.saturating_sub(1);
        let unknown = ClientState { last_grant, ..ClientState::default() };
        self.clients.get(&client).copied().unwrap_or(unknown)
    }

    /// The index of the next job that can get a permit, if any.
    fn next_job(&self) -> Option<usize> {
        let index = self.first_job(|_| true)?;
        let memory = self.queue.get(index)?.memory;
        if self.can_grant(memory) {
            Some(index)
        } else if self.capacity.is_large(memory) {
            let reserved = self.capacity.reserved_for_small;
            self.first_job(|memory| {
                self.memory_of_small + memory <= reserved && self.can_grant(memory)
            })
        } else {
            None
        }
    }

    /// The index of the job that is served first, among those whose memory fits.
    fn first_job(&self, memory_fits: impl Fn(u64) -> bool) -> Option<usize> {
        let fitting = self.queue.iter().enumerate().filter(|(_, job)| memory_fits(job.memory));
        let order = |(index, job): &(usize, &QueuedJob)| {
            let client = self.client(job.client);
            (client.permits, client.last_grant, *index)
        };
        fitting.min_by_key(order).map(|(index, _)| index)
    }

    /// Whether a permit with this much memory can be granted now.
    fn can_grant(&self, memory: u64) -> bool {
        let Self { capacity, memory_of_small, memory_of_large, .. } = self;
        let fits = |in_use: u64, max: u64| in_use.saturating_add(memory) <= max;
        self.permits < capacity.permits
            && fits(memory_of_small + memory_of_large, capacity.memory)
            && (!capacity.is_large(memory)
                || self.permits_of_large < capacity.large_permits()
                    && fits(*memory_of_large, capacity.large_memory()))
    }

    /// How many queued jobs are served before a job that this client submits now. The client's own
    /// queued jobs all go first. Of each other client, jobs go first until that client has more
    /// permits than this one.
    fn jobs_ahead_of(&self, client: ClientNetwork) -> u64 {
        let own = self.client(client);
        let own_permits = own.permits + own.queued; // after its queued jobs are served
        let others = self.clients.iter().filter(|(other, _)| **other != client);
        let ahead = others.map(|(_, other)| {
            let until_equal = own_permits.saturating_sub(other.permits);
            let goes_first_when_equal =
                other.permits <= own_permits && other.last_grant <= own.last_grant;
            other.queued.min(until_equal + u64::from(goes_first_when_equal))
        });
        own.queued + ahead.sum::<u64>()
    }
}

impl Drop for QueueGuard {
    fn drop(&mut self) {
        if self.granted.is_terminated() {
            return; // The caller has received the permit. `Permit` releases it.
        }
        let mut state = self.queue.state();
        self.granted.close();
        if self.granted.try_recv().is_ok() {
            // The permit was granted, but the caller gave up before it received the permit.
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
