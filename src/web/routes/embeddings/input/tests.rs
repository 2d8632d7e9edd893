//! Tests of reading the pictures of a batch.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::base64_text::decode;

const RULES: Rules = Rules { max_pictures: 4, model: "nvidia/nv-dinov2" };

/// Half of the strings in [`any_field_value`] are from this list, and the others are random. "QUJD" is the
/// Base64 of "ABC".
const TEXTS: &[&str] =
    &["QUJD", "data:,QUJD", "http://a/b", "two words", "", "data:", "QQ==QQ==", "é"];

/// The names of the fields in [`any_field_value`].
const KEYS: &[&str] = &["image", "image_url", "content", "text", "type", "url", "role"];

/// Parses a body. Returns each item's source and decoded bytes, or the sentence of the item's error.
/// A URL has no bytes.
fn sources_in(body: &Value) -> Vec<Result<(Source, Vec<u8>), String>> {
    let batch = parse(body.to_string().into_bytes(), RULES).unwrap();
    let items = batch.items.into_iter();
    let sources = items.map(|item| match item.source {
        Ok(Source::Url(url)) => Ok((Source::Url(url), Vec::new())),
        Ok(source @ (Source::DataUrl(_) | Source::Base64(_))) => {
            let (Source::DataUrl(range) | Source::Base64(range)) = &source else { unreachable!() };
            let bytes = decode(&batch.body[range.clone()]).unwrap();
            Ok((source, bytes))
        }
        Err(error) => Err(error.detail()),
    });
    sources.collect()
}

#[test]
fn a_url_and_a_data_url_and_base64_are_distinguished() {
    let input = json!([" HTTPS://example.com/a.jpg", " Data:image/png;base64, QUJD", "QUJD\n"]);
    let sources = sources_in(&json!({ "input": input }));
    let [url, data_url, base64] = &sources[..] else { panic!("{sources:?}") };
    let url = url.as_ref().unwrap();
    assert_eq!(url.0, Source::Url("HTTPS://example.com/a.jpg".into()));
    for (source, is_data_url) in [(data_url, true), (base64, false)] {
        let (source, bytes) = source.as_ref().unwrap();
        assert_eq!(bytes, b"ABC");
        assert_eq!(matches!(source, Source::DataUrl(_)), is_data_url);
    }
}

#[test]
fn only_the_first_elements_of_a_long_list_are_stored_but_all_are_counted() {
    let (count, limit) = (1_000_000, 4);
    let list = format!("[{}1]", "1,".repeat(count - 1));
    let list = RawValue::from_string(list).unwrap();
    let elements = json::elements(&list, limit).unwrap();
    assert_eq!((elements.prefix.len(), elements.count), (limit, count));
}

/// Random JSON values that resemble the field `input` or `messages` of a batch.
fn any_field_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        proptest::sample::select(TEXTS).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let (max_depth, typical_size, typical_branches) = (4, 20, 4);
    leaf.prop_recursive(max_depth, typical_size, typical_branches, |inner| {
        let key = proptest::sample::select(KEYS);
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::hash_map(key, inner, 0..4)
                .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn each_item_of_an_accepted_batch_has_a_source_or_an_error_and_a_refusal_names_the_field(
        value in any_field_value()
            .prop_filter("a field that is null counts as absent", |value| !value.is_null()),
        is_messages in any::<bool>(),
    ) {
        let field = if is_messages { "messages" } else { "input" };
        let body = json!({ field: value });
        match parse(body.to_string().into_bytes(), RULES) {
            Ok(batch) => {
                prop_assert!((1..=RULES.max_pictures).contains(&batch.items.len()));
                for item in &batch.items {
                    prop_assert!(item.place.starts_with(field));
                }
                // `sources_in` panics if a Base64 text cannot be decoded.
                for source in sources_in(&body) {
                    if let Err(detail) = source {
                        prop_assert!(detail.ends_with('.'), "{}", detail);
                    }
                }
            }
            Err(error) => prop_assert!(error.detail().contains(field), "{}", error.detail()),
        }
    }

    #[test]
    fn parsing_never_panics(text in any::<String>()) {
        let as_body = text.clone();
        let as_unquoted_input = format!("{{\"input\": {text}}}");
        let as_string_in_input = json!({ "input": text }).to_string();
        for body in [as_body, as_unquoted_input, as_string_in_input] {
            let _ = parse(body.into_bytes(), RULES);
        }
    }
}
