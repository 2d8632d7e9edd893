//! What operators and their machines ask: alive, ready, metrics.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::problems;
use crate::{
    app::AppState,
    error::{Code, Error},
    nvidia::KeyState,
};

/// Alive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Is the process alive?
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, description = "It is", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether this instance can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// What keeps it from its work.
    reasons: Vec<&'static str>,
    /// What NVIDIA last thought of the key: `unknown`, `accepted` or `refused`. It takes no
    /// instance out: another one has the same key.
    #[schema(example = "accepted")]
    nvidia_key: &'static str,
}

/// Can this instance do its work?
#[utoipa::path(
    get, path = "/ready", tag = "operation",
    responses(
        (status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It cannot, for these reasons", body = Readiness),
    )
)]
pub(super) async fn ready(State(app): State<AppState>) -> impl IntoResponse {
    let mut reasons = Vec::new();
    if app.is_draining() {
        reasons.push("draining");
    }
    let store = app.pipeline.store.clone();
    if store.check_room().is_err() {
        reasons.push("disk_under_reserve");
    }
    if !matches!(spawn_blocking(move || store.check_writable()).await, Ok(Ok(()))) {
        reasons.push("downloads_not_writable");
    }
    let nvidia_key = match app.pipeline.embedder.key_state() {
        KeyState::Unknown => "unknown",
        KeyState::Accepted => "accepted",
        KeyState::Refused => "refused",
    };
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reasons.is_empty(), reasons, nvidia_key }))
}

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
    let readings = app.pipeline.readings();
    let text = app.metrics.render(readings).map_err(|error| Error::Internal(error.to_string()))?;
    Ok((
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        text,
    ))
}
