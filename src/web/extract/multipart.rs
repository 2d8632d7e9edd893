//! Reads a multipart form (RFC 7578) as it arrives, and finds the picture in it.
//!
//! multer does the parsing, with three precautions. It would read every chunk that is ready into
//! memory before it parses any, so it gets one chunk at a time. It does not bound the header of a
//! part, so the bytes that it holds are counted, bounded and charged to the client. It finds
//! `name=` inside a file's name and does not know extended names, so `disposition` reads the
//! headers of parts.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use axum::http::{HeaderValue, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use multer::{Field, Multipart};

use super::{body::BodyError, disposition::Disposition, file_name};
use crate::{
    shares::SharePermit,
    web::error::{Error, Invalid},
};

/// The most parts that a form may have.
const MAX_PARTS: usize = 32;

/// The most bytes that may arrive before a part's header is complete, since the parser holds them
/// all.
const MAX_HEADER: usize = 64 * 1024;

/// An example of how to send a form, for error messages.
pub(in crate::web) const EXAMPLE: &str = "curl -F \"file=@photo.jpg\"";

/// The error for a form that the route does not accept.
pub(in crate::web) fn invalid(msg: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", "file"], "value_error", msg, detail)
}

/// A multipart form that is being received.
pub(in crate::web) struct Form {
    parts: Multipart<'static>,
    /// Bytes that arrived since the parser last returned something.
    unparsed: Arc<AtomicUsize>,
    /// Whether the parser must handle the chunk that it has before it gets the next one.
    is_paused: Arc<AtomicBool>,
    count: usize,
}

impl Form {
    /// Starts to read a form from a body. The bytes that the parser holds are charged to `memory`.
    pub(in crate::web) fn new(
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
        boundary: &str,
        mut memory: SharePermit,
    ) -> Self {
        let unparsed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unparsed);
        let metered = body.map(move |chunk| {
            let chunk = chunk?;
            let before = counter.fetch_add(chunk.len(), Ordering::Relaxed);
            // The parser may hold this much until it is dropped.
            memory.grow_to((before + chunk.len()) as u64).map_err(BodyError::from)?;
            if before > MAX_HEADER {
                return Err(invalid(
                    "Part header too long",
                    "The header of a part of the form is too long.",
                ));
            }
            Ok(chunk)
        });
        let is_paused = Arc::new(AtomicBool::new(false));
        let chunks = one_at_a_time(metered.boxed(), Arc::clone(&is_paused));
        Self { parts: Multipart::new(chunks, boundary), unparsed, is_paused, count: 0 }
    }

    async fn next_part(&mut self) -> Result<Option<Part>, Error> {
        let part = chunk_by_chunk(&self.is_paused, self.parts.next_field()).await?;
        self.unparsed.store(0, Ordering::Relaxed);
        self.count += 1;
        if part.is_some() && self.count > MAX_PARTS {
            return Err(invalid(
                "Too many parts",
                format!("The form has more than {MAX_PARTS} parts."),
            ));
        }
        Ok(part.map(|field| {
            let header = field.headers().get(header::CONTENT_DISPOSITION);
            let disposition = Disposition::parse(header.map_or(b"", HeaderValue::as_bytes));
            Part { field, disposition }
        }))
    }

    /// Returns the next bytes of a part, never empty ones; `None` at the part's end.
    async fn next_chunk(&self, part: &mut Part) -> Result<Option<Bytes>, Error> {
        loop {
            let chunk = chunk_by_chunk(&self.is_paused, part.field.chunk()).await?;
            self.unparsed.store(0, Ordering::Relaxed);
            if chunk.as_ref().is_none_or(|bytes| !bytes.is_empty()) {
                return Ok(chunk);
            }
        }
    }

    /// Skips to the first part named `file` that is not empty: browsers send an empty one for each
    /// file input without a choice. If all are empty, it returns an empty one.
    ///
    /// # Errors
    /// [`Error::Invalid`], if there is no such part or the form is malformed; [`Error::Body`].
    pub(in crate::web) async fn find_file(&mut self) -> Result<FormFile, Error> {
        let (mut empty, mut others) = (None, Vec::new());
        while let Some(mut part) = self.next_part().await? {
            if part.is_file() {
                match self.next_chunk(&mut part).await? {
                    Some(first) => {
                        let name = part.disposition.file_name.take();
                        return Ok(FormFile { name, begun: Some((first, part)) });
                    }
                    None => {
                        let name = part.disposition.file_name;
                        empty.get_or_insert(FormFile { name, begun: None });
                        continue;
                    }
                }
            }
            let name = part.disposition.name.as_deref().unwrap_or("(no name)");
            let name: String = name.chars().take(40).collect();
            others.push(file_name::printable(&name).unwrap_or_else(|| "(no name)".into()));
            while self.next_chunk(&mut part).await?.is_some() {}
        }
        if let Some(empty) = empty {
            return Ok(empty);
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

    /// Streams the file's bytes, then checks that no second file follows.
    pub(in crate::web) fn into_stream(
        self,
        file: FormFile,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let (first, part) = file.begun.unzip();
        let rest = stream::try_unfold((self, part), |(mut form, file)| async move {
            let Some(mut file) = file else { return Ok(None) };
            if let Some(bytes) = form.next_chunk(&mut file).await? {
                return Ok(Some((bytes, (form, Some(file)))));
            }
            drop(file); // the parser returns the next part only when this one is dropped
            while let Some(mut part) = form.next_part().await? {
                if part.is_file() && form.next_chunk(&mut part).await?.is_some() {
                    return Err(invalid(
                        "One file only",
                        "The form holds more than one field named file; send one picture a request.",
                    ));
                }
                while form.next_chunk(&mut part).await?.is_some() {}
            }
            Ok(None)
        });
        stream::iter(first.map(Ok)).chain(rest)
    }
}

/// A part of a form, with its parsed header.
struct Part {
    field: Field<'static>,
    disposition: Disposition,
}

impl Part {
    fn is_file(&self) -> bool {
        self.disposition.name.as_deref() == Some("file")
    }
}

/// The part that holds the picture.
pub(in crate::web) struct FormFile {
    /// The file's name as the client sent it; `None` if the field holds text.
    pub name: Option<String>,
    /// The first bytes, and the part that yields the others; `None` if the file is empty.
    begun: Option<(Bytes, Part)>,
}

/// Yields one chunk, then pauses until [`chunk_by_chunk`] resumes it. Otherwise the parser would
/// read everything that is ready into memory, and would call a form incomplete whose first chunk
/// arrives together with the end.
fn one_at_a_time<T>(
    mut stream: impl Stream<Item = T> + Unpin,
    is_paused: Arc<AtomicBool>,
) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| {
        if is_paused.load(Ordering::Relaxed) {
            return Poll::Pending; // needs no waker: `chunk_by_chunk` polls again by itself
        }
        let polled = stream.poll_next_unpin(context);
        is_paused.store(polled.is_ready(), Ordering::Relaxed);
        polled
    })
}

/// Waits for the parser, and resumes [`one_at_a_time`] whenever the parser needs the next chunk.
async fn chunk_by_chunk<T>(
    is_paused: &AtomicBool,
    parser: impl Future<Output = Result<T, multer::Error>>,
) -> Result<T, Error> {
    let mut parser = pin!(parser);
    let parsed = poll_fn(|context| {
        loop {
            let polled = parser.as_mut().poll(context);
            if polled.is_ready() || !is_paused.swap(false, Ordering::Relaxed) {
                return polled;
            }
        }
    });
    parsed.await.map_err(form_error)
}

/// Converts the parser's errors. Errors of the body itself pass through the parser unchanged.
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

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::shares::{ClientNetwork, Shares};

    /// A part with this content. `name` may be followed by further parameters.
    fn part(name: &str, content: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n")
    }

    /// Reads the file's name and bytes from a form that arrives in these chunks.
    async fn read(chunks: Vec<Bytes>) -> Result<(Option<String>, Vec<u8>), Error> {
        let memory = Shares::new(1 << 20, 1, 1).empty(ClientNetwork::UNKNOWN);
        let mut form = Form::new(stream::iter(chunks.into_iter().map(Ok)), "x", memory);
        let file = form.find_file().await?;
        let name = file.name.clone();
        let bytes = form.into_stream(file).try_fold(Vec::new(), |mut all, bytes| async move {
            all.extend_from_slice(&bytes);
            Ok(all)
        });
        Ok((name, bytes.await?))
    }

    /// The `detail` of the error that a form causes.
    async fn detail_of(form: String) -> String {
        match read(vec![form.into()]).await {
            Err(error @ Error::Invalid(_)) => error.detail(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_form_is_read_the_same_however_it_is_split_into_chunks(
            splits in proptest::collection::btree_set(0usize..260, 0..40),
        ) {
            let form = [
                part("note", "before"),
                part("\"file\"; filename=\"a.png\"", "the \r\n--y picture"),
                part("note", "behind"),
                "--x--\r\n".to_owned(),
            ]
            .concat();
            let mut chunks = Vec::new();
            let mut rest = Bytes::from(form);
            for split in splits.into_iter().rev().filter(|split| *split < rest.len()).collect::<Vec<_>>() {
                chunks.push(rest.split_off(split.min(rest.len())));
            }
            chunks.push(rest);
            chunks.reverse();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (name, bytes) = runtime.block_on(read(chunks)).unwrap();
            prop_assert_eq!(name.as_deref(), Some("a.png"));
            prop_assert_eq!(bytes, b"the \r\n--y picture");
        }
    }

    #[tokio::test]
    async fn empty_files_beside_the_picture_are_skipped() {
        let empty = part("file; filename=\"\"", "");
        let picture = part("file; filename=a.png", "picture");
        for order in
            [[&empty, &picture, &empty], [&picture, &empty, &empty], [&empty, &empty, &picture]]
        {
            let form = format!("{}{}{}--x--\r\n", order[0], order[1], order[2]);
            let (name, bytes) = read(vec![form.into()]).await.unwrap();
            assert_eq!((name.as_deref(), &bytes[..]), (Some("a.png"), &b"picture"[..]));
        }
        let (name, bytes) = read(vec![format!("{empty}--x--\r\n").into()]).await.unwrap();
        assert_eq!((name.as_deref(), &bytes[..]), (Some(""), &b""[..]));
    }

    #[tokio::test]
    async fn a_faulty_form_is_refused_with_its_fault() {
        let other = format!("{}{}--x--\r\n", part("photo", "1"), part("image", "2"));
        assert!(detail_of(other).await.contains("received: photo, image."));
        let two = format!("{}{}--x--\r\n", part("file", "1"), part("file", "2"));
        assert!(detail_of(two).await.contains("more than one field named file"));
        assert!(detail_of(part("file", "1")).await.contains("ends before its closing boundary"));
        assert!(detail_of("--x--\r\n".into()).await.contains("received: no field."));
        let many = part("note", "").repeat(MAX_PARTS + 1);
        assert!(detail_of(many).await.contains("more than 32 parts"));
    }

    #[tokio::test]
    async fn the_memory_for_a_parts_header_is_bounded() {
        let endless = stream::repeat(Bytes::from(vec![b'a'; 16 * 1024]));
        let chunks: Vec<_> = endless.take(100).collect().await;
        let begun = vec![Bytes::from("--x\r\nContent-Disposition: ")];
        let error = read([begun, chunks].concat()).await.unwrap_err();
        assert!(error.detail().contains("header of a part of the form is too long"));
    }
}
