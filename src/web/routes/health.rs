//! `GET /health` reports that the process is alive, and `GET /ready` whether it can serve pictures.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{bucket::Operation, nvidia::KeyState, store::NotReadyReason, web::state::AppState};

/// The process is alive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Is the process alive?
///
/// Answers with `200` as long as the process accepts requests.
#[utoipa::path(get, path = "/health", tag = "operation", responses((status = 200, description = "It is alive", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether this instance can serve pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// Why the instance is not ready: `draining`, `disk_under_reserve`, `inodes_under_reserve`,
    /// `downloads_not_writable` or `disk_not_answering`.
    reasons: Vec<&'static str>,
    /// Whether NVIDIA accepted the key in the last call: `unknown`, `accepted` or `refused`. An
    /// instance with a refused key is still ready, since all instances have the same key.
    #[schema(example = "accepted")]
    nvidia_key: &'static str,
    /// Only with a bucket: whether it can be written to and read. An instance whose bucket fails is
    /// still ready, since the bucket fails for all instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    bucket: Option<BucketState>,
    /// Only with a Valkey: whether it can be used, and how many instances use it. An instance whose Valkey
    /// fails is still ready, and no longer shares calls, their limit and the clients' rate limits with others.
    #[serde(skip_serializing_if = "Option::is_none")]
    valkey: Option<ValkeyState>,
}

/// Whether the bucket works, as far as this instance knows.
#[derive(Debug, Serialize, ToSchema)]
struct BucketState {
    writable: bool,
    readable: bool,
}

/// What this instance knows about the Valkey.
#[derive(Debug, Serialize, ToSchema)]
struct ValkeyState {
    usable: bool,
    /// How many instances used it when it was last asked.
    #[schema(example = 3)]
    replicas: u32,
}

/// Can this instance serve pictures?
///
/// Answers with `503` and one or more reasons if the downloads folder cannot take pictures or the service is
/// stopping. It checks the disk at most once per second. A refused key does not cause a `503`.
#[utoipa::path(
    get, path = "/ready", tag = "operation",
    responses(
        (
            status = 200, description = "It can", body = Readiness,
            example = json!({ "ready": true, "reasons": [], "nvidia_key": "accepted" })
        ),
        (
            status = 503, description = "It cannot, for the given reasons", body = Readiness,
            example = json!({ "ready": false, "reasons": ["disk_under_reserve"], "nvidia_key": "accepted" })
        ),
    )
)]
pub(super) async fn ready(State(app): State<AppState>) -> impl IntoResponse {
    let mut reasons = Vec::new();
    if app.shutdown.is_stopping() {
        reasons.push("draining");
    }
    reasons
        .extend(app.pipeline.store.not_ready_reasons().await.into_iter().map(NotReadyReason::name));
    let nvidia_key = match app.pipeline.embedder.key_state() {
        KeyState::Unknown => "unknown",
        KeyState::Accepted => "accepted",
        KeyState::Refused => "refused",
    };
    let bucket = app.pipeline.store.bucket().map(|bucket| BucketState {
        writable: bucket.works(Operation::Write),
        readable: bucket.works(Operation::Read),
    });
    let valkey = app
        .pipeline
        .valkey
        .as_ref()
        .map(|valkey| ValkeyState { usable: valkey.works(), replicas: valkey.replicas() });
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready: reasons.is_empty(), reasons, nvidia_key, bucket, valkey }))
}
