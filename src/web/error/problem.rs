//! The response to a request that failed: its headers, and its body in the format of RFC 9457.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Code, Error, FieldError, OpenAiError, expects_openai_errors};
use crate::{image::Unsupported, pipeline::Saved};

/// The body of an error response, by RFC 9457. Like FastAPI's, it has a `detail`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`. The kind of error is in `code`.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The name of the status.
    #[schema(example = "Unsupported Media Type")]
    title: &'static str,
    /// The status.
    #[schema(example = 415)]
    status: u16,
    code: Code,
    /// What is wrong and what to do.
    #[schema(example = example_detail)]
    detail: String,
    /// The request's id. `x-request-id` and the log contain the same id.
    #[schema(example = "019359f2-7c3b-7d8e-9a41-0c2f6d1e5b77")]
    request_id: String,
    /// The errors of single fields, if the code is `validation_failed`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
    /// The saved file's name, if the picture was saved before the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_as: Option<String>,
    /// The saved file's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// On `/v1/…` and `/embeddings`: the same error in the shape that OpenAI's clients show.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<OpenAiError>,
}

/// An example of [`Problem::detail`]: the sentence for bytes that are not a picture.
fn example_detail() -> String {
    Unsupported::Unknown.to_string()
}

/// The media type of [`Problem`].
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The error of a response. Converting an [`Error`] into a response attaches this extension. The
/// access log's layer then logs the error and adds the body, because that layer knows the request's id.
#[derive(Debug, Clone)]
pub struct ErrorExtension(pub Arc<Error>);

impl ErrorExtension {
    /// The body of the response to a request with this path.
    pub fn problem(&self, request_id: &str, request_path: &str) -> Problem {
        let (error, code) = (&self.0, self.0.code());
        Problem {
            kind: "about:blank",
            title: code.status().canonical_reason().unwrap_or("Error"),
            status: code.status().as_u16(),
            code,
            detail: error.detail(),
            request_id: request_id.to_owned(),
            errors: error.field_errors().to_vec(),
            saved_as: error.saved().map(|saved| saved.saved_as.clone()),
            path: error.saved().map(Saved::path),
            error: expects_openai_errors(request_path).then(|| OpenAiError::new(error)),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.code().status();
        if let Some(wait) = self.retry_after() {
            // Rounded up, and at least 1, so that the client does not try again too early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if matches!(self, Self::Unauthorized) {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        match self.code() {
            // This header lists the content codings that the service accepts: RFC 9110, section 15.5.16.
            Code::UnsupportedContentEncoding => {
                let identity = HeaderValue::from_static("identity");
                response.headers_mut().insert(header::ACCEPT_ENCODING, identity);
            }
            // A proxy and the service may disagree about the request's host or end. The connection must
            // close, so that no later bytes on it are taken for a request.
            Code::InvalidHost | Code::UnsupportedTransferEncoding => {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            _ => {}
        }
        response.extensions_mut().insert(ErrorExtension(Arc::new(self)));
        response
    }
}
