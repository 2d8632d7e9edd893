//! Cleans names that a client sent, such as a picture's file name or a model's name. The service uses such
//! names only in answers and error messages.

/// The most characters of a name.
const MAX_CHARS: usize = 255;

/// Removes unprintable characters from a name, shortens it to [`MAX_CHARS`], and removes surrounding blanks.
/// Returns `None` if nothing is left.
pub(in crate::web) fn printable(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !is_unprintable(*c)).take(MAX_CHARS).collect();
    let name = name.trim();
    if name.is_empty() { None } else { Some(name.to_owned()) }
}

/// Whether a character is invisible or changes how other characters are displayed: control
/// characters, line separators, marks and overrides of the writing direction, invisible fillers.
/// Joiners count as printable, because combined emoji need them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unprintable_characters_are_removed_and_a_long_name_is_shortened() {
        for (name, expected) in [
            ("IMG_0042.JPG", Some("IMG_0042.JPG")),
            ("../../etc/passwd", Some("../../etc/passwd")),
            ("C:\\photos\\a.jpg", Some("C:\\photos\\a.jpg")),
            ("Strandläufer 👩\u{200d}🚀.png", Some("Strandläufer 👩\u{200d}🚀.png")),
            ("a\0b\r\nc\u{1b}[31m.jpg", Some("abc[31m.jpg")),
            ("\u{202e}gpj.exe", Some("gpj.exe")),
            (" \t\u{200b} ", None),
            ("", None),
        ] {
            assert_eq!(printable(name).as_deref(), expected, "{name:?}");
        }
        assert_eq!(printable(&"a".repeat(4000)).unwrap().len(), MAX_CHARS);
    }

    proptest! {
        #[test]
        fn the_result_contains_no_control_character(name in any::<String>()) {
            prop_assert!(!printable(&name).unwrap_or_default().contains(char::is_control));
        }
    }
}
