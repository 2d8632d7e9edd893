//! Reads a multipart form (RFC 7578) as it arrives, and finds the picture in it.
//!
//! The parser is multer. This module works around three of its properties:
//!
//! - multer reads all chunks that are ready into memory before it parses the first. This module
//!   therefore passes it one chunk at a time.
//! - multer does not limit the length of a part's header. The bytes that it has in memory are
//!   therefore counted and limited, and count toward the client's share of memory.
//! - multer mistakes `name=` inside a file's name for the field's name, and does not know extended
//!   names (`filename*`). `disposition` therefore reads the headers of parts.

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

/// The limit for a part's header, which the parser keeps in memory until the header is complete. If
/// more bytes than this have arrived since the parser last returned a part or bytes of a part, the next
/// chunk of the body is an error.
const MAX_HEADER_BYTES: usize = 64 * 1024;

/// How many characters of a part's name an error message quotes.
const MAX_QUOTED_CHARS: usize = 40;

/// An example of how to send a form, for error messages.
pub(in crate::web) const EXAMPLE: &str = "curl -F \"file=@photo.jpg\"";

/// The error for a form that the route does not accept.
pub(in crate::web) fn invalid(msg: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", "file"], "value_error", msg, detail)
}

/// A multipart form that is being received.
pub(in crate::web) struct Form {
    parser: Multipart<'static>,
    /// How many bytes of the body arrived since the parser last returned a part or bytes of a part.
    bytes_since_output: Arc<AtomicUsize>,
    /// Whether the body is paused: the parser must parse its current chunk before it gets the next one.
    is_paused: Arc<AtomicBool>,
    part_count: usize,
}

impl Form {
    /// The form in this body. Nothing is read yet. `memory` grows to the most bytes that the parser has
    /// in memory at once.
    pub(in crate::web) fn new(
        body: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
        boundary: &str,
        mut memory: SharePermit,
    ) -> Self {
        let bytes_since_output = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&bytes_since_output);
        let counted = body.map(move |chunk| {
            let chunk = chunk?;
            let before = counter.fetch_add(chunk.len(), Ordering::Relaxed);
            // The permit never shrinks, since the parser frees its buffer only when it is dropped.
            memory.grow_to((before + chunk.len()) as u64).map_err(BodyError::from)?;
            if before > MAX_HEADER_BYTES {
                return Err(invalid(
                    "Part header too long",
                    "The header of a part of the form is too long.",
                ));
            }
            Ok(chunk)
        });
        let is_paused = Arc::new(AtomicBool::new(false));
        let chunks = one_at_a_time(counted.boxed(), Arc::clone(&is_paused));
        Self {
            parser: Multipart::new(chunks, boundary),
            bytes_since_output,
            is_paused,
            part_count: 0,
        }
    }

    /// Returns the next part, or `None` at the form's end.
    async fn next_part(&mut self) -> Result<Option<Part>, Error> {
        let field = chunk_by_chunk(&self.is_paused, self.parser.next_field()).await?;
        self.bytes_since_output.store(0, Ordering::Relaxed);
        let Some(field) = field else { return Ok(None) };
        self.part_count += 1;
        if self.part_count > MAX_PARTS {
            return Err(invalid(
                "Too many parts",
                format!("The form has more than {MAX_PARTS} parts."),
            ));
        }
        let header = field.headers().get(header::CONTENT_DISPOSITION);
        let disposition = Disposition::parse(header.map_or(b"", HeaderValue::as_bytes));
        Ok(Some(Part { field, disposition }))
    }

    /// Returns the next bytes of a part, or `None` at the part's end. Never returns an empty chunk.
    async fn next_chunk(&self, part: &mut Part) -> Result<Option<Bytes>, Error> {
        loop {
            let chunk = chunk_by_chunk(&self.is_paused, part.field.chunk()).await?;
            self.bytes_since_output.store(0, Ordering::Relaxed);
            if chunk.as_ref().is_none_or(|bytes| !bytes.is_empty()) {
                return Ok(chunk);
            }
        }
    }

    /// Reads a part to its end.
    async fn skip(&self, mut part: Part) -> Result<(), Error> {
        while self.next_chunk(&mut part).await?.is_some() {}
        Ok(())
    }

    /// Reads the form up to the first part that has the field name `file` and is not empty. Browsers
    /// send an empty part for each file input that the user left empty. If all parts with this name
    /// are empty, returns the first of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no part has this name or the form is malformed. [`Error::Body`] if the
    /// body could not be received.
    pub(in crate::web) async fn find_file(&mut self) -> Result<FormFile, Error> {
        let mut first_empty = None;
        let mut other_names = Vec::new();
        while let Some(mut part) = self.next_part().await? {
            if part.is_file() {
                match self.next_chunk(&mut part).await? {
                    Some(first_chunk) => {
                        let name = part.disposition.file_name.take();
                        return Ok(FormFile { name, content: Some((first_chunk, part)) });
                    }
                    None => {
                        let name = part.disposition.file_name;
                        first_empty.get_or_insert(FormFile { name, content: None });
                    }
                }
            } else {
                let name = part.disposition.name.as_deref().unwrap_or("(no name)");
                let short_name: String = name.chars().take(MAX_QUOTED_CHARS).collect();
                let printable = file_name::printable(&short_name);
                other_names.push(printable.unwrap_or_else(|| "(no name)".into()));
                self.skip(part).await?;
            }
        }
        if let Some(file) = first_empty {
            return Ok(file);
        }
        let received =
            if other_names.is_empty() { "no field".into() } else { other_names.join(", ") };
        Err(Invalid::at(
            &["body", "file"],
            "missing",
            "Field required",
            format!(
                "The form must contain the picture in a field named file ({EXAMPLE}); received: {received}."
            ),
        ))
    }

    /// Streams the file's bytes. Ends with an error if a second file that is not empty follows.
    pub(in crate::web) fn into_stream(
        self,
        file: FormFile,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        let (first_chunk, part) = file.content.unzip();
        let rest = stream::try_unfold((self, part), |(mut form, part)| async move {
            let Some(mut part) = part else { return Ok(None) };
            if let Some(bytes) = form.next_chunk(&mut part).await? {
                return Ok(Some((bytes, (form, Some(part)))));
            }
            drop(part); // The parser returns the next part only after this part is dropped.
            while let Some(mut part) = form.next_part().await? {
                if part.is_file() && form.next_chunk(&mut part).await?.is_some() {
                    return Err(invalid(
                        "One file only",
                        "The form contains more than one field named file; send only one picture in each request.",
                    ));
                }
                form.skip(part).await?;
            }
            Ok(None)
        });
        stream::iter(first_chunk.map(Ok)).chain(rest)
    }
}

/// A part of a form, with its parsed header.
struct Part {
    field: Field<'static>,
    disposition: Disposition,
}

impl Part {
    /// Whether the field's name is `file`.
    fn is_file(&self) -> bool {
        self.disposition.name.as_deref() == Some("file")
    }
}

/// The part with the picture.
pub(in crate::web) struct FormFile {
    /// The file's name as the client sent it. `None` if the part has no file name: the part is
    /// then probably text.
    pub name: Option<String>,
    /// The first chunk, and the part that returns the following chunks. `None` if the file is empty.
    content: Option<(Bytes, Part)>,
}

/// A stream that yields a chunk, and then pauses until [`chunk_by_chunk`] resumes it. Without pauses,
/// the parser would read all chunks that are ready into memory. The parser would also report a form
/// as incomplete if the first chunk and the end of the body are ready at the same time.
fn one_at_a_time<T>(
    mut stream: impl Stream<Item = T> + Unpin,
    is_paused: Arc<AtomicBool>,
) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| {
        if is_paused.load(Ordering::Relaxed) {
            return Poll::Pending; // No waker is necessary: `chunk_by_chunk` polls again at once.
        }
        let polled = stream.poll_next_unpin(context);
        is_paused.store(polled.is_ready(), Ordering::Relaxed);
        polled
    })
}

/// Waits for the parser, and resumes [`one_at_a_time`] whenever the parser needs the next chunk.
async fn chunk_by_chunk<T>(
    is_paused: &AtomicBool,
    parsing: impl Future<Output = Result<T, multer::Error>>,
) -> Result<T, Error> {
    let mut parsing = pin!(parsing);
    let parsed = poll_fn(|context| {
        loop {
            let polled = parsing.as_mut().poll(context);
            if polled.is_ready() || !is_paused.swap(false, Ordering::Relaxed) {
                return polled;
            }
        }
    });
    parsed.await.map_err(form_error)
}

/// Converts an error of the parser.
fn form_error(error: multer::Error) -> Error {
    match error {
        // The body's own error, which the parser passes on.
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

    /// A part as text. `name` may contain further parameters after the name.
    fn part(name: &str, content: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n")
    }

    /// Reads the file's name and bytes from a form in chunks.
    async fn read(chunks: Vec<Bytes>) -> Result<(Option<String>, Vec<u8>), Error> {
        let (one_mib, step) = (1 << 20, 1);
        let memory = Shares::undivided(one_mib, step).empty_permit(ClientNetwork::UNKNOWN);
        let mut form = Form::new(stream::iter(chunks.into_iter().map(Ok)), "x", memory);
        let file = form.find_file().await?;
        let name = file.name.clone();
        let bytes = form.into_stream(file).try_fold(Vec::new(), |mut all, bytes| async move {
            all.extend_from_slice(&bytes);
            Ok(all)
        });
        Ok((name, bytes.await?))
    }

    /// The `detail` of an invalid form's error.
    async fn detail_of(form: String) -> String {
        match read(vec![form.into()]).await {
            Err(error @ Error::Invalid(_)) => error.detail(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_form_is_read_regardless_of_how_it_is_split_into_chunks(
            // The form has 212 bytes. Positions behind its end are ignored.
            splits in proptest::collection::btree_set(0usize..260, 0..40),
        ) {
            // The picture contains a line that is almost the boundary `--x`.
            let form = [
                part("note", "before"),
                part("\"file\"; filename=\"a.png\"", "the \r\n--y picture"),
                part("note", "behind"),
                "--x--\r\n".to_owned(),
            ]
            .concat();
            let mut chunks = Vec::new();
            let mut rest = Bytes::from(form);
            let form_len = rest.len();
            for split in splits.into_iter().rev().filter(|split| *split < form_len) {
                chunks.push(rest.split_off(split));
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
    async fn an_empty_file_is_returned_only_if_no_file_of_the_form_has_bytes() {
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
    async fn an_invalid_form_is_refused_with_a_reason() {
        let without_file = format!("{}{}--x--\r\n", part("photo", "1"), part("image", "2"));
        assert!(detail_of(without_file).await.contains("received: photo, image."));
        let two_files = format!("{}{}--x--\r\n", part("file", "1"), part("file", "2"));
        assert!(detail_of(two_files).await.contains("more than one field named file"));
        assert!(detail_of(part("file", "1")).await.contains("ends before its closing boundary"));
        assert!(detail_of("--x--\r\n".into()).await.contains("received: no field."));
        let too_many_parts = part("note", "").repeat(MAX_PARTS + 1);
        assert!(detail_of(too_many_parts).await.contains("more than 32 parts"));
    }

    #[tokio::test]
    async fn a_part_whose_header_is_too_long_is_refused() {
        // A header of 128 KiB, in chunks of 16 KiB: twice as long as `MAX_HEADER_BYTES`.
        let start = Bytes::from("--x\r\nContent-Disposition: ");
        let mut chunks = vec![start];
        chunks.extend(std::iter::repeat_n(Bytes::from(vec![b'a'; 16 * 1024]), 8));
        let error = read(chunks).await.unwrap_err();
        assert!(error.detail().contains("header of a part of the form is too long"));
    }
}
