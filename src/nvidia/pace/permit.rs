//! What a request holds: reserved calls, and the permit for a call.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Inner, call_log::TimedCall};
use crate::shares::ClientNetwork;

/// Reserved calls for which no permit is requested yet. Dropping the guard frees the reservation.
#[derive(Debug)]
pub(in crate::nvidia) struct ReservationGuard {
    pub(super) pace: Arc<Inner>,
    pub(super) client_network: ClientNetwork,
    /// False for a batch whose calls all fit into the limit's window: they may be made at once. All other
    /// calls are spread over time.
    pub(super) is_spread: bool,
    /// The number of reserved calls.
    pub(super) count: usize,
}

/// Permission to make a call now or later, until [`Self::is_expired`]. Dropping an unused permit allows
/// another call instead.
#[derive(Debug)]
pub(in crate::nvidia) struct PacePermit {
    pub(super) pace: Arc<Inner>,
    pub(super) call: TimedCall,
    /// When the Valkey was asked for a turn. `None` if it was not asked. A turn is the Valkey's permission
    /// for a call, which replicas need while they share the limit.
    pub(super) asked: Option<Instant>,
    /// True if a drop has nothing to undo: the call was made, or the Valkey's reply granted no turn or was
    /// lost. False for an unused permit, and while the reply is awaited: a drop then gives back the turn.
    pub(super) is_done: bool,
}

impl ReservationGuard {
    /// The value of `is_spread` that [`super::PaceLimiter::take_permit`] needs for the reserved calls.
    pub(in crate::nvidia) fn is_spread(&self) -> bool {
        self.is_spread
    }

    /// Moves one of the reserved calls to a new guard. If none is left, the new guard reserves nothing.
    pub(in crate::nvidia) fn split_one(&mut self) -> Self {
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

impl PacePermit {
    /// Whether the permit is at least as old as a window. Its call then no longer counts towards the
    /// limit, so the permit must not be used.
    pub(in crate::nvidia) fn is_expired(&self) -> bool {
        let counted_from = self.asked.unwrap_or(self.call.time);
        counted_from + self.pace.rule.window <= Instant::now()
    }

    /// Uses the permit for a call that is made now. The call counts from now on. If it counted from the
    /// time when the permit was taken, it would leave the window too early.
    pub(in crate::nvidia) async fn use_now(mut self) {
        if let Some(shared) = &self.pace.shared {
            shared.record_use(self.call.id, self.asked).await;
        }
        self.is_done = true;
        let now = Instant::now();
        let mut state = self.pace.state(now);
        state.log.remove(self.call);
        state.log.record(TimedCall { time: now, ..self.call });
    }
}

impl Drop for PacePermit {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.pace.state(Instant::now()).log.remove(self.call);
        self.pace.changed.notify_waiters();
        if let Some(shared) = &self.pace.shared {
            shared.give_back(self.call.id);
        }
    }
}
