//! Limits how many connections each peer may have open.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::client_address::{ClientAddress, TrustedProxies};
use crate::shares::ClientNetwork;

/// Limits the open connections of each peer. A peer is an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone)]
pub(super) struct PeerLimit {
    max_connections: usize,
    trusted_proxies: TrustedProxies,
    /// How many connections each peer has. Peers without connections are not stored.
    open_counts: Arc<Mutex<HashMap<ClientNetwork, usize>>>,
}

/// The permit of one open connection. Dropping the permit subtracts the connection from the peer's
/// count.
#[derive(Debug)]
pub(super) struct PeerPermit {
    limit: PeerLimit,
    peer: ClientNetwork,
}

impl PeerLimit {
    /// Allows at most `max_connections` per peer. A trusted proxy may have any number of connections,
    /// since it forwards the requests of many clients.
    pub(super) fn new(max_connections: usize, trusted_proxies: TrustedProxies) -> Self {
        Self { max_connections, trusted_proxies, open_counts: Arc::default() }
    }

    /// Counts a connection from this address. Returns `None` if the peer already has as many
    /// connections as it may have.
    pub(super) fn admit(&self, address: IpAddr) -> Option<PeerPermit> {
        let peer = ClientAddress(address).network();
        let is_trusted = self.trusted_proxies.contains(address);
        let mut open_counts = self.open_counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open_counts.entry(peer).or_default();
        if *count >= self.max_connections && !is_trusted {
            return None;
        }
        *count += 1;
        Some(PeerPermit { limit: self.clone(), peer })
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let mut open_counts = self.limit.open_counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open_counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open_counts.remove(&self.peer);
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
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network_of_64_bits() {
        let limit = PeerLimit::new(1, TrustedProxies::default());
        let first = limit.admit(address("192.0.2.1")).unwrap();
        assert!(limit.admit(address("::ffff:192.0.2.1")).is_none());
        let _second = limit.admit(address("192.0.2.2")).unwrap();
        drop(first);
        let _first_again = limit.admit(address("192.0.2.1")).unwrap();
        let _ipv6 = limit.admit(address("2001:db8::1")).unwrap();
        assert!(limit.admit(address("2001:db8::ffff:1")).is_none());
        assert!(limit.admit(address("2001:db8:0:1::1")).is_some());
    }

    #[test]
    fn a_trusted_proxy_may_have_any_number_of_connections() {
        let trusted_proxies = TrustedProxies::new(vec!["192.0.2.0/24".parse().unwrap()]);
        let limit = PeerLimit::new(1, trusted_proxies);
        let permits: Vec<_> = (0..100).map(|_| limit.admit(address("192.0.2.1"))).collect();
        assert!(permits.iter().all(Option::is_some));
    }

    #[test]
    fn peers_without_connections_are_not_stored() {
        let limit = PeerLimit::new(2, TrustedProxies::default());
        let permits: Vec<_> = (0..2).map(|_| limit.admit(address("192.0.2.1")).unwrap()).collect();
        drop(permits);
        assert!(limit.open_counts.lock().unwrap().is_empty());
    }
}
