//! A bound that clients share, so that none of them takes all there is.
//!
//! What was given cannot be taken back, and whoever comes next must find something. So a client
//! surely gets its share, as far as something is free; beyond that it gets only what leaves a
//! quarter of the whole to the others. A client that is alone can use three quarters. Where what is
//! given may not come back for long, a client gets its share and no more.

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

/// Whom shares count as one client: an IPv4 address, or the IPv6 network that one customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientNetwork(pub IpAddr);

impl ClientNetwork {
    /// All whose address is not known.
    pub const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

/// How much each client has. Who has nothing is not remembered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    of: HashMap<ClientNetwork, u64>,
    total: u64,
}

impl Tally {
    /// What all have together.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// What one has.
    pub(crate) fn of(&self, client: ClientNetwork) -> u64 {
        self.of.get(&client).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, client: ClientNetwork, units: u64) {
        if units > 0 {
            *self.of.entry(client).or_default() += units;
            self.total += units;
        }
    }

    /// Takes away what was added before.
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

/// Units that may be in use at once. Cheap to clone; clones share the bound.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    /// What a client surely gets.
    share: u64,
    /// Whether a client may have more than its share while others leave enough free.
    lends: bool,
    step: u64,
    used: Mutex<Tally>,
    freed: Notify,
}

/// What a client has of the units, given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    client: ClientNetwork,
    units: u64,
}

/// Others have what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing is left for this client")]
pub struct Full;

impl Shares {
    /// So many units, given out in steps of so many (at least 1). A share is half of them, or the
    /// largest part that a client may need at once.
    pub fn new(total: u64, largest: u64, step: u64) -> Self {
        Self::with(total, largest.max(total / 2), true, step)
    }

    /// So many units, of which no client ever gets more than its share.
    pub fn capped(total: u64, share: u64) -> Self {
        Self::with(total, share, false, 1)
    }

    fn with(total: u64, share: u64, lends: bool, step: u64) -> Self {
        let (used, freed) = Default::default();
        Self(Arc::new(Inner { total, share, lends, step, used, freed }))
    }

    /// Nothing yet, to be grown.
    pub fn empty(&self, client: ClientNetwork) -> Share {
        Share { shares: self.clone(), client, units: 0 }
    }

    /// Takes units, waiting for others to give theirs back.
    ///
    /// # Errors
    /// [`Full`] at the deadline.
    pub async fn take(
        &self,
        client: ClientNetwork,
        units: u64,
        deadline: Instant,
    ) -> Result<Share, Full> {
        timeout_at(deadline, self.wait_for(client, units)).await.map_err(|_| Full)
    }

    /// Takes units, waiting for others to give theirs back: for callers that have a deadline of
    /// their own.
    pub async fn wait_for(&self, client: ClientNetwork, units: u64) -> Share {
        let mut share = self.empty(client);
        loop {
            // Listens before it looks: what is freed in between is not missed.
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if share.grow_to(units).is_ok() {
                return share;
            }
            freed.await;
        }
    }

    /// Whether a client would get so many units more, now.
    pub fn has_room(&self, client: ClientNetwork, units: u64) -> bool {
        self.0.allows(&self.used(), client, self.0.in_steps(units))
    }

    /// Units in use.
    pub fn in_use(&self) -> u64 {
        self.used().total()
    }

    fn used(&self) -> MutexGuard<'_, Tally> {
        // The tally is whole whatever panicked elsewhere.
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The rule: see the module.
    fn allows(&self, used: &Tally, client: ClientNetwork, more: u64) -> bool {
        let (all, own) = (used.total().saturating_add(more), used.of(client).saturating_add(more));
        let is_lent = self.lends && all <= self.total - self.total / 4;
        all <= self.total && (own <= self.share || is_lent)
    }

    fn in_steps(&self, units: u64) -> u64 {
        units.checked_next_multiple_of(self.step).unwrap_or(u64::MAX)
    }
}

impl Share {
    /// Takes what is missing to so many units, or nothing at all.
    ///
    /// # Errors
    /// [`Full`], when they are not free now.
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

    /// Gives back all but so many units.
    pub fn shrink_to(&mut self, units: u64) {
        let less = self.units.saturating_sub(self.shares.0.in_steps(units));
        if less > 0 {
            self.shares.used().remove(self.client, less);
            self.units -= less;
            self.shares.0.freed.notify_waiters();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests;
