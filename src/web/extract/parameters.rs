//! Parses header values with parameters, such as `form-data; name="file"`.
//!
//! Clients write such values in many ways. The parser accepts blanks anywhere, names in upper or
//! lower case, and values without the quotes that they should have. It gives no value for a repeated
//! parameter, because another parser might use another of its values.

use std::borrow::Cow;

/// A parameter's name and value.
type Parameter<'a> = (&'a [u8], Cow<'a, [u8]>);

/// A header value: the text before the first semicolon, and the parameters.
#[derive(Debug)]
pub(super) struct Parameterized<'a> {
    /// The text before the first semicolon, trimmed.
    main: &'a [u8],
    parameters: Vec<Parameter<'a>>,
}

impl<'a> Parameterized<'a> {
    /// Parses a header value.
    pub(super) fn parse(text: &'a [u8]) -> Self {
        let (main, mut rest) = split_at_semicolon(text);
        let mut parameters = Vec::new();
        while let Some(text) = rest {
            let (parameter, after) = parse_parameter(text);
            parameters.extend(parameter);
            rest = after;
        }
        Self { main: main.trim_ascii(), parameters }
    }

    /// Whether the text before the first semicolon is `expected`, in upper or lower case.
    pub(super) fn is(&self, expected: &str) -> bool {
        self.main.eq_ignore_ascii_case(expected.as_bytes())
    }

    /// Returns the value of the parameter with this name. The case of the name does not matter. Returns
    /// `None` if there is no such parameter, or if there are several: another parser might use another one.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        let matches = |(other, _): &&(&[u8], _)| other.eq_ignore_ascii_case(name.as_bytes());
        let mut values = self.parameters.iter().filter(matches).map(|(_, value)| &**value);
        let first = values.next()?;
        if values.next().is_none() { Some(first) } else { None }
    }
}

fn split_at_semicolon(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == b';') {
        Some(index) => (&text[..index], Some(&text[index + 1..])),
        None => (text, None),
    }
}

/// Parses the first parameter in the text. Returns the parameter, or `None` if it has no equals sign. Also
/// returns the text after the semicolon that ends the parameter, or `None` without such a semicolon.
fn parse_parameter(text: &[u8]) -> (Option<Parameter<'_>>, Option<&[u8]>) {
    let is_end = |byte: &u8| matches!(byte, b'=' | b';');
    let name_end = text.iter().position(is_end).unwrap_or(text.len());
    let (name, rest) = (text[..name_end].trim_ascii(), &text[name_end..]);
    let Some(rest) = rest.strip_prefix(b"=") else {
        return (None, rest.strip_prefix(b";")); // a name without an equals sign is ignored
    };
    match rest.trim_ascii_start().strip_prefix(b"\"") {
        Some(rest) => {
            let (value, rest) = parse_quoted(rest);
            // Text between the closing quote and the semicolon is ignored.
            (Some((name, value)), split_at_semicolon(rest).1)
        }
        None => {
            let (value, rest) = split_at_semicolon(rest);
            (Some((name, value.trim_ascii().into())), rest)
        }
    }
}

/// Parses a quoted value from the text after the opening quote. Returns the value, and the text
/// after the closing quote.
///
/// A backslash escapes a quote or a backslash. Before any other byte it is part of the value, as in
/// Windows paths. Without a closing quote, the value extends to the end of the text.
fn parse_quoted(text: &[u8]) -> (Cow<'_, [u8]>, &[u8]) {
    let mut unescaped = Vec::new();
    // `text[copied_to..]` is not in `unescaped` yet. `copied_to` is 0 until an escape is found.
    let mut copied_to = 0;
    let mut index = 0;
    loop {
        match text[index..] {
            [b'\\', b'"' | b'\\', ..] => {
                unescaped.extend_from_slice(&text[copied_to..index]);
                copied_to = index + 1;
                index += 2;
            }
            [b'"', ..] | [] => break,
            _ => index += 1,
        }
    }
    let rest = text.get(index + 1..).unwrap_or_default();
    if copied_to == 0 {
        return (Cow::Borrowed(&text[..index]), rest);
    }
    unescaped.extend_from_slice(&text[copied_to..index]);
    (Cow::Owned(unescaped), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a parameter's value as text.
    fn get(text: &str, name: &str) -> Option<String> {
        let parsed = Parameterized::parse(text.as_bytes());
        parsed.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn a_parameter_is_read_in_every_spelling() {
        for (text, expected) in [
            ("v; a=b", "b"),
            ("v;a=b", "b"),
            ("v ; a = b ", "b"),
            ("v;\ta=\t\"b\"\t;c=d", "b"),
            ("v; A=b", "b"),
            ("v; a=\"b c; d=e\"", "b c; d=e"),
            ("v; a=b c; d=e", "b c"),
            ("v; a=b/c=d?e", "b/c=d?e"),
            ("v; a=\"\"", ""),
            ("v; a=", ""),
            ("v; a=\"b\\\"c\\\\d\"", "b\"c\\d"),
            ("v; a=\"C:\\new\\a.jpg\"", "C:\\new\\a.jpg"),
            ("v; a=\"b\" junk; c=d", "b"),
            ("v; a=\"b", "b"),
            ("v; a=\"b\\", "b\\"),
            ("v;; word; a=b;", "b"),
            ("v; c=\"my a=x; a=y\"; a=b", "b"),
            ("v; ca=x; a=b; aa=y", "b"),
            ("v; a=Strandläufer", "Strandläufer"),
        ] {
            assert_eq!(get(text, "a").as_deref(), Some(expected), "{text}");
            assert!(Parameterized::parse(text.as_bytes()).is("V"), "{text}");
        }
    }

    #[test]
    fn get_returns_none_for_a_missing_or_repeated_parameter() {
        for text in
            ["", "v", "v;", "v; a", "a=b", "v; b=a", "v; a=b; a=c", "v; a=b; A=b", "v; x=\"; a=b"]
        {
            assert_eq!(get(text, "a"), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_quoted_value_is_read_beside_any_other_parameter(
            value in "\\PC{0,30}", other_value in "\\PC{0,30}", is_first in any::<bool>(),
        ) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let a = format!("a=\"{}\"", escape(&value));
            let b = format!("b=\"{}\"", escape(&other_value));
            let text = if is_first { format!("v; {a}; {b}") } else { format!("v; {b}; {a}") };
            prop_assert_eq!(get(&text, "a"), Some(value));
        }

        #[test]
        fn parsing_never_panics_and_returns_no_more_bytes_than_the_text_has(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "[a=\";\\\\ ]{0,30}".prop_map(String::into_bytes),
            ],
        ) {
            let parsed = Parameterized::parse(&text);
            let lengths = parsed.parameters.iter().map(|(name, value)| name.len() + value.len());
            let total: usize = lengths.sum();
            prop_assert!(total <= text.len());
        }
    }
}
