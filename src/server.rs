//! TCP: binds, accepts, serves any router with timers, and drains at the end.

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
use connections::{Connections, is_about_one_connection};
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

pub use client_address::{Client, Peer, TrustedProxies};
pub use shutdown::Shutdown;
pub use stop_signal::stop_signal;

/// How long to wait when the system is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection that came last has for its request.
const LAST_REQUESTS: Duration = Duration::from_millis(100);

/// How long the answers to requests whose time is up may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// For a request's header, and for an idle keep-alive connection.
    pub header_timeout: Duration,
    /// How long new connections are still accepted once the end is announced.
    pub drain_delay: Duration,
    /// How long requests may take to finish after that.
    pub drain_timeout: Duration,
    /// Open connections.
    pub max_connections: usize,
    /// Open connections of one peer.
    pub max_connections_per_peer: usize,
    /// Whose word on a client's address is believed.
    pub trusted_proxies: TrustedProxies,
    /// Tells the time for `Date`: the system's clock, or a test's.
    pub clock: fn() -> SystemTime,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    /// The address.
    address: SocketAddr,
    /// What the system said.
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
    /// What outlives its request.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where those who answer requests see that the service is about to stop.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// The tasks that outlive their request, which are waited for at the end.
    pub fn background(&self) -> TaskTracker {
        self.background.clone()
    }

    /// Serves until told to stop, then drains: first new requests are still answered while `/ready`
    /// says no, then the listener closes and what runs is waited for.
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
                    Err(error) if is_about_one_connection(&error) => {}
                    Err(error) => {
                        tracing::error!(%error, "cannot accept connections");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// Announces the end, and goes on accepting until balancers have heard of it.
    async fn drain(&self, connections: &Connections) {
        let delay = self.settings.drain_delay;
        Phase::Draining(delay).announce(&self.shutdown);
        self.accept_until(sleep(delay), connections).await;
    }

    /// Closes the listener, and waits for what runs, as long as it may.
    async fn shut_down(self, connections: Connections) {
        connections.serve_rest(self.listener);
        // Those who came last have not sent their request yet.
        sleep(LAST_REQUESTS).await;
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
            // What runs in requests is answered; what runs beside them ends with the process.
            let answered = timeout(LAST_ANSWERS, &mut finish).await.is_ok();
            let calls = self.background.len();
            tracing::warn!(answered, calls, "stopped: the drain timeout cut requests off");
        }
    }
}

/// Lets the process open as many files as the system allows it: systemd's soft limit of 1024 is
/// less than the connections that are accepted. Where that fails, accepting does, and says so.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
