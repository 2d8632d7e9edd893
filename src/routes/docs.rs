//! `/docs` and `/openapi.json`: the contract for people and for machines. All assets come from the
//! binary.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::error::Error;

/// Swagger UI styles its elements and shows pictures inline; it loads nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

const CONTENT_SECURITY_POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;

pub(super) fn router<S: Clone + Send + Sync + 'static>(document: OpenApi) -> Router<S> {
    let document = Arc::new(document);
    // Without a word about the validator, the page would send the document's address to a public one.
    let config =
        Arc::new(Config::from("/openapi.json").validator_url("none").try_it_out_enabled(true));
    let page = Arc::clone(&config);
    Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(async move || asset("index.html", page)))
        .route(
            "/docs/{*path}",
            get(async move |path: Result<Path<String>, PathRejection>| {
                let Path(path) = path.map_err(|_| Error::NotFound)?;
                asset(&path, config)
            }),
        )
}

fn asset(path: &str, config: Arc<Config<'static>>) -> Result<Response, Error> {
    let file = utoipa_swagger_ui::serve(path, config)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let file = file.ok_or(Error::NotFound)?;
    let content_type = HeaderValue::try_from(file.content_type)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY)];
    Ok((headers, file.bytes.into_owned()).into_response())
}
