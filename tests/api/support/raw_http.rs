//! HTTP over a plain socket, byte for byte, for requests that no client would send.

use std::{net::SocketAddr, time::Duration};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::Answer;

/// A request that a test hides in or behind another request's body. Nobody may get an answer to it.
pub const SMUGGLED: &str = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads until the service closes the connection, which it must do by itself.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // Shorter than the time after which the service closes any idle connection.
    let read = timeout(Duration::from_secs(8), stream.read_to_end(&mut bytes));
    read.await.expect("the service closes the connection").unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Sends a request, and reads until the service closes the connection.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_to_end(&mut stream).await
}

/// Parses a text that must hold exactly one answer.
pub fn parse_answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HeaderMap = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
        .collect::<Vec<(_, HeaderValue)>>()
        .into_iter()
        .collect();
    let length = headers.get("content-length").unwrap().to_str().unwrap();
    assert_eq!(length, body.len().to_string(), "another answer follows: {text}");
    Answer { status, headers, body: body.into() }
}

/// A request's head: its first line, the further header lines in `more`, and these hosts.
pub fn raw_request(line: &str, hosts: &[&str], more: &str) -> Vec<u8> {
    let mut request = format!("{line}\r\n{more}").into_bytes();
    for host in hosts {
        request.extend(format!("Host: {host}\r\n").bytes());
    }
    request.extend(b"\r\n");
    request
}
