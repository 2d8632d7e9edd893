//! `/docs` and `/openapi.json`: the contract for people and for machines. All assets come from the
//! binary.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use bytes::Bytes;
use serde_json::Value;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::web::{error::Error, state::AppState};

/// Swagger UI adds a style and shows pictures inline; it loads nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

const CONTENT_SECURITY_POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;

/// Where the document holds the address that the page fills in.
const ADDRESS_EXAMPLE: &str = "/components/schemas/ImageUrl/properties/image_url/example";

pub(super) fn router(document: &OpenApi, sample: Option<&str>) -> Router<AppState> {
    let document = Arc::new(with_sample(document, sample));
    let config = Config::from("/openapi.json")
        // Without a word about the validator, the page would send the document's address to a public one.
        .validator_url("none")
        .try_it_out_enabled(true)
        .display_request_duration(true)
        // It would make three elements of each of a vector's numbers.
        .with_syntax_highlight(false);
    let config = Arc::new(config);
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

/// The document with the sandbox's sample picture as the address that the page fills in: elsewhere
/// the sandbox may have no network.
fn with_sample(document: &OpenApi, sample: Option<&str>) -> Value {
    // Names, numbers and texts alone: it always serializes.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    if let (Some(example), Some(sample)) = (document.pointer_mut(ADDRESS_EXAMPLE), sample) {
        *example = sample.into();
    }
    document
}

fn asset(path: &str, config: Arc<Config<'static>>) -> Result<Response, Error> {
    let file = utoipa_swagger_ui::serve(path, config)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let file = file.ok_or(Error::NotFound)?;
    let content_type = HeaderValue::try_from(file.content_type)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY)];
    // What lies in the binary is not copied: the page's script has more than a megabyte.
    let bytes = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Ok((headers, bytes).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn the_pages_script_is_not_copied_for_each_request() {
        let config = Arc::new(Config::from("/openapi.json"));
        let script = async || {
            let answer = asset("swagger-ui-bundle.js", Arc::clone(&config)).unwrap();
            to_bytes(answer.into_body(), usize::MAX).await.unwrap()
        };
        let (first, second) = (script().await, script().await);
        assert!(first.len() > 1_000_000);
        assert_eq!(first.as_ptr(), second.as_ptr());
    }
}
