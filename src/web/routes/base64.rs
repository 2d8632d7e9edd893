//! `POST /vectorize-image-base64`: takes a picture as Base64 in JSON.
//!
//! The whole body is in memory, and is never copied. The parser finds the Base64 text in the body, and
//! removes escapes and line breaks in place. The text is then decoded in pieces. A streaming JSON parser
//! would need less memory, but is not necessary: the limit on a picture's bytes also limits the body, and
//! the body's memory counts toward the client's share.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use axum::{body::Body, extract::State};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{RefOr, Response},
};

use super::{answer::Answer, openapi::error_responses};
use crate::{
    base64_text::{CHUNK_LEN, body_limit, decode, normalize},
    shares::{ClientNetwork, SharePermit},
    web::{
        error::{Code, Error},
        extract::{
            body::{BodyContent, BodyLimits},
            cache_control::{CacheControl, CacheControlHeader},
            file_name, json,
            large_body::parse_body,
            query::{PictureOptions, PictureQuery},
        },
        state::AppState,
    },
};

const EXAMPLE: &str = r#"{"image_base64": "…", "filename": "image.png"}"#;

/// A picture as Base64.
#[derive(ToSchema)]
#[schema(as = ImageBase64)]
#[allow(dead_code, reason = "describes the body; `Fields` reads it")]
pub(super) struct Base64Request {
    /// The picture's bytes as Base64, in the standard or the URL-safe alphabet, with or without
    /// padding. Line breaks, surrounding blanks and a leading `data:image/…;base64,` are allowed.
    #[schema(min_length = 1, example = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")]
    image_base64: String,
    /// The picture's name, which the answer repeats as `original_filename`.
    #[schema(example = "pixel.gif")]
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
        error_responses::of_pictures(&[Code::InvalidBase64])
    }
}

/// Vectorize a picture sent as Base64
///
/// The service saves the picture, and answers with its embedding. It detects the format from the bytes, not
/// from the file name, and ignores the line breaks of `base64`. A photograph is too long for a command
/// line, so this command sends the JSON through a pipe:
///
/// ```bash
/// { printf '{"filename": "rocket.jpg", "image_base64": "'; base64 < tests/fixtures/rocket.jpg; printf '"}'; } |
///   curl -X POST http://localhost:8000/vectorize-image-base64 \
///     -H "Content-Type: application/json" --data-binary @-
/// ```
#[utoipa::path(
    post,
    path = "/vectorize-image-base64",
    tag = "pictures",
    params(PictureQuery, CacheControlHeader),
    request_body = Base64Request,
    responses(
        (
            status = 200, description = "The picture's embedding", body = Answer,
            headers(("x-cache" = String, description = "`miss` if the service called NVIDIA for this answer, else `hit`"))
        ),
        Base64Errors,
    )
)]
pub(super) async fn vectorize_image_base64(
    State(app): State<AppState>,
    client: ClientNetwork,
    CacheControl(cache_mode): CacheControl,
    PictureOptions { save_mode }: PictureOptions,
    body: Body,
) -> Result<Answer, Error> {
    let limits = &app.pipeline.limits;
    let body_limits = BodyLimits {
        max_bytes: body_limit(limits.max_image_bytes),
        content: BodyContent::Picture { max_picture_bytes: limits.max_image_bytes },
        timeout: limits.body_timeout,
    };
    let admission =
        app.pipeline.admit(client, body_limits.check_declared_length(&body)?, save_mode).await?;
    let mut memory = app.pipeline.memory.empty_permit(client);
    let body = body_limits.read(body, &mut memory).await?;

    let (parsed, memory) = parse_body(body, memory, parse).await?;
    let ParsedBody { body, text, file_name: name } = parsed;
    let bytes = decode_pieces(Arc::new(ChargedBody::new(body, memory)), text);
    let received = app.pipeline.receive(admission, bytes).await?;
    let vectorized = app.pipeline.embed(received, cache_mode, save_mode).await?;
    Ok(Answer::new(vectorized, app.model).with_original_filename(name))
}

/// A parsed body.
#[derive(Debug)]
struct ParsedBody {
    body: Vec<u8>,
    /// The position of the normalized Base64 text in the body.
    text: Range<usize>,
    file_name: Option<String>,
}

fn parse(body: Vec<u8>) -> Result<ParsedBody, Error> {
    let mut body = json::clean(body);
    let fields: Fields<'_> = json::parse(&body, EXAMPLE)?;
    let file_name = match fields.filename {
        Some(raw) => file_name::printable(&json::text(raw, "filename")?),
        None => None,
    };
    let raw = json::required_string(fields.image_base64, "image_base64", EXAMPLE)?.get();
    // `raw` borrows from the body, which `normalize` must change. Therefore only the range between
    // the quotes of `raw` is used from here on.
    let start = raw.as_ptr().addr() - body.as_ptr().addr() + 1;
    let end = start + raw.len() - 2;
    let text = normalize(&mut body[start..end])?;
    Ok(ParsedBody { body, text: start + text.start..start + text.end, file_name })
}

/// A body, and the permit for its memory.
#[derive(Debug)]
pub(super) struct ChargedBody {
    body: Vec<u8>,
    _memory: SharePermit,
}

impl ChargedBody {
    pub(super) fn new(body: Vec<u8>, memory: SharePermit) -> Self {
        Self { body, _memory: memory }
    }
}

impl AsRef<[u8]> for ChargedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Decodes the normalized Base64 text in this range of a body, piece by piece. When the stream
/// ends, it drops its reference to the body.
pub(super) fn decode_pieces(
    body: Arc<ChargedBody>,
    text: Range<usize>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    stream::try_unfold((body, text), |(charged, mut text)| async move {
        if text.is_empty() {
            return Ok(None);
        }
        let end = text.end.min(text.start + CHUNK_LEN);
        let piece = charged.body.get(text.start..end).unwrap_or_default();
        let bytes = decode(piece)?;
        text.start = end;
        Ok(Some((bytes.into(), (charged, text))))
    })
}

#[cfg(test)]
mod tests {
    use ::base64::Engine;
    use ::base64::prelude::{
        BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD,
    };
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::{base64_text::Base64Error, shares::Shares};

    /// Decodes a picture. `text` is the raw content of the JSON string in the body.
    fn picture(text: &str) -> Result<Vec<u8>, Base64Error> {
        let body = format!(r#"{{"filename": null, "image_base64": "{text}" , "more": [1]}}"#);
        match parse(body.into_bytes()) {
            Ok(ParsedBody { body, text, .. }) => {
                let memory = Shares::undivided(1, 1).empty_permit(ClientNetwork::UNKNOWN);
                let pieces = decode_pieces(Arc::new(ChargedBody::new(body, memory)), text);
                let stream = pieces.try_fold(Vec::new(), |mut all, bytes| async move {
                    all.extend_from_slice(&bytes);
                    Ok(all)
                });
                match futures_util::FutureExt::now_or_never(stream).unwrap() {
                    Ok(bytes) => Ok(bytes),
                    Err(Error::Base64(error)) => Err(error),
                    Err(other) => panic!("{other}"),
                }
            }
            Err(Error::Base64(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    }

    proptest! {
        #[test]
        fn base64_with_line_breaks_escapes_blanks_a_prefix_or_extra_padding_is_decoded(
            bytes in proptest::collection::vec(any::<u8>(), 1..400),
            line_length in 1usize..100,
            line_break in prop_oneof![
                Just("\n"), Just("\r\n"), Just("\\n"), Just("\\r\\n"), Just("\\t"), Just(""),
            ],
            slash in prop_oneof![Just("/"), Just("\\/"), Just("\\u002f")],
            prefix in prop_oneof![
                Just(""), Just("data:image/png;base64,"), Just("DATA:image\\/png;base64,"),
            ],
            blanks in proptest::collection::vec("( |\\\\t|\\\\n|\\\\r\\\\n|\\\\u0020){0,3}", 3),
            extra_padding in "={0,5}",
        ) {
            for engine in [
                &BASE64_STANDARD,
                &BASE64_STANDARD_NO_PAD,
                &BASE64_URL_SAFE,
                &BASE64_URL_SAFE_NO_PAD,
            ] {
                let text = engine.encode(&bytes);
                let lines = text.as_bytes().chunks(line_length);
                let lines: Vec<_> = lines.map(|line| std::str::from_utf8(line).unwrap()).collect();
                // A control character marks the line breaks until slashes and padding are escaped.
                let text = lines.join("\u{1}").replace('/', slash).replace('=', "\\u003d");
                let text = text.replace('\u{1}', line_break);
                // A text without padding may end with two characters of a group of four. A single `=` after
                // these would mean that the text was cut. Four are valid after any text.
                let is_extra_padding_valid = extra_padding.is_empty() || text.ends_with("\\u003d");
                let padding = if is_extra_padding_valid { &extra_padding } else { "====" };
                let [before, between, after] = &blanks[..] else { unreachable!() };
                let text = format!("{before}{prefix}{between}{text}{padding}{after}");
                prop_assert_eq!(picture(&text), Ok(bytes.clone()), "{}", text);
            }
        }

        #[test]
        fn one_invalid_character_is_found_at_any_position(
            index in 0usize..300,
            prefix in prop_oneof![Just(""), Just("data:,")],
        ) {
            let mut text = "A".repeat(300);
            text.replace_range(index..=index, "%");
            prop_assert_eq!(picture(&format!("{prefix}{text}")), Err(Base64Error::Alphabet));
        }

        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = parse(text.clone().into_bytes());
            let _ = parse(serde_json::json!({ "image_base64": text }).to_string().into_bytes());
        }
    }

    #[test]
    fn invalid_base64_is_refused_with_a_reason() {
        // "QQ==" is the Base64 of "A", "QUI=" of "AB", and "QUJD" of "ABC".
        for (text, reason) in [
            ("", Base64Error::Empty),
            ("\\n", Base64Error::Empty),
            ("data:image/png;base64,", Base64Error::Empty),
            (" \\t ", Base64Error::Empty),
            ("data:image/png;base64, \\n", Base64Error::Empty),
            ("====", Base64Error::Empty),
            ("data:,====", Base64Error::Empty),
            ("QQ=", Base64Error::Length),
            ("Q", Base64Error::Length),
            ("Q===", Base64Error::Length),
            ("QQ==QQ==", Base64Error::TextAfterPadding),
            ("QQ==%", Base64Error::Alphabet),
            ("QU JD", Base64Error::Space),
            ("QQ ==", Base64Error::Space),
            ("QQ= =", Base64Error::Space),
            (" data:,QU JD ", Base64Error::Space),
            ("data:image/png; base64", Base64Error::NoComma),
            ("QUJD\u{a0}", Base64Error::Alphabet),
            ("dat a:,QUJD", Base64Error::Space),
            ("QUJ%", Base64Error::Alphabet),
            ("QUJé", Base64Error::Alphabet),
            ("QUJ\\u00e9", Base64Error::Alphabet),
            ("QUJ\\ud83d", Base64Error::Alphabet),
            ("data:image/png;base64", Base64Error::NoComma),
            ("https:\\/\\/example.com\\/a.jpg", Base64Error::Alphabet),
        ] {
            assert_eq!(picture(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn blanks_outside_the_text_and_extra_or_missing_padding_are_accepted() {
        for text in [
            "QUI=",
            "QUI",
            "QUI==",
            "QUI==========",
            " QUI= ",
            "\\n\\tQUI=\\r\\n",
            " data:image/png;base64, QUI= ",
            "data:image/png;base64,\\n  QUI=",
            "data:image/png;name=a b.png;base64,QUI=",
            "QUI=\\n=",
        ] {
            assert_eq!(picture(text).as_deref(), Ok(&b"AB"[..]), "{text}");
        }
        assert_eq!(picture("QUJD=").as_deref(), Ok(&b"ABC"[..]));
        assert_eq!(picture("QQ====").as_deref(), Ok(&b"A"[..]));
    }

    #[test]
    fn normalize_does_not_move_text_that_is_already_normalized() {
        let base64 = BASE64_STANDARD.encode([7; 3000]);
        for (text, start) in [(base64.clone(), 0), (format!("data:,{base64}"), 6)] {
            let mut bytes = text.clone().into_bytes();
            assert_eq!(normalize(&mut bytes), Ok(start..text.len()));
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn a_text_of_several_pieces_is_decoded_completely() {
        let bytes: Vec<u8> = (0..3 * CHUNK_LEN + 1).map(|n| n as u8).collect();
        assert_eq!(picture(&BASE64_STANDARD.encode(&bytes)), Ok(bytes));
    }

    #[test]
    fn the_body_limit_allows_for_line_breaks_and_escapes() {
        // The other fields of the body may take 64 KiB.
        let max_text_bytes = body_limit(20 << 20) - 64 * 1024;
        let base64_bytes: u64 = (20 << 20) / 3 * 4;
        // `base64` wraps its lines after 76 characters. On average, one character of 64 is a slash.
        let lines = base64_bytes / 76;
        let escaped_slashes = base64_bytes / 64;
        assert!(max_text_bytes > base64_bytes + lines * 4); // an escaped `\r\n` after each line
        assert!(max_text_bytes > base64_bytes + escaped_slashes + lines * 2); // an escaped `\n`
    }
}
