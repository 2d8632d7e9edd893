//! Parses header values with parameters, such as `form-data; name="file"`.
//!
//! Clients write these in many ways, so the parser accepts whatever is harmless: blanks anywhere,
//! names in any case, values that should be quoted and are not. It does not accept what two parsers
//! might read differently.

use std::borrow::Cow;

/// A parameter's name and value.
type Parameter<'a> = (&'a [u8], Cow<'a, [u8]>);

/// A header value: the text before the first semicolon, and the parameters.
#[derive(Debug)]
pub(super) struct Parameterized<'a> {
    /// The text before the first semicolon, trimmed.
    pub value: &'a [u8],
    parameters: Vec<Parameter<'a>>,
}

impl<'a> Parameterized<'a> {
    /// Parses a header value.
    pub(super) fn parse(text: &'a [u8]) -> Self {
        let (value, mut rest) = split_at_semicolon(text);
        let mut parameters = Vec::new();
        while let Some(text) = rest {
            let (parameter, behind) = parameter(text);
            parameters.extend(parameter);
            rest = behind;
        }
        Self { value: value.trim_ascii(), parameters }
    }

    /// Whether the text before the first semicolon is `value`, in any case.
    pub(super) fn is(&self, value: &str) -> bool {
        self.value.eq_ignore_ascii_case(value.as_bytes())
    }

    /// Returns the parameter with this name, in any case; `None` if there are several, since it is
    /// unknown which of them another parser would use.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        let is_named = |(known, _): &&(&[u8], _)| known.eq_ignore_ascii_case(name.as_bytes());
        let mut values = self.parameters.iter().filter(is_named).map(|(_, value)| &**value);
        let first = values.next()?;
        values.next().is_none().then_some(first)
    }
}

fn split_at_semicolon(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == b';') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Parses the first parameter, if it has a value, and returns the text after its semicolon.
fn parameter(text: &[u8]) -> (Option<Parameter<'_>>, Option<&[u8]>) {
    let is_end = |byte: &u8| matches!(byte, b'=' | b';');
    let name_end = text.iter().position(is_end).unwrap_or(text.len());
    let (name, rest) = (text[..name_end].trim_ascii(), &text[name_end..]);
    let Some(rest) = rest.strip_prefix(b"=") else {
        return (None, rest.strip_prefix(b";")); // a name without a value is ignored
    };
    match rest.trim_ascii_start().strip_prefix(b"\"") {
        Some(rest) => {
            let (value, rest) = quoted(rest);
            // Text between the closing quote and the semicolon is ignored.
            (Some((name, value)), split_at_semicolon(rest).1)
        }
        None => {
            let (value, rest) = split_at_semicolon(rest);
            (Some((name, value.trim_ascii().into())), rest)
        }
    }
}

/// Parses a quoted value from the text after the opening quote, and returns the rest, too. A
/// backslash escapes a quote or a backslash; before anything else it stands for itself, as in
/// Windows paths. A missing closing quote is taken to be at the end.
fn quoted(text: &[u8]) -> (Cow<'_, [u8]>, &[u8]) {
    let mut value = Cow::Borrowed(&text[..0]);
    let mut from = 0;
    let mut at = 0;
    loop {
        match text[at..] {
            [b'\\', b'"' | b'\\', ..] => {
                value.to_mut().extend_from_slice(&text[from..at]);
                from = at + 1;
                at += 2;
            }
            [b'"', ..] | [] => break,
            _ => at += 1,
        }
    }
    let rest = text.get(at + 1..).unwrap_or_default();
    if from == 0 {
        return (Cow::Borrowed(&text[..at]), rest);
    }
    value.to_mut().extend_from_slice(&text[from..at]);
    (value, rest)
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
    fn the_many_spellings_of_a_parameter_are_read() {
        for (text, a) in [
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
            assert_eq!(get(text, "a").as_deref(), Some(a), "{text}");
            assert!(Parameterized::parse(text.as_bytes()).is("V"), "{text}");
        }
    }

    #[test]
    fn a_missing_or_ambiguous_parameter_is_none() {
        for text in
            ["", "v", "v;", "v; a", "a=b", "v; b=a", "v; a=b; a=c", "v; a=b; A=b", "v; x=\"; a=b"]
        {
            assert_eq!(get(text, "a"), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_quoted_value_comes_back_whatever_stands_around_it(
            value in "\\PC{0,30}", other in "\\PC{0,30}", is_first in any::<bool>(),
        ) {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let (own, other) =
                (format!("a=\"{}\"", quote(&value)), format!("b=\"{}\"", quote(&other)));
            let text =
                if is_first { format!("v; {own}; {other}") } else { format!("v; {other}; {own}") };
            prop_assert_eq!(get(&text, "a"), Some(value));
        }

        #[test]
        fn no_text_makes_it_panic_and_no_value_is_longer_than_it(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "[a=\";\\\\ ]{0,30}".prop_map(String::into_bytes),
            ],
        ) {
            let parsed = Parameterized::parse(&text);
            let all: usize = parsed.parameters.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(all <= text.len());
        }
    }
}
