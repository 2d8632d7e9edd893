//! Reads the boundary of a multipart form from its Content-Type.

use axum::http::{HeaderMap, HeaderValue, header};

use super::{
    multipart::{EXAMPLE, invalid},
    parameters::Parameterized,
};
use crate::web::error::Error;

/// The longest boundary, in characters (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// Returns the boundary of a form's parts.
///
/// # Errors
/// [`Error::Invalid`], if the request is not a form, or its boundary is missing, ambiguous or too
/// long.
pub(in crate::web) fn boundary(headers: &HeaderMap) -> Result<String, Error> {
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
    let is_text = |text: &[u8]| text.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let boundary = content_type.get("boundary").filter(|text| !text.is_empty() && is_text(text));
    let boundary = boundary.map(|text| String::from_utf8_lossy(text).into_owned()).ok_or_else(|| {
        invalid(
            "Field required",
            "The Content-Type multipart/form-data has no boundary, or an ambiguous one: do not set the header \
            yourself, let your client set Content-Type.",
        )
    })?;
    if boundary.len() > MAX_BOUNDARY {
        return Err(invalid(
            "Boundary too long",
            "The form's boundary is longer than 70 characters; let your client choose it.",
        ));
    }
    Ok(boundary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_overlong_boundary_is_named() {
        let of = |content_type: &str| {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
            boundary(&headers).map_err(|error| error.detail())
        };
        for (content_type, boundary) in [
            ("multipart/form-data; boundary=\"a b\"", "a b"),
            ("multipart/form-data ; boundary=ab", "ab"),
            ("Multipart/Form-Data;BOUNDARY= ab ;charset=utf-8", "ab"),
            ("multipart/form-data; charset=\"; boundary=x\"; boundary=ab", "ab"),
            // as React Native before 0.60 sends it on iOS
            ("multipart/form-data; boundary=Sx/9+e=7K:(a),b?'c'_.-", "Sx/9+e=7K:(a),b?'c'_.-"),
        ] {
            assert_eq!(of(content_type).as_deref(), Ok(boundary), "{content_type}");
        }
        for without in
            ["", "; boundary", "; boundary=", "; boundary=\"\"", "; boundary=a; boundary=b"]
        {
            let fault = of(&format!("multipart/form-data{without}")).unwrap_err();
            assert!(fault.contains("no boundary"), "{without}");
        }
        for other in ["", "multipart/mixed; boundary=a", "multipart/form-datax; boundary=a"] {
            assert!(of(other).unwrap_err().contains("multipart/form-data with the picture"));
        }
        assert!(of("text/plain").unwrap_err().contains("multipart/form-data with the picture"));
        let long = format!("multipart/form-data; boundary={}", "x".repeat(71));
        assert!(of(&long).unwrap_err().contains("longer than 70"));
    }
}
