//! Why there is no embedding.

use std::time::Duration;

use crate::{decoder, nvidia};

/// Why there is no embedding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NVIDIA does not give one.
    #[error(transparent)]
    Nvidia(#[from] nvidia::Error),
    /// The deadline passed before the picture's turn came.
    #[error("the deadline passed while waiting for {0}")]
    Busy(&'static str),
    /// Those who wait for a call already would take all the time that there is.
    #[error("the queue for calls to NVIDIA is too long")]
    WaitTooLong,
    /// The smallest JPEG of the picture does not fit inline.
    #[error("the picture cannot be made small enough")]
    StillTooLarge,
    /// The picture was not decoded.
    #[error(transparent)]
    Decoder(#[from] decoder::Error),
    /// The task of the call panicked.
    #[error("the call's task died")]
    CallDied,
}

impl Error {
    /// Whether it is the fault of the call alone, and not of what was asked for: its time was up, or it
    /// died. Who only waited for it may do better.
    pub(super) fn is_of_the_call(&self) -> bool {
        match self {
            Self::Busy(_) | Self::WaitTooLong | Self::CallDied => true,
            Self::Decoder(error) => {
                matches!(error, decoder::Error::Busy | decoder::Error::Timeout)
            }
            Self::Nvidia(error) => error.lacks_time,
            Self::StillTooLarge => false,
        }
    }

    /// Whether the picture itself is to blame: only decoding it could tell.
    pub fn is_about_the_picture(&self) -> bool {
        matches!(self, Self::Decoder(decoder::Error::Image(error)) if error.is_about_the_picture())
    }

    /// How long NVIDIA asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Nvidia(error) => error.retry_after,
            _ => None,
        }
    }

    /// Inference calls that were made in vain.
    pub fn tries(&self) -> Option<u32> {
        match self {
            Self::Nvidia(error) => Some(error.tries),
            _ => None,
        }
    }
}
