//! The id of each request: the caller's own, or a new one.

use axum::http::{HeaderMap, HeaderName};
use uuid::Uuid;

/// The header that carries a request's id, in requests and answers.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Returns the caller's own id if it is harmless, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    });
    own.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_harmless_request_id_is_kept_and_any_other_replaced() {
        let id = |own: &[u8]| {
            let headers =
                HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_bytes(own).unwrap())]);
            request_id(&headers)
        };
        for own in ["a", "Abc-1._", &"x".repeat(64)] {
            assert_eq!(id(own.as_bytes()), *own);
        }
        for own in [&b""[..], b"a b", b"a\tb", b"\xff", b"a\"b", &[b'x'; 65]] {
            assert_eq!(id(own).len(), 36);
        }
    }
}
