//! Binds, accepts, serves with timers, and drains at the end.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{
    app::{self, AppState, Parts},
    config::{Config, Upstream},
    decoder::{self, Decoder},
    fetch::{Lookup, policy::Exception},
    guard::client::{Peer, TrustedProxies},
    sandbox::Sandbox,
    store::{OpenError, Store},
    telemetry::Metrics,
};
use peers::Peers;
use stalled::WriteTimeout;
use supervisor::Watchdog;

mod peers;
mod stalled;
mod supervisor;

/// A connection reads and writes in pieces of at most this many bytes; a header must fit into one.
const BUFFER: usize = 32 * 1024;

/// How long a client may go without taking a byte of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when the system is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the first decode, of one pixel, may take.
const TRY_OUT_TIME: Duration = Duration::from_secs(10);

/// How long a connection that came last has for its request.
const LAST_REQUESTS: Duration = Duration::from_millis(100);

/// How long the answers to requests that were cut off may take.
const CUT_TIME: Duration = Duration::from_secs(1);

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
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The downloads folder cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Pictures cannot be decoded.
    #[error("cannot decode pictures: {0}")]
    Decoder(#[source] decoder::Error),
    /// TLS cannot be set up, or a proxy makes no sense.
    #[error("cannot set up the HTTP clients")]
    Client(#[from] reqwest::Error),
    /// The sandbox does not start.
    #[error("cannot start the sandbox")]
    Sandbox(#[source] io::Error),
}

/// A service that is bound and ready to accept.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    proxies: TrustedProxies,
    state: AppState,
    background: TaskTracker,
    sandbox: Option<Sandbox>,
}

impl Server {
    /// Opens the folder, binds the port and, in sandbox mode, starts the stand-in.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        for notice in &config.notices {
            tracing::warn!("{notice}");
        }
        Self::bind_with_lookup(config, Lookup::system()).await
    }

    /// The same, with names looked up as given: for tests.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn bind_with_lookup(mut config: Config, lookup: Lookup) -> Result<Self, StartError> {
        raise_file_limit();
        let store = Store::open(&config.store)?;
        let listen = config.server.listen;
        let fail = |source| StartError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;

        let metrics = Metrics::new();
        let decoder = Decoder::new(config.decoder.clone(), Arc::clone(&metrics));
        decoder.try_out(Instant::now() + TRY_OUT_TIME).await.map_err(StartError::Decoder)?;

        let (key, sandbox) = match &config.upstream {
            Upstream::Nvidia(key) => (key.clone(), None),
            Upstream::Sandbox => {
                let sandbox = Sandbox::start(
                    config.limits.max_image_pixels,
                    decoder.clone(),
                    store.staging(),
                )
                .await
                .map_err(StartError::Sandbox)?;
                sandbox.point_to(&mut config.nvidia);
                for host in ["127.0.0.1", "localhost"] {
                    config.fetch.policy.allow.push(Exception::Server(host.into(), address.port()));
                }
                (sandbox.key(), Some(sandbox))
            }
        };
        let background = TaskTracker::new();
        let port = address.port();
        let parts = Parts { key, lookup, decoder, metrics, port, background: background.clone() };
        let state = AppState::new(&config, store, parts)?;
        let (settings, proxies) = (config.server, config.gate.proxies);
        Ok(Self { listener, address, settings, proxies, state, background, sandbox })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop, then drains: first new requests are still answered while `/ready`
    /// says no, then the listener closes and what runs is waited for.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let store = self.state.pipeline.store.clone();
        let retention = store.keep_retention(Arc::clone(&self.state.metrics));
        tokio::select! {
            () = retention => {} // it has no end
            () = self.serve_requests(stop) => {}
        }
    }

    async fn serve_requests(self, stop: impl Future<Output = ()>) {
        tracing::info!(address = %self.address, version = env!("CARGO_PKG_VERSION"), "listening");
        let serving = format!("serving on {}", self.address);
        supervisor::say(&[NotifyState::Ready, NotifyState::Status(&serving)]);
        let router = app::router(&self.state);
        let mut watchdog = Watchdog::from_environment();
        let connections = Connections {
            router,
            open: Arc::new(Semaphore::new(self.settings.max_connections)),
            peers: Peers::new(self.settings.max_connections_per_peer, self.proxies),
            graceful: GracefulShutdown::new(),
            metrics: Arc::clone(&self.state.metrics),
            header_timeout: self.settings.header_timeout,
        };
        let drain = async {
            stop.await;
            tracing::info!(
                delay_s = self.settings.drain_delay.as_secs_f64(),
                "stopping: /ready says no from now on"
            );
            self.state.start_draining();
            let status = NotifyState::Status("stopping: /ready says no, requests are still taken");
            supervisor::say(&[NotifyState::Stopping, status]);
            sleep(self.settings.drain_delay).await;
        };
        {
            let mut drain = pin!(drain);
            loop {
                tokio::select! {
                    () = &mut drain => break,
                    // Here, because this loop is what must go on.
                    () = watchdog.is_due() => supervisor::say(&[NotifyState::Watchdog]),
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
        connections.serve_rest(self.listener);
        // Those who came last have not sent their request yet.
        sleep(LAST_REQUESTS).await;
        self.background.close();
        supervisor::say(&[NotifyState::Status("stopping: requests that run are waited for")]);
        let mut finish = pin!(async {
            connections.graceful.shutdown().await;
            self.background.wait().await;
        });
        let finished = async {
            loop {
                tokio::select! {
                    () = &mut finish => break,
                    () = watchdog.is_due() => supervisor::say(&[NotifyState::Watchdog]),
                }
            }
        };
        if timeout(self.settings.drain_timeout, finished).await.is_ok() {
            tracing::info!("stopped: every request was answered");
        } else {
            self.state.cut_off();
            // What runs in requests is answered; what runs beside them ends with the process.
            let answered = timeout(CUT_TIME, &mut finish).await.is_ok();
            let calls = self.background.len();
            tracing::warn!(answered, calls, "stopped: the drain timeout cut requests off");
        }
        drop(self.sandbox);
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

/// Listens for SIGTERM and SIGINT from now on. The future ends at the first; a second one ends the
/// process at once.
///
/// # Errors
/// When the system allows no signal handlers.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut next = async move || {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            tracing::warn!("stopped: a second signal came");
            std::process::exit(0);
        });
    })
}

/// What every connection is served with.
struct Connections {
    router: Router,
    open: Arc<Semaphore>,
    peers: Peers,
    graceful: GracefulShutdown,
    metrics: Arc<Metrics>,
    header_timeout: Duration,
}

impl Connections {
    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(open) = Arc::clone(&self.open).try_acquire_owned() else {
            return self.refuse(peer, "connections");
        };
        let Some(of_peer) = self.peers.admit(peer.ip()) else {
            return self.refuse(peer, "connections_of_peer");
        };
        let counted = (open, of_peer);
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection ended before it was served");
            return;
        }
        let router = self.router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            router.clone().oneshot(request.map(axum::body::Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(WriteTimeout::new(stream, WRITE_TIMEOUT)), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended with an error");
            }
            drop(counted);
        });
    }

    /// Closes the listener. That resets what the system accepted in our name and we did not look at
    /// yet, so all of that is served first; it is asked itself, since the runtime may not know of
    /// the last ones.
    fn serve_rest(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => self.serve(stream, peer),
                Err(error) => tracing::debug!(%error, "a connection ended before it was served"),
            }
        }
    }

    /// The connection is closed by being dropped.
    fn refuse(&self, peer: SocketAddr, reason: &'static str) {
        self.metrics.shed(reason);
        tracing::debug!(%peer, reason, "too many connections: one was closed at once");
    }
}

/// Errors of `accept` that tell of the connection, not of the listener.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}
