//! Bodies that are too large or lie about their length, and picture servers that misbehave.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    FORM, FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, base64_body, form,
    is_missing,
};

const LIMIT: usize = 1 << 20;

/// For each route a body whose picture exceeds the limit by one byte.
fn too_large() -> [(&'static str, &'static str, Vec<u8>); 3] {
    let picture = [ROCKET, &vec![0; LIMIT + 1 - ROCKET.len()]].concat();
    let address = format!("{{\"image_url\":\"{}\"}}", "a".repeat(64 * 1024));
    [
        ("/vectorize-image-upload", FORM, form(&picture)),
        ("/vectorize-image-base64", "application/json", base64_body(&picture).into()),
        ("/vectorize-image", "application/json", address.into()),
    ]
}

async fn limited(nvidia: &FakeNvidia) -> TestApp {
    TestApp::builder(nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB").start().await
}

/// The length that a client declares.
#[derive(Clone, Copy, Debug)]
enum Length {
    True,
    /// Ten gigabytes, most of which the client never sends.
    False,
    None,
}

/// Sends a whole request before it reads anything, then reads until the connection closes.
async fn send_then_read(
    address: SocketAddr,
    route: &str,
    content_type: &str,
    body: &[u8],
    length: Length,
) -> String {
    let head = format!(
        "POST {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {content_type}\r\n"
    );
    let mut request = head.into_bytes();
    match length {
        Length::True => request.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes()),
        Length::False => request.extend(b"content-length: 10000000000\r\n\r\n"),
        Length::None => request.extend(b"transfer-encoding: chunked\r\n\r\n"),
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&request).await.unwrap();
    match length {
        Length::None => {
            for piece in body.chunks(10_000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
                stream.write_all(piece).await.unwrap();
                stream.write_all(b"\r\n").await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        Length::True | Length::False => stream.write_all(body).await.unwrap(),
    }
    if matches!(length, Length::False) {
        stream.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_only_after_sending_always_receives_the_413() {
    let nvidia = FakeNvidia::healthy().await;
    let app = limited(&nvidia).await;
    for (route, content_type, body) in too_large() {
        for round in 0..100 {
            let length = [Length::True, Length::False, Length::None][round % 3];
            let answer = send_then_read(app.address, route, content_type, &body, length).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{route} {round} {length:?}: {answer}");
            assert!(answer.contains("\"image_too_large\""));
            assert_eq!(
                answer.matches("HTTP/1.1").count(),
                1,
                "the body is never parsed as a request"
            );
        }
    }
    assert!(app.saved().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reqwest_always_receives_the_413() {
    let nvidia = FakeNvidia::healthy().await;
    let app = limited(&nvidia).await;
    for (route, content_type, body) in too_large() {
        for round in 0..100 {
            let request = app.client.post(app.url(route)).header("content-type", content_type);
            let request = if round % 2 == 0 {
                request.body(body.clone())
            } else {
                let frame = Ok::<_, std::io::Error>(http_body::Frame::data(bytes::Bytes::from(
                    body.clone(),
                )));
                let chunked = http_body_util::StreamBody::new(futures_util::stream::iter([frame]));
                request.body(reqwest::Body::wrap(chunked))
            };
            assert_problem(&app.send(request).await, 413, "image_too_large");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_always_receives_the_413() {
    if is_missing("curl") {
        return;
    }
    let nvidia = FakeNvidia::healthy().await;
    let app = limited(&nvidia).await;
    for (route, content_type, body) in too_large() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        for round in 0..100 {
            // with and without `Expect: 100-continue`, with and without a length
            let headers: &[&str] = match round % 4 {
                0 => &["-H", "Expect:"],
                1 => &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"],
                2 => &["-H", "Transfer-Encoding: chunked"],
                _ => &["-H", "Expect: 100-continue"],
            };
            let mut curl = std::process::Command::new("curl");
            curl.args([
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
            ])
            .args(["-X", "POST", "-H", &format!("Content-Type: {content_type}")])
            .args(headers)
            .args([
                "--data-binary",
                &format!("@{}", file.path().display()),
                &app.url(route),
            ]);
            let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "413", "{route} {round}: {said}");
            assert!(output.status.success(), "{route} {round}: {said}");
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_receives_the_413_at_once() {
    let nvidia = FakeNvidia::healthy().await;
    let app = limited(&nvidia).await;
    for (route, content_type, body) in too_large() {
        let length = body.len() + 2 * LIMIT;
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let head = format!(
            "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
             expect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The connection closes at once, not after a drain of five seconds.
        timeout(Duration::from_secs(3), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_unread_body_is_never_parsed_as_a_request() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let smuggled = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    for route in ["/health", "/nothing", "/vectorize-image-upload"] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let requests = format!(
            "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{smuggled}\
             GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            smuggled.len()
        );
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert!(!answers.contains("openmetrics"), "{answers}");
        assert!(answers.matches("HTTP/1.1 ").count() <= 2, "{answers}");
    }
}

#[tokio::test]
async fn a_misbehaving_picture_host_is_stopped_by_the_deadline_or_the_limit() {
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let with = |rest: &[u8]| [&head[..], rest].concat();
    for (reply, status, code) in [
        (Reply::Hang, 504, "download_timeout"),
        (Reply::Trickle(with(b"\r\n")), 504, "download_timeout"),
        (Reply::Trickle(with(b"x: ")), 504, "download_timeout"),
        (Reply::Trickle(with(b"content-length: 100000\r\n\r\n")), 504, "download_timeout"),
        (Reply::Trickle(b"HTTP/1.1 302 Found\r\nlocation: ".to_vec()), 504, "download_timeout"),
        (Reply::Endless(with(b"\r\n")), 413, "image_too_large"),
        (Reply::Endless(with(b"content-length: 99999999999\r\n\r\n")), 413, "image_too_large"),
        (Reply::CloseAfter(with(b"content-length: 100000\r\n\r\nshort")), 502, "download_failed"),
        (
            Reply::CloseAfter(with(b"content-encoding: gzip\r\n\r\n\x1f\x8b")),
            502,
            "download_failed",
        ),
        (Reply::Endless(with(b"x: ")), 502, "download_failed"),
        (Reply::Endless(b"HTTP/1.1 302 Found\r\nlocation: /".to_vec()), 502, "download_failed"),
    ] {
        let nvidia = FakeNvidia::healthy().await;
        let shown = format!("{reply:?}");
        let picture_server = FakeServer::start(move |_, _| reply.clone()).await;
        let app = TestApp::builder(&nvidia)
            .may_fetch_from(&picture_server)
            .setting("IMAGESVC_FETCH_TIMEOUT", "400ms")
            .setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB")
            .start()
            .await;
        let answer = app.by_url(&picture_server.url("/")).await;
        assert_eq!(answer.json()["code"], code, "{shown:.60}");
        assert_problem(&answer, status, code);
        assert!(app.saved().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_wait_for_100_continue_always_receives_the_refusal() {
    let nvidia = FakeNvidia::healthy().await;
    let limited = limited(&nvidia).await;
    let keyed = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "k-1").start().await;
    for (app, status) in [(&limited, "413"), (&keyed, "401")] {
        for (route, content_type, body) in too_large() {
            for _ in 0..30 {
                let mut stream = TcpStream::connect(app.address).await.unwrap();
                let head = format!(
                    "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
                     content-length: {}\r\nconnection: close\r\nexpect: 100-continue\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                // The answer has arrived, and the server has shut its side of the connection down.
                stream.readable().await.unwrap();
                for piece in body.chunks(64 * 1024) {
                    stream.write_all(piece).await.unwrap();
                }
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                // If the length is within the limit, the service asks for the body first.
                let last = answer.rsplit("HTTP/1.1 ").next().unwrap();
                assert!(last.starts_with(status), "{answer}");
            }
        }
    }
}
