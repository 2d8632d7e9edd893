//! The routes: each turns its request into a stream of bytes and a name, and hands both on.
//!
//! There are two groups. What machines probe, and what people read before they have a key, is open.
//! Everything else wants a client's key where there are keys; also what is not there at all, which
//! would else tell what is.

use std::sync::Arc;

use axum::{Router, middleware::from_fn_with_state};
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
mod health;
mod home;
mod metrics;
mod openapi;
mod problems;
mod upload;
mod url;

/// What stands in the document beside the routes.
#[derive(OpenApi)]
#[openapi(
    components(schemas(Problem)),
    tags(
        (name = "pictures", description = "A picture in, its embedding out"),
        (name = "operation", description = "For operators and their machines"),
    )
)]
struct Base;

/// Has the answers that the document names for pictures counted from the start.
fn expect_answers(metrics: &Metrics, document: &Document) {
    for (route, item) in &document.paths.paths {
        let responses = item.post.iter().flat_map(|post| post.responses.responses.keys());
        responses.for_each(|status| metrics.initialize_requests(route, status));
    }
}

/// All routes, and the document that describes them. `more` are routes of others that are open.
pub(super) fn router(
    state: &AppState,
    settings: &Settings,
    rules: &Arc<PageRules>,
    more: Router,
) -> Router {
    let (open, open_document) = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .split_for_parts();
    let (keyed, keyed_document) = OpenApiRouter::new()
        .routes(routes!(url::vectorize_image))
        .routes(routes!(base64::vectorize_image_base64))
        .routes(routes!(upload::vectorize_image_upload))
        .routes(routes!(metrics::metrics))
        .split_for_parts();
    expect_answers(&state.metrics, &keyed_document);
    let document = openapi::document(open_document, keyed_document);

    let open = open
        .merge(home::router(Arc::clone(rules)))
        .merge(docs::router(&document, state.sample.as_deref()))
        .method_not_allowed_fallback(async || Error::MethodNotAllowed);
    let limit = settings.rate_limit.map(|limit| Arc::new(RateLimit::per_minute(limit)));
    let keyed = keyed
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(settings.keys.clone(), require_key))
                .option_layer(limit.map(|limit| from_fn_with_state(limit, rate_limit))),
        );
    let more = more.method_not_allowed_fallback(async || Error::MethodNotAllowed);
    keyed.merge(open).with_state(state.clone()).merge(more)
}
