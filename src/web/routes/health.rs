//! `GET /health` and `/ready`: is the process alive, and can it do its work?

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::Serialize;
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use crate::{nvidia::KeyState, web::state::AppState};

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
    if app.shutdown.is_draining() {
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
