//! The id of each request: the one that the client sent, or a new one.

use axum::http::{HeaderMap, HeaderName};
use uuid::Uuid;

/// The header with a request's id, in requests and responses.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Returns the request id that the client sent if it is harmless, otherwise a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    match headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()) {
        Some(id) if is_harmless(id) => id.to_owned(),
        _ => Uuid::now_v7().to_string(),
    }
}

/// Whether an id is short and needs no escaping in a header or in the log.
fn is_harmless(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_harmless_request_id_is_used_and_any_other_id_is_replaced() {
        let chosen_id = |id: &[u8]| {
            let id = HeaderValue::from_bytes(id).unwrap();
            request_id(&HeaderMap::from_iter([(REQUEST_ID, id)]))
        };
        for id in ["a", "Abc-1._", &"x".repeat(64)] {
            assert_eq!(chosen_id(id.as_bytes()), *id);
        }
        // A UUID has 36 characters.
        for id in [&b""[..], b"a b", b"a\tb", b"\xff", b"a\"b", &[b'x'; 65]] {
            assert_eq!(chosen_id(id).len(), 36, "the id must be replaced by a UUID");
        }
    }
}
