//! Reads a multipart form (RFC 7578) as it comes, and finds the picture in it.
//!
//! The parser is multer. Two habits of it must be held in check: it takes all of a body that is ready
//! into its memory before it looks at any of it, and it knows no bound for the header of a part. So
//! it is fed one chunk at a time, and what it keeps is counted, bounded and charged to the client.
//! The headers of parts are read by `disposition`: the parser finds `name=` within a file's name,
//! and knows no extended ones.

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

/// The most parts of a form.
const MAX_PARTS: usize = 32;

/// What may arrive while a part's header is awaited, in bytes; the parser would keep all of it.
const MAX_HEADER: usize = 64 * 1024;

/// How a form is sent, for those who did it wrong.
pub(in crate::web) const EXAMPLE: &str = "curl -F \"file=@photo.jpg\"";

/// A form that is not what the route takes.
pub(in crate::web) fn invalid(msg: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", "file"], "value_error", msg, detail)
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
        mut memory: SharePermit,
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

    async fn next_part(&mut self) -> Result<Option<Part>, Error> {
        let part = chunk_by_chunk(&self.rests, self.parts.next_field()).await?;
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

    /// The next bytes of a part, of which there is at least one.
    async fn next_chunk(&self, part: &mut Part) -> Result<Option<Bytes>, Error> {
        loop {
            let chunk = chunk_by_chunk(&self.rests, part.field.chunk()).await?;
            self.unparsed.store(0, Ordering::Relaxed);
            if chunk.as_ref().is_none_or(|bytes| !bytes.is_empty()) {
                return Ok(chunk);
            }
        }
    }

    /// Skips to the first part named `file` that holds anything: browsers send an empty one for each
    /// input where no file was chosen.
    ///
    /// # Errors
    /// [`Error::Invalid`], when there is none, or the form is broken; [`Error::Body`].
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

    /// The file's bytes; what follows the file is looked through for a second one.
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
            drop(file); // the parser gives out one part at a time
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

/// A part of a form.
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
    /// The file's name as it was sent; none where the field holds text.
    pub name: Option<String>,
    /// Its first bytes, and where the others come from; none where it is empty.
    begun: Option<(Bytes, Part)>,
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

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::shares::{ClientNetwork, Shares};

    /// A part with this name, or file name, and content.
    fn part(name: &str, content: &str) -> String {
        format!("--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{content}\r\n")
    }

    /// The file's name and bytes in a form that comes in these chunks.
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

    /// What the client is told of a form.
    async fn refusal(form: String) -> String {
        match read(vec![form.into()]).await {
            Err(error @ Error::Invalid(_)) => error.detail(),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_form_is_read_the_same_however_it_is_cut_into_chunks(
            cuts in proptest::collection::btree_set(0usize..260, 0..40),
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
            for cut in cuts.into_iter().rev().filter(|cut| *cut < rest.len()).collect::<Vec<_>>() {
                chunks.push(rest.split_off(cut.min(rest.len())));
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
    async fn empty_files_beside_the_picture_are_passed_over() {
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
    async fn what_is_wrong_with_a_form_is_named() {
        let other = format!("{}{}--x--\r\n", part("photo", "1"), part("image", "2"));
        assert!(refusal(other).await.contains("received: photo, image."));
        let two = format!("{}{}--x--\r\n", part("file", "1"), part("file", "2"));
        assert!(refusal(two).await.contains("more than one field named file"));
        assert!(refusal(part("file", "1")).await.contains("ends before its closing boundary"));
        assert!(refusal("--x--\r\n".into()).await.contains("received: no field."));
        let many = part("note", "").repeat(MAX_PARTS + 1);
        assert!(refusal(many).await.contains("more than 32 parts"));
    }

    #[tokio::test]
    async fn what_the_parser_would_keep_of_a_header_is_bounded() {
        let endless = stream::repeat(Bytes::from(vec![b'a'; 16 * 1024]));
        let chunks: Vec<_> = endless.take(100).collect().await;
        let begun = vec![Bytes::from("--x\r\nContent-Disposition: ")];
        let error = read([begun, chunks].concat()).await.unwrap_err();
        assert!(error.detail().contains("header of a part of the form is too long"));
    }
}
