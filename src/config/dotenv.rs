//! Parses `.env`: lines of `NAME=value`, which are taken literally.
//!
//! The libraries for this format substitute variables, and replace unknown ones by nothing: a key
//! with a `$` in it would become shorter or empty, and no longer protect the service. This parser
//! substitutes nothing. Since other programs that read the file would, a `$` must stand in single
//! quotes.

/// A line that is not `NAME=value`, or whose value is ambiguous. The message never quotes the
/// value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(".env, line {line}: {fault}")]
pub(super) struct Fault<'a> {
    /// The name of the variable, if the line has one.
    pub name: Option<&'a str>,
    /// The line's number, counted from 1.
    line: usize,
    fault: &'static str,
}

/// Parses each line into a name and a value, or a fault. Skips empty lines and comments, and
/// ignores a byte order mark, Windows line ends, and a leading `export`.
pub(super) fn parse(text: &str) -> Vec<Result<(&str, &str), Fault<'_>>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim).zip(1..);
    let lines = lines.filter(|(text, _)| !text.is_empty() && !text.starts_with('#'));
    let fault = |line, (name, fault)| Fault { name, line, fault };
    lines.map(|(text, line)| setting(text).map_err(|error| fault(line, error))).collect()
}

fn setting(text: &str) -> Result<(&str, &str), (Option<&str>, &'static str)> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let exported = text.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    match exported.unwrap_or(text).split_once('=') {
        Some((name, value)) if is_name(name.trim()) => {
            let name = name.trim();
            Ok((name, self::value(value).map_err(|fault| (Some(name), fault))?))
        }
        _ => Err((None, "it is not NAME=value")),
    }
}

/// Parses the value from the text after `=`.
fn value(text: &str) -> Result<&str, &'static str> {
    const DOLLAR: &str =
        "it holds a $, and nothing is substituted here; put the value in single quotes";
    let bare = text.trim_start();
    let value = match bare.chars().next() {
        Some('\'') => return quoted(&bare[1..], '\''),
        Some('"') => quoted(&bare[1..], '"')?,
        _ => without_comment(text).trim(),
    };
    if value.contains('$') { Err(DOLLAR) } else { Ok(value) }
}

/// Drops a comment, which begins at a `#` after a blank.
fn without_comment(text: &str) -> &str {
    let is_comment = |(at, _): &(usize, &str)| text[..*at].ends_with([' ', '\t']);
    let comment = text.match_indices('#').find(is_comment);
    comment.map_or(text, |(at, _)| &text[..at])
}

/// Parses a quoted value. `text` begins after the opening quote.
fn quoted(text: &str, quote: char) -> Result<&str, &'static str> {
    let (value, rest) = text.split_once(quote).ok_or("a quote is not closed on it")?;
    let rest = rest.trim_start();
    if quote == '"' && value.contains('\\') {
        return Err(
            "it has a \\ in double quotes, which is read differently elsewhere; use single quotes",
        );
    }
    if rest.is_empty() || rest.starts_with('#') {
        Ok(value)
    } else {
        Err("something follows the closing quote")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> Result<(&str, &str), &'static str> {
        let mut lines = parse(line);
        assert_eq!(lines.len(), 1, "{line}");
        lines.remove(0).map_err(|fault| fault.fault)
    }

    #[test]
    fn values_are_taken_literally() {
        assert_eq!(one("exported=b"), Ok(("exported", "b")));
        for (line, value) in [
            ("A=b", "b"),
            ("export A=b", "b"),
            (" A = b c ", "b c"),
            ("A=", ""),
            ("A=''", ""),
            ("A=my-app/1.0 (ops@example.com)", "my-app/1.0 (ops@example.com)"),
            (
                "A=Mozilla/5.0 (compatible; imagesvc/1.0; +https://example.com/#bot) ",
                "Mozilla/5.0 (compatible; imagesvc/1.0; +https://example.com/#bot)",
            ),
            ("A=b # a comment", "b"),
            ("A=b\t# a comment", "b"),
            ("A= # a comment", ""),
            ("A=#b", "#b"),
            ("export\tA=b", "b"),
            ("A=b#c", "b#c"),
            ("A='$ecret # \"x\" \\n'  # a comment", "$ecret # \"x\" \\n"),
            ("A=\"b c # d\"", "b c # d"),
            ("A=b\\nc", "b\\nc"),
            ("A=it's", "it's"),
            ("A=b=c", "b=c"),
        ] {
            assert_eq!(one(line), Ok(("A", value)), "{line}");
        }
    }

    #[test]
    fn a_value_that_other_programs_would_read_differently_is_a_fault() {
        for line in ["A=$ecret", "A=abc$HOMEdef", "A=\"$B\"", "A=${B}", "A=a\\$b"] {
            assert!(one(line).unwrap_err().contains("single quotes"), "{line}");
        }
        for line in ["A", "=b", "A B=c", "A-B=c", "A='b", "A=\"b", "A='b'c", "A=\"b\\\"c\""] {
            assert!(one(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_do_not_matter() {
        let lines = parse("\u{feff}A=1\r\n\r\n# B=2\r\nno line\r\nC='3'\r\n");
        let fault = Fault { name: None, line: 4, fault: "it is not NAME=value" };
        assert_eq!(lines, [Ok(("A", "1")), Err(fault), Ok(("C", "3"))]);
        assert_eq!(fault.to_string(), ".env, line 4: it is not NAME=value");
    }

    proptest! {
        #[test]
        fn text_in_single_quotes_is_taken_literally(value in "[^'\r\n]{0,40}") {
            let line = format!("A='{value}'");
            prop_assert_eq!(one(&line), Ok(("A", value.as_str())));
        }

        #[test]
        fn no_file_makes_it_panic_and_no_value_is_changed(text in any::<String>()) {
            for (_, value) in parse(&text).into_iter().flatten() {
                prop_assert!(text.contains(value));
            }
        }
    }
}
