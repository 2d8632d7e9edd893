//! What can be a key: the text that may follow `Bearer ` in a header.
//!
//! What cannot be one was meant otherwise: quotes that came along, a variable that nothing replaced,
//! a whole line of a file. A service that started with it would refuse every client, or be refused.

/// What documentations write where a key belongs.
const PLACEHOLDERS: [&str; 3] = ["your_actual_api_key_here", "your_api_key", "changeme"];

/// Checks a key by the syntax of `token68` (RFC 7235, section 2.1), and that it is no placeholder.
///
/// # Errors
/// What is wrong with it, in words that follow "a key"; the key is not quoted.
pub(crate) fn check(text: &str) -> Result<(), &'static str> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    let bare = text.trim_end_matches('=');
    if bare.is_empty() || !bare.bytes().all(is_token) {
        return Err("that holds a space, a quote, a $ or another character that no key has");
    }
    let is_left_out = |rest: &str| rest.bytes().all(|byte| b".xX-_".contains(&byte));
    if PLACEHOLDERS.iter().any(|known| text.eq_ignore_ascii_case(known))
        || text.strip_prefix("nvapi-").is_some_and(is_left_out)
    {
        return Err("that is a placeholder of the documentation");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_what_was_meant_otherwise() {
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
