//! Heads and bodies of requests to the service.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

/// The content type of a [`form`].
pub const FORM_CONTENT_TYPE: &str = "multipart/form-data; boundary=x";

/// The body of a request to the upload route.
pub fn form(picture: &[u8]) -> Vec<u8> {
    let head = b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    [&head[..], picture, b"\r\n--x--\r\n"].concat()
}

/// The body of a request to the Base64 route.
pub fn base64_body(picture: &[u8]) -> String {
    json!({ "image_base64": BASE64_STANDARD.encode(picture) }).to_string()
}

/// A picture as Base64 in lines of 76 characters, as the program `base64` prints it. But `line_break` is
/// between the lines, and there is none at the end.
pub fn wrapped_base64(picture: &[u8], line_break: &str) -> String {
    let text = BASE64_STANDARD.encode(picture);
    let lines = text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join(line_break)
}

/// The head of a POST request with the content type of a [`form`]. Each line in `other_headers`
/// must end in `\r\n`.
pub fn post_head(route: &str, content_length: usize, other_headers: &str) -> Vec<u8> {
    format!(
        "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {FORM_CONTENT_TYPE}\r\n\
         content-length: {content_length}\r\n{other_headers}\r\n"
    )
    .into_bytes()
}
