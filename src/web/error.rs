//! Every error that a client can see, with its status, its code, and a sentence that says what to
//! do.

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
mod problem;

use mapping::{
    body_code, body_detail, fetch_code, fetch_detail, head_code, head_detail, pipeline_code,
    pipeline_detail,
};

pub use code::Code;
pub use problem::{Failure, PROBLEM_JSON, Problem};

/// How long a client should wait if no upstream said how long.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

const BUSY_DETAIL: &str = "The service is busy; try again in a few seconds.";

const INTERNAL_DETAIL: &str =
    "Something went wrong in the service itself. Tell its operator the request_id.";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request's head violates HTTP.
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
    /// The URL is that of a web page, perhaps one that shows the picture.
    #[error("the URL leads to a web page")]
    LeadsToWebPage,
    /// The picture could not be received, saved or embedded.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// The request has no client key, or a wrong one.
    #[error("the client's key is missing or wrong")]
    Unauthorized,
    /// A web page of another origin sent the request.
    #[error("sent by a web page of {0}")]
    CrossOrigin(String),
    /// A web page called the service by a host name that is not configured.
    #[error("sent by a web page to the host name {0}")]
    UnknownHost(String),
    /// The client has used up its own limit; it may try again after this time.
    #[error("the client's limit is used up")]
    RateLimited(Duration),
    /// The service is stopping, and the drain's time is up.
    #[error("the service is stopping")]
    ShuttingDown,
    /// No such route.
    #[error("no such route")]
    NotFound,
    /// No such method on this route.
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

/// A request whose body or query is not what the route accepts.
#[derive(Debug)]
pub struct Invalid {
    /// One sentence that says what is wrong and what to do.
    pub detail: String,
    /// The faults of each field, in FastAPI's format.
    pub errors: Vec<FieldError>,
}

impl Invalid {
    /// An error with a single fault. `loc` is its place in the request.
    pub fn at(loc: &[&str], kind: &'static str, msg: &str, detail: impl Into<String>) -> Error {
        let loc = loc.iter().map(ToString::to_string).collect();
        Error::Invalid(Self {
            detail: detail.into(),
            errors: vec![FieldError { loc, msg: msg.into(), kind }],
        })
    }
}

/// One fault of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// The place of the fault, such as `["body", "image_url"]`.
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
            Self::Base64(fault) => fault.to_string(),
            Self::Fetch(error) => fetch_detail(error),
            Self::LeadsToWebPage => {
                "image_url leads to a web page, not to a picture: send the URL of the picture itself.".into()
            }
            Self::Pipeline(error) => pipeline_detail(error),
            Self::Unauthorized => {
                "This service requires a key: send the header Authorization: Bearer followed by your key.".into()
            }
            Self::CrossOrigin(origin) => format!(
                "A web page of the origin {origin} sent this request, and that origin is not allowed here; the service's \
                operator can add it to IMAGESVC_CORS_ORIGINS."
            ),
            Self::UnknownHost(name) => format!(
                "A web page sent this request to the host name {name}, which this service does not know as its own; \
                the service's operator can add it to IMAGESVC_HOSTS."
            ),
            Self::RateLimited(_) => {
                "You have used up your request limit; try again after the time in Retry-After.".into()
            }
            Self::ShuttingDown => "The service is stopping; send the request again.".into(),
            Self::NotFound => {
                "There is nothing here. POST a picture to /vectorize-image, /vectorize-image-base64 or \
                 /vectorize-image-upload; /docs describes them."
                    .into()
            }
            Self::MethodNotAllowed => "This route does not accept this method; see the Allow header.".into(),
            Self::Internal(_) => INTERNAL_DETAIL.into(),
        }
    }

    /// The resource that was exhausted, if the request was shed.
    pub fn shed(&self) -> Option<OverloadReason> {
        match self {
            Self::Pipeline(pipeline::Error::Overloaded(shed)) => Some(*shed),
            Self::Body(BodyError::NoMemory) => Some(OverloadReason::Memory),
            _ => None,
        }
    }

    /// The saved picture, if it was saved before the error.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { saved, .. }) => saved.as_ref(),
            _ => None,
        }
    }

    /// The number of inference calls that were made without success.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.attempts(),
            _ => None,
        }
    }

    /// The faults of each field.
    fn field_errors(&self) -> &[FieldError] {
        match self {
            Self::Invalid(invalid) => &invalid.errors,
            _ => &[],
        }
    }

    /// How long the client should wait before it tries again, if trying again makes sense.
    fn retry_after(&self) -> Option<Duration> {
        let wait = match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.retry_after(),
            Self::RateLimited(wait) => Some(*wait),
            Self::Fetch(error) => error.retry_after(),
            _ => None,
        };
        match self.code() {
            Code::Overloaded | Code::ShuttingDown | Code::EmbeddingRateLimited => {
                Some(wait.unwrap_or(DEFAULT_RETRY_AFTER))
            }
            Code::EmbeddingUnavailable | Code::RateLimited | Code::DownloadFailed => wait,
            _ => None,
        }
    }
}
