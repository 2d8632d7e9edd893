//! The routes: each turns its request into a stream of bytes and a name, and hands both on.

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    app::AppState,
    error::{Error, Problem},
};

mod answer;
mod base64;
mod docs;
mod document;
mod file_name;
mod freshness;
mod home;
mod json;
mod ops;
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

/// All routes, and the document that describes them.
pub fn router(state: &AppState) -> Router {
    let (router, document) = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(url::vectorize_image))
        .routes(routes!(base64::vectorize_image_base64))
        .routes(routes!(upload::vectorize_image_upload))
        .routes(routes!(ops::health))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::metrics))
        .split_for_parts();
    let router = router
        .merge(home::router())
        .merge(docs::router(&document::described(document), state.sample.as_deref()));
    let router =
        if state.sample.is_some() { router.merge(crate::sandbox::photo_router()) } else { router };
    router
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .with_state(state.clone())
}
