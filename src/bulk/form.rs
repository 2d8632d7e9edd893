//! Builds the body of an upload: a multipart form with a file (RFC 7578), streamed from the disk.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use reqwest::Body;
use tokio::task::spawn_blocking;

/// How many bytes of a file are read at once. A file of at most this size is sent from memory.
const READ_BYTES: u64 = 128 << 10;

/// Separates the parts of a form. It was chosen at random, and is so long that no picture contains it by
/// chance.
const BOUNDARY: &str = "imagesvc-embed-7d1f0c1e5b9a4e2f";

/// The media type of the form.
pub(super) fn content_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

/// A form with a file as its only part, and the form's length.
pub(super) async fn of_file(path: PathBuf) -> io::Result<(Body, u64)> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"picture\"\r\n\r\n"
    );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let (file, length) = spawn_blocking(move || open(&path)).await??;
    let total = head.len() as u64 + length + tail.len() as u64;
    if length <= READ_BYTES {
        let bytes = read_chunk(file, length).await?.1;
        return Ok((Body::from([head.as_bytes(), &bytes, tail.as_bytes()].concat()), total));
    }
    // In reverse order, because `frames` takes the pieces from the end.
    let pieces =
        vec![Piece::Text(tail.into()), Piece::File(file, length), Piece::Text(head.into())];
    Ok((Body::wrap(StreamBody::new(frames(pieces))), total))
}

/// Opens a file, and returns its length. Blocks the thread.
fn open(path: &Path) -> io::Result<(File, u64)> {
    // Opening a named pipe would block until another program writes to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// A piece of the form: text, or the content of the file.
enum Piece {
    Text(Bytes),
    /// A file, and how many of its bytes are not sent yet.
    File(File, u64),
}

/// Streams the pieces, from the last one in the list to the first one. Fails if the file has become
/// shorter; the service then sees an incomplete request.
fn frames(pieces: Vec<Piece>) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync {
    stream::try_unfold(pieces, |mut pieces| async move {
        let bytes = match pieces.pop() {
            None => return Ok(None),
            Some(Piece::Text(text)) => text,
            Some(Piece::File(file, left)) => {
                let (file, chunk) = read_chunk(file, left.min(READ_BYTES)).await?;
                let left = left - chunk.len() as u64;
                if left > 0 {
                    pieces.push(Piece::File(file, left));
                }
                chunk
            }
        };
        Ok(Some((Frame::data(bytes), pieces)))
    })
}

/// Reads the next `length` bytes of a file. Fails if there are fewer.
async fn read_chunk(mut file: File, length: u64) -> io::Result<(File, Bytes)> {
    spawn_blocking(move || {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact(&mut bytes)?;
        Ok((file, bytes.into()))
    })
    .await?
}
