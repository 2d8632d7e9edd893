//! The request bodies that the stand-in reads, and the response body of an inference. Unknown
//! fields in requests are refused, because NVIDIA refuses them.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InferenceRequest {
    pub(super) messages: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    pub(super) content: MessageContent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "snake_case")]
pub(super) enum MessageContent {
    ImageUrl { image_url: ImageUrl },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageUrl {
    pub(super) url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct CreateAssetRequest {
    pub(super) content_type: String,
    pub(super) description: String,
}

#[derive(Serialize)]
struct InferenceResponse<'a> {
    metadata: [Metadata<'a>; 1],
    created: u64,
    model: &'static str,
    object: &'static str,
    usage: Usage,
}

#[derive(Serialize)]
struct Metadata<'a> {
    embedding: &'a [f32],
    frame_num: u32,
}

#[derive(Serialize)]
struct Usage {
    inference_response_time: u32,
}

/// The response to a successful inference. The service reads only the embedding. The other numbers
/// are placeholders.
pub(super) fn inference_response(vector: &[f32]) -> Response {
    Json(InferenceResponse {
        metadata: [Metadata { embedding: vector, frame_num: 0 }],
        created: 1,
        model: "nv-dinov2",
        object: "inference.completion",
        usage: Usage { inference_response_time: 1 },
    })
    .into_response()
}
