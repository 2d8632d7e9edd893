//! Fetches a picture by its address, guarded: only what [`policy`] allows is ever connected to.
//!
//! The HTTP client asks `resolver.rs` where a name leads, so that it connects to an address that was
//! judged, with no second look-up. It does not ask about IP literals: [`policy::Policy`] judges
//! those, for every hop.

use std::time::{Duration, SystemTime};

use reqwest::{
    Client,
    header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    http_client::{Trust, retry_after},
    shares::ClientNetwork,
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

/// The User-Agent unless one is set. Some hosts (Wikimedia among them) turn nameless agents away.
pub const USER_AGENT: &str =
    concat!("Mozilla/5.0 (compatible; imagesvc/", env!("CARGO_PKG_VERSION"), ")");

/// The formats that can be used, so that a CDN does not choose another; HEIC only where there is no other,
/// since its decoder is the slowest and strictest one.
const ACCEPTED: &str = if cfg!(feature = "heic") {
    "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff,image/heic;q=0.5"
} else {
    "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff"
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How addresses are fetched.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For all of a fetch.
    pub timeout: Duration,
    /// Redirects that are followed.
    pub max_redirects: u32,
    /// How the service names itself.
    pub user_agent: String,
    /// What may be fetched.
    pub policy: Policy,
}

/// Fetches pictures.
#[derive(Debug)]
pub struct Fetcher {
    settings: Settings,
    /// For everything but what the operator excepted by host and port.
    guarded: Client,
    /// For those exceptions: a client of its own, since a resolver is not told the port.
    excepted: Client,
}

impl Fetcher {
    /// A fetcher that looks names up as given.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(settings: Settings, lookup: &Lookup, trust: Trust) -> Result<Self, reqwest::Error> {
        let resolver = Resolver::new(settings.policy.clone(), lookup.clone());
        let excepted = client(&settings, resolver.for_exceptions(), trust)?;
        Ok(Self { guarded: client(&settings, resolver, trust)?, excepted, settings })
    }

    /// Asks for the picture on behalf of a client and follows redirects until its first byte.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn fetch(&self, address: &str, client: ClientNetwork) -> Result<Fetched, Error> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut target = self.settings.policy.judge(address)?;
        for _ in 0..=self.settings.max_redirects {
            let request = self.client(&target).get(target.url.clone()).send();
            let response = match timeout_at(deadline, on_behalf_of(client, request)).await {
                Ok(sent) => sent.map_err(|error| Error::of_request(error.without_url()))?,
                Err(_) => return Err(Error::Timeout),
            };
            match response.status().as_u16() {
                // 203: a proxy changed the picture, which is still one.
                200 | 203 => return Fetched::new(response, deadline),
                301 | 302 | 303 | 307 | 308 => {
                    let location = response
                        .headers()
                        .get(LOCATION)
                        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
                    let location = location.ok_or(Error::Redirects)?;
                    target = self.settings.policy.judge_redirect(&target.url, location)?;
                }
                status => {
                    let retry_after = retry_after(response.headers(), SystemTime::now());
                    return Err(Error::Status { status, retry_after });
                }
            }
        }
        Err(Error::Redirects)
    }

    fn client(&self, target: &Target) -> &Client {
        if target.excepted { &self.excepted } else { &self.guarded }
    }
}

/// A client that shares nothing with the one that holds the key.
fn client(settings: &Settings, resolver: Resolver, trust: Trust) -> Result<Client, reqwest::Error> {
    let headers = HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static(ACCEPTED)),
        (ACCEPT_ENCODING, HeaderValue::from_static("identity")),
    ]);
    trust
        .client_builder()
        .user_agent(&settings.user_agent)
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        // Strangers choose the hosts: an idle connection to each would use up the sockets.
        .pool_max_idle_per_host(0)
        .no_proxy()
        .dns_resolver(resolver)
        .build()
}
