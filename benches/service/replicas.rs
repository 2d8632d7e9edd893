//! Measures what a Valkey adds to the latency of a service with a bucket. The bucket is a fake S3
//! server in this process, which checks no signatures and needs little processor time.

use std::{
    collections::HashMap,
    io::{Read, Result, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::{
    Bench,
    child::Service,
    http::{content_length, find},
    load::Load,
    pictures::SMALL,
    report::{heading, row},
    request::Request,
};
use test_server::RedisServer;

#[path = "../../src/valkey/test_server.rs"]
mod test_server;

/// The delay of each inference.
const CALL_TIME: Duration = Duration::from_millis(20);

/// How many times the two services are measured, one after the other. The round with the median
/// difference is reported.
const ROUNDS: u32 = 5;

/// The objects of the fake bucket, by their paths.
type Objects = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// Starts a fake S3 server.
fn start_bucket() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let objects = Objects::default();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, objects) = (stream.unwrap(), Arc::clone(&objects));
            // An error means that the service has closed the connection.
            thread::spawn(move || serve(stream, &objects).ok());
        }
    });
    address
}

/// Serves the requests of one connection until the service closes it.
fn serve(mut stream: TcpStream, objects: &Objects) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut received = Vec::new();
        let head_len = loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                read => received.extend_from_slice(&buffer[..read]),
            }
            if let Some(end) = find(&received, b"\r\n\r\n") {
                break end + 4;
            }
        };
        let mut body = received.split_off(head_len);
        let head = String::from_utf8(received).unwrap();
        let body_len = content_length(&head).unwrap_or(0);
        let received_len = body.len();
        body.resize(body_len, 0);
        stream.read_exact(&mut body[received_len..])?;
        let mut words = head.split([' ', '?']);
        let (method, path) = (words.next().unwrap(), words.next().unwrap().to_owned());
        let object = match method {
            "PUT" => {
                // Pictures are never read again.
                let kept = if path.contains("/downloads/") { Vec::new() } else { body };
                objects.lock().unwrap().insert(path, kept);
                Some(Vec::new())
            }
            "GET" => objects.lock().unwrap().get(&path).cloned(),
            _ => objects.lock().unwrap().remove(&path),
        };
        let (status, body) = match object {
            Some(object) => ("200 OK", object),
            None => ("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>".to_vec()),
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), &body].concat())?;
    }
}

impl Bench {
    /// Measures the latency that a Valkey adds, for one client.
    pub fn replicas(&mut self) {
        let Some(valkey) = RedisServer::start(&[]) else { return };
        let (endpoint, url) = (format!("http://{}", start_bucket()), valkey.url());
        let settings = [
            ("IMAGESVC_BUCKET", "s3://bench/replicas"),
            ("IMAGESVC_BUCKET_ENDPOINT", &endpoint),
            ("AWS_ACCESS_KEY_ID", "example"),
            ("AWS_SECRET_ACCESS_KEY", "example"),
            // Without the other levels of the cache, each hit comes from the bucket.
            ("IMAGESVC_CACHE_MEMORY", "0"),
            ("IMAGESVC_CACHE_DISK", "0"),
            ("NVIDIA_REQUESTS_PER_MINUTE", "100000"),
            ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1000000"),
        ];
        let with_valkey = [&settings[..], &[("IMAGESVC_VALKEY_URL", &*url)]].concat();
        let folder = self.folder("bucket");
        let plain = Service::start(&folder, &self.nvidia, &settings);
        let folder = self.folder("valkey");
        let shared = Service::start(&folder, &self.nvidia, &with_valkey);
        // For three seconds after its start, a replica makes only its share of the calls.
        thread::sleep(Duration::from_secs(4));

        self.nvidia.set_delay(CALL_TIME);
        heading(
            "one client, a bucket and an NVIDIA of 20 ms on loopback; median latency",
            &["picture", "bucket alone ms", "with Valkey ms", "added ms"],
        );
        for (sent, is_fresh, max_added_ms) in [("fresh", true, 5.0), ("again", false, 2.0)] {
            let load = Load {
                request: Request::upload(SMALL),
                is_fresh,
                clients: 1,
                run_for: self.load_time / ROUNDS,
            };
            let measure = |service| load.run(service, &self.nvidia).latency.p50;
            let mut rounds: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let (plain_ms, shared_ms) = (measure(&plain), measure(&shared));
                    (shared_ms - plain_ms, plain_ms, shared_ms)
                })
                .collect();
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (added_ms, plain_ms, shared_ms) = rounds[rounds.len() / 2];
            row(&[sent.into()], &[plain_ms, shared_ms, added_ms]);
            let name = format!("Valkey: added latency, 34 KB, {sent}, ms");
            self.report.goal_at_most(&name, added_ms, max_added_ms);
        }
        self.nvidia.set_delay(Duration::ZERO);
    }
}
