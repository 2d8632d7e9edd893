//! Serves connections. Their number is bounded, and timers bound every wait for the client.

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

/// The size of a connection's buffers in bytes. A request's header must fit into one.
const BUFFER: usize = 32 * 1024;

/// How long the server waits at the end for connections that linger.
const LINGER_WAIT: Duration = Duration::from_secs(1);

/// Everything that serving a connection needs.
pub(super) struct Connections {
    router: Router,
    permits: Arc<Semaphore>,
    max: usize,
    peer_limit: PeerLimit,
    graceful: GracefulShutdown,
    metrics: Arc<Metrics>,
    header_timeout: Duration,
    clock: fn() -> SystemTime,
}

impl Connections {
    /// Prepares to serve connections within the limits of `settings`, with the answers of `router`.
    pub(super) fn new(router: Router, settings: &Settings, metrics: Arc<Metrics>) -> Self {
        let trusted = settings.trusted_proxies.clone();
        Self {
            router,
            permits: Arc::new(Semaphore::new(settings.max_connections)),
            max: settings.max_connections,
            peer_limit: PeerLimit::new(settings.max_connections_per_peer, trusted),
            graceful: GracefulShutdown::new(),
            metrics,
            header_timeout: settings.header_timeout,
            clock: settings.clock,
        }
    }

    /// Serves a connection in its own task, or closes it at once if there are too many.
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
        // Reads need no timer here: hyper bounds the header, and the extractors bound the body.
        let stream = WriteTimeout::new(Lingering::new(stream, (permit, peer_permit)));
        let (router, clock) = (self.router.clone(), self.clock);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            let answering = router.clone().oneshot(request.map(Body::new));
            answering.map_ok(move |mut response| {
                set_date(&mut response, clock());
                response
            })
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }

    /// Serves the connections in the listener's backlog, then closes the listener. Closing it would
    /// reset them. This accepts from the standard library's listener, since tokio may not have
    /// noticed the last connections yet.
    pub(super) fn serve_pending(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => self.serve(stream, peer),
                Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
            }
        }
    }

    /// Closes connections without a request, and waits for the others to finish. It waits for
    /// lingering connections only briefly.
    pub(super) async fn close(self) {
        self.graceful.shutdown().await;
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        // The remaining clients have received their answer, so the outcome does not matter.
        let _ = timeout(LINGER_WAIT, self.permits.acquire_many(all)).await;
    }

    /// Counts and logs a connection that is over a limit. The caller drops it, which closes it.
    fn refuse(&self, peer: SocketAddr, reason: &'static str) {
        self.metrics.record_shed(reason);
        tracing::debug!(%peer, reason, "too many connections: one was closed at once");
    }
}

/// Whether an error of `accept` concerns one connection rather than the listener.
pub(super) fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
