//! Limits how many requests each client may send per minute.

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

use super::auth::KeyDigest;
use crate::{
    shares::ClientNetwork,
    web::{error::Error, extract::client_network::client_network},
};

/// The most clients whose requests are counted. If there are more, the clients that call least are
/// removed.
const MAX_CLIENTS: usize = 100_000;

/// The client whose limit a request counts toward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    /// The client with this key, from any address.
    Key(KeyDigest),
    /// The client at this address or network, if the service requires no keys.
    Network(ClientNetwork),
}

/// Allows each client a burst of one minute's requests, and then one request per interval. Uses the
/// generic cell rate algorithm (ITU-T I.371), which stores only one number for each client.
pub(in crate::web) struct RateLimit {
    /// A minute divided by the number of requests per minute.
    interval: Duration,
    minute: Duration,
    started: Instant,
    /// Each client's theoretical arrival time, in nanoseconds since `started`. This is when the next
    /// request would arrive if the client had sent its requests at even intervals.
    arrivals: Cache<Caller, Arc<AtomicU64>>,
}

impl RateLimit {
    /// Allows each client this many requests per minute.
    pub(in crate::web) fn per_minute(max_requests: u32) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            interval: minute / max_requests.max(1),
            minute,
            started: Instant::now(),
            arrivals: Cache::new(MAX_CLIENTS),
        }
    }

    /// Counts this many requests of a client.
    ///
    /// # Errors
    /// How long the client must wait, if it would exceed its limit. Then nothing is counted.
    fn count(&self, caller: Caller, requests: u32, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.started));
        let delay = nanos(self.interval.saturating_mul(requests));
        // A client may be ahead of its even intervals by at most a minute.
        let latest_arrival = now + nanos(self.minute);
        let new_arrival = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU64::new(now)));
        let Ok(arrival) = self.arrivals.get_or_insert_with(&caller, new_arrival);
        let next = |arrival: u64| arrival.max(now) + delay;
        let wait = |arrival: u64| next(arrival).saturating_sub(latest_arrival);
        let update = |arrival: u64| if wait(arrival) == 0 { Some(next(arrival)) } else { None };
        match arrival.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update) {
            Ok(_) => Ok(()),
            Err(arrival) => Err(Duration::from_nanos(wait(arrival))),
        }
    }
}

/// The limit of the client that sent a request. A batch counts each of its pictures as a request.
#[derive(Clone)]
pub(in crate::web) struct ClientLimit {
    limit: Arc<RateLimit>,
    caller: Caller,
}

impl ClientLimit {
    /// The most pictures that one batch may have: as many as the requests of a minute.
    pub(in crate::web) fn largest_batch(&self) -> usize {
        let per_minute = self.limit.minute.as_nanos() / self.limit.interval.as_nanos().max(1);
        usize::try_from(per_minute).unwrap_or(usize::MAX)
    }

    /// Counts the pictures of a batch. The layer has already counted the first picture as the request.
    ///
    /// # Errors
    /// [`Error::RateLimited`]
    pub(in crate::web) fn count_batch(&self, pictures: usize) -> Result<(), Error> {
        let more = u32::try_from(pictures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limit.count(self.caller, more, Instant::now()).map_err(Error::RateLimited)
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
        limit.count(caller, 1, Instant::now()).map_err(Error::RateLimited)?;
        request.extensions_mut().insert(ClientLimit { limit, caller });
    }
    Ok(next.run(request).await)
}

/// Converts to nanoseconds. The maximum is small enough that sums of some values do not overflow.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Caller = Caller::Network(ClientNetwork::UNKNOWN);
    const SECOND: Caller = Caller::Key(KeyDigest([7; 32]));

    #[test]
    fn a_client_may_send_a_burst_of_one_minute_and_then_one_request_per_interval() {
        // Six requests a minute are one every ten seconds.
        let limit = RateLimit::per_minute(6);
        let count = |caller, seconds| {
            let now = limit.started + Duration::from_secs(seconds);
            limit.count(caller, 1, now).map_err(|wait| wait.as_secs())
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

    #[test]
    fn a_batch_counts_all_of_its_pictures_or_none() {
        let limit = Arc::new(RateLimit::per_minute(6));
        let client_limit = ClientLimit { limit: Arc::clone(&limit), caller: FIRST };
        assert_eq!(client_limit.largest_batch(), 6);
        limit.count(FIRST, 1, Instant::now()).unwrap();
        // `count_batch` does not count the first picture of a batch again.
        client_limit.count_batch(4).unwrap();
        assert!(
            client_limit.count_batch(4).is_err(),
            "a batch that needs three more requests must be refused if only two are left"
        );
        client_limit.count_batch(3).unwrap();
        assert!(client_limit.count_batch(2).is_err());
    }

    #[test]
    fn concurrent_requests_do_not_exceed_the_limit() {
        let limit = RateLimit::per_minute(50);
        let now = limit.started;
        let admitted: usize = std::thread::scope(|scope| {
            let send = || (0..50).filter(|_| limit.count(FIRST, 1, now).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 50);
    }
}
