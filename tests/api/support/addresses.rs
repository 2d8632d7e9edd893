//! Connections from a chosen source address, and an address that nobody listens on.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use reqwest::Client;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// An HTTP client that connects from the address `source`. On Linux, every address in 127.0.0.0/8
/// belongs to this machine.
pub fn client_from(source: [u8; 4]) -> Client {
    Client::builder()
        .no_proxy()
        .local_address(IpAddr::from(source))
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

/// Connects from the address `source` to the address `to`.
pub async fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(to).await
}

/// An address of this machine that nobody listens on.
pub async fn free_address() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap()
}
