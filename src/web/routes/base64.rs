//! `POST /vectorize-image-base64`: a picture as Base64 in JSON.
//!
//! The body is held in memory as a whole and never copied: the parser finds the text, removes its
//! escapes and line breaks in place, and decodes it piece by piece. A streaming JSON parser would
//! need less memory, but the limit of a picture bounds the body, and the memory is charged to the
//! client.

use std::{collections::BTreeMap, ops::Range};

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

use super::{answer::Answer, openapi::error_responses};
use crate::{
    base64_text::{CHUNK_LEN, body_limit, decode, normalize},
    shares::{ClientNetwork, SharePermit},
    web::{
        error::{Code, Error},
        extract::{
            body::BodyLimits,
            cache_control::{CacheControl, CacheControlHeader},
            file_name, json,
            query::{PictureOptions, PictureQuery},
        },
        state::AppState,
    },
};

const EXAMPLE: &str = r#"{"image_base64": "…", "filename": "image.png"}"#;

/// Bodies of this size or larger are parsed on a blocking thread.
const LARGE_BODY: usize = 256 * 1024;

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
    let limit = body_limit(limits.max_image_bytes);
    let body_limits = BodyLimits {
        limit,
        picture_limit: Some(limits.max_image_bytes),
        timeout: limits.body_timeout,
    };
    let admission = app.pipeline.admit(client, body_limits.declared_length(&body)?).await?;
    let mut memory = app.pipeline.memory.empty(client);
    let body = body_limits.read(body, &mut memory).await?;

    let (parsed, memory) = if body.len() < LARGE_BODY {
        (parse(body)?, memory)
    } else {
        // The thread owns the memory's share, since it goes on working if the client leaves.
        let parse = move || Ok::<_, Error>((parse(body)?, memory));
        spawn_blocking(parse).await??
    };
    let name = parsed.file_name.clone();
    let bytes = parsed.decode(Some(memory));
    let received = app.pipeline.receive(admission, bytes).await?;
    let done = app.pipeline.embed(received, cache_mode, save_mode).await?;
    Ok(Answer::new(done, app.model).named(name))
}

/// A body, with its Base64 text found and cleaned.
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
    // The raw text is a part of the body. Keeping only its position ends the borrow, so that the
    // body can change.
    let start = raw.as_ptr().addr() - body.as_ptr().addr() + 1;
    let end = start + raw.len() - 2;
    let text = normalize(&mut body[start..end])?;
    Ok(Parsed { body, text: start + text.start..start + text.end, file_name })
}

impl Parsed {
    /// Decodes the picture piece by piece. The body and its share of the memory are dropped at the
    /// stream's end.
    fn decode(
        self,
        memory: Option<SharePermit>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        stream::try_unfold((self, memory), |(mut parsed, memory)| async move {
            if parsed.text.is_empty() {
                return Ok(None);
            }
            let end = parsed.text.end.min(parsed.text.start + CHUNK_LEN);
            let piece = parsed.body.get(parsed.text.start..end).unwrap_or_default();
            let bytes = decode(piece)?;
            parsed.text.start = end;
            Ok(Some((bytes.into(), (parsed, memory))))
        })
    }
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
    use crate::base64_text::Base64Error;

    /// Decodes the content of a JSON string, as it would stand in a body.
    fn picture(inside: &str) -> Result<Vec<u8>, Base64Error> {
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
            blanks in proptest::collection::vec("( |\\\\t|\\\\n|\\\\r\\\\n|\\\\u0020){0,3}", 3),
            too_much in "={0,5}",
        ) {
            for engine in [&BASE64_STANDARD, &BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE, &BASE64_URL_SAFE_NO_PAD] {
                let text = engine.encode(&bytes);
                let lines: Vec<_> = text.as_bytes().chunks(line).map(|line| std::str::from_utf8(line).unwrap()).collect();
                let text = lines.join("\u{1}").replace('/', slash).replace('=', "\\u003d").replace('\u{1}', break_);
                // If the text has no padding, these four are more than enough for any length.
                let padding = if too_much.is_empty() || text.ends_with("003d") { &too_much } else { "====" };
                let [before, between, after] = &blanks[..] else { unreachable!() };
                let text = format!("{before}{data}{between}{text}{padding}{after}");
                prop_assert_eq!(picture(&text), Ok(bytes.clone()), "{}", text);
            }
        }

        #[test]
        fn one_wrong_character_is_found_wherever_it_is(at in 0usize..300, data in prop_oneof![Just(""), Just("data:,")]) {
            let mut text = "A".repeat(300);
            text.replace_range(at..=at, "%");
            prop_assert_eq!(picture(&format!("{data}{text}")), Err(Base64Error::Alphabet));
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
            assert_eq!(picture(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn blanks_around_and_too_much_padding_change_nothing() {
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
    fn plain_text_is_left_where_it_is() {
        let plain = BASE64_STANDARD.encode([7; 3000]);
        for (text, start) in [(plain.clone(), 0), (format!("data:,{plain}"), 6)] {
            let mut bytes = text.clone().into_bytes();
            assert_eq!(normalize(&mut bytes), Ok(start..text.len()));
            assert_eq!(bytes, text.as_bytes());
        }
    }

    #[test]
    fn a_text_longer_than_a_piece_is_decoded_whole() {
        let bytes: Vec<u8> = (0..3 * CHUNK_LEN + 1).map(|n| n as u8).collect();
        assert_eq!(picture(&BASE64_STANDARD.encode(&bytes)), Ok(bytes));
    }

    #[test]
    fn the_limit_has_room_for_a_picture_with_line_breaks_and_escapes() {
        let text = body_limit(20 << 20) - 64 * 1024;
        let encoded: u64 = (20 << 20) / 3 * 4;
        assert!(text > encoded + encoded / 76 * 4); // `\r\n` escaped, after each line
        assert!(text > encoded + encoded / 64 + encoded / 76 * 2); // `\/`, and `\n` escaped
    }
}
