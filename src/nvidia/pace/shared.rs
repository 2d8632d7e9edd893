//! Shares the limit on calls to NVIDIA with other replicas: each call needs a turn from the Valkey.
//!
//! The replica still decides by itself which of its calls is next and when, because only it knows its
//! clients. It asks for a turn for that call alone. So it sends one command at a time, and takes no turn
//! for a call that must wait anyway.
//!
//! While the Valkey cannot be used, each replica has an equal share of the limit. Calls that are made
//! meanwhile are written into the Valkey when it works again. Until all replicas have had time for this,
//! each of them takes turns only up to its share.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Inner, State, call_log::TimedCall, permit::PacePermit};
use crate::{
    shares::ClientNetwork,
    valkey::{CallId, PaceKey, PaceReply, Unavailable, Valkey},
};

/// The shortest time for which a replica keeps to its share after the Valkey works again. Other replicas
/// may notice half a second later that it works, and then write their calls.
const MIN_SETTLE_TIME: Duration = Duration::from_secs(3);

/// A replica with a waiting call asks at least this often which calls others have made, because others may
/// have given turns back. The interval varies, so that replicas do not ask at the same time.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// If the turn for a call was asked for longer ago than this, the Valkey is told the call's time again just
/// before the call is made. So the call is made at most this long after the time that the Valkey knows, or,
/// if the Valkey was told again, at most one timeout of its commands. The margin of [`super::WINDOW`] covers
/// both.
const MAX_AGE_OF_TURN: Duration = Duration::from_millis(100);

/// The longest timeout of the Valkey's commands that the margin of [`super::WINDOW`] covers. A longer
/// timeout makes [`SharedPace::window`] longer.
const COVERED_TIMEOUT: Duration = Duration::from_millis(300);

/// With a limit above this, a reply that grants a turn does not update the calls of other replicas in
/// `State::log`. The update takes longer the more calls there are in the window.
const LARGE_LIMIT: usize = 1000;

/// The most calls that one command records. A command with many calls would block the Valkey.
const CALLS_PER_COMMAND: usize = 500;

/// The Valkey, and the name of the limit in it.
#[derive(Debug, Clone)]
pub(in crate::nvidia) struct SharedLimit {
    valkey: Valkey,
    key: PaceKey,
    /// [`MIN_SETTLE_TIME`], or longer if the Valkey's timeout is long.
    settle_time: Duration,
}

/// The part of the limiter that uses the Valkey.
#[derive(Debug)]
pub(super) struct SharedPace {
    limit: SharedLimit,
    /// The most calls in a window, of all replicas together.
    calls_per_window: usize,
    /// The window for the Valkey. It is longer than the limiter's if the Valkey's timeout exceeds
    /// [`COVERED_TIMEOUT`].
    window: Duration,
    /// A number that changes when this replica must record its calls again: with each new connection,
    /// and when the Valkey has forgotten this replica.
    generation: watch::Receiver<u64>,
    /// The task that runs [`record_again`]. It ends with the limiter.
    recorder: OnceLock<AbortOnDropHandle<()>>,
}

/// Who enforces the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The replica alone, with its share as the limit.
    Alone,
    /// The Valkey, but the replica keeps to its share, because the Valkey may not know all recent calls
    /// yet.
    Settling,
    /// The Valkey.
    Shared,
}

/// What the limiter knows about the Valkey.
#[derive(Debug)]
pub(super) struct Sharing {
    pub mode: Mode,
    /// This replica's share of the calls in a window.
    pub share: usize,
    /// Whether a call's task waits for a reply of the Valkey.
    pub is_asking: bool,
    /// When this replica asks again which calls others have made, if a call of its own waits.
    pub next_ask: Instant,
    /// The generation of the Valkey, and when its settle time ends: by then, all replicas have written
    /// their calls. Stays set in [`Mode::Shared`]. `None` while the Valkey cannot be used.
    settle_end: Option<(u64, Instant)>,
}

impl Sharing {
    pub(super) fn new(now: Instant) -> Self {
        Self { mode: Mode::Alone, share: 0, is_asking: false, next_ask: now, settle_end: None }
    }

    /// Until when the replica must wait for other replicas to write their calls, because it has used its
    /// share. `None` if it need not wait. `own` counts its calls in the window.
    pub(super) fn must_wait_until(&self, own: impl FnOnce() -> usize) -> Option<Instant> {
        let (_, settle_end) = self.settle_end.filter(|_| self.mode == Mode::Settling)?;
        (own() >= self.share).then_some(settle_end)
    }
}

impl SharedLimit {
    pub(in crate::nvidia) fn new(valkey: Valkey, key: PaceKey) -> Self {
        // The slowest other replica has just begun an attempt to connect that hangs, when the Valkey works
        // again. The attempt takes up to three timeouts: two to connect, and one for the command that
        // reports the replica. After half a second, the replica tries again, and then writes its calls: up
        // to four timeouts. These are seven timeouts and half a second; the other half second is a margin.
        let settle_time = MIN_SETTLE_TIME.max(Duration::from_secs(1) + 7 * valkey.timeout());
        Self { valkey, key, settle_time }
    }
}

impl SharedPace {
    pub(super) fn new(limit: SharedLimit, calls_per_window: usize, window: Duration) -> Self {
        let generation = limit.valkey.generation();
        let window = window + limit.valkey.timeout().saturating_sub(COVERED_TIMEOUT);
        Self { limit, calls_per_window, window, generation, recorder: OnceLock::new() }
    }

    /// Returns the mode at this time. Each new generation of the Valkey starts a settle time, whose end
    /// is stored in `sharing`.
    fn mode(&self, sharing: &mut Sharing, now: Instant) -> Mode {
        if !self.limit.valkey.works() {
            sharing.settle_end = None;
            return Mode::Alone;
        }
        let generation = *self.generation.borrow();
        let settle_end = match sharing.settle_end {
            Some((known, settle_end)) if known == generation => settle_end,
            _ => now + self.limit.settle_time,
        };
        sharing.settle_end = Some((generation, settle_end));
        if now < settle_end { Mode::Settling } else { Mode::Shared }
    }

    /// Tells the Valkey that this call is made now, unless its turn is younger than [`MAX_AGE_OF_TURN`].
    /// `asked` is when the turn was asked for, or `None` if the call has no turn. The caller makes the
    /// call even if the Valkey cannot be used.
    pub(super) async fn record_use(&self, call: CallId, asked: Option<Instant>) {
        if asked.is_none_or(|asked| asked.elapsed() > MAX_AGE_OF_TURN) {
            // After a failure, the call is recorded when the Valkey works again.
            let _: Result<(), Unavailable> = self.record([(call, Duration::ZERO)]).await;
        }
    }

    /// Takes a turn for the call. Without a call, only asks which calls other replicas have made.
    async fn take_turn(&self, call: Option<CallId>) -> Result<PaceReply, Unavailable> {
        let SharedLimit { valkey, key, .. } = &self.limit;
        valkey.take_turn(key, self.calls_per_window, self.window, call).await
    }

    /// Writes calls of this replica, with their ages, into the Valkey.
    async fn record(
        &self,
        calls: impl IntoIterator<Item = (CallId, Duration)>,
    ) -> Result<(), Unavailable> {
        self.limit.valkey.record_calls(&self.limit.key, self.window, calls).await
    }

    /// Gives back the turn of a call that is not made, in the background.
    pub(super) fn give_back(&self, call: CallId) {
        let SharedLimit { valkey, key, .. } = self.limit.clone();
        self.limit.valkey.in_background(async move {
            // After a failure, the turn stays unused.
            let _: Result<(), Unavailable> = valkey.return_turn(&key, call).await;
        });
    }
}

impl Inner {
    /// If there is a Valkey, starts the task that writes this replica's calls into it. The task ends with
    /// the limiter.
    pub(super) fn start_call_recorder(self: &Arc<Self>) {
        if let Some(shared) = &self.shared {
            let task = tokio::spawn(record_again(Arc::downgrade(self), shared.generation.clone()));
            shared.recorder.get_or_init(|| AbortOnDropHandle::new(task));
        }
    }

    /// Applies the mode at this time to the state.
    pub(super) fn apply_mode(&self, state: &mut State, now: Instant) {
        let Some(shared) = &self.shared else { return };
        let mode = shared.mode(&mut state.sharing, now);
        let total = shared.calls_per_window;
        let replicas = shared.limit.valkey.replicas();
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX).max(1);
        let share = (total / replicas).max(1);
        match mode {
            // The 1: no other replica makes calls of this share.
            Mode::Alone => state.log.set_limit(share, 1),
            // In `Settling`, `Sharing::must_wait_until` enforces the share. The log gets the whole limit,
            // because `CallLog::expected_time` also predicts waits that end after the settle time.
            Mode::Settling | Mode::Shared => state.log.set_limit(total, replicas),
        }
        state.sharing.share = share;
        if state.sharing.mode != mode {
            state.sharing.mode = mode;
            // The Valkey's last reply is out of date. In `Alone`, calls of other replicas do not count.
            state.log.replace_others([]);
            state.log.set_not_before(None);
            state.sharing.next_ask = now;
        }
    }

    /// Asks the Valkey for a turn for a call. Returns `None` if there is no turn, or if the Valkey cannot
    /// be used.
    pub(super) async fn take_turn(
        self: &Arc<Self>,
        ask: AskGuard<'_>,
        id: CallId,
        client_network: ClientNetwork,
    ) -> Option<PacePermit> {
        let asked = Instant::now();
        let call = TimedCall { time: asked, id, client_network: Some(client_network) };
        // If the caller no longer waits for the reply, dropping the permit gives the turn back.
        let mut permit =
            PacePermit { pace: Arc::clone(self), call, asked: Some(asked), is_done: false };
        let reply = ask.shared.take_turn(Some(id)).await;
        let now = Instant::now();
        match reply {
            Ok(reply) if reply.is_granted => {
                permit.call.time = now;
                let mut state = self.state(now);
                state.store_reply(&reply, now);
                state.log.record(permit.call);
                return Some(permit);
            }
            Ok(reply) => self.state(now).store_reply(&reply, now),
            // If the turn was granted, and only the reply was lost, the turn stays unused.
            Err(Unavailable) => {}
        }
        permit.is_done = true; // nothing is given back: there is no turn, or its reply was lost
        None
    }

    /// Asks the Valkey which calls other replicas have made.
    pub(super) async fn ask_for_calls(&self, ask: AskGuard<'_>) {
        if let Ok(reply) = ask.shared.take_turn(None).await {
            let now = Instant::now();
            self.state(now).store_reply(&reply, now);
        }
    }

    /// Writes the calls of this replica into the Valkey.
    async fn record_own_calls(&self, shared: &SharedPace) -> Result<(), Unavailable> {
        let now = Instant::now();
        let age = |call: &TimedCall| (call.id, now.saturating_duration_since(call.time));
        let calls: Vec<(CallId, Duration)> = self.state(now).log.own().map(age).collect();
        for chunk in calls.chunks(CALLS_PER_COMMAND) {
            shared.record(chunk.iter().copied()).await?;
        }
        Ok(())
    }
}

impl State {
    /// Stores what the Valkey has replied.
    fn store_reply(&mut self, reply: &PaceReply, now: Instant) {
        let jitter = 0.75 + fastrand::f64() / 4.0;
        self.sharing.next_ask = now + ASK_INTERVAL.mul_f64(jitter);
        self.log.set_not_before((!reply.wait.is_zero()).then(|| now + reply.wait));
        let is_large = self.log.limit() > LARGE_LIMIT;
        if self.sharing.mode != Mode::Alone && !(is_large && reply.is_granted) {
            let ages = reply.ages_of_others.iter();
            self.log.replace_others(ages.filter_map(|age| now.checked_sub(*age)));
        }
    }
}

/// While this exists, no other task asks the Valkey.
pub(super) struct AskGuard<'a> {
    pace: &'a Inner,
    shared: &'a SharedPace,
}

impl<'a> AskGuard<'a> {
    pub(super) fn new(pace: &'a Inner, shared: &'a SharedPace, state: &mut State) -> Self {
        state.sharing.is_asking = true;
        Self { pace, shared }
    }
}

impl Drop for AskGuard<'_> {
    fn drop(&mut self) {
        self.pace.state(Instant::now()).sharing.is_asking = false;
        self.pace.changed.notify_waiters();
    }
}

/// Writes the calls of this replica into the Valkey now, and for each further generation of the Valkey.
/// Ends with the limiter.
async fn record_again(pace: Weak<Inner>, mut generation: watch::Receiver<u64>) {
    loop {
        generation.borrow_and_update();
        let settle_time = {
            let Some(pace) = pace.upgrade() else { return };
            let Some(shared) = &pace.shared else { return };
            // After a failure, the next generation repeats this.
            let _: Result<(), Unavailable> = pace.record_own_calls(shared).await;
            // A new generation changes the mode, so a waiting call may be made earlier.
            pace.changed.notify_waiters();
            shared.limit.settle_time
        };
        let changed_early = timeout(settle_time, generation.changed()).await;
        let changed = if let Ok(changed) = changed_early {
            changed
        } else {
            // The share no longer applies, so a waiting call may be made.
            if let Some(pace) = pace.upgrade() {
                pace.changed.notify_waiters();
            }
            generation.changed().await
        };
        if changed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
