//! `GET /metrics` returns the metrics for Prometheus.

use std::collections::BTreeMap;

use axum::{extract::State, http::header, response::IntoResponse};
use utoipa::{
    IntoResponses,
    openapi::{RefOr, Response},
};

use super::openapi::error_responses;
use crate::web::{
    error::{Code, Error},
    extract::accept::Accepted,
    state::AppState,
};

/// A short answer, for the OpenAPI document.
const EXAMPLE: &str = "\
# HELP imagesvc_requests Requests by route and status.
# TYPE imagesvc_requests counter
imagesvc_requests_total{route=\"/health\",status=\"200\"} 17
# EOF
";

/// The errors of this route.
struct MetricsErrors;

impl IntoResponses for MetricsErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of(&[Code::Unauthorized, Code::Internal])
    }
}

/// Metrics for Prometheus
///
/// Requests, calls to NVIDIA, the cache, the queue, memory and the disk. If the service requires client keys,
/// Prometheus needs one as well.
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses(
        (
            status = 200, description = "OpenMetrics, or Prometheus' text format if the client prefers `text/plain`",
            content(
                (String = "application/openmetrics-text", example = json!(EXAMPLE)),
                (String = "text/plain")
            )
        ),
        MetricsErrors,
    )
)]
pub(super) async fn metrics(
    State(app): State<AppState>,
    Accepted(exposition): Accepted,
) -> Result<impl IntoResponse, Error> {
    let text = app.metrics.render(app.pipeline.readings().await, exposition);
    let text = text.map_err(|error| Error::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, exposition.content_type()), (header::VARY, "Accept")];
    Ok((headers, text))
}
