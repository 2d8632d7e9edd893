//! The bodies of requests to NVIDIA and of its answers.

use std::{fmt, marker::PhantomData, sync::LazyLock};

use base64::{
    Engine,
    engine::{Simd, general_purpose::PAD},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use url::Url;
use uuid::Uuid;

use super::Vector;

/// The body of an inference that refers to an uploaded picture.
pub(super) const NO_MESSAGES: &[u8] = br#"{"messages":[]}"#;

static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));

/// The body of an inference that contains its picture.
#[derive(Debug, Clone)]
pub struct InlineImage(Bytes);

impl InlineImage {
    const BEFORE: &str = r#"{"messages":[{"content":{"type":"image_url","image_url":{"url":"data:"#;
    const AFTER: &str = r#""}}}]}"#;

    /// The largest picture, in bytes, whose Base64 text is shorter than `limit` characters.
    pub fn largest(limit: usize) -> usize {
        limit.saturating_sub(1) / 4 * 3
    }

    /// Writes the body for a picture of this media type.
    pub fn new(media_type: &str, picture: &[u8]) -> Self {
        let encoded = picture.len().div_ceil(3) * 4;
        let mut body = String::with_capacity(
            Self::BEFORE.len() + Self::AFTER.len() + media_type.len() + 16 + encoded,
        );
        body.push_str(Self::BEFORE);
        body.push_str(media_type);
        body.push_str(";base64,");
        BASE64.encode_string(picture, &mut body);
        body.push_str(Self::AFTER);
        Self(body.into())
    }

    pub(super) fn body(&self) -> Bytes {
        self.0.clone()
    }
}

/// Reads the embedding from an answer. Only `metadata[0].embedding` is needed.
pub(super) fn parse_answer(body: &[u8]) -> Result<Vector, String> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow, deserialize_with = "first")]
        metadata: Option<Metadata<'a>>,
    }
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        embedding: &'a RawValue,
    }
    let answer: Answer<'_> =
        serde_json::from_slice(body).map_err(|error| format!("no embedding: {error}"))?;
    Vector::check(answer.metadata.ok_or("the answer's metadata is empty")?.embedding)
}

/// Reads a list's first item in one pass, and ignores the others.
fn first<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Option<T>, D::Error> {
    struct First<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for First<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let first = list.next_element()?;
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(first)
        }
    }
    list.deserialize_seq(First(PhantomData))
}

/// The body that announces an upload.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateAsset<'a> {
    pub(super) content_type: &'a str,
    pub(super) description: &'a str,
}

/// The answer to an announcement: where to upload.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreatedAsset {
    pub(super) asset_id: Uuid,
    pub(super) upload_url: Url,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvidia::DIMENSIONS;

    fn answer(embedding: &str) -> Vec<u8> {
        format!(r#"{{"metadata":[{{"embedding":{embedding},"frame_num":0}}],"model":"nv-dinov2"}}"#)
            .into()
    }

    fn numbers(count: usize, number: &str) -> String {
        format!("[{}]", vec![number; count].join(", "))
    }

    #[test]
    fn an_inline_body_is_written_as_documented() {
        let body = InlineImage::new("image/png", b"\xfb\xff\xfe!").body();
        assert_eq!(
            &body[..],
            br#"{"messages":[{"content":{"type":"image_url","image_url":{"url":"data:image/png;base64,+//+IQ=="}}}]}"#
        );
    }

    #[test]
    fn the_largest_inline_picture_stays_below_the_limit() {
        for limit in [200_000, 199_999, 20_001, 8] {
            let len = InlineImage::largest(limit);
            assert!(BASE64.encode(vec![0; len]).len() < limit);
            assert!(BASE64.encode(vec![0; len + 1]).len() >= limit);
        }
    }

    #[test]
    fn numbers_are_kept_exactly_as_printed() {
        let text = numbers(DIMENSIONS, "-0.0").replacen("-0.0", "1.50E-310", 1);
        assert_eq!(parse_answer(&answer(&text)).unwrap().json().get(), text);
    }

    #[test]
    fn numbers_are_accepted_in_every_notation_if_they_are_finite() {
        for number in ["0", "-1", "1e5", "-1.5E+300", "1e-999", " 1\t", &"7".repeat(308)] {
            assert!(parse_answer(&answer(&numbers(DIMENSIONS, number))).is_ok(), "{number}");
        }
        for number in ["1e999", "-1E400", &"7".repeat(310), "1,", "", "01", "+1", "1 1"] {
            assert!(parse_answer(&answer(&numbers(DIMENSIONS, number))).is_err(), "{number}");
        }
    }

    #[test]
    fn whatever_follows_the_first_embedding_is_ignored() {
        let first = numbers(DIMENSIONS, "1");
        let body = format!(r#"{{"metadata":[{{"embedding":{first}}},null,[{{}}]]}}"#);
        assert!(parse_answer(body.as_bytes()).is_ok());
    }

    #[test]
    fn anything_but_1536_finite_numbers_is_refused() {
        for embedding in [
            numbers(1535, "1"),
            numbers(1537, "1"),
            numbers(1536, "1e999"),
            numbers(1536, "NaN"),
            numbers(1536, "null"),
            numbers(1536, "\"1\""),
            numbers(1536, "[1]"),
            "[]".into(),
            "null".into(),
            "{}".into(),
            "\"AAAA\"".into(),
        ] {
            assert!(parse_answer(&answer(&embedding)).is_err(), "{embedding:.40}");
        }
        for body in [
            "",
            "{}",
            "[]",
            "null",
            "<html>",
            r#"{"metadata":[]}"#,
            r#"{"metadata":[{}]}"#,
            r#"{"metadata":null}"#,
        ] {
            assert!(parse_answer(body.as_bytes()).is_err(), "{body}");
        }
    }
}
