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

/// The errors of this route.
struct MetricsErrors;

impl IntoResponses for MetricsErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses::of(&[Code::Unauthorized, Code::Internal])
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses(
        (
            status = 200, description = "OpenMetrics, or Prometheus' text format if the client prefers `text/plain`",
            content((String = "application/openmetrics-text"), (String = "text/plain"))
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
