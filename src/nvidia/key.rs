//! The API key, which is only ever put into one header.

use std::fmt;

use bytes::Bytes;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use crate::bearer_token;

/// An NVIDIA API key. Prints as `[redacted]`.
#[derive(Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Reads a key as people set it: with white space around it, or after `Bearer `.
    ///
    /// # Errors
    /// What is wrong with the text, without quoting it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace().peekable();
        words.next_if(|word| word.eq_ignore_ascii_case("bearer"));
        let key = words.next().unwrap_or_default();
        match key {
            "" => Err("holds no key".into()),
            _ if words.next().is_some() => {
                Err("holds more than one word, which no key does".into())
            }
            key => match bearer_token::check(key) {
                Ok(()) => Ok(Self(key.into())),
                Err(fault) => Err(format!("holds a key {fault}")),
            },
        }
    }

    /// Whether this is the given key.
    #[cfg(test)]
    pub(crate) fn is(&self, key: &str) -> bool {
        self.0.expose_secret() == key
    }

    /// Removes the key from what NVIDIA or a gateway answered. Some repeat it in error messages,
    /// which are logged.
    pub(super) fn redact(&self, text: Bytes) -> Bytes {
        let key = self.0.expose_secret().as_bytes();
        if !text.windows(key.len()).any(|window| window == key) {
            return text;
        }
        String::from_utf8_lossy(&text).replace(self.0.expose_secret(), "[redacted]").into()
    }

    /// The value of the Authorization header, marked so that it is never printed.
    pub(super) fn bearer(&self) -> HeaderValue {
        let text = format!("Bearer {}", self.0.expose_secret());
        #[allow(clippy::expect_used)]
        let mut value = HeaderValue::try_from(text).expect("`parse` accepts only visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_people_set_it() {
        for text in ["nvapi-1", " nvapi-1\n", "Bearer nvapi-1", "bearer  nvapi-1 "] {
            assert_eq!(ApiKey::parse(text).unwrap().bearer(), "Bearer nvapi-1");
        }
        for text in [
            "",
            "  ",
            "Bearer ",
            "nvapi-1 nvapi-2",
            "\"nvapi-1\"",
            "nvapi\n1",
            "nvapi-\u{7}",
            "nvapi-é",
        ] {
            assert!(ApiKey::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_repeated_key_is_redacted() {
        let key = ApiKey::parse("nvapi-1").unwrap();
        let said = key.redact(Bytes::from_static(b"no such key: nvapi-1, nvapi-1!"));
        assert_eq!(said, "no such key: [redacted], [redacted]!");
        assert_eq!(key.redact(Bytes::from_static(b"\xff")), &b"\xff"[..]);
    }

    #[test]
    fn a_key_never_prints_itself() {
        let key = ApiKey::parse("nvapi-1").unwrap();
        assert_eq!(format!("{key:?}"), "[redacted]");
        assert!(!format!("{:?}", key.bearer()).contains("nvapi"));
    }
}
