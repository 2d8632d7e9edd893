//! Serves connections, with limits on their number and timeouts for every wait for the client.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, extract::Request};
use futures_util::TryFutureExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tower::ServiceExt;

use super::{
    Settings, client_address::Peer, date::set_date, lingering::Lingering, peer_limit::PeerLimit,
    write_timeout::WriteTimeout,
};
use crate::telemetry::Metrics;

/// The size of each buffer of a connection, in bytes. The head of a request must fit into one buffer.
const BUFFER_BYTES: usize = 32 * 1024;

/// How long the shutdown waits for lingering connections. They have sent their last response, and still
/// read for a limited time (see `lingering.rs`).
const LINGER_WAIT: Duration = Duration::from_secs(1);

/// The open connections, and what is needed to serve more.
pub(super) struct Connections {
    router: Router,
    /// One permit for each connection.
    permits: Arc<Semaphore>,
    max_connections: usize,
    peer_limit: PeerLimit,
    graceful: GracefulShutdown,
    metrics: Arc<Metrics>,
    header_timeout: Duration,
    clock: fn() -> SystemTime,
}

impl Connections {
    /// Creates an empty set of connections. They will be served with `router`, within the limits of
    /// `settings`.
    pub(super) fn new(router: Router, settings: &Settings, metrics: Arc<Metrics>) -> Self {
        let trusted_proxies = settings.trusted_proxies.clone();
        Self {
            router,
            permits: Arc::new(Semaphore::new(settings.max_connections)),
            max_connections: settings.max_connections,
            peer_limit: PeerLimit::new(settings.max_connections_per_peer, trusted_proxies),
            graceful: GracefulShutdown::new(),
            metrics,
            header_timeout: settings.header_timeout,
            clock: settings.clock,
        }
    }

    /// Serves a connection in its own task. Closes the connection at once if too many are open, in
    /// total or from its peer.
    pub(super) fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return self.refuse(peer, "connections");
        };
        let Some(peer_permit) = self.peer_limit.admit(peer.ip()) else {
            return self.refuse(peer, "connections_of_peer");
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it was served");
            return;
        }
        // Reads need no timeout here: hyper limits the time for headers, and the extractors limit the
        // time for bodies.
        let stream = WriteTimeout::new(Lingering::new(stream, (permit, peer_permit)));
        let (router, clock) = (self.router.clone(), self.clock);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let response = router.clone().oneshot(request.map(Body::new));
            response.map_ok(move |mut response| {
                set_date(&mut response, clock());
                response
            })
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }

    /// Serves the connections in the listener's backlog, and then closes the listener. If the listener
    /// were closed first, these connections would be reset. Tokio may not have noticed the last of
    /// them yet, so the standard library's listener accepts them.
    pub(super) fn serve_backlog(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        loop {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if concerns_one_connection(&error) => continue,
                // Usually `WouldBlock`: no connection is pending.
                Err(_) => return,
            };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => self.serve(stream, peer),
                Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
            }
        }
    }

    /// Closes idle connections, and waits for running requests. Then waits for lingering connections,
    /// but at most [`LINGER_WAIT`].
    pub(super) async fn close(self) {
        self.graceful.shutdown().await;
        let all_permits = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        // All permits are free when no connection lingers. Lingering connections have sent their
        // responses, so a timeout is no error.
        let _ = timeout(LINGER_WAIT, self.permits.acquire_many(all_permits)).await;
    }

    /// Counts and logs a connection that exceeds a limit. The caller closes it by dropping it.
    fn refuse(&self, peer: SocketAddr, reason: &'static str) {
        self.metrics.record_shed(reason);
        tracing::debug!(%peer, reason, "closed a new connection because too many are open");
    }
}

/// Whether an error of `accept` concerns only one connection, not the listener.
pub(super) fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
