//! The URL of the Valkey, which contains its password.

use std::fmt;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult};

/// A server's address and credentials. Neither `Debug` nor `Display` prints the credentials.
#[derive(Clone)]
pub struct ValkeyUrl(ConnectionInfo);

impl ValkeyUrl {
    /// Parses a URL such as `rediss://user:password@host:6379/0`. The schemes `redis` and `valkey` are
    /// without TLS, `rediss` and `valkeys` are with TLS.
    ///
    /// # Errors
    /// A message that continues a sentence that begins with the setting's name. It does not quote the
    /// text, which may contain a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = "is not a URL such as rediss://user:password@host:6379";
        let text = text.trim();
        // The crate `redis` would not check the server's certificate if the URL ended in `#insecure`.
        if text.contains('#') {
            return Err("must not contain a #: write %23 in a password".into());
        }
        let info = text.into_connection_info().map_err(|_| invalid)?;
        match info.addr() {
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { .. } => Ok(Self(info)),
            _ => Err(invalid.into()),
        }
    }

    /// A client of the server. Connects to nothing yet.
    pub(super) fn client(&self) -> RedisResult<Client> {
        Client::open(self.0.clone())
    }
}

impl fmt::Display for ValkeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.addr().fmt(f)
    }
}

impl fmt::Debug for ValkeyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ValkeyUrl({self}, [redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_prints_its_address_but_not_its_credentials() {
        for (text, address) in [
            ("redis://cache.example", "cache.example:6379"),
            ("valkeys://:hunter2@cache.example:7000/3\n", "cache.example:7000"),
            ("rediss://someone:hunter2@[::1]:6379", "::1:6379"),
        ] {
            let url = ValkeyUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), address);
            let printed = format!("{url} {url:?}");
            assert!(!printed.contains("hunter2") && !printed.contains("someone"), "{printed}");
        }
    }

    #[test]
    fn an_invalid_url_is_refused_without_being_quoted() {
        for text in [
            "cache.example:6379 hunter2",
            "http://:hunter2@cache.example",
            "redis+unix:///run/valkey.sock?pass=hunter2",
            "rediss://:hunter2@cache.example/#insecure",
            "redis://:hunter2@cache.example/database",
        ] {
            let error = ValkeyUrl::parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
