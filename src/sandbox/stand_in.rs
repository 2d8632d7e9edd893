//! The routes of the stand-in: the endpoints of NVIDIA's API that the service calls, and the
//! presigned upload URL.

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

use wire::{CreateAssetRequest, InferenceRequest, Message, MessageContent, inference_response};

/// The Base64 text of an inline picture must have fewer characters than this.
const INLINE_LIMIT: usize = 200_000;
/// The most bytes of an asset. This is more than the service accepts from clients, because a
/// re-encoded picture can be longer than the original.
const MAX_ASSET_BYTES: u64 = 128 << 20;
/// At most this many assets and this many pending results are stored at once.
const MAX_ENTRIES: usize = 256;
/// How long an asset or a pending result is stored.
const ENTRY_LIFETIME: Duration = Duration::from_secs(120);
/// The most bytes of an asset in memory. A larger asset is written to a file.
const MAX_ASSET_BYTES_IN_MEMORY: usize = 64 * 1024;
/// The longest time to decode a picture, including the wait in the decoder's queue.
const DECODE_TIMEOUT: Duration = Duration::from_secs(30);

const ASSET_REFERENCES: HeaderName = HeaderName::from_static("nvcf-input-asset-references");
const FUNCTION_ASSETS: HeaderName = HeaderName::from_static("nvcf-function-asset-ids");
const REQUEST_ID: HeaderName = HeaderName::from_static("nvcf-reqid");
const STATUS: HeaderName = HeaderName::from_static("nvcf-status");
const ASSET_DESCRIPTION: HeaderName = HeaderName::from_static("x-amz-meta-nvcf-asset-description");

/// The routes of a stand-in that requires `key` and accepts pictures of up to `max_pixels` pixels. The
/// stand-in listens on `address`, which is part of its upload URLs.
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
        // Limits only the body of the route above. 4 KiB are for the JSON around the picture.
        .layer(DefaultBodyLimit::max(INLINE_LIMIT + 4096))
        .route("/v1/status/{id}", get(poll))
        .route("/v2/nvcf/assets", post(create_asset))
        .route("/v2/nvcf/assets/{id}", axum::routing::delete(delete_asset))
        .route("/upload/{id}", put(upload_asset))
        .with_state(Arc::new(stand_in))
}

struct StandIn {
    address: SocketAddr,
    /// The only accepted value of `Authorization`.
    bearer: String,
    max_pixels: u64,
    decoder: Decoder,
    staging: Staging,
    assets: Mutex<HashMap<Uuid, Asset>>,
    pending: Mutex<HashMap<Uuid, PendingResult>>,
}

/// The result of an inference, until the service polls for it.
struct PendingResult {
    created: Instant,
    vector: Vec<f32>,
}

/// An asset, before or after the upload of its picture.
struct Asset {
    created: Instant,
    /// The parameter `signature` of the upload URL.
    signature: String,
    content_type: String,
    description: String,
    /// The vector of the uploaded picture, or why the picture was rejected. `None` before the upload.
    /// The vector is computed as soon as the picture arrives, so that the picture need not be stored.
    vector: Option<Result<Vec<f32>, Rejection>>,
}

/// An error response in NVIDIA's form.
#[derive(Debug, Clone, PartialEq)]
struct Rejection(StatusCode, &'static str);

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let Self(status, detail) = self;
        let title = status.canonical_reason();
        let problem = json!({
            "type": "about:blank",
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
        });
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

    /// Locks the assets, and removes those that are too old.
    fn lock_assets(&self) -> MutexGuard<'_, HashMap<Uuid, Asset>> {
        let mut assets = self.assets.lock().unwrap_or_else(PoisonError::into_inner);
        assets.retain(|_, asset| asset.created.elapsed() < ENTRY_LIFETIME);
        assets
    }

    /// Locks the pending results, and removes those that are too old.
    fn lock_pending(&self) -> MutexGuard<'_, HashMap<Uuid, PendingResult>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, result| result.created.elapsed() < ENTRY_LIFETIME);
        pending
    }

    /// Decodes a picture, and computes its vector.
    async fn vector(&self, media_type: &str, content: Content) -> Result<Vec<f32>, Rejection> {
        const UNDECODABLE: Rejection = unprocessable("The picture cannot be decoded");
        const UNAVAILABLE: Rejection =
            Rejection(StatusCode::SERVICE_UNAVAILABLE, "The picture cannot be processed now");
        let max_pixels = self.max_pixels;
        let probed = spawn_blocking(move || image::probe(content, max_pixels));
        let picture = probed.await.map_err(|_| UNAVAILABLE)?.map_err(|_| UNDECODABLE)?;
        if picture.format.media_type() != media_type {
            return Err(unprocessable("The picture's format does not match its media type"));
        }
        let square = Target::Square { side: perceptual::SIDE };
        let spool = self.staging.spool(perceptual::SQUARE_LEN);
        let deadline = Instant::now() + DECODE_TIMEOUT;
        // Like NVIDIA, the stand-in does not know which client sent a picture to the service.
        let client = ClientNetwork::UNKNOWN;
        let decoded = self.decoder.decode(&picture, client, square, deadline, spool).await;
        let pixels = decoded.map_err(|error| match error {
            decoder::Error::Image(_) => UNDECODABLE,
            _ => UNAVAILABLE,
        })?;
        let vector = spawn_blocking(move || {
            let pixels = pixels.content.read_at(0, perceptual::SQUARE_LEN);
            pixels.ok().and_then(|pixels| perceptual::vector(&pixels))
        });
        vector.await.ok().flatten().ok_or(UNAVAILABLE)
    }

    /// Receives the picture that is sent to the presigned URL.
    async fn receive(&self, body: Body) -> Result<Spooled, Rejection> {
        const FAILED: Rejection =
            Rejection(StatusCode::INTERNAL_SERVER_ERROR, "The upload could not be stored");
        let mut spool = self.staging.spool(MAX_ASSET_BYTES_IN_MEMORY);
        let mut bytes = body.into_data_stream();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|_| bad_request("The upload ended early"))?;
            if spool.received() + chunk.len() as u64 > MAX_ASSET_BYTES {
                return Err(Rejection(StatusCode::PAYLOAD_TOO_LARGE, "The upload is too large"));
            }
            spool.write(&chunk).await.map_err(|_| FAILED)?;
        }
        spool.finish().await.map_err(|_| FAILED)
    }
}

/// Returns `rejection` unless this header has this value.
fn require(
    headers: &HeaderMap,
    name: &HeaderName,
    value: &str,
    rejection: Rejection,
) -> Result<(), Rejection> {
    let actual = headers.get(name).and_then(|actual| actual.to_str().ok());
    if actual == Some(value) { Ok(()) } else { Err(rejection) }
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
    let inference: InferenceRequest = serde_json::from_slice(&body)
        .map_err(|_| unprocessable("The body is not a valid inference request"))?;
    match inference.messages.as_slice() {
        [] => infer_asset(&stand_in, &headers),
        [Message { content: MessageContent::ImageUrl { image_url } }] => {
            let parts =
                image_url.url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
            let (media_type, text) =
                parts.ok_or(unprocessable("The picture must be a data: URL"))?;
            if !is_accepted(media_type) {
                return Err(unprocessable("The model accepts JPEG and PNG"));
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
            Ok(inference_response(&stand_in.vector(media_type, content).await?))
        }
        _ => Err(unprocessable("The model accepts one picture")),
    }
}

/// Responds to an inference of an asset. The vector was computed during the upload. Still, a
/// successful response is always 202, so that the service has to poll for the result.
fn infer_asset(stand_in: &StandIn, headers: &HeaderMap) -> Result<Response, Rejection> {
    const NO_UPLOADED_ASSET: Rejection = bad_request("No such asset was uploaded");
    let parse_id = |name: &HeaderName| {
        headers.get(name).and_then(|id| Uuid::try_parse_ascii(id.as_bytes()).ok())
    };
    let (Some(id), Some(reference)) = (parse_id(&FUNCTION_ASSETS), parse_id(&ASSET_REFERENCES))
    else {
        return Err(bad_request("Both asset headers must contain an asset's id"));
    };
    if id != reference {
        return Err(NO_UPLOADED_ASSET);
    }
    let uploaded = stand_in.lock_assets().get(&id).and_then(|asset| asset.vector.clone());
    let vector = uploaded.ok_or(NO_UPLOADED_ASSET)??;
    let request_id = Uuid::new_v4();
    let mut pending = stand_in.lock_pending();
    if pending.len() >= MAX_ENTRIES {
        return Err(Rejection(StatusCode::TOO_MANY_REQUESTS, "Too many pending results"));
    }
    pending.insert(request_id, PendingResult { created: Instant::now(), vector });
    let headers = [(REQUEST_ID, request_id.to_string()), (STATUS, "pending-evaluation".to_owned())];
    Ok((StatusCode::ACCEPTED, headers).into_response())
}

/// Responds to a poll. Like NVIDIA, the stand-in delivers a result only once.
async fn poll(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, Rejection> {
    stand_in.authorize(&headers)?;
    let result = stand_in.lock_pending().remove(&id);
    match result {
        Some(result) => Ok(inference_response(&result.vector)),
        None => Err(Rejection(StatusCode::NOT_FOUND, "No such request")),
    }
}

async fn create_asset(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Rejection> {
    stand_in.authorize(&headers)?;
    require_json(&headers)?;
    let request: CreateAssetRequest = serde_json::from_slice(&body)
        .map_err(|_| bad_request("contentType and description are required"))?;
    if !is_accepted(&request.content_type) {
        return Err(bad_request("The model accepts JPEG and PNG"));
    }
    let (id, signature) = (Uuid::new_v4(), Uuid::new_v4().simple().to_string());
    let upload_url = format!("http://{}/upload/{id}?signature={signature}", stand_in.address);
    let created_asset = json!({
        "assetId": id,
        "uploadUrl": upload_url,
        "contentType": request.content_type,
        "description": request.description,
    });
    let mut assets = stand_in.lock_assets();
    if assets.len() >= MAX_ENTRIES {
        return Err(Rejection(StatusCode::TOO_MANY_REQUESTS, "Too many assets"));
    }
    assets.insert(
        id,
        Asset {
            created: Instant::now(),
            signature,
            content_type: request.content_type,
            description: request.description,
            vector: None,
        },
    );
    Ok(Json(created_asset).into_response())
}

/// Responds to an upload to the presigned URL. Refuses a request without the headers that were signed.
/// Like NVIDIA's storage, also refuses a request with an `Authorization` header.
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
        let assets = stand_in.lock_assets();
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
    drop(uploaded); // removes the staging file, which the decoder no longer needs
    stand_in.lock_assets().get_mut(&id).ok_or(DENIED)?.vector = Some(vector);
    Ok(StatusCode::OK)
}

async fn delete_asset(
    State(stand_in): State<Arc<StandIn>>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Rejection> {
    stand_in.authorize(&headers)?;
    let deleted = stand_in.lock_assets().remove(&id);
    match deleted {
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(Rejection(StatusCode::NOT_FOUND, "No such asset")),
    }
}
