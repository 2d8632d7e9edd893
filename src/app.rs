//! The one place where everything is put together: settings in, a service that is bound out.

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
    pipeline::{Pipeline, shared_memory},
    sandbox::{self, Sandbox},
    server::{BindError, Server},
    shares::Shares,
    spool::Staging,
    store::{OpenError, Store},
    telemetry::Metrics,
    web::{self, AppState},
};

/// How long the first decode, of one pixel, may take.
const TRY_OUT_TIME: Duration = Duration::from_secs(10);

/// A service that is bound and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    router: Router,
    state: AppState,
    /// Ends when dropped.
    _sandbox: Option<Sandbox>,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
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

impl App {
    /// Opens the folder, binds the port, tries the decoder out and, in sandbox mode, starts the
    /// stand-in.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        for notice in &config.notices {
            tracing::warn!("{notice}");
        }
        Self::build_with_lookup(config, Lookup::system()).await
    }

    /// The same, with names looked up as given: for tests.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build_with_lookup(config: Config, lookup: Lookup) -> Result<Self, BuildError> {
        let metrics = Metrics::new();
        let store = Store::open(&config.store)?;
        let proxies = config.server.trusted_proxies.clone();
        let server = Server::bind(config.server, Arc::clone(&metrics)).await?;
        let decoder = Decoder::new(config.decoder, Arc::clone(&metrics));
        decoder.self_test(Instant::now() + TRY_OUT_TIME).await.map_err(BuildError::Decoder)?;

        let limits = config.limits;
        let pixels = limits.max_image_pixels;
        let Backend { nvidia, key, source, sandbox } =
            Backend::new(config.upstream, config.nvidia, pixels, &decoder, store.staging()).await?;
        let (fetch, sample, sandbox_routes) = match &sandbox {
            Some(_) => {
                let port = server.address().port();
                let fetch = allow_own_addresses(config.fetch, port);
                (fetch, Some(sandbox::sample_address(port)), sandbox::photo_router())
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
                at_work: Shares::new(limits.max_in_flight as u64, 1, 1),
                limits,
                metrics: Arc::clone(&metrics),
            },
            fetcher: Fetcher::new(fetch, &lookup, trust)?,
            metrics,
            model: source.model,
            sample,
            shutdown: server.shutdown(),
        });
        let router = web::router(&state, &config.web, proxies, sandbox_routes);
        Ok(Self { server, router, state, _sandbox: sandbox })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until told to stop, then drains, as long as that may take.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let store = self.state.pipeline.store.clone();
        tokio::select! {
            () = store.run_retention(Arc::clone(&self.state.metrics)) => {} // it has no end
            () = self.server.serve(self.router, stop) => {}
        }
    }
}

/// Who computes the embeddings.
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
                // Its port changes from start to start, its vectors from version to version.
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

/// Lets pictures be fetched from the service itself, which has the sandbox's sample picture.
fn allow_own_addresses(settings: fetch::Settings, port: u16) -> fetch::Settings {
    let own = ["127.0.0.1", "localhost"].map(|host| Exception::Server(host.into(), port));
    let allow = [settings.policy.allow, own.into()].concat();
    fetch::Settings { policy: Policy { allow, ..settings.policy }, ..settings }
}
