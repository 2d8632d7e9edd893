//! Reads a multipart form (RFC 7578) as it comes, and finds the picture in it.
//!
//! The parser is multer. Two habits of it must be held in check: it takes all of a body that is ready
//! into its memory before it looks at any of it, and it knows no bound for the header of a part. So
//! it is fed one chunk at a time, and what it keeps is counted, bounded and charged to the client.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use multer::{Field, Multipart};

use super::{body::BodyError, file_name};
use crate::{
    shares::Share,
    web::error::{Error, Invalid},
};

/// The most parts of a form.
const MAX_PARTS: usize = 32;

/// The longest boundary, in characters (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// What may arrive while a part's header is awaited, in bytes; the parser would keep all of it.
const MAX_HEADER: usize = 64 * 1024;

/// How a form is sent, for those who did it wrong.
pub(in crate::web) const EXAMPLE: &str = "curl -F \"file=@photo.jpg\"";

/// A form that is not what the route takes.
pub(in crate::web) fn invalid(msg: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", "file"], "value_error", msg, detail)
}

/// The boundary of a form's parts.
///
/// # Errors
/// [`Error::Invalid`], when the request is no form, or its boundary is missing or too long.
pub(in crate::web) fn boundary(headers: &HeaderMap) -> Result<String, Error> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let boundary = multer::parse_boundary(content_type).map_err(|error| {
        let detail = match error {
            multer::Error::NoBoundary => {
                "The Content-Type multipart/form-data has no boundary: do not set the header yourself, let your client \
                 set Content-Type."
                    .into()
            }
            _ => format!("The body must be multipart/form-data with the picture in the field file: {EXAMPLE}."),
        };
        invalid("Field required", detail)
    })?;
    if boundary.len() > MAX_BOUNDARY {
        return Err(invalid(
            "Boundary too long",
            "The form's boundary is longer than 70 characters; let your client choose it.",
        ));
    }
    Ok(boundary)
}

/// A multipart form that is being received.
pub(in crate::web) struct Form {
    parts: Multipart<'static>,
    /// Bytes that arrived since the parser last gave something back.
    unparsed: Arc<AtomicUsize>,
    /// Whether the parser was given a chunk, and shall look at it before it is given more.
    rests: Arc<AtomicBool>,
    count: usize,
}

impl Form {
    /// A form in a body. What the parser keeps of it is charged to `memory`.
    pub(in crate::web) fn new(
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
        boundary: &str,
        mut memory: Share,
    ) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unparsed);
        let metered = body.map(move |chunk| {
            let chunk = chunk?;
            let before = counter.fetch_add(chunk.len(), Ordering::Relaxed);
            // What the parser keeps, until it is dropped.
            memory.grow_to((before + chunk.len()) as u64).map_err(BodyError::from)?;
            if before > MAX_HEADER {
                return Err(invalid(
                    "Part header too long",
                    "The header of a part of the form is too long.",
                ));
            }
            Ok(chunk)
        });
        let rests = Arc::new(AtomicBool::new(false));
        let chunks = one_at_a_time(metered.boxed(), Arc::clone(&rests));
        Self { parts: Multipart::new(chunks, boundary), unparsed, rests, count: 0 }
    }

    async fn next_part(&mut self) -> Result<Option<Field<'static>>, Error> {
        let part = chunk_by_chunk(&self.rests, self.parts.next_field()).await?;
        self.unparsed.store(0, Ordering::Relaxed);
        self.count += 1;
        if part.is_some() && self.count > MAX_PARTS {
            return Err(invalid(
                "Too many parts",
                format!("The form has more than {MAX_PARTS} parts."),
            ));
        }
        Ok(part)
    }

    async fn next_chunk(&self, part: &mut Field<'static>) -> Result<Option<Bytes>, Error> {
        let chunk = chunk_by_chunk(&self.rests, part.chunk()).await?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(chunk)
    }

    /// Skips to the part named `file`.
    ///
    /// # Errors
    /// [`Error::Invalid`], when there is none, or the form is broken; [`Error::Body`].
    pub(in crate::web) async fn find_file(&mut self) -> Result<Field<'static>, Error> {
        let mut others = Vec::new();
        while let Some(mut part) = self.next_part().await? {
            if part.name() == Some("file") {
                return Ok(part);
            }
            let name: String = part.name().unwrap_or("(no name)").chars().take(40).collect();
            others.push(file_name::printable(&name).unwrap_or_else(|| "(no name)".into()));
            while self.next_chunk(&mut part).await?.is_some() {}
        }
        let received = if others.is_empty() { "no field".into() } else { others.join(", ") };
        Err(Invalid::at(
            &["body", "file"],
            "missing",
            "Field required",
            format!(
                "The form must hold the picture in a field named file ({EXAMPLE}); received: {received}."
            ),
        ))
    }

    /// The file's bytes; what follows the file is looked through for a second one.
    pub(in crate::web) fn into_stream(
        self,
        file: Field<'static>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold((self, Some(file)), |(mut form, file)| async move {
            let Some(mut file) = file else { return Ok(None) };
            if let Some(bytes) = form.next_chunk(&mut file).await? {
                return Ok(Some((bytes, (form, Some(file)))));
            }
            drop(file); // the parser gives out one part at a time
            while let Some(mut part) = form.next_part().await? {
                if part.name() == Some("file") {
                    return Err(invalid(
                        "One file only",
                        "The form holds more than one field named file; send one picture a request.",
                    ));
                }
                while form.next_chunk(&mut part).await?.is_some() {}
            }
            Ok(None)
        })
    }
}

/// Hands out one chunk, then rests until it is told to go on. The parser would else take all that
/// is ready into its memory before it looks at any of it; and it calls a form incomplete whose
/// first chunk arrives together with the end.
fn one_at_a_time<T>(
    mut stream: impl Stream<Item = T> + Unpin,
    rests: Arc<AtomicBool>,
) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| {
        if rests.load(Ordering::Relaxed) {
            return Poll::Pending; // nobody needs to be woken: `chunk_by_chunk` goes on by itself
        }
        let polled = stream.poll_next_unpin(context);
        rests.store(polled.is_ready(), Ordering::Relaxed);
        polled
    })
}

/// Waits for the parser, which is told to go on whenever it only waits for [`one_at_a_time`].
async fn chunk_by_chunk<T>(
    rests: &AtomicBool,
    parser: impl Future<Output = Result<T, multer::Error>>,
) -> Result<T, Error> {
    let mut parser = pin!(parser);
    let parsed = poll_fn(|context| {
        loop {
            let polled = parser.as_mut().poll(context);
            if polled.is_ready() || !rests.swap(false, Ordering::Relaxed) {
                return polled;
            }
        }
    });
    parsed.await.map_err(form_error)
}

/// The body's own errors come back out of the parser as they went in.
fn form_error(error: multer::Error) -> Error {
    match error {
        multer::Error::StreamReadFailed(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => Error::Internal(other.to_string()),
        },
        multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders
        | multer::Error::IncompleteStream => invalid(
            "Incomplete form",
            "The multipart form ends before its closing boundary; send it again.",
        ),
        _ => invalid(
            "Malformed form",
            format!("The multipart form is malformed; let your client build it ({EXAMPLE})."),
        ),
    }
}
