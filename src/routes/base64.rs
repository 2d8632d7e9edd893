//! `POST /vectorize-image-base64`: a picture as Base64 in JSON.
//!
//! The body is held whole, and worked on in the memory that it came in: the text is found, its
//! escapes and line breaks are taken out in place, and it is decoded piece by piece.

use std::{collections::BTreeMap, ops::Range};

use ::base64::{
    Engine, alphabet, engine::DecodePaddingMode, engine::GeneralPurpose,
    engine::GeneralPurposeConfig,
};
use axum::{body::Body, extract::State};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::spawn_blocking;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::{answer::Answer, file_name, json, problems};
use crate::{
    app::AppState,
    budget::Reserved,
    error::{Code, Error},
    guard::body::Receiving,
};

const EXAMPLE: &str = r#"{"image_base64": "…", "filename": "image.png"}"#;

/// How much text is decoded at once, in characters: a multiple of four.
const PIECE: usize = 64 * 1024;

/// Bodies from this size on are parsed off the async threads.
const LARGE: usize = 256 * 1024;

/// Padding is judged by [`normalize`]; bits that belong to no byte are ignored, as Python does.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The largest body that a picture of so many bytes may come in: four characters for three bytes,
/// line breaks and escapes, and the rest of the JSON.
pub fn body_limit(max_image_bytes: u64) -> u64 {
    let text = max_image_bytes.div_ceil(3) * 4;
    text + text / 12 + 64 * 1024
}

/// Why text is not Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Base64Fault {
    /// A space: a `+` that a form decoder ate.
    #[error("image_base64 holds a space where a + got lost; send it as JSON, not form-encoded.")]
    Space,
    /// A `data:` address without its comma.
    #[error("image_base64 begins with data: but has no comma before the Base64 text.")]
    NoComma,
    /// A character of neither alphabet.
    #[error("image_base64 holds characters that are not Base64; send the text that base64 prints.")]
    Alphabet,
    /// A length, or a padding, that no text of whole bytes has.
    #[error("image_base64 is not whole Base64; is it cut short?")]
    Length,
    /// Nothing to decode.
    #[error("image_base64 is empty.")]
    Empty,
}

/// A picture as Base64.
#[derive(ToSchema)]
#[schema(as = ImageBase64)]
#[allow(dead_code, reason = "describes the body; `Fields` reads it")]
pub(super) struct Base64Request {
    /// The picture's bytes as Base64: either alphabet, with or without padding; line breaks and a
    /// leading `data:image/…;base64,` are fine.
    #[schema(example = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")]
    image_base64: String,
    /// The picture's name, given back as `original_filename`.
    #[schema(example = "image.png")]
    filename: Option<String>,
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    image_base64: Option<&'a RawValue>,
    #[serde(borrow)]
    filename: Option<&'a RawValue>,
}

/// The errors of this route.
struct Base64Errors;

impl IntoResponses for Base64Errors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        problems::of_pictures(&[Code::InvalidBase64])
    }
}

/// Vectorize a picture sent as Base64
#[utoipa::path(
    post,
    path = "/vectorize-image-base64",
    tag = "pictures",
    request_body = Base64Request,
    responses(
        (status = 200, description = "The picture's embedding", body = Answer),
        Base64Errors,
    )
)]
pub(super) async fn vectorize_image_base64(
    State(app): State<AppState>,
    body: Body,
) -> Result<Answer, Error> {
    let limits = &app.vectorizer.limits;
    let limit = body_limit(limits.max_image_bytes);
    let receiving = Receiving { limit, timeout: limits.body_timeout };
    let expected = receiving.expected(&body)?;
    let mut admission = app.vectorizer.admit(expected).await?;
    let reserved = admission.split_body(expected);
    let body = receiving.read(body).await?;

    let parsed = if body.len() < LARGE {
        parse(body)?
    } else {
        spawn_blocking(move || parse(body)).await.map_err(Error::died)??
    };
    let name = parsed.file_name.clone();
    let done = app.vectorizer.vectorize(admission, parsed.decode(reserved)).await?;
    Ok(Answer::new(done, app.model).named(name))
}

/// A body whose Base64 text was found and cleaned.
#[derive(Debug)]
struct Parsed {
    body: Vec<u8>,
    text: Range<usize>,
    file_name: Option<String>,
}

fn parse(body: Vec<u8>) -> Result<Parsed, Error> {
    let mut body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    let file_name = match fields.filename {
        Some(raw) => file_name::printable(&json::text(raw, "filename")?),
        None => None,
    };
    let raw = json::required(fields.image_base64, "image_base64", EXAMPLE)?.get();
    // The raw text lies within the body: where, is all that is kept, so that the body may change.
    let start = raw.as_ptr().addr() - body.as_ptr().addr() + 1;
    let end = start + raw.len() - 2;
    let len = normalize(&mut body[start..end])?;
    Ok(Parsed { body, text: start..start + len, file_name })
}

impl Parsed {
    /// The picture's bytes, piece by piece. The body and its reservation are dropped at the end.
    fn decode(self, reserved: Option<Reserved>) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold((self, reserved), |(mut parsed, reserved)| async move {
            if parsed.text.is_empty() {
                return Ok(None);
            }
            let end = parsed.text.end.min(parsed.text.start + PIECE);
            let piece = parsed.body.get(parsed.text.start..end).unwrap_or_default();
            let bytes = ENGINE.decode(piece).map_err(|_| Base64Fault::Length)?;
            parsed.text.start = end;
            Ok(Some((bytes.into(), (parsed, reserved))))
        })
    }
}

/// Turns the inside of a JSON string into Base64 text of the standard alphabet without padding, in
/// place, and returns its length.
fn normalize(text: &mut [u8]) -> Result<usize, Base64Fault> {
    let len = unescape(text);
    let mut from = match text.get(..5) {
        Some(scheme) if len >= 5 && scheme.eq_ignore_ascii_case(b"data:") => {
            text[..len].iter().position(|byte| *byte == b',').ok_or(Base64Fault::NoComma)? + 1
        }
        _ => 0,
    };
    let (mut to, mut padding) = (0, 0);
    while from < len {
        let byte = text[from];
        from += 1;
        text[to] = match byte {
            b'\r' | b'\n' | b'\t' => continue,
            b'=' => {
                padding += 1;
                continue;
            }
            b' ' => return Err(Base64Fault::Space),
            _ if padding > 0 => return Err(Base64Fault::Alphabet),
            b'-' => b'+',
            b'_' => b'/',
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => byte,
            _ => return Err(Base64Fault::Alphabet),
        };
        to += 1;
    }
    match (to % 4, padding) {
        (_, 0) if to == 0 => Err(Base64Fault::Empty),
        (0 | 2 | 3, 0) | (2, 2) | (3, 1) => Ok(to),
        _ => Err(Base64Fault::Length),
    }
}

/// Resolves JSON's escapes in place and returns the new length: `\/` as Android writes it, `\n` as
/// line-wrapping encoders leave it, `\u003d` as Gson writes `=`. A character beyond ASCII becomes
/// a byte that is no Base64.
fn unescape(text: &mut [u8]) -> usize {
    let Some(first) = text.iter().position(|byte| *byte == b'\\') else { return text.len() };
    let (mut from, mut to) = (first, first);
    while from < text.len() {
        let (byte, taken) = match text[from..] {
            [b'\\', b'u', a, b, c, d, ..] => {
                let hex = [a, b, c, d];
                let code = std::str::from_utf8(&hex)
                    .ok()
                    .and_then(|hex| u16::from_str_radix(hex, 16).ok());
                (code.and_then(|code| u8::try_from(code).ok()).unwrap_or(0xff), 6)
            }
            [b'\\', escaped, ..] => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' | b'f' => 0,
                    plain => plain,
                };
                (byte, 2)
            }
            [plain, ..] => (plain, 1),
            [] => break,
        };
        text[to] = byte;
        to += 1;
        from += taken;
    }
    to
}

#[cfg(test)]
mod tests {
    use ::base64::prelude::{
        BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD,
    };
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;

    /// Decodes a JSON string's inside, as it stands in a body.
    fn decode(inside: &str) -> Result<Vec<u8>, Base64Fault> {
        let body = format!(r#"{{"filename": null, "image_base64": "{inside}" , "more": [1]}}"#);
        match parse(body.into_bytes()) {
            Ok(parsed) => {
                let stream =
                    parsed.decode(None).try_fold(Vec::new(), |mut all, bytes| async move {
                        all.extend_from_slice(&bytes);
                        Ok(all)
                    });
                match futures_util::FutureExt::now_or_never(stream).unwrap() {
                    Ok(bytes) => Ok(bytes),
                    Err(Error::Base64(fault)) => Err(fault),
                    Err(other) => panic!("{other}"),
                }
            }
            Err(Error::Base64(fault)) => Err(fault),
            Err(other) => panic!("{other}"),
        }
    }

    proptest! {
        #[test]
        fn what_any_encoder_writes_is_decoded(
            bytes in proptest::collection::vec(any::<u8>(), 1..400),
            line in 1usize..100,
            break_ in prop_oneof![Just("\n"), Just("\r\n"), Just("\\n"), Just("\\r\\n"), Just("\\t"), Just("")],
            slash in prop_oneof![Just("/"), Just("\\/"), Just("\\u002f")],
            data in prop_oneof![Just(""), Just("data:image/png;base64,"), Just("DATA:image\\/png;base64,")],
        ) {
            for engine in [&BASE64_STANDARD, &BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE, &BASE64_URL_SAFE_NO_PAD] {
                let text = engine.encode(&bytes);
                let lines: Vec<_> = text.as_bytes().chunks(line).map(|line| std::str::from_utf8(line).unwrap()).collect();
                let text = lines.join("\u{1}").replace('/', slash).replace('=', "\\u003d").replace('\u{1}', break_);
                prop_assert_eq!(decode(&format!("{data}{text}")), Ok(bytes.clone()));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in any::<String>()) {
            let _ = parse(text.clone().into_bytes());
            let _ = parse(serde_json::json!({ "image_base64": text }).to_string().into_bytes());
        }
    }

    #[test]
    fn what_is_not_base64_is_refused_with_its_reason() {
        for (text, fault) in [
            ("", Base64Fault::Empty),
            ("\\n", Base64Fault::Empty),
            ("data:image/png;base64,", Base64Fault::Empty),
            ("====", Base64Fault::Length),
            ("QQ=", Base64Fault::Length),
            ("QUJD=", Base64Fault::Length),
            ("QQ===", Base64Fault::Length),
            ("Q", Base64Fault::Length),
            ("QQ==QQ==", Base64Fault::Alphabet),
            ("QU JD", Base64Fault::Space),
            ("QUJ%", Base64Fault::Alphabet),
            ("QUJé", Base64Fault::Alphabet),
            ("QUJ\\u00e9", Base64Fault::Alphabet),
            ("QUJ\\ud83d", Base64Fault::Alphabet),
            ("data:image/png;base64", Base64Fault::NoComma),
            ("https:\\/\\/example.com\\/a.jpg", Base64Fault::Alphabet),
        ] {
            assert_eq!(decode(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_text_longer_than_a_piece_is_decoded_whole() {
        let bytes: Vec<u8> = (0..3 * PIECE + 1).map(|n| n as u8).collect();
        assert_eq!(decode(&BASE64_STANDARD.encode(&bytes)), Ok(bytes));
    }

    #[test]
    fn the_limit_has_room_for_a_picture_with_line_breaks_and_escapes() {
        let text = body_limit(20 << 20) - 64 * 1024;
        let encoded: u64 = (20 << 20) / 3 * 4;
        assert!(text > encoded + encoded / 76 * 4); // `\r\n` escaped, after each line
        assert!(text > encoded + encoded / 64 + encoded / 76 * 2); // `\/`, and `\n` escaped
    }
}
