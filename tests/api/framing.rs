//! What every request must hold before a route looks at it: one valid host, a body that ends where
//! both sides think it does, in no coding; and what every answer holds: when it was made.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    Answer, Child, FORM, FakeNvidia, ROCKET, TestApp, assert_problem, form, post_head,
};

/// Asks what nobody should be answered who hid it in another request's body.
const SMUGGLED: &str = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";

/// All that comes until the service closes the connection, which it must do by itself.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // Less than an idle connection has.
    let read = timeout(Duration::from_secs(8), stream.read_to_end(&mut bytes));
    read.await.expect("it is closed").unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_to_end(&mut stream).await
}

/// The only answer in a text.
fn parse(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: HeaderMap = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
        .collect::<Vec<(_, HeaderValue)>>()
        .into_iter()
        .collect();
    let length = headers.get("content-length").unwrap().to_str().unwrap();
    assert_eq!(length, body.len().to_string(), "another answer follows: {text}");
    Answer { status, headers, body: body.into() }
}

fn request(line: &str, hosts: &[&str], more: &str) -> Vec<u8> {
    let mut request = format!("{line}\r\n{more}").into_bytes();
    for host in hosts {
        request.extend(format!("Host: {host}\r\n").bytes());
    }
    request.extend(b"\r\n");
    request
}

#[tokio::test]
async fn every_route_wants_exactly_one_valid_host() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_API_KEYS", "k-1")
        .setting("IMAGESVC_CORS_ORIGINS", "https://app.example.com")
        .start()
        .await;
    let preflight = "origin: https://app.example.com\r\naccess-control-request-method: POST\r\n";
    for (route, more) in [
        ("GET /", ""),
        ("GET /health", ""),
        ("GET /ready", ""),
        ("GET /docs/", ""),
        ("GET /openapi.json", ""),
        ("GET /metrics", ""),
        ("GET /nothing", ""),
        ("BREW /health", ""),
        ("OPTIONS *", ""),
        ("OPTIONS /vectorize-image", preflight),
        ("POST /vectorize-image", "content-length: 0\r\n"),
        ("POST /vectorize-image-base64", "content-length: 0\r\n"),
        ("POST /vectorize-image-upload", "content-length: 0\r\n"),
    ] {
        for hosts in [
            &[][..],
            &["x", "x"],
            &["x", "evil.example"],
            &["", "x"],
            &[""],
            &["a b"],
            &["a, b"],
            &["user@x"],
            &["http://x"],
            &["x/metrics"],
            &["x:port"],
            &["[::1"],
            &["b\u{fc}cher.example"],
        ] {
            let head = request(&format!("{route} HTTP/1.1"), hosts, more);
            let answer = parse(&exchange(app.address, &head).await);
            assert_problem(&answer, 400, "invalid_host");
            assert_eq!(answer.header("connection"), "close");
        }
    }
    for hosts in [&["x", "x"][..], &["a b"]] {
        let head = request("GET /health HTTP/1.0", hosts, "");
        assert_problem(&parse(&exchange(app.address, &head).await), 400, "invalid_host");
    }
}

#[tokio::test]
async fn valid_hosts_are_accepted_and_http_1_0_needs_none() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for host in ["x", "image_service:8000", "images.example.com.:80", "192.0.2.7:", "[::1]:8000"] {
        let head = request("GET /health HTTP/1.1", &[host], "connection: close\r\n");
        assert_eq!(parse(&exchange(app.address, &head).await).status, 200, "{host}");
    }
    for hosts in [&[][..], &[""], &["x"]] {
        let head = request("GET /health HTTP/1.0", hosts, "");
        assert_eq!(parse(&exchange(app.address, &head).await).status, 200, "{hosts:?}");
    }
}

#[tokio::test]
async fn a_request_behind_an_invalid_host_is_not_answered() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let two = request("GET /health HTTP/1.1", &["x", "evil.example"], "");
    let requests = [&two[..], SMUGGLED.as_bytes()].concat();
    let answers = exchange(app.address, &requests).await;
    assert_problem(&parse(&answers), 400, "invalid_host");
}

#[tokio::test]
async fn a_host_in_the_request_line_overrides_the_header() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let ask = async |target: &str, host: &str| {
        let line = format!("POST {target}/vectorize-image HTTP/1.1");
        let more = "sec-fetch-site: same-origin\r\nconnection: close\r\ncontent-length: 0\r\n";
        parse(&exchange(app.address, &request(&line, &[host], more)).await)
    };
    // A page may call the service by an address, and by no stranger's name.
    assert_problem(&ask("http://127.0.0.1", "evil.example").await, 422, "validation_failed");
    let refused =
        assert_problem(&ask("http://evil.example:8000", "192.0.2.7").await, 403, "cross_origin");
    assert!(refused["detail"].as_str().unwrap().contains("evil.example:8000"));
    assert_problem(&ask("http://user:password@192.0.2.7", "x").await, 400, "invalid_host");
    assert_problem(&ask("http://192.0.2.7", "a b").await, 400, "invalid_host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_head_is_logged_and_counted() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let child = Child::start_with(&nvidia, folder.path(), &[]);
    for (id, hosts, more) in [
        ("no-host", &[][..], ""),
        ("gzip", &["x"][..], "content-length: 1\r\ncontent-encoding: gzip\r\n"),
        ("chunks", &["x"], "transfer-encoding: gzip, chunked\r\n"),
    ] {
        let more = format!("x-request-id: {id}\r\nconnection: close\r\n{more}");
        let mut head = request("POST /vectorize-image HTTP/1.1", hosts, &more);
        head.extend(b"0\r\n\r\n");
        assert_eq!(parse(&exchange(child.address, &head).await).header("x-request-id"), id);
    }
    let metrics = reqwest::get(child.url("/metrics")).await.unwrap().text().await.unwrap();
    for status in [400, 415, 501] {
        let counted = format!(
            "imagesvc_requests_total{{route=\"/vectorize-image\",status=\"{status}\"}} 1\n"
        );
        assert!(metrics.contains(&counted), "{metrics}");
    }
    let (_, log) = child.stop();
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (id, status, code) in [
        ("no-host", 400, "invalid_host"),
        ("gzip", 415, "unsupported_content_encoding"),
        ("chunks", 501, "unsupported_transfer_encoding"),
    ] {
        let lines: Vec<_> = events.iter().filter(|event| event["request_id"] == id).collect();
        assert_eq!(lines.len(), 1, "{id}");
        assert_eq!((&lines[0]["status"], &lines[0]["code"]), (&status.into(), &code.into()));
        assert_eq!(lines[0]["level"], "INFO", "it is the client's doing");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_by_its_head_with_advice() {
    let nvidia = FakeNvidia::healthy().await;
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1").start().await;
    for path in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
        for codings in [&["gzip"][..], &["GZIP"], &["br"], &["identity, zstd"], &["identity", "x"]]
        {
            let post = app.client.post(app.url(path)).body("{}");
            let post =
                codings.iter().fold(post, |post, coding| post.header("content-encoding", *coding));
            let answer = app.send(post).await;
            let problem = assert_problem(&answer, 415, "unsupported_content_encoding");
            assert_eq!(answer.header("accept-encoding"), "identity");
            let detail = problem["detail"].as_str().unwrap();
            let named = format!("Content-Encoding: {},", codings.join(", "));
            assert!(detail.contains(&named) && detail.contains("send it uncompressed"), "{detail}");
        }
    }
    assert!(app.saved().is_empty() && nvidia.count() == 0);
    // What says that there is no coding is no coding, and what was refused did not count.
    let upload =
        app.upload_request(ROCKET, "a.jpg").header("content-encoding", "identity, ,Identity");
    app.send(upload.header("content-encoding", "")).await.vector();
    // Where there is no body, there is nothing to undo.
    let health = app.client.get(app.url("/health")).header("content-encoding", "gzip");
    assert_eq!(app.send(health).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_everything_first_sees_why_its_head_was_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let body = vec![b'x'; 5 << 20];
    let length = format!("content-length: {}\r\n", body.len());
    let chunked = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    for (status, code, hosts, framing, body) in [
        (400, "invalid_host", &[][..], length.clone(), &body),
        (
            415,
            "unsupported_content_encoding",
            &["x"],
            format!("content-encoding: gzip\r\n{length}"),
            &body,
        ),
        (
            415,
            "unsupported_content_encoding",
            &["x"],
            "content-encoding: gzip\r\ntransfer-encoding: chunked\r\n".into(),
            &chunked,
        ),
        (
            501,
            "unsupported_transfer_encoding",
            &["x"],
            "transfer-encoding: gzip, chunked\r\n".into(),
            &chunked,
        ),
    ] {
        for round in 0..20 {
            // Some do not wait for the word to go on: then the answer comes before the body.
            let expects = round % 2 == 0;
            let expect = if expects { "expect: 100-continue\r\n" } else { "" };
            let more = format!("{framing}{expect}connection: close\r\n");
            let head = request("POST /vectorize-image-base64 HTTP/1.1", hosts, &more);
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            stream.write_all(&head).await.unwrap();
            if expects {
                stream.readable().await.unwrap();
            }
            for piece in body.chunks(64 * 1024) {
                stream.write_all(piece).await.unwrap();
            }
            assert_problem(&parse(&read_to_end(&mut stream).await), status, code);
        }
    }
}

#[tokio::test]
async fn a_compressed_body_does_not_cost_its_connection() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let body = vec![b'x'; 5 << 20];
    let more = format!("content-encoding: gzip\r\ncontent-length: {}\r\n", body.len());
    let mut sent = request("POST /vectorize-image HTTP/1.1", &["x"], &more);
    sent.extend(&body);
    sent.extend(request("GET /health HTTP/1.1", &["x"], "connection: close\r\n"));
    let answers = exchange(app.address, &sent).await;
    let (refused, health) = answers.split_at(answers.rfind("HTTP/1.1 ").unwrap());
    assert_problem(&parse(refused), 415, "unsupported_content_encoding");
    assert_eq!(parse(health).status, 200);
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_refused_and_nothing_is_smuggled_behind_it() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for codings in [
        &["gzip, chunked"][..],
        &["gzip", "chunked"],
        &["identity, chunked"],
        &["chunked, chunked"],
        &["chunked", "chunked"],
        &[", chunked"],
        &["x;a=\",\"chunked,chunked"],
    ] {
        let lines: String =
            codings.iter().map(|coding| format!("transfer-encoding: {coding}\r\n")).collect();
        // Whoever takes the body for something else finds a request in it, or behind it.
        let chunk = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n{SMUGGLED}", SMUGGLED.len());
        for path in ["/vectorize-image-upload", "/health"] {
            let mut sent = request(&format!("POST {path} HTTP/1.1"), &["x"], &lines);
            sent.extend(chunk.as_bytes());
            let answer = parse(&exchange(app.address, &sent).await);
            let problem = assert_problem(&answer, 501, "unsupported_transfer_encoding");
            assert_eq!(answer.header("connection"), "close");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("with a Content-Length"), "{detail}");
        }
    }
    let body = form(ROCKET);
    let head =
        format!("content-type: {FORM}\r\ntransfer-encoding: Chunked\r\nconnection: close\r\n");
    let mut sent = request("POST /vectorize-image-upload HTTP/1.1", &["x"], &head);
    sent.extend(format!("{:x}\r\n", body.len()).as_bytes());
    sent.extend([&body[..], b"\r\n0\r\n\r\n"].concat());
    assert!(exchange(app.address, &sent).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_body_without_a_clear_end_is_a_bare_400_and_closes_the_connection() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let large = "x".repeat(1 << 20);
    for (version, framing) in [
        ("1.1", "transfer-encoding: gzip"),
        ("1.1", "transfer-encoding: identity"),
        ("1.1", "transfer-encoding: chunked, gzip"),
        ("1.1", "transfer-encoding: chunked, identity"),
        ("1.1", "transfer-encoding: chunked\r\ntransfer-encoding: identity"),
        ("1.1", "transfer-encoding: xchunked"),
        ("1.1", "transfer-encoding: \"chunked\""),
        ("1.1", "transfer-encoding: chunked;q=1"),
        ("1.1", "transfer-encoding: \x0bchunked"),
        ("1.1", "transfer-encoding:"),
        ("1.1", "transfer-encoding : chunked"),
        ("1.1", "transfer-encoding: gzip\r\ncontent-length: 1"),
        ("1.0", "transfer-encoding: chunked"),
        ("1.0", "content-length: 1\r\ntransfer-encoding: chunked"),
        ("1.1", "content-length: 1\r\ncontent-length: 2"),
        ("1.1", "content-length: 1, 1"),
        ("1.1", "content-length: +1"),
        ("1.1", "content-length: -1"),
        ("1.1", "content-length: 0x1"),
        ("1.1", "content-length:"),
    ] {
        let line = format!("POST /health HTTP/{version}");
        let head = request(&line, &["x"], &format!("{framing}\r\n"));
        let sent = [&head[..], SMUGGLED.as_bytes(), large.as_bytes()].concat();
        let answer = parse(&exchange(app.address, &sent).await);
        assert_eq!((answer.status, answer.text().as_str()), (400, ""), "{version} {framing}");
    }
}

#[tokio::test]
async fn beside_chunks_a_length_is_ignored_and_the_connection_closes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for framing in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\ncontent-length: 6\r\n",
    ] {
        // By the length, what follows the five bytes is a request.
        let mut sent = request("POST /nothing HTTP/1.1", &["x"], framing);
        sent.extend(format!("0\r\n\r\n{SMUGGLED}").as_bytes());
        let answer = parse(&exchange(app.address, &sent).await);
        assert_problem(&answer, 404, "not_found");
    }
}

/// What the service takes for the time, in seconds since 1970.
static NOW: AtomicU64 = AtomicU64::new(784_111_777);

#[tokio::test]
async fn the_date_of_answers_follows_a_clock_that_is_set_back() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .configure(|config| {
            config.server.clock =
                || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed));
        })
        .start()
        .await;
    for (back, date) in [
        (0, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (3600, "Sun, 06 Nov 1994 07:49:37 GMT"),
        (1, "Sun, 06 Nov 1994 07:49:36 GMT"),
    ] {
        NOW.fetch_sub(back, Ordering::Relaxed);
        assert_eq!(app.upload(ROCKET, "a.jpg").await.header("date"), date);
        assert_eq!(app.get("/health").await.header("date"), date);
        assert_eq!(app.get("/nothing").await.header("date"), date);
        let sent = request("GET /health HTTP/1.1", &[], "");
        let answer = parse(&exchange(app.address, &sent).await);
        assert_eq!(answer.headers.get_all("date").iter().collect::<Vec<_>>(), [date]);
    }
    // The answers that hyper gives by itself have its own.
    let answer = exchange(app.address, &post_head("/health", 1, "content-length: 2\r\n")).await;
    assert_eq!(parse(&answer).headers.get_all("date").iter().count(), 1);
}
