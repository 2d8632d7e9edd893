//! Why a picture gets no embedding.

use std::time::Duration;

use crate::{decoder, nvidia};

/// Why a picture gets no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call to NVIDIA failed, or must not be made before the deadline.
    #[error(transparent)]
    Nvidia(#[from] nvidia::Error),
    /// The deadline passed while the picture waited. The field names what it waited for: `a call to NVIDIA`,
    /// or `another replica's call to NVIDIA`.
    #[error("the deadline passed while waiting for {0}")]
    QueueTimeout(&'static str),
    /// The queue for permits is so long that the deadline would probably pass before the picture gets a
    /// permit or, for a batch, before all its calls end.
    #[error("the queue for calls to NVIDIA is too long")]
    QueueTooLong,
    /// The picture must be shrunk, and even its smallest JPEG is too large to be sent inline.
    #[error("the picture cannot be made small enough")]
    CannotShrinkEnough,
    /// The picture could not be decoded.
    #[error(transparent)]
    Decoder(#[from] decoder::Error),
    /// The task that made the call panicked.
    #[error("the call's task panicked")]
    CallPanicked,
}

impl Error {
    /// Whether a request that joined the failed call may succeed if it makes a call of its own: the
    /// failed call had too little time, or its task panicked.
    pub(super) fn another_call_may_succeed(&self) -> bool {
        match self {
            Self::QueueTimeout(_) | Self::QueueTooLong | Self::CallPanicked => true,
            Self::Decoder(error) => {
                matches!(error, decoder::Error::QueueTimeout | decoder::Error::Timeout)
            }
            Self::Nvidia(error) => error.only_deadline_prevents_retry,
            Self::CannotShrinkEnough => false,
        }
    }

    /// Whether decoding showed that the picture itself is the cause. False if NVIDIA refused the picture.
    pub fn picture_is_undecodable(&self) -> bool {
        matches!(self, Self::Decoder(decoder::Error::Image(error)) if error.is_about_the_picture())
    }

    /// How long to wait before another call, if NVIDIA or the limit on calls per minute says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Nvidia(error) => error.retry_after,
            _ => None,
        }
    }

    /// The number of inference calls that were made without success. `None` if the error is not
    /// [`Self::Nvidia`].
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Nvidia(error) => Some(error.sent_inferences),
            _ => None,
        }
    }
}
