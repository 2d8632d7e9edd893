//! The errors that clients can see. Each has a code, a status, and a sentence for people.

use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinError;
use utoipa::ToSchema;

use super::extract::{body::BodyError, head::HeadError};
use crate::{
    base64_text, fetch,
    pipeline::{self, OverloadReason, Saved},
};

mod code;
mod mapping;
mod openai;
mod problem;

use mapping::{
    body_code, body_detail, fetch_code, fetch_detail, head_code, head_detail, pipeline_code,
    pipeline_detail,
};

pub use code::Code;
pub use openai::OpenAiError;
use openai::expects_openai_errors;
pub(in crate::web) use openai::{X_SHOULD_RETRY, is_retry_useless};
pub use problem::{ErrorExtension, PROBLEM_JSON, Problem};

/// The `Retry-After` of an error that must have one but contains no time.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

const BUSY_DETAIL: &str = "The service is busy; try again in a few seconds.";

/// The settings of common clients that limit how many pictures one request contains. Messages to users
/// contain this text.
pub(in crate::web) const BATCH_SIZE_SETTINGS: &str =
    "LangChain's chunk_size, NVIDIAEmbeddings' max_batch_size or LlamaIndex's embed_batch_size";

const INTERNAL_DETAIL: &str =
    "Something went wrong in the service itself. Tell its operator the request_id.";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request's head violates HTTP, or the body has a coding that the service does not decode.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The body or the query is not what the route accepts.
    #[error("the request is not valid: {}", .0.detail)]
    Invalid(Invalid),
    /// The body could not be received.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The text is not Base64.
    #[error(transparent)]
    Base64(#[from] base64_text::Base64Error),
    /// The picture could not be fetched.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// The URL leads to a web page instead of a picture.
    #[error("the URL leads to a web page")]
    LeadsToWebPage,
    /// The picture was not admitted, or could not be received, saved or embedded.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// The client's key is missing or wrong.
    #[error("the client's key is missing or wrong")]
    Unauthorized,
    /// A web page of another origin sent the request.
    #[error("sent by a web page of {0}")]
    CrossOrigin(String),
    /// A web page called the service by a host name that is not configured. It may use DNS rebinding.
    #[error("sent by a web page to the host name {0}")]
    UnknownHost(String),
    /// A parameter of a batch has a value that the service does not support.
    #[error("{param} is not supported: {detail}")]
    UnsupportedParameter {
        /// The parameter's name.
        param: &'static str,
        /// One sentence that says what is supported.
        detail: &'static str,
    },
    /// The requested model is not served here.
    #[error("there is no model {requested:?}")]
    ModelNotFound {
        /// The requested model's name, shortened for the message.
        requested: String,
        /// The model that is served here.
        served: &'static str,
    },
    /// A picture of a batch failed.
    #[error("{param}: {error}")]
    BatchItem {
        /// The picture's place in the request, such as `input[3]`.
        param: String,
        /// The cause.
        #[source]
        error: Box<Error>,
    },
    /// The client has reached its rate limit. It may send the request again after this time.
    #[error("the client has reached its rate limit")]
    RateLimited(Duration),
    /// The service is stopping, and the drain timeout has passed.
    #[error("the service is stopping")]
    ShuttingDown,
    /// The route does not exist.
    #[error("no such route")]
    NotFound,
    /// The route does not accept the method.
    #[error("no such method on this route")]
    MethodNotAllowed,
    /// A bug in the service.
    #[error("a bug: {0}")]
    Internal(String),
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// Why the route does not accept the request's body or query.
#[derive(Debug)]
pub struct Invalid {
    /// One sentence that says what is wrong and what to do.
    pub detail: String,
    /// The error of each invalid field, in FastAPI's format.
    pub errors: Vec<FieldError>,
}

impl Invalid {
    /// Returns the error of a single field. `loc` is the field's place in the request.
    /// `kind` and `msg` are in FastAPI's words.
    pub fn at(loc: &[&str], kind: &'static str, msg: &str, detail: impl Into<String>) -> Error {
        let loc = loc.iter().map(ToString::to_string).collect();
        Error::Invalid(Self {
            detail: detail.into(),
            errors: vec![FieldError { loc, msg: msg.into(), kind }],
        })
    }
}

/// The error of one field of a request, in FastAPI's format.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's place in the request, such as `["body", "image_url"]`.
    #[schema(example = json!(["body", "image_url"]))]
    pub loc: Vec<String>,
    /// What is wrong, for people.
    #[schema(example = "Field required")]
    pub msg: String,
    /// What is wrong, for programs.
    #[serde(rename = "type")]
    #[schema(example = "missing")]
    pub kind: &'static str,
}

impl Error {
    /// The error's stable name.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::ValidationFailed,
            Self::Head(error) => head_code(error),
            Self::Body(error) => body_code(error),
            Self::Base64(_) => Code::InvalidBase64,
            Self::Fetch(error) => fetch_code(error),
            Self::LeadsToWebPage => Code::UnsupportedImage,
            Self::Pipeline(error) => pipeline_code(error),
            Self::Unauthorized => Code::Unauthorized,
            Self::CrossOrigin(_) | Self::UnknownHost(_) => Code::CrossOrigin,
            Self::UnsupportedParameter { .. } => Code::UnsupportedParameter,
            Self::ModelNotFound { .. } => Code::ModelNotFound,
            Self::BatchItem { error, .. } => error.code(),
            Self::RateLimited(_) => Code::RateLimited,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// A sentence for the client that says what is wrong and what to do.
    pub fn detail(&self) -> String {
        match self {
            Self::Invalid(invalid) => invalid.detail.clone(),
            Self::Head(error) => head_detail(error),
            Self::Body(error) => body_detail(error),
            Self::Base64(error) => error.to_string(),
            Self::Fetch(error) => fetch_detail(error),
            Self::LeadsToWebPage => {
                "image_url leads to a web page, not to a picture: send the URL of the picture itself.".into()
            }
            Self::Pipeline(error) => pipeline_detail(error),
            Self::Unauthorized => {
                "This service requires a key: send the header Authorization: Bearer followed by your key.".into()
            }
            Self::CrossOrigin(origin) => format!(
                "A web page of the origin {origin} sent this request. That origin is not allowed here; the service's \
                operator can add it to IMAGESVC_CORS_ORIGINS."
            ),
            Self::UnknownHost(name) => format!(
                "A web page sent this request to the host name {name}. The service does not know that name as its \
                own; the service's operator can add it to IMAGESVC_HOSTS."
            ),
            Self::UnsupportedParameter { detail, .. } => (*detail).into(),
            Self::ModelNotFound { requested, served } => {
                format!("There is no model {requested:?} here; the only one is {served}.")
            }
            Self::BatchItem { param, error } => with_place(&error.detail(), param),
            Self::RateLimited(_) => {
                "You have reached your request limit; try again after the time in Retry-After.".into()
            }
            Self::ShuttingDown => "The service is stopping; send the request again.".into(),
            Self::NotFound => {
                "There is nothing here. POST a picture to /vectorize-image, /vectorize-image-base64 or \
                 /vectorize-image-upload, or several to /v1/embeddings; /docs describes them."
                    .into()
            }
            Self::MethodNotAllowed => "This route does not accept this method; see the Allow header.".into(),
            Self::Internal(_) => INTERNAL_DETAIL.into(),
        }
    }

    /// The exhausted resource, if the request was refused because of overload.
    pub fn overload_reason(&self) -> Option<OverloadReason> {
        match self {
            Self::Pipeline(pipeline::Error::Overloaded(reason)) => Some(*reason),
            Self::Body(BodyError::NoMemory) => Some(OverloadReason::Memory),
            Self::BatchItem { error, .. } => error.overload_reason(),
            _ => None,
        }
    }

    /// The saved picture, if the picture was saved before the error.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { saved, .. }) => saved.as_ref(),
            Self::BatchItem { error, .. } => error.saved(),
            _ => None,
        }
    }

    /// How many inference calls were made for the picture. None of them succeeded. `None` if the error is not
    /// from `nvidia`.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.attempts(),
            Self::BatchItem { error, .. } => error.attempts(),
            _ => None,
        }
    }

    fn field_errors(&self) -> &[FieldError] {
        match self {
            Self::Invalid(invalid) => &invalid.errors,
            Self::BatchItem { error, .. } => error.field_errors(),
            _ => &[],
        }
    }

    /// The request's parameter that caused the error, if it is known.
    fn param(&self) -> Option<&str> {
        match self {
            Self::BatchItem { param, .. } => Some(param),
            Self::UnsupportedParameter { param, .. } => Some(param),
            Self::ModelNotFound { .. } => Some("model"),
            Self::Invalid(invalid) => {
                // The first element is `body` or `query`, the second is the field.
                invalid.errors.first()?.loc.get(1).map(|field| field.as_str())
            }
            _ => None,
        }
    }

    /// How long the client should wait before it sends the request again. `None` if it should not send
    /// the request again, or if the time is unknown.
    fn retry_after(&self) -> Option<Duration> {
        let wait = match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.retry_after(),
            Self::RateLimited(wait) => Some(*wait),
            Self::Fetch(error) => error.retry_after(),
            Self::BatchItem { error, .. } => return error.retry_after(),
            _ => None,
        };
        match self.code() {
            Code::Overloaded
            | Code::ShuttingDown
            | Code::EmbeddingRateLimited
            | Code::StorageUnavailable => Some(wait.unwrap_or(DEFAULT_RETRY_AFTER)),
            Code::EmbeddingUnavailable | Code::RateLimited | Code::DownloadFailed => wait,
            _ => None,
        }
    }
}

/// Adds a picture's place in a batch to a sentence that was written for a request with a single
/// picture. A sentence that already contains the place does not change. If the sentence contains the
/// name of the single picture's field, `image_url` or `image_base64`, the place replaces the name. Any
/// other sentence is preceded by the place.
fn with_place(detail: &str, place: &str) -> String {
    if detail.contains(place) {
        return detail.to_owned();
    }
    let replaced = ["image_url", "image_base64"]
        .iter()
        .fold(detail.to_owned(), |detail, field| detail.replace(field, place));
    if replaced.contains(place) { replaced } else { format!("{place}: {replaced}") }
}
