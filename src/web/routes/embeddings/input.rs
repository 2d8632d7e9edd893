//! Reads the body of a batch: finds the pictures in each shape that clients send.
//!
//! As on the Base64 route, the body is not copied: each Base64 text is normalized in place, and only
//! the text's position is returned.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    encoding::Encoding,
    find::{find_in_input, find_in_messages, invalid},
};
use crate::{
    base64_text::{normalize, trim_json_start},
    fetch::policy::{MAX_URL_LEN, TOO_LONG},
    nvidia::DIMENSIONS,
    web::{
        error::{Error, Invalid},
        extract::json,
        routes::models::check_model,
    },
};

/// A valid body, for error messages.
const EXAMPLE: &str = r#"{"input": ["https://example.com/photo.jpg"]}"#;

/// The maximum length of a JSON string with a URL, in bytes. This length is enough for a URL of
/// [`MAX_URL_LEN`] bytes with escaped slashes and surrounding blanks.
const MAX_ESCAPED_URL_LEN: usize = 2 * MAX_URL_LEN;

/// What a batch must comply with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// How many pictures the batch may have.
    pub max_pictures: usize,
    /// The only model, under its name in answers. [`check_model`] also accepts its other names.
    pub model: &'static str,
}

/// A parsed batch.
#[derive(Debug)]
pub(super) struct Batch {
    /// The body, with normalized Base64 texts.
    pub body: Vec<u8>,
    pub items: Vec<Item>,
    /// How the vectors must be encoded.
    pub encoding: Encoding,
}

/// One picture of a batch.
#[derive(Debug)]
pub(super) struct Item {
    /// The picture's place in the request, such as `input[3]`.
    pub place: String,
    /// Where the picture's bytes are, or the item's error.
    pub source: Result<Source, Error>,
}

/// Where the bytes of a picture are. [`locate`] returns the range of a whole string, and
/// [`with_normalized_base64`] narrows it to the normalized Base64 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// At this URL.
    Url(String),
    /// In the body, as the Base64 text of a `data:` URL.
    DataUrl(Range<usize>),
    /// In the body, as Base64 text without `data:`.
    Base64(Range<usize>),
}

/// The fields that are read from a body. Any other field is ignored.
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
/// The error of the whole body. An error of one item is in the item's `source`.
pub(super) fn parse(body: Vec<u8>, rules: Rules) -> Result<Batch, Error> {
    let mut body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    if let Some(model) = fields.model {
        check_model(&json::text(model, "model")?, rules.model)?;
    }
    if let Some(modality) = fields.modality
        && json::text(modality, "modality")? != "image"
    {
        let detail = "This model embeds pictures only: send \"modality\": \"image\", or leave the field out.";
        return Err(invalid("modality", "Input should be 'image'", detail));
    }
    check_dimensions(fields.dimensions)?;
    let encoding = Encoding::parse(fields.encoding_format, fields.normalized)?;
    let pictures = match (fields.input, fields.messages) {
        (Some(input), None) => find_in_input(input, rules.max_pictures)?,
        (None, Some(messages)) => vec![("messages".into(), find_in_messages(messages))],
        (Some(_), Some(_)) => {
            let detail = "Send either input or messages, not both.";
            return Err(invalid("messages", "Not allowed together with 'input'", detail));
        }
        (None, None) => {
            let detail = format!("The field input is missing: send {EXAMPLE}.");
            return Err(Invalid::at(&["body", "input"], "missing", "Field required", detail));
        }
    };
    let body_address = body.as_ptr().addr();
    let sources = pictures.into_iter().map(|(place, text)| {
        let source = text.and_then(|text| locate(text, body_address, &place));
        (place, source)
    });
    // `collect` ends the borrow of the body, so that the body can change.
    let sources: Vec<_> = sources.collect();
    let items = sources.into_iter().map(|(place, source)| {
        let source = source.and_then(|source| with_normalized_base64(source, &mut body, &place));
        Item { place, source }
    });
    Ok(Batch { items: items.collect(), body, encoding })
}

fn check_dimensions(dimensions: Option<&RawValue>) -> Result<(), Error> {
    let Some(dimensions) = dimensions else { return Ok(()) };
    let Ok(number) = serde_json::from_str::<f64>(dimensions.get()) else {
        let detail = "The field dimensions must be a number: send 1536, or leave the field out.";
        return Err(invalid("dimensions", "Input should be a number", detail));
    };
    // Like an absent field, 0 means all dimensions of the model.
    if number == 0.0 || number == DIMENSIONS as f64 {
        return Ok(());
    }
    Err(Error::UnsupportedParameter {
        param: "dimensions",
        detail: "This model's vectors have 1536 numbers and cannot be shortened: send \"dimensions\": 1536, or leave the field out.",
    })
}

/// Determines whether a JSON string is a URL, a `data:` URL or Base64, and where it is in the body.
fn locate(text: &RawValue, body_address: usize, place: &str) -> Result<Source, Error> {
    let raw = text.get();
    let inner = raw.get(1..raw.len() - 1).unwrap_or_default(); // without the quotes
    let trimmed = trim_json_start(inner);
    if is_url(trimmed) {
        // The memory limit counts the body, but not the copy of a URL. A long URL is therefore refused
        // before it is copied.
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
    let start = inner.as_ptr().addr() - body_address;
    let range = start..start + inner.len();
    let is_data_url = trimmed.get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("data:"));
    Ok(if is_data_url { Source::DataUrl(range) } else { Source::Base64(range) })
}

/// Whether the content of a JSON string begins like a URL: with a scheme and `://`. The scheme may be
/// empty, and the slashes may be escaped. Base64 text never begins so, because it contains no colon.
fn is_url(content: &str) -> bool {
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let rest = content.trim_start_matches(is_scheme);
    rest.starts_with("://") || rest.starts_with(r":\/\/")
}

/// Normalizes a source's Base64 text in place, and returns the source with the text's new range. Returns a
/// URL unchanged.
///
/// # Errors
/// The text is not Base64. For [`Source::Base64`], the error says that the string is not a picture.
fn with_normalized_base64(source: Source, body: &mut [u8], place: &str) -> Result<Source, Error> {
    // `normalize` returns a range inside of the bytes that it gets.
    let in_body =
        |range: &Range<usize>, text: Range<usize>| range.start + text.start..range.start + text.end;
    match source {
        Source::Url(url) => Ok(Source::Url(url)),
        Source::DataUrl(range) => {
            let text = normalize(&mut body[range.clone()])?;
            Ok(Source::DataUrl(in_body(&range, text)))
        }
        Source::Base64(range) => {
            let text =
                normalize(&mut body[range.clone()]).map_err(|_| text_instead_of_picture(place))?;
            Ok(Source::Base64(in_body(&range, text)))
        }
    }
}

/// The error for a string that is neither a URL, nor a `data:` URL, nor the Base64 of a picture.
pub(super) fn text_instead_of_picture(place: &str) -> Error {
    let detail = format!(
        "{place} is text, but this model embeds pictures only: send an http or https URL, a data: URL, or the picture's bytes as Base64."
    );
    invalid(place, "Input should be a picture", detail)
}

#[cfg(test)]
mod tests;
