//! Limits how many connections each peer may have open.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::client_address::{ClientAddress, TrustedProxies};
use crate::shares::ClientNetwork;

/// Limits the open connections of each peer. An IPv6 peer is a /64, which is what providers assign
/// to one customer.
#[derive(Debug, Clone)]
pub(super) struct PeerLimit {
    max: usize,
    trusted: TrustedProxies,
    open: Arc<Mutex<HashMap<ClientNetwork, usize>>>,
}

/// Counts one open connection of a peer until dropped.
#[derive(Debug)]
pub(super) struct PeerPermit {
    limit: PeerLimit,
    peer: ClientNetwork,
}

impl PeerLimit {
    /// Allows at most `limit` connections per peer. Trusted proxies may have any number, since each
    /// carries the connections of many clients.
    pub(super) fn new(max: usize, trusted: TrustedProxies) -> Self {
        Self { max, trusted, open: Arc::default() }
    }

    /// Counts a connection, or returns `None` if its peer has too many.
    pub(super) fn admit(&self, address: IpAddr) -> Option<PeerPermit> {
        let peer = ClientAddress(address).network();
        let limit = if self.trusted.contains(address) { usize::MAX } else { self.max };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(PeerPermit { limit: self.clone(), peer })
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let mut open = self.limit.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network() {
        let peers = PeerLimit::new(1, TrustedProxies::default());
        let first = peers.admit(address("192.0.2.1")).unwrap();
        assert!(peers.admit(address("::ffff:192.0.2.1")).is_none());
        let _other = peers.admit(address("192.0.2.2")).unwrap();
        drop(first);
        let _again = peers.admit(address("192.0.2.1")).unwrap();
        let _v6 = peers.admit(address("2001:db8::1")).unwrap();
        assert!(peers.admit(address("2001:db8::ffff:1")).is_none());
        assert!(peers.admit(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn a_trusted_proxy_may_have_any_number() {
        let trusted = TrustedProxies::new(vec!["192.0.2.0/24".parse().unwrap()]);
        let peers = PeerLimit::new(1, trusted);
        let open: Vec<_> = (0..100).map(|_| peers.admit(address("192.0.2.1"))).collect();
        assert!(open.iter().all(Option::is_some));
    }

    #[test]
    fn peers_without_connections_are_forgotten() {
        let peers = PeerLimit::new(2, TrustedProxies::default());
        let open: Vec<_> = (0..2).map(|_| peers.admit(address("192.0.2.1")).unwrap()).collect();
        drop(open);
        assert!(peers.open.lock().unwrap().is_empty());
    }
}
