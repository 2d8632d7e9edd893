//! How many connections each peer has open.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::client_address::{Client, TrustedProxies};
use crate::shares::ClientNetwork;

/// Bounds the open connections of each peer. An IPv6 peer is its network of 64 bits: that is
/// what one customer gets.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    limit: usize,
    trusted: TrustedProxies,
    open: Arc<Mutex<HashMap<ClientNetwork, usize>>>,
}

/// An open connection; it counts until dropped.
#[derive(Debug)]
pub(super) struct Counted {
    peers: Peers,
    peer: ClientNetwork,
}

impl Peers {
    /// At most so many for each peer, and any number for proxies, who speak for many.
    pub(super) fn new(limit: usize, trusted: TrustedProxies) -> Self {
        Self { limit, trusted, open: Arc::default() }
    }

    /// Counts a connection, unless its peer has too many.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Counted> {
        let peer = Client(address).network();
        let limit = if self.trusted.contains(address) { usize::MAX } else { self.limit };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Counted { peers: self.clone(), peer })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
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
        let peers = Peers::new(1, TrustedProxies::default());
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
        let peers = Peers::new(1, trusted);
        let open: Vec<_> = (0..100).map(|_| peers.admit(address("192.0.2.1"))).collect();
        assert!(open.iter().all(Option::is_some));
    }

    #[test]
    fn nothing_is_kept_of_peers_that_left() {
        let peers = Peers::new(2, TrustedProxies::default());
        let open: Vec<_> = (0..2).map(|_| peers.admit(address("192.0.2.1")).unwrap()).collect();
        drop(open);
        assert!(peers.open.lock().unwrap().is_empty());
    }
}
