//! How far the service is on its way to stop: the server says so, and those who answer requests
//! act on it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::CancellationToken;

/// Whether the service is draining, and whether requests must end. Cheap to clone; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_draining: AtomicBool,
    requests_must_end: CancellationToken,
}

impl Shutdown {
    /// From now on `/ready` says no, and answers close their connections.
    pub(super) fn start_draining(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Requests that are still running are answered at once that the service stops.
    pub(super) fn end_requests(&self) {
        self.0.requests_must_end.cancel();
    }

    /// Whether the service is about to stop.
    pub fn is_draining(&self) -> bool {
        self.0.is_draining.load(Ordering::Relaxed)
    }

    /// Ends when the time for requests is up.
    pub async fn requests_must_end(&self) {
        self.0.requests_must_end.cancelled().await;
    }
}
