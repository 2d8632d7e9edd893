//! The common parts of the HTTP clients, which call NVIDIA, the hosts of pictures, the bucket and the
//! collector of traces: certificate authorities, safe defaults, the parser of `Retry-After`, and
//! pictures as bodies.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use reqwest::{
    Body, ClientBuilder,
    header::{HeaderMap, RETRY_AFTER},
    redirect, retry,
};
use rustls::{ClientConfig, client::Resumption, crypto::aws_lc_rs};
use rustls_platform_verifier::Verifier;
use tokio::task::spawn_blocking;

use crate::{causes::causes, image::Content};

/// The most headers that a response may have. Some hosts send more than hyper's default limit of
/// 100.
const MAX_HEADERS: usize = 1000;

/// The number of bytes that are read from a file at once. Each read is a switch to a blocking thread and
/// back: an upload of 2 MB in pieces of 16 KiB took 1.6 times as much processor time as with this size.
/// For each upload, hyper buffers pieces until they exceed 400 KiB. With this size, these are four pieces, or
/// 512 KiB.
const READ_SIZE: usize = 128 * 1024;

/// A picture as the body of a request. A file is streamed, so its bytes are never all in memory.
pub(crate) fn body_of(picture: &Content) -> Body {
    match picture {
        Content::Memory(bytes) => Body::from(bytes.clone()),
        Content::File(..) => Body::wrap(StreamBody::new(frames(picture.clone()))),
    }
}

/// Streams a file's bytes. A blocking thread reads the next bytes only when hyper asks for them.
fn frames(picture: Content) -> impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Sync {
    stream::try_unfold((picture, 0), |(picture, offset)| async move {
        if offset >= picture.len() {
            return Ok(None);
        }
        let (bytes, picture) =
            spawn_blocking(move || (picture.read_at(offset, READ_SIZE), picture)).await?;
        let bytes = bytes?;
        let offset = offset + bytes.len() as u64;
        Ok(Some((Frame::data(bytes), (picture, offset))))
    })
}

/// How long the server asks to wait by `Retry-After`. The header's value is a number of seconds or
/// a date (RFC 9110, section 10.2.3). `None` if the header is missing or invalid.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse::<u32>() {
        Ok(seconds) => Some(Duration::from_secs(seconds.into())),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

/// The system's certificate authorities, which HTTP clients trust. All clients share one copy.
///
/// If the system has none, every call to an `https` URL fails. Calls to `http` URLs still work, such as
/// the calls to the sandbox.
#[derive(Debug, Clone)]
pub struct Trust {
    /// How clients set up TLS. `None` if the system has no certificate authorities.
    tls: Option<ClientConfig>,
}

impl Trust {
    /// Reads the system's certificate authorities. Logs a warning if it has none.
    pub fn probe() -> Self {
        match tls_with_system_authorities() {
            Ok(tls) => Self { tls: Some(tls) },
            Err(error) => {
                let cause = causes(&error).map(ToString::to_string).last();
                tracing::warn!(
                    cause,
                    "no certificate authorities found: calls to https URLs will fail"
                );
                Self { tls: None }
            }
        }
    }

    /// Whether the system has certificate authorities.
    pub fn has_authorities(&self) -> bool {
        self.tls.is_some()
    }

    /// A client builder for HTTP/1.1 without redirects, retries and Referer.
    pub(crate) fn client_builder(&self) -> ClientBuilder {
        let builder = ClientBuilder::new()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .http1_only()
            .http1_max_headers(MAX_HEADERS);
        match &self.tls {
            Some(tls) => {
                // Each client has its own store of TLS sessions, so that hosts of pictures cannot displace
                // NVIDIA's.
                let mut tls = tls.clone();
                tls.resumption = Resumption::default();
                builder.tls_backend_preconfigured(tls)
            }
            // With an explicit list of authorities, even an empty one, reqwest looks for no others.
            None => builder.tls_certs_only([]),
        }
    }
}

/// Sets up TLS as reqwest does. reqwest itself would read and keep the authorities once for each
/// client.
fn tls_with_system_authorities() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(Arc::clone(&provider))?;
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous() // any verifier that is not rustls' own counts as dangerous
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".into()];
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_parsed_as_seconds_or_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // 1994-11-06 08:49:37
        let wait_seconds = |value| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(wait_seconds("120"), Some(120));
        assert_eq!(wait_seconds(" 0 "), Some(0));
        assert_eq!(wait_seconds("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        // A date in the past means no wait.
        assert_eq!(wait_seconds("Sun, 06 Nov 1994 08:49:07 GMT"), Some(0));
        let too_large = "4294967296"; // one more than the largest `u32`
        for invalid in ["", "-1", "soon", "1.5", too_large] {
            assert_eq!(wait_seconds(invalid), None, "{invalid}");
        }
    }
}
