//! Why a picture could not be fetched.

use std::{io, time::Duration};

use super::{policy::Refusal, resolver::LookupFailed};
use crate::telemetry::causes;

/// Why a picture could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not fetched.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host's name leads nowhere.
    #[error("the name could not be resolved")]
    NoSuchHost(#[source] reqwest::Error),
    /// The system's resolver could not say where the host's name leads.
    #[error("the name could not be looked up")]
    NoResolver(#[source] reqwest::Error),
    /// No connection, or none that TLS accepts.
    #[error("the host could not be connected to")]
    Connect(#[source] reqwest::Error),
    /// The host closed the connection before it answered, or the answer was no HTTP.
    #[error("the host gave no answer")]
    NoAnswer(#[source] reqwest::Error),
    /// The answer broke off.
    #[error("the answer broke off")]
    Cut {
        /// Whether a part of the picture had come.
        had_begun: bool,
        /// What the connection said.
        source: io::Error,
    },
    /// More bytes came than a picture may have, packed as they were.
    #[error("the host sent more than {limit} bytes")]
    TooManyBytes {
        /// Bytes allowed.
        limit: u64,
    },
    /// Another status than 200 and 203.
    #[error("the host answered with status {status}{}", advice(*.status))]
    Status {
        /// The status.
        status: u16,
        /// How long the host asks to wait.
        retry_after: Option<Duration>,
    },
    /// A redirect without a place to go, or one too many.
    #[error("the host redirected too often or nowhere")]
    Redirects,
    /// The answer is compressed in a way that is not undone.
    #[error("the answer has the content encoding {0:?}")]
    Encoded(String),
    /// The answer says that it is gzip, and is not.
    #[error("the answer is damaged gzip")]
    BadGzip(#[source] io::Error),
    /// The answer has no body.
    #[error("the answer has no body")]
    Empty,
    /// The deadline passed.
    #[error("the fetch ran past its deadline")]
    Timeout,
}

/// What the operator can do about a status.
fn advice(status: u16) -> &'static str {
    match status {
        403 => " (some hosts refuse unknown agents: put a contact into IMAGESVC_FETCH_USER_AGENT)",
        _ => "",
    }
}

impl Error {
    /// Why there is no answer to a request.
    pub(super) fn of_request(error: reqwest::Error) -> Self {
        if let Some(refusal) = causes(&error).find_map(|cause| cause.downcast_ref::<Refusal>()) {
            return Self::Refused(*refusal);
        }
        let lookup = causes(&error).find_map(|cause| cause.downcast_ref::<LookupFailed>());
        match lookup.map(LookupFailed::is_about_the_name) {
            Some(true) => Self::NoSuchHost(error),
            Some(false) => Self::NoResolver(error),
            None if error.is_timeout() => Self::Timeout,
            None if error.is_connect() => Self::Connect(error),
            None => Self::NoAnswer(error),
        }
    }

    /// How long the host asks to wait before it is asked again, an hour at most: a client that obeys
    /// shall not sleep for years.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { status: 429 | 503, retry_after } => {
                retry_after.map(|wait| wait.min(Duration::from_secs(3600)))
            }
            _ => None,
        }
    }
}
