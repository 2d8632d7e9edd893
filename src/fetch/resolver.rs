//! Resolves the host names in pictures' URLs, and checks every address that they resolve to.
//!
//! The system resolves the names (`getaddrinfo`), so that the service treats `/etc/hosts`,
//! `nsswitch.conf` and `resolv.conf` like every other program on the machine. The disadvantage is
//! that a look-up blocks a thread and cannot be cancelled. If a name server does not answer, the
//! thread stays blocked for seconds after the fetch has timed out. Therefore the number of look-ups
//! at once is limited. With [`Clients::Many`], it is also limited per client: slow look-ups of a
//! single client do not delay the others.
//!
//! A resolver inside the service (hickory) could cancel look-ups. But it would add about twenty
//! crates, and might resolve a name differently than the system.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{task::spawn_blocking, time::timeout};

use super::policy::Policy;
use crate::shares::{ClientNetwork, Clients, Shares};

/// The most look-ups at once. Each blocks one of the runtime's 512 blocking threads, which also
/// save pictures.
const MAX_LOOKUPS: u64 = 128;

/// The most look-ups at once for one client with [`Clients::Many`]. Even if each look-up takes
/// 30 ms, this is enough for a thousand per second.
const MAX_LOOKUPS_PER_CLIENT: u64 = 32;

/// The timeout of a look-up, including the wait until [`Resolver::lookup_limit`] allows it. It is
/// shorter than the connect timeout, so that the error names the look-up and not the connection.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(2500);

tokio::task_local! {
    /// The client whose picture the task fetches. The resolver finds the client here, because
    /// reqwest passes only the host name to the resolver.
    static CLIENT: ClientNetwork;
}

/// Runs a request for a client, so that the request's look-ups count towards the client's limit.
pub(super) async fn on_behalf_of<T>(client: ClientNetwork, request: impl Future<Output = T>) -> T {
    CLIENT.scope(client, request).await
}

/// A function that resolves a name to its addresses. It may block.
#[derive(Clone)]
pub struct Lookup(Arc<LookupFn>);

type LookupFn = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

impl Lookup {
    /// Resolves names with the system's resolver.
    pub fn system() -> Self {
        Self::custom(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    /// Resolves names with `lookup`, for tests.
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

/// A look-up that failed or returned no address.
#[derive(Debug, thiserror::Error)]
#[error("the look-up failed")]
pub(super) struct LookupError(#[source] io::Error);

impl LookupError {
    /// Whether it is certain that the name has no address. Otherwise the look-up itself may have
    /// failed: a name server did not answer, or the process has too many open files.
    ///
    /// The standard library does not return the system's error code (`EAI_NONAME`, `EAI_NODATA`),
    /// only the message of glibc or musl.
    pub(super) fn means_no_address(&self) -> bool {
        const MESSAGES: [&str; 4] = [
            "Name or service not known",
            "No address associated with",
            "Name does not resolve",
            "Name has no usable address",
        ];
        let message = self.0.to_string();
        self.0.kind() == io::ErrorKind::NotFound
            || MESSAGES.iter().any(|known| message.contains(known))
    }
}

/// Resolves names, and checks every address that they resolve to. Cheap to clone; all clones count
/// towards the same limit of look-ups.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    policy: Arc<Policy>,
    lookup: Lookup,
    /// Limits how many look-ups run at once.
    lookup_limit: Shares,
    /// Whether this resolver is for servers that the operator allowed as exceptions to the policy.
    is_for_exceptions: bool,
}

impl Resolver {
    /// A resolver for all servers that are not exceptions to the policy. `clients` says whether
    /// look-ups are also limited per client.
    pub(super) fn new(policy: Policy, lookup: Lookup, clients: Clients) -> Self {
        let lookup_limit = match clients {
            Clients::Many => Shares::capped(MAX_LOOKUPS, MAX_LOOKUPS_PER_CLIENT),
            Clients::One => {
                let step = 1; // no rounding: a permit is for one look-up
                Shares::undivided(MAX_LOOKUPS, step)
            }
        };
        Self { policy: Arc::new(policy), lookup, lookup_limit, is_for_exceptions: false }
    }

    /// The same resolver, for servers that the operator allowed as exceptions to the policy.
    pub(super) fn for_exceptions(&self) -> Self {
        Self { is_for_exceptions: true, ..self.clone() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { policy, lookup, lookup_limit, is_for_exceptions } = self.clone();
        // Outside `on_behalf_of`, `CLIENT` has no value.
        let client = CLIENT.try_with(|client| *client).unwrap_or(ClientNetwork::UNKNOWN);
        Box::pin(async move {
            let look_up = async move {
                let permit = lookup_limit.take_when_free(client, 1).await;
                spawn_blocking(move || {
                    let _permit = permit; // held by the thread, which may run longer than the fetch
                    (lookup.0)(name.as_str())
                })
                .await
            };
            let addresses = match timeout(LOOKUP_TIMEOUT, look_up).await {
                // `joined` is an error if the look-up panicked.
                Ok(joined) => joined?.map_err(LookupError)?,
                Err(_) => return Err(LookupError(io::ErrorKind::TimedOut.into()).into()),
            };
            if addresses.is_empty() {
                return Err(LookupError(io::ErrorKind::NotFound.into()).into());
            }
            for address in &addresses {
                policy.check_address(*address, is_for_exceptions)?;
            }
            // Port 0 tells the HTTP client to use the port of the URL.
            let addresses: Addrs =
                Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_an_address_is_distinguished_from_other_failures() {
        let means_no_address = |text: &str| {
            let message = format!("failed to lookup address information: {text}");
            LookupError(io::Error::other(message)).means_no_address()
        };
        assert!(means_no_address("Name or service not known"));
        assert!(means_no_address("No address associated with hostname"));
        assert!(means_no_address("Name does not resolve"));
        assert!(means_no_address("Name has no usable address"));
        assert!(LookupError(io::ErrorKind::NotFound.into()).means_no_address());
        assert!(!means_no_address("Temporary failure in name resolution"));
        assert!(!means_no_address("Non-recoverable failure in name resolution"));
        assert!(!means_no_address("Memory allocation failure"));
        let too_many_open_files = io::Error::from_raw_os_error(24); // EMFILE
        assert!(!LookupError(too_many_open_files).means_no_address());
        assert!(!LookupError(io::ErrorKind::TimedOut.into()).means_no_address());
    }
}
