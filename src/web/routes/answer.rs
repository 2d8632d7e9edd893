//! The answer to a picture that was embedded.

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

/// The header that is `miss` if the service called NVIDIA for this request, and `hit` if not.
pub(super) const X_CACHE: HeaderName = HeaderName::from_static("x-cache");

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
    /// The picture's URL, as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_url: Option<String>,
    /// The picture's file name, as the client sent it, without unprintable characters.
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
    /// What was sent to NVIDIA. Each value gives a slightly different vector.
    #[schema(value_type = PreparedName)]
    prepared: &'static str,
    /// The model that computed the vector.
    #[schema(example = "nvidia/nv-dinov2")]
    model: &'static str,
    /// Always 1536.
    #[schema(example = 1536)]
    dimensions: usize,
    /// The embedding. Each number has the digits that NVIDIA sent.
    // Without an example, since a valid one would have 1536 numbers.
    #[schema(value_type = Vec<f64>, min_items = 1536, max_items = 1536)]
    vector: Vector,
    // The skipped fields are for the access log, and for the header `x-cache`.
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
#[allow(dead_code, reason = "lists the values of `prepared` in the OpenAPI document")]
pub(super) enum PreparedName {
    /// The picture's own bytes.
    Original,
    /// The picture as a JPEG of the same size, turned upright.
    Jpeg,
    /// The picture as a smaller JPEG, turned upright.
    Shrunk,
}

impl Answer {
    pub(super) fn new(vectorized: Vectorized, model: &'static str) -> Self {
        let Vectorized { saved, format, width, height, len, sha256, embedding, .. } = vectorized;
        Self {
            status: "success",
            path: saved.as_ref().map(Saved::path),
            saved_as: saved.map(|saved| saved.saved_as),
            source_url: None,
            original_filename: None,
            content_type: format.media_type(),
            width,
            height,
            sha256: sha256.to_string(),
            prepared: embedding.prepared.name(),
            model,
            dimensions: DIMENSIONS,
            vector: embedding.vector,
            size_bytes: len,
            attempts: embedding.attempts,
            provenance: embedding.provenance,
        }
    }

    pub(super) fn with_source_url(self, source_url: String) -> Self {
        Self { source_url: Some(source_url), ..self }
    }

    pub(super) fn with_original_filename(self, original_filename: Option<String>) -> Self {
        Self { original_filename, ..self }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut body = match serde_json::to_vec(&self) {
            Ok(body) => body,
            Err(error) => return Error::Internal(error.to_string()).into_response(),
        };
        body.push(b'\n'); // for readability in a terminal
        let cache = self.provenance.hit_or_miss();
        let headers = [(header::CONTENT_TYPE, "application/json"), (X_CACHE, cache)];
        let mut response = (StatusCode::OK, headers, body).into_response();
        response.extensions_mut().insert(LogFields {
            saved_as: self.saved_as,
            pictures: None,
            failed_pictures: None,
            size_bytes: Some(self.size_bytes),
            cache: Some(self.provenance.name()),
            attempts: Some(self.attempts),
        });
        response
    }
}
