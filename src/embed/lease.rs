//! Lets replicas share a call: only the replica that holds a picture's lease calls NVIDIA, and the
//! others wait for its vector in the bucket.
//!
//! What a replica does next is decided by [`Step`], which knows no clock and no network. So a test can
//! try all orders in which several replicas take their steps, are killed, and lose replies.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{
    Embedding, Error,
    cache::{Cache, CacheKey},
};
use crate::{
    nvidia::Reservation,
    valkey::{Lease, LeaseReply, Unavailable, Valkey},
};

#[cfg(test)]
mod model;

/// The mean time before the second attempt to acquire a lease that another replica holds. Before each
/// further attempt, it is 1.5 times as long, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest mean time between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// After a wait, a replica looks in the bucket if its last look is older than this. Usually the reply `Done`
/// says that the vector is there. But the holder may have lost its connection to the Valkey before it
/// could release the lease as done.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a replica does next for a picture whose vector it has not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    /// Try to acquire the lease.
    Acquire {
        /// Whether to acquire the lease even if it was released as done. True after this replica has
        /// looked for the vector in the bucket and has not found it there.
        ignore_done: bool,
    },
    /// Another replica holds the lease: wait a little, then look in the bucket or try again.
    Wait,
    /// Look in the bucket.
    Read(Position),
    /// Call NVIDIA. [`decide`] ends with this step. Right before the call, a holder checks with [`may_call`]
    /// that it still holds the lease.
    Call(Position),
}

/// What a replica knows when it looks in the bucket or calls NVIDIA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Position {
    /// It holds the lease.
    Holder,
    /// Another replica holds the lease.
    Waiter,
    /// The lease says that another replica has written the vector.
    AfterDone,
    /// The Valkey cannot be used.
    Alone,
}

/// The reply to an attempt to acquire the lease. `L` is [`Lease`], or `()` in the test of `model.rs`.
type Reply<L> = Result<LeaseReply<L>, Unavailable>;

impl Step {
    const FIRST: Self = Self::Acquire { ignore_done: false };

    /// The step after a wait.
    fn after_wait(must_look: bool) -> Self {
        if must_look { Self::Read(Position::Waiter) } else { Self::FIRST }
    }

    /// The step after a reply. `looked_recently` says whether this replica looked in the bucket less
    /// than [`Valkey::lease_reserve`] before the reply. If so, it calls NVIDIA without another look, unless
    /// the reply is `Held` or `Done`.
    ///
    /// After `Acquired`, that look is recent enough: no other replica has written the vector since. If one
    /// had written it and released its lease, the reply would be `Done`. If it had been killed after the
    /// write and before the release, the reply would be `Held`: a lease lasts at least
    /// [`Valkey::lease_reserve`] after its holder is killed.
    fn after_reply<L>(reply: &Reply<L>, looked_recently: bool) -> Self {
        match (reply, looked_recently) {
            (Ok(LeaseReply::Acquired(_)), true) => Self::Call(Position::Holder),
            (Ok(LeaseReply::Acquired(_)), false) => Self::Read(Position::Holder),
            (Ok(LeaseReply::Held), _) => Self::Wait,
            (Ok(LeaseReply::Done), _) => Self::Read(Position::AfterDone),
            (Err(Unavailable), true) => Self::Call(Position::Alone),
            (Err(Unavailable), false) => Self::Read(Position::Alone),
        }
    }

    /// The step of a replica that has not found the vector in the bucket.
    fn after_miss(position: Position) -> Self {
        match position {
            Position::Waiter => Self::FIRST,
            Position::AfterDone => Self::Acquire { ignore_done: true },
            Position::Holder | Position::Alone => Self::Call(position),
        }
    }

    /// The step of a holder that has asked the Valkey whether it still holds the lease.
    fn after_confirmation(is_held: Result<bool, Unavailable>) -> Self {
        match is_held {
            Ok(true) => Self::Call(Position::Holder),
            // For example, the lease has expired while this replica was suspended.
            Ok(false) => Self::FIRST,
            Err(Unavailable) => Self::Call(Position::Alone),
        }
    }
}

/// The outcome of [`decide`].
#[derive(Debug)]
pub(super) enum Decision {
    /// Return this embedding, which another replica has paid for.
    Found(Embedding),
    /// Call NVIDIA. There is no lease if this replica decided alone.
    Call(Option<Lease>),
}

/// Decides whether this replica calls NVIDIA. Waits while another replica calls it. Before the first wait,
/// drops the `reservation`, so that other requests can use the reserved call. `looked_in_bucket_at` is when
/// this replica last began to look in the bucket. `None` means that it must look before it calls NVIDIA.
///
/// # Errors
/// [`Error::QueueTimeout`] if another replica still calls NVIDIA at the deadline.
pub(super) async fn decide(
    valkey: &Valkey,
    cache: &Cache,
    key: &CacheKey,
    mut looked_in_bucket_at: Option<Instant>,
    reservation: &mut Option<Reservation>,
    deadline: Instant,
) -> Result<Decision, Error> {
    let mut lease = None;
    let mut wait = FIRST_WAIT;
    let mut step = Step::FIRST;
    loop {
        let has_looked_within =
            |time: Duration| looked_in_bucket_at.is_some_and(|look: Instant| look.elapsed() < time);
        step = match step {
            Step::Acquire { ignore_done } => {
                let reply = valkey.acquire_lease(key, ignore_done).await;
                let looked_recently = has_looked_within(valkey.lease_reserve());
                let next = Step::after_reply(&reply, looked_recently);
                if let Ok(LeaseReply::Acquired(acquired)) = reply {
                    lease = Some(acquired);
                }
                next
            }
            Step::Wait => {
                *reservation = None;
                // Replicas that wait for the same lease should not all ask at the same time.
                let wake = Instant::now() + wait.mul_f64(0.5 + fastrand::f64());
                wait = (wait * 3 / 2).min(LONGEST_WAIT);
                sleep_until(wake.min(deadline)).await;
                if Instant::now() >= deadline {
                    return Err(Error::QueueTimeout("another replica's call to NVIDIA"));
                }
                Step::after_wait(!has_looked_within(LOOK_INTERVAL))
            }
            Step::Read(position) => {
                looked_in_bucket_at = Some(Instant::now());
                match cache.look_up_in_bucket(key).await {
                    Some(embedding) => {
                        if let Some(lease) = lease {
                            lease.release_as_done();
                        }
                        return Ok(Decision::Found(embedding));
                    }
                    None => Step::after_miss(position),
                }
            }
            Step::Call(_) => return Ok(Decision::Call(lease)),
        };
    }
}

/// Whether a replica is still allowed to call NVIDIA. This is false only if the Valkey says that the
/// replica has lost its lease.
pub(super) async fn may_call(lease: Option<&Lease>) -> bool {
    match lease {
        Some(lease) => matches!(Step::after_confirmation(lease.confirm().await), Step::Call(_)),
        None => true,
    }
}
