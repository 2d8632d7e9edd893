//! HTTP: the routes, and the layers that every request passes.

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
    cors::{PageRules, refuse_strange_pages},
    head_checking::check_head,
    shutdown::{close_when_draining, end_with_drain},
};

pub mod error;
mod extract;
mod middleware;
mod routes;
mod state;

pub use middleware::{auth::ClientKeys, cors::Origins};
pub use state::{AppState, Shared};

/// Who is let in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The keys of the clients; with none, everybody is let in.
    pub keys: ClientKeys,
    /// Pictures a minute for each client.
    pub rate_limit: Option<u32>,
    /// Other origins whose pages may call.
    pub origins: Origins,
    /// Names of the service that browsers may use where there are no client keys.
    pub hosts: Vec<String>,
}

/// The routes and their layers. `more` are routes of others that want no key.
pub fn router(
    state: &AppState,
    settings: &Settings,
    proxies: TrustedProxies,
    more: Router,
) -> Router {
    let log = AccessLog { metrics: Arc::clone(&state.metrics), proxies };
    let rules = Arc::new(PageRules::new(settings));
    let routes = routes::router(state, settings, &rules, more);
    layered(routes, log, &state.shutdown, settings.origins.layer(), rules)
}

/// The layers, the outermost first:
///
/// 1. `close_when_draining` only adds a header;
/// 2. `access_log` gives ids, logs, counts and answers errors, so it must see every other layer;
/// 3. `drain_body` reads what was left of a body, whichever way the request ended;
/// 4. `check_head` refuses what is not HTTP as it should be, so that all others can rely on it;
/// 5. the CORS layer answers browsers' questions, and marks errors as readable, too;
/// 6. a panic in any of the next becomes an error like any other, so it must be caught inside of
///    what answers errors;
/// 7. `end_with_drain` ends what runs when the drain's time is up;
/// 8. `refuse_strange_pages` turns web pages of strangers away.
///
/// The groups of routes have layers of their own: see [`routes`].
fn layered(
    router: Router,
    log: AccessLog,
    shutdown: &Shutdown,
    cors: Option<CorsLayer>,
    rules: Arc<PageRules>,
) -> Router {
    // In one: each call of `Router::layer` would have a request copy all that is below it.
    router.layer(
        ServiceBuilder::new()
            .layer(map_response_with_state(shutdown.clone(), close_when_draining))
            .layer(from_fn_with_state(log, access_log))
            .layer(from_fn(drain_body))
            .layer(from_fn(check_head))
            .option_layer(cors)
            .layer(CatchPanicLayer::custom(answer_panic))
            .layer(from_fn_with_state(shutdown.clone(), end_with_drain))
            .layer(from_fn_with_state(rules, refuse_strange_pages)),
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
