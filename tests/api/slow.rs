//! Slow clients: timers close their connections, and another client's upload succeeds meanwhile.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{FakeNvidia, ROCKET, ServiceProcess, TestApp, connect_from, form, post_head};

/// What a stalling client sends before it stops: nothing, a part of a header, or a header and a
/// part of a body.
const OPENINGS: [&[u8]; 6] = [
    b"",
    b"G",
    b"POST /vectorize-image-upload HTTP/1.1\r\nhost: x\r\n",
    // The start of HTTP/2, which the service does not support.
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /vectorize-image HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"image_url\":",
    b"POST /vectorize-image-upload HTTP/1.1\r\nhost: x\r\n\
      content-type: multipart/form-data; boundary=x\r\n\
      transfer-encoding: chunked\r\n\r\n5\r\n--x\r\n\r\n",
];

/// Whether the service closes or resets the connection within 6 s. This is longer than any timeout
/// that these tests set, and shorter than the service's default timeouts, which are 10 s or more.
async fn closes_in_time(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_secs(6), stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn the_connection_of_a_stalling_client_is_closed() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_HEADER_TIMEOUT", "200ms")
        .setting("IMAGESVC_BODY_TIMEOUT", "200ms")
        .start()
        .await;
    for opening in OPENINGS {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        stream.write_all(opening).await.unwrap();
        assert!(
            closes_in_time(&mut stream).await,
            "the connection of a client that stalls after `{}` should be closed",
            opening.escape_ascii()
        );
    }
    // The header timer also closes an idle keep-alive connection.
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(closes_in_time(&mut stream).await);
}

#[tokio::test]
async fn a_trickling_header_does_not_extend_the_header_timeout() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_HEADER_TIMEOUT", "300ms").start().await;
    let stream = TcpStream::connect(app.address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let trickle = tokio::spawn(async move {
        let mut sent_bytes = 0;
        // The client sends the beginning of the request line: a method that never ends.
        while writer.write_all(b"x").await.is_ok() {
            sent_bytes += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sent_bytes
    });
    let mut response = Vec::new();
    // The connection may be closed or reset, so the result of the read is not checked.
    let _ = timeout(Duration::from_secs(20), reader.read_to_end(&mut response)).await.unwrap();
    // One byte is sent every 20 ms. The default timeout of 10 s would allow nearly 500 bytes.
    assert!(trickle.await.unwrap() < 250, "the client should send for less than 5 s");
}

/// Uploads a picture without a pause, from an address that no stalling client uses. Returns the
/// response as text.
async fn upload_without_pause(service: &ServiceProcess) -> String {
    let mut stream = connect_from([127, 9, 9, 9], service.address).await.unwrap();
    let body = form(ROCKET);
    let request = post_head("/vectorize-image-upload", body.len(), "connection: close\r\n");
    stream.write_all(&request).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut response = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut response)).await.unwrap().unwrap();
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_succeeds_while_a_thousand_other_clients_stall() {
    let nvidia = FakeNvidia::healthy().await;
    let settings = [("IMAGESVC_HEADER_TIMEOUT", "2s"), ("IMAGESVC_BODY_TIMEOUT", "2s")];
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &settings);
    // Of a thousand connections from one address, the service refuses most. From a thousand
    // addresses, it accepts all, because its limit is 1024 connections.
    for is_one_peer in [true, false] {
        let mut stalling = Vec::new();
        for n in 0..1000usize {
            let source = if is_one_peer {
                [127, 0, 0, 1]
            } else {
                [127, 1, (n / 250) as u8, (n % 250) as u8 + 1] // another address for each `n`
            };
            // A refused connection may be closed before its opening is sent.
            if let Ok(mut stream) = connect_from(source, service.address).await {
                let _ = stream.write_all(OPENINGS[n % OPENINGS.len()]).await;
                stalling.push(stream);
            }
        }
        let response = upload_without_pause(&service).await;
        assert!(response.starts_with("HTTP/1.1 200 OK"), "{response:.300}");
        for stream in &mut stalling {
            assert!(closes_in_time(stream).await);
        }
    }
    // All connections of stalling clients are closed now.
    assert!(upload_without_pause(&service).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn the_connection_of_a_client_that_reads_no_response_is_closed() {
    // Unit tests check the write timer of 10 s with simulated time. This test checks that
    // connections use it: if they do, a shutdown with such a client ends long before the drain
    // timeout of 70 s.
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(app.address).await.unwrap();
    // All responses together exceed the sockets' buffers.
    for _ in 0..20 {
        stream
            .write_all(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
    }
    let stopped = timeout(Duration::from_secs(30), app.stop()).await;
    assert!(
        stopped.is_ok(),
        "the write timer should close the connection, so that the service stops within 30 s"
    );
}
