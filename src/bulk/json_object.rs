//! Reads the text of a JSON object, and appends members to it without changing the existing text.

use std::borrow::Cow;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A member of an object: its name, and its value as text.
pub(super) type Member<'a> = (Cow<'a, str>, &'a RawValue);

/// The members of an object, in the order of the text.
///
/// # Errors
/// Why the text is not a JSON object.
pub(super) fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut members = Vec::new();
    json.deserialize_map(Collect { members: &mut members, stop_at: None })?;
    json.end()?;
    Ok(members)
}

/// The members before the first one named `name`. Does not read the text after this name.
///
/// # Errors
/// Why the text up to there is not a JSON object, or that no member has this name.
pub(super) fn members_before<'a>(
    text: &'a str,
    name: &str,
) -> Result<Vec<Member<'a>>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut members = Vec::new();
    let read = json.deserialize_map(Collect { members: &mut members, stop_at: Some(name) });
    match read {
        Ok(()) => Err(serde_json::Error::custom(format!("it has no {name}"))),
        // `Collect` stops with this error at the member with the name.
        Err(error) if error.is_data() && error.to_string().starts_with(STOPPED) => Ok(members),
        Err(error) => Err(error),
    }
}

/// The text of the error with which [`Collect`] stops.
const STOPPED: &str = "stopped at the name";

/// Collects the members before the one with the name `stop_at`, or all.
struct Collect<'m, 'a, 's> {
    members: &'m mut Vec<Member<'a>>,
    stop_at: Option<&'s str>,
}

/// A member's name. A `&str` could not contain a name with escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Visitor<'a> for Collect<'_, 'a, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            if self.stop_at == Some(&*name) {
                return Err(A::Error::custom(STOPPED));
            }
            let value = map.next_value()?;
            self.members.push((name, value));
        }
        Ok(())
    }
}

/// The object with only these members, as text. They must be the first members of `text`.
pub(super) fn cut_after(text: &str, members: &[Member<'_>]) -> String {
    if members.is_empty() {
        return "{}".into();
    }
    format!("{}}}", &text[..end_of(text, members)])
}

/// The text after the last of these members, or the whole text if there are none. They must be the first
/// members of `text`.
pub(super) fn after<'a>(text: &'a str, members: &[Member<'_>]) -> &'a str {
    &text[end_of(text, members)..]
}

/// The position after the last of these members. They must be parts of `text`.
fn end_of(text: &str, members: &[Member<'_>]) -> usize {
    let Some((_, last)) = members.last() else { return 0 };
    // `last` is a part of `text`, so the difference of their addresses is its position.
    let start = last.get().as_ptr().addr() - text.as_ptr().addr();
    start + last.get().len()
}

/// Appends members, written as JSON without braces, to the text of an object.
pub(super) fn append(object: &str, members: &str) -> String {
    let without_brace = object.trim_end().strip_suffix('}').unwrap_or(object);
    let is_empty = without_brace.trim() == "{";
    let comma = if is_empty { "" } else { "," };
    format!("{without_brace}{comma}{members}}}")
}

/// The value of a field. A dot in `path` separates the name of an object from that of a field inside it,
/// or is itself part of a name.
pub(super) fn field<'a>(members: &[Member<'a>], path: &str) -> Option<&'a RawValue> {
    let find =
        |name: &str| members.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
    if let Some(value) = find(path) {
        return Some(value);
    }
    path.match_indices('.').find_map(|(dot, _)| {
        let inner = self::members(find(&path[..dot])?.get()).ok()?;
        field(&inner, &path[dot + 1..])
    })
}

/// The value as a string: the content of a JSON string, or the text of a number. `None` for any other
/// value.
pub(super) fn as_string(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'-' | b'0'..=b'9' => Some(value.get().to_owned()),
        _ => None,
    }
}

/// Writes a text as a JSON string.
pub(super) fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Replaces line breaks by spaces. In valid JSON, line breaks are only between tokens.
pub(super) fn on_one_line(text: &str) -> Cow<'_, str> {
    // A vector's text is long. In long texts, two searches for one byte each are many times as fast as one
    // search for two characters.
    let has_break = [b'\n', b'\r'].iter().any(|byte| text.as_bytes().contains(byte));
    if has_break { text.replace(['\n', '\r'], " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value_of(text: &str, path: &str) -> Option<String> {
        field(&members(text).unwrap(), path).map(|value| value.get().to_owned())
    }

    #[test]
    fn a_dot_separates_names_or_is_part_of_a_name() {
        let text =
            r#"{"a": {"b": {"c": 1}, "b.d": 2}, "a.e": 3, "images": {"profile_image": "x"}}"#;
        for (path, value) in [
            ("a.b.c", Some("1")),
            ("a.b.d", Some("2")),
            ("a.e", Some("3")),
            ("images.profile_image", Some("\"x\"")),
            ("a.x", None),
            ("x", None),
            ("a.b.c.d", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(value_of(text, path).as_deref(), value, "{path}");
        }
    }

    #[test]
    fn members_before_a_name_are_read_without_the_rest_and_a_text_without_the_name_is_refused() {
        let text = r#"{"a\"": [1, 2], "b": "x", "vector": [1, 2, garbage"#;
        let members = members_before(text, "vector").unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!(cut_after(text, &members), r#"{"a\"": [1, 2], "b": "x"}"#);
        assert!(members_before(r#"{"a": 1}"#, "vector").is_err());
        assert!(members_before(r#"{"a": "#, "vector").is_err());
        assert!(members_before("[1]", "vector").is_err());
    }

    #[test]
    fn members_are_appended_to_an_empty_object_and_to_an_object_with_spaces() {
        assert_eq!(append("{}", "\"a\":1"), r#"{"a":1}"#);
        assert_eq!(append("{ }", "\"a\":1"), r#"{ "a":1}"#);
        assert_eq!(append(r#"{"b" : 1.50 } "#, "\"a\":1"), r#"{"b" : 1.50 ,"a":1}"#);
    }

    proptest! {
        #[test]
        fn cutting_off_an_appended_member_restores_the_text_of_the_object(
            names in proptest::collection::btree_map("\\PC{0,6}", "\\PC{0,9}", 0..6),
        ) {
            let object = serde_json::to_string(&names).unwrap();
            prop_assume!(!names.contains_key("added"));
            let extended = append(&object, "\"added\":[1]");
            let before = members_before(&extended, "added").unwrap();
            prop_assert_eq!(cut_after(&extended, &before), object);
            prop_assert!(members(&extended).is_ok());
        }
    }
}
