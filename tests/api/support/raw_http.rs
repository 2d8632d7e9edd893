//! HTTP over a TCP stream, for requests that no HTTP client library would send.

use std::{net::SocketAddr, time::Duration};

use reqwest::header::{HeaderMap, HeaderName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::Answer;

/// A request that tests hide inside or after the body of another request. The service must not
/// answer it.
pub const SMUGGLED_REQUEST: &str = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads until the service closes the connection.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // The service closes an idle connection only after 10 s. If it closes this connection earlier, it
    // does so because of the request.
    let read = timeout(Duration::from_secs(8), stream.read_to_end(&mut bytes));
    read.await.expect("the service should close the connection within 8 s").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Sends these bytes, and reads until the service closes the connection.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_to_end(&mut stream).await
}

/// Parses a text that must be exactly one answer with a `Content-Length`.
pub fn parse_answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    let length = headers.get("content-length").unwrap().to_str().unwrap();
    assert_eq!(
        length,
        body.len().to_string(),
        "the answer should end after {length} bytes of body: {text}"
    );
    Answer { status, headers, body: body.into() }
}

/// The head of a request, up to and with the empty line, with a `Host` line for each of `hosts`. Each
/// line in `other_headers` must end in `\r\n`.
pub fn request_head(request_line: &str, hosts: &[&str], other_headers: &str) -> Vec<u8> {
    let mut head = format!("{request_line}\r\n{other_headers}").into_bytes();
    for host in hosts {
        head.extend(format!("Host: {host}\r\n").bytes());
    }
    head.extend(b"\r\n");
    head
}
