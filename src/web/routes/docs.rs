//! `/docs` and `/openapi.json`: the documentation for people and for machines. All assets are in
//! the binary.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use serde_json::Value;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::web::{error::Error, state::AppState};

/// Swagger UI needs inline styles and `data:` pictures; it loads nothing from other hosts.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

const CONTENT_SECURITY_POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;

/// The page's name among the assets.
const PAGE: &str = "index.html";

/// The place in the document of the URL that the page fills in.
const URL_EXAMPLE: &str = "/components/schemas/ImageUrl/properties/image_url/example";

pub(super) fn router(document: &OpenApi, sample: Option<&str>) -> Router<AppState> {
    let document = Arc::new(with_sample(document, sample));
    let config = Config::from("/openapi.json")
        // By default the page would send the document's URL to a public validator.
        .validator_url("none")
        .try_it_out_enabled(true)
        .display_request_duration(true)
        // Highlighting would create three elements for each of a vector's numbers.
        .with_syntax_highlight(false);
    let config = Arc::new(config);
    let page = Arc::clone(&config);
    Router::new()
        .route("/openapi.json", get(async move || Json(document)))
        .route("/docs", get(async move || asset(PAGE, page)))
        .route(
            "/docs/{*path}",
            get(async move |path: Result<Path<String>, PathRejection>| {
                let Path(path) = path.map_err(|_| Error::NotFound)?;
                asset(&path, config)
            }),
        )
}

/// In sandbox mode, replaces the URL that the page fills in by that of the sample picture, since
/// there may be no network.
fn with_sample(document: &OpenApi, sample: Option<&str>) -> Value {
    // The document holds only names, numbers and texts, so serializing it never fails.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    if let (Some(example), Some(sample)) = (document.pointer_mut(URL_EXAMPLE), sample) {
        *example = sample.into();
    }
    document
}

/// Makes the page's links absolute, since its own URL may or may not end in a slash.
fn with_absolute_links(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(page).replace("=\"./", "=\"");
    page.replace("href=\"", "href=\"/docs/").replace("src=\"", "src=\"/docs/")
}

fn asset(path: &str, config: Arc<Config<'static>>) -> Result<Response, Error> {
    let file = utoipa_swagger_ui::serve(path, config)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let file = file.ok_or(Error::NotFound)?;
    let content_type = HeaderValue::try_from(file.content_type)
        .map_err(|error| Error::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, POLICY)];
    if path == PAGE {
        return Ok((headers, with_absolute_links(&file.bytes)).into_response());
    }
    // Assets in the binary are not copied: the page's script has more than a megabyte.
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
