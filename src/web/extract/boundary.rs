//! Reads the boundary of a multipart form from its Content-Type.

use axum::http::{HeaderMap, HeaderValue, header};

use super::{
    multipart::{EXAMPLE, invalid},
    parameters::Parameterized,
};
use crate::web::error::Error;

/// The most characters of a boundary (RFC 2046, section 5.1.1).
const MAX_LENGTH: usize = 70;

/// Returns the boundary between a form's parts.
///
/// # Errors
/// [`Error::Invalid`] if the body is not a form, or the boundary is missing, repeated, not printable
/// or too long.
pub(in crate::web) fn read_boundary(headers: &HeaderMap) -> Result<String, Error> {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let content_type = Parameterized::parse(content_type);
    if !content_type.is("multipart/form-data") {
        return Err(invalid(
            "Field required",
            format!(
                "The body must be multipart/form-data with the picture in the field file: {EXAMPLE}."
            ),
        ));
    }
    let is_printable = |text: &[u8]| text.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let text = match content_type.get("boundary") {
        Some(text) if !text.is_empty() && is_printable(text) => String::from_utf8_lossy(text),
        _ => {
            return Err(invalid(
                "Field required",
                "The Content-Type multipart/form-data has no boundary, or an ambiguous one: do not set the \
                header yourself, let your client set Content-Type.",
            ));
        }
    };
    if text.len() > MAX_LENGTH {
        return Err(invalid(
            "Boundary too long",
            "The form's boundary is longer than 70 characters; let your client choose it.",
        ));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_boundary_is_read_and_an_invalid_boundary_is_refused_with_a_reason() {
        let read = |content_type: &str| {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
            read_boundary(&headers).map_err(|error| error.detail())
        };
        for (content_type, expected) in [
            ("multipart/form-data; boundary=\"a b\"", "a b"),
            ("multipart/form-data ; boundary=ab", "ab"),
            ("Multipart/Form-Data;BOUNDARY= ab ;charset=utf-8", "ab"),
            ("multipart/form-data; charset=\"; boundary=x\"; boundary=ab", "ab"),
            // On iOS, React Native before 0.60 does not send the quotes that these characters need.
            ("multipart/form-data; boundary=Sx/9+e=7K:(a),b?'c'_.-", "Sx/9+e=7K:(a),b?'c'_.-"),
        ] {
            assert_eq!(read(content_type).as_deref(), Ok(expected), "{content_type}");
        }
        for parameters in
            ["", "; boundary", "; boundary=", "; boundary=\"\"", "; boundary=a; boundary=b"]
        {
            let detail = read(&format!("multipart/form-data{parameters}")).unwrap_err();
            assert!(detail.contains("no boundary"), "{parameters}");
        }
        for content_type in
            ["", "text/plain", "multipart/mixed; boundary=a", "multipart/form-datax; boundary=a"]
        {
            let detail = read(content_type).unwrap_err();
            assert!(detail.contains("multipart/form-data with the picture"), "{content_type}");
        }
        let too_long = format!("multipart/form-data; boundary={}", "x".repeat(MAX_LENGTH + 1));
        assert!(read(&too_long).unwrap_err().contains("longer than 70"));
    }
}
