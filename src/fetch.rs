//! Fetches a picture by its address, guarded: only what [`policy`] allows is ever connected to.
//!
//! One client with a resolver that judges what a name leads to, so that the connection goes to an
//! address that was judged, with no second look-up. The resolver is not asked about IP literals;
//! [`policy::Policy`] judges those, for every hop.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::{
    Client, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION},
};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use crate::{http_client::Trust, telemetry::causes};
use policy::{Policy, Refusal, Target};

pub mod policy;

/// The User-Agent unless one is set. Some hosts (Wikimedia among them) turn nameless agents away.
pub const USER_AGENT: &str =
    concat!("Mozilla/5.0 (compatible; imagesvc/", env!("CARGO_PKG_VERSION"), ")");

/// The formats that can be used, so that a CDN does not choose another.
const ACCEPTED: &str = "image/jpeg,image/png,image/webp,image/gif,image/bmp,image/tiff";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Look-ups at once. The system's resolver blocks a thread, for longer than a fetch may take, and
/// the pool of such threads also saves pictures.
const MAX_LOOKUPS: usize = 32;

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

/// Why a picture could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not fetched.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host's name leads nowhere.
    #[error("the name could not be resolved")]
    NoSuchHost(#[source] reqwest::Error),
    /// No connection, or none that TLS accepts.
    #[error("the host could not be connected to")]
    Connect(#[source] reqwest::Error),
    /// The answer broke off, or was no HTTP.
    #[error("the answer broke off")]
    Cut(#[source] reqwest::Error),
    /// Another status than 200.
    #[error("the host answered with status {0}")]
    Status(u16),
    /// A redirect without a place to go, or one too many.
    #[error("the host redirected too often or nowhere")]
    Redirects,
    /// The answer is compressed, which was not asked for.
    #[error("the answer has a content encoding")]
    Encoded,
    /// A 200 without a body.
    #[error("the answer has no body")]
    Empty,
    /// The deadline passed.
    #[error("the fetch ran past its deadline")]
    Timeout,
}

/// How names are looked up: a name in, its addresses out; may block.
#[derive(Clone)]
pub struct Lookup(Arc<LookupFn>);

type LookupFn = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

impl Lookup {
    /// As the system does it.
    pub fn system() -> Self {
        Self::custom(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    /// In another way: for tests.
    pub fn custom(
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(lookup))
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup")
    }
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

/// A picture that is being fetched.
pub struct Fetched {
    /// What the host says the length is, in bytes.
    pub length: Option<u64>,
    response: Response,
    deadline: Instant,
}

impl Fetcher {
    /// A fetcher that looks names up as given.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(settings: Settings, lookup: &Lookup, trust: Trust) -> Result<Self, reqwest::Error> {
        let lookups = Arc::new(Semaphore::new(MAX_LOOKUPS));
        let client = |excepted| {
            client(
                &settings,
                Judge {
                    policy: Arc::new(settings.policy.clone()),
                    lookup: lookup.clone(),
                    lookups: Arc::clone(&lookups),
                    excepted,
                },
                trust,
            )
        };
        Ok(Self { guarded: client(false)?, excepted: client(true)?, settings })
    }

    /// Asks for the picture and follows redirects until its first byte.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn fetch(&self, address: &str) -> Result<Fetched, Error> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut target = self.settings.policy.judge(address)?;
        for _ in 0..=self.settings.max_redirects {
            let response =
                match timeout_at(deadline, self.client(&target).get(target.url.clone()).send())
                    .await
                {
                    Ok(sent) => sent.map_err(|error| connect_error(error.without_url()))?,
                    Err(_) => return Err(Error::Timeout),
                };
            match response.status().as_u16() {
                200 => return Fetched::new(response, deadline),
                301 | 302 | 303 | 307 | 308 => {
                    let location = response
                        .headers()
                        .get(LOCATION)
                        .and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
                    let location = location.ok_or(Error::Redirects)?;
                    target = self.settings.policy.judge_redirect(&target.url, location)?;
                }
                status => return Err(Error::Status(status)),
            }
        }
        Err(Error::Redirects)
    }

    fn client(&self, target: &Target) -> &Client {
        if target.excepted { &self.excepted } else { &self.guarded }
    }
}

impl Fetched {
    fn new(response: Response, deadline: Instant) -> Result<Self, Error> {
        let encoded =
            response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        match response.content_length() {
            _ if encoded => Err(Error::Encoded),
            Some(0) => Err(Error::Empty),
            length => Ok(Self { length, response, deadline }),
        }
    }

    /// The picture's bytes as they come.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold((self.response, false), move |(mut response, any)| async move {
            match timeout_at(self.deadline, response.chunk()).await {
                Ok(Ok(Some(bytes))) => Ok(Some((bytes, (response, true)))),
                Ok(Ok(None)) if any => Ok(None),
                Ok(Ok(None)) => Err(Error::Empty),
                Ok(Err(error)) => Err(Error::Cut(error.without_url())),
                Err(_) => Err(Error::Timeout),
            }
        })
    }
}

/// A client that shares nothing with the one that holds the key.
fn client(settings: &Settings, judge: Judge, trust: Trust) -> Result<Client, reqwest::Error> {
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
        .dns_resolver(judge)
        .build()
}

fn connect_error(error: reqwest::Error) -> Error {
    if let Some(refusal) = causes(&error).find_map(|cause| cause.downcast_ref::<Refusal>()) {
        return Error::Refused(*refusal);
    }
    if causes(&error).any(|cause| cause.is::<LookupFailed>()) {
        return Error::NoSuchHost(error);
    }
    match error {
        error if error.is_timeout() => Error::Timeout,
        error if error.is_connect() => Error::Connect(error),
        error => Error::Cut(error),
    }
}

/// The system's resolver found nothing.
#[derive(Debug, thiserror::Error)]
#[error("the look-up failed")]
struct LookupFailed(#[source] io::Error);

/// Looks names up, and judges every address that they lead to.
#[derive(Debug)]
struct Judge {
    policy: Arc<Policy>,
    lookup: Lookup,
    lookups: Arc<Semaphore>,
    excepted: bool,
}

impl Resolve for Judge {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, lookup, excepted) =
            (Arc::clone(&self.policy), self.lookup.clone(), self.excepted);
        let lookups = Arc::clone(&self.lookups);
        Box::pin(async move {
            let permit = lookups.acquire_owned().await?;
            let addresses = spawn_blocking(move || {
                let _permit = permit; // held by the thread, which may outlive the fetch
                (lookup.0)(name.as_str())
            })
            .await?
            .map_err(LookupFailed)?;
            if addresses.is_empty() {
                return Err(LookupFailed(io::ErrorKind::NotFound.into()).into());
            }
            for address in &addresses {
                policy.judge_address(*address, excepted)?;
            }
            // Port 0 stands for the one in the address of the picture.
            let addresses: Addrs =
                Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
