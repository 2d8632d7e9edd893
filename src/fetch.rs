//! Fetches a picture from its URL, but only from addresses that [`policy`] allows.
//!
//! The HTTP client resolves host names through `resolver.rs`, which checks every address. The HTTP
//! client then connects to one of these checked addresses, without a second look-up. An IP address
//! in a URL needs no look-up: [`policy::Policy`] checks it, in the first URL and in every redirect.

use std::time::{Duration, SystemTime};

use reqwest::{
    Client,
    header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    http_client::{Trust, retry_after},
    shares::{ClientNetwork, Clients},
};
use policy::{Policy, Target};
use resolver::{Resolver, on_behalf_of};

mod error;
mod fetched;
pub mod policy;
mod resolver;

pub use error::Error;
pub use fetched::Fetched;
pub use resolver::Lookup;

/// The default User-Agent. It contains no contact. Some hosts, such as Wikimedia, require one.
pub const USER_AGENT: &str =
    concat!("Mozilla/5.0 (compatible; imagesvc/", env!("CARGO_PKG_VERSION"), ")");

/// The Accept header: a CDN that can convert pictures should choose one of these formats. HEIC
/// ranks last because its decoder is the slowest and strictest.
const ACCEPTED: &str = if cfg!(feature = "heic") {
    "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff,image/heic;q=0.5"
} else {
    "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff"
};

/// How long it may take to connect to a host, including the look-up of its name and the TLS
/// handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Settings for fetching pictures.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The timeout of a whole fetch.
    pub timeout: Duration,
    /// The most redirects that are followed.
    pub max_redirects: u32,
    /// The User-Agent header.
    pub user_agent: String,
    /// Which URLs may be fetched.
    pub policy: Policy,
    /// Whether many clients share the look-ups of host names, or one client may use all of them.
    pub clients: Clients,
}

/// Fetches pictures.
#[derive(Debug)]
pub struct Fetcher {
    settings: Settings,
    /// The HTTP client for all servers that are not exceptions to the policy.
    guarded_client: Client,
    /// The HTTP client for the servers that the operator allowed as exceptions. It is a separate
    /// one, because an exception depends on the port, and reqwest does not pass the port to its
    /// resolver.
    exception_client: Client,
}

impl Fetcher {
    /// Creates a fetcher that resolves names with `lookup`.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(settings: Settings, lookup: &Lookup, trust: &Trust) -> Result<Self, reqwest::Error> {
        let resolver = Resolver::new(settings.policy.clone(), lookup.clone(), settings.clients);
        let exception_client = http_client(&settings, resolver.for_exceptions(), trust)?;
        let guarded_client = http_client(&settings, resolver, trust)?;
        Ok(Self { guarded_client, exception_client, settings })
    }

    /// The timeout of one fetch.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// Requests the picture, and follows redirects. Returns when the status and headers of a
    /// successful response have arrived. Host names are looked up on behalf of `client`, a client of
    /// the service: see [`Settings::clients`].
    ///
    /// # Errors
    /// [`Error`]
    pub async fn fetch(&self, url: &str, client: ClientNetwork) -> Result<Fetched, Error> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut target = self.settings.policy.check_url(url)?;
        for _ in 0..=self.settings.max_redirects {
            let request = self.http_client_for(&target).get(target.url.clone()).send();
            let response = match timeout_at(deadline, on_behalf_of(client, request)).await {
                Ok(result) => result.map_err(|error| Error::of_request(error.without_url()))?,
                Err(_) => return Err(Error::Timeout),
            };
            match response.status().as_u16() {
                // 203 is a success, but a proxy has changed the picture (RFC 9110, section 15.3.4).
                200 | 203 => return Fetched::new(response, deadline),
                301 | 302 | 303 | 307 | 308 => {
                    let location = response
                        .headers()
                        .get(LOCATION)
                        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
                    let location = location.ok_or(Error::BadRedirects)?;
                    target = self.settings.policy.check_redirect(&target.url, location)?;
                }
                status => {
                    let wait = retry_after(response.headers(), SystemTime::now());
                    return Err(Error::Status { status, retry_after: wait });
                }
            }
        }
        Err(Error::BadRedirects)
    }

    fn http_client_for(&self, target: &Target) -> &Client {
        if target.is_server_exception { &self.exception_client } else { &self.guarded_client }
    }
}

/// Creates an HTTP client for fetches. It does not know NVIDIA's key: calls to NVIDIA use a
/// separate client.
fn http_client(
    settings: &Settings,
    resolver: Resolver,
    trust: &Trust,
) -> Result<Client, reqwest::Error> {
    let headers = HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static(ACCEPTED)),
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
    ]);
    trust
        .client_builder()
        .user_agent(&settings.user_agent)
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        // The service's clients choose the hosts. Idle connections to many hosts would use up the
        // sockets.
        .pool_max_idle_per_host(0)
        .no_proxy()
        .dns_resolver(resolver)
        .build()
}
