//! The result of one check, as it is printed.

use std::fmt;

/// The most characters of a line, whatever the terminal's width. Only a line whose text is a single word
/// may be longer.
const MAX_LINE_WIDTH: usize = 80;

/// The width of the two columns before the text: 6 characters for the state, and 10 for the subject.
const INDENT: usize = 16;

/// The result of one check.
pub(super) struct Finding {
    /// What was checked, in one word.
    pub subject: &'static str,
    pub state: State,
    /// What was found. For a fault, also how to fix it.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ok,
    /// The operator should know this, but the service works.
    Note,
    /// The operator must fix this, or the service does not work.
    Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Fault => "FAULT",
        };
        let lines = wrap(&self.text, MAX_LINE_WIDTH - INDENT);
        write!(f, "{state:<6}{:<10}{}", self.subject, lines.join(&format!("\n{:INDENT$}", "")))
    }
}

/// Breaks a text into lines of at most `width` characters. A longer word, such as a path, is not broken,
/// so that it can be copied: it gets a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Finding {
    pub(super) fn new(subject: &'static str, state: State, text: impl Into<String>) -> Self {
        Self { subject, state, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_long_text_are_aligned_and_no_word_is_broken() {
        let path = "/a-path-that-is-longer-than-a-line/".repeat(3);
        let words = "does not exist yet: ".repeat(6);
        let finding = Finding::new("folder", State::Note, format!("{words}{path} {words}"));
        let text = finding.to_string();
        let (first, rest) = text.split_once('\n').unwrap();
        assert!(first.starts_with("note  folder    does not"), "{text}");
        let has_indent = |line: &str| line.find(|c| c != ' ') == Some(INDENT);
        assert!(rest.lines().all(has_indent), "{text}");
        let is_narrow = |line: &str| line.len() <= MAX_LINE_WIDTH || line.trim() == path;
        assert!(text.lines().all(is_narrow) && text.contains(&path), "{text}");
        // The first line is full: it has no room for a space and "exist", the longest of the words.
        assert!(first.len() > MAX_LINE_WIDTH - "exist".len() - 1, "{text}");
        let words_of = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // The first two words are the state and the subject.
        assert_eq!(words_of(&text)[2..], words_of(&finding.text));
    }
}
