//! The URL of a proxy, which may contain a password.

use std::fmt;

use url::Url;

/// An http or https URL of a proxy. `Debug` prints neither the user name nor the password.
#[derive(Clone)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Parses a URL. It may contain a user name and a password, because many proxies need them.
    ///
    /// # Errors
    /// What is wrong with the text, without quoting it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            _ => Err("must be an http or https URL of a proxy".into()),
        }
    }

    /// The URL with its credentials.
    pub(super) fn url(&self) -> Url {
        self.0.clone()
    }

    /// The proxy's host and port. Never `None`, since [`Self::parse`] requires a host, and both schemes
    /// have a default port.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        Some((self.0.host_str()?, self.0.port_or_known_default()?))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.host_and_port())
    }
}
