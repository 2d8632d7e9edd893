//! The answer to a batch, in OpenAI's shape.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use super::encoding::{EncodedVector, Encoding};
use crate::{
    embed::Provenance,
    pipeline::{Saved, Vectorized},
    shares::SharePermit,
    web::{
        error::{Error, OpenAiError},
        extract::body::BodyError,
        middleware::access_log::LogFields,
        routes::{
            answer::{PreparedName, X_CACHE},
            base64::ChargedBody,
        },
    },
};

/// The embeddings of a batch, in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchAnswer {
    /// Always `list`.
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Entry>,
    /// The model that computed the vectors.
    #[schema(example = "nvidia/nv-dinov2")]
    model: &'static str,
    usage: Usage,
    #[serde(skip)]
    log: LogFields,
    /// Whether a picture of the batch caused an inference call, or joined an inference call that failed.
    #[serde(skip)]
    is_miss: bool,
}

/// An embedding; or with `errors=item`, the error of a picture.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Entry {
    Embedding(Box<EmbeddingEntry>),
    Error(Box<ErrorEntry>),
}

/// An embedding.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingEntry {
    /// Always `embedding`.
    #[schema(example = "embedding")]
    object: &'static str,
    /// The picture's position in the request.
    #[schema(example = 0)]
    index: usize,
    /// A list of 1536 numbers. They have the digits that NVIDIA sent, unless `normalized` is true. With
    /// `encoding_format: base64`, a string: the Base64 of 1536 little-endian 32-bit floats, which rounds
    /// each number.
    #[schema(value_type = EmbeddingValue)]
    embedding: EncodedVector,
    imagesvc: Description,
}

/// An embedding's numbers.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "describes `embedding` in the documentation")]
enum EmbeddingValue {
    /// With `encoding_format: float`, or without it.
    Numbers(Vec<f64>),
    /// With `encoding_format: base64`.
    Base64(String),
}

/// What the service adds to OpenAI's fields.
#[derive(Debug, Serialize, ToSchema)]
struct Description {
    /// The saved file's name; absent with `save=false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_as: Option<String>,
    /// `downloads/` and the file's name; absent with `save=false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The SHA-256 of the picture's bytes.
    sha256: String,
    /// The picture's format, determined from its bytes.
    #[schema(example = "image/jpeg")]
    content_type: &'static str,
    /// What was sent to NVIDIA. Each value gives a slightly different vector.
    #[schema(value_type = PreparedName)]
    prepared: &'static str,
    /// `miss` if this picture caused a call to NVIDIA, else `hit`.
    #[schema(example = "hit")]
    cache: &'static str,
}

/// A picture that failed.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorEntry {
    /// Always `error`.
    #[schema(example = "error")]
    object: &'static str,
    /// The picture's position in the request.
    #[schema(example = 3)]
    index: usize,
    error: OpenAiError,
    /// The saved file's name, if the picture was saved before the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved_as: Option<String>,
    /// The saved file's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

/// How many tokens were used, which OpenAI's clients expect. Pictures have no tokens.
#[derive(Debug, Default, Serialize, ToSchema)]
struct Usage {
    /// Always 0.
    prompt_tokens: u32,
    /// Always 0.
    total_tokens: u32,
}

impl BatchAnswer {
    /// Creates the answer from the outcomes of a batch. With many vectors, this takes long enough to
    /// delay the other tasks of a Tokio thread: call it on a blocking thread then.
    ///
    /// # Errors
    /// The error of encoding a vector. The errors among the outcomes become entries of the answer.
    pub(super) fn new(
        outcomes: Vec<Result<Vectorized, Error>>,
        encoding: Encoding,
        model: &'static str,
    ) -> Result<Self, Error> {
        let mut log = LogFields { pictures: Some(outcomes.len()), ..LogFields::default() };
        let mut is_miss = false;
        let mut data = Vec::with_capacity(outcomes.len());
        for (index, outcome) in outcomes.into_iter().enumerate() {
            data.push(match outcome {
                Ok(vectorized) => {
                    *log.size_bytes.get_or_insert_default() += vectorized.len;
                    *log.attempts.get_or_insert_default() += vectorized.embedding.attempts;
                    is_miss |= vectorized.embedding.provenance == Provenance::Nvidia;
                    Entry::Embedding(Box::new(EmbeddingEntry::new(index, vectorized, encoding)?))
                }
                Err(error) => {
                    let attempts = error.attempts().unwrap_or(0);
                    *log.attempts.get_or_insert_default() += attempts;
                    *log.failed_pictures.get_or_insert_default() += 1;
                    is_miss |= attempts > 0;
                    Entry::Error(Box::new(ErrorEntry::new(index, &error)))
                }
            });
        }
        Ok(Self { object: "list", data, model, usage: Usage::default(), log, is_miss })
    }
}

impl EmbeddingEntry {
    fn new(index: usize, vectorized: Vectorized, encoding: Encoding) -> Result<Self, Error> {
        let imagesvc = Description {
            path: vectorized.saved.as_ref().map(Saved::path),
            saved_as: vectorized.saved.map(|saved| saved.saved_as),
            sha256: vectorized.sha256.to_string(),
            content_type: vectorized.format.media_type(),
            prepared: vectorized.embedding.prepared.name(),
            cache: vectorized.embedding.provenance.hit_or_miss(),
        };
        let embedding = encoding.encode(vectorized.embedding.vector)?;
        Ok(Self { object: "embedding", index, embedding, imagesvc })
    }
}

impl ErrorEntry {
    fn new(index: usize, error: &Error) -> Self {
        Self {
            object: "error",
            index,
            error: OpenAiError::new(error),
            saved_as: error.saved().map(|saved| saved.saved_as.clone()),
            path: error.saved().map(Saved::path),
        }
    }
}

impl BatchAnswer {
    /// Serializes the answer. The answer counts against the client's memory limit until it is sent,
    /// because it may be large and the client may read it slowly.
    ///
    /// # Errors
    /// [`BodyError::NoMemory`] if the client's memory limit leaves no space for the answer. The
    /// vectors stay in the cache, if it is on.
    pub(super) fn into_response(self, mut memory: SharePermit) -> Result<Response, Error> {
        let mut body =
            serde_json::to_vec(&self).map_err(|error| Error::Internal(error.to_string()))?;
        body.push(b'\n'); // for readability in a terminal
        memory.grow_to(body.len() as u64).map_err(BodyError::from)?;
        let body = Bytes::from_owner(ChargedBody::new(body, memory));
        let cache = if self.is_miss { "miss" } else { "hit" };
        let headers = [(header::CONTENT_TYPE, "application/json"), (X_CACHE, cache)];
        let mut response = (StatusCode::OK, headers, body).into_response();
        response.extensions_mut().insert(self.log);
        Ok(response)
    }
}
