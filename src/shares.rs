//! A limit on a resource that clients share, such as memory. It keeps some of the resource free for
//! clients that arrive later, because the service cannot take back what it has granted.
//!
//! The resource is counted in units. Each client has a share, a number of units. A client gets units
//! up to its share while enough are free. It gets more than its share only if a quarter of all
//! units then stays free for other clients. While only one client uses the resource, it can thus get
//! three quarters of the units, or its share if that is more.
//!
//! [`Shares::capped`] is for units that may be in use for a long time. There, a client never gets
//! more than its share. [`Shares::undivided`] is for a service with a single client, which may get
//! all units.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// The address or network that counts as one client: an IPv4 address, or the IPv6 network that a
/// provider assigns to one customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientNetwork(pub IpAddr);

impl ClientNetwork {
    /// Represents all clients without a known address.
    pub const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

/// Who uses the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Different clients, which must not keep each other from being served.
    Many,
    /// One client, which has the service for itself.
    One,
}

/// How many units each client uses. Clients that use none are not stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    by_client: HashMap<ClientNetwork, u64>,
    total: u64,
}

impl Tally {
    /// The units of all clients together.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The units of one client.
    pub(crate) fn of(&self, client: ClientNetwork) -> u64 {
        self.by_client.get(&client).copied().unwrap_or(0)
    }

    /// The clients that use units, and how many each of them uses.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ClientNetwork, u64)> {
        self.by_client.iter().map(|(client, units)| (*client, *units))
    }

    pub(crate) fn add(&mut self, client: ClientNetwork, units: u64) {
        if units > 0 {
            *self.by_client.entry(client).or_default() += units;
            self.total += units;
        }
    }

    /// Subtracts units that were added before.
    pub(crate) fn remove(&mut self, client: ClientNetwork, units: u64) {
        if let Some(in_use) = self.by_client.get_mut(&client) {
            *in_use -= units;
            self.total -= units;
            if *in_use == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

/// A limit on the units in use. Cheap to clone; clones share the limit.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// All units, in use or free.
    total: u64,
    /// How many units a client may take even if they are the last free ones.
    share: u64,
    /// Whether a client may exceed its share if a quarter of all units then stays free.
    may_exceed_share: bool,
    /// The units of every permit are rounded up to a multiple of this number.
    step: u64,
    in_use: Mutex<Tally>,
    /// Notified whenever units are returned.
    returned: Notify,
}

/// A client's permit for a number of units. Dropping the permit returns the units.
#[derive(Debug)]
pub struct SharePermit {
    shares: Shares,
    client: ClientNetwork,
    units: u64,
}

/// The client cannot get this many units now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not enough units are free for this client")]
pub struct NotEnoughUnits;

impl Shares {
    /// A limit of `total` units. The units of each permit are rounded up to a multiple of `step`,
    /// which is at least 1. `largest` is the most units that one permit may need. A client's share is
    /// half of all units, or `largest` if that is more.
    pub fn new(total: u64, largest: u64, step: u64) -> Self {
        let may_exceed_share = true;
        Self::with(total, largest.max(total / 2), may_exceed_share, step)
    }

    /// A limit of `total` units, of which a client may get all. `step` is as in [`Shares::new`].
    pub fn undivided(total: u64, step: u64) -> Self {
        let may_exceed_share = false; // the share is everything
        Self::with(total, total, may_exceed_share, step)
    }

    /// A limit of `total` units. No client ever gets more than `share` of them.
    pub fn capped(total: u64, share: u64) -> Self {
        let may_exceed_share = false;
        let step = 1; // no rounding
        Self::with(total, share, may_exceed_share, step)
    }

    fn with(total: u64, share: u64, may_exceed_share: bool, step: u64) -> Self {
        let (in_use, returned) = Default::default();
        Self(Arc::new(Inner { total, share, may_exceed_share, step, in_use, returned }))
    }

    /// A permit for no units. [`SharePermit::grow_to`] adds units.
    pub fn empty_permit(&self, client: ClientNetwork) -> SharePermit {
        SharePermit { shares: self.clone(), client, units: 0 }
    }

    /// Takes units. While the client cannot get them, waits until other permits return units, but
    /// not past the deadline.
    ///
    /// # Errors
    /// [`NotEnoughUnits`] if the deadline passes.
    pub async fn take(
        &self,
        client: ClientNetwork,
        units: u64,
        deadline: Instant,
    ) -> Result<SharePermit, NotEnoughUnits> {
        timeout_at(deadline, self.take_when_free(client, units)).await.map_err(|_| NotEnoughUnits)
    }

    /// Takes units. While the client cannot get them, waits without a deadline: the caller must limit the
    /// wait.
    pub async fn take_when_free(&self, client: ClientNetwork, units: u64) -> SharePermit {
        let mut permit = self.empty_permit(client);
        loop {
            // Listens already before the attempt. Otherwise, units that are returned between the
            // attempt and the wait would not end the wait.
            let mut returned = pin!(self.0.returned.notified());
            returned.as_mut().enable();
            if permit.grow_to(units).is_ok() {
                return permit;
            }
            returned.await;
        }
    }

    /// Whether a client would get this many more units now.
    pub fn would_grant(&self, client: ClientNetwork, units: u64) -> bool {
        self.0.allows(&self.tally(), client, self.0.round_up(units))
    }

    /// The most units that a client can get while no other client has units.
    pub fn most_for_one_client(&self) -> u64 {
        let Inner { total, share, may_exceed_share, .. } = *self.0;
        let three_quarters = if may_exceed_share { total - total / 4 } else { 0 };
        share.max(three_quarters).min(total)
    }

    /// The units in use.
    pub fn in_use(&self) -> u64 {
        self.tally().total()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        // The tally stays consistent even if a thread panicked while it had the lock.
        self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether the client may get `more` units, by the rule in the module's documentation.
    fn allows(&self, tally: &Tally, client: ClientNetwork, more: u64) -> bool {
        let all_clients = tally.total().saturating_add(more);
        let this_client = tally.of(client).saturating_add(more);
        let leaves_a_quarter = all_clients <= self.total - self.total / 4;
        let exceeds_share = this_client > self.share;
        all_clients <= self.total && (!exceeds_share || self.may_exceed_share && leaves_a_quarter)
    }

    fn round_up(&self, units: u64) -> u64 {
        units.checked_next_multiple_of(self.step).unwrap_or(u64::MAX)
    }
}

impl SharePermit {
    /// Grows the permit to this many units, rounded up. A permit that is already larger stays as it is.
    ///
    /// # Errors
    /// [`NotEnoughUnits`] if the client cannot get the missing units now. The permit then stays as it is.
    pub fn grow_to(&mut self, units: u64) -> Result<(), NotEnoughUnits> {
        let more = self.shares.0.round_up(units).saturating_sub(self.units);
        if more > 0 {
            let mut tally = self.shares.tally();
            if !self.shares.0.allows(&tally, self.client, more) {
                return Err(NotEnoughUnits);
            }
            tally.add(self.client, more);
            self.units += more;
        }
        Ok(())
    }

    /// Moves this many units, rounded up, to a new permit. If this permit has fewer, moves all it has.
    pub fn split(&mut self, units: u64) -> Self {
        let units = self.shares.0.round_up(units).min(self.units);
        self.units -= units;
        Self { shares: self.shares.clone(), client: self.client, units }
    }

    /// Shrinks the permit to this many units, rounded up, and gives the other units back. A permit that
    /// is already smaller stays as it is.
    pub fn shrink_to(&mut self, units: u64) {
        let surplus = self.units.saturating_sub(self.shares.0.round_up(units));
        if surplus > 0 {
            self.shares.tally().remove(self.client, surplus);
            self.units -= surplus;
            self.shares.0.returned.notify_waiters();
        }
    }
}

impl Drop for SharePermit {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests;
