//! Determines a client's address: the address of its connection, or the address that a trusted proxy
//! has put into `X-Forwarded-For`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use hyper::HeaderMap;
use ipnet::IpNet;

use crate::shares::ClientNetwork;

/// The address of the other end of a request's connection: a client or a proxy.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The address of the client that sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The network that counts as one client in limits: an IPv4 address, or an IPv6 /64. Providers
    /// assign a /64 to one customer.
    pub fn network(self) -> ClientNetwork {
        ClientNetwork(match self.0.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

/// The networks of the proxies whose `X-Forwarded-For` is trusted. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Trusts the proxies in these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks.into())
    }

    /// Whether this is the address of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Determines the client's address: `peer`, unless that is a trusted proxy.
    ///
    /// A trusted proxy appends the address of its own peer to `X-Forwarded-For`. This function reads
    /// the entries backwards from the last one, until it finds an address that does not belong to a
    /// trusted proxy. It ignores the remaining entries, since the client may have written them. If it
    /// reaches an invalid entry or has read all entries, it returns the last address that it found: a
    /// proxy's.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> ClientAddress {
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        let mut entries =
            lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(parse_entry);
        let mut address = peer.to_canonical();
        while self.contains(address) {
            match entries.next() {
                Some(Some(entry)) => address = entry,
                // There are no more entries, or the entry is not an address.
                Some(None) | None => break,
            }
        }
        ClientAddress(address)
    }
}

/// Parses an address with or without a port. Some proxies append the port.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry).ok()?.trim();
    let address = match entry.parse::<SocketAddr>() {
        Ok(with_port) => with_port.ip(),
        Err(_) => entry.parse().ok()?,
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let proxies = TrustedProxies::new(vec![
            "127.0.0.1/32".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
            "::1/128".parse().unwrap(),
        ]);
        let mut headers = HeaderMap::new();
        for line in forwarded {
            // `from_bytes` also accepts bytes that are not ASCII, as hyper does.
            let line = HeaderValue::from_bytes(line.as_bytes()).unwrap();
            headers.append("x-forwarded-for", line);
        }
        proxies.client(address(peer), &headers).0.to_string()
    }

    #[test]
    fn x_forwarded_for_is_used_only_if_a_trusted_proxy_sends_it() {
        assert_eq!(client("192.0.2.7", &["198.51.100.1"]), "192.0.2.7");
        assert_eq!(client("127.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("::ffff:127.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("::1", &["2001:db8::5"]), "2001:db8::5");
    }

    #[test]
    fn entries_that_a_client_has_forged_are_ignored() {
        assert_eq!(client("127.0.0.1", &["1.1.1.1, 198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("127.0.0.1", &["1.1.1.1", "198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("127.0.0.1", &["127.0.0.1, 198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn the_address_of_a_client_behind_several_trusted_proxies_is_found() {
        assert_eq!(client("127.0.0.1", &["9.9.9.9, 198.51.100.1, 10.1.2.3"]), "198.51.100.1");
    }

    #[test]
    fn if_all_addresses_belong_to_trusted_proxies_the_last_one_found_counts_as_the_client() {
        assert_eq!(client("127.0.0.1", &["10.1.2.3"]), "10.1.2.3");
        assert_eq!(client("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn an_invalid_entry_and_the_entries_before_it_are_ignored() {
        for forwarded in ["", "unknown", "1.1.1.1, _hidden", "1.1.1.1, 999.1.1.1"] {
            assert_eq!(client("127.0.0.1", &[forwarded]), "127.0.0.1", "{forwarded}");
        }
        assert_eq!(client("127.0.0.1", &["6.6.6.6", "\u{ff}"]), "127.0.0.1");
        assert_eq!(client("127.0.0.1", &["6.6.6.6", "\u{ff}, 198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn a_port_in_an_entry_is_ignored() {
        assert_eq!(client("127.0.0.1", &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(client("127.0.0.1", &["[2001:db8::5]:4711"]), "2001:db8::5");
    }

    #[test]
    fn a_client_network_is_an_ipv4_address_or_an_ipv6_network_of_64_bits() {
        let network = |text| ClientAddress(address(text)).network().0.to_string();
        assert_eq!(network("192.0.2.1"), "192.0.2.1");
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
