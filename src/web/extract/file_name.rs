//! The name that a client gives its picture: given back where it is printable, used for nothing.

/// The longest name that is given back, in characters.
const LONGEST: usize = 255;

/// The printable part of a name, or nothing if none is left.
pub(in crate::web) fn printable(name: &str) -> Option<String> {
    let name: String = name.chars().filter(|c| !is_hidden(*c)).take(LONGEST).collect();
    let name = name.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Control characters, and those that make text read other than it is: line separators, marks and
/// overrides of the writing direction, invisible fillers. The joiners within emoji stay.
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
    fn names_lose_what_cannot_be_seen_and_nothing_else() {
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
