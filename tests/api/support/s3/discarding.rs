//! A bucket that checks and then discards all large objects, so that tests can write gigabytes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    Credentials, bucket_settings,
    fault_proxy::{parse_head, read_head},
};

/// Objects of at most this many bytes are kept.
const MAX_KEPT: usize = 64 << 10;

/// A running server. It does not check signatures. Dropping this value stops it.
pub struct DiscardingBucket {
    address: SocketAddr,
    state: Arc<State>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct State {
    /// The small objects, by their paths.
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The number of large objects.
    discarded: AtomicUsize,
}

impl DiscardingBucket {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, peer)) = listener.accept().await {
                let state = Arc::clone(&shared);
                // An error ends only this connection.
                connections.spawn(async move { drop(serve(stream, peer, &state).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, _task: task }
    }

    /// The settings with which the service uses this bucket.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let credentials = Credentials {
            key_id: "AKIAEXAMPLE".to_owned(),
            secret: "an-example".to_owned(),
            token: None,
        };
        let settings = bucket_settings(self.address, "eu-central-1", "test-pictures", "imagesvc");
        [settings, credentials.settings()].concat()
    }

    /// The number of large objects that arrived whole and with the right checksum.
    pub fn discarded(&self) -> usize {
        self.state.discarded.load(Ordering::SeqCst)
    }
}

/// Responds to the requests of a connection. Returns only with an error, also when the client closes the
/// connection.
async fn serve(stream: TcpStream, peer: SocketAddr, state: &State) -> std::io::Result<()> {
    let mut stream = BufReader::with_capacity(MAX_KEPT, stream);
    loop {
        let request = parse_head(&read_head(&mut stream).await?, peer);
        let path = request.target.split('?').next().unwrap().to_owned();
        let response = match request.method.as_str() {
            "PUT" => {
                let length: usize = request.header("content-length").unwrap().parse().unwrap();
                let checksum = request.header("x-amz-checksum-sha256").unwrap();
                let (digest, start) = receive(&mut stream, length).await?;
                if digest != checksum {
                    response("400 Bad Request", b"<Error><Code>BadDigest</Code></Error>")
                } else {
                    if length <= MAX_KEPT {
                        state.kept.lock().unwrap().insert(path, start);
                    } else {
                        state.discarded.fetch_add(1, Ordering::SeqCst);
                    }
                    response("200 OK", b"")
                }
            }
            "GET" => match state.kept.lock().unwrap().get(&path) {
                Some(object) => response("200 OK", object),
                None => response("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"),
            },
            _ => {
                // DELETE
                state.kept.lock().unwrap().remove(&path);
                b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
            }
        };
        stream.write_all(&response).await?;
    }
}

/// Receives a body of `length` bytes. Returns the SHA-256 of the whole body in Base64, and the first
/// [`MAX_KEPT`] bytes.
async fn receive(
    stream: &mut BufReader<TcpStream>,
    length: usize,
) -> std::io::Result<(String, Vec<u8>)> {
    let (mut hasher, mut start) = (Sha256::new(), Vec::new());
    let mut chunk = vec![0; MAX_KEPT];
    let mut left = length;
    while left > 0 {
        let most = left.min(MAX_KEPT);
        let read = stream.read(&mut chunk[..most]).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&chunk[..read]);
        let room = MAX_KEPT - start.len();
        start.extend_from_slice(&chunk[..read.min(room)]);
        left -= read;
    }
    Ok((BASE64_STANDARD.encode(hasher.finalize()), start))
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}
