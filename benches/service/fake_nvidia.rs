//! A fake NVIDIA and a fake picture server. They respond without delay, unless a benchmark sets a
//! delay for inferences. They share the processors with the measured service, so they use blocking
//! threads, which need little processor time.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    http::{content_length, find},
    nvidia_api::{ASSETS_PATH, CREATE_ASSET, INFER, UPLOAD_PATH, asset_body, embedding_body},
    pictures::{LARGE, NUMBER_LEN, SMALL},
    samples::{embedding, jpeg},
};

/// The id that every created asset gets.
const ASSET: &str = "0191f0a0-0000-7000-8000-000000000000";

/// The size of the read buffer, in bytes. Most requests with an inline picture need only one read.
const BUFFER_LEN: usize = 128 * 1024;

/// The fake NVIDIA and the picture server, on one port.
pub struct FakeNvidia {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// The number of requests to NVIDIA so far: inferences, and creations, uploads and deletions of assets.
    calls: AtomicU64,
    /// The delay of each inference, in microseconds.
    delay_micros: AtomicU64,
    /// This and the next three fields are complete responses, with their heads.
    embedding: Vec<u8>,
    created_asset: Vec<u8>,
    small_picture: Vec<u8>,
    large_picture: Vec<u8>,
}

impl FakeNvidia {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let upload_url = format!("http://{address}{UPLOAD_PATH}1?signature=1");
        let created_body = asset_body(ASSET, &upload_url, "image/jpeg", "image");
        let state = Arc::new(State {
            calls: AtomicU64::new(0),
            delay_micros: AtomicU64::new(0),
            embedding: ok("application/json", embedding_body(&embedding()).as_bytes()),
            created_asset: ok("application/json", created_body.as_bytes()),
            small_picture: ok("image/jpeg", &jpeg(SMALL)),
            large_picture: ok("image/jpeg", &jpeg(LARGE)),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { address, state }
    }

    /// The URL of a picture of this length, [`SMALL`] or [`LARGE`]. The URL ends in the picture's
    /// number: 0, which `Request::set_number` can replace.
    pub fn picture_url(&self, len: usize) -> String {
        let name = if len == SMALL { "small" } else { "large" };
        format!("http://{}/{name}/{:0NUMBER_LEN$}", self.address, 0)
    }

    /// The number of requests to NVIDIA so far.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::Relaxed)
    }

    /// Sets the delay of all further inferences.
    pub fn set_delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap();
        self.state.delay_micros.store(micros, Ordering::Relaxed);
    }
}

impl State {
    /// Serves the requests of one connection until the client closes it.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let mut received = 0;
            let head_len = loop {
                match stream.read(&mut buffer[received..])? {
                    0 => return Ok(()), // the client has closed the connection
                    read => received += read,
                }
                if let Some(end) = find(&buffer[..received], b"\r\n\r\n") {
                    break end + 4;
                }
            };
            let head = std::str::from_utf8(&buffer[..head_len]).unwrap();
            // How many bytes of the body are not in the buffer yet.
            let unread = content_length(head).unwrap_or(0) - (received - head_len);
            let mut words = head.split(' ').map(str::to_owned);
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            io::copy(&mut (&stream).take(unread as u64), &mut io::sink())?;
            self.respond(&stream, &method, &path)?;
        }
    }

    fn respond(&self, mut stream: &TcpStream, method: &str, path: &str) -> io::Result<()> {
        // The picture ends with the number from the URL, so that each URL has a different picture.
        let number = path.rsplit('/').next().unwrap_or("").as_bytes();
        match (method, path.split('/').nth(1).unwrap_or("")) {
            ("GET", "small") => return write_with_end(stream, &self.small_picture, number),
            ("GET", "large") => return write_with_end(stream, &self.large_picture, number),
            _ => {}
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        match format!("{method} {path}").as_str() {
            INFER => {
                let delay = self.delay_micros.load(Ordering::Relaxed);
                if delay > 0 {
                    thread::sleep(Duration::from_micros(delay));
                }
                stream.write_all(&self.embedding)
            }
            CREATE_ASSET => stream.write_all(&self.created_asset),
            _ if method == "PUT" && path.starts_with(UPLOAD_PATH) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            }
            _ if method == "DELETE" && path.starts_with(ASSETS_PATH) => {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            }
            line => panic!("the service must not send this request to NVIDIA: {line}"),
        }
    }
}

/// A complete response with status 200.
fn ok(media_type: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {len}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// Writes a response whose last bytes are replaced by `end`.
fn write_with_end(mut stream: &TcpStream, response: &[u8], end: &[u8]) -> io::Result<()> {
    let start = &response[..response.len() - end.len()];
    // A single system call usually writes everything.
    let written = stream.write_vectored(&[IoSlice::new(start), IoSlice::new(end)])?;
    match written.checked_sub(start.len()) {
        // `start` is written, and the first bytes of `end`.
        Some(written_of_end) => stream.write_all(&end[written_of_end..]),
        None => stream.write_all(&start[written..]).and_then(|()| stream.write_all(end)),
    }
}
