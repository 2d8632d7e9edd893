//! Looks up where the names of picture hosts lead, and judges every address found.
//!
//! Names are looked up as the system does it (`getaddrinfo`), so that the service and every other
//! program on the machine agree about `/etc/hosts`, `nsswitch.conf` and `resolv.conf`. The price is
//! that a look-up blocks a thread and cannot be cancelled: a name whose server never answers keeps
//! its thread for seconds after the fetch has given up. So look-ups are bounded, and each client has
//! a share of its own: the dead names of one client delay that client's fetches and no others. A
//! resolver of our own (hickory) could cancel them, for some twenty more crates and a second opinion
//! about each name.

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

/// Look-ups at once. Each blocks one of the 512 threads that also save pictures.
const MAX_LOOKUPS: u64 = 128;

/// Look-ups at once for one client. A name that is answered takes milliseconds, so this is enough
/// for a thousand a second; and it takes four clients, all with dead names, to use up all look-ups.
const MAX_LOOKUPS_PER_CLIENT: u64 = 32;

/// How long a look-up may take, the wait for a free one included. It is less than the time for a
/// connection, of which it is a part, so that a host is not blamed for what the resolver did.
const LOOKUP_TIME: Duration = Duration::from_millis(2500);

tokio::task_local! {
    /// On whose behalf the task asks: the HTTP client tells its resolver nothing but the name.
    static CLIENT: ClientNetwork;
}

/// Runs a request on behalf of a client, who pays for its look-ups.
pub(super) async fn on_behalf_of<T>(client: ClientNetwork, request: impl Future<Output = T>) -> T {
    CLIENT.scope(client, request).await
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

/// The look-up found no address.
#[derive(Debug, thiserror::Error)]
#[error("the look-up failed")]
pub(super) struct LookupFailed(#[source] io::Error);

impl LookupFailed {
    /// Whether the name surely has no address. Anything else is no fault of the name: a server that
    /// does not answer or cannot tell, no file left to ask it by. Of the system's reason
    /// (EAI_NONAME, EAI_NODATA) the standard library keeps nothing but the sentence, glibc's or musl's.
    pub(super) fn is_about_the_name(&self) -> bool {
        const SENTENCES: [&str; 4] = [
            "Name or service not known",
            "No address associated with",
            "Name does not resolve",
            "Name has no usable address",
        ];
        let sentence = self.0.to_string();
        self.0.kind() == io::ErrorKind::NotFound
            || SENTENCES.iter().any(|known| sentence.contains(known))
    }
}

/// Looks names up, and judges every address that they lead to. Cheap to clone; clones share the
/// bound.
#[derive(Debug, Clone)]
pub(super) struct Resolver {
    policy: Arc<Policy>,
    lookup: Lookup,
    lookups: Shares,
    /// Whether the operator excepted the host and port that are connected to.
    excepted: bool,
}

impl Resolver {
    pub(super) fn new(policy: Policy, lookup: Lookup) -> Self {
        let lookups = Shares::capped(MAX_LOOKUPS, MAX_LOOKUPS_PER_CLIENT);
        Self { policy: Arc::new(policy), lookup, lookups, excepted: false }
    }

    /// The same for hosts that the operator excepted.
    pub(super) fn for_exceptions(&self) -> Self {
        Self { excepted: true, ..self.clone() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { policy, lookup, lookups, excepted } = self.clone();
        // Clients without a known address count as one.
        let client = CLIENT.try_with(|client| *client).unwrap_or(ClientNetwork::UNKNOWN);
        Box::pin(async move {
            let lookup = async move {
                let permit = lookups.wait_for(client, 1).await;
                spawn_blocking(move || {
                    let _permit = permit; // held by the thread, which may outlive the fetch
                    (lookup.0)(name.as_str())
                })
                .await
            };
            let addresses = match timeout(LOOKUP_TIME, lookup).await {
                Ok(found) => found?.map_err(LookupFailed)?,
                Err(_) => return Err(LookupFailed(io::ErrorKind::TimedOut.into()).into()),
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_surely_has_no_address_is_to_blame() {
        let is_about_the_name = |text: &str| {
            let sentence = format!("failed to lookup address information: {text}");
            LookupFailed(io::Error::other(sentence)).is_about_the_name()
        };
        assert!(is_about_the_name("Name or service not known"));
        assert!(is_about_the_name("No address associated with hostname"));
        assert!(is_about_the_name("Name does not resolve"));
        assert!(LookupFailed(io::ErrorKind::NotFound.into()).is_about_the_name());
        assert!(!is_about_the_name("Temporary failure in name resolution"));
        assert!(!is_about_the_name("Non-recoverable failure in name resolution"));
        assert!(!is_about_the_name("Memory allocation failure"));
        assert!(!LookupFailed(io::Error::from_raw_os_error(24)).is_about_the_name());
        assert!(!LookupFailed(io::ErrorKind::TimedOut.into()).is_about_the_name());
    }
}
