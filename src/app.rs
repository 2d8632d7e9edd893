//! The application: what the routes share, and the layers around them.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    middleware,
    response::{IntoResponse, Response},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    config::{Config, Upstream},
    decoder::Decoder,
    embed::{Embedder, Source},
    error::Error,
    fetch::{Fetcher, Lookup},
    guard::{
        client::TrustedProxies,
        cut::cut,
        drain::drain,
        gate::{Gate, gate},
        observe::{Observer, observe},
        origin::Origins,
    },
    nvidia::{self, ApiKey},
    pipeline::{Pipeline, shared_memory},
    routes,
    shares::Shares,
    store::Store,
    telemetry::Metrics,
    tls::Trust,
};

/// What the routes share. Cheap to clone: every request does, several times.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

/// What [`AppState`] refers to.
#[derive(Debug)]
pub struct Shared {
    /// The way of every picture.
    pub pipeline: Pipeline,
    /// Who fetches pictures by their address.
    pub fetcher: Fetcher,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who computes the vectors, as answers say it.
    pub model: &'static str,
    /// The address of the sandbox's sample picture, where there is a sandbox.
    pub sample: Option<String>,
    gate: Arc<Gate>,
    origins: Origins,
    proxies: TrustedProxies,
    draining: AtomicBool,
    /// By one more pointer: copying a token takes a lock, and each request copies it.
    cut: Arc<CancellationToken>,
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What only exists at start, and what runs beside requests.
#[derive(Debug)]
pub struct Parts {
    /// The key that goes to the upstream.
    pub key: ApiKey,
    /// How names are looked up.
    pub lookup: Lookup,
    /// Who decodes pictures.
    pub decoder: Decoder,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The port that the service listens on.
    pub port: u16,
    /// What outlives its request.
    pub background: TaskTracker,
}

impl AppState {
    /// Builds everything that answers requests.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(config: &Config, store: Store, parts: Parts) -> Result<Self, reqwest::Error> {
        let metrics = parts.metrics;
        let trust = Trust::probe();
        let client = nvidia::Client::new(
            config.nvidia.clone(),
            parts.key,
            Arc::clone(&metrics),
            parts.background.clone(),
            trust,
        )?;
        let is_sandbox = matches!(config.upstream, Upstream::Sandbox);
        let source = if is_sandbox {
            // Its port changes from start to start, its vectors from version to version.
            let address = concat!("imagesvc ", env!("CARGO_PKG_VERSION")).to_owned();
            Source { model: crate::sandbox::MODEL, address }
        } else {
            Source { model: "nvidia/nv-dinov2", address: config.nvidia.infer_url.to_string() }
        };
        let embedder = Embedder::new(
            client,
            parts.decoder,
            store.staging(),
            &config.embed,
            &source,
            parts.background,
            Arc::clone(&metrics),
        );
        Ok(Self(Arc::new(Shared {
            pipeline: Pipeline {
                store,
                embedder,
                limits: config.limits.clone(),
                memory: shared_memory(&config.limits, config.embed.ask.inline_memory()),
                at_work: Shares::new(config.limits.max_in_flight as u64, 1, 1),
                metrics: Arc::clone(&metrics),
            },
            fetcher: Fetcher::new(config.fetch.clone(), &parts.lookup, trust)?,
            metrics,
            model: source.model,
            sample: is_sandbox
                .then(|| format!("http://127.0.0.1:{}{}", parts.port, crate::sandbox::PHOTO_PATH)),
            gate: Arc::new(Gate::new(&config.gate)),
            origins: config.gate.origins.clone(),
            proxies: config.gate.proxies.clone(),
            draining: AtomicBool::new(false),
            cut: Arc::default(),
        })))
    }

    /// From now on `/ready` says no, and answers close their connections.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Requests that are still running are answered at once that they are cut off.
    pub fn cut_off(&self) {
        self.cut.cancel();
    }

    /// Whether the service is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The routes and their layers, the outermost first. What closes connections at the end only adds a
/// header; then:
///
/// 1. `observe` gives ids, logs, counts and answers errors, so it must see every other layer;
/// 2. the CORS layer answers browsers' questions, and marks errors as readable, too;
/// 3. `drain` reads what was left of a body, whichever way the request ended;
/// 4. a panic in any of the next becomes an error like any other, so it must be caught inside of
///    what answers errors;
/// 5. `cut` ends what runs when the drain's time is up;
/// 6. `gate` turns away by the header alone, before a route sees the request.
pub fn router(state: &AppState) -> Router {
    layered(routes::router(state), state)
}

fn layered(router: Router, state: &AppState) -> Router {
    let observer = Observer { metrics: Arc::clone(&state.metrics), proxies: state.proxies.clone() };
    // In one: each call of `Router::layer` would have a request copy all that is below it.
    router.layer(
        ServiceBuilder::new()
            .layer(middleware::map_response_with_state(state.clone(), close_when_draining))
            .layer(middleware::from_fn_with_state(observer, observe))
            .option_layer(state.origins.layer())
            .layer(middleware::from_fn(drain))
            .layer(CatchPanicLayer::custom(answer_panic))
            .layer(middleware::from_fn_with_state(Arc::clone(&state.cut), cut))
            .layer(middleware::from_fn_with_state(Arc::clone(&state.gate), gate)),
    )
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn answer_panic(panic: Box<dyn std::any::Any + Send>) -> Response<Body> {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Error::Internal(format!("panic: {}", text.as_deref().unwrap_or("of an unknown kind")))
        .into_response()
}

async fn close_when_draining(
    axum::extract::State(state): axum::extract::State<AppState>,
    mut response: Response,
) -> Response {
    if state.is_draining() {
        let close = axum::http::HeaderValue::from_static("close");
        response.headers_mut().insert(axum::http::header::CONNECTION, close);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, extract::Request, routing::get};
    use tower::ServiceExt;

    use super::*;
    use crate::config::Raw;

    #[tokio::test]
    async fn a_panic_is_answered_as_an_internal_error_that_tells_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let pairs = [("IMAGESVC_SANDBOX", "true"), ("IMAGESVC_DOWNLOADS_DIR", path)];
        let config = Config::resolve(&Raw::from_pairs(pairs)).unwrap();
        let metrics = Metrics::new();
        let parts = Parts {
            key: ApiKey::parse("nvapi-1").unwrap(),
            lookup: Lookup::system(),
            decoder: Decoder::new(config.decoder.clone(), Arc::clone(&metrics)),
            metrics,
            port: 0,
            background: TaskTracker::new(),
        };
        let state = AppState::new(&config, Store::open(&config.store).unwrap(), parts).unwrap();
        let panics =
            Router::new().route("/", get(async || -> Response { panic!("planted words") }));
        let answer = layered(panics, &state).oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], "internal");
        assert!(problem["detail"].as_str().unwrap().contains("request_id"));
        assert!(!String::from_utf8_lossy(&body).contains("planted"));
    }
}
