//! Parses `.env`: lines of `NAME=value`, whose values are taken literally.
//!
//! The libraries for this format substitute variables, and replace an unknown variable by nothing.
//! A client key that contains a `$` would become shorter or empty, and no longer protect the service.
//! This parser substitutes nothing. It accepts a `$` only in single quotes, because other programs that
//! read the file substitute variables everywhere else.

/// An invalid line. The message never quotes the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(".env, line {line}: {reason}")]
pub(super) struct LineError<'a> {
    /// The name of the variable, if the line has a valid name.
    pub name: Option<&'a str>,
    /// The line's number, counted from 1.
    line: usize,
    reason: &'static str,
}

/// Parses each line into a name and a value. Skips empty lines and comments. Ignores a byte order
/// mark, Windows line ends, and `export` before a name.
pub(super) fn parse(text: &str) -> Vec<Result<(&str, &str), LineError<'_>>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parsed_lines = Vec::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if !line.is_empty() && !line.starts_with('#') {
            let parsed = parse_line(line);
            parsed_lines.push(parsed.map_err(|(name, reason)| LineError {
                name,
                line: number,
                reason,
            }));
        }
    }
    parsed_lines
}

/// Parses a line into a name and a value. An error consists of the name, if the line has a valid one,
/// and the reason.
fn parse_line(text: &str) -> Result<(&str, &str), (Option<&str>, &'static str)> {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let exported = text.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    match exported.unwrap_or(text).split_once('=') {
        Some((name, value)) if is_name(name.trim()) => {
            let name = name.trim();
            Ok((name, parse_value(value).map_err(|reason| (Some(name), reason))?))
        }
        _ => Err((None, "it is not NAME=value")),
    }
}

/// Parses the text after `=`.
fn parse_value(text: &str) -> Result<&str, &'static str> {
    const DOLLAR: &str =
        "it contains a $, and nothing is substituted here; put the value in single quotes";
    let trimmed = text.trim_start();
    let value = match trimmed.chars().next() {
        // In single quotes, a `$` is accepted.
        Some('\'') => return parse_quoted(&trimmed[1..], '\''),
        Some('"') => parse_quoted(&trimmed[1..], '"')?,
        // `trimmed` lacks the blank that makes the rest of `A= # comment` a comment.
        _ => without_comment(text).trim(),
    };
    if value.contains('$') { Err(DOLLAR) } else { Ok(value) }
}

/// Removes a comment, which begins with a `#` after a space or tab.
fn without_comment(text: &str) -> &str {
    let is_after_blank = |(at, _): &(usize, &str)| text[..*at].ends_with([' ', '\t']);
    match text.match_indices('#').find(is_after_blank) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// Parses a quoted value. `text` begins after the opening quote.
fn parse_quoted(text: &str, quote: char) -> Result<&str, &'static str> {
    let (value, rest) = text.split_once(quote).ok_or("it has a quote that is not closed")?;
    let rest = rest.trim_start();
    if quote == '"' && value.contains('\\') {
        return Err(
            "it has a \\ in double quotes, which other programs read differently; use single quotes",
        );
    }
    if rest.is_empty() || rest.starts_with('#') {
        Ok(value)
    } else {
        Err("it has text after the closing quote")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The name and the value of a line, or why it is invalid.
    fn parse_one(line: &str) -> Result<(&str, &str), &'static str> {
        let mut parsed_lines = parse(line);
        assert_eq!(parsed_lines.len(), 1, "{line}");
        parsed_lines.remove(0).map_err(|error| error.reason)
    }

    #[test]
    fn a_value_is_taken_literally_without_its_quotes_blanks_and_comment() {
        // Only the whole word `export` is skipped.
        assert_eq!(parse_one("exported=b"), Ok(("exported", "b")));
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
            assert_eq!(parse_one(line), Ok(("A", value)), "{line}");
        }
    }

    #[test]
    fn invalid_lines_and_values_that_other_programs_read_differently_are_errors() {
        for line in ["A=$ecret", "A=abc$HOMEdef", "A=\"$B\"", "A=${B}", "A=a\\$b"] {
            assert!(parse_one(line).unwrap_err().contains("single quotes"), "{line}");
        }
        for line in ["A", "=b", "A B=c", "A-B=c", "A='b", "A=\"b", "A='b'c", "A=\"b\\\"c\""] {
            assert!(parse_one(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_are_ignored() {
        let parsed_lines = parse("\u{feff}A=1\r\n\r\n# B=2\r\nno setting\r\nC='3'\r\n");
        let error = LineError { name: None, line: 4, reason: "it is not NAME=value" };
        assert_eq!(parsed_lines, [Ok(("A", "1")), Err(error), Ok(("C", "3"))]);
        assert_eq!(error.to_string(), ".env, line 4: it is not NAME=value");
    }

    proptest! {
        #[test]
        fn text_in_single_quotes_is_taken_literally(value in "[^'\r\n]{0,40}") {
            let line = format!("A='{value}'");
            prop_assert_eq!(parse_one(&line), Ok(("A", value.as_str())));
        }

        #[test]
        fn the_parser_never_panics_and_every_value_is_a_part_of_the_text(text in any::<String>()) {
            for (_, value) in parse(&text).into_iter().flatten() {
                prop_assert!(text.contains(value));
            }
        }
    }
}
