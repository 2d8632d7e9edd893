//! The TCP server: binds a port, accepts connections, and serves a router on them until it is
//! stopped. Limits and timeouts protect it from slow and hostile clients.
//!
//! `axum::serve` has no timeout for a request's headers, or for a client that stops reading. This
//! module therefore uses hyper's HTTP/1 connections directly.

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
    time::{Instant, sleep, timeout_at},
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

/// The pause after `accept` has failed, for example because the process has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the server waits for the first requests on the connections that it accepted last.
const FIRST_REQUEST_WAIT: Duration = Duration::from_millis(100);

/// How long the server waits for the last responses after the drain timeout.
const LAST_RESPONSE_WAIT: Duration = Duration::from_secs(1);

/// The settings of the server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// How long a request's headers may take to arrive. Also how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long new connections are still accepted after the stop was announced.
    pub drain_delay: Duration,
    /// How long requests may still run after the drain delay.
    pub drain_timeout: Duration,
    /// The most open connections.
    pub max_connections: usize,
    /// The most open connections of one peer. A trusted proxy may have any number.
    pub max_connections_per_peer: usize,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: TrustedProxies,
    /// The clock for the `Date` header. Tests replace the system's clock.
    pub clock: fn() -> SystemTime,
}

/// The server cannot listen on its address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A server that listens on its port but does not accept connections yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Tracks tasks that may outlive the request that started them.
    background: TaskTracker,
}

impl Server {
    /// Binds the port.
    ///
    /// # Errors
    /// [`BindError`] if the system refuses to listen on the address.
    pub async fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, BindError> {
        raise_file_limit();
        let bind_error = |source| BindError { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let (shutdown, background) = (Shutdown::default(), TaskTracker::new());
        Ok(Self { listener, address, settings, metrics, shutdown, background })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle with which layers and handlers can check whether the server is stopping.
    pub fn shutdown_handle(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// The tracker for tasks that may outlive their request. The drain timeout applies to them, too.
    pub fn background(&self) -> TaskTracker {
        self.background.clone()
    }

    /// Serves until `stop` completes. Then stops in two steps. During the drain delay, the server
    /// still accepts requests, but `/ready` responds with 503. After that, the server closes the
    /// listener and waits for running requests, at most about a second longer than the drain timeout.
    pub async fn serve(self, router: Router, stop: impl Future<Output = ()>) {
        let connections = Connections::new(router, &self.settings, Arc::clone(&self.metrics));
        let _watchdog = Watchdog::from_environment();
        Phase::Serving(self.address).announce(&self.shutdown);
        self.accept_until(stop, &connections).await;
        self.accept_during_drain_delay(&connections).await;
        self.shut_down(connections).await;
    }

    /// Accepts connections until `end` completes.
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

    /// Announces the stop. Still accepts connections during the drain delay, so that load balancers
    /// can notice the stop first.
    async fn accept_during_drain_delay(&self, connections: &Connections) {
        let delay = self.settings.drain_delay;
        Phase::DrainDelay(delay).announce(&self.shutdown);
        self.accept_until(sleep(delay), connections).await;
    }

    /// Closes the listener, and waits for running requests and background tasks, at most about a second
    /// longer than the drain timeout.
    async fn shut_down(self, connections: Connections) {
        connections.serve_backlog(self.listener); // then closes the listener
        // The last clients may have connected without sending their request yet.
        sleep(FIRST_REQUEST_WAIT).await;
        // Ends no task, but `wait` returns only after this call.
        self.background.close();
        Phase::Finishing.announce(&self.shutdown);
        let end = Instant::now() + self.settings.drain_timeout;
        let mut close = pin!(connections.close());
        if timeout_at(end, &mut close).await.is_ok() {
            if timeout_at(end + LAST_RESPONSE_WAIT, self.background.wait()).await.is_ok() {
                tracing::info!("stopped: every request was answered");
            } else {
                // The tasks, for example calls to NVIDIA, end with the process.
                let tasks = self.background.len();
                tracing::warn!(tasks, "stopped: the drain timeout ended background tasks");
            }
            return;
        }
        // Requests that are still running get an error response, and may start background tasks to
        // undo what they have done.
        Phase::EndingRequests.announce(&self.shutdown);
        let end = Instant::now() + LAST_RESPONSE_WAIT;
        let answered = timeout_at(end, close).await.is_ok();
        // Tasks that take longer end with the process.
        let _ = timeout_at(end, self.background.wait()).await;
        let tasks = self.background.len();
        tracing::warn!(answered, tasks, "stopped: the drain timeout ended running requests");
    }
}

/// Raises the soft limit of open files to the hard limit. systemd's soft limit of 1024 may be lower
/// than the number of connections that the server accepts. An error is only logged, because the
/// server works with the lower limit, too.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
