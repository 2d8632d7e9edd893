//! Which addresses may be fetched: pure rules, no network.
//!
//! The service runs beside private things (a cloud's metadata endpoint first of all), and fetches
//! what strangers name. The ranges are those of the IANA special-purpose registries
//! (<https://www.iana.org/assignments/iana-ipv4-special-registry>,
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>) and what clouds put beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// The longest address that is looked at, in bytes.
const MAX_URL: usize = 8192;

/// The operator's part of the rules.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Ports that may be called.
    pub ports: Vec<u16>,
    /// If given, the only hosts that may be called.
    pub hosts: Option<Vec<HostPattern>>,
    /// What may be called although the rules deny it.
    pub allow: Vec<Exception>,
}

/// A host, or all hosts under a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// `upload.wikimedia.org`
    Exact(String),
    /// `*.example.com`: any name under it, not the name itself.
    Under(String),
}

/// Something that the operator allows although the rules deny it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// Addresses: `10.1.0.0/16`.
    Network(IpNet),
    /// One server, wherever its name leads: `pictures.internal:8080`.
    Server(String, u16),
}

/// Why an address is not fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not an address that can be fetched at all.
    #[error("{0}")]
    Invalid(&'static str),
    /// The policy denies it.
    #[error("{0}")]
    Denied(&'static str),
}

const NOT_PUBLIC: Refusal = Refusal::Denied("This address does not lead to a public host.");

const NOT_FOLLOWED: Refusal =
    Refusal::Denied("The address redirects to one that the service does not fetch.");

/// An address that may be called, if it is a name only where that leads to allowed addresses.
#[derive(Debug, Clone)]
pub struct Target {
    /// The address.
    pub url: Url,
    /// Whether the operator excepted this very host and port.
    pub excepted: bool,
}

impl HostPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (bare, make): (_, fn(String) -> Self) = match text.strip_prefix("*.") {
            Some(domain) => (domain, Self::Under),
            None => (text, Self::Exact),
        };
        match Host::parse(bare) {
            Ok(host) if !bare.contains('*') => Ok(make(without_dot(&host.to_string()).to_owned())),
            _ => Err("is no host name; write upload.wikimedia.org or *.example.com".into()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        let host = without_dot(host);
        match self {
            Self::Exact(name) => host == name,
            Self::Under(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }
}

impl Exception {
    /// Reads an exception.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let server = text.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port != 0)?;
            Some(Self::Server(without_dot(&Host::parse(host).ok()?.to_string()).to_owned(), port))
        });
        server.ok_or_else(|| "is neither a network (10.1.0.0/16) nor host:port".into())
    }
}

impl Policy {
    /// Judges an address as a client wrote it.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn judge(&self, text: &str) -> Result<Target, Refusal> {
        if text.len() > MAX_URL {
            return Err(Refusal::Invalid("image_url is longer than 8192 bytes."));
        }
        let url = Url::parse(text.trim()).map_err(|_| {
            Refusal::Invalid(
                "image_url must be an absolute address such as https://example.com/photo.jpg.",
            )
        })?;
        self.judge_url(url)
    }

    /// Judges where a redirect leads.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn judge_redirect(&self, from: &Url, location: &str) -> Result<Target, Refusal> {
        let url = match from.join(location) {
            Ok(url) if location.len() <= MAX_URL => url,
            _ => return Err(NOT_FOLLOWED),
        };
        // What is wrong with it is not the client's fault, and is told as what it is: refused.
        self.judge_url(url).map_err(|_| NOT_FOLLOWED)
    }

    fn judge_url(&self, url: Url) -> Result<Target, Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Invalid("image_url must begin with http:// or https://."));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Invalid("image_url must not hold a user name or password."));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(Refusal::Invalid("image_url must name a host."));
        };
        let name = host.to_string();
        if self
            .hosts
            .as_ref()
            .is_some_and(|hosts| !hosts.iter().any(|pattern| pattern.matches(&name)))
        {
            return Err(Refusal::Denied(
                "This host is not on the list of hosts that the service fetches from.",
            ));
        }
        let excepted = self.allow.iter().any(|exception| {
            matches!(exception, Exception::Server(host, at) if host == without_dot(&name) && *at == port)
        });
        if !excepted && !self.ports.contains(&port) {
            return Err(Refusal::Denied("The service does not fetch from this port."));
        }
        let literal = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        if let Some(address) = literal {
            self.judge_address(address, excepted)?;
        }
        Ok(Target { url, excepted })
    }

    /// Judges an address that a host has, or that a name led to. Of a server that the operator
    /// excepted, only metadata endpoints are denied.
    ///
    /// # Errors
    /// [`Refusal::Denied`]
    pub fn judge_address(&self, address: IpAddr, excepted: bool) -> Result<(), Refusal> {
        let address = behind_nat64(address.to_canonical()); // IPv4-mapped is judged as IPv4, too
        let in_exception = || {
            self.allow
                .iter()
                .any(|exception| matches!(exception, Exception::Network(network) if network.contains(&address)))
        };
        let allowed =
            !METADATA.contains(&address) && (excepted || is_public(address) || in_exception());
        if allowed { Ok(()) } else { Err(NOT_PUBLIC) }
    }
}

fn without_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// Where machines ask for their own credentials. No exception opens these.
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // EC2, GCP, Azure and most others
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // ECS tasks
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),  // EKS pods
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure's wire server
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // EC2
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)), // EKS pods
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), // GCP
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const DENIED_V4: [Ipv4Net; 19] = [
    v4(0, 0, 0, 0, 8),        // this network
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carrier-grade NAT
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's wire server
    v4(169, 254, 0, 0, 16),   // link-local
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 31, 196, 0, 24),  // AS112
    v4(192, 52, 193, 0, 24),  // AMT
    v4(192, 88, 99, 0, 24),   // 6to4 relays
    v4(192, 168, 0, 0, 16),   // private
    v4(192, 175, 48, 0, 24),  // AS112
    v4(198, 18, 0, 0, 15),    // benchmarking
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved
];

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The well-known prefix of translators to IPv4, of 96 bits.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// Global unicast: everything else in IPv6 is denied.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

const DENIED_V6: [Ipv6Net; 5] = [
    v6(0x2001, 0, 0, 23),         // protocol assignments, Teredo among them
    v6(0x2001, 0xdb8, 0, 32),     // documentation
    v6(0x2002, 0, 0, 16),         // 6to4: holds an IPv4 address
    v6(0x2620, 0x4f, 0x8000, 48), // AS112
    v6(0x3fff, 0, 0, 20),         // documentation
];

/// Whether an address is one that anybody on the internet may have. IPv4-mapped addresses are to
/// be turned into IPv4 first.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !DENIED_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address)
                && !DENIED_V6.iter().any(|network| network.contains(&address))
                && !is_isatap(address)
        }
    }
}

/// Where a translator's address leads: to the IPv4 address in its last 32 bits (RFC 6052, section
/// 2.1). In a network with DNS64, every name leads to such ones. Any other address is itself.
fn behind_nat64(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(translated) if NAT64.contains(&translated) => {
            Ipv4Addr::from_bits(translated.to_bits() as u32).into()
        }
        _ => address,
    }
}

/// ISATAP tunnels to the IPv4 address in the interface id (RFC 5214, section 6.1).
fn is_isatap(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [_, _, _, _, 0x0000 | 0x0200, 0x5efe, _, _])
}

#[cfg(test)]
mod tests;
