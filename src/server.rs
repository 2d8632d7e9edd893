//! The TCP server: binds a port, accepts connections, serves any router on them within limits and
//! timers, and drains at the end.
//!
//! `axum::serve` has no timer for a request's header and none for a client that stops reading, so
//! this module drives hyper's HTTP/1 connections itself.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::telemetry::Metrics;
use connections::{Connections, concerns_one_connection};
use shutdown::Phase;
use systemd::Watchdog;

mod client_address;
mod connections;
mod date;
mod lingering;
mod peer_limit;
mod shutdown;
mod stop_signal;
mod systemd;
mod write_timeout;

pub use client_address::{ClientAddress, Peer, TrustedProxies};
pub use shutdown::Shutdown;
pub use stop_signal::stop_signal;

/// The pause after a failed `accept`, such as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections that were accepted last have to send their request.
const LAST_REQUEST_WAIT: Duration = Duration::from_millis(100);

/// How long the final answers may take once the drain's time is up.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The time for a request's header; it also ends idle keep-alive connections.
    pub header_timeout: Duration,
    /// How long new connections are still accepted after the stop was announced.
    pub drain_delay: Duration,
    /// How long requests may take to finish after that.
    pub drain_timeout: Duration,
    /// The most open connections.
    pub max_connections: usize,
    /// The most open connections of one peer.
    pub max_connections_per_peer: usize,
    /// The proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
    /// The clock for the `Date` header: the system's, or a test's.
    pub clock: fn() -> SystemTime,
}

/// The server cannot listen on its address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    /// The address.
    address: SocketAddr,
    /// The system's error.
    source: io::Error,
}

/// A server that is bound and ready to accept.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Tasks that outlive the request that started them.
    background: TaskTracker,
}

impl Server {
    /// Binds the port.
    ///
    /// # Errors
    /// [`BindError`]
    pub async fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, BindError> {
        raise_file_limit();
        let fail = |source| BindError { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let (shutdown, background) = (Shutdown::default(), TaskTracker::new());
        Ok(Self { listener, address, settings, metrics, shutdown, background })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that tells middleware and handlers when the server is about to stop.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Tracks tasks that outlive their request, so that the server waits for them at the end.
    pub fn background(&self) -> TaskTracker {
        self.background.clone()
    }

    /// Serves until `stop` completes, then drains: at first the server still answers new requests
    /// while `/ready` reports 503, then it closes the listener and waits for the requests that run.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>) {
        let connections = Connections::new(router, &self.settings, Arc::clone(&self.metrics));
        let _watchdog = Watchdog::from_environment();
        Phase::Serving(self.address).announce(&self.shutdown);
        self.accept_until(stop, &connections).await;
        self.drain(&connections).await;
        self.shut_down(connections).await;
    }

    async fn accept_until(&self, end: impl Future<Output = ()>, connections: &Connections) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                () = &mut end => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => connections.serve(stream, peer),
                    Err(error) if concerns_one_connection(&error) => {}
                    Err(error) => {
                        tracing::error!(%error, "cannot accept connections");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Announces the stop, and goes on accepting connections until load balancers have noticed.
    async fn drain(&self, connections: &Connections) {
        let delay = self.settings.drain_delay;
        Phase::Draining(delay).announce(&self.shutdown);
        self.accept_until(sleep(delay), connections).await;
    }

    /// Closes the listener, and waits for running requests and tasks until the drain's timeout.
    async fn shut_down(self, connections: Connections) {
        connections.serve_pending(self.listener);
        // Clients that connected last may not have sent their request yet.
        sleep(LAST_REQUEST_WAIT).await;
        self.background.close();
        Phase::Finishing.announce(&self.shutdown);
        let mut finish = pin!(async {
            connections.close().await;
            self.background.wait().await;
        });
        if timeout(self.settings.drain_timeout, &mut finish).await.is_ok() {
            tracing::info!("stopped: every request was answered");
        } else {
            Phase::EndingRequests.announce(&self.shutdown);
            // Requests that still run are answered with an error. Background tasks end with the
            // process.
            let answered = timeout(LAST_ANSWER_WAIT, &mut finish).await.is_ok();
            let calls = self.background.len();
            tracing::warn!(answered, calls, "stopped: the drain timeout ended running requests");
        }
    }
}

/// Raises the soft limit of open files to the hard limit: systemd's soft limit of 1024 is lower
/// than the number of connections that the server accepts. If this fails, a later `accept` may
/// fail, and the server logs that.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
