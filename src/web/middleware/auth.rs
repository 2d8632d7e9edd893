//! Authentication: checks the client's key from the header, before any of the body is read.

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

/// The SHA-256 of a client's key. The key itself is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyDigest(pub(super) [u8; 32]);

/// The clients' keys. Without any, everybody may call. Cheap to clone.
#[derive(Clone, Default)]
pub struct ClientKeys(Arc<[KeyDigest]>);

impl ClientKeys {
    /// Parses keys that are separated by commas or line breaks.
    ///
    /// # Errors
    /// What is wrong with them. The message does not quote the keys.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys: Vec<_> =
            text.split([',', '\n', '\r']).map(str::trim).filter(|key| !key.is_empty()).collect();
        if keys.is_empty() {
            return Err("holds no key".into());
        }
        for key in &keys {
            bearer_token::check(key).map_err(|fault| format!("holds a key {fault}"))?;
        }
        Ok(Self(keys.into_iter().map(digest).collect()))
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the key that a request carries (`Authorization: Bearer`, RFC 6750), if it is one of
    /// these. The time that this takes reveals neither which key matched nor how much of one: it
    /// always compares the digests of all keys.
    fn find(&self, headers: &HeaderMap) -> Option<KeyDigest> {
        let sent = digest(bearer(headers)?);
        let mut known = Choice::from(0);
        for key in &*self.0 {
            known |= key.0.ct_eq(&sent.0);
        }
        bool::from(known).then_some(sent)
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

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn digest(key: &str) -> KeyDigest {
    KeyDigest(Sha256::digest(key).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(keys: &str, authorization: &str) -> bool {
        let headers =
            HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())]);
        ClientKeys::parse(keys).unwrap().find(&headers).is_some()
    }

    #[test]
    fn only_the_exact_keys_are_accepted() {
        for keys in
            ["first-key,second-key", "first-key\nsecond-key\n", " first-key ,\r\n second-key"]
        {
            assert!(find(keys, "Bearer first-key"));
            assert!(find(keys, "bearer  second-key "));
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
                assert!(!find(keys, wrong), "{wrong}");
            }
        }
        assert!(ClientKeys::parse("a").unwrap().find(&HeaderMap::new()).is_none());
    }

    #[test]
    fn text_without_a_valid_key_is_a_fault_that_quotes_nothing() {
        for text in ["", " , \n", "planted key", "pl\u{e4}nted", "planted\", NAME=planted"] {
            let fault = ClientKeys::parse(text).unwrap_err();
            assert!(!fault.contains("pl"), "{fault}");
        }
    }

    #[test]
    fn keys_cannot_be_printed() {
        let keys = ClientKeys::parse("planted-1,planted-2").unwrap();
        assert_eq!(format!("{keys:?}"), "ClientKeys(2 redacted)");
    }
}
