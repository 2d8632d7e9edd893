//! `POST /vectorize-image-upload`: a picture as a file of a multipart form (RFC 7578).

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use multer::{Field, Multipart};
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::{
    answer::Answer,
    file_name,
    freshness::{FreshnessHeader, WantedFreshness},
    problems,
};
use crate::{
    app::AppState,
    error::{Code, Error, Invalid},
    guard::body::Receiving,
    image::{self, Unsupported},
    shares::{ClientNetwork, Share},
};

/// What may stand in the body beside the picture: other fields and the parts' headers, in bytes.
const BESIDE_PICTURE: u64 = 1 << 20;

/// The most parts of a form.
const MAX_PARTS: usize = 32;

/// The longest boundary, in characters (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// What may arrive while a part's header is awaited, in bytes; the parser would keep all of it.
const MAX_HEADER: usize = 64 * 1024;

const EXAMPLE: &str = "curl -F \"file=@photo.jpg\"";

/// A form with a picture.
#[derive(ToSchema)]
#[schema(as = UploadForm)]
#[allow(dead_code, reason = "describes the body; `Form` reads it")]
pub(super) struct UploadRequest {
    /// The picture's file.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    file: Vec<u8>,
}

/// The errors of this route.
struct UploadErrors;

impl IntoResponses for UploadErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems::of_pictures(&[Code::EmptyImage])
    }
}

/// Vectorize an uploaded picture
///
/// What a mobile camera, a browser's form or `curl -F` sends.
#[utoipa::path(
    post,
    path = "/vectorize-image-upload",
    tag = "pictures",
    params(FreshnessHeader),
    request_body(content = UploadRequest, content_type = "multipart/form-data"),
    responses(
        (
            status = 200, description = "The picture's embedding", body = Answer,
            headers(("x-cache" = String, description = "`miss` when NVIDIA was asked for this answer, else `hit`"))
        ),
        UploadErrors,
    )
)]
pub(super) async fn vectorize_image_upload(
    State(app): State<AppState>,
    client: ClientNetwork,
    WantedFreshness(freshness): WantedFreshness,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer, Error> {
    let boundary = boundary(&headers)?;
    let limits = &app.pipeline.limits;
    let receiving = Receiving {
        limit: limits.max_image_bytes + BESIDE_PICTURE,
        picture_limit: Some(limits.max_image_bytes),
        timeout: limits.body_timeout,
    };
    receiving.declared(&body)?;
    let admission = app.pipeline.admit(client, 0)?;

    let memory = app.pipeline.memory.empty(client);
    let mut form = Form::new(receiving.stream(body)?.map_err(Error::from), &boundary, memory);
    let file = form.find_file().await?;
    let name = file.file_name().map(str::to_owned);
    let done = match app.pipeline.vectorize(admission, form.into_stream(file), freshness).await {
        Err(Error::Image(
            image::Error::Empty | image::Error::Unsupported(Unsupported::Unknown),
        )) if name.is_none() => {
            return Err(invalid(
                "The field file holds text, not a picture",
                format!(
                    "The field file holds text, not a file: with curl, put an @ before the file's name ({EXAMPLE})."
                ),
            ));
        }
        done => done?,
    };
    Ok(Answer::new(done, app.model).named(name.as_deref().and_then(file_name::printable)))
}

fn invalid(msg: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", "file"], "value_error", msg, detail)
}

fn boundary(headers: &HeaderMap) -> Result<String, Error> {
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
struct Form {
    parts: Multipart<'static>,
    /// Bytes that arrived since the parser last gave something back.
    unparsed: Arc<AtomicUsize>,
    /// Whether the parser was given a chunk, and shall look at it before it is given more.
    rests: Arc<AtomicBool>,
    count: usize,
}

impl Form {
    fn new(
        body: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
        boundary: &str,
        mut memory: Share,
    ) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unparsed);
        let metered = body.map(move |chunk| {
            let chunk = chunk?;
            let before = counter.fetch_add(chunk.len(), Ordering::Relaxed);
            // What the parser keeps, until it is dropped.
            memory.grow_to((before + chunk.len()) as u64).map_err(Error::no_memory)?;
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
    async fn find_file(&mut self) -> Result<Field<'static>, Error> {
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
    fn into_stream(self, file: Field<'static>) -> impl Stream<Item = Result<Bytes, Error>> + Send {
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
