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
    /// Nobody could say where the host's name leads.
    #[error("the system's resolver gave no answer")]
    NoResolver(#[source] reqwest::Error),
    /// No connection, or none that TLS accepts.
    #[error("the host could not be connected to")]
    Connect(#[source] reqwest::Error),
    /// The host closed the connection before it answered, or the answer was no HTTP.
    #[error("the host gave no answer")]
    NoAnswer(#[source] reqwest::Error),
    /// The answer broke off.
    #[error("the answer broke off")]
    Cut(#[source] io::Error),
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
        match lookup.map(LookupFailed::is_temporary) {
            Some(true) => Self::NoResolver(error),
            Some(false) => Self::NoSuchHost(error),
            None if error.is_timeout() => Self::Timeout,
            None if error.is_connect() => Self::Connect(error),
            None => Self::NoAnswer(error),
        }
    }

    /// How long the host asks to wait before it is asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { status: 429 | 503, retry_after } => *retry_after,
            _ => None,
        }
    }
}
