//! NVIDIA's API key. The service sends it only in the `Authorization` header of calls to NVIDIA.

use std::fmt;

use bytes::Bytes;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::Digest;

use crate::{bearer_token, sha256::Sha256};

/// An NVIDIA API key. `Debug` prints `[redacted]`.
#[derive(Clone)]
pub struct ApiKey(SecretString);

impl ApiKey {
    /// Parses a key. White space around the key and the word `Bearer` before it are accepted and
    /// removed, because people paste them along with the key.
    ///
    /// # Errors
    /// What is wrong with the text. The message continues a sentence that begins with the setting's name.
    /// It does not quote the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace().peekable();
        words.next_if(|word| word.eq_ignore_ascii_case("bearer"));
        let key = words.next().unwrap_or_default();
        match key {
            "" => Err("holds no key".into()),
            _ if words.next().is_some() => {
                Err("holds more than one word, but a key has no spaces".into())
            }
            key => match bearer_token::check(key) {
                Ok(()) => Ok(Self(key.into())),
                Err(problem) => Err(format!("holds a key {problem}")),
            },
        }
    }

    /// Whether this is the given key.
    #[cfg(test)]
    pub(crate) fn is(&self, key: &str) -> bool {
        self.0.expose_secret() == key
    }

    /// A hash that identifies the key. A key has too many random digits to be guessed from its
    /// hash.
    pub(super) fn hash(&self) -> Sha256 {
        let hasher = sha2::Sha256::new().chain_update("imagesvc NVIDIA key ");
        Sha256::of(hasher.chain_update(self.0.expose_secret()))
    }

    /// Replaces the key in the text of a response. Servers may quote the key in error messages, and
    /// the service logs these messages.
    pub(super) fn redact(&self, text: Bytes) -> Bytes {
        let key = self.0.expose_secret().as_bytes();
        if !text.windows(key.len()).any(|window| window == key) {
            return text;
        }
        String::from_utf8_lossy(&text).replace(self.0.expose_secret(), "[redacted]").into()
    }

    /// The value of the `Authorization` header, marked as sensitive so that `Debug` hides it.
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
    fn white_space_around_a_key_and_the_word_bearer_before_it_are_removed() {
        for text in ["nvapi-1", " nvapi-1\n", "Bearer nvapi-1", "bearer  nvapi-1 "] {
            // `bearer` puts the word before the key again.
            assert_eq!(ApiKey::parse(text).unwrap().bearer(), "Bearer nvapi-1");
        }
    }

    #[test]
    fn an_empty_text_two_words_and_characters_that_no_key_has_are_refused() {
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
    fn the_key_is_redacted_wherever_a_response_contains_it() {
        let key = ApiKey::parse("nvapi-1").unwrap();
        let redacted = key.redact(Bytes::from_static(b"no such key: nvapi-1, nvapi-1!"));
        assert_eq!(redacted, "no such key: [redacted], [redacted]!");
        // Bytes without the key do not change, even if they are not UTF-8.
        assert_eq!(key.redact(Bytes::from_static(b"\xff")), &b"\xff"[..]);
    }

    #[test]
    fn debug_output_does_not_contain_the_key() {
        let key = ApiKey::parse("nvapi-1").unwrap();
        assert_eq!(format!("{key:?}"), "[redacted]");
        assert!(!format!("{:?}", key.bearer()).contains("nvapi"));
    }
}
