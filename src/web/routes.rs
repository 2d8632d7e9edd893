//! The routes. Each picture route turns its request into a stream of bytes, and passes it to the
//! pipeline.
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
use utoipa_axum::{router::OpenApiRouter, routes};

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

/// Creates the counters of all statuses of the picture routes. Alerts can then see these counters at 0
/// before the first such response.
fn initialize_counters(metrics: &Metrics, document: &Document) {
    for (route, item) in &document.paths.paths {
        let responses = item.post.iter().flat_map(|post| post.responses.responses.keys());
        for status in responses {
            metrics.initialize_requests(route, status);
        }
    }
}

/// Builds all routes, and the OpenAPI document. `extra` contains open routes of other modules.
pub(super) fn router(
    state: &AppState,
    settings: &Settings,
    rules: &Arc<PageRules>,
    extra: Router,
) -> Router {
    let (open, open_document) = OpenApiRouter::with_openapi(BaseDocument::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .split_for_parts();
    let (keyed, keyed_document) = OpenApiRouter::with_openapi(ModelDocument::openapi())
        .routes(routes!(url::vectorize_image))
        .routes(routes!(base64::vectorize_image_base64))
        .routes(routes!(upload::vectorize_image_upload))
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(models::list_models))
        .routes(routes!(metrics::metrics))
        .route("/v1/models/{*id}", get(models::get_model))
        .route("/embeddings", post(embeddings::embeddings))
        .split_for_parts();
    initialize_counters(&state.metrics, &keyed_document);
    let document = openapi::document(open_document, keyed_document);

    let open = open
        .merge(home::router(Arc::clone(rules)))
        .merge(docs::router(&document, state.sample_url.as_deref()))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed);
    let limit = settings.rate_limit.map(|limit| {
        let valkey = state.pipeline.valkey.clone();
        Arc::new(RateLimit::per_minute(limit, valkey))
    });
    let keyed = keyed
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
