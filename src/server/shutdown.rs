//! The phases of a server from start to stop. `server.rs` goes through them.
//!
//! `Phase::announce` informs the log, systemd and the router, as far as the phase concerns them.

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

/// The phases of a server, in order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    /// The server accepts connections.
    Serving(SocketAddr),
    /// The stop is announced, and the server still accepts connections during this drain delay.
    DrainDelay(Duration),
    /// The listener is closed. The drain timeout begins, and the server waits for running requests.
    Finishing,
    /// The drain timeout has passed. Requests that are still running end with `shutting_down`.
    EndingRequests,
}

impl Phase {
    /// Informs the log and systemd of this phase, and the router through `shutdown`.
    pub(super) fn announce(self, shutdown: &Shutdown) {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        match self {
            Self::Serving(address) => {
                tracing::info!(%address, version = VERSION, "listening");
                let status = format!("serving on {address}");
                systemd::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
            }
            Self::DrainDelay(delay) => {
                let delay_s = delay.as_secs_f64();
                tracing::info!(delay_s, "stopping: /ready reports 503 from now on");
                shutdown.announce_stop();
                let status = "stopping: /ready reports 503, requests are still accepted";
                systemd::notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
            }
            Self::Finishing => {
                let status = "stopping: waiting for running requests";
                systemd::notify(&[NotifyState::Status(status)]);
            }
            Self::EndingRequests => shutdown.end_requests(),
        }
    }
}

/// Whether the server is stopping, and whether requests must end. Cheap to clone; all clones share one
/// state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_stopping: AtomicBool,
    requests_must_end: CancellationToken,
}

impl Shutdown {
    /// Makes `/ready` report 503, and connections close after their next response.
    fn announce_stop(&self) {
        self.0.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Ends all requests with `shutting_down`.
    fn end_requests(&self) {
        self.0.requests_must_end.cancel();
    }

    /// Whether the stop was announced.
    pub fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::Relaxed)
    }

    /// Completes when the drain timeout has passed, and running requests must end.
    pub async fn wait_until_requests_must_end(&self) {
        self.0.requests_must_end.cancelled().await;
    }
}
