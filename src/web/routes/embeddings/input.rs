//! Reads the body of a batch: finds the pictures in the shapes that clients send them in.
//!
//! As on the Base64 route, the body stays where it is: each Base64 text is normalized in place, and
//! only its position is returned.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::encoding::Encoding;
use crate::{
    base64_text::normalize,
    nvidia::DIMENSIONS,
    web::{
        error::{BATCH_SIZE_SETTINGS, Error, Invalid},
        extract::json,
        routes::models::check_model,
    },
};

const EXAMPLE: &str = r#"{"input": ["https://example.com/photo.jpg"]}"#;

/// The most messages, and parts of one message or item, that are looked at. One picture needs one.
const MAX_PARTS: usize = 100;

/// What a batch must fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// The most pictures.
    pub pictures: usize,
    /// The name of the service's model.
    pub model: &'static str,
}

/// A batch, with its pictures found.
#[derive(Debug)]
pub(super) struct Batch {
    pub body: Vec<u8>,
    pub items: Vec<Item>,
    /// How the vectors are to be written.
    pub encoding: Encoding,
}

/// One picture of a batch.
#[derive(Debug)]
pub(super) struct Item {
    /// Its place in the request, such as `input[3]`.
    pub place: String,
    /// Where its bytes are; or what is wrong with it.
    pub source: Result<Source, Error>,
}

/// Where the bytes of a picture are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// At this URL.
    Url(String),
    /// In the body, as normalized Base64 text that followed `data:…,`.
    DataUrl(Range<usize>),
    /// In the body, as normalized Base64 text on its own.
    Base64(Range<usize>),
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    encoding_format: Option<&'a RawValue>,
    #[serde(borrow)]
    dimensions: Option<&'a RawValue>,
    #[serde(borrow)]
    normalized: Option<&'a RawValue>,
    #[serde(borrow)]
    modality: Option<&'a RawValue>,
}

/// An item that is an object, or a part of a message.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ImageUrl<'a> {
    #[serde(borrow)]
    url: Option<&'a RawValue>,
}

/// Parses a body.
///
/// # Errors
/// What is wrong with the body as a whole. What is wrong with one item is in its `source`.
pub(super) fn parse(body: Vec<u8>, bounds: Bounds) -> Result<Batch, Error> {
    let mut body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    if let Some(model) = fields.model {
        check_model(&json::text(model, "model")?, bounds.model)?;
    }
    if let Some(modality) = fields.modality
        && json::text(modality, "modality")? != "image"
    {
        let detail = "This model embeds pictures only: send \"modality\": \"image\", or none.";
        return Err(invalid("modality", "Input should be 'image'", detail));
    }
    check_dimensions(fields.dimensions)?;
    let encoding = Encoding::parse(fields.encoding_format, fields.normalized)?;
    let found = match (fields.input, fields.messages) {
        (Some(input), None) => find_in_input(input, bounds.pictures)?,
        (None, Some(messages)) => vec![("messages".into(), find_in_messages(messages))],
        (Some(_), Some(_)) => {
            let detail = "Send either input or messages, not both.";
            return Err(invalid("messages", "Given beside input", detail));
        }
        (None, None) => {
            let detail = format!("The field input is missing: send {EXAMPLE}.");
            return Err(Invalid::at(&["body", "input"], "missing", "Field required", detail));
        }
    };
    let start = body.as_ptr().addr();
    let found = found.into_iter().map(|(place, text)| {
        let source = text.and_then(|text| locate(text, start, &place));
        (place, source)
    });
    // This ends the borrow of the body, so that the body can change.
    let found: Vec<_> = found.collect();
    let items = found.into_iter().map(|(place, source)| {
        let source = source.and_then(|source| normalized(source, &mut body, &place));
        Item { place, source }
    });
    Ok(Batch { items: items.collect(), body, encoding })
}

fn check_dimensions(dimensions: Option<&RawValue>) -> Result<(), Error> {
    let Some(dimensions) = dimensions else { return Ok(()) };
    let Ok(number) = serde_json::from_str::<f64>(dimensions.get()) else {
        let detail = "The field dimensions must be a number: send 1536, or none.";
        return Err(invalid("dimensions", "Input should be a number", detail));
    };
    if number == 0.0 || number == DIMENSIONS as f64 {
        return Ok(());
    }
    Err(Error::UnsupportedParameter {
        param: "dimensions",
        detail: "This model's vectors have 1536 numbers and cannot be shortened: send \"dimensions\": 1536, or none.",
    })
}

/// The text of each picture in `input`, with the picture's place.
type Found<'a> = Vec<(String, Result<&'a RawValue, Error>)>;

fn find_in_input(input: &RawValue, most: usize) -> Result<Found<'_>, Error> {
    let Some(list) = json::elements(input, most) else {
        let place = "input".to_owned();
        let text = find_in_item(input, &place);
        return Ok(vec![(place, text)]);
    };
    if list.count == 0 {
        let detail = "The list input is empty: send at least one picture.";
        return Err(invalid("input", "List should have at least 1 item", detail));
    }
    if list.first.first().is_some_and(|first| is_token(first)) {
        return Err(tokens());
    }
    if list.count > most {
        let message = format!("List should have at most {most} items");
        let detail = format!(
            "The list input has {} pictures, and one request may have {most}: send fewer at once ({BATCH_SIZE_SETTINGS}).",
            list.count
        );
        return Err(invalid("input", &message, detail));
    }
    let items = list.first.into_iter().enumerate().map(|(index, item)| {
        let place = format!("input[{index}]");
        let text = find_in_item(item, &place);
        (place, text)
    });
    Ok(items.collect())
}

/// The text of the picture in an item.
fn find_in_item<'a>(item: &'a RawValue, place: &str) -> Result<&'a RawValue, Error> {
    match item.get().as_bytes().first() {
        Some(b'"') => Ok(item),
        Some(b'{') => {
            let part: Part<'_> = serde_json::from_str(item.get()).map_err(|_| no_picture(place))?;
            match part.content {
                Some(content) if part.image.is_none() && part.image_url.is_none() => {
                    only(&pictures_of(content, place)?, place)
                }
                None => part.picture(place)?.ok_or_else(|| no_picture(place)),
                Some(_) => Err(no_picture(place)),
            }
        }
        _ if is_token(item) => Err(tokens()),
        _ => Err(no_picture(place)),
    }
}

/// The text of the only picture in all messages.
fn find_in_messages(messages: &RawValue) -> Result<&RawValue, Error> {
    let place = "messages";
    let list = json::elements(messages, MAX_PARTS).ok_or_else(|| no_picture(place))?;
    let mut pictures = Vec::new();
    for message in list.first {
        let message: Part<'_> =
            serde_json::from_str(message.get()).map_err(|_| no_picture(place))?;
        if let Some(content) = message.content {
            pictures.extend(pictures_of(content, place)?);
        }
    }
    only(&pictures, place)
}

/// The texts of the pictures in the content of a message.
fn pictures_of<'a>(content: &'a RawValue, place: &str) -> Result<Vec<&'a RawValue>, Error> {
    let Some(parts) = json::elements(content, MAX_PARTS) else {
        return if is_blank(content) { Ok(Vec::new()) } else { Err(text_beside(place)) };
    };
    let mut pictures = Vec::new();
    for part in parts.first {
        let part: Part<'_> = serde_json::from_str(part.get()).map_err(|_| no_picture(place))?;
        pictures.extend(part.picture(place)?);
    }
    Ok(pictures)
}

impl<'a> Part<'a> {
    /// The text of the part's picture. A part without a picture is accepted if it has no text.
    fn picture(&self, place: &str) -> Result<Option<&'a RawValue>, Error> {
        if self.text.is_some_and(|text| !is_blank(text)) {
            return Err(text_beside(place));
        }
        let picture = match (self.image, self.image_url) {
            (Some(image), None) => image,
            (None, Some(image_url)) if image_url.get().starts_with('{') => {
                let image_url: Result<ImageUrl<'_>, _> = serde_json::from_str(image_url.get());
                image_url.ok().and_then(|image| image.url).ok_or_else(|| no_picture(place))?
            }
            (None, Some(image_url)) => image_url,
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(no_picture(place)),
        };
        if picture.get().starts_with('"') { Ok(Some(picture)) } else { Err(no_picture(place)) }
    }
}

fn only<'a>(pictures: &[&'a RawValue], place: &str) -> Result<&'a RawValue, Error> {
    match *pictures {
        [picture] => Ok(picture),
        [] => Err(no_picture(place)),
        [_, _, ..] => {
            let detail = format!(
                "{place} has several pictures, and one embedding is of one picture: use a list of items in input."
            );
            Err(invalid(place, "Has several pictures", detail))
        }
    }
}

/// Whether an item consists of token numbers, which some clients make from text.
fn is_token(item: &RawValue) -> bool {
    matches!(item.get().as_bytes().first(), Some(b'[' | b'-' | b'0'..=b'9'))
}

/// Whether a raw value is a string of blanks.
fn is_blank(raw: &RawValue) -> bool {
    json::text(raw, "text").is_ok_and(|text| text.trim().is_empty())
}

/// Tells the kinds of text apart, and returns the position of Base64 text in the body, which
/// starts at the address `start`.
fn locate(text: &RawValue, start: usize, place: &str) -> Result<Source, Error> {
    let raw = text.get();
    let inner = raw.get(1..raw.len() - 1).unwrap_or_default();
    let trimmed = inner.trim_start();
    let begins_with = |scheme: &str| {
        trimmed.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    };
    if begins_with("http:") || begins_with("https:") {
        let url = json::text(text, place)?;
        return Ok(Source::Url(url.trim().to_owned()));
    }
    let from = inner.as_ptr().addr() - start;
    let range = from..from + inner.len();
    Ok(if begins_with("data:") { Source::DataUrl(range) } else { Source::Base64(range) })
}

/// Normalizes Base64 text in place.
fn normalized(source: Source, body: &mut [u8], place: &str) -> Result<Source, Error> {
    let within =
        |range: &Range<usize>, text: Range<usize>| range.start + text.start..range.start + text.end;
    match source {
        Source::Url(url) => Ok(Source::Url(url)),
        Source::DataUrl(range) => {
            let text = normalize(&mut body[range.clone()])?;
            Ok(Source::DataUrl(within(&range, text)))
        }
        Source::Base64(range) => {
            let text = normalize(&mut body[range.clone()]).map_err(|_| is_text(place))?;
            Ok(Source::Base64(within(&range, text)))
        }
    }
}

/// The error for a string that is no picture in any form.
pub(super) fn is_text(place: &str) -> Error {
    let detail = format!(
        "{place} is text, but this model embeds pictures only: send an http or https URL, a data: URL, or the picture's bytes as Base64."
    );
    invalid(place, "Input should be a picture", detail)
}

fn text_beside(place: &str) -> Error {
    let detail = format!(
        "{place} has text, but this model embeds pictures only: send the picture without text."
    );
    invalid(place, "Input should be a picture without text", detail)
}

fn no_picture(place: &str) -> Error {
    let detail = format!(
        "{place} is not a picture: send a string, {{\"image\": \"…\"}} or {{\"image_url\": {{\"url\": \"…\"}}}}, with a URL, a data: URL or Base64."
    );
    invalid(place, "Input should be a picture", detail)
}

fn tokens() -> Error {
    let detail = "The field input has token numbers, which clients make from text: this model embeds pictures only. \
        With LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False.";
    invalid("input", "Input should be pictures", detail)
}

fn invalid(place: &str, message: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", place], "value_error", message, detail)
}
