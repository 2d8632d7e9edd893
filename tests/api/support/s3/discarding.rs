//! A bucket for tests that write gigabytes: it keeps only the bytes of small objects that are not
//! pictures. It compares each object with its checksum. It serves each connection in a blocking
//! thread, which needs little processor time. The benchmarks use this bucket, too.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

/// The largest size of a small object.
const MAX_SMALL_LEN: usize = 64 << 10;

/// The most bytes that are read at once.
const MAX_READ: usize = 64 << 10;

/// A server that runs until the process ends. It does not check signatures.
pub struct DiscardingBucket {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The small objects, by their paths. For a picture, the bytes are empty.
    small_objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The number of large objects.
    large_count: AtomicUsize,
}

impl DiscardingBucket {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                // An error ends only this connection.
                thread::spawn(move || serve(&stream, &state).ok());
            }
        });
        Self { address, state }
    }

    /// The settings with which the service uses this bucket.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("IMAGESVC_BUCKET", "s3://test-pictures/imagesvc".to_owned()),
            ("IMAGESVC_BUCKET_ENDPOINT", format!("http://{}", self.address)),
            ("IMAGESVC_BUCKET_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "an-example".to_owned()),
        ]
    }

    /// The number of large objects that arrived whole and with the right checksum.
    #[allow(dead_code, reason = "the benchmarks do not need it")]
    pub fn intact_large_objects(&self) -> usize {
        self.state.large_count.load(Ordering::SeqCst)
    }
}

/// Responds to the requests of a connection. Returns only with an error, also when the client closes the
/// connection.
fn serve(mut stream: &TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(MAX_READ, stream);
    loop {
        let head = read_head(&mut reader)?;
        let mut words = head.split([' ', '?']);
        let (method, path) = (words.next().unwrap(), words.next().unwrap().to_owned());
        let response = match method {
            "PUT" => {
                let length: usize = header(&head, "content-length").parse().unwrap();
                let (digest, start) = receive(&mut reader, length)?;
                if digest != header(&head, "x-amz-checksum-sha256") {
                    response("400 Bad Request", b"<Error><Code>BadDigest</Code></Error>")
                } else {
                    if length <= MAX_SMALL_LEN {
                        // The service never reads a picture from the bucket.
                        let is_picture = path.contains("/downloads/");
                        let bytes = if is_picture { Vec::new() } else { start };
                        state.small_objects.lock().unwrap().insert(path, bytes);
                    } else {
                        state.large_count.fetch_add(1, Ordering::SeqCst);
                    }
                    response("200 OK", b"")
                }
            }
            "GET" => match state.small_objects.lock().unwrap().get(&path) {
                Some(object) => response("200 OK", object),
                None => response("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"),
            },
            _ => {
                // DELETE
                state.small_objects.lock().unwrap().remove(&path);
                b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
            }
        };
        stream.write_all(&response)?;
    }
}

/// Reads the head of a request.
fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// The value of a header that the request must have.
fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).unwrap().1
}

/// Receives a body of `length` bytes. Returns the SHA-256 of the whole body in Base64, and at most
/// its first [`MAX_SMALL_LEN`] bytes.
fn receive(reader: &mut impl Read, length: usize) -> io::Result<(String, Vec<u8>)> {
    let (mut hasher, mut start) = (Sha256::new(), Vec::new());
    let mut chunk = vec![0; MAX_READ];
    let mut left = length;
    while left > 0 {
        let most = left.min(MAX_READ);
        let read = reader.read(&mut chunk[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&chunk[..read]);
        let room = MAX_SMALL_LEN - start.len();
        start.extend_from_slice(&chunk[..read.min(room)]);
        left -= read;
    }
    Ok((BASE64_STANDARD.encode(hasher.finalize()), start))
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
