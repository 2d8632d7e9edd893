//! A real `redis-server` behind a proxy. Tests can make either of them fail.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use redis::FromRedisValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use super::Setting;
pub use test_server::RedisServer;

#[path = "../../../src/valkey/test_server.rs"]
mod test_server;

/// How the proxy forwards bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// At once.
    Fast,
    /// The server's bytes this much later, and the service's bytes at once.
    Slow(Duration),
    /// Not at all, as if the other machine were gone. Connections stay open. If a connection has lost bytes
    /// in one direction, it loses all later bytes in this direction, even if the link is fast again:
    /// otherwise the stream would have a gap.
    Silent,
}

/// Who sends the bytes that the proxy forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Service,
    Server,
}

/// A `redis-server` with a password, behind a proxy. The process is killed when this value is dropped.
pub struct ValkeyServer {
    /// `None` after [`Self::kill`].
    server: Option<RedisServer>,
    port: u16,
    proxy: SocketAddr,
    link: watch::Sender<Link>,
    _proxy_task: JoinSet<()>,
}

impl ValkeyServer {
    /// The server's password. Tests search logs for it, because the service must never reveal it.
    pub const PASSWORD: &'static str = "planted-valkey-password";

    /// How long the service waits for a reply of the server in these tests.
    pub const TIMEOUT: Duration = Duration::from_secs(2);

    const ARGUMENTS: [&'static str; 2] = ["--requirepass", Self::PASSWORD];

    /// Starts a server. If `redis-server` is not installed, prints that and returns `None`, or panics in CI.
    pub async fn start() -> Option<Self> {
        let server = RedisServer::start(&Self::ARGUMENTS)?;
        let port = server.port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let link = watch::Sender::new(Link::Fast);
        let mut proxy_task = JoinSet::new();
        proxy_task.spawn(forward_all(listener, port, link.subscribe()));
        Some(Self { server: Some(server), port, proxy, link, _proxy_task: proxy_task })
    }

    /// The settings with which the service uses this server. The timeout is longer than the default, so
    /// that a busy machine is not taken for an outage.
    pub fn settings(&self) -> Vec<Setting> {
        let url = format!("redis://:{}@{}", Self::PASSWORD, self.proxy);
        let timeout = format!("{}s", Self::TIMEOUT.as_secs());
        vec![("IMAGESVC_VALKEY_URL", url), ("IMAGESVC_VALKEY_TIMEOUT", timeout)]
    }

    /// Runs a command on the server directly, not through the proxy.
    pub async fn query<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let url = format!("redis://:{}@127.0.0.1:{}", Self::PASSWORD, self.port);
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::Cmd::new();
        command.arg(words).query_async(&mut connection).await.unwrap()
    }

    /// The full names of all keys that begin with `{imagesvc}:` and then `beginning`.
    pub async fn keys(&self, beginning: &str) -> Vec<String> {
        self.query(&["KEYS", &format!("{{imagesvc}}:{beginning}*")]).await
    }

    /// Changes how the proxy forwards bytes.
    pub fn set_link(&self, link: Link) {
        self.link.send_replace(link);
    }

    /// Suspends the server's process.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Continues the suspended process.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.server.as_ref().unwrap().pid();
        let kill = format!("kill -{name} {pid}");
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Kills the server. Its data is lost.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the server again after [`Self::kill`].
    pub fn start_again(&mut self) {
        let server = RedisServer::start_on(self.port, &Self::ARGUMENTS);
        self.server = Some(server.expect("the port should still be free"));
    }
}

async fn forward_all(listener: TcpListener, port: u16, link: watch::Receiver<Link>) {
    let mut connections = JoinSet::new();
    while let Ok((service, _)) = listener.accept().await {
        // If the server does not run, `service` is dropped, which closes the connection.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
        let ((from_service, to_service), (from_server, to_server)) =
            (service.into_split(), server.into_split());
        connections.spawn(forward(Source::Service, from_service, to_server, link.clone()));
        connections.spawn(forward(Source::Server, from_server, to_service, link.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards bytes until one side closes the connection.
async fn forward(
    source: Source,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: watch::Receiver<Link>,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut has_lost_bytes = false;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let link = *link.borrow();
        match link {
            Link::Slow(delay) if source == Source::Server => sleep(delay).await,
            Link::Silent => has_lost_bytes = true,
            Link::Fast | Link::Slow(_) => {}
        }
        if !has_lost_bytes && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
