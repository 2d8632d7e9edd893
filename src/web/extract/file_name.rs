//! Cleans the name that a client gives its picture. Answers repeat the name, and nothing else uses
//! it.

/// The longest name that answers repeat, in characters.
const LONGEST: usize = 255;

/// Returns the printable part of a name, or `None` if nothing is left.
pub(in crate::web) fn printable(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !is_hidden(*c)).take(LONGEST).collect();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Whether a character is invisible or makes text look different from what it is: control
/// characters, line separators, marks and overrides of the writing direction, invisible fillers.
/// Joiners, which emoji need, are not hidden.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_lose_only_their_invisible_characters() {
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
        assert_eq!(printable(&"a".repeat(4000)).unwrap().len(), LONGEST);
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(name in any::<String>()) {
            prop_assert!(!printable(&name).unwrap_or_default().contains(char::is_control));
        }
    }
}
