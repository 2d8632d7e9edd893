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

/// The most clients that are remembered. If there are more, the limit forgets those that call
/// least.
const MAX_CLIENTS: usize = 100_000;

/// The client that a request is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    /// The client with this key, from any address.
    Key(KeyDigest),
    /// The client at this address or network, if the service requires no keys.
    Network(ClientNetwork),
}

/// Allows each client a minute's requests in one burst, and after that one request per interval. It
/// uses the generic cell rate algorithm (ITU-T I.371), which needs a single number for each client.
pub(in crate::web) struct RateLimit {
    interval: Duration,
    minute: Duration,
    started: Instant,
    /// The theoretical arrival time of each client's next request, in nanoseconds since `started`:
    /// when it would come if the client had sent its requests at even intervals.
    arrivals: Cache<Caller, Arc<AtomicU64>>,
}

impl RateLimit {
    /// Allows each client `limit` requests per minute.
    pub(in crate::web) fn per_minute(limit: u32) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            interval: minute / limit.max(1),
            minute,
            started: Instant::now(),
            arrivals: Cache::new(MAX_CLIENTS),
        }
    }

    /// Counts `count` requests, or returns how long the client must wait.
    fn take(&self, caller: Caller, count: u32, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.started));
        let (interval, minute) = (nanos(self.interval.saturating_mul(count)), nanos(self.minute));
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU64::new(now)));
        let Ok(arrival) = self.arrivals.get_or_insert_with(&caller, new);
        let wait = |arrival: u64| (arrival.max(now) + interval).saturating_sub(now + minute);
        let count = |arrival: u64| (wait(arrival) == 0).then(|| arrival.max(now) + interval);
        match arrival.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
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
    /// The most pictures that one batch may have.
    pub(in crate::web) fn largest_batch(&self) -> usize {
        let per_minute = self.limit.minute.as_nanos() / self.limit.interval.as_nanos().max(1);
        usize::try_from(per_minute).unwrap_or(usize::MAX)
    }

    /// Counts the pictures of a batch. The first was counted as the request itself.
    ///
    /// # Errors
    /// [`Error::RateLimited`]
    pub(in crate::web) fn take_batch(&self, pictures: usize) -> Result<(), Error> {
        let more = u32::try_from(pictures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limit.take(self.caller, more, Instant::now()).map_err(Error::RateLimited)
    }
}

/// The layer: counts POST requests, and refuses those of clients that are over their limit. Other
/// methods cost nothing.
pub(in crate::web) async fn rate_limit(
    State(limit): State<Arc<RateLimit>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if request.method() == Method::POST {
        let key = request.extensions().get().copied();
        let caller =
            key.map_or_else(|| Caller::Network(client_network(request.extensions())), Caller::Key);
        limit.take(caller, 1, Instant::now()).map_err(Error::RateLimited)?;
        request.extensions_mut().insert(ClientLimit { limit, caller });
    }
    Ok(next.run(request).await)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Caller = Caller::Network(ClientNetwork::UNKNOWN);
    const OTHER: Caller = Caller::Key(KeyDigest([7; 32]));

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_one_per_interval() {
        let limit = RateLimit::per_minute(6);
        let start = limit.started;
        let take = |caller, seconds| {
            let now = start + Duration::from_secs(seconds);
            limit.take(caller, 1, now).map_err(|wait| wait.as_secs())
        };
        for _ in 0..6 {
            assert_eq!(take(ONE, 0), Ok(()));
        }
        assert_eq!(take(ONE, 0), Err(10));
        assert_eq!(take(ONE, 4), Err(6), "a refused request does not count");
        assert_eq!(take(OTHER, 4), Ok(()), "each has its own limit");
        assert_eq!(take(ONE, 10), Ok(()));
        assert_eq!(take(ONE, 10), Err(10));
        for _ in 0..6 {
            assert_eq!(take(ONE, 1000), Ok(()));
        }
        assert_eq!(
            take(ONE, 1000),
            Err(10),
            "a long silence earns no more than a minute's requests"
        );
    }

    #[test]
    fn a_batch_counts_each_picture_or_none() {
        let limit = Arc::new(RateLimit::per_minute(6));
        let batch = ClientLimit { limit: Arc::clone(&limit), caller: ONE };
        assert_eq!(batch.largest_batch(), 6);
        limit.take(ONE, 1, Instant::now()).unwrap();
        batch.take_batch(4).unwrap();
        assert!(batch.take_batch(4).is_err(), "two are left, and three are needed");
        batch.take_batch(3).unwrap();
        assert!(batch.take_batch(2).is_err());
    }

    #[test]
    fn many_at_once_get_no_more_than_the_limit() {
        let limit = RateLimit::per_minute(50);
        let now = limit.started;
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..50).filter(|_| limit.take(ONE, 1, now).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 50);
    }
}
