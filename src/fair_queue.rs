//! Permits that clients share, with memory where that is scarce, and the queue for them.
//!
//! No client may keep the others waiting. A permit that becomes free goes to the first in the queue
//! whose client holds less than half of them, and before that to another client than the one that
//! gives it back; if there is none, to the first of all. So a client that is alone uses all permits,
//! and one that comes beside it waits for the next one, however long the queue.
//!
//! Nor may large takers keep the small ones waiting. A part of the memory, and one permit of several,
//! are never given to large ones: those that need more than that part. While the next in the queue
//! is a large one for which there is no room yet, small ones pass it within their part only, so that
//! its room can become free.

use std::{
    collections::VecDeque,
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

use crate::shares::{ClientNetwork, Tally};

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
    /// Permits by client.
    taken: Tally,
    small: Taken,
    large: Taken,
    queue: VecDeque<Waiter>,
}

/// What small or large takers have together.
#[derive(Debug, Default)]
struct Taken {
    permits: u64,
    memory: u64,
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
            taken: Tally::default(),
            small: Taken::default(),
            large: Taken::default(),
            queue: VecDeque::new(),
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
        if state.taken.total() < permits {
            return Duration::ZERO;
        }
        let turn = state.ahead_of(client) + 1;
        self.0.typical().mul_f64(turn as f64 / permits as f64)
    }

    /// Joins the queue, and is called at once where there is room.
    fn enter(&self, client: ClientNetwork, memory: u64) -> Waiting {
        let (call, called) = oneshot::channel();
        let mut state = self.0.state();
        state.queue.push_back(Waiter { client, memory, call });
        state.give_out(None);
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
        (self.permits - 1).max(1)
    }

    fn is_large(self, memory: u64) -> bool {
        memory > self.for_small
    }
}

impl State {
    /// Calls those whose turn it is, as long as there is room.
    fn give_out(&mut self, leaver: Option<ClientNetwork>) {
        while let Some(next) = self.next(leaver).and_then(|at| self.queue.remove(at)) {
            // Who does not hear it has left.
            if next.call.send(()).is_ok() {
                self.taken.add(next.client, 1);
                let taken = self.taken_by_size(next.memory);
                taken.permits += 1;
                taken.memory += next.memory;
            }
        }
    }

    /// Takes a client's permit back.
    fn take_back(&mut self, leaver: ClientNetwork, memory: u64) {
        self.taken.remove(leaver, 1);
        let taken = self.taken_by_size(memory);
        taken.permits -= 1;
        taken.memory -= memory;
        self.give_out(Some(leaver));
    }

    fn taken_by_size(&mut self, memory: u64) -> &mut Taken {
        if self.capacity.is_large(memory) { &mut self.large } else { &mut self.small }
    }

    /// Whose turn it is, if there is room.
    fn next(&self, leaver: Option<ClientNetwork>) -> Option<usize> {
        let next = self.first(leaver, |_| true)?;
        let memory = self.queue.get(next)?.memory;
        if self.has_room(memory) {
            return Some(next);
        }
        if !self.capacity.is_large(memory) {
            return None;
        }
        let for_small = self.capacity.for_small;
        self.first(leaver, |memory| {
            self.small.memory.saturating_add(memory) <= for_small && self.has_room(memory)
        })
    }

    /// The first of those whose memory fits, in the order of turns.
    fn first(&self, leaver: Option<ClientNetwork>, fits: impl Fn(u64) -> bool) -> Option<usize> {
        let first = |comes_first: &dyn Fn(&Waiter) -> bool| {
            self.queue.iter().position(|waiter| fits(waiter.memory) && comes_first(waiter))
        };
        let below_half = |waiter: &Waiter| self.is_below_half(&self.taken, waiter.client);
        // Of few permits, the client that gives one back holds less than half: it is another's turn.
        first(&|waiter| Some(waiter.client) != leaver && below_half(waiter))
            .or_else(|| first(&below_half))
            .or_else(|| first(&|_| true))
    }

    /// Whether a taker of so many bytes finds room.
    fn has_room(&self, memory: u64) -> bool {
        let Self { capacity, small, large, .. } = self;
        let fits = |taken: u64, bound: u64| taken.saturating_add(memory) <= bound;
        small.permits + large.permits < capacity.permits
            && fits(small.memory + large.memory, capacity.memory)
            && (!capacity.is_large(memory)
                || large.permits < capacity.large_permits()
                    && fits(large.memory, capacity.large_memory()))
    }

    /// How many in the queue go before a client that comes now.
    fn ahead_of(&self, client: ClientNetwork) -> usize {
        let mut taken = self.taken.clone();
        let go_first = self.queue.iter().filter(|waiter| {
            let goes_first = self.is_below_half(&taken, waiter.client);
            taken.add(waiter.client, 1);
            goes_first
        });
        let go_first = go_first.count();
        if self.is_below_half(&taken, client) { go_first } else { self.queue.len() }
    }

    /// Whether a client has less than half of the permits, when so many are taken.
    fn is_below_half(&self, taken: &Tally, client: ClientNetwork) -> bool {
        taken.of(client) * 2 < self.capacity.permits
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        self.called.close();
        if self.called.try_recv().is_ok() {
            // Called, and gone before it heard of it.
            state.take_back(self.client, self.memory);
        } else {
            state.queue.retain(|waiter| !waiter.call.is_closed());
            // Others may have waited for this one alone.
            state.give_out(None);
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
