//! Decides which URLs may be fetched. Nothing here uses the network.
//!
//! Clients choose the URLs, and the service can reach private hosts that clients must not reach,
//! such as a cloud's metadata endpoint. The service denies the ranges in the IANA special-purpose
//! registries (<https://www.iana.org/assignments/iana-ipv4-special-registry>,
//! <https://www.iana.org/assignments/iana-ipv6-special-registry>) and the metadata endpoints of
//! clouds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// The longest URL, in bytes.
pub const MAX_URL_LEN: usize = 8192;

/// The rules for URLs and addresses, with the operator's settings.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The allowed ports.
    pub ports: Vec<u16>,
    /// The only allowed hosts. The host of an exception must be among them, too. `None` allows every
    /// public host.
    pub hosts: Option<Vec<HostPattern>>,
    /// Exceptions to the rules about addresses. An [`Exception::Server`] is also an exception
    /// to the rule about ports.
    pub exceptions: Vec<Exception>,
}

/// A host, or all hosts below a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// One host, such as `upload.wikimedia.org`.
    Exact(String),
    /// `*.example.com`: every name below the domain, but not the domain itself.
    Subdomains(String),
}

/// An exception to the rules about addresses or ports: see [`Policy::exceptions`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// A network: `10.1.0.0/16`.
    Network(IpNet),
    /// One host and port, such as `pictures.internal:8080`. The host's address may be private.
    Server(String, u16),
}

/// Why a URL is not fetched. Its message is a sentence for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// The URL is too long, is not an absolute `http` or `https` URL, or contains a user name or
    /// password.
    #[error("{0}")]
    Invalid(&'static str),
    /// The policy denies the URL.
    #[error("{0}")]
    Denied(&'static str),
}

/// The error for a URL that is longer than [`MAX_URL_LEN`].
pub const TOO_LONG: UrlError = UrlError::Invalid("image_url is longer than 8192 bytes.");

/// The error for an address that the policy denies.
const NOT_PUBLIC: UrlError = UrlError::Denied("This address does not lead to a public host.");

/// The error for a redirect to an invalid or denied URL.
const NOT_FOLLOWED: UrlError =
    UrlError::Denied("The URL redirects to one that the service does not fetch.");

/// A URL that may be requested. If its host is a name, the resolver must still check the name's
/// addresses.
#[derive(Debug, Clone)]
pub struct Target {
    /// The URL.
    pub url: Url,
    /// Whether the host and port are an [`Exception::Server`].
    pub is_server_exception: bool,
}

impl HostPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// A message that continues a sentence that begins with the setting's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, is_wildcard) = match text.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (text, false),
        };
        match Host::parse(name) {
            Ok(host) if !name.contains('*') => {
                let host = without_trailing_dot(&host.to_string()).to_owned();
                Ok(if is_wildcard { Self::Subdomains(host) } else { Self::Exact(host) })
            }
            _ => Err("is not a host name; write upload.wikimedia.org or *.example.com".into()),
        }
    }

    fn matches(&self, host: &str) -> bool {
        let host = without_trailing_dot(host);
        match self {
            Self::Exact(name) => host == name,
            // `labels` are those before the domain, with the dot at their end.
            Self::Subdomains(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')),
        }
    }
}

impl Exception {
    /// Parses an exception.
    ///
    /// # Errors
    /// A message that continues a sentence that begins with the setting's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(network) = text.parse::<IpNet>() {
            return Ok(Self::Network(network.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let server = text.rsplit_once(':').and_then(|(host, port)| {
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let host = Host::parse(host).ok()?.to_string();
            Some(Self::Server(without_trailing_dot(&host).to_owned(), port))
        });
        server.ok_or_else(|| "is neither a network (10.1.0.0/16) nor host:port".into())
    }
}

impl Policy {
    /// Checks the URL that a client sent.
    ///
    /// # Errors
    /// [`UrlError`]
    pub fn check_url(&self, text: &str) -> Result<Target, UrlError> {
        if text.len() > MAX_URL_LEN {
            return Err(TOO_LONG);
        }
        let url = Url::parse(text.trim()).map_err(|_| {
            UrlError::Invalid(
                "image_url must be an absolute URL such as https://example.com/photo.jpg.",
            )
        })?;
        self.check_parsed(url)
    }

    /// Checks the target of a redirect.
    ///
    /// # Errors
    /// [`UrlError::Denied`], also if the URL is invalid.
    pub fn check_redirect(&self, from: &Url, location: &str) -> Result<Target, UrlError> {
        let url = match from.join(location) {
            Ok(url) if location.len() <= MAX_URL_LEN => url,
            _ => return Err(NOT_FOLLOWED),
        };
        // The client did not choose this URL, so the error does not say what is wrong with the URL.
        self.check_parsed(url).map_err(|_| NOT_FOLLOWED)
    }

    fn check_parsed(&self, url: Url) -> Result<Target, UrlError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(UrlError::Invalid("image_url must begin with http:// or https://."));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::Invalid("image_url must not contain a user name or password."));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(UrlError::Invalid("image_url must contain a host."));
        };
        let name = host.to_string();
        if let Some(hosts) = &self.hosts
            && !hosts.iter().any(|pattern| pattern.matches(&name))
        {
            return Err(UrlError::Denied(
                "This host is not on the list of hosts that the service fetches from.",
            ));
        }
        let is_server_exception = self.exceptions.iter().any(|exception| {
            matches!(exception, Exception::Server(allowed_host, allowed_port)
                if allowed_host == without_trailing_dot(&name) && *allowed_port == port)
        });
        if !is_server_exception && !self.ports.contains(&port) {
            return Err(UrlError::Denied("The service does not fetch from this port."));
        }
        let address_in_url = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        if let Some(address) = address_in_url {
            self.check_address(address, is_server_exception)?;
        }
        Ok(Target { url, is_server_exception })
    }

    /// Checks an IP address from a URL or from a look-up. `is_server_exception` is whether the host and port
    /// are an [`Exception::Server`]. If they are, only metadata endpoints are denied.
    ///
    /// # Errors
    /// [`UrlError::Denied`]
    pub fn check_address(
        &self,
        address: IpAddr,
        is_server_exception: bool,
    ) -> Result<(), UrlError> {
        // IPv4-mapped and NAT64 addresses are checked as the IPv4 address that they contain.
        let address = unwrap_nat64(address.to_canonical());
        let is_in_allowed_network = || {
            self.exceptions.iter().any(|exception| match exception {
                Exception::Network(network) => network.contains(&address),
                Exception::Server(..) => false,
            })
        };
        let is_allowed = !METADATA_ENDPOINTS.contains(&address)
            && (is_server_exception || is_public(address) || is_in_allowed_network());
        if is_allowed { Ok(()) } else { Err(NOT_PUBLIC) }
    }
}

fn without_trailing_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// The endpoints from which a cloud's machines get their credentials. No exception applies to them.
const METADATA_ENDPOINTS: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), // EC2, GCP, Azure and most others
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),   // ECS tasks
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),  // EKS pods
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), // Alibaba
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),   // Azure's wire server
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), // EC2
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)), // EKS pods
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)), // GCP
];

/// The IPv4 network `a.b.c.d/prefix`.
const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

/// The IPv4 networks that are not public.
const DENIED_V4: [Ipv4Net; 19] = [
    v4(0, 0, 0, 0, 8),        // "this network" (RFC 791)
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carrier-grade NAT
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's wire server, also in `METADATA_ENDPOINTS`
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

/// The IPv6 network `a:b:c::/prefix`.
const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The well-known prefix of NAT64 translators, 96 bits long.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// Global unicast addresses. All other IPv6 addresses are denied.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

/// The networks within [`GLOBAL_V6`] that are not public.
const DENIED_V6: [Ipv6Net; 5] = [
    v6(0x2001, 0, 0, 23),         // protocol assignments, among them Teredo
    v6(0x2001, 0xdb8, 0, 32),     // documentation
    v6(0x2002, 0, 0, 16),         // 6to4, whose addresses contain an IPv4 address
    v6(0x2620, 0x4f, 0x8000, 48), // AS112
    v6(0x3fff, 0, 0, 20),         // documentation
];

/// Whether an address is public. The caller has already replaced an IPv4-mapped or NAT64 address with
/// the IPv4 address that it contains.
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

/// Returns the IPv4 address in the last 32 bits of an address in [`NAT64`] (RFC 6052, section 2.1).
/// Returns every other address unchanged. In a network with DNS64, a name that has only IPv4
/// addresses resolves to NAT64 addresses.
fn unwrap_nat64(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(translated) if NAT64.contains(&translated) => {
            Ipv4Addr::from_bits(translated.to_bits() as u32).into()
        }
        _ => address,
    }
}

/// Whether this is the address of an ISATAP tunnel, which leads to an IPv4 address (RFC 5214,
/// section 6.1).
fn is_isatap(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [_, _, _, _, 0x0000 | 0x0200, 0x5efe, _, _])
}

#[cfg(test)]
mod tests;
