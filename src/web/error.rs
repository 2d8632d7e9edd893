//! Everything that can go wrong for a client: its status, its code, and the sentence that helps.

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

/// How long a client should wait when nobody upstream said anything about it.
const RETRY_SOON: Duration = Duration::from_secs(5);

const BUSY: &str = "The service is busy; try again in a few seconds.";

const OUR_FAULT: &str =
    "Something went wrong in the service itself. Tell its operator the request_id.";

/// Why a request is not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The head is not what HTTP wants.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The body is not what the route takes.
    #[error("the request is not valid: {}", .0.detail)]
    Invalid(Invalid),
    /// The body could not be received.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The Base64 text is none.
    #[error(transparent)]
    Base64(#[from] base64_text::Fault),
    /// The address was not fetched.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// The address is that of a web page, maybe one about the picture.
    #[error("the address leads to a web page")]
    LeadsToWebPage,
    /// The picture was not received, saved or embedded.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// No key of a client, or a wrong one.
    #[error("no key, or a wrong one")]
    Unauthorized,
    /// A page of another origin sent the request.
    #[error("sent by a web page of {0}")]
    CrossOrigin(String),
    /// A page had the service called by a name that it does not have.
    #[error("sent by a web page to the name {0}")]
    UnknownName(String),
    /// The client's own limit; free again after this time.
    #[error("the client's limit is used up")]
    RateLimited(Duration),
    /// The drain's time is up.
    #[error("the service stops")]
    ShuttingDown,
    /// No such route.
    #[error("no such route")]
    NotFound,
    /// No such method on this route.
    #[error("no such method on this route")]
    MethodNotAllowed,
    /// A bug.
    #[error("a bug: {0}")]
    Internal(String),
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// A request that is not what the route takes.
#[derive(Debug)]
pub struct Invalid {
    /// What is wrong and what to do, in a sentence.
    pub detail: String,
    /// The same for each field, as FastAPI lists it.
    pub errors: Vec<FieldError>,
}

impl Invalid {
    /// A single fault, at a place in the request.
    pub fn at(loc: &[&str], kind: &'static str, msg: &str, detail: impl Into<String>) -> Error {
        let loc = loc.iter().map(ToString::to_string).collect();
        Error::Invalid(Self {
            detail: detail.into(),
            errors: vec![FieldError { loc, msg: msg.into(), kind }],
        })
    }
}

/// One fault of a request's body.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FieldError {
    /// Where: `["body", "image_url"]`.
    #[schema(example = json!(["body", "image_url"]))]
    pub loc: Vec<String>,
    /// What is wrong.
    #[schema(example = "Field required")]
    pub msg: String,
    /// The same for machines.
    #[serde(rename = "type")]
    #[schema(example = "missing")]
    pub kind: &'static str,
}

impl Error {
    /// The stable name.
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
            Self::CrossOrigin(_) | Self::UnknownName(_) => Code::CrossOrigin,
            Self::RateLimited(_) => Code::RateLimited,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// What is wrong and what to do, in a sentence for the client.
    pub fn detail(&self) -> String {
        match self {
            Self::Invalid(invalid) => invalid.detail.clone(),
            Self::Head(error) => head_detail(error),
            Self::Body(error) => body_detail(error),
            Self::Base64(fault) => fault.to_string(),
            Self::Fetch(error) => fetch_detail(error),
            Self::LeadsToWebPage => {
                "image_url leads to a web page, not to a picture: give the address of the picture itself.".into()
            }
            Self::Pipeline(error) => pipeline_detail(error),
            Self::Unauthorized => {
                "This service wants a key: send the header Authorization: Bearer and your key.".into()
            }
            Self::CrossOrigin(origin) => format!(
                "This request was sent by a web page of the origin {origin}, which is not allowed here; the service's \
                 operator can name it in IMAGESVC_CORS_ORIGINS."
            ),
            Self::UnknownName(name) => format!(
                "This request was sent by a web page to the name {name}, which this service does not know as its own; \
                 the service's operator can add it to IMAGESVC_HOSTS."
            ),
            Self::RateLimited(_) => {
                "You have sent as many pictures as you may; try again after the time in Retry-After.".into()
            }
            Self::ShuttingDown => "The service is being stopped; send the request again.".into(),
            Self::NotFound => {
                "There is nothing here. POST a picture to /vectorize-image, /vectorize-image-base64 or \
                 /vectorize-image-upload; /docs describes them."
                    .into()
            }
            Self::MethodNotAllowed => "This route does not take this method; see the Allow header.".into(),
            Self::Internal(_) => OUR_FAULT.into(),
        }
    }

    /// What there was too much of, where that is why.
    pub fn shed(&self) -> Option<OverloadReason> {
        match self {
            Self::Pipeline(pipeline::Error::Overloaded(shed)) => Some(*shed),
            Self::Body(BodyError::NoMemory) => Some(OverloadReason::Memory),
            _ => None,
        }
    }

    /// The saved picture, when it was saved before things went wrong.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { saved, .. }) => saved.as_ref(),
            _ => None,
        }
    }

    /// Inference calls that were made in vain.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.attempts(),
            _ => None,
        }
    }

    /// What is wrong with each field.
    fn field_errors(&self) -> &[FieldError] {
        match self {
            Self::Invalid(invalid) => &invalid.errors,
            _ => &[],
        }
    }

    /// When to try again, where that makes sense.
    fn retry_after(&self) -> Option<Duration> {
        let told = match self {
            Self::Pipeline(pipeline::Error::Embed { error, .. }) => error.retry_after(),
            Self::RateLimited(wait) => Some(*wait),
            Self::Fetch(error) => error.retry_after(),
            _ => None,
        };
        match self.code() {
            Code::Overloaded | Code::ShuttingDown | Code::EmbeddingRateLimited => {
                Some(told.unwrap_or(RETRY_SOON))
            }
            Code::EmbeddingUnavailable | Code::RateLimited | Code::DownloadFailed => told,
            _ => None,
        }
    }
}
