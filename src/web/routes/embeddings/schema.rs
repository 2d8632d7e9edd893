//! Describes the body of `/v1/embeddings` for the OpenAPI document. `input.rs` reads this body.

use serde::Serialize;
use utoipa::ToSchema;

/// One picture or a batch, as OpenAI's clients send it. Unknown fields are
/// ignored, except that `modality` must be `image` if present.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
pub(super) struct EmbeddingsRequest {
    /// One picture, or a list of pictures. Required unless there are `messages`.
    input: Option<Input>,
    /// Chat messages that contain exactly one picture in total, and no text; instead of `input`.
    messages: Option<Vec<Message>>,
    /// The model's name, in upper or lower case.
    #[schema(example = "nvidia/nv-dinov2")]
    model: Option<String>,
    /// How the vectors are encoded; `float` if absent.
    encoding_format: Option<EncodingFormat>,
    /// Must be 1536, because the vectors cannot be shortened. 0 is accepted and means the same.
    #[schema(example = 1536)]
    dimensions: Option<u32>,
    /// Whether the vectors are scaled to a Euclidean length of 1.
    #[schema(example = false)]
    normalized: Option<bool>,
}

/// One picture, or a list of pictures.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!(["data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"]))]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
enum Input {
    One(InputItem),
    Many(Vec<InputItem>),
}

/// A picture: an http or https URL, a `data:` URL, or its bytes as Base64.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
enum InputItem {
    Text(String),
    Image { image: String },
    ImageUrl { image_url: ImageUrlValue },
    Content { content: Vec<ImagePart> },
}

/// A part of a message with a picture.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
struct ImagePart {
    #[serde(rename = "type")]
    #[schema(example = "image_url")]
    kind: Option<String>,
    image_url: ImageUrlValue,
}

/// A picture's URL, in one of OpenAI's two shapes.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
enum ImageUrlValue {
    Text(String),
    Object { url: String },
}

/// A chat message.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "only describes the body, which `input.rs` reads")]
struct Message {
    #[schema(example = "user")]
    role: Option<String>,
    content: Vec<ImagePart>,
}

/// How vectors are encoded.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "names the values of `encoding_format` in the documentation")]
enum EncodingFormat {
    Float,
    Base64,
}
