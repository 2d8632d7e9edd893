//! Bodies that are too large or have a false length, and picture hosts that misbehave.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    FORM_CONTENT_TYPE, FakeNvidia, FakeServer, ROCKET, Reply, SMUGGLED_REQUEST, TestApp,
    assert_problem, base64_body, form, is_missing,
};

/// The largest picture that the service of [`start_limited`] accepts, in bytes.
const MAX_PICTURE_BYTES: usize = 1 << 20;

/// How many times most tests send each body. A faulty service that resets connections would lose the answer
/// only in some of these rounds.
const ROUNDS: usize = 100;

/// For each route: its path, a content type, and a body that is too large. In the bodies for the upload and
/// the Base64 route, the picture has one byte too many. The URL route accepts bodies of up to 64 KiB, and in
/// the body for this route, the URL alone has 64 KiB.
fn bodies_that_are_too_large() -> [(&'static str, &'static str, Vec<u8>); 3] {
    let picture = [ROCKET, &vec![0; MAX_PICTURE_BYTES + 1 - ROCKET.len()]].concat();
    let body_with_long_url = format!("{{\"image_url\":\"{}\"}}", "a".repeat(64 * 1024));
    [
        ("/vectorize-image-upload", FORM_CONTENT_TYPE, form(&picture)),
        ("/vectorize-image-base64", "application/json", base64_body(&picture).into()),
        ("/vectorize-image", "application/json", body_with_long_url.into()),
    ]
}

/// Starts a service that accepts pictures up to [`MAX_PICTURE_BYTES`].
async fn start_limited(nvidia: &FakeNvidia) -> TestApp {
    TestApp::builder(nvidia).setting("IMAGESVC_MAX_IMAGE_BYTES", MAX_PICTURE_BYTES).start().await
}

/// How a client declares the length of its body.
#[derive(Clone, Copy, Debug)]
enum DeclaredLength {
    Exact,
    /// The client declares ten gigabytes, but closes its side of the connection after the shorter body.
    TooLong,
    /// The client declares no length, and sends the body in chunks.
    Chunked,
}

/// Sends a whole request without reading anything. Then reads until the connection closes.
async fn send_then_read(
    address: SocketAddr,
    route: &str,
    content_type: &str,
    body: &[u8],
    length: DeclaredLength,
) -> String {
    let framing = match length {
        DeclaredLength::Exact => format!("content-length: {}", body.len()),
        DeclaredLength::TooLong => "content-length: 10000000000".into(),
        DeclaredLength::Chunked => "transfer-encoding: chunked".into(),
    };
    let head = format!(
        "POST {route} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
         {framing}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    match length {
        DeclaredLength::Chunked => {
            for piece in body.chunks(10_000) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
                stream.write_all(piece).await.unwrap();
                stream.write_all(b"\r\n").await.unwrap();
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        DeclaredLength::Exact => stream.write_all(body).await.unwrap(),
        DeclaredLength::TooLong => {
            stream.write_all(body).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_only_after_sending_a_body_that_is_too_large_always_receives_the_413() {
    let nvidia = FakeNvidia::healthy().await;
    let app = start_limited(&nvidia).await;
    for (route, content_type, body) in bodies_that_are_too_large() {
        for round in 0..ROUNDS {
            let length = match round % 3 {
                0 => DeclaredLength::Exact,
                1 => DeclaredLength::TooLong,
                _ => DeclaredLength::Chunked,
            };
            let answer = send_then_read(app.address, route, content_type, &body, length).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{route} {round} {length:?}: {answer}");
            assert!(answer.contains("\"image_too_large\""), "{answer}");
            assert_eq!(
                answer.matches("HTTP/1.1").count(),
                1,
                "the body must not be parsed as a request"
            );
        }
    }
    assert!(app.saved().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn reqwest_always_receives_the_413_for_a_body_that_is_too_large() {
    let nvidia = FakeNvidia::healthy().await;
    let app = start_limited(&nvidia).await;
    for (route, content_type, body) in bodies_that_are_too_large() {
        for round in 0..ROUNDS {
            let request = app.client.post(app.url(route)).header("content-type", content_type);
            // Alternately with a `Content-Length` and in chunks.
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
async fn curl_always_receives_the_413_for_a_body_that_is_too_large() {
    if is_missing("curl") {
        return;
    }
    let nvidia = FakeNvidia::healthy().await;
    let app = start_limited(&nvidia).await;
    for (route, content_type, body) in bodies_that_are_too_large() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &body).unwrap();
        for round in 0..ROUNDS {
            // With a `Content-Length` or in chunks, and with `Expect: 100-continue` or without.
            // curl itself adds `Expect` to a body of more than 1 MiB, unless `-H Expect:` removes it.
            let headers: &[&str] = match round % 4 {
                0 => &["-H", "Expect:"],
                1 => &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"],
                2 => &["-H", "Transfer-Encoding: chunked"],
                _ => &["-H", "Expect: 100-continue"],
            };
            let mut curl = std::process::Command::new("curl");
            curl.args(["--silent", "--show-error", "--noproxy", "*"])
                .args(["-o", "/dev/null", "-w", "%{http_code}"])
                .args(["-X", "POST", "-H", &format!("Content-Type: {content_type}")])
                .args(headers)
                .args(["--data-binary", &format!("@{}", file.path().display())])
                .arg(app.url(route));
            let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(String::from_utf8_lossy(&output.stdout), "413", "{route} {round}: {errors}");
            assert!(output.status.success(), "{route} {round}: {errors}");
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_receives_the_413_before_it_sends_the_body() {
    let nvidia = FakeNvidia::healthy().await;
    let app = start_limited(&nvidia).await;
    for (route, content_type, _) in bodies_that_are_too_large() {
        // A body is refused before it is sent only if the declared length exceeds the route's limit on
        // bodies. This limit is at most twice `MAX_PICTURE_BYTES` here, to leave room for a form or JSON.
        let declared_length = 2 * MAX_PICTURE_BYTES + 1;
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let head = format!(
            "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
             content-length: {declared_length}\r\nexpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // The service should close the connection at once, because it can refuse the request without
        // the body.
        let read = timeout(Duration::from_secs(3), stream.read_to_string(&mut answer));
        read.await.expect("the service should close the connection within 3 s").unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_unread_body_is_never_parsed_as_a_request() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // GET is the only method of `/health`. The upload needs a form.
    for (route, status) in [("/health", 405), ("/nothing", 404), ("/vectorize-image-upload", 422)] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        // The smuggled request is the body of the first request. A second request comes after this body.
        let requests = format!(
            "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{SMUGGLED_REQUEST}\
             GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            SMUGGLED_REQUEST.len()
        );
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(
            answers.starts_with(&expected),
            "{route} should get the status {status}: {answers}"
        );
        // The smuggled request asks for the metrics.
        assert!(
            !answers.contains("openmetrics"),
            "the smuggled request must not be answered: {answers}"
        );
        // One answer is enough: the service may close the connection after it.
        assert!(
            answers.matches("HTTP/1.1 ").count() <= 2,
            "the service must answer only the two requests outside of the body: {answers}"
        );
    }
}

#[tokio::test]
async fn a_fetch_from_a_misbehaving_picture_host_ends_with_an_error() {
    // `Trickle` and `Endless` send without end. The slow `Trickle` exceeds the fetch timeout. The fast
    // `Endless` exceeds the limit on the size of a picture, or on the size of a response's head.
    let ok_and = |rest: &[u8]| [b"HTTP/1.1 200 OK\r\n", rest].concat();
    for (reply, status, code) in [
        (Reply::Hang, 504, "download_timeout"),
        (Reply::Trickle(ok_and(b"\r\n")), 504, "download_timeout"),
        (Reply::Trickle(ok_and(b"x: ")), 504, "download_timeout"),
        (Reply::Trickle(ok_and(b"content-length: 100000\r\n\r\n")), 504, "download_timeout"),
        (Reply::Trickle(b"HTTP/1.1 302 Found\r\nlocation: ".to_vec()), 504, "download_timeout"),
        (Reply::Endless(ok_and(b"\r\n")), 413, "image_too_large"),
        (Reply::Endless(ok_and(b"content-length: 99999999999\r\n\r\n")), 413, "image_too_large"),
        (Reply::CloseAfter(ok_and(b"content-length: 100000\r\n\r\nshort")), 502, "download_failed"),
        (
            // a gzip stream that ends after two bytes
            Reply::CloseAfter(ok_and(b"content-encoding: gzip\r\n\r\n\x1f\x8b")),
            502,
            "download_failed",
        ),
        (Reply::Endless(ok_and(b"x: ")), 502, "download_failed"),
        (Reply::Endless(b"HTTP/1.1 302 Found\r\nlocation: /".to_vec()), 502, "download_failed"),
    ] {
        let nvidia = FakeNvidia::healthy().await;
        let reply_text = format!("{reply:?}");
        let picture_server = FakeServer::start(move |_, _| reply.clone()).await;
        let app = TestApp::builder(&nvidia)
            .may_fetch_from(&picture_server)
            .setting("IMAGESVC_FETCH_TIMEOUT", "400ms")
            .setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB")
            .start()
            .await;
        let answer = app.by_url(&picture_server.url("/")).await;
        // `assert_problem` checks the code too, but its message does not contain the reply.
        assert_eq!(answer.json()["code"], code, "{reply_text:.60}");
        assert_problem(&answer, status, code);
        assert!(app.saved().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_continue_but_reads_only_after_sending_receives_the_refusal() {
    let nvidia = FakeNvidia::healthy().await;
    let limited_app = start_limited(&nvidia).await;
    let keyed_app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "k-1").start().await;
    for (app, status) in [(&limited_app, "413"), (&keyed_app, "401")] {
        // `keyed_app` refuses every request without a key, whatever the length of its body.
        for (route, content_type, body) in bodies_that_are_too_large() {
            // Repeated, because a faulty service would lose the refusal only sometimes.
            for _ in 0..30 {
                let mut stream = TcpStream::connect(app.address).await.unwrap();
                let head = format!(
                    "POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
                     content-length: {}\r\nconnection: close\r\nexpect: 100-continue\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                // The client waits until the service sends a `100 Continue` or the refusal, but
                // reads it only after the whole body is sent.
                stream.readable().await.unwrap();
                for piece in body.chunks(64 * 1024) {
                    stream.write_all(piece).await.unwrap();
                }
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                // A `100 Continue` comes first if the declared length is within the route's limit on bodies.
                let final_answer = answer.rsplit("HTTP/1.1 ").next().unwrap();
                assert!(final_answer.starts_with(status), "{answer}");
            }
        }
    }
}
