//! Everything that can go wrong for a client: its status, its code, and the sentence that helps.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::task::JoinError;
use utoipa::ToSchema;

use crate::{
    base64_text, embed, fetch,
    guard::body::BodyError,
    image,
    pipeline::{Saved, Shed},
    store,
};

mod code;
mod meaning;
mod problem;

use meaning::{embed_code, embed_detail, fetch_code, fetch_detail, image_code, image_detail, size};

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
    /// The picture has too many bytes.
    #[error("the picture has more than {limit} bytes")]
    TooManyBytes {
        /// Bytes allowed.
        limit: u64,
        /// Its size, where it is known.
        size: Option<u64>,
    },
    /// The bytes are not a picture that can be used.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The picture could not be saved.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Decoding showed that the bytes are not a picture that can be used.
    #[error("{0}")]
    Undecodable(#[source] Arc<embed::Error>),
    /// The picture was saved, but there is no embedding.
    #[error("{error}")]
    Embed {
        /// Why not: shared with others who wanted the same.
        #[source]
        error: Arc<embed::Error>,
        /// Where the picture is.
        saved: Saved,
    },
    /// No key of a client, or a wrong one.
    #[error("no key, or a wrong one")]
    Unauthorized,
    /// A page of another origin sent the request.
    #[error("sent by a web page of {0}")]
    CrossOrigin(String),
    /// The client's own limit; free again after this time.
    #[error("the client's limit is used up")]
    RateLimited(Duration),
    /// The drain's time is up.
    #[error("the service stops")]
    ShuttingDown,
    /// Too much is going on; nothing was begun.
    #[error("shed: {0:?}")]
    Overloaded(Shed),
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
    /// A thread that died.
    #[allow(clippy::needless_pass_by_value, reason = "the signature that `map_err` wants")]
    pub fn died(error: JoinError) -> Self {
        Self::Internal(error.to_string())
    }

    /// Memory that there is not.
    pub fn no_memory<E>(_: E) -> Self {
        Self::Overloaded(Shed::Memory)
    }

    /// The stable name.
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Body(BodyError::Cut(_)) => Code::ValidationFailed,
            Self::Body(BodyError::TooLarge { .. }) | Self::TooManyBytes { .. } => {
                Code::ImageTooLarge
            }
            Self::Body(BodyError::TooSlow) => Code::RequestTimeout,
            Self::Base64(_) => Code::InvalidBase64,
            Self::Fetch(error) => fetch_code(error),
            Self::Image(error) => image_code(error),
            Self::Store(error) if error.is_full() => Code::StorageFull,
            Self::Store(_) => Code::StorageFailed,
            Self::Embed { error, .. } | Self::Undecodable(error) => embed_code(error),
            Self::Unauthorized => Code::Unauthorized,
            Self::CrossOrigin(_) => Code::CrossOrigin,
            Self::RateLimited(_) => Code::RateLimited,
            Self::ShuttingDown => Code::ShuttingDown,
            Self::Overloaded(_) => Code::Overloaded,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed => Code::MethodNotAllowed,
            Self::Internal(_) => Code::Internal,
        }
    }

    /// What is wrong and what to do, in a sentence for the client.
    pub fn detail(&self) -> String {
        match self {
            Self::Invalid(invalid) => invalid.detail.clone(),
            Self::Body(BodyError::Cut(_)) => "The request's body ended early; send it again.".into(),
            Self::Body(BodyError::TooSlow) => "The request's body did not arrive in time; send it again.".into(),
            Self::Body(BodyError::TooLarge { limit, picture_limit: None }) => {
                format!("The request's body is larger than the limit of {} for this route.", size(*limit))
            }
            Self::TooManyBytes { limit, size: Some(bytes) } => {
                format!("The picture has {}, the limit is {}.", size(*bytes), size(*limit))
            }
            Self::TooManyBytes { limit, size: None }
            | Self::Body(BodyError::TooLarge { picture_limit: Some(limit), .. }) => {
                format!("The picture is larger than the limit of {}.", size(*limit))
            }
            Self::Base64(fault) => fault.to_string(),
            Self::Fetch(error) => fetch_detail(error),
            Self::Image(error) => image_detail(error),
            Self::Store(error) if error.is_full() => {
                "The service's disk is full; nothing was saved. Its operator must make room.".into()
            }
            Self::Store(_) => "The picture could not be saved; try again later.".into(),
            Self::Embed { error, .. } | Self::Undecodable(error) => embed_detail(error),
            Self::Unauthorized => {
                "This service wants a key: send the header Authorization: Bearer and your key.".into()
            }
            Self::CrossOrigin(origin) => format!(
                "This request was sent by a web page of the origin {origin}, which is not allowed here; the service's \
                 operator can name it in IMAGESVC_CORS_ORIGINS."
            ),
            Self::RateLimited(_) => {
                "You have sent as many pictures as you may; try again after the time in Retry-After.".into()
            }
            Self::ShuttingDown => "The service is being stopped; send the request again.".into(),
            Self::Overloaded(_) => BUSY.into(),
            Self::NotFound => {
                "There is nothing here. POST a picture to /vectorize-image, /vectorize-image-base64 or \
                 /vectorize-image-upload; /docs describes them."
                    .into()
            }
            Self::MethodNotAllowed => "This route does not take this method; see the Allow header.".into(),
            Self::Internal(_) => OUR_FAULT.into(),
        }
    }

    /// The saved picture, when it was saved before things went wrong.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Embed { saved, .. } => Some(saved),
            _ => None,
        }
    }

    /// Inference calls that were made in vain.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Embed { error, .. } => error.tries(),
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
            Self::Embed { error, .. } => error.retry_after(),
            Self::RateLimited(wait) => Some(*wait),
            _ => None,
        };
        match self.code() {
            Code::Overloaded | Code::ShuttingDown | Code::EmbeddingRateLimited => {
                Some(told.unwrap_or(RETRY_SOON))
            }
            Code::EmbeddingUnavailable | Code::RateLimited => told,
            _ => None,
        }
    }
}
