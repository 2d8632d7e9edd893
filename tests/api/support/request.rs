//! Bodies and heads of requests, for tests that need more control than an HTTP client gives.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

/// The content type of a [`form`].
pub const FORM: &str = "multipart/form-data; boundary=x";

/// A form with a picture.
pub fn form(picture: &[u8]) -> Vec<u8> {
    let head = b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    [&head[..], picture, b"\r\n--x--\r\n"].concat()
}

/// The body of the Base64 route.
pub fn base64_body(picture: &[u8]) -> String {
    json!({ "image_base64": BASE64_STANDARD.encode(picture) }).to_string()
}

/// The head of a POST request with a form's content type. Each line in `more` must end in `\r\n`.
pub fn post_head(route: &str, length: usize, more: &str) -> Vec<u8> {
    format!(
        "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM}\r\ncontent-length: {length}\r\n\
         {more}\r\n"
    )
    .into_bytes()
}
