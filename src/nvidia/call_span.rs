//! The span of one attempt of a call to NVIDIA, for the trace. It contains the host and port, but no other
//! part of the URL, and no header.

use reqwest::Request;
use tracing::{Span, field::Empty};

use super::{ApiResponse, Error, Operation};
use crate::telemetry::{mark_failed, span};

/// The field of a failed attempt: the status of the response, or the kind of the error.
const ERROR_TYPE: &str = "error.type";

/// Creates the span of an attempt. `request` is `None` if it could not be built.
pub(super) fn start(operation: Operation, request: Option<&Request>) -> Span {
    let url = request.map(Request::url);
    span!(
        "nvidia",
        otel.name = operation.name(),
        otel.kind = "client",
        http.request.method = request.map(|request| request.method().as_str()),
        server.address = url.and_then(|url| url.host_str()),
        server.port = url.and_then(|url| url.port_or_known_default()).map(i64::from),
        http.response.status_code = Empty,
        "error.type" = Empty, // `ERROR_TYPE`
    )
}

/// Records the outcome of an attempt.
pub(super) fn record(span: &Span, outcome: &Result<ApiResponse, Error>) {
    let status = outcome.as_ref().map(|response| response.status);
    if let Ok(status) = status {
        span.record("http.response.status_code", i64::from(status.as_u16()));
    }
    match status {
        Ok(status) if !(status.is_client_error() || status.is_server_error()) => return,
        Ok(status) => span.record(ERROR_TYPE, status.as_str()),
        Err(error) => span.record(ERROR_TYPE, tracing::field::debug(error.kind)),
    };
    mark_failed(span);
}
