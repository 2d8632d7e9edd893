//! A minimal HTTP client on blocking sockets, for the load generator.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
};

/// A keep-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What the benchmarks need to know of a response.
pub struct Response {
    pub status: u16,
    /// Whether the header `x-cache` is `hit`.
    pub is_cache_hit: bool,
}

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a request or a part of it, without reading the response.
    pub fn send(&mut self, part: &[u8]) -> io::Result<()> {
        self.stream.write_all(part)
    }

    /// Sends a request, or the rest of a request, and reads the whole response.
    pub fn exchange(&mut self, request: &[u8]) -> io::Result<Response> {
        self.send(request)?;
        let mut received = 0;
        let head_len = loop {
            match self.stream.read(&mut self.buffer[received..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => received += read,
            }
            if let Some(end) = find(&self.buffer[..received], b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..head_len]).unwrap();
        let response = Response {
            // The three digits after `HTTP/1.1 `.
            status: head.get(9..12).and_then(|status| status.parse().ok()).unwrap(),
            is_cache_hit: head.contains("x-cache: hit"),
        };
        let end = head_len + content_length(head).unwrap_or(0);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.stream.read_exact(&mut self.buffer[received..end])?;
        Ok(response)
    }
}

/// The first position of `pattern` in `bytes`.
pub fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// The value of `Content-Length` in the head of a message, if it has one.
pub fn content_length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    })
}
