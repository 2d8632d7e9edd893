//! The routes. Each picture route turns its request into a stream of bytes, and passes the stream to
//! the pipeline.
//!
//! There are two groups. Open routes never require a client key: the health checks, and the pages
//! that people read before they have a key. All other routes require a key if the operator has set
//! client keys. Unknown paths require a key, too. Otherwise a client without a key could find out which
//! routes exist.

use std::sync::Arc;

use axum::{
    Router,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use tower::ServiceBuilder;
use utoipa::{OpenApi, openapi::OpenApi as Document};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter},
    routes,
};

use super::{
    Settings,
    error::{Error, Problem},
    middleware::{
        auth::require_key,
        cors::PageRules,
        rate_limit::{RateLimit, rate_limit},
    },
    state::AppState,
};
use crate::telemetry::Metrics;

mod answer;
mod base64;
mod docs;
mod embeddings;
mod health;
mod home;
mod metrics;
mod models;
mod openapi;
mod upload;
mod url;

/// The parts of the OpenAPI document that do not belong to a single route.
#[derive(OpenApi)]
#[openapi(
    components(schemas(Problem)),
    tags(
        (name = "pictures", description = "Take a picture and return its embedding"),
        (name = "OpenAI", description = "One picture or a batch, as OpenAI's clients send it"),
        (name = "operation", description = "For operators and their tools"),
    )
)]
struct BaseDocument;

/// Describes `/v1/models/{*id}`, which `OpenApiRouter` cannot describe: OpenAPI has no pattern for ids
/// with slashes.
#[derive(OpenApi)]
#[openapi(paths(models::get_model))]
struct ModelDocument;

/// Creates a counter for each status that the document lists for a picture route; these are the routes
/// with `POST`. Alerts can then see the counter at 0 before the first response with this status.
fn initialize_counters(metrics: &Metrics, document: &Document) {
    for (route, item) in &document.paths.paths {
        let responses = item.post.iter().flat_map(|post| post.responses.responses.keys());
        for status in responses {
            metrics.initialize_requests(route, status);
        }
    }
}

/// Returns a route together with its part of the OpenAPI document.
type DescribedRoute = fn() -> UtoipaMethodRouter<AppState>;

/// The open routes that are in the OpenAPI document. [`router`] adds the other open routes.
const OPEN: [DescribedRoute; 2] = [|| routes!(health::health), || routes!(health::ready)];

/// The routes in the OpenAPI document that require a key if the operator has set client keys.
const KEYED: [DescribedRoute; 6] = [
    || routes!(url::vectorize_image),
    || routes!(base64::vectorize_image_base64),
    || routes!(upload::vectorize_image_upload),
    || routes!(embeddings::embeddings),
    || routes!(models::list_models),
    || routes!(metrics::metrics),
];

/// Builds the OpenAPI document.
fn document() -> Document {
    let describe = |base, routes: &[DescribedRoute]| {
        let base = OpenApiRouter::with_openapi(base);
        routes.iter().fold(base, |described, route| described.routes(route())).into_openapi()
    };
    let open = describe(BaseDocument::openapi(), &OPEN);
    openapi::document(open, describe(ModelDocument::openapi(), &KEYED))
}

/// Builds the routes without a document, and creates their counters. Frees each route's part of the
/// document before it builds the next route, because all parts together take more memory than
/// everything else at the start of the service.
fn without_document(routes: &[DescribedRoute], metrics: &Metrics) -> Router<AppState> {
    routes.iter().fold(Router::new(), |router, route| {
        let (route, document) = OpenApiRouter::new().routes(route()).split_for_parts();
        initialize_counters(metrics, &document);
        router.merge(route)
    })
}

/// Builds all routes. `extra` contains further open routes: those of the sandbox, if it runs.
pub(super) fn router(
    state: &AppState,
    settings: &Settings,
    page_rules: &Arc<PageRules>,
    extra: Router,
) -> Router {
    let open = without_document(&OPEN, &state.metrics)
        .merge(home::router(Arc::clone(page_rules)))
        .merge(docs::router(document, state.sample_url.clone()))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed);
    let limit = settings.rate_limit.map(|limit| {
        let valkey = state.pipeline.valkey.clone();
        Arc::new(RateLimit::per_minute(limit, valkey))
    });
    let keyed = without_document(&KEYED, &state.metrics)
        .route("/v1/models/{*id}", get(models::get_model))
        .route("/embeddings", post(embeddings::embeddings)) // for clients that omit `/v1`
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(settings.keys.clone(), require_key))
                .option_layer(limit.map(|limit| from_fn_with_state(limit, rate_limit))),
        );
    let extra = extra.method_not_allowed_fallback(async || Error::MethodNotAllowed);
    keyed.merge(open).with_state(state.clone()).merge(extra)
}
