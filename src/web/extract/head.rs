//! Checks what hyper does not check in the head of a request. An HTTP/1.1 request must have exactly one
//! valid host (RFC 9112, section 3.2), and a body may have only codings that the service decodes.

use std::net::Ipv6Addr;

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Version, header},
};

/// Why a request's head is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// An HTTP/1.1 request without a `Host`.
    #[error("there is no Host")]
    NoHost,
    /// More than one `Host`. A proxy and the service might each use a different one.
    #[error("there is more than one Host")]
    ManyHosts,
    /// The `Host`, or the host in the request line, is malformed.
    #[error("the Host is malformed")]
    MalformedHost,
    /// The body is compressed or otherwise encoded.
    #[error("the Content-Encoding is {0:?}")]
    ContentEncoding(String),
    /// The body uses transfer codings other than a single `chunked`.
    #[error("the Transfer-Encoding is {0:?}")]
    TransferEncoding(String),
}

/// Checks a request's head, and changes it: a host in the request line replaces the `Host`.
///
/// # Errors
/// A [`HeadError`] if the head violates a rule.
pub(in crate::web) fn check_head_and_set_host(request: &mut Request) -> Result<(), HeadError> {
    check_and_set_host(request)?;
    check_transfer_encoding(request.headers())?;
    // Without a body, there is nothing to decode.
    if !request.body().is_end_stream() {
        check_content_encoding(request.headers())?;
    }
    Ok(())
}

/// Checks the `Host`, and replaces it with the host in the request line, if there is one (RFC 9112,
/// section 3.2.2).
fn check_and_set_host(request: &mut Request) -> Result<(), HeadError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(HeadError::ManyHosts),
        (Some(host), None) if is_host(host.as_bytes()) => {}
        // `Host` is optional before HTTP/1.1.
        (None, None) if request.version() < Version::HTTP_11 => {}
        (Some(host), None) if host.is_empty() && request.version() < Version::HTTP_11 => {}
        // Malformed, or empty in HTTP/1.1: the host of an `http` URI is never empty.
        (Some(_), None) => return Err(HeadError::MalformedHost),
        (None, None) => return Err(HeadError::NoHost),
    }
    if let Some(authority) = request.uri().authority() {
        if !is_host(authority.as_str().as_bytes()) {
            return Err(HeadError::MalformedHost);
        }
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.map_err(|_| HeadError::MalformedHost)?;
        request.headers_mut().insert(header::HOST, host);
    }
    Ok(())
}

/// Whether the text is a host with or without a port (RFC 3986, section 3.2.2).
fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (is_valid, colon_and_port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => (address.parse::<Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            (is_name(name.as_bytes()), rest)
        }
    };
    // The port may be empty (RFC 3986, section 3.2.3).
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    is_valid && (colon_and_port.is_empty() || colon_and_port.strip_prefix(':').is_some_and(is_port))
}

/// Whether the text is a host name or an IPv4 address.
fn is_name(mut name: &[u8]) -> bool {
    let is_empty = name.is_empty();
    while let [first, rest @ ..] = name {
        name = match (first, rest) {
            // A percent-encoded byte.
            (b'%', [high, low, rest @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest
            }
            (byte, _) if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        };
    }
    !is_empty
}

/// Accepts only a single `chunked`. hyper also accepts longer lists of codings that end in `chunked`,
/// although it decodes only `chunked`. hyper itself refuses a list that ends in another coding, because
/// the end of such a body is unknown.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), HeadError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(HeadError::TransferEncoding(printable(headers, header::TRANSFER_ENCODING))),
    }
}

fn check_content_encoding(headers: &HeaderMap) -> Result<(), HeadError> {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let is_identity = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    if codings.all(|coding| is_identity(coding.trim_ascii())) {
        Ok(())
    } else {
        Err(HeadError::ContentEncoding(printable(headers, header::CONTENT_ENCODING)))
    }
}

/// A header's value for errors and the log: its first 60 harmless characters.
fn printable(headers: &HeaderMap, name: HeaderName) -> String {
    let lines: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    let bytes = lines.join(&b", "[..]).into_iter();
    bytes
        .filter(|byte| b" -.,;=".contains(byte) || byte.is_ascii_alphanumeric())
        .take(60)
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_host_accepts_names_and_addresses_with_or_without_a_port_and_nothing_else() {
        for host in [
            "x",
            "images.example.com",
            "images.example.com.:8000",
            "image_service:8000",
            "192.0.2.7:8000",
            "192.0.2.7:",
            "999.0.2.7", // no IPv4 address, but a valid name
            "[::1]",
            "[::ffff:192.0.2.7]:8000",
            "b%C3%BCcher.example",
            "a-b~!$&'()*+,;=",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            &b""[..],
            b":8000",
            b"a b",
            b"a, b",
            b"a@b",
            b"user:password@a",
            b"http://a",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a\\b",
            b"a\"b",
            b"a:b",
            b"a:+80",
            b"a:80:80",
            b"a%",
            b"a%4",
            b"a%zz",
            b"::1",
            b"[::1",
            b"[::1]8000",
            b"[::1]]",
            b"[]",
            b"[192.0.2.7]",
            b"[fe80::1%25eth0]",
            b"[a]",
            b"b\xc3\xbccher.example",
            b"a\xff",
        ] {
            assert!(!is_host(host), "{:?}", String::from_utf8_lossy(host));
        }
    }

    #[test]
    fn printable_shortens_a_header_and_removes_harmful_characters() {
        let headers = |value: &[u8]| {
            HeaderMap::from_iter([(
                header::CONTENT_ENCODING,
                HeaderValue::from_bytes(value).unwrap(),
            )])
        };
        let printed = |value: &[u8]| printable(&headers(value), header::CONTENT_ENCODING);
        assert_eq!(printed(b"gzip, br;q=0.5"), "gzip, br;q=0.5");
        assert_eq!(printed(b"<b>\"\xff\t"), "b");
        assert_eq!(printed(&[b'x'; 1000]).len(), 60);
    }
}
