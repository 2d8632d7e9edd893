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
    cors::{PageRules, check_page},
    head_checking::check_head,
    shutdown::{close_when_stopping, end_after_drain_timeout},
    trailing_slash::trim_trailing_slash,
    unread_body::discard_unread_body,
};

pub mod error;
mod extract;
mod middleware;
mod routes;
mod state;

pub use middleware::{auth::ClientKeys, cors::Origins};
pub use state::{AppState, Shared};

/// Which clients and web pages may call the service, and how often.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The clients' keys. Without keys, every client may call the service.
    pub keys: ClientKeys,
    /// How many POST requests each client may send per minute; `None` for no limit. A batch counts as
    /// one request for each of its pictures.
    pub rate_limit: Option<u32>,
    /// The origins whose web pages may call the service, besides the service's own origin.
    pub origins: Origins,
    /// The service's host names. Without client keys, the service's own pages may call it only by
    /// these names, by an IP address, or as `localhost`. Otherwise a foreign page could use DNS rebinding
    /// to pass as the service's own: see `middleware::cors`.
    pub hosts: Vec<String>,
}

/// Builds the routes and their layers. `extra` contains the routes of the sandbox, which need no
/// key. Without the sandbox, it is empty.
pub fn router(
    state: &AppState,
    settings: &Settings,
    proxies: TrustedProxies,
    extra: Router,
) -> Router {
    let log = AccessLog { metrics: Arc::clone(&state.metrics), proxies };
    let rules = Arc::new(PageRules::new(settings));
    let routes = routes::router(state, settings, &rules, extra);
    let router = with_layers(routes, log, &state.shutdown, settings.origins.layer(), rules);
    // The trailing slash must be removed before the router chooses a route. A layer of the router runs
    // only after that choice, so a second router around it removes the slash.
    Router::new()
        .fallback_service(ServiceBuilder::new().map_request(trim_trailing_slash).service(router))
}

/// Adds the layers. From the outermost to the innermost:
///
/// 1. `close_when_stopping` adds `Connection: close` to responses while the service is stopping.
/// 2. `access_log` assigns request ids, and logs and counts requests. It also writes the bodies of
///    errors, which contain the request id. It must be outside of all layers that return errors.
/// 3. `discard_unread_body` reads and discards what the inner layers have left of a body.
/// 4. `check_head` refuses requests whose head violates HTTP. Inner layers can rely on a valid head.
/// 5. The CORS layer responds to preflight requests, and lets allowed pages read the responses of
///    all inner layers, including errors.
/// 6. The panic layer turns panics into errors.
/// 7. `end_after_drain_timeout` ends the requests that are still running after the drain timeout.
/// 8. `check_page` refuses requests from web pages that may not call the service.
///
/// Each group of routes has further layers: see [`routes`].
fn with_layers(
    router: Router,
    log: AccessLog,
    shutdown: &Shutdown,
    cors: Option<CorsLayer>,
    rules: Arc<PageRules>,
) -> Router {
    // `Router::layer` is called only once, because each further call would add one clone of the inner
    // service to every request.
    router.layer(
        ServiceBuilder::new()
            .layer(map_response_with_state(shutdown.clone(), close_when_stopping))
            .layer(from_fn_with_state(log, access_log))
            .layer(from_fn(discard_unread_body))
            .layer(from_fn(check_head))
            .option_layer(cors)
            .layer(CatchPanicLayer::custom(panic_response))
            .layer(from_fn_with_state(shutdown.clone(), end_after_drain_timeout))
            .layer(from_fn_with_state(rules, check_page)),
    )
}

#[allow(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panic_response(panic: Box<dyn Any + Send>) -> Response<Body> {
    Error::Internal(format!("panic: {}", panic_text(&*panic))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, extract::Request, routing::get};
    use tower::ServiceExt;

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn the_error_after_a_panic_does_not_contain_the_message_of_the_panic() {
        let routes =
            Router::new().route("/", get(async || -> Response { panic!("the panic's message") }));
        let log = AccessLog { metrics: Metrics::new(), proxies: TrustedProxies::default() };
        let settings = Settings {
            keys: ClientKeys::default(),
            rate_limit: None,
            origins: Origins::default(),
            hosts: Vec::new(),
        };
        let rules = Arc::new(PageRules::new(&settings));
        let app = with_layers(routes, log, &Shutdown::default(), None, rules);
        let request = Request::get("/").header("host", "x").body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["code"], "internal");
        assert!(problem["detail"].as_str().unwrap().contains("Tell its operator the request_id"));
        assert!(!String::from_utf8_lossy(&body).contains("message"));
    }
}
