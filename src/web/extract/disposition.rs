//! Reads the names of the field and of the file from a part's `Content-Disposition` (RFC 7578,
//! section 4.2).

use percent_encoding::percent_decode;

use super::parameters::Parameterized;

/// The `Content-Disposition` of a part.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Disposition {
    /// The field's name. `None` if it is missing or repeated.
    pub name: Option<String>,
    /// The name that the client gave the file, possibly a path. `None` if it is missing or repeated.
    pub file_name: Option<String>,
}

impl Disposition {
    /// Parses a header's value. Invalid UTF-8 becomes replacement characters.
    pub(super) fn parse(header: &[u8]) -> Self {
        let parsed = Parameterized::parse(header);
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        // Forms should not use `filename*` (RFC 7578, section 4.2), but some clients send only
        // `filename*`. If a client sends both, `filename*` contains the exact name (RFC 6266,
        // section 4.3).
        let file_name = match parsed.get("filename*") {
            Some(value) => Some(decode_extended(value).unwrap_or_else(|| text(value))),
            None => parsed.get("filename").map(text),
        };
        Self { name: parsed.get("name").map(text), file_name }
    }
}

/// Decodes an extended value (RFC 8187), such as `UTF-8'en'a%20b.jpg`. `None` if its charset is
/// missing, or is neither UTF-8 nor ISO-8859-1. Invalid percent-encoding stays as it is.
fn decode_extended(value: &[u8]) -> Option<String> {
    let mut parts = value.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    if charset.eq_ignore_ascii_case(b"utf-8") {
        Some(percent_decode(encoded).decode_utf8_lossy().into_owned())
    } else if charset.eq_ignore_ascii_case(b"iso-8859-1") {
        Some(percent_decode(encoded).map(char::from).collect())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The names of the field and of the file.
    fn names_in(header: &str) -> (Option<String>, Option<String>) {
        let Disposition { name, file_name } = Disposition::parse(header.as_bytes());
        (name, file_name)
    }

    #[test]
    fn the_names_of_the_field_and_the_file_are_read_in_the_spellings_of_clients() {
        for (header, file_name) in [
            ("form-data; name=\"file\"; filename=\"a.jpg\"", "a.jpg"),
            ("form-data; filename=\"my name=bob.jpg\"; name=\"file\"", "my name=bob.jpg"),
            ("form-data; filename=\"; name=x\"; name=file", "; name=x"),
            ("Form-Data; NAME=\"file\"; FileName=\"a.jpg\"", "a.jpg"),
            ("form-data; name=file; filename=my photo.jpg", "my photo.jpg"),
            ("form-data; name=\"file\"; filename=\"a\\\"b.jpg\"", "a\"b.jpg"),
            ("form-data; name=\"file\"; filename=\"C:\\photos\\a.jpg\"", "C:\\photos\\a.jpg"),
            ("form-data; name=\"file\"; filename=\"\"", ""),
            ("form-data; name=\"file\"; filename=\"大.jpg\"", "大.jpg"),
            ("form-data; name=\"file\"; filename*=UTF-8''%e5%a4%a7%20a.jpg", "大 a.jpg"),
            ("form-data; name=\"file\"; filename*=utf-8'en'a.jpg", "a.jpg"),
            ("form-data; name=\"file\"; filename*=ISO-8859-1''%e9t%E9.jpg", "été.jpg"),
            ("form-data; name=\"file\"; filename*=\"UTF-8''a%22.jpg\"", "a\".jpg"),
            ("form-data; name=\"file\"; filename=\"_.jpg\"; filename*=UTF-8''%c3%a4.jpg", "ä.jpg"),
            // A value without a known charset is returned as it is.
            ("form-data; name=\"file\"; filename*=a.jpg", "a.jpg"),
            ("form-data; name=\"file\"; filename*=KOI8-R''%c1.jpg", "KOI8-R''%c1.jpg"),
            // Invalid percent-encoding stays, and invalid UTF-8 is replaced.
            ("form-data; name=\"file\"; filename*=UTF-8''%zz%ff.jpg", "%zz\u{fffd}.jpg"),
        ] {
            assert_eq!(names_in(header), (Some("file".into()), Some(file_name.into())), "{header}");
        }
    }

    #[test]
    fn a_missing_or_repeated_name_is_none_and_invalid_utf8_is_replaced() {
        for (header, file_name) in [
            ("form-data", None),
            ("form-data; filename=\"name=file\"", Some("name=file")),
            ("form-data; filename=\"a\\\"; name=\\\"file\"", Some("a\"; name=\"file")),
            ("form-data; name=\"file\"; name=\"other\"", None),
            ("form-data; xname=\"file\"", None),
        ] {
            assert_eq!(names_in(header), (None, file_name.map(str::to_owned)), "{header}");
        }
        let (name, file_name) = names_in("form-data; name=\"file\"; filename=a; filename=b");
        assert_eq!((name.as_deref(), file_name), (Some("file"), None));
        let not_utf8 = Disposition::parse(b"form-data; name=\"fi\xffle\"; filename=\"\xe9\"");
        assert_eq!(not_utf8.name.as_deref(), Some("fi\u{fffd}le"));
        assert_eq!(not_utf8.file_name.as_deref(), Some("\u{fffd}"));
    }

    proptest! {
        #[test]
        fn any_extended_name_is_decoded(name in "\\PC{0,20}") {
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let header = format!("form-data; name=file; filename*=UTF-8''{encoded}");
            prop_assert_eq!(names_in(&header), (Some("file".into()), Some(name)));
        }

        #[test]
        fn parsing_never_panics(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Disposition::parse(&header);
            let _ = Disposition::parse(&[b"form-data; filename*=", &header[..]].concat());
        }
    }
}
