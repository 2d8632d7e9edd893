//! The successful answer to a picture.

use axum::{
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    embed::Provenance,
    nvidia::{DIMENSIONS, Vector},
    pipeline::{Saved, Vectorized},
    web::{error::Error, middleware::access_log::LogFields},
};

/// Tells whether the service called NVIDIA for this answer.
const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// A picture's embedding, and a description of the picture.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer {
    /// Always `success`.
    #[schema(example = "success")]
    status: &'static str,
    /// The saved file's name; absent with `save=false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "019359f2-7c3b-7d8e-9a41-0c2f6d1e5b77.jpg")]
    saved_as: Option<String>,
    /// `downloads/` and the file's name; absent with `save=false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "downloads/019359f2-7c3b-7d8e-9a41-0c2f6d1e5b77.jpg")]
    path: Option<String>,
    /// The URL that the picture was fetched from, as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_url: Option<String>,
    /// The name that the client gave the picture, without unprintable characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "IMG_0042.JPG")]
    original_filename: Option<String>,
    /// The picture's format, determined from its bytes.
    #[schema(example = "image/jpeg")]
    content_type: &'static str,
    /// Width in pixels, as stored in the file.
    #[schema(example = 4032)]
    width: u32,
    /// Height in pixels, as stored in the file.
    #[schema(example = 3024)]
    height: u32,
    /// The SHA-256 of the picture's bytes.
    sha256: String,
    /// What was sent to NVIDIA. The three ways give slightly different vectors.
    #[schema(value_type = PreparedName)]
    prepared: &'static str,
    /// The model that computed the vector.
    #[schema(example = "nvidia/nv-dinov2")]
    model: &'static str,
    /// Always 1536.
    #[schema(example = 1536)]
    dimensions: usize,
    /// The embedding, each number as NVIDIA printed it.
    // There is no example, since a valid one would have 1536 numbers.
    #[schema(value_type = Vec<f64>, min_items = 1536, max_items = 1536)]
    vector: Vector,
    #[serde(skip)]
    size_bytes: u64,
    #[serde(skip)]
    attempts: u32,
    #[serde(skip)]
    provenance: Provenance,
}

/// What was sent to NVIDIA.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "names the values of `prepared` in the documentation")]
pub(super) enum PreparedName {
    /// The picture's own bytes.
    Original,
    /// The picture as a JPEG of the same size, turned upright.
    Jpeg,
    /// The picture as a smaller JPEG, turned upright.
    Shrunk,
}

impl Answer {
    pub(super) fn new(done: Vectorized, model: &'static str) -> Self {
        Self {
            status: "success",
            path: done.saved.as_ref().map(Saved::path),
            saved_as: done.saved.map(|saved| saved.saved_as),
            source_url: None,
            original_filename: None,
            content_type: done.picture.format.media_type(),
            width: done.picture.width,
            height: done.picture.height,
            sha256: done.sha256.to_string(),
            prepared: done.embedding.prepared.name(),
            model,
            dimensions: DIMENSIONS,
            vector: done.embedding.vector,
            size_bytes: done.picture.content.len(),
            attempts: done.embedding.attempts,
            provenance: done.embedding.provenance,
        }
    }

    pub(super) fn fetched_from(self, source_url: String) -> Self {
        Self { source_url: Some(source_url), ..self }
    }

    pub(super) fn named(self, original_filename: Option<String>) -> Self {
        Self { original_filename, ..self }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut body = match serde_json::to_vec(&self) {
            Ok(body) => body,
            Err(error) => return Error::Internal(error.to_string()).into_response(),
        };
        body.push(b'\n'); // for people at a terminal
        // Only a paid call is a miss: a request that joined another one's call paid nothing.
        let cache = if self.provenance == Provenance::Nvidia { "miss" } else { "hit" };
        let headers = [(header::CONTENT_TYPE, "application/json"), (X_CACHE, cache)];
        let mut response = (StatusCode::OK, headers, body).into_response();
        response.extensions_mut().insert(LogFields {
            saved_as: self.saved_as,
            size_bytes: Some(self.size_bytes),
            cache: Some(self.provenance.name()),
            attempts: Some(self.attempts),
        });
        response
    }
}
