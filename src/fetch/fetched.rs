//! A picture on its way from its host: which answers are taken, and their bytes as they come.

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

/// How many bytes are unpacked at once.
const PIECE: usize = 64 * 1024;

/// A picture that is being fetched.
pub struct Fetched {
    /// What the host says the length is, in bytes.
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

    /// The picture's bytes as they come, unpacked if the host packed them.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let Self { response, is_gzip, deadline, .. } = self;
        let sent = stream::try_unfold(response, |mut response| async move {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|error| io::Error::other(error.without_url()))?;
            Ok(chunk.map(|bytes| (bytes, response)))
        });
        let bytes = if is_gzip { Either::Left(gunzip(sent)) } else { Either::Right(sent) };
        stream::try_unfold((Box::pin(bytes), false), move |(mut bytes, any)| async move {
            match timeout_at(deadline, bytes.try_next()).await {
                Ok(Ok(Some(piece))) => Ok(Some((piece, (bytes, true)))),
                Ok(Ok(None)) if any => Ok(None),
                Ok(Ok(None)) => Err(Error::Empty),
                Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    Err(Error::BadGzip(error))
                }
                Ok(Err(error)) => Err(Error::Cut(error)),
                Err(_) => Err(Error::Timeout),
            }
        })
    }
}

/// Piece by piece: whoever takes them decides when it has been enough.
fn gunzip(
    packed: impl Stream<Item = io::Result<Bytes>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut unpacked = GzipDecoder::new(StreamReader::new(Box::pin(packed)));
    unpacked.multiple_members(true);
    ReaderStream::with_capacity(unpacked, PIECE)
}

/// Whether the answer is gzip, which was not asked for: object stores send what was stored so. They
/// also say things in this header that name no compression, and then the bytes are the picture.
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

    fn judged(lines: &[&str]) -> Result<bool, String> {
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
    fn only_what_names_a_compression_is_one() {
        for plain in
            ["", " ", "identity", "Identity", "aws-chunked", "UTF-8", "none", ",", "base64"]
        {
            assert_eq!(judged(&[plain]), Ok(false), "{plain:?}");
        }
        assert_eq!(judged(&[]), Ok(false));
        for gzip in [&["gzip"][..], &["GZip"], &["x-gzip"], &["aws-chunked,gzip"], &["", "gzip"]] {
            assert_eq!(judged(gzip), Ok(true), "{gzip:?}");
        }
        for (other, name) in [
            (&["br"][..], "br"),
            (&["zstd"], "zstd"),
            (&["gzip, gzip"], "gzip"),
            (&["gzip", "deflate"], "deflate"),
            (&["<b>\u{e9}\"x\""], "bx"),
        ] {
            assert_eq!(judged(other), Err(name.to_owned()));
        }
    }
}
