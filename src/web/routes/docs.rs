//! `/openapi.json` is the OpenAPI document, and `/docs` shows it with Swagger UI.
//!
//! The files of Swagger UI are in the binary.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    extract::{Path, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use serde_json::Value;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::web::error::Error;

mod paragraphs;

/// The content security policy of Swagger UI's files. Swagger UI needs inline styles and `data:`
/// pictures, and loads nothing from other hosts.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

const CONTENT_SECURITY_POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;

/// The `Content-Type` header of the OpenAPI document.
const JSON: (HeaderName, HeaderValue) =
    (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));

/// The name of the file of Swagger UI that is the page at `/docs`.
const PAGE: &str = "index.html";

/// The JSON Pointer to the example of a URL in the OpenAPI document. Swagger UI fills its form with the
/// example.
const URL_EXAMPLE: &str = "/components/schemas/ImageUrl/properties/image_url/example";

/// Builds the routes. `build_document` is called at the first request for the document, and takes about
/// 2 ms. A call at the start of the service would take more memory than the rest of the start, and most
/// services are never asked for the document. `sample_url` is as in [`with_sample_url`].
pub(super) fn router<S>(build_document: fn() -> OpenApi, sample_url: Option<String>) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let body = Arc::new(LazyLock::new(move || json(&build_document(), sample_url.as_deref())));
    let config = Config::from("/openapi.json")
        // By default, Swagger UI sends the document's URL to a public validator.
        .validator_url("none")
        .try_it_out_enabled(true)
        .display_request_duration(true)
        // Highlighting would create three HTML elements for each number of a vector.
        .with_syntax_highlight(false);
    let config = Arc::new(config);
    let page_config = Arc::clone(&config);
    Router::new()
        .route("/openapi.json", get(async move || ([JSON], Bytes::clone(&body))))
        .route("/docs", get(async move || file(PAGE, page_config)))
        .route(
            "/docs/{*path}",
            get(async move |path: Result<Path<String>, PathRejection>| {
                let Path(path) = path.map_err(|_| Error::NotFound)?;
                file(&path, config)
            }),
        )
}

/// The body of the response at `/openapi.json`.
fn json(document: &OpenApi, sample_url: Option<&str>) -> Bytes {
    let mut document = with_sample_url(document, sample_url);
    paragraphs::join_in_descriptions(&mut document);
    document.to_string().into()
}

/// The document as a JSON value. In the sandbox, which must work without a network, `sample_url` is the URL
/// of the sample picture. It replaces the URL of the example. Outside of the sandbox, it is `None`.
fn with_sample_url(document: &OpenApi, sample_url: Option<&str>) -> Value {
    // The document contains only values that JSON can represent, so serializing it never fails.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    if let (Some(example), Some(sample_url)) = (document.pointer_mut(URL_EXAMPLE), sample_url) {
        *example = sample_url.into();
    }
    document
}

/// Makes the page's links absolute. Relative links would break at `/docs`, where the URL does not end
/// in a slash.
fn with_absolute_links(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(page).replace("=\"./", "=\"");
    page.replace("href=\"", "href=\"/docs/").replace("src=\"", "src=\"/docs/")
}

/// Returns one of Swagger UI's files.
fn file(path: &str, config: Arc<Config<'static>>) -> Result<Response, Error> {
    let asset = utoipa_swagger_ui::serve(path, config)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let asset = asset.ok_or(Error::NotFound)?;
    let content_type = HeaderValue::try_from(asset.content_type)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY)];
    if path == PAGE {
        return Ok((headers, with_absolute_links(&asset.bytes)).into_response());
    }
    // Files in the binary are not copied, since the page's script has more than a megabyte.
    let bytes = match asset.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Ok((headers, bytes).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::{
        body::{Body, to_bytes},
        extract::Request,
    };
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_document_is_built_once_and_not_before_it_is_requested() {
        static BUILD_COUNT: AtomicU32 = AtomicU32::new(0);
        let count_and_build = || {
            BUILD_COUNT.fetch_add(1, Ordering::Relaxed);
            OpenApi::default()
        };
        let app: Router = router(count_and_build, None);
        assert_eq!(BUILD_COUNT.load(Ordering::Relaxed), 0);
        for _ in 0..2 {
            let request = Request::get("/openapi.json").body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/json");
            let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let document: Value = serde_json::from_slice(&body).unwrap();
            assert!(document["openapi"].as_str().unwrap().starts_with("3."));
            assert_eq!(BUILD_COUNT.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn the_script_of_swagger_ui_is_not_copied_for_each_request() {
        let config = Arc::new(Config::from("/openapi.json"));
        let script = async || {
            let response = file("swagger-ui-bundle.js", Arc::clone(&config)).unwrap();
            to_bytes(response.into_body(), usize::MAX).await.unwrap()
        };
        let (first, second) = (script().await, script().await);
        // The whole script has more than a megabyte.
        assert!(first.len() > 1_000_000);
        assert_eq!(first.as_ptr(), second.as_ptr(), "both bodies should share the same bytes");
    }
}
