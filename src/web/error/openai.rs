//! Describes errors in the shape that OpenAI's clients expect.
//!
//! The body of an error response has the format of RFC 9457. On the paths of OpenAI's API, the body
//! also has a member `error`, in OpenAI's shape. OpenAI's clients show only `error.message`. Without
//! this member, they would show "415 status code (no body)".

use axum::http::HeaderName;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Code, Error, fetch_code};

/// The response header that tells clients whether to send the request again. OpenAI's clients know it.
/// Without this header, they repeat a request up to two times after a 408, 409, 429 or 5xx.
pub(in crate::web) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error in OpenAI's shape.
#[derive(Debug, Serialize, ToSchema)]
pub struct OpenAiError {
    /// What is wrong and what to do, as in `detail`.
    #[schema(example = "input[3] is text, but this model embeds pictures only.")]
    message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: &'static str,
    /// The parameter that caused the error, such as `input[3]`.
    #[schema(example = "input[3]")]
    param: Option<String>,
    /// The stable name of the error.
    code: Code,
}

impl OpenAiError {
    /// Describes an error.
    pub fn new(error: &Error) -> Self {
        let code = error.code();
        let kind = match code.status().as_u16() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let param = error.param().map(ToOwned::to_owned);
        Self { message: error.detail(), kind, param, code }
    }
}

/// Whether a path belongs to OpenAI's API. Some clients leave out the `/v1` of `/v1/embeddings`.
pub(in crate::web) fn expects_openai_errors(path: &str) -> bool {
    path.starts_with("/v1/") || path == "/embeddings"
}

/// Whether the response must tell clients not to repeat the request. True if clients repeat requests after
/// this status, but only the operator or a changed request can help. False for a status after which no
/// client repeats a request, such as 415.
pub(in crate::web) fn is_retry_useless(error: &Error) -> bool {
    match error {
        Error::BatchItem { error, .. } => is_retry_useless(error),
        // Of the codes of fetch errors, only `DownloadFailed` and `DownloadTimeout` have a status of 5xx.
        // After a timeout, a retry may help.
        Error::Fetch(error) => fetch_code(error) == Code::DownloadFailed && !error.is_transient(),
        // All of these codes have a status of 5xx, after which clients repeat a request.
        _ => matches!(
            error.code(),
            Code::EmbeddingExhausted
                | Code::EmbeddingUnauthorized
                | Code::StorageFull
                | Code::UnsupportedTransferEncoding
                | Code::Internal
        ),
    }
}
