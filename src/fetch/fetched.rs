//! The response of a picture's host: checks its headers, and streams its body.

use std::io;

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, future::Either, stream};
use reqwest::{
    Response,
    header::{CONTENT_ENCODING, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::io::{ReaderStream, StreamReader};

use super::Error;

/// The size of the buffer for decompressed bytes.
const BUFFER_LEN: usize = 64 * 1024;

/// A response whose headers have arrived, and whose body is the picture.
pub struct Fetched {
    /// The picture's length in bytes, if the host declared it. `None` for gzip, because the host
    /// then declares the length of the compressed picture.
    pub length: Option<u64>,
    response: Response,
    is_gzip: bool,
    deadline: Instant,
}

impl Fetched {
    /// Checks the headers of a response.
    ///
    /// # Errors
    /// [`Error::Encoded`] for a `Content-Encoding` that [`is_gzip`] refuses. [`Error::Empty`] for a
    /// declared length of 0.
    pub(super) fn new(response: Response, deadline: Instant) -> Result<Self, Error> {
        let is_gzip = is_gzip(response.headers())?;
        match response.content_length() {
            Some(0) => Err(Error::Empty),
            length => {
                let length = length.filter(|_| !is_gzip);
                Ok(Self { length, response, is_gzip, deadline })
            }
        }
    }

    /// Streams the picture's bytes, decompressed if necessary. Reads at most `max_bytes` bytes from
    /// the host. This limit applies before decompression, because an endless gzip stream may
    /// decompress to nothing. The caller must limit the decompressed bytes.
    pub fn into_stream(self, max_bytes: u64) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let Self { response, is_gzip, deadline, .. } = self;
        // The state of this stream is the response and the number of bytes received so far.
        let body = stream::try_unfold((response, 0), move |(mut response, received)| async move {
            let Some(chunk) = response.chunk().await.map_err(ReadError::Disconnected)? else {
                return Ok(None);
            };
            let received = received + chunk.len() as u64;
            if received > max_bytes {
                return Err(ReadError::TooManyBytes.into());
            }
            Ok(Some((chunk, (response, received))))
        });
        let bytes = if is_gzip { Either::Left(gunzip(body)) } else { Either::Right(body) };
        // The state of this stream includes whether it has returned any bytes.
        stream::try_unfold((Box::pin(bytes), false), move |(mut bytes, has_started)| async move {
            match timeout_at(deadline, bytes.try_next()).await {
                Ok(Ok(Some(chunk))) => Ok(Some((chunk, (bytes, true)))),
                Ok(Ok(None)) if has_started => Ok(None),
                Ok(Ok(None)) => Err(Error::Empty),
                Ok(Err(source)) => Err(match ReadError::of(&source) {
                    Some(ReadError::TooManyBytes) => Error::TooManyBytes { limit: max_bytes },
                    Some(ReadError::Disconnected(_)) => Error::Interrupted { has_started, source },
                    // The connection ended before the compressed stream did.
                    None if source.kind() == io::ErrorKind::UnexpectedEof => {
                        Error::Interrupted { has_started, source }
                    }
                    None => Error::BadGzip(source),
                }),
                Err(_) => Err(Error::Timeout),
            }
        })
    }
}

/// An error of the stream before decompression. It passes through the decompressor as the source of
/// an [`io::Error`].
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the connection failed")]
    Disconnected(#[source] reqwest::Error),
    #[error("too many bytes")]
    TooManyBytes,
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        Self::other(match error {
            ReadError::Disconnected(source) => ReadError::Disconnected(source.without_url()),
            ReadError::TooManyBytes => error,
        })
    }
}

impl ReadError {
    /// Returns the `ReadError` inside an [`io::Error`], if there is one.
    fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Decompresses in small chunks, so that a caller can stop when the picture gets too large. Accepts
/// several gzip members one after the other (RFC 1952, section 2.2).
fn gunzip(
    compressed: impl Stream<Item = io::Result<Bytes>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut decoder = GzipDecoder::new(StreamReader::new(Box::pin(compressed)));
    decoder.multiple_members(true);
    ReaderStream::with_capacity(decoder, BUFFER_LEN)
}

/// Whether the body is compressed with gzip. The request asks for no compression, but object stores
/// send a file in the form in which it was stored. Some hosts put values into `Content-Encoding`
/// that are not compressions; these are ignored. Any other value, and a second gzip, is an error.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Error> {
    let lines = headers.get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let mut has_gzip = false;
    for coding in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
        let coding = String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase();
        match coding.as_str() {
            "" | "identity" | "none" | "aws-chunked" | "utf-8" | "utf8" | "binary" | "base64" => {}
            "gzip" | "x-gzip" if !has_gzip => has_gzip = true,
            other => {
                // The name appears in the log and in the answer, so all but harmless characters
                // are removed.
                let is_harmless = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
                return Err(Error::Encoded(other.chars().filter(is_harmless).take(30).collect()));
            }
        }
    }
    Ok(has_gzip)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether a body with these `Content-Encoding` headers is compressed with gzip, or the
    /// name of a refused encoding.
    fn is_gzip_in(lines: &[&str]) -> Result<bool, String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_ENCODING, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        is_gzip(&headers).map_err(|error| match error {
            Error::Encoded(name) => name,
            other => panic!("the encoding should be refused: {other}"),
        })
    }

    #[test]
    fn gzip_is_recognized_some_values_are_ignored_and_all_others_are_refused() {
        for ignored in
            ["", " ", "identity", "Identity", "aws-chunked", "UTF-8", "none", ",", "base64"]
        {
            assert_eq!(is_gzip_in(&[ignored]), Ok(false), "{ignored:?}");
        }
        assert_eq!(is_gzip_in(&[]), Ok(false));
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["aws-chunked,gzip"], &["", "gzip"]] {
            assert_eq!(is_gzip_in(gzip), Ok(true), "{gzip:?}");
        }
        for (refused, name) in [
            (&["br"][..], "br"),
            (&["zstd"], "zstd"),
            (&["gzip, gzip"], "gzip"),
            (&["gzip", "deflate"], "deflate"),
            // The error contains only harmless characters.
            (&["<b>\u{e9}\"x\""], "bx"),
        ] {
            assert_eq!(is_gzip_in(refused), Err(name.to_owned()));
        }
    }
}
