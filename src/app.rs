//! The composition root: turns a [`Config`] into a service that is bound to its port. Only this
//! module connects the modules of the service.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::time::Instant;

use crate::{
    bucket::{self, Bucket},
    config::{Config, Upstream},
    decoder::{self, Decoder},
    embed::{self, Embedder, Source},
    fetch::{
        self, Fetcher, Lookup,
        policy::{Exception, Policy},
    },
    http_client::Trust,
    nvidia::{self, ApiKey},
    pipeline::{Pipeline, memory_limit, pictures_at_work_limit},
    sandbox::{self, Sandbox},
    server::{BindError, Server},
    spool::Staging,
    store::{OpenError, Store},
    telemetry::Metrics,
    valkey::{self, Valkey},
    web::{self, AppState},
};

/// The timeout of the decoder's test at start, which decodes one pixel.
const DECODER_TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout for writing the bucket's test object at start, and for removing it. Reading it has a
/// timeout of its own.
const BUCKET_TEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A service that is bound to its port and ready to serve.
#[derive(Debug)]
pub struct App {
    server: Server,
    router: Router,
    state: AppState,
    /// The running stand-in for NVIDIA. It stops when this field is dropped.
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
    /// The bucket cannot be used with these settings.
    #[error(transparent)]
    BucketSetup(#[from] bucket::SetupError),
    /// The bucket refuses to be used.
    #[error("IMAGESVC_BUCKET cannot be used: {advice}")]
    Bucket {
        /// What the operator can do.
        advice: String,
        /// The error with which the bucket refuses.
        source: bucket::Error,
    },
    /// The Valkey's URL cannot be used, or the Valkey refuses this client.
    #[error(transparent)]
    Valkey(#[from] valkey::StartError),
    /// TLS cannot be set up, or the proxy's URL is invalid.
    #[error("cannot set up the HTTP clients")]
    HttpClient(#[from] reqwest::Error),
    /// The sandbox cannot start.
    #[error("cannot start the sandbox")]
    Sandbox(#[source] io::Error),
}

impl App {
    /// Logs the configuration's warnings, opens the downloads folder, binds the port, and tests
    /// the decoder. In sandbox mode, also starts the stand-in for NVIDIA. With a Valkey, starts
    /// its client. With a bucket, tests it.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        Self::build_with_lookup(config, Lookup::system()).await
    }

    /// Like [`Self::build`], but resolves the host names in pictures' URLs with `lookup`, for
    /// tests. Does not log the configuration's warnings.
    ///
    /// # Errors
    /// [`BuildError`]
    pub async fn build_with_lookup(config: Config, lookup: Lookup) -> Result<Self, BuildError> {
        let metrics = Metrics::new();
        let store = Store::open(&config.store)?;
        let trusted_proxies = config.server.trusted_proxies.clone();
        let server = Server::bind(config.server, Arc::clone(&metrics)).await?;
        let decoder = Decoder::new(config.decoder, Arc::clone(&metrics));
        decoder
            .self_test(Instant::now() + DECODER_TEST_TIMEOUT)
            .await
            .map_err(BuildError::Decoder)?;

        let limits = config.limits;
        let UpstreamSetup { nvidia_settings, key, embedding_source, sandbox } = UpstreamSetup::new(
            config.upstream,
            config.nvidia,
            limits.max_image_pixels,
            &decoder,
            store.staging(),
        )
        .await?;
        let (fetch_settings, sample_url, sandbox_routes) = match &sandbox {
            Some(_) => {
                let port = server.address().port();
                let fetch_settings = allow_own_server(config.fetch, port);
                (fetch_settings, Some(sandbox::sample_url(port)), sandbox::samples_router())
            }
            None => (config.fetch, None, Router::new()),
        };

        let trust = Trust::probe();
        // The shutdown of the server waits for background tasks, such as calls to NVIDIA.
        let background = server.background();
        let valkey = match &config.valkey {
            Some(settings) => {
                Some(Valkey::start(settings, background.clone(), Arc::clone(&metrics)).await?)
            }
            None => None,
        };
        let nvidia_client = nvidia::Client::new(
            nvidia_settings,
            key,
            Arc::clone(&metrics),
            background.clone(),
            &trust,
            valkey.clone(),
        )?;
        let bucket = match &config.bucket {
            Some(settings) => {
                let metrics = Arc::clone(&metrics);
                let bucket = Bucket::new(settings, &trust, background.clone(), metrics)?;
                test_bucket(&bucket).await?;
                Some(bucket)
            }
            None => None,
        };
        let parts = embed::Parts {
            nvidia: nvidia_client,
            decoder,
            staging: store.staging(),
            bucket: bucket.clone(),
            valkey: valkey.clone(),
            background,
            metrics: Arc::clone(&metrics),
        };
        let embedder = Embedder::new(parts, &config.embed, &embedding_source);
        let state = AppState::new(web::Shared {
            pipeline: Pipeline {
                store: store.with_bucket(bucket),
                embedder,
                memory: memory_limit(&limits, config.embed.call.inline_memory()),
                at_work: pictures_at_work_limit(&limits),
                limits,
                valkey: valkey.clone(),
                metrics: Arc::clone(&metrics),
            },
            fetcher: Fetcher::new(fetch_settings, &lookup, &trust)?,
            metrics,
            model: embedding_source.model,
            sample_url,
            shutdown: server.shutdown_handle(),
        });
        let router = web::router(&state, &config.web, trusted_proxies, sandbox_routes);
        Ok(Self { server, router, state, _sandbox: sandbox })
    }

    /// The address that the service listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until `stop` completes. Then the running requests get the configured time to finish.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let store = self.state.pipeline.store.clone();
        tokio::select! {
            () = store.run_retention(Arc::clone(&self.state.metrics)) => {} // never returns
            () = self.server.serve(self.router, stop) => {}
        }
        if let Some(valkey) = &self.state.pipeline.valkey {
            valkey.leave().await;
        }
    }
}

/// Tests the bucket. If the bucket cannot be reached, the service starts nevertheless, and tests the
/// bucket again in the background.
///
/// # Errors
/// [`BuildError::Bucket`] if the bucket refuses to be written to or read.
async fn test_bucket(bucket: &Bucket) -> Result<(), BuildError> {
    let report = bucket.self_test(BUCKET_TEST_TIMEOUT).await;
    if let Some(refusal) = report.refusal() {
        let advice = refusal.advice().unwrap_or_else(|| "see the cause".into());
        return Err(BuildError::Bucket { advice, source: refusal.clone() });
    }
    // If a write or a read has failed without a refusal, this starts the tests in the background.
    bucket.record_test(&report);
    Ok(())
}

/// What depends on the upstream, which is NVIDIA or the sandbox.
struct UpstreamSetup {
    nvidia_settings: nvidia::Settings,
    key: ApiKey,
    /// The model and the endpoint, which are part of the cache's keys.
    embedding_source: Source,
    /// The running stand-in for NVIDIA. `None` if the upstream is NVIDIA.
    sandbox: Option<Sandbox>,
}

impl UpstreamSetup {
    async fn new(
        upstream: Upstream,
        nvidia_settings: nvidia::Settings,
        max_pixels: u64,
        decoder: &Decoder,
        staging: Staging,
    ) -> Result<Self, BuildError> {
        match upstream {
            Upstream::Nvidia(key) => {
                let endpoint = nvidia_settings.infer_url.to_string();
                let embedding_source = Source { model: nvidia::MODEL, endpoint };
                Ok(Self { nvidia_settings, key, embedding_source, sandbox: None })
            }
            Upstream::Sandbox => {
                let sandbox = Sandbox::start(max_pixels, decoder.clone(), staging).await;
                let sandbox = sandbox.map_err(BuildError::Sandbox)?;
                // This endpoint only identifies the stand-in in the cache's keys. The stand-in's
                // URL cannot do so, because its port changes with each start. The version is
                // included, because the stand-in's vectors may change with each version.
                let endpoint = concat!("imagesvc ", env!("CARGO_PKG_VERSION")).to_owned();
                Ok(Self {
                    nvidia_settings: sandbox.settings(nvidia_settings),
                    key: sandbox.key(),
                    embedding_source: Source { model: sandbox::MODEL, endpoint },
                    sandbox: Some(sandbox),
                })
            }
        }
    }
}

/// Allows fetches from the service's own port. In sandbox mode, the service itself serves the
/// sample picture.
fn allow_own_server(settings: fetch::Settings, port: u16) -> fetch::Settings {
    let own_server = ["127.0.0.1", "localhost"].map(|host| Exception::Server(host.into(), port));
    let exceptions = [settings.policy.exceptions, own_server.into()].concat();
    fetch::Settings { policy: Policy { exceptions, ..settings.policy }, ..settings }
}
