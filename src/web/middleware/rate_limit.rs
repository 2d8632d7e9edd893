//! A client's own limit: so many pictures a minute.

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
    web::{error::Error, extract::client::network},
};

/// Clients that are remembered. More than that at once make the limit forget those that are
/// seldom seen, which is no gain for them.
const CLIENTS: usize = 100_000;

/// Whom a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    /// Who sends this key, from wherever.
    Key(KeyDigest),
    /// Who calls from this address or network, where no keys are asked for.
    Network(ClientNetwork),
}

/// Lets each client make a minute's requests at once, and then one whenever the minute has room
/// again: the generic cell rate algorithm (ITU-T I.371), one number for each client.
pub(in crate::web) struct RateLimit {
    interval: Duration,
    minute: Duration,
    started: Instant,
    /// For each client the time, in nanoseconds from the start, at which all that it asked for
    /// would have been spread evenly.
    spread: Cache<Caller, Arc<AtomicU64>>,
}

impl RateLimit {
    /// So many requests a minute for each client.
    pub(in crate::web) fn per_minute(limit: u32) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            interval: minute / limit.max(1),
            minute,
            started: Instant::now(),
            spread: Cache::new(CLIENTS),
        }
    }

    /// Counts a request, or says how long the client must wait.
    fn take(&self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.started));
        let (interval, minute) = (nanos(self.interval), nanos(self.minute));
        let new = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU64::new(now)));
        let Ok(spread) = self.spread.get_or_insert_with(&caller, new);
        let wait = |spread: u64| (spread.max(now) + interval).saturating_sub(now + minute);
        let count = |spread: u64| (wait(spread) == 0).then(|| spread.max(now) + interval);
        match spread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
            Ok(_) => Ok(()),
            Err(spread) => Err(Duration::from_nanos(wait(spread))),
        }
    }
}

/// Counts requests that cost something, and refuses those of clients that have sent too many.
pub(in crate::web) async fn rate_limit(
    State(limit): State<Arc<RateLimit>>,
    request: Request,
    next: Next,
) -> Result<Response, Error> {
    if request.method() == Method::POST {
        let key = request.extensions().get().copied();
        let caller =
            key.map_or_else(|| Caller::Network(network(request.extensions())), Caller::Key);
        limit.take(caller, Instant::now()).map_err(Error::RateLimited)?;
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
    fn a_minutes_requests_may_come_at_once_and_then_one_as_each_is_earned() {
        let limit = RateLimit::per_minute(6);
        let start = limit.started;
        let take = |caller, seconds| {
            limit.take(caller, start + Duration::from_secs(seconds)).map_err(|wait| wait.as_secs())
        };
        for _ in 0..6 {
            assert_eq!(take(ONE, 0), Ok(()));
        }
        assert_eq!(take(ONE, 0), Err(10));
        assert_eq!(take(ONE, 4), Err(6), "asking in vain costs nothing");
        assert_eq!(take(OTHER, 4), Ok(()), "each has its own limit");
        assert_eq!(take(ONE, 10), Ok(()));
        assert_eq!(take(ONE, 10), Err(10));
        for _ in 0..6 {
            assert_eq!(take(ONE, 1000), Ok(()));
        }
        assert_eq!(take(ONE, 1000), Err(10), "a long silence saves up no more than a minute");
    }

    #[test]
    fn many_at_once_get_no_more_than_the_limit() {
        let limit = RateLimit::per_minute(50);
        let now = limit.started;
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..50).filter(|_| limit.take(ONE, now).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 50);
    }
}
