//! The phases of a server's life, and who is told of each: the log, systemd, and those who answer
//! requests. (`server.rs` goes through them.)

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::systemd;

/// The phases of a server's life, in their order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// Connections are accepted.
    Serving(SocketAddr),
    /// They still are, for this time, but the end is announced.
    Draining(Duration),
    /// The listener is closed, and requests that run are waited for.
    Finishing,
    /// Time is up: requests that run are answered that the service stops.
    EndingRequests,
}

impl Phase {
    /// Tells whoever acts on it: the log, those who answer requests, systemd.
    pub(super) fn announce(self, shutdown: &Shutdown) {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        match self {
            Self::Serving(address) => {
                tracing::info!(%address, version = VERSION, "listening");
                let status = format!("serving on {address}");
                systemd::say(&[NotifyState::Ready, NotifyState::Status(&status)]);
            }
            Self::Draining(delay) => {
                let delay_s = delay.as_secs_f64();
                tracing::info!(delay_s, "stopping: /ready says no from now on");
                shutdown.start_draining();
                let status = "stopping: /ready says no, requests are still taken";
                systemd::say(&[NotifyState::Stopping, NotifyState::Status(status)]);
            }
            Self::Finishing => {
                let status = "stopping: requests that run are waited for";
                systemd::say(&[NotifyState::Status(status)]);
            }
            Self::EndingRequests => shutdown.end_requests(),
        }
    }
}

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
    fn start_draining(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Requests that are still running are answered at once that the service stops.
    fn end_requests(&self) {
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
