//! Reads JSON bodies as people send them, and says what is wrong as FastAPI does.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::web::error::{Error, Invalid};

/// Drops the raw CR and LF of a body, and a byte order mark. Between tokens they mean nothing,
/// and inside a string they are what `"$(base64 image.png)"` puts there on Linux.
pub(in crate::web) fn clean(mut body: Vec<u8>) -> Vec<u8> {
    if body.contains(&b'\n') || body.contains(&b'\r') {
        body.retain(|byte| !matches!(byte, b'\r' | b'\n')); // many times as slow as looking for one
    }
    if body.starts_with(b"\xef\xbb\xbf") {
        body.drain(..3);
    }
    body
}

/// Parses a cleaned body, whose fields are kept as raw JSON.
pub(in crate::web) fn parse<'a, T: Deserialize<'a>>(
    body: &'a [u8],
    example: &str,
) -> Result<T, Error> {
    // serde would also take an array for a struct.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Invalid::at(
            &["body"],
            "model_attributes_type",
            "Input should be an object",
            format!("The body must be a JSON object such as {example}."),
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        // Without the place, which is that of the cleaned body. The parser's words describe the
        // text's form and quote nothing of it but field names.
        let words = error.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        Invalid::at(
            &["body"],
            "json_invalid",
            words,
            format!(
                "The body is not valid JSON ({words}); it must be an object such as {example}."
            ),
        )
    })
}

/// A field that must be there, as raw JSON of a string.
pub(in crate::web) fn required<'a>(
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

/// The text of a field.
pub(in crate::web) fn text<'a>(raw: &'a RawValue, name: &str) -> Result<Cow<'a, str>, Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str::<Text<'a>>(raw.get()).map(|text| text.0).map_err(|_| not_a_string(name))
}

fn not_a_string(name: &str) -> Error {
    Invalid::at(
        &["body", name],
        "string_type",
        "Input should be a valid string",
        format!("The field {name} must be a string."),
    )
}
