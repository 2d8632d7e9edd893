//! Finds the texts of the pictures in a batch's JSON. Clients put them into several shapes.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::web::{
    error::{BATCH_SIZE_SETTINGS, Error, Invalid},
    extract::json,
};

/// The most messages, and parts of one message or item, that are looked at. One picture needs one.
const MAX_PARTS: usize = 100;

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

/// The text of each picture in `input`, with the picture's place.
pub(super) type Found<'a> = Vec<(String, Result<&'a RawValue, Error>)>;

pub(super) fn find_in_input(input: &RawValue, most: usize) -> Result<Found<'_>, Error> {
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
pub(super) fn find_in_messages(messages: &RawValue) -> Result<&RawValue, Error> {
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

pub(super) fn invalid(place: &str, message: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", place], "value_error", message, detail)
}
