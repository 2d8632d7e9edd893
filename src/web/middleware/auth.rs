//! Authentication: checks the client's key before the body is read.

use std::{fmt, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{bearer_token, web::error::Error};

/// The SHA-256 of a client's key. The key itself is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyDigest(pub(super) [u8; 32]);

/// The clients' keys. Without keys, every client may call the service. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClientKeys(Arc<[KeyDigest]>);

impl ClientKeys {
    /// Parses keys that are separated by commas or line breaks.
    ///
    /// # Errors
    /// A message that continues a sentence that begins with the setting's name. It does not contain the
    /// keys.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys: Vec<_> =
            text.split([',', '\n', '\r']).map(str::trim).filter(|key| !key.is_empty()).collect();
        if keys.is_empty() {
            return Err("contains no key".into());
        }
        for key in &keys {
            bearer_token::check(key).map_err(|error| format!("contains a key {error}"))?;
        }
        Ok(Self(keys.into_iter().map(digest).collect()))
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the digest of the request's key (`Authorization: Bearer`, RFC 6750). `None` if the
    /// request has no key, or one that is not in the list. Compares the digest with those of all keys,
    /// and in constant time. The duration thus does not reveal which key matched, or how many bytes.
    fn find(&self, headers: &HeaderMap) -> Option<KeyDigest> {
        let sent = digest(bearer_key(headers)?);
        let mut is_valid = Choice::from(0);
        for key in &*self.0 {
            is_valid |= key.0.ct_eq(&sent.0);
        }
        if bool::from(is_valid) { Some(sent) } else { None }
    }
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientKeys({} redacted)", self.0.len())
    }
}

/// Admits requests with a valid key, or all requests if there are no keys. Adds the key's digest to
/// the request, for the rate limit.
pub(in crate::web) async fn require_key(
    State(keys): State<ClientKeys>,
    mut request: Request,
    next: Next,
) -> Result<Response, Error> {
    if !keys.is_empty() {
        let key = keys.find(request.headers()).ok_or(Error::Unauthorized)?;
        request.extensions_mut().insert(key);
    }
    Ok(next.run(request).await)
}

/// The key in the header `Authorization`, if its scheme is Bearer.
fn bearer_key(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { Some(key.trim()) } else { None }
}

fn digest(key: &str) -> KeyDigest {
    KeyDigest(Sha256::digest(key).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_accepted(keys: &str, authorization: &str) -> bool {
        let headers =
            HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())]);
        ClientKeys::parse(keys).unwrap().find(&headers).is_some()
    }

    #[test]
    fn only_the_exact_keys_are_accepted() {
        for keys in
            ["first-key,second-key", "first-key\nsecond-key\n", " first-key ,\r\n second-key"]
        {
            assert!(is_accepted(keys, "Bearer first-key"));
            assert!(is_accepted(keys, "bearer  second-key "));
            for wrong in [
                "Bearer first-ke",
                "Bearer first-key1",
                "Bearer First-key",
                "Bearer first-key,second-key",
                "Bearer ",
                "Bearer",
                "first-key",
                "Basic first-key",
            ] {
                assert!(!is_accepted(keys, wrong), "{wrong}");
            }
        }
        let without_key = HeaderMap::new();
        assert!(ClientKeys::parse("a").unwrap().find(&without_key).is_none());
    }

    #[test]
    fn invalid_keys_are_refused_with_a_message_that_does_not_contain_them() {
        // The first two texts contain no key. All keys of the others contain "pl", which must not appear
        // in a message.
        for text in ["", " , \n", "planted key", "pl\u{e4}nted", "planted\", NAME=planted"] {
            let message = ClientKeys::parse(text).unwrap_err();
            assert!(!message.contains("pl"), "{message}");
        }
    }

    #[test]
    fn debug_output_does_not_contain_the_keys() {
        let keys = ClientKeys::parse("planted-1,planted-2").unwrap();
        assert_eq!(format!("{keys:?}"), "ClientKeys(2 redacted)");
    }
}
