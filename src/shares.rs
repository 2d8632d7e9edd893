//! A bound on units that clients share, so that no client can take them all.
//!
//! Units that were granted cannot be taken away again, and the next client must still find some. So
//! each client is entitled to its share while units are free, and gets more than its share only
//! while a quarter of all units stays free for others. A client that is alone can thus use three
//! quarters. Where a unit may be held for long, a client gets its share and no more.

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

/// What counts as one client: an IPv4 address, or the IPv6 network that a provider gives to one
/// customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientNetwork(pub IpAddr);

impl ClientNetwork {
    /// Stands for all clients without a known address.
    pub const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

/// The units that each client holds. Clients without units are not stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    of: HashMap<ClientNetwork, u64>,
    total: u64,
}

impl Tally {
    /// The units of all clients together.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The units of one client.
    pub(crate) fn of(&self, client: ClientNetwork) -> u64 {
        self.of.get(&client).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, client: ClientNetwork, units: u64) {
        if units > 0 {
            *self.of.entry(client).or_default() += units;
            self.total += units;
        }
    }

    /// Subtracts units that were added before.
    pub(crate) fn remove(&mut self, client: ClientNetwork, units: u64) {
        if let Some(has) = self.of.get_mut(&client) {
            *has -= units;
            self.total -= units;
            if *has == 0 {
                self.of.remove(&client);
            }
        }
    }
}

/// A bound on the units in use. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    /// The units that each client is entitled to.
    share: u64,
    /// Whether a client may exceed its share while enough units stay free for others.
    may_exceed_share: bool,
    step: u64,
    used: Mutex<Tally>,
    freed: Notify,
}

/// The units that a client holds, given back when dropped.
#[derive(Debug)]
pub struct SharePermit {
    shares: Shares,
    client: ClientNetwork,
    units: u64,
}

/// Other clients hold the units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no units are left for this client")]
pub struct Full;

impl Shares {
    /// A bound of `total` units, counted in multiples of `step` (at least 1). A client's share is
    /// half of them, or `largest`, the most that a client may need at once.
    pub fn new(total: u64, largest: u64, step: u64) -> Self {
        Self::with(total, largest.max(total / 2), true, step)
    }

    /// A bound of `total` units, of which no client ever gets more than `share`.
    pub fn capped(total: u64, share: u64) -> Self {
        Self::with(total, share, false, 1)
    }

    fn with(total: u64, share: u64, may_exceed_share: bool, step: u64) -> Self {
        let (used, freed) = Default::default();
        Self(Arc::new(Inner { total, share, may_exceed_share, step, used, freed }))
    }

    /// A permit for no units yet, to be grown.
    pub fn empty(&self, client: ClientNetwork) -> SharePermit {
        SharePermit { shares: self.clone(), client, units: 0 }
    }

    /// Takes units, and waits until the deadline for others to give theirs back.
    ///
    /// # Errors
    /// [`Full`] if the deadline passes.
    pub async fn take(
        &self,
        client: ClientNetwork,
        units: u64,
        deadline: Instant,
    ) -> Result<SharePermit, Full> {
        timeout_at(deadline, self.take_when_free(client, units)).await.map_err(|_| Full)
    }

    /// Takes units, and waits as long as necessary. The caller must have a deadline of its own.
    pub async fn take_when_free(&self, client: ClientNetwork, units: u64) -> SharePermit {
        let mut permit = self.empty(client);
        loop {
            // Listens before it checks, so that it misses nothing that is freed in between.
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if permit.grow_to(units).is_ok() {
                return permit;
            }
            freed.await;
        }
    }

    /// Whether a client would get this many more units now.
    pub fn has_room(&self, client: ClientNetwork, units: u64) -> bool {
        self.0.allows(&self.used(), client, self.0.in_steps(units))
    }

    /// The units in use.
    pub fn in_use(&self) -> u64 {
        self.used().total()
    }

    fn used(&self) -> MutexGuard<'_, Tally> {
        // The tally stays consistent even if a holder of the lock panicked.
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The rule that the module's documentation explains.
    fn allows(&self, used: &Tally, client: ClientNetwork, more: u64) -> bool {
        let (all, own) = (used.total().saturating_add(more), used.of(client).saturating_add(more));
        let may_exceed_now = self.may_exceed_share && all <= self.total - self.total / 4;
        all <= self.total && (own <= self.share || may_exceed_now)
    }

    fn in_steps(&self, units: u64) -> u64 {
        units.checked_next_multiple_of(self.step).unwrap_or(u64::MAX)
    }
}

impl SharePermit {
    /// Grows the permit to this many units, or leaves it unchanged.
    ///
    /// # Errors
    /// [`Full`] if the missing units are not free now.
    pub fn grow_to(&mut self, units: u64) -> Result<(), Full> {
        let more = self.shares.0.in_steps(units).saturating_sub(self.units);
        if more > 0 {
            let mut used = self.shares.used();
            if !self.shares.0.allows(&used, self.client, more) {
                return Err(Full);
            }
            used.add(self.client, more);
            self.units += more;
        }
        Ok(())
    }

    /// Gives back all but this many units.
    pub fn shrink_to(&mut self, units: u64) {
        let less = self.units.saturating_sub(self.shares.0.in_steps(units));
        if less > 0 {
            self.shares.used().remove(self.client, less);
            self.units -= less;
            self.shares.0.freed.notify_waiters();
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
