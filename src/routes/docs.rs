//! `/docs` and `/openapi.json`: the contract for people and for machines. All assets come from the
//! binary.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, header, uri::Authority},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use serde_json::Value;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use crate::{app::AppState, error::Error};

/// Swagger UI adds a style and shows pictures inline; it loads nothing from elsewhere.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
);

const CONTENT_SECURITY_POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;

/// Where the document holds the address that the page fills in.
const ADDRESS_EXAMPLE: &str = "/components/schemas/ImageUrl/properties/image_url/example";

pub(super) fn router(document: OpenApi) -> Router<AppState> {
    let document = Arc::new(document);
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
        .route(
            "/openapi.json",
            get(async move |State(app): State<AppState>, headers: HeaderMap| {
                match sample(&headers) {
                    Some(address) if app.is_sandbox => with_sample(&document, address),
                    _ => Json(document).into_response(),
                }
            }),
        )
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

/// The sandbox's sample picture, where the sandbox itself can fetch it: no other host is open to it,
/// whatever name the client calls it by.
fn sample(headers: &HeaderMap) -> Option<String> {
    let called: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    let host = if called.host() == "localhost" { "localhost" } else { "127.0.0.1" };
    Some(format!("http://{host}:{}/sandbox/photo.jpg", called.port_u16().unwrap_or(80)))
}

fn with_sample(document: &OpenApi, address: String) -> Response {
    // Names, numbers and texts alone: it always serializes.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    if let Some(example) = document.pointer_mut(ADDRESS_EXAMPLE) {
        *example = Value::String(address);
    }
    Json(document).into_response()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_where_the_sandbox_fetches_from_itself() {
        for (called, address) in [
            ("localhost:8000", Some("http://localhost:8000/sandbox/photo.jpg")),
            ("127.0.0.1:4567", Some("http://127.0.0.1:4567/sandbox/photo.jpg")),
            ("192.168.1.5:8000", Some("http://127.0.0.1:8000/sandbox/photo.jpg")),
            ("[::1]:8000", Some("http://127.0.0.1:8000/sandbox/photo.jpg")),
            ("example.com", Some("http://127.0.0.1:80/sandbox/photo.jpg")),
            ("\"><script>", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, called.parse().unwrap())]);
            assert_eq!(sample(&headers).as_deref(), address, "{called}");
        }
        assert_eq!(sample(&HeaderMap::new()), None);
    }
}
