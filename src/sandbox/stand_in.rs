//! The stand-in's routes: the four endpoints of NVIDIA's API, and the presigned upload URL.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use serde_json::json;
use tokio::{task::spawn_blocking, time::Instant};
use uuid::Uuid;

use super::perceptual;
use crate::{
    decoder::{self, Decoder},
    image::{self, Content, Target},
    shares::ClientNetwork,
    spool::{Spooled, Staging},
};

mod wire;

use wire::{CreateAsset, Inference, Message, MessageContent, answer};

/// Inline pictures must have fewer Base64 characters than this.
const INLINE_LIMIT: usize = 200_000;
/// The largest upload, in bytes. It is larger than the largest picture, since re-encoding may make
/// a picture larger.
const ASSET_LIMIT: u64 = 128 << 20;
/// The most uploads, and the most pending answers, that are kept at once.
const MAX_KEPT: usize = 256;
/// How long an upload or a pending answer is kept.
const KEEP_TIME: Duration = Duration::from_secs(120);
/// The bytes of an upload that are kept in memory; the rest goes to a file.
const MAX_UPLOAD_IN_MEMORY: usize = 64 * 1024;
/// How long decoding a picture may take, including the wait in the decoder's queue.
const DECODE_TIMEOUT: Duration = Duration::from_secs(30);

const ASSET_REFERENCES: HeaderName = HeaderName::from_static("nvcf-input-asset-references");
const FUNCTION_ASSETS: HeaderName = HeaderName::from_static("nvcf-function-asset-ids");
const REQUEST_ID: HeaderName = HeaderName::from_static("nvcf-reqid");
const STATUS: HeaderName = HeaderName::from_static("nvcf-status");
const ASSET_DESCRIPTION: HeaderName = HeaderName::from_static("x-amz-meta-nvcf-asset-description");

/// A stand-in for NVIDIA at `address`. It expects `key`, and accepts pictures of up to
/// `max_pixels`.
pub fn router(
    address: SocketAddr,
    key: &str,
    max_pixels: u64,
    decoder: Decoder,
    staging: Staging,
) -> Router {
    let stand_in = StandIn {
        address,
        bearer: format!("Bearer {key}"),
        max_pixels,
        decoder,
        staging,
        assets: Mutex::default(),
        pending: Mutex::default(),
    };
    Router::new()
        .route("/v1/cv/nvidia/nv-dinov2", post(infer))
        .layer(DefaultBodyLimit::max(INLINE_LIMIT + 4096))
        .route("/v1/status/{id}", get(status))
        .route("/v2/nvcf/assets", post(create_asset))
        .route("/v2/nvcf/assets/{id}", axum::routing::delete(delete_asset))
        .route("/upload/{id}", put(upload_asset))
        .with_state(Arc::new(stand_in))
}

struct StandIn {
    address: SocketAddr,
    bearer: String,
    max_pixels: u64,
    decoder: Decoder,
    staging: Staging,
    assets: Mutex<HashMap<Uuid, Asset>>,
    pending: Mutex<HashMap<Uuid, (Instant, Vec<f32>)>>,
}

struct Asset {
    created: Instant,
    signature: String,
    content_type: String,
    description: String,
    /// The vector of the uploaded picture, or why it was rejected; `None` before the upload. It is
    /// computed when the upload arrives, so that the bytes need not be kept.
    vector: Option<Result<Vec<f32>, Rejection>>,
}

/// An error in the form in which NVIDIA sends it.
#[derive(Debug, Clone, PartialEq)]
struct Rejection(StatusCode, &'static str);

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let Self(status, detail) = self;
        let title = status.canonical_reason();
        let problem = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem))
            .into_response()
    }
}

const fn unprocessable(detail: &'static str) -> Rejection {
    Rejection(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

const fn bad_request(detail: &'static str) -> Rejection {
    Rejection(StatusCode::BAD_REQUEST, detail)
}

impl StandIn {
    fn authorize(&self, headers: &HeaderMap) -> Result<(), Rejection> {
        match headers.get(header::AUTHORIZATION) {
            Some(bearer) if bearer == self.bearer.as_str() => Ok(()),
            _ => Err(Rejection(StatusCode::UNAUTHORIZED, "Authentication failed")),
        }
    }

    fn assets(&self) -> MutexGuard<'_, HashMap<Uuid, Asset>> {
        let mut assets = self.assets.lock().unwrap_or_else(PoisonError::into_inner);
        assets.retain(|_, asset| asset.created.elapsed() < KEEP_TIME);
        assets
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Uuid, (Instant, Vec<f32>)>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, (since, _)| since.elapsed() < KEEP_TIME);
        pending
    }

    async fn vector(&self, media_type: &str, content: Content) -> Result<Vec<f32>, Rejection> {
        const UNREADABLE: Rejection = unprocessable("The picture cannot be read");
        const BUSY: Rejection = Rejection(StatusCode::SERVICE_UNAVAILABLE, "Too many pictures");
        let max_pixels = self.max_pixels;
        let probed = spawn_blocking(move || image::probe(content, max_pixels));
        let picture = probed.await.map_err(|_| BUSY)?.map_err(|_| UNREADABLE)?;
        if picture.format.media_type() != media_type {
            return Err(unprocessable("The picture is not what its media type says"));
        }
        let square = Target::Square { side: perceptual::SIDE };
        let spool = self.staging.spool(perceptual::SQUARE_LEN);
        let deadline = Instant::now() + DECODE_TIMEOUT;
        // NVIDIA does not know whose picture it is, and neither does the stand-in.
        let client = ClientNetwork::UNKNOWN;
        let decoded = self.decoder.decode(&picture, client, square, deadline, spool).await;
        let pixels = decoded.map_err(|error| match error {
            decoder::Error::Image(_) => UNREADABLE,
            _ => BUSY,
        })?;
        let vector = spawn_blocking(move || {
            let pixels = pixels.content.read_at(0, perceptual::SQUARE_LEN);
            pixels.ok().and_then(|pixels| perceptual::vector(&pixels))
        });
        vector.await.ok().flatten().ok_or(BUSY)
    }

    /// Receives the body of an upload.
    async fn receive(&self, body: Body) -> Result<Spooled, Rejection> {
        const FAILED: Rejection =
            Rejection(StatusCode::INTERNAL_SERVER_ERROR, "The upload could not be kept");
        let mut spool = self.staging.spool(MAX_UPLOAD_IN_MEMORY);
        let mut bytes = body.into_data_stream();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|_| bad_request("The upload ended early"))?;
            if spool.received() + chunk.len() as u64 > ASSET_LIMIT {
                return Err(Rejection(StatusCode::PAYLOAD_TOO_LARGE, "The upload is too large"));
            }
            spool.write(&chunk).await.map_err(|_| FAILED)?;
        }
        spool.finish().await.map_err(|_| FAILED)
    }
}

fn require(
    headers: &HeaderMap,
    name: &HeaderName,
    value: &str,
    rejection: Rejection,
) -> Result<(), Rejection> {
    let given = headers.get(name).and_then(|given| given.to_str().ok());
    if given == Some(value) { Ok(()) } else { Err(rejection) }
}

fn require_json(headers: &HeaderMap) -> Result<(), Rejection> {
    let rejection =
        Rejection(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json");
    require(headers, &header::CONTENT_TYPE, "application/json", rejection)
}

/// Whether the model accepts this media type.
fn is_accepted(media_type: &str) -> bool {
    matches!(media_type, "image/jpeg" | "image/png")
}

async fn infer(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejection> {
    stand_in.authorize(&headers)?;
    require_json(&headers)?;
    let inference: Inference = serde_json::from_slice(&body)
        .map_err(|_| unprocessable("The body is not what the model takes"))?;
    match inference.messages.as_slice() {
        [] => infer_asset(&stand_in, &headers),
        [Message { content: MessageContent::ImageUrl { image_url } }] => {
            let parts =
                image_url.url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
            let (media_type, text) =
                parts.ok_or(unprocessable("The picture must be a data: URL"))?;
            if !is_accepted(media_type) {
                return Err(unprocessable("The model takes JPEG and PNG"));
            }
            if text.len() >= INLINE_LIMIT {
                return Err(Rejection(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "The picture must be uploaded as an asset",
                ));
            }
            let picture = BASE64_STANDARD
                .decode(text)
                .map_err(|_| unprocessable("The picture is not Base64"))?;
            let content = Content::Memory(picture.into());
            Ok(answer(&stand_in.vector(media_type, content).await?))
        }
        _ => Err(unprocessable("The model takes one picture")),
    }
}

/// Answers 202 and keeps the vector for a poll, so that every large picture exercises polling.
fn infer_asset(stand_in: &StandIn, headers: &HeaderMap) -> Result<Response, Rejection> {
    let id = |name: &HeaderName| {
        headers.get(name).and_then(|id| Uuid::try_parse_ascii(id.as_bytes()).ok())
    };
    let (Some(id), Some(reference)) = (id(&FUNCTION_ASSETS), id(&ASSET_REFERENCES)) else {
        return Err(bad_request("Both asset headers must name the asset"));
    };
    let uploaded = stand_in
        .assets()
        .get(&id)
        .filter(|_| id == reference)
        .and_then(|asset| asset.vector.clone());
    let vector = uploaded.ok_or(bad_request("No such asset was uploaded"))??;
    let request = Uuid::new_v4();
    let mut pending = stand_in.pending();
    if pending.len() >= MAX_KEPT {
        return Err(Rejection(StatusCode::TOO_MANY_REQUESTS, "Too many pending answers"));
    }
    pending.insert(request, (Instant::now(), vector));
    let headers = [(REQUEST_ID, request.to_string()), (STATUS, "pending-evaluation".to_owned())];
    Ok((StatusCode::ACCEPTED, headers).into_response())
}

async fn status(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, Rejection> {
    stand_in.authorize(&headers)?;
    let delivered = stand_in.pending().remove(&id); // as at NVIDIA, a result is delivered once
    delivered
        .map(|(_, vector)| answer(&vector))
        .ok_or(Rejection(StatusCode::NOT_FOUND, "No such request"))
}

async fn create_asset(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejection> {
    stand_in.authorize(&headers)?;
    require_json(&headers)?;
    let create: CreateAsset = serde_json::from_slice(&body)
        .map_err(|_| bad_request("contentType and description are required"))?;
    if !is_accepted(&create.content_type) {
        return Err(bad_request("The model takes JPEG and PNG"));
    }
    let (id, signature) = (Uuid::new_v4(), Uuid::new_v4().simple().to_string());
    let upload_url = format!("http://{}/upload/{id}?signature={signature}", stand_in.address);
    let answer = json!({
        "assetId": id,
        "uploadUrl": upload_url,
        "contentType": create.content_type,
        "description": create.description,
    });
    let mut assets = stand_in.assets();
    if assets.len() >= MAX_KEPT {
        return Err(Rejection(StatusCode::TOO_MANY_REQUESTS, "Too many assets"));
    }
    assets.insert(
        id,
        Asset {
            created: Instant::now(),
            signature,
            content_type: create.content_type,
            description: create.description,
            vector: None,
        },
    );
    Ok(Json(answer).into_response())
}

/// The presigned URL. It takes no key, and requires the headers that were signed.
async fn upload_asset(
    State(stand_in): State<Arc<StandIn>>,
    Path(id): Path<Uuid>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Rejection> {
    const DENIED: Rejection =
        Rejection(StatusCode::FORBIDDEN, "The request does not match its signature");
    if headers.contains_key(header::AUTHORIZATION) {
        return Err(bad_request("Only one way to authorize is allowed"));
    }
    if !headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Rejection(StatusCode::NOT_IMPLEMENTED, "Chunked uploads are not implemented"));
    }
    let content_type = {
        let assets = stand_in.assets();
        let asset = assets.get(&id).ok_or(DENIED)?;
        if query.get("signature") != Some(&asset.signature) {
            return Err(DENIED);
        }
        require(&headers, &header::CONTENT_TYPE, &asset.content_type, DENIED)?;
        require(&headers, &ASSET_DESCRIPTION, &asset.description, DENIED)?;
        asset.content_type.clone()
    };
    let uploaded = stand_in.receive(body).await?;
    let vector = stand_in.vector(&content_type, uploaded.content.clone()).await;
    drop(uploaded); // the decoder reads its file, so it must exist until here
    stand_in.assets().get_mut(&id).ok_or(DENIED)?.vector = Some(vector);
    Ok(StatusCode::OK)
}

async fn delete_asset(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Rejection> {
    stand_in.authorize(&headers)?;
    let deleted = stand_in.assets().remove(&id);
    deleted.map(|_| StatusCode::NO_CONTENT).ok_or(Rejection(StatusCode::NOT_FOUND, "No such asset"))
}
