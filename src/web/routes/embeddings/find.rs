//! Finds the texts of the pictures in a batch's JSON. Clients put them into several shapes.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::web::{
    error::{BATCH_SIZE_SETTINGS, Error, Invalid},
    extract::json,
};

/// The most messages, and parts of one message or item. One picture needs one of each.
const MAX_PARTS: usize = 100;

/// The types of parts that this route knows. A part without a type is known by its fields.
const PART_TYPES: [&str; 4] = ["text", "image", "image_url", "input_image"];

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
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
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
    let mut pictures = Vec::new();
    for message in all_elements(messages, place)?.ok_or_else(|| no_picture(place))? {
        let message: Part<'_> =
            serde_json::from_str(message.get()).map_err(|_| no_picture(place))?;
        if let Some(content) = message.content {
            pictures.extend(pictures_of(content, place)?);
        }
    }
    only(&pictures, place)
}

/// The texts of the pictures in the content of a message or an item.
fn pictures_of<'a>(content: &'a RawValue, place: &str) -> Result<Vec<&'a RawValue>, Error> {
    let mut pictures = Vec::new();
    match all_elements(content, place)? {
        Some(parts) => {
            for part in parts {
                let part: Part<'_> =
                    serde_json::from_str(part.get()).map_err(|_| no_picture(place))?;
                pictures.extend(part.picture(place)?);
            }
        }
        None if is_blank(content) => {}
        None if content.get().starts_with('"') => return Err(text_beside(place)),
        None => return Err(no_picture(place)),
    }
    Ok(pictures)
}

/// The elements of an array, or `None` if the value is not an array. Too many are refused, since
/// those that nobody looks at could be text.
fn all_elements<'a>(array: &'a RawValue, place: &str) -> Result<Option<Vec<&'a RawValue>>, Error> {
    match json::elements(array, MAX_PARTS) {
        Some(elements) if elements.count > MAX_PARTS => {
            let detail =
                format!("{place} has more than {MAX_PARTS} parts: send the picture alone.");
            Err(invalid(place, "Has too many parts", detail))
        }
        elements => Ok(elements.map(|elements| elements.first)),
    }
}

impl<'a> Part<'a> {
    /// The text of the part's picture. A part without a picture is accepted if it has no text.
    fn picture(&self, place: &str) -> Result<Option<&'a RawValue>, Error> {
        if self.text.is_some_and(|text| !is_blank(text)) {
            return Err(text_beside(place));
        }
        if let Some(kind) = self.kind {
            let kind = json::text(kind, "type").map_err(|_| no_picture(place))?;
            if !PART_TYPES.contains(&&*kind) {
                return Err(no_picture(place));
            }
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

/// Whether an item is a token number or a list of them, which some clients make from text.
fn is_token(item: &RawValue) -> bool {
    let text = item.get().trim_start_matches(['[', ' ', '\t']);
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
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
    let detail = if place == "messages" {
        "messages must have one picture, as {\"type\": \"image_url\", \"image_url\": {\"url\": \"…\"}} in the content of one message."
            .to_owned()
    } else {
        format!(
            "{place} is not a picture: send a string, {{\"image\": \"…\"}} or {{\"image_url\": {{\"url\": \"…\"}}}}, with a URL, a data: URL or Base64."
        )
    };
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
