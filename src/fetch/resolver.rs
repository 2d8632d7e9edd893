//! Resolves the names of picture hosts, and checks every address that they resolve to.
//!
//! Names are resolved by the system (`getaddrinfo`), so that the service and every other program on
//! the machine agree about `/etc/hosts`, `nsswitch.conf` and `resolv.conf`. The price is that a
//! look-up blocks a thread and cannot be cancelled: if a name server never answers, the thread
//! stays blocked for seconds after the fetch has given up. Look-ups are therefore bounded, and each
//! client has a share of them, so that one client's dead names delay only that client. A resolver
//! inside the service (hickory) could cancel look-ups, but would add about twenty crates and might
//! disagree with the system about a name.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::{task::spawn_blocking, time::timeout};

use super::policy::Policy;
use crate::shares::{ClientNetwork, Shares};

/// The most look-ups at once. Each blocks one of the 512 threads that also save pictures.
const MAX_LOOKUPS: u64 = 128;

/// The most look-ups at once for one client. A working name server answers within milliseconds, so
/// this is enough for a thousand a second. It takes four clients with only dead names to use up all
/// look-ups.
const MAX_LOOKUPS_PER_CLIENT: u64 = 32;

/// The time for a look-up, including the wait for a free one. It is shorter than the connect
/// timeout, so that a slow resolver is reported as such, and not as a host that cannot be reached.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(2500);

tokio::task_local! {
    /// The client on whose behalf the task runs. The HTTP client tells its resolver only the name.
    static CLIENT: ClientNetwork;
}

/// Runs a request on behalf of a client, so that its look-ups count against that client's share.
pub(super) async fn on_behalf_of<T>(client: ClientNetwork, request: impl Future<Output = T>) -> T {
    CLIENT.scope(client, request).await
}

/// Resolves a name to its addresses; may block.
#[derive(Clone)]
pub struct Lookup(Arc<LookupFn>);

type LookupFn = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

impl Lookup {
    /// Resolves names with the system's resolver.
    pub fn system() -> Self {
        Self::custom(|name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    /// Resolves names in another way, for tests.
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

/// The look-up returned no address.
#[derive(Debug, thiserror::Error)]
#[error("the look-up failed")]
pub(super) struct LookupError(#[source] io::Error);

impl LookupError {
    /// Whether the name certainly has no address. Anything else is not the name's fault: a server
    /// that does not answer or reports an error, or no free file descriptor to ask it. The standard
    /// library drops the system's reason (EAI_NONAME, EAI_NODATA) and keeps only the message of
    /// glibc or musl.
    pub(super) fn is_about_the_name(&self) -> bool {
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

/// Resolves names, and checks every address that they resolve to. Cheap to clone; clones share the
/// bound.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    policy: Arc<Policy>,
    lookup: Lookup,
    lookups: Shares,
    /// Whether the operator allowed the host and port that will be connected to.
    is_exception: bool,
}

impl Resolver {
    pub(super) fn new(policy: Policy, lookup: Lookup) -> Self {
        let lookups = Shares::capped(MAX_LOOKUPS, MAX_LOOKUPS_PER_CLIENT);
        Self { policy: Arc::new(policy), lookup, lookups, is_exception: false }
    }

    /// The same resolver, for hosts that the operator allowed.
    pub(super) fn for_exceptions(&self) -> Self {
        Self { is_exception: true, ..self.clone() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { policy, lookup, lookups, is_exception } = self.clone();
        // Clients without a known address count as one client.
        let client = CLIENT.try_with(|client| *client).unwrap_or(ClientNetwork::UNKNOWN);
        Box::pin(async move {
            let lookup = async move {
                let permit = lookups.take_when_free(client, 1).await;
                spawn_blocking(move || {
                    let _permit = permit; // the thread holds it, and may outlive the fetch
                    (lookup.0)(name.as_str())
                })
                .await
            };
            let addresses = match timeout(LOOKUP_TIMEOUT, lookup).await {
                Ok(found) => found?.map_err(LookupError)?,
                Err(_) => return Err(LookupError(io::ErrorKind::TimedOut.into()).into()),
            };
            if addresses.is_empty() {
                return Err(LookupError(io::ErrorKind::NotFound.into()).into());
            }
            for address in &addresses {
                policy.check_address(*address, is_exception)?;
            }
            // Port 0: the HTTP client uses the port of the URL.
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
    fn a_name_is_blamed_only_if_it_certainly_has_no_address() {
        let is_about_the_name = |text: &str| {
            let message = format!("failed to lookup address information: {text}");
            LookupError(io::Error::other(message)).is_about_the_name()
        };
        assert!(is_about_the_name("Name or service not known"));
        assert!(is_about_the_name("No address associated with hostname"));
        assert!(is_about_the_name("Name does not resolve"));
        assert!(LookupError(io::ErrorKind::NotFound.into()).is_about_the_name());
        assert!(!is_about_the_name("Temporary failure in name resolution"));
        assert!(!is_about_the_name("Non-recoverable failure in name resolution"));
        assert!(!is_about_the_name("Memory allocation failure"));
        assert!(!LookupError(io::Error::from_raw_os_error(24)).is_about_the_name());
        assert!(!LookupError(io::ErrorKind::TimedOut.into()).is_about_the_name());
    }
}
