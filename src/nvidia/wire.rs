//! The bodies of the requests to NVIDIA, and those of NVIDIA's responses.

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

/// The body of an inference request whose picture is an asset. The asset's id is in the request's headers.
pub(super) const ASSET_INFERENCE_BODY: &[u8] = br#"{"messages":[]}"#;

static BASE64: LazyLock<Simd> = LazyLock::new(|| Simd::standard(PAD));

/// The body of an inference request that contains the picture as Base64.
#[derive(Debug, Clone)]
pub struct InlineImage(Bytes);

impl InlineImage {
    /// The JSON before the media type.
    const BEFORE: &str = r#"{"messages":[{"content":{"type":"image_url","image_url":{"url":"data:"#;
    /// The JSON after the Base64 text.
    const AFTER: &str = r#""}}}]}"#;

    /// The size in bytes of the largest picture whose Base64 text has fewer than `base64_limit`
    /// characters.
    pub fn largest_picture(base64_limit: usize) -> usize {
        base64_limit.saturating_sub(1) / 4 * 3
    }

    /// Writes the body for a picture of this media type.
    pub fn new(media_type: &str, picture: &[u8]) -> Self {
        const SEPARATOR: &str = ";base64,";
        let json_len = Self::BEFORE.len() + media_type.len() + SEPARATOR.len() + Self::AFTER.len();
        let base64_len = picture.len().div_ceil(3) * 4;
        let mut body = String::with_capacity(json_len + base64_len);
        body.push_str(Self::BEFORE);
        body.push_str(media_type);
        body.push_str(SEPARATOR);
        BASE64.encode_string(picture, &mut body);
        body.push_str(Self::AFTER);
        Self(body.into())
    }

    pub(super) fn body(&self) -> Bytes {
        self.0.clone()
    }
}

/// Reads `metadata[0].embedding` from the body of a response.
pub(super) fn parse_response(body: &[u8]) -> Result<Vector, String> {
    #[derive(Deserialize)]
    struct InferenceResponse<'a> {
        #[serde(borrow, deserialize_with = "first_item")]
        metadata: Option<Metadata<'a>>,
    }
    #[derive(Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        embedding: &'a RawValue,
    }
    let response: InferenceResponse<'_> =
        serde_json::from_slice(body).map_err(|error| format!("no embedding: {error}"))?;
    Vector::from_json(response.metadata.ok_or("the response's metadata is empty")?.embedding)
}

/// Deserializes the first item of a list, and ignores all other items. Returns `None` for an empty list.
fn first_item<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    list: D,
) -> Result<Option<T>, D::Error> {
    struct FirstItem<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstItem<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let item = list.next_element()?;
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok(item)
        }
    }
    list.deserialize_seq(FirstItem(PhantomData))
}

/// The body of a request to create an asset.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreateAsset<'a> {
    pub(super) content_type: &'a str,
    pub(super) description: &'a str,
}

/// The response to [`CreateAsset`].
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

    fn response(embedding: &str) -> Vec<u8> {
        format!(r#"{{"metadata":[{{"embedding":{embedding},"frame_num":0}}],"model":"nv-dinov2"}}"#)
            .into()
    }

    fn numbers(count: usize, number: &str) -> String {
        format!("[{}]", vec![number; count].join(", "))
    }

    #[test]
    fn an_inline_body_has_the_documented_form() {
        let body = InlineImage::new("image/png", b"\xfb\xff\xfe!").body();
        assert_eq!(
            &body[..],
            br#"{"messages":[{"content":{"type":"image_url","image_url":{"url":"data:image/png;base64,+//+IQ=="}}}]}"#
        );
    }

    #[test]
    fn the_largest_picture_is_the_longest_whose_base64_text_is_below_the_limit() {
        for limit in [200_000, 199_999, 20_001, 8] {
            let len = InlineImage::largest_picture(limit);
            assert!(BASE64.encode(vec![0; len]).len() < limit);
            assert!(BASE64.encode(vec![0; len + 1]).len() >= limit);
        }
    }

    #[test]
    fn a_vector_contains_exactly_the_text_of_the_embedding() {
        let text = numbers(DIMENSIONS, "-0.0").replacen("-0.0", "1.50E-310", 1);
        assert_eq!(parse_response(&response(&text)).unwrap().json().get(), text);
    }

    #[test]
    fn finite_numbers_are_accepted_in_every_json_notation_and_all_else_is_refused() {
        for number in ["0", "-1", "1e5", "-1.5E+300", "1e-999", " 1\t", &"7".repeat(308)] {
            assert!(parse_response(&response(&numbers(DIMENSIONS, number))).is_ok(), "{number}");
        }
        // The first three are too large for a 64-bit float.
        for number in ["1e999", "-1E400", &"7".repeat(310), "1,", "", "01", "+1", "1 1"] {
            assert!(parse_response(&response(&numbers(DIMENSIONS, number))).is_err(), "{number}");
        }
    }

    #[test]
    fn all_elements_of_the_metadata_except_the_first_are_ignored() {
        let first = numbers(DIMENSIONS, "1");
        let body = format!(r#"{{"metadata":[{{"embedding":{first}}},null,[{{}}]]}}"#);
        assert!(parse_response(body.as_bytes()).is_ok());
    }

    #[test]
    fn a_response_without_exactly_1536_finite_numbers_is_refused() {
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
            assert!(parse_response(&response(&embedding)).is_err(), "{embedding:.40}");
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
            assert!(parse_response(body.as_bytes()).is_err(), "{body}");
        }
    }
}
