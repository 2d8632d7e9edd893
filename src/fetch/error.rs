//! Why a picture could not be fetched.

use std::{io, time::Duration};

use super::{policy::UrlError, resolver::LookupError};
use crate::causes::causes;

/// Why a picture could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy does not allow the URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The host name has no address.
    #[error("the host name has no address")]
    NoSuchHost(#[source] reqwest::Error),
    /// The system's resolver failed, so it is unknown whether the host name has an address.
    #[error("the host name could not be looked up")]
    LookupFailed(#[source] reqwest::Error),
    /// The connection or its TLS handshake failed.
    #[error("could not connect to the host")]
    Connect(#[source] reqwest::Error),
    /// The host closed the connection before its response, or the response was not valid HTTP.
    #[error("the host sent no response")]
    NoAnswer(#[source] reqwest::Error),
    /// The connection ended in the middle of the response.
    #[error("the connection ended in the middle of the response")]
    Interrupted {
        /// Whether some of the picture's bytes had arrived.
        has_started: bool,
        /// The connection's error.
        source: io::Error,
    },
    /// The host sent too many bytes, counted before decompression. The caller of
    /// `Fetched::into_stream` limits the decompressed bytes.
    #[error("the host sent more than {limit} bytes")]
    TooManyBytes {
        /// The most bytes that a picture may have.
        limit: u64,
    },
    /// The status is not that of a picture (200 or 203), and not that of a redirect.
    #[error("the host answered with status {status}{}", advice(*.status))]
    Status {
        /// The status.
        status: u16,
        /// The response's `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// A redirect without a target, or too many redirects.
    #[error("the host redirected too often or nowhere")]
    BadRedirects,
    /// A content encoding that the service does not decode.
    #[error("the response has the content encoding {0:?}")]
    Encoded(String),
    /// The response's header declares gzip, but the body is not valid gzip.
    #[error("the response is not valid gzip")]
    BadGzip(#[source] io::Error),
    /// The response has no body.
    #[error("the response has no body")]
    Empty,
    /// The fetch passed its deadline, or its connect timeout.
    #[error("the fetch ran past its deadline")]
    Timeout,
}

/// Advice for the operator about a status.
fn advice(status: u16) -> &'static str {
    match status {
        403 => " (some hosts refuse unknown agents: put a contact into IMAGESVC_FETCH_USER_AGENT)",
        _ => "",
    }
}

impl Error {
    /// The error of a request that got no response.
    pub(super) fn of_request(error: reqwest::Error) -> Self {
        // The resolver returns a `UrlError` or a `LookupError`, and reqwest wraps it.
        if let Some(error) = causes(&error).find_map(|cause| cause.downcast_ref::<UrlError>()) {
            return Self::Url(*error);
        }
        let lookup = causes(&error).find_map(|cause| cause.downcast_ref::<LookupError>());
        match lookup.map(LookupError::means_no_address) {
            Some(true) => Self::NoSuchHost(error),
            Some(false) => Self::LookupFailed(error),
            None if error.is_timeout() => Self::Timeout,
            None if error.is_connect() => Self::Connect(error),
            None => Self::NoAnswer(error),
        }
    }

    /// Whether another attempt within minutes may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::LookupFailed(_)
            | Self::Connect(_)
            | Self::NoAnswer(_)
            | Self::Interrupted { .. }
            | Self::Timeout => true,
            // Request Timeout, Too Early, Too Many Requests, and faults of the host itself, except for
            // Not Implemented and the like.
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 507 | 509 | 520..=599)
            }
            Self::Url(_)
            | Self::NoSuchHost(_)
            | Self::TooManyBytes { .. }
            | Self::BadRedirects
            | Self::Encoded(_)
            | Self::BadGzip(_)
            | Self::Empty => false,
        }
    }

    /// How long the host asks to wait in a 429 or a 503, but at most an hour: no client of the service
    /// should wait for years. `None` for every other error, and if the host does not say.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { status: 429 | 503, retry_after } => {
                retry_after.map(|wait| wait.min(Duration::from_secs(3600)))
            }
            _ => None,
        }
    }
}
