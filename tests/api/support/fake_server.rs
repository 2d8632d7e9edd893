//! A fake HTTP/1.1 server that sends the replies of a script and records every request.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// A recorded request.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The headers in the order of arrival, with names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The address of the client on the request's connection.
    pub peer: SocketAddr,
}

impl Received {
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All headers in sorted order, except `host`, which differs from run to run.
    pub fn sorted_headers(&self) -> Vec<String> {
        let headers = self.headers.iter().filter(|(name, _)| name != "host");
        let mut headers: Vec<_> = headers.map(|(name, value)| format!("{name}: {value}")).collect();
        headers.sort();
        headers
    }
}

/// How the server replies to a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Sends these bytes, and keeps the connection open.
    Bytes(Vec<u8>),
    /// Sends these bytes, then closes the connection.
    CloseAfter(Vec<u8>),
    /// Waits for this time, and then sends these bytes.
    After(Duration, Vec<u8>),
    /// Sends these bytes when the test sends `true` or drops the sender.
    Held(watch::Receiver<bool>, Vec<u8>),
    /// Never replies.
    Hang,
    /// Sends these bytes, then one byte every 5 ms without end.
    Trickle(Vec<u8>),
    /// Sends these bytes, then zeros without end, as fast as the client reads.
    Endless(Vec<u8>),
}

impl Reply {
    pub fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut text = format!("HTTP/1.1 {status} Fake\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        Self::Bytes([text.as_bytes(), body].concat())
    }

    pub fn json(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self::new(status, &[("content-type", "application/json")], body)
    }

    /// Holds the reply until the test sends `true`.
    pub fn held_until(self, release: &watch::Sender<bool>) -> Self {
        Self::Held(release.subscribe(), self.into_bytes())
    }

    /// Delays the reply.
    pub fn after(self, wait: Duration) -> Self {
        Self::After(wait, self.into_bytes())
    }

    /// Sends the first half of the reply, then closes the connection.
    pub fn broken_off(self) -> Self {
        let mut bytes = self.into_bytes();
        bytes.truncate(bytes.len() / 2);
        Self::CloseAfter(bytes)
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("only a `Reply::Bytes` can be changed, not {other:?}"),
        }
    }

    pub fn status(status: u16) -> Self {
        Self::new(status, &[], "")
    }
}

/// Counts the requests that wait for a [`Reply::After`].
#[derive(Default)]
struct DelayedRequests {
    /// The number of requests that wait now.
    now: AtomicUsize,
    /// The highest value of `now` so far.
    most: AtomicUsize,
}

/// At most this many requests are recorded with their bodies. Later requests are recorded without
/// bodies, because many large bodies would take too much memory.
const MAX_RECORDED_BODIES: usize = 64;

type Script = dyn Fn(&Received, usize) -> Reply + Send + Sync;

/// A running server. When this value is dropped, the server accepts no more connections.
pub struct FakeServer {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    count: watch::Receiver<usize>,
    delayed: Arc<DelayedRequests>,
    task: JoinHandle<()>,
}

impl FakeServer {
    /// Starts a server that sends the replies of a script. The script gets each request and the number
    /// of requests before it.
    pub async fn start(script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, script).await
    }

    /// Like [`Self::start`], but over TLS. Clients use `https://localhost:<port>`, so only a certificate
    /// for `localhost` is valid.
    pub async fn start_tls(
        config: ServerConfig,
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Some(Arc::new(config).into()), script).await
    }

    async fn listen(
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Script> = Arc::new(script);
        let received = Arc::new(Mutex::new(Vec::new()));
        let (count_sender, count) = watch::channel(0);
        let delayed = Arc::new(DelayedRequests::default());
        let state = SharedState {
            script,
            received: Arc::clone(&received),
            count: Arc::new(count_sender),
            delayed: Arc::clone(&delayed),
        };
        let task = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (state, tls) = (state.clone(), tls.clone());
                tokio::spawn(async move {
                    // An error ends only this connection.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => state.serve(stream, peer).await,
                            Err(error) => Err(error),
                        },
                        None => state.serve(stream, peer).await,
                    };
                });
            }
        });
        Self { address, received, count, delayed, task }
    }

    /// Starts a server that replies to each request with this picture.
    pub async fn serving(picture: &[u8]) -> Self {
        let reply = Reply::new(200, &[], picture);
        Self::start(move |_, _| reply.clone()).await
    }

    /// A URL of this server, if it was started without TLS.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The most requests that waited for a [`Reply::After`] at the same time.
    pub fn max_delayed_at_once(&self) -> usize {
        self.delayed.most.load(Ordering::SeqCst)
    }

    /// The method and the target of each request.
    pub fn lines(&self) -> Vec<String> {
        self.received().iter().map(Received::line).collect()
    }

    /// The number of requests so far.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until at least this many requests have arrived, and returns all requests. Tests need
    /// this because the service makes some calls only after it has answered the client.
    pub async fn wait_for(&self, requests: usize) -> Vec<Received> {
        let mut count = self.count.clone();
        let arrival = count.wait_for(|count| *count >= requests);
        let arrived = timeout(Duration::from_secs(10), arrival).await.is_ok();
        let lines = self.lines();
        assert!(arrived, "{requests} requests should arrive within 10 s: {lines:?}");
        self.received()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The state that all connections share.
#[derive(Clone)]
struct SharedState {
    script: Arc<Script>,
    received: Arc<Mutex<Vec<Received>>>,
    count: Arc<watch::Sender<usize>>,
    delayed: Arc<DelayedRequests>,
}

impl SharedState {
    /// Serves a connection until an error ends it, or until a reply closes it.
    async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
    ) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let request = read_request(&mut stream, peer).await?;
            let reply = {
                let mut received = self.received.lock().unwrap();
                let reply = (self.script)(&request, received.len());
                let records_body = received.len() < MAX_RECORDED_BODIES;
                let body = if records_body { request.body } else { Vec::new() };
                received.push(Received { body, ..request });
                reply
            };
            self.count.send_modify(|count| *count += 1);
            match reply {
                Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
                Reply::CloseAfter(bytes) => return stream.write_all(&bytes).await,
                Reply::After(wait, bytes) => {
                    let waiting = self.delayed.now.fetch_add(1, Ordering::SeqCst) + 1;
                    self.delayed.most.fetch_max(waiting, Ordering::SeqCst);
                    tokio::time::sleep(wait).await;
                    self.delayed.now.fetch_sub(1, Ordering::SeqCst);
                    stream.write_all(&bytes).await?;
                }
                Reply::Held(mut release, bytes) => {
                    // An error means that the test has dropped the sender.
                    let _ = release.wait_for(|is_released| *is_released).await;
                    stream.write_all(&bytes).await?;
                }
                Reply::Hang => std::future::pending().await,
                Reply::Trickle(bytes) => {
                    stream.write_all(&bytes).await?;
                    loop {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        stream.write_all(b"0").await?;
                    }
                }
                Reply::Endless(bytes) => {
                    stream.write_all(&bytes).await?;
                    loop {
                        stream.write_all(&[0; 1 << 16]).await?;
                    }
                }
            }
        }
    }
}

async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
) -> std::io::Result<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.split("\r\n");
    let mut request_line = lines.next().unwrap().splitn(3, ' ');
    let method = request_line.next().unwrap().to_owned();
    let target = request_line.next().unwrap().to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut received = Received { method, target, headers, body: Vec::new(), peer };
    assert_eq!(
        received.header("transfer-encoding"),
        None,
        "the service must send every body with its length"
    );
    let length = received.header("content-length").map_or(0, |length| length.parse().unwrap());
    received.body.resize(length, 0);
    stream.read_exact(&mut received.body).await?;
    Ok(received)
}
