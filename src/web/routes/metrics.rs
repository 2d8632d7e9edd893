//! `GET /metrics`: what is counted, for Prometheus.

use std::collections::BTreeMap;

use axum::{extract::State, http::header, response::IntoResponse};
use utoipa::{
    IntoResponses,
    openapi::{RefOr, Response},
};

use super::problems;
use crate::web::{
    error::{Code, Error},
    state::AppState,
};

/// The errors of the metrics.
struct MetricsErrors;

impl IntoResponses for MetricsErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems::of(&[Code::Unauthorized, Code::Internal])
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operation",
    responses(
        (status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text"),
        MetricsErrors,
    )
)]
pub(super) async fn metrics(State(app): State<AppState>) -> Result<impl IntoResponse, Error> {
    let readings = app.pipeline.readings().await;
    let text = app.metrics.render(readings).map_err(|error| Error::Internal(error.to_string()))?;
    Ok((
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        text,
    ))
}
