//! Reads the body of a batch: finds the pictures in the shapes that clients send them in.
//!
//! As on the Base64 route, the body stays where it is: each Base64 text is normalized in place, and
//! only its position is returned.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    encoding::Encoding,
    find::{find_in_input, find_in_messages, invalid},
};
use crate::{
    base64_text::normalize,
    fetch::policy::{MAX_URL_LEN, TOO_LONG},
    nvidia::DIMENSIONS,
    web::{
        error::{Error, Invalid},
        extract::json,
        routes::models::check_model,
    },
};

const EXAMPLE: &str = r#"{"input": ["https://example.com/photo.jpg"]}"#;

/// A URL of [`MAX_URL_LEN`] bytes whose slashes are escaped, with some blanks around it.
const MAX_ESCAPED_URL_LEN: usize = 2 * MAX_URL_LEN;

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

/// Tells the kinds of text apart, and returns the position of Base64 text in the body, which
/// starts at the address `start`.
fn locate(text: &RawValue, start: usize, place: &str) -> Result<Source, Error> {
    let raw = text.get();
    let inner = raw.get(1..raw.len() - 1).unwrap_or_default();
    let trimmed = trim_blanks(inner);
    if is_url(trimmed) {
        // The body's memory is returned before the URLs are used, so long ones are not copied.
        let too_long = || Error::Fetch(TOO_LONG.into());
        if inner.len() > MAX_ESCAPED_URL_LEN {
            return Err(too_long());
        }
        let url = json::text(text, place)?;
        return match url.trim() {
            url if url.len() > MAX_URL_LEN => Err(too_long()),
            url => Ok(Source::Url(url.to_owned())),
        };
    }
    let from = inner.as_ptr().addr() - start;
    let range = from..from + inner.len();
    let is_data_url = trimmed.get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("data:"));
    Ok(if is_data_url { Source::DataUrl(range) } else { Source::Base64(range) })
}

/// Removes blanks, escaped ones too, from the beginning of a JSON string's content.
fn trim_blanks(content: &str) -> &str {
    let mut rest = content.trim_start();
    while let Some(trimmed) =
        [r"\n", r"\r", r"\t"].iter().find_map(|blank| rest.strip_prefix(blank))
    {
        rest = trimmed.trim_start();
    }
    rest
}

/// Whether the content of a JSON string begins with a scheme and `://`, whose slashes may be
/// escaped. Base64 has no colon.
fn is_url(content: &str) -> bool {
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let rest = content.trim_start_matches(is_scheme);
    rest.starts_with("://") || rest.starts_with(r":\/\/")
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

#[cfg(test)]
mod tests;
