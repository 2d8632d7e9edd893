//! Reads a header's value with parameters, as forms have them: `form-data; name="file"`.
//!
//! Every client writes these its own way, so what is harmless is taken: blanks anywhere, names in any
//! case, values that want quotes and have none. What two readers could take for two things is not.

use std::borrow::Cow;

/// A parameter's name and value.
type Parameter<'a> = (&'a [u8], Cow<'a, [u8]>);

/// A header's value: what stands before the first semicolon, and the parameters.
#[derive(Debug)]
pub(super) struct Parameterized<'a> {
    /// Without blanks around it.
    pub value: &'a [u8],
    parameters: Vec<Parameter<'a>>,
}

impl<'a> Parameterized<'a> {
    /// Takes a value apart.
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

    /// Whether the value is this, in any case.
    pub(super) fn is(&self, value: &str) -> bool {
        self.value.eq_ignore_ascii_case(value.as_bytes())
    }

    /// The parameter of this name, in any case; none where there is more than one, since nobody can
    /// know which of them another reader would take.
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

/// The first parameter, if it is one, and what follows its semicolon.
fn parameter(text: &[u8]) -> (Option<Parameter<'_>>, Option<&[u8]>) {
    let is_end = |byte: &u8| matches!(byte, b'=' | b';');
    let name_end = text.iter().position(is_end).unwrap_or(text.len());
    let (name, rest) = (text[..name_end].trim_ascii(), &text[name_end..]);
    let Some(rest) = rest.strip_prefix(b"=") else {
        return (None, rest.strip_prefix(b";")); // a word without a value says nothing
    };
    match rest.trim_ascii_start().strip_prefix(b"\"") {
        Some(rest) => {
            let (value, rest) = quoted(rest);
            // What follows the closing quote belongs to no name.
            (Some((name, value)), split_at_semicolon(rest).1)
        }
        None => {
            let (value, rest) = split_at_semicolon(rest);
            (Some((name, value.trim_ascii().into())), rest)
        }
    }
}

/// What stands in quotes, the first of which is gone, and what follows. A backslash makes the next
/// quote or backslash plain; before anything else it is one: Windows has it in paths. A quote that
/// is never closed ends with the text.
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

    /// A parameter's value as text.
    fn get(text: &str, name: &str) -> Option<String> {
        let parsed = Parameterized::parse(text.as_bytes());
        parsed.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn what_clients_write_is_read() {
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
    fn what_is_not_there_or_not_clear_is_none() {
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
