//! The answer of a picture's host: whether it is accepted, and its bytes as they arrive.

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

/// How many bytes are decompressed at once.
const PIECE: usize = 64 * 1024;

/// A picture that is being fetched.
pub struct Fetched {
    /// The length that the host announced, in bytes.
    pub length: Option<u64>,
    response: Response,
    is_gzip: bool,
    deadline: Instant,
}

impl Fetched {
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

    /// The picture's bytes as they arrive, decompressed if necessary. At most `limit` bytes are
    /// read from the host, because an endless gzip stream may decompress to nothing.
    pub fn into_stream(self, limit: u64) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let Self { response, is_gzip, deadline, .. } = self;
        let sent = stream::try_unfold((response, 0), move |(mut response, before)| async move {
            let Some(bytes) = response.chunk().await.map_err(ReadError::Disconnected)? else {
                return Ok(None);
            };
            let received = before + bytes.len() as u64;
            if received > limit {
                return Err(ReadError::TooManyBytes.into());
            }
            Ok(Some((bytes, (response, received))))
        });
        let bytes = if is_gzip { Either::Left(gunzip(sent)) } else { Either::Right(sent) };
        stream::try_unfold((Box::pin(bytes), false), move |(mut bytes, has_started)| async move {
            match timeout_at(deadline, bytes.try_next()).await {
                Ok(Ok(Some(piece))) => Ok(Some((piece, (bytes, true)))),
                Ok(Ok(None)) if has_started => Ok(None),
                Ok(Ok(None)) => Err(Error::Empty),
                Ok(Err(source)) => Err(match ReadError::of(&source) {
                    Some(ReadError::TooManyBytes) => Error::TooManyBytes { limit },
                    Some(ReadError::Disconnected(_)) => Error::Interrupted { has_started, source },
                    // The compressed stream ended early.
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

/// Ends the stream before decompression. It passes through the decompressor as an [`io::Error`].
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the connection failed")]
    Disconnected(#[source] reqwest::Error),
    #[error("too many bytes")]
    TooManyBytes,
}

impl From<ReadError> for io::Error {
    fn from(fault: ReadError) -> Self {
        Self::other(match fault {
            ReadError::Disconnected(error) => ReadError::Disconnected(error.without_url()),
            ReadError::TooManyBytes => fault,
        })
    }
}

impl ReadError {
    fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// Decompresses piece by piece, so that the reader can stop at any time. After a complete gzip
/// member, only another member may follow.
fn gunzip(
    packed: impl Stream<Item = io::Result<Bytes>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut unpacked = GzipDecoder::new(StreamReader::new(Box::pin(packed)));
    unpacked.multiple_members(true);
    ReaderStream::with_capacity(unpacked, PIECE)
}

/// Whether the answer is gzip. The request did not ask for it, but object stores send files as they
/// were stored. Some hosts put values into this header that are not compressions; then the bytes
/// are the picture itself.
fn is_gzip(headers: &HeaderMap) -> Result<bool, Error> {
    let lines = headers.get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let mut is_gzip = false;
    for coding in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
        let coding = String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase();
        match coding.as_str() {
            "" | "identity" | "none" | "aws-chunked" | "utf-8" | "utf8" | "binary" | "base64" => {}
            "gzip" | "x-gzip" if !is_gzip => is_gzip = true,
            other => {
                let is_plain = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
                return Err(Error::Encoded(other.chars().filter(is_plain).take(30).collect()));
            }
        }
    }
    Ok(is_gzip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(lines: &[&str]) -> Result<bool, String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_ENCODING, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        is_gzip(&headers).map_err(|error| match error {
            Error::Encoded(name) => name,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn only_names_of_compressions_count_as_compressed() {
        for plain in
            ["", " ", "identity", "Identity", "aws-chunked", "UTF-8", "none", ",", "base64"]
        {
            assert_eq!(checked(&[plain]), Ok(false), "{plain:?}");
        }
        assert_eq!(checked(&[]), Ok(false));
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["aws-chunked,gzip"], &["", "gzip"]] {
            assert_eq!(checked(gzip), Ok(true), "{gzip:?}");
        }
        for (other, name) in [
            (&["br"][..], "br"),
            (&["zstd"], "zstd"),
            (&["gzip, gzip"], "gzip"),
            (&["gzip", "deflate"], "deflate"),
            (&["<b>\u{e9}\"x\""], "bx"),
        ] {
            assert_eq!(checked(other), Err(name.to_owned()));
        }
    }
}
