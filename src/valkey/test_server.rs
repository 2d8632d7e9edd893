//! A real `redis-server` for tests. It listens on a free port of the loopback interface, keeps nothing
//! on disk, and is killed when it is dropped.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot start its server fails, or says why it is skipped"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the unit tests and the API tests include this file, and use different functions"
)]

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A running server.
pub struct RedisServer {
    child: Child,
    port: u16,
}

impl RedisServer {
    /// Starts a server with these additional arguments. If `redis-server` is not installed, prints that
    /// and returns `None`, or panics in CI.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        let is_installed = Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !is_installed {
            assert!(std::env::var_os("CI").is_none(), "CI must install redis-server");
            eprintln!("skipped: redis-server is not installed");
            return None;
        }
        let try_start = |_| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
            let port = listener.local_addr().expect("the port is bound").port();
            drop(listener);
            Self::start_on(port, arguments)
        };
        // Another process may take the port before the server does.
        Some(
            (0..5)
                .find_map(try_start)
                .expect("redis-server should start on one of five free ports"),
        )
    }

    /// Starts a server on this port. Returns `None` if the server ends before it listens.
    pub fn start_on(port: u16, arguments: &[&str]) -> Option<Self> {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server should start");
        // From here on, the process is killed if this function fails, because `server` is dropped.
        let mut server = Self { child, port };
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if server.child.try_wait().expect("the child can be waited for").is_some() {
                return None;
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(server);
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not listen after {START_TIMEOUT:?}");
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's URL, without credentials.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // An error means that the server has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
