//! Serves connections: bounded in number, each with timers for all that its client may delay.

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
    Settings, client_address::Peer, date::set_date, lingering::Lingering, peer_limit::Peers,
    write_timeout::WriteTimeout,
};
use crate::telemetry::Metrics;

/// A connection reads and writes in pieces of at most this many bytes; a header must fit into one.
const BUFFER: usize = 32 * 1024;

/// How long connections that linger are waited for at the end.
const LAST_LINGERING: Duration = Duration::from_secs(1);

/// What every connection is served with.
pub(super) struct Connections {
    router: Router,
    open: Arc<Semaphore>,
    max: usize,
    peers: Peers,
    graceful: GracefulShutdown,
    metrics: Arc<Metrics>,
    header_timeout: Duration,
    clock: fn() -> SystemTime,
}

impl Connections {
    /// Connections within these bounds, whose requests a router answers.
    pub(super) fn new(router: Router, settings: &Settings, metrics: Arc<Metrics>) -> Self {
        let trusted = settings.trusted_proxies.clone();
        Self {
            router,
            open: Arc::new(Semaphore::new(settings.max_connections)),
            max: settings.max_connections,
            peers: Peers::new(settings.max_connections_per_peer, trusted),
            graceful: GracefulShutdown::new(),
            metrics,
            header_timeout: settings.header_timeout,
            clock: settings.clock,
        }
    }

    /// Serves a connection in a task of its own, or closes it where there are too many.
    pub(super) fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(open) = Arc::clone(&self.open).try_acquire_owned() else {
            return self.refuse(peer, "connections");
        };
        let Some(of_peer) = self.peers.admit(peer.ip()) else {
            return self.refuse(peer, "connections_of_peer");
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it was served");
            return;
        }
        // Reading is bounded elsewhere: headers by hyper's timer, bodies where they are received.
        let stream = WriteTimeout::new(Lingering::new(stream, (open, of_peer)));
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

    /// Closes the listener. That resets what the system accepted in our name and we did not look at
    /// yet, so all of that is served first; it is asked itself, since the runtime may not know of
    /// the last ones.
    pub(super) fn serve_rest(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => self.serve(stream, peer),
                Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
            }
        }
    }

    /// Closes connections without a request in them, and waits for the others; for those that linger
    /// behind their answer, a moment.
    pub(super) async fn close(self) {
        self.graceful.shutdown().await;
        let all = u32::try_from(self.max).unwrap_or(u32::MAX);
        // Those whose client stays longer than that have had their answer.
        let _ = timeout(LAST_LINGERING, self.open.acquire_many(all)).await;
    }

    /// The connection is closed by being dropped.
    fn refuse(&self, peer: SocketAddr, reason: &'static str) {
        self.metrics.record_shed(reason);
        tracing::debug!(%peer, reason, "too many connections: one was closed at once");
    }
}

/// Errors of `accept` that tell of the connection, not of the listener.
pub(super) fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
