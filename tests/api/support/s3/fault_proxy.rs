//! A proxy between the service and an S3 server. Tests tell the proxy which requests must fail, and how.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::LONGEST_WAIT;
use crate::support::Received;

/// What the proxy does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Reads the request and answers with this status and S3's error code, such as `SlowDown`. The
    /// server does not see the request.
    Error(u16, &'static str),
    /// Forwards the request, and sends the response this much later.
    Delay(Duration),
    /// Forwards the first half of the request's body, and then closes both connections.
    CutRequest,
    /// Forwards the request, and closes the connection after half of the response's body. If the
    /// response has no body, after half of its head.
    CutResponse,
    /// Reads the head of the request, and never answers.
    Hold,
    /// Closes all connections and refuses new ones, so that all requests fail, also those that do not
    /// match the condition of [`FaultProxy::set_for`].
    Refuse,
}

type Matches = dyn Fn(&Received) -> bool + Send + Sync;

/// The current fault, and the requests that it affects.
#[derive(Clone)]
struct Rule {
    fault: Fault,
    matches: Arc<Matches>,
}

/// What the connections share.
struct Shared {
    upstream: SocketAddr,
    requests: Mutex<Vec<Received>>,
    count: watch::Sender<usize>,
    rule: watch::Receiver<Option<Rule>>,
}

/// A running proxy. It forwards each request with `Connection: close`, a header that S3's signature does
/// not cover. Without a fault, it changes nothing else. Dropping this value closes all connections.
pub struct FaultProxy {
    pub address: SocketAddr,
    rule: watch::Sender<Option<Rule>>,
    shared: Arc<Shared>,
    is_listening: watch::Receiver<bool>,
    /// The accepting task. It is aborted when this set is dropped.
    _task: JoinSet<()>,
    /// Keeps the port while the proxy does not listen, so that no other program gets it.
    _reservation: TcpSocket,
}

impl FaultProxy {
    /// Starts a proxy in front of this server. At first it has no fault.
    pub async fn start(upstream: SocketAddr) -> Self {
        let reservation = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reservation.local_addr().unwrap();
        let (rule, rule_receiver) = watch::channel(None);
        let shared = Arc::new(Shared {
            upstream,
            requests: Mutex::default(),
            count: watch::Sender::new(0),
            rule: rule_receiver.clone(),
        });
        let (listening_sender, is_listening) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(accept(address, Arc::clone(&shared), rule_receiver, listening_sender));
        let mut proxy =
            Self { address, rule, shared, is_listening, _task: task, _reservation: reservation };
        proxy.wait_until_listening(true).await;
        proxy
    }

    /// From now on, all requests have this fault.
    pub async fn set(&mut self, fault: Fault) {
        self.set_for(fault, |_| true).await;
    }

    /// From now on, the requests that match have this fault. All others have none, except that
    /// [`Fault::Refuse`] affects them too.
    pub async fn set_for(
        &mut self,
        fault: Fault,
        matches: impl Fn(&Received) -> bool + Send + Sync + 'static,
    ) {
        self.rule.send_replace(Some(Rule { fault, matches: Arc::new(matches) }));
        self.wait_until_listening(fault != Fault::Refuse).await;
    }

    /// From now on, requests have no fault. Requests that are held stay held.
    pub async fn clear(&mut self) {
        self.rule.send_replace(None);
        self.wait_until_listening(true).await;
    }

    /// The heads of all requests so far, in order of arrival, without bodies. The length of a body is
    /// in the header `content-length`.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The method and the target of each request.
    pub fn lines(&self) -> Vec<String> {
        self.requests().iter().map(Received::line).collect()
    }

    /// The number of requests so far.
    pub fn count(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// Waits until at least this many requests have arrived, and returns all of them.
    pub async fn wait_for(&self, requests: usize) -> Vec<Received> {
        let mut count = self.shared.count.subscribe();
        let wait = timeout(LONGEST_WAIT, count.wait_for(|count| *count >= requests)).await;
        assert!(wait.is_ok(), "{requests} requests should arrive in time: {:?}", self.lines());
        self.requests()
    }

    async fn wait_until_listening(&mut self, expected: bool) {
        let wait =
            timeout(LONGEST_WAIT, self.is_listening.wait_for(|current| *current == expected));
        wait.await.expect("the proxy should start or stop listening in time").unwrap();
    }
}

fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    // Two sockets with this option can have the same port. Only one of them listens.
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Accepts connections, except during [`Fault::Refuse`]. The open ones are closed when this fault begins.
async fn accept(
    address: SocketAddr,
    shared: Arc<Shared>,
    mut rule: watch::Receiver<Option<Rule>>,
    listening_sender: watch::Sender<bool>,
) {
    let refuses = |rule: &Option<Rule>| rule.as_ref().is_some_and(|r| r.fault == Fault::Refuse);
    loop {
        if rule.wait_for(|rule| !refuses(rule)).await.is_err() {
            return;
        }
        let listener = bind(address).listen(1024).unwrap();
        listening_sender.send_replace(true);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, peer) = accepted.unwrap();
                    let shared = Arc::clone(&shared);
                    // An error ends only this connection.
                    connections.spawn(async move { drop(serve(stream, peer, &shared).await) });
                }
                Some(_) = connections.join_next() => {}
                refused = rule.wait_for(refuses) => {
                    if refused.is_err() {
                        return;
                    }
                    break;
                }
            }
        }
        drop((listener, connections));
        listening_sender.send_replace(false);
    }
}

/// Serves one request. The connection is closed after the response.
async fn serve(mut client: TcpStream, peer: SocketAddr, shared: &Shared) -> std::io::Result<()> {
    let head = read_head(&mut client).await?;
    let request = parse_head(&head, peer);
    shared.requests.lock().unwrap().push(request.clone());
    shared.count.send_modify(|count| *count += 1);
    let rule = shared.rule.borrow().clone();
    let fault = rule.filter(|rule| (rule.matches)(&request)).map(|rule| rule.fault);
    let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
    match fault {
        Some(Fault::Hold) => std::future::pending().await,
        Some(Fault::Error(status, code)) => {
            copy(&mut client, &mut tokio::io::sink(), length).await?;
            return client.write_all(&error_response(status, code)).await;
        }
        _ => {}
    }
    let mut server = TcpStream::connect(shared.upstream).await?;
    server.write_all(&with_connection_close(&head)).await?;
    if fault == Some(Fault::CutRequest) {
        return copy(&mut client, &mut server, length / 2).await;
    }
    copy(&mut client, &mut server, length).await?;
    let response_head = read_head(&mut server).await?;
    if let Some(Fault::Delay(delay)) = fault {
        tokio::time::sleep(delay).await;
    }
    if fault == Some(Fault::CutResponse) {
        // The headers of a response are parsed like those of a request.
        let parsed = parse_head(&response_head, peer);
        let body_len: u64 =
            parsed.header("content-length").map_or(0, |length| length.parse().unwrap());
        if body_len == 0 {
            return client.write_all(&response_head[..response_head.len() / 2]).await;
        }
        client.write_all(&response_head).await?;
        return copy(&mut server, &mut client, body_len / 2).await;
    }
    client.write_all(&response_head).await?;
    tokio::io::copy(&mut server, &mut client).await?;
    client.shutdown().await
}

/// Copies this many bytes, or fails.
async fn copy(
    from: &mut TcpStream,
    to: &mut (impl AsyncWriteExt + Unpin),
    length: u64,
) -> std::io::Result<()> {
    let copied = tokio::io::copy(&mut from.take(length), to).await?;
    if copied < length { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Reads until the end of a head, byte by byte, because the body must stay in the stream.
pub(super) async fn read_head(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

pub(super) fn parse_head(head: &[u8], peer: SocketAddr) -> Received {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().splitn(3, ' ').map(str::to_owned);
    let headers = lines.filter_map(|line| line.split_once(':'));
    Received {
        method: first.next().unwrap(),
        target: first.next().unwrap(),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
        body: Vec::new(),
        peer,
    }
}

/// The same head, but with the header `Connection: close`.
fn with_connection_close(head: &[u8]) -> Vec<u8> {
    let head = String::from_utf8(head.to_vec()).unwrap();
    let lines = head.trim_end().split("\r\n");
    let kept = lines.filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let mut head: String = kept.map(|line| format!("{line}\r\n")).collect();
    head.push_str("connection: close\r\n\r\n");
    head.into_bytes()
}

/// An error as S3 sends it.
fn error_response(status: u16, code: &str) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
         <Message>A fault of the proxy</Message><RequestId>0</RequestId></Error>"
    );
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Fault\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
