//! The slots for pictures that are with NVIDIA, and how long the line before them takes.
//!
//! No client may keep the others from them. A slot that becomes free goes to the first in line whose
//! client holds less than half of them, and before that to another client than the one that gives it
//! back; if there is none, to the first of all. So a client that is alone uses all slots, and one
//! that comes beside it waits for the next one, however long the line.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::shares::{ClientNetwork, Tally};

/// So many pictures may be with NVIDIA at once; the others wait in line.
#[derive(Debug)]
pub(super) struct Slots {
    count: u64,
    state: Mutex<State>,
    /// For how long a slot is taken, smoothed, in microseconds.
    typical: AtomicU64,
}

/// Who has slots, and who waits for one: nobody, as long as one is free.
#[derive(Debug, Default)]
struct State {
    taken: Tally,
    line: VecDeque<Waiter>,
}

/// One who waits in line.
#[derive(Debug)]
struct Waiter {
    client: ClientNetwork,
    call: oneshot::Sender<()>,
}

/// The other end of a [`Waiter`]; leaves the line when dropped.
struct Waiting<'a> {
    slots: &'a Slots,
    client: ClientNetwork,
    called: oneshot::Receiver<()>,
}

/// A slot that is taken, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    slots: &'a Slots,
    client: ClientNetwork,
    /// When its use began, if it was used.
    used_since: Option<Instant>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self { count: count as u64, state: Mutex::default(), typical: AtomicU64::new(0) }
    }

    /// Waits for a slot; `None` when there is no time left to use it: what would be asked for would
    /// be paid for, and come too late.
    pub(super) async fn take(&self, client: ClientNetwork, deadline: Instant) -> Option<Slot<'_>> {
        let entered = self.state().enter(client, self.count);
        if let Err(called) = entered {
            let mut waiting = Waiting { slots: self, client, called };
            timeout_at(deadline, &mut waiting.called).await.ok()?.ok()?;
        }
        let now = Instant::now();
        let is_in_time = now + self.typical() < deadline;
        // Given back at once where it is too late; how long that took says nothing.
        let slot = Slot { slots: self, client, used_since: is_in_time.then_some(now) };
        is_in_time.then_some(slot)
    }

    /// How many wait in line.
    pub(super) fn waiting(&self) -> usize {
        self.state().line.len()
    }

    /// How long a client that comes now is likely to wait, by how long slots are taken of late.
    pub(super) fn expected_wait(&self, client: ClientNetwork) -> Duration {
        let state = self.state();
        if state.taken.total() < self.count {
            return Duration::ZERO;
        }
        let turn = state.ahead_of(client, self.count) + 1;
        self.typical().mul_f64(turn as f64 / self.count as f64)
    }

    /// How long slots are taken of late.
    fn typical(&self) -> Duration {
        Duration::from_micros(self.typical.load(Ordering::Relaxed))
    }

    fn note(&self, taken: Duration) {
        let taken = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX / 8);
        let smooth = |typical: u64| Some(typical - typical / 8 + taken / 8);
        // Always `Some`: it cannot fail.
        let _ = self.typical.fetch_update(Ordering::Relaxed, Ordering::Relaxed, smooth);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole whatever panicked elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a client holds less than half of so many slots.
fn is_below_half(taken: &Tally, client: ClientNetwork, count: u64) -> bool {
    taken.of(client) * 2 < count
}

impl State {
    /// Takes a slot that is free, or a place in line.
    fn enter(&mut self, client: ClientNetwork, count: u64) -> Result<(), oneshot::Receiver<()>> {
        if self.taken.total() < count {
            self.taken.add(client, 1);
            return Ok(());
        }
        let (call, called) = oneshot::channel();
        self.line.push_back(Waiter { client, call });
        Err(called)
    }

    /// Hands a client's slot on.
    fn leave(&mut self, leaver: ClientNetwork, count: u64) {
        self.taken.remove(leaver, 1);
        while let Some(next) = self.next(leaver, count).and_then(|at| self.line.remove(at)) {
            if next.call.send(()).is_ok() {
                self.taken.add(next.client, 1);
                break;
            }
        }
    }

    /// Who in line is next.
    fn next(&self, leaver: ClientNetwork, count: u64) -> Option<usize> {
        let first = |fits: &dyn Fn(&Waiter) -> bool| self.line.iter().position(fits);
        let below_half = |waiter: &Waiter| is_below_half(&self.taken, waiter.client, count);
        // Of few slots, the client that gives one back holds less than half: it is another's turn.
        first(&|waiter| waiter.client != leaver && below_half(waiter))
            .or_else(|| first(&below_half))
            .or_else(|| first(&|_| true))
    }

    /// How many in line go before a client that comes now.
    fn ahead_of(&self, client: ClientNetwork, count: u64) -> usize {
        let mut taken = self.taken.clone();
        let go_first = self.line.iter().filter(|waiter| {
            let goes_first = is_below_half(&taken, waiter.client, count);
            taken.add(waiter.client, 1);
            goes_first
        });
        let go_first = go_first.count();
        if is_below_half(&taken, client, count) { go_first } else { self.line.len() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        self.called.close();
        if self.called.try_recv().is_ok() {
            // Called, and gone before it heard of it.
            state.leave(self.client, self.slots.count);
        } else {
            state.line.retain(|waiter| !waiter.call.is_closed());
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.used_since {
            self.slots.note(since.elapsed());
        }
        self.slots.state().leave(self.client, self.slots.count);
    }
}

#[cfg(test)]
mod tests;
