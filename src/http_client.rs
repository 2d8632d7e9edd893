//! What the HTTP clients of this service have in common: who is trusted, and what is left out.

use reqwest::{ClientBuilder, redirect, retry};

use crate::telemetry::causes;

/// Who the clients trust.
///
/// A machine without certificate authorities can still call plain http, and the sandbox needs no
/// more. There, nobody is trusted, and every https call fails.
#[derive(Debug, Clone, Copy)]
pub struct Trust {
    has_authorities: bool,
}

impl Trust {
    /// Looks whether the system has certificate authorities, and says so in the log if not.
    pub fn probe() -> Self {
        match ClientBuilder::new().no_proxy().build() {
            Ok(_) => Self { has_authorities: true },
            Err(error) => {
                let cause = causes(&error).map(ToString::to_string).last();
                tracing::warn!(
                    cause,
                    "no certificate authorities found: calls to https addresses will fail"
                );
                Self { has_authorities: false }
            }
        }
    }

    /// Whether the system has certificate authorities.
    pub fn has_authorities(self) -> bool {
        self.has_authorities
    }

    /// A client that does nothing unasked: no redirects, no retries, no Referer, HTTP/1.1 only.
    pub(crate) fn client_builder(self) -> ClientBuilder {
        let builder = ClientBuilder::new()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .http1_only();
        if self.has_authorities { builder } else { builder.tls_certs_only([]) }
    }
}
