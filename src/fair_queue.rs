//! A queue of jobs that need a permit. Clients share the permits fairly. A permit can include some
//! of the memory that the queue manages.
//!
//! A free permit goes to the waiting client that has the fewest permits. Among clients with equally
//! many permits, it goes to the client whose last permit was granted longest ago. Each client's
//! jobs are served in the order of their arrival. While only one client has jobs, it can thus use
//! all permits. A new client has no permit, so it goes before clients that have one, however many
//! jobs they have queued.
//!
//! Jobs that need much memory must not block jobs that need little, and the other way round. Some
//! memory is therefore reserved for small jobs, and one permit too if there are several permits. A
//! job is large if it needs more memory than is reserved, else it is small. A large job never uses
//! the reserved memory or permit. While the next job is large and has to wait, small jobs may
//! overtake it, but all small jobs together may then use only the reserved memory. Otherwise they
//! would take the memory for which the large job waits.

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
    permit_time_micros: AtomicU64,
}

/// How much the queue can grant at once.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    permits: u64,
    /// In bytes.
    memory: u64,
    /// The part of `memory` that is reserved for small jobs, in bytes.
    memory_reserved_for_small_jobs: u64,
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
    permits_in_use: u64,
    /// The permits in use by large jobs.
    permits_of_large_jobs: u64,
    /// The memory in use by small jobs, in bytes.
    memory_of_small_jobs: u64,
    /// The memory in use by large jobs, in bytes.
    memory_of_large_jobs: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct ClientState {
    /// The number of the client's permits in use.
    permits: u64,
    /// The number of the client's jobs in the queue.
    queued: u64,
    /// The value of [`State::grant_count`] when the client last got a permit.
    last_grant: u64,
}

#[derive(Debug)]
struct QueuedJob {
    client: ClientNetwork,
    /// In bytes.
    memory: u64,
    /// Notifies the caller that the permit is granted.
    grant: oneshot::Sender<()>,
}

/// Owned by the caller that submitted a [`QueuedJob`]. Dropping the guard removes its job from the
/// queue, or releases a permit that was granted but not received.
struct QueueGuard {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    granted: oneshot::Receiver<()>,
}

/// A permit and its memory. Dropping the permit returns both to the queue.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Arc<Inner>,
    client: ClientNetwork,
    memory: u64,
    /// When the permit was granted; `None` if the permit was not used.
    used_since: Option<Instant>,
}

impl FairQueue {
    /// A queue for `permits` permits (0 means 1) and `memory` bytes. A part of the memory,
    /// `memory_reserved_for_small_jobs`, is reserved for small jobs. If this part is zero, no
    /// permit is reserved either.
    pub(crate) fn new(permits: usize, memory: u64, memory_reserved_for_small_jobs: u64) -> Self {
        let permits = permits.max(1) as u64;
        let capacity = Capacity { permits, memory, memory_reserved_for_small_jobs };
        let state = State {
            capacity,
            clients: HashMap::new(),
            queue: VecDeque::new(),
            grant_count: 0,
            permits_in_use: 0,
            permits_of_large_jobs: 0,
            memory_of_small_jobs: 0,
            memory_of_large_jobs: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), permit_time_micros: AtomicU64::new(0) }))
    }

    /// Waits for a permit with `memory` bytes. Returns `None` if the deadline passes first.
    ///
    /// `memory` must not exceed the memory that all large jobs together may use.
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

    /// Like [`Self::take`], for a permit without memory. Also returns `None` if the permit comes so
    /// late that the job would probably end after the deadline. This is estimated from how long
    /// permits were in use recently.
    pub(crate) async fn take_in_time(
        &self,
        client: ClientNetwork,
        deadline: Instant,
    ) -> Option<Permit> {
        let mut permit = self.take(client, 0, deadline).await?;
        if Instant::now() + self.0.typical_permit_time() < deadline {
            return Some(permit);
        }
        permit.used_since = None; // unused permits must not lower the average
        None
    }

    /// How many jobs wait in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.0.state().queue.len()
    }

    /// Estimates how long a job would wait if this client submitted it now, from how long permits
    /// were in use recently.
    pub(crate) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        let state = self.0.state();
        let permits = state.capacity.permits;
        if state.permits_in_use < permits {
            return Duration::ZERO;
        }
        let position = state.jobs_ahead_of(client) + 1;
        self.0.typical_permit_time().mul_f64(position as f64 / permits as f64)
    }

    /// How long a permit was typically in use recently.
    pub(crate) fn typical_permit_time(&self) -> Duration {
        self.0.typical_permit_time()
    }

    /// Adds a job to the queue, and grants its permit at once if possible.
    fn enqueue(&self, client: ClientNetwork, memory: u64) -> QueueGuard {
        let (grant, granted) = oneshot::channel();
        let mut state = self.0.state();
        debug_assert!(
            memory <= state.capacity.memory_for_large_jobs(),
            "a job must not need more memory than all large jobs together may use"
        );
        state.queue.push_back(QueuedJob { client, memory, grant });
        state.update_client(client, |client_state| client_state.queued += 1);
        state.grant_permits();
        QueueGuard { queue: Arc::clone(&self.0), client, memory, granted }
    }
}

impl Inner {
    /// How long permits were typically in use recently.
    fn typical_permit_time(&self) -> Duration {
        Duration::from_micros(self.permit_time_micros.load(Ordering::Relaxed))
    }

    /// Adds how long one permit was in use to the moving average, with a weight of one eighth.
    fn record_permit_time(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 8);
        let update = |average: u64| Some(average - average / 8 + micros / 8);
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.permit_time_micros.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state stays consistent even if a thread panicked while it had the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capacity {
    /// The memory that all large jobs together may use, in bytes.
    fn memory_for_large_jobs(self) -> u64 {
        self.memory - self.memory_reserved_for_small_jobs
    }

    /// The permits that all large jobs together may use.
    fn permits_for_large_jobs(self) -> u64 {
        let reserved = u64::from(self.memory_reserved_for_small_jobs > 0);
        (self.permits - reserved).max(1)
    }

    fn is_large(self, memory: u64) -> bool {
        memory > self.memory_reserved_for_small_jobs
    }
}

impl State {
    /// Grants permits to queued jobs until none can be granted.
    fn grant_permits(&mut self) {
        while let Some(job) = self.next_job().and_then(|index| self.queue.remove(index)) {
            let QueuedJob { client, memory, grant } = job;
            self.update_client(client, |client_state| client_state.queued -= 1);
            // Sending fails if the caller no longer waits.
            if grant.send(()).is_ok() {
                self.grant_count += 1;
                let grant_count = self.grant_count;
                self.update_client(client, |client_state| {
                    client_state.permits += 1;
                    client_state.last_grant = grant_count;
                });
                self.permits_in_use += 1;
                if self.capacity.is_large(memory) {
                    self.permits_of_large_jobs += 1;
                    self.memory_of_large_jobs += memory;
                } else {
                    self.memory_of_small_jobs += memory;
                }
            }
        }
    }

    /// Takes a permit back, and grants the permits that can now be granted.
    fn release(&mut self, client: ClientNetwork, memory: u64) {
        self.update_client(client, |client_state| client_state.permits -= 1);
        self.permits_in_use -= 1;
        if self.capacity.is_large(memory) {
            self.permits_of_large_jobs -= 1;
            self.memory_of_large_jobs -= memory;
        } else {
            self.memory_of_small_jobs -= memory;
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
        // A removed job may have been the only reason why other jobs waited.
        self.grant_permits();
    }

    fn update_client(&mut self, client: ClientNetwork, update: impl FnOnce(&mut ClientState)) {
        let mut client_state = self.client_state(client);
        update(&mut client_state);
        if client_state.permits + client_state.queued > 0 {
            self.clients.insert(client, client_state);
        } else {
            self.clients.remove(&client);
        }
    }

    /// The state of a client. A client that is not stored has no permit, so it goes before clients with
    /// permits. It goes after clients that already wait without a permit: otherwise, ever new clients could
    /// overtake them. The exception is the client of the most recent grant, which goes after a new client.
    fn client_state(&self, client: ClientNetwork) -> ClientState {
        let last_grant = self.grant_count.saturating_sub(1);
        let new_client = ClientState { last_grant, ..ClientState::default() };
        self.clients.get(&client).copied().unwrap_or(new_client)
    }

    /// The index of the job that gets the next permit, or `None` if no permit can be granted now.
    fn next_job(&self) -> Option<usize> {
        let index = self.first_job(|_| true)?;
        let memory = self.queue.get(index)?.memory;
        if self.can_grant(memory) {
            Some(index)
        } else if self.capacity.is_large(memory) {
            // Small jobs overtake the large job if they fit into the reserved memory.
            let reserved = self.capacity.memory_reserved_for_small_jobs;
            self.first_job(|other_memory| {
                self.memory_of_small_jobs + other_memory <= reserved && self.can_grant(other_memory)
            })
        } else {
            None
        }
    }

    /// The index of the job that is served first, among the jobs whose memory fits.
    fn first_job(&self, memory_fits: impl Fn(u64) -> bool) -> Option<usize> {
        let fitting = self.queue.iter().enumerate().filter(|(_, job)| memory_fits(job.memory));
        let order = |(index, job): &(usize, &QueuedJob)| {
            let client_state = self.client_state(job.client);
            (client_state.permits, client_state.last_grant, *index)
        };
        fitting.min_by_key(order).map(|(index, _)| index)
    }

    /// Whether a permit with this much memory can be granted now.
    fn can_grant(&self, memory: u64) -> bool {
        let Self { capacity, memory_of_small_jobs, memory_of_large_jobs, .. } = self;
        let fits = |in_use: u64, max: u64| in_use.saturating_add(memory) <= max;
        let is_available = self.permits_in_use < capacity.permits
            && fits(memory_of_small_jobs + memory_of_large_jobs, capacity.memory);
        if !capacity.is_large(memory) {
            return is_available;
        }
        is_available
            && self.permits_of_large_jobs < capacity.permits_for_large_jobs()
            && fits(*memory_of_large_jobs, capacity.memory_for_large_jobs())
    }

    /// Estimates how many queued jobs are served before a job that this client submits now. The client's
    /// own queued jobs go first: with them, it has `own_permits` permits. Each other client's jobs go first
    /// until that client has `own_permits` permits, too. One more goes first, unless that client has more
    /// permits already, or its last grant is newer.
    fn jobs_ahead_of(&self, client: ClientNetwork) -> u64 {
        let own = self.client_state(client);
        let own_permits = own.permits + own.queued;
        let others = self.clients.iter().filter(|(other, _)| **other != client);
        let ahead = others.map(|(_, other)| {
            let grants_until_equal = own_permits.saturating_sub(other.permits);
            let goes_first_when_equal =
                other.permits <= own_permits && other.last_grant <= own.last_grant;
            other.queued.min(grants_until_equal + u64::from(goes_first_when_equal))
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
            self.queue.record_permit_time(since.elapsed());
        }
        self.queue.state().release(self.client, self.memory);
    }
}

#[cfg(test)]
mod tests;
