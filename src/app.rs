//! The composition root: turns a [`Config`] into a service that is bound to its port. No other
//! module wires rooms together.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::time::Instant;

use crate::{
    config::{Config, Upstream},
    decoder::{self, Decoder},
    embed::{Embedder, Source},
    fetch::{
        self, Fetcher, Lookup,
        policy::{Exception, Policy},
    },
    http_client::Trust,
    nvidia::{self, ApiKey},
    pipeline::{Pipeline, shared_memory, shared_permits},
    sandbox::{self, Sandbox},
    server::{BindError, Server},
    spool::Staging,
    store::{OpenError, Store},
    telemetry::Metrics,
    web::{self, AppState},
};

/// How long the trial decode at start, of one pixel, may take.
const TRIAL_DECODE_TIMEOUT: Duration = Duration::from_secs(10);

/// A service that is bound to its port and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    router: Router,
    state: AppState,
    /// Kept because dropping it stops the stand-in.
    _sandbox: Option<Sandbox>,
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The service cannot listen on its address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The downloads folder cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// Pictures cannot be decoded.
    #[error("cannot decode pictures: {0}")]
    Decoder(#[source] decoder::Error),
    /// TLS cannot be set up, or the proxy's URL is invalid.
    #[error("cannot set up the HTTP clients")]
    Client(#[from] reqwest::Error),
    /// The sandbox cannot start.
    #[error("cannot start the sandbox")]
    Sandbox(#[source] io::Error),
}

impl App {
    /// Opens the downloads folder, binds the port, decodes one pixel as a trial and, in sandbox
    /// mode, starts the stand-in for NVIDIA.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        for notice in &config.notices {
            tracing::warn!("{notice}");
        }
        Self::build_with_lookup(config, Lookup::system()).await
    }

    /// Does the same, but resolves host names with `lookup`. Tests use it.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build_with_lookup(config: Config, lookup: Lookup) -> Result<Self, BuildError> {
        let metrics = Metrics::new();
        let store = Store::open(&config.store)?;
        let proxies = config.server.trusted_proxies.clone();
        let server = Server::bind(config.server, Arc::clone(&metrics)).await?;
        let decoder = Decoder::new(config.decoder, Arc::clone(&metrics));
        decoder
            .self_test(Instant::now() + TRIAL_DECODE_TIMEOUT)
            .await
            .map_err(BuildError::Decoder)?;

        let limits = config.limits;
        let max_pixels = limits.max_image_pixels;
        let Backend { nvidia, key, source, sandbox } =
            Backend::new(config.upstream, config.nvidia, max_pixels, &decoder, store.staging())
                .await?;
        let (fetch, sample_url, sandbox_routes) = match &sandbox {
            Some(_) => {
                let port = server.address().port();
                let fetch = allow_own_server(config.fetch, port);
                (fetch, Some(sandbox::sample_url(port)), sandbox::photo_router())
            }
            None => (config.fetch, None, Router::new()),
        };

        let trust = Trust::probe();
        let background = server.background();
        let client =
            nvidia::Client::new(nvidia, key, Arc::clone(&metrics), background.clone(), trust)?;
        let embedder = Embedder::new(
            client,
            decoder,
            store.staging(),
            &config.embed,
            &source,
            background,
            Arc::clone(&metrics),
        );
        let state = AppState::new(web::Shared {
            pipeline: Pipeline {
                store,
                embedder,
                memory: shared_memory(&limits, config.embed.call.inline_memory()),
                at_work: shared_permits(&limits),
                limits,
                metrics: Arc::clone(&metrics),
            },
            fetcher: Fetcher::new(fetch, &lookup, trust)?,
            metrics,
            model: source.model,
            sample_url,
            shutdown: server.shutdown(),
        });
        let router = web::router(&state, &config.web, proxies, sandbox_routes);
        Ok(Self { server, router, state, _sandbox: sandbox })
    }

    /// The address that the service listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until `stop` completes, then drains within the configured times.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let store = self.state.pipeline.store.clone();
        tokio::select! {
            () = store.run_retention(Arc::clone(&self.state.metrics)) => {} // never ends
            () = self.server.serve(self.router, stop) => {}
        }
    }
}

/// Where the embeddings are computed.
struct Backend {
    nvidia: nvidia::Settings,
    key: ApiKey,
    source: Source,
    sandbox: Option<Sandbox>,
}

impl Backend {
    async fn new(
        upstream: Upstream,
        nvidia: nvidia::Settings,
        max_pixels: u64,
        decoder: &Decoder,
        staging: Staging,
    ) -> Result<Self, BuildError> {
        match upstream {
            Upstream::Nvidia(key) => {
                let endpoint = nvidia.infer_url.to_string();
                let source = Source { model: nvidia::MODEL, endpoint };
                Ok(Self { nvidia, key, source, sandbox: None })
            }
            Upstream::Sandbox => {
                let sandbox = Sandbox::start(max_pixels, decoder.clone(), staging).await;
                let sandbox = sandbox.map_err(BuildError::Sandbox)?;
                // This is part of the cache's key. The stand-in's port changes with each start, and
                // its vectors change with the version, so the version stands in for its URL.
                let endpoint = concat!("imagesvc ", env!("CARGO_PKG_VERSION")).to_owned();
                Ok(Self {
                    nvidia: sandbox.settings(nvidia),
                    key: sandbox.key(),
                    source: Source { model: sandbox::MODEL, endpoint },
                    sandbox: Some(sandbox),
                })
            }
        }
    }
}

/// Lets the service fetch pictures from itself, since it serves the sandbox's sample picture.
fn allow_own_server(settings: fetch::Settings, port: u16) -> fetch::Settings {
    let own = ["127.0.0.1", "localhost"].map(|host| Exception::Server(host.into(), port));
    let allow = [settings.policy.allow, own.into()].concat();
    fetch::Settings { policy: Policy { allow, ..settings.policy }, ..settings }
}
