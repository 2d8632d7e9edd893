//! Limits how many requests each client may send per minute.
//!
//! Requests are counted in this replica, and then in the Valkey if there is one. The replica's own count
//! follows the Valkey's, so a client over its limit is usually refused without asking the Valkey. While
//! the Valkey cannot be used, the replica's own count decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use quick_cache::sync::Cache;

use sha2::{Digest, Sha256 as Hasher};

use super::auth::KeyDigest;
use crate::{
    sha256::Sha256,
    shares::ClientNetwork,
    valkey::Valkey,
    web::{error::Error, extract::client_network::client_network},
};

/// The most clients whose requests this replica counts. If there are more, it forgets the counts of those
/// that call least.
const MAX_CLIENTS: usize = 100_000;

/// The client whose limit a request counts toward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    /// The client with this key, from any address.
    Key(KeyDigest),
    /// The client at this address or network, if the service requires no keys.
    Network(ClientNetwork),
}

impl Caller {
    /// A hash that identifies the client in the Valkey.
    fn hash(&self) -> Sha256 {
        let hasher = match self {
            Self::Key(KeyDigest(digest)) => Hasher::new_with_prefix("key ").chain_update(digest),
            Self::Network(ClientNetwork(address)) => {
                Hasher::new_with_prefix("network ").chain_update(address.to_string())
            }
        };
        Sha256::of(hasher)
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Allows each client a burst of one minute's requests, and then one request per interval. Uses the
/// generic cell rate algorithm (ITU-T I.371), which stores only one number for each client.
pub(in crate::web) struct RateLimit {
    /// A minute divided by the number of requests per minute.
    interval: Duration,
    started: Instant,
    /// Each client's theoretical arrival time, in nanoseconds since `started`. This is when the next
    /// request would arrive if the client had sent its requests at even intervals.
    arrivals: Cache<Caller, Arc<AtomicU64>>,
    /// Counts the requests of all replicas.
    valkey: Option<Valkey>,
}

impl RateLimit {
    /// Allows each client this many requests per minute, at all replicas together if there is a Valkey.
    pub(in crate::web) fn per_minute(max_requests: u32, valkey: Option<Valkey>) -> Self {
        Self {
            interval: MINUTE / max_requests.max(1),
            started: Instant::now(),
            arrivals: Cache::new(MAX_CLIENTS),
            valkey,
        }
    }

    /// Counts this many requests of a client.
    ///
    /// # Errors
    /// If the client would exceed its limit, how long it must wait. In this case, nothing is counted.
    async fn count(&self, caller: Caller, requests: u32) -> Result<(), Duration> {
        let arrival_here = self.count_here(caller, requests, Instant::now())?;
        let Some(valkey) = &self.valkey else { return Ok(()) };
        let cost = self.interval.saturating_mul(requests);
        let Ok(reply) = valkey.count_requests(caller.hash(), cost, MINUTE).await else {
            return Ok(()); // the Valkey cannot be used, so the count in this replica decides
        };
        let is_counted = reply.wait.is_zero();
        if !is_counted {
            // The Valkey refused the requests, so they must not count in this replica either.
            arrival_here.fetch_sub(nanos(cost), Ordering::Relaxed);
        }
        let shared_arrival = self.started.elapsed() + reply.ahead;
        arrival_here.fetch_max(nanos(shared_arrival), Ordering::Relaxed);
        if is_counted { Ok(()) } else { Err(reply.wait) }
    }

    /// Counts the requests in this replica. Returns the client's theoretical arrival time.
    ///
    /// # Errors
    /// If the client would exceed its limit, how long it must wait. In this case, nothing is counted.
    fn count_here(
        &self,
        caller: Caller,
        requests: u32,
        now: Instant,
    ) -> Result<Arc<AtomicU64>, Duration> {
        let now = nanos(now.saturating_duration_since(self.started));
        let cost = nanos(self.interval.saturating_mul(requests));
        // A client may be ahead of its even intervals by at most a minute.
        let latest_arrival = now + nanos(MINUTE);
        let new_arrival = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU64::new(now)));
        let Ok(stored) = self.arrivals.get_or_insert_with(&caller, new_arrival);
        let next = |arrival: u64| arrival.max(now) + cost;
        let wait = |arrival: u64| next(arrival).saturating_sub(latest_arrival);
        let update = |arrival: u64| if wait(arrival) == 0 { Some(next(arrival)) } else { None };
        match stored.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update) {
            Ok(_) => Ok(stored),
            Err(arrival) => Err(Duration::from_nanos(wait(arrival))),
        }
    }
}

/// The limit of the client that sent a request. Each picture of a batch counts as a request.
#[derive(Clone)]
pub(in crate::web) struct ClientLimit {
    limit: Arc<RateLimit>,
    caller: Caller,
}

impl ClientLimit {
    /// The most pictures that one batch may have: as many as the requests of a minute.
    pub(in crate::web) fn largest_batch(&self) -> usize {
        let per_minute = MINUTE.as_nanos() / self.limit.interval.as_nanos().max(1);
        usize::try_from(per_minute).unwrap_or(usize::MAX)
    }

    /// Counts the pictures of a batch except the first, which [`rate_limit`] has already counted.
    ///
    /// # Errors
    /// [`Error::RateLimited`]
    pub(in crate::web) async fn count_batch(&self, pictures: usize) -> Result<(), Error> {
        let more = u32::try_from(pictures.saturating_sub(1)).unwrap_or(u32::MAX);
        if more == 0 {
            return Ok(());
        }
        self.limit.count(self.caller, more).await.map_err(Error::RateLimited)
    }
}

/// The layer: counts POST requests, and refuses the requests of clients that have reached their limit.
/// Requests with other methods are not counted, since they do not use the NVIDIA key.
pub(in crate::web) async fn rate_limit(
    State(limit): State<Arc<RateLimit>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if request.method() == Method::POST {
        let caller = match request.extensions().get::<KeyDigest>() {
            Some(key) => Caller::Key(*key),
            None => Caller::Network(client_network(request.extensions())),
        };
        limit.count(caller, 1).await.map_err(Error::RateLimited)?;
        request.extensions_mut().insert(ClientLimit { limit, caller });
    }
    Ok(next.run(request).await)
}

/// Converts to nanoseconds. A duration that does not fit becomes a quarter of the maximum, so that adding
/// to it does not overflow.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        telemetry::Metrics,
        valkey::{self, ValkeyUrl, test_server::RedisServer},
    };

    const FIRST: Caller = Caller::Network(ClientNetwork::UNKNOWN);
    const SECOND: Caller = Caller::Key(KeyDigest([7; 32]));

    #[test]
    fn a_client_may_send_the_requests_of_a_minute_at_once_and_then_one_per_interval() {
        // Six requests a minute are one every ten seconds.
        let limit = RateLimit::per_minute(6, None);
        // Counts a request this many seconds after the start. An error is the wait in seconds.
        let count = |caller, seconds| {
            let now = limit.started + Duration::from_secs(seconds);
            limit.count_here(caller, 1, now).map(drop).map_err(|wait| wait.as_secs())
        };
        for _ in 0..6 {
            assert_eq!(count(FIRST, 0), Ok(()));
        }
        assert_eq!(count(FIRST, 0), Err(10));
        assert_eq!(count(FIRST, 4), Err(6), "a refused request must not count");
        assert_eq!(count(SECOND, 4), Ok(()), "each client must have its own limit");
        assert_eq!(count(FIRST, 10), Ok(()));
        assert_eq!(count(FIRST, 10), Err(10));
        for _ in 0..6 {
            assert_eq!(count(FIRST, 1000), Ok(()));
        }
        assert_eq!(count(FIRST, 1000), Err(10), "a pause must not allow a larger burst");
    }

    #[tokio::test]
    async fn a_batch_counts_all_of_its_pictures_or_none() {
        let limit = Arc::new(RateLimit::per_minute(6, None));
        let client_limit = ClientLimit { limit: Arc::clone(&limit), caller: FIRST };
        assert_eq!(client_limit.largest_batch(), 6);
        limit.count(FIRST, 1).await.unwrap();
        // `count_batch` does not count the first picture of a batch again.
        client_limit.count_batch(4).await.unwrap();
        assert!(
            client_limit.count_batch(4).await.is_err(),
            "a batch that needs three more requests must be refused if only two are left"
        );
        client_limit.count_batch(3).await.unwrap();
        assert!(client_limit.count_batch(2).await.is_err(), "no request must be left");
    }

    #[test]
    fn concurrent_requests_do_not_exceed_the_limit() {
        let limit = RateLimit::per_minute(50, None);
        let now = limit.started;
        let admitted: usize = std::thread::scope(|scope| {
            let send = || (0..50).filter(|_| limit.count_here(FIRST, 1, now).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 50);
    }

    /// A replica's limit of 60 requests per minute. Each replica has its own connection to the Valkey.
    async fn replica(url: &str) -> RateLimit {
        let settings = valkey::Settings {
            url: ValkeyUrl::parse(url).unwrap(),
            timeout: Duration::from_secs(5),
            replicas: 1, // the rate limit does not depend on it
        };
        let valkey = Valkey::start(&settings, TaskTracker::new(), Metrics::new()).await;
        RateLimit::per_minute(60, Some(valkey.unwrap()))
    }

    #[tokio::test]
    async fn replicas_count_the_requests_of_a_client_together() {
        let Some(server) = RedisServer::start(&[]) else { return };
        let replicas = [replica(&server.url()).await, replica(&server.url()).await];
        let mut counted = 0;
        for _ in 0..50 {
            for replica in &replicas {
                counted += u32::from(replica.count(FIRST, 1).await.is_ok());
            }
        }
        // The limit allows one more request for each second that the test takes.
        assert!((60..=66).contains(&counted), "{counted} requests were counted");
        // 30 requests take 30 s, less the seconds that have passed since the limit was reached.
        for replica in &replicas {
            let wait = replica.count(FIRST, 30).await.unwrap_err();
            assert!(wait > Duration::from_secs(20), "the wait is only {wait:?}");
        }
        assert!(replicas[0].count(SECOND, 60).await.is_ok());
        // Two requests, because time for one more may have passed since the 60 were counted.
        assert!(replicas[1].count(SECOND, 2).await.is_err());
    }

    #[tokio::test]
    async fn a_replica_counts_alone_while_the_valkey_cannot_be_used() {
        let Some(server) = RedisServer::start(&[]) else { return };
        let replica = replica(&server.url()).await;
        for _ in 0..20 {
            replica.count(FIRST, 1).await.unwrap();
        }
        drop(server);
        let mut counted = 20;
        while counted < 100 && replica.count(FIRST, 1).await.is_ok() {
            counted += 1;
        }
        assert!((60..=66).contains(&counted), "{counted} requests were counted");
    }
}
