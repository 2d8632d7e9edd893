//! What the HTTP clients of this service have in common: who is trusted, and what is left out.

use reqwest::{ClientBuilder, redirect, retry};

/// A client that trusts the system's certificate authorities and does nothing unasked: no
/// redirects, no retries, no Referer, HTTP/1.1 only.
///
/// A machine without a CA store can still call plain http: the sandbox needs no more. There,
/// nobody is trusted, and every https call fails.
pub(crate) fn client_builder() -> ClientBuilder {
    let builder = || {
        ClientBuilder::new()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .http1_only()
    };
    match builder().build() {
        Ok(_) => builder(),
        Err(error) => {
            tracing::warn!(%error, "no certificate authorities found: calls to https addresses will fail");
            builder().tls_certs_only([])
        }
    }
}
