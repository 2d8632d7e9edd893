//! The HTTP interface: the routes, and the layers that every request passes through.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    body::Body,
    middleware::{from_fn, from_fn_with_state, map_response_with_state},
    response::{IntoResponse, Response},
};
use tower::ServiceBuilder;
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

use crate::{
    server::{Shutdown, TrustedProxies},
    telemetry::panic_text,
};
use error::Error;
use middleware::{
    access_log::{AccessLog, access_log},
    body_draining::drain_body,
    cors::{PageRules, check_page},
    head_checking::check_head,
    shutdown::{close_when_draining, end_with_drain},
    trailing_slash::trim_trailing_slash,
};

pub mod error;
mod extract;
mod middleware;
mod routes;
mod state;

pub use middleware::{auth::ClientKeys, cors::Origins};
pub use state::{AppState, Shared};

/// Who may call the service.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The clients' keys. Without any, everybody may call.
    pub keys: ClientKeys,
    /// The number of POST requests that each client may send per minute.
    pub rate_limit: Option<u32>,
    /// The origins of other web pages that may call the service.
    pub origins: Origins,
    /// The host names that web pages may call the service by when there are no client keys.
    pub hosts: Vec<String>,
}

/// Builds the routes and their layers. `extra` holds routes of other rooms that need no key.
pub fn router(
    state: &AppState,
    settings: &Settings,
    proxies: TrustedProxies,
    extra: Router,
) -> Router {
    let log = AccessLog { metrics: Arc::clone(&state.metrics), proxies };
    let rules = Arc::new(PageRules::new(settings));
    let routes = routes::router(state, settings, &rules, extra);
    let router = layered(routes, log, &state.shutdown, settings.origins.layer(), rules);
    // This must wrap the router: the router's own layers run after it has chosen the route.
    Router::new()
        .fallback_service(ServiceBuilder::new().map_request(trim_trailing_slash).service(router))
}

/// Adds the layers. From the outermost to the innermost:
///
/// 1. `close_when_draining` only adds a header.
/// 2. `access_log` assigns request ids, logs, counts, and writes the bodies of errors, so it must
///    see the outcome of all further layers.
/// 3. `drain_body` reads the unread rest of a body, however the request ended.
/// 4. `check_head` refuses requests that violate HTTP, so that the further layers can rely on it.
/// 5. The CORS layer answers preflight requests, and lets allowed pages read errors, too.
/// 6. The panic layer turns a panic into an error, so it must be inside the layer that writes
///    errors.
/// 7. `end_with_drain` ends running requests when the drain's time is up.
/// 8. `check_page` refuses requests from web pages that may not call the service.
///
/// Each group of routes has further layers of its own: see [`routes`].
fn layered(
    router: Router,
    log: AccessLog,
    shutdown: &Shutdown,
    cors: Option<CorsLayer>,
    rules: Arc<PageRules>,
) -> Router {
    // One call with all layers, because each call of `Router::layer` makes every request clone the
    // service below it.
    router.layer(
        ServiceBuilder::new()
            .layer(map_response_with_state(shutdown.clone(), close_when_draining))
            .layer(from_fn_with_state(log, access_log))
            .layer(from_fn(drain_body))
            .layer(from_fn(check_head))
            .option_layer(cors)
            .layer(CatchPanicLayer::custom(answer_panic))
            .layer(from_fn_with_state(shutdown.clone(), end_with_drain))
            .layer(from_fn_with_state(rules, check_page)),
    )
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn answer_panic(panic: Box<dyn Any + Send>) -> Response<Body> {
    Error::Internal(format!("panic: {}", panic_text(&*panic))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, extract::Request, routing::get};
    use tower::ServiceExt;

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn a_panic_is_answered_as_an_internal_error_that_tells_nothing() {
        let panics =
            Router::new().route("/", get(async || -> Response { panic!("planted words") }));
        let log = AccessLog { metrics: Metrics::new(), proxies: TrustedProxies::default() };
        let settings = Settings {
            keys: ClientKeys::default(),
            rate_limit: None,
            origins: Origins::default(),
            hosts: Vec::new(),
        };
        let rules = Arc::new(PageRules::new(&settings));
        let app = layered(panics, log, &Shutdown::default(), None, rules);
        let request = Request::get("/").header("host", "x").body(Body::empty()).unwrap();
        let answer = app.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], "internal");
        assert!(problem["detail"].as_str().unwrap().contains("request_id"));
        assert!(!String::from_utf8_lossy(&body).contains("planted"));
    }
}
