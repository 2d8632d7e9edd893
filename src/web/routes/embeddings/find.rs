//! Finds the pictures in a batch's JSON: in the items of `input`, or in chat `messages`. An item or a
//! message may have a list of parts in its field `content`. Each picture is a string with a URL or
//! Base64. Some clients wrap this string in an object, which has one of several shapes.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::web::{
    error::{BATCH_SIZE_SETTINGS, Error, Invalid},
    extract::json,
};

/// The maximum number of messages, and of parts in one message or item. A picture needs only one
/// message with one part.
const MAX_PARTS: usize = 100;

/// The types that a part, or an item without parts, may have. An absent type is accepted, too. The type is
/// only checked: the picture depends only on the other fields.
const PART_TYPES: [&str; 4] = ["text", "image", "image_url", "input_image"];

/// The fields that are read from an item or a message, or from a part of its content.
#[derive(Deserialize)]
struct Fields<'a> {
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

/// The place of each picture in the request, and the picture's string or the item's error.
pub(super) type FoundPictures<'a> = Vec<(String, Result<&'a RawValue, Error>)>;

/// Finds the pictures in the field `input`: an item or a list of at most `max_pictures` items.
///
/// # Errors
/// The list is empty or too long, or begins with tokens. An error of one item is in the returned list
/// instead.
pub(super) fn find_in_input(
    input: &RawValue,
    max_pictures: usize,
) -> Result<FoundPictures<'_>, Error> {
    let Some(list) = json::elements(input, max_pictures) else {
        let place = "input".to_owned();
        let picture = find_in_item(input, &place);
        return Ok(vec![(place, picture)]);
    };
    if list.count == 0 {
        let detail = "The list input is empty: send at least one picture.";
        return Err(invalid("input", "List should have at least 1 item", detail));
    }
    // A list of tokens often has more elements than a batch may have pictures. The error about tokens
    // helps such a client more.
    if list.prefix.first().is_some_and(|first| begins_like_tokens(first)) {
        return Err(tokens_instead_of_pictures());
    }
    if list.count > max_pictures {
        let message = format!("List should have at most {max_pictures} items");
        let detail = format!(
            "The list input has {} pictures, and one request may have {max_pictures}: send fewer at once ({BATCH_SIZE_SETTINGS}).",
            list.count
        );
        return Err(invalid("input", &message, detail));
    }
    let items = list.prefix.into_iter().enumerate().map(|(index, item)| {
        let place = format!("input[{index}]");
        let picture = find_in_item(item, &place);
        (place, picture)
    });
    Ok(items.collect())
}

/// Returns the string of the picture in an item.
fn find_in_item<'a>(item: &'a RawValue, place: &str) -> Result<&'a RawValue, Error> {
    match item.get().as_bytes().first() {
        Some(b'"') => Ok(item),
        Some(b'{') => {
            let fields: Fields<'_> =
                serde_json::from_str(item.get()).map_err(|_| not_a_picture(place))?;
            match fields.content {
                Some(content) if fields.image.is_none() && fields.image_url.is_none() => {
                    fields.refuse_text(place)?;
                    only_picture(&pictures_of(content, place)?, place)
                }
                None => fields.picture(place)?.ok_or_else(|| not_a_picture(place)),
                Some(_) => Err(not_a_picture(place)), // `content` beside a picture
            }
        }
        _ if begins_like_tokens(item) => Err(tokens_instead_of_pictures()),
        _ => Err(not_a_picture(place)),
    }
}

/// Returns the string of the picture in the messages. All messages together must contain exactly one
/// picture.
pub(super) fn find_in_messages(messages: &RawValue) -> Result<&RawValue, Error> {
    let place = "messages";
    let mut pictures = Vec::new();
    for message in all_elements(messages, place)?.ok_or_else(|| not_a_picture(place))? {
        let fields: Fields<'_> =
            serde_json::from_str(message.get()).map_err(|_| not_a_picture(place))?;
        fields.refuse_text(place)?;
        if fields.image.is_some() || fields.image_url.is_some() {
            return Err(not_a_picture(place)); // a message has its picture in its content
        }
        if let Some(content) = fields.content {
            pictures.extend(pictures_of(content, place)?);
        }
    }
    only_picture(&pictures, place)
}

/// Returns the strings of the pictures in the content of a message or an item.
fn pictures_of<'a>(content: &'a RawValue, place: &str) -> Result<Vec<&'a RawValue>, Error> {
    let mut pictures = Vec::new();
    match all_elements(content, place)? {
        Some(parts) => {
            for part in parts {
                let fields: Fields<'_> =
                    serde_json::from_str(part.get()).map_err(|_| not_a_picture(place))?;
                pictures.extend(fields.picture(place)?);
            }
        }
        None if is_blank(content) => {}
        None if content.get().starts_with('"') => return Err(unwanted_text(place)),
        None => return Err(not_a_picture(place)),
    }
    Ok(pictures)
}

/// Returns the elements of an array, or `None` if the value is not an array. An array of more than
/// [`MAX_PARTS`] elements is refused: [`json::elements`] does not return the further elements, so they
/// could not be checked for text.
fn all_elements<'a>(value: &'a RawValue, place: &str) -> Result<Option<Vec<&'a RawValue>>, Error> {
    match json::elements(value, MAX_PARTS) {
        Some(elements) if elements.count > MAX_PARTS => {
            let detail =
                format!("{place} has more than {MAX_PARTS} parts: send the picture alone.");
            Err(invalid(place, "Has too many parts", detail))
        }
        elements => Ok(elements.map(|elements| elements.prefix)),
    }
}

impl<'a> Fields<'a> {
    /// Checks that the object has no text except blanks, because text would get no vector.
    fn refuse_text(&self, place: &str) -> Result<(), Error> {
        match self.text {
            Some(text) if !is_blank(text) => Err(unwanted_text(place)),
            _ => Ok(()),
        }
    }

    /// Returns the string of the object's picture, or `None` if the object has none. Text is an error.
    fn picture(&self, place: &str) -> Result<Option<&'a RawValue>, Error> {
        self.refuse_text(place)?;
        if let Some(kind) = self.kind {
            let kind = json::text(kind, "type").map_err(|_| not_a_picture(place))?;
            if !PART_TYPES.contains(&&*kind) {
                return Err(not_a_picture(place));
            }
        }
        let picture = match (self.image, self.image_url) {
            (Some(image), None) => image,
            (None, Some(image_url)) if image_url.get().starts_with('{') => {
                let image_url: Result<ImageUrl<'_>, _> = serde_json::from_str(image_url.get());
                image_url.ok().and_then(|image| image.url).ok_or_else(|| not_a_picture(place))?
            }
            (None, Some(image_url)) => image_url,
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(not_a_picture(place)),
        };
        if picture.get().starts_with('"') { Ok(Some(picture)) } else { Err(not_a_picture(place)) }
    }
}

/// Returns the only picture of a list. Any other number of pictures is an error.
fn only_picture<'a>(pictures: &[&'a RawValue], place: &str) -> Result<&'a RawValue, Error> {
    match *pictures {
        [picture] => Ok(picture),
        [] => Err(not_a_picture(place)),
        [_, _, ..] => {
            let detail = format!(
                "{place} has several pictures, but an embedding is of one picture: send each picture as an item of the list input."
            );
            Err(invalid(place, "Has several pictures", detail))
        }
    }
}

/// Whether an item begins like a number or a list of numbers. These are tokens: some clients convert text
/// to token numbers before they send it.
fn begins_like_tokens(item: &RawValue) -> bool {
    let text = item.get().trim_start_matches(['[', ' ', '\t', '\r', '\n']);
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// Whether a raw value is a string that is empty or contains only blanks.
fn is_blank(raw: &RawValue) -> bool {
    json::text(raw, "text").is_ok_and(|text| text.trim().is_empty())
}

fn unwanted_text(place: &str) -> Error {
    let detail = format!(
        "{place} has text, but this model embeds pictures only: send the picture without text."
    );
    invalid(place, "Input should be a picture without text", detail)
}

fn not_a_picture(place: &str) -> Error {
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

fn tokens_instead_of_pictures() -> Error {
    let detail = "The field input has token numbers, which clients make from text: this model embeds pictures only. \
        With LangChain's OpenAIEmbeddings, set check_embedding_ctx_length=False.";
    invalid("input", "Input should be pictures", detail)
}

pub(super) fn invalid(place: &str, message: &str, detail: impl Into<String>) -> Error {
    Invalid::at(&["body", place], "value_error", message, detail)
}
