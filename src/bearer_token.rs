//! Checks the keys in the configuration: NVIDIA's key and the client keys. A key is the text after
//! `Bearer ` in an Authorization header.
//!
//! A mistake in the configuration often yields an invalid key: quotes around the key, a variable
//! that was not substituted, or a whole line of a file. With such a key, the service would refuse
//! every client, or NVIDIA would refuse the service. Therefore the service does not start with such
//! a key.

/// Texts that documentation uses in place of a key.
const PLACEHOLDERS: [&str; 3] = ["your_actual_api_key_here", "your_api_key", "changeme"];

/// Checks that a key has the syntax of `token68` (RFC 7235, section 2.1) and is not a placeholder.
///
/// # Errors
/// The end of a sentence about "a key", such as "that is a placeholder of the documentation". It does
/// not quote the key.
pub(crate) fn check(text: &str) -> Result<(), &'static str> {
    let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    let without_padding = text.trim_end_matches('=');
    if without_padding.is_empty() || !without_padding.bytes().all(is_token_byte) {
        return Err(
            "that contains a space, a quote, a $ or another character that no key contains",
        );
    }
    // Documentation writes `nvapi-xxxx` or `nvapi-...` in place of a key. `nvapi-` alone is no key, either.
    let is_filler = |rest: &str| rest.bytes().all(|byte| b".xX-_".contains(&byte));
    if PLACEHOLDERS.iter().any(|placeholder| text.eq_ignore_ascii_case(placeholder))
        || text.strip_prefix("nvapi-").is_some_and(is_filler)
    {
        return Err("that is a placeholder of the documentation");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_accepted_but_placeholders_and_malformed_texts_are_errors() {
        for key in ["nvapi-1", "nvapi-AbC_d-9.e~f+g/h", "Zm9v==", "a"] {
            assert_eq!(check(key), Ok(()), "{key}");
        }
        for text in [
            "",
            "=",
            "\"nvapi-1\"",
            "'nvapi-1'",
            "$NVIDIA_API_KEY",
            "nvapi-****",
            "nvapi-…",
            "NVIDIA_API_KEY=nvapi-1",
            "a b",
            "a\u{7}",
            "é",
            "your_actual_api_key_here",
            "YOUR_API_KEY",
            "nvapi-",
            "nvapi-...",
            "nvapi-xxxx-xxxx",
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
    }
}
