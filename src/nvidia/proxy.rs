//! The address of a proxy, which may hold a password.

use std::fmt;

use url::Url;

/// An http or https address of a proxy. Prints without user name and password.
#[derive(Clone)]
pub struct ProxyAddress(Url);

impl ProxyAddress {
    /// Reads an address. User name and password are allowed: proxies ask for them.
    ///
    /// # Errors
    /// What is wrong with it; it is not quoted.
    pub fn parse(text: &str) -> Result<Self, String> {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            _ => Err("must be an http or https address of a proxy".into()),
        }
    }

    /// The address itself.
    pub(super) fn url(&self) -> Url {
        self.0.clone()
    }

    /// Its host and port.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        Some((self.0.host_str()?, self.0.port_or_known_default()?))
    }
}

impl fmt::Debug for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.host_and_port())
    }
}
