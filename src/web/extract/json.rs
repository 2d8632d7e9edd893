//! Parses JSON bodies leniently, and reports errors in FastAPI's format.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::web::error::{Error, Invalid};

/// Removes all raw CR and LF from a body, and a byte order mark at its start. JSON forbids raw line
/// breaks in strings, but `"$(base64 image.png)"` contains them, since `base64` wraps its lines on
/// Linux. Between tokens, line breaks have no meaning.
pub(in crate::web) fn clean(mut body: Vec<u8>) -> Vec<u8> {
    if body.contains(&b'\n') || body.contains(&b'\r') {
        // Only if necessary, because `retain` is far slower than `contains`.
        body.retain(|byte| !matches!(byte, b'\r' | b'\n'));
    }
    if body.starts_with(b"\xef\xbb\xbf") {
        body.drain(..3);
    }
    body
}

/// Parses a body that [`clean`] has returned. `example` is a valid body; an error's sentence
/// contains it.
pub(in crate::web) fn parse<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    example: &str,
) -> Result<T, Error> {
    // serde would accept an array for a struct.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Invalid::at(
            &["body"],
            "model_attributes_type",
            "Input should be an object",
            format!("The body must be a JSON object such as {example}."),
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        // The position is left out, since it refers to the cleaned body. The rest of the message
        // describes the syntax. If all fields of `T` are `RawValue`s, it quotes names of fields, but no
        // values.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        Invalid::at(
            &["body"],
            "json_invalid",
            message,
            format!(
                "The body is not valid JSON ({message}); it must be an object such as {example}."
            ),
        )
    })
}

/// Returns the raw JSON of a required field. Returns an error if the field is missing, or if its value
/// does not begin like a string. [`text`] checks the rest of the value. `example` is a valid body.
pub(in crate::web) fn required_string<'a>(
    field: Option<&'a RawValue>,
    name: &str,
    example: &str,
) -> Result<&'a RawValue, Error> {
    let missing = || {
        Invalid::at(
            &["body", name],
            "missing",
            "Field required",
            format!("The field {name} is missing: send {example}."),
        )
    };
    let raw = field.ok_or_else(missing)?;
    if raw.get().starts_with('"') { Ok(raw) } else { Err(not_a_string(name)) }
}

/// Decodes a string from its raw JSON.
pub(in crate::web) fn text<'a>(raw: &'a RawValue, name: &str) -> Result<Cow<'a, str>, Error> {
    // A plain `Cow` would always be copied. With `borrow`, only a string with escapes is.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'a>>(raw.get()).map(|text| text.0).map_err(|_| not_a_string(name))
}

/// The elements of a JSON array.
pub(in crate::web) struct Elements<'a> {
    /// The first elements, up to a limit. Without the limit, a list of many short elements would take
    /// many times the memory of its JSON.
    pub prefix: Vec<&'a RawValue>,
    /// The number of all elements.
    pub count: usize,
}

/// Returns the first `limit` elements of an array as raw JSON, and the number of all elements. Returns
/// `None` if the value is not an array.
pub(in crate::web) fn elements(array: &RawValue, limit: usize) -> Option<Elements<'_>> {
    struct ElementsVisitor {
        limit: usize,
    }
    impl<'de> Visitor<'de> for ElementsVisitor {
        type Value = Elements<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Elements<'de>, A::Error> {
            let mut prefix = Vec::new();
            while prefix.len() < self.limit
                && let Some(element) = array.next_element()?
            {
                prefix.push(element);
            }
            let mut count = prefix.len();
            while array.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(Elements { prefix, count })
        }
    }
    serde_json::Deserializer::from_str(array.get()).deserialize_seq(ElementsVisitor { limit }).ok()
}

fn not_a_string(name: &str) -> Error {
    Invalid::at(
        &["body", name],
        "string_type",
        "Input should be a valid string",
        format!("The field {name} must be a string."),
    )
}
