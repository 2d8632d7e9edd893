//! How the service finds the end of a request's body, and which codings of the body it refuses.

use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    FORM_CONTENT_TYPE, FakeNvidia, ROCKET, SMUGGLED_REQUEST, ServiceProcess, TestApp,
    assert_problem, exchange, form, parse_answer, read_to_end, request_head,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_refused_for_its_head_is_logged_and_counted() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[]);
    for (id, hosts, framing) in [
        ("no-host", &[][..], ""),
        ("gzip", &["x"][..], "content-length: 1\r\ncontent-encoding: gzip\r\n"),
        ("chunks", &["x"], "transfer-encoding: gzip, chunked\r\n"),
    ] {
        let headers = format!("x-request-id: {id}\r\nconnection: close\r\n{framing}");
        let mut request = request_head("POST /vectorize-image HTTP/1.1", hosts, &headers);
        // An empty chunked body, which completes the last request. All three are refused for their head.
        request.extend(b"0\r\n\r\n");
        let answer = parse_answer(&exchange(service.address, &request).await);
        assert_eq!(answer.header("x-request-id"), id);
    }
    let metrics = reqwest::get(service.url("/metrics")).await.unwrap().text().await.unwrap();
    for status in [400, 415, 501] {
        let sample = format!(
            "imagesvc_requests_total{{route=\"/vectorize-image\",status=\"{status}\"}} 1\n"
        );
        assert!(metrics.contains(&sample), "{metrics}");
    }
    let (_, log) = service.stop();
    let events: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (id, status, code) in [
        ("no-host", 400, "invalid_host"),
        ("gzip", 415, "unsupported_content_encoding"),
        ("chunks", 501, "unsupported_transfer_encoding"),
    ] {
        let logged: Vec<_> = events.iter().filter(|event| event["request_id"] == id).collect();
        assert_eq!(logged.len(), 1, "{id} should be logged exactly once");
        assert_eq!((&logged[0]["status"], &logged[0]["code"]), (&status.into(), &code.into()));
        assert_eq!(
            logged[0]["level"], "INFO",
            "a client's mistake should not be logged as a warning"
        );
    }
}

#[tokio::test]
async fn a_request_with_a_content_encoding_other_than_identity_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    // One picture per minute. Refused requests must not count.
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1").start().await;
    for path in ["/vectorize-image", "/vectorize-image-base64", "/vectorize-image-upload"] {
        for codings in [&["gzip"][..], &["GZIP"], &["br"], &["identity, zstd"], &["identity", "x"]]
        {
            let mut request = app.client.post(app.url(path)).body("{}");
            for coding in codings {
                request = request.header("content-encoding", *coding);
            }
            let answer = app.send(request).await;
            let problem = assert_problem(&answer, 415, "unsupported_content_encoding");
            assert_eq!(answer.header("accept-encoding"), "identity");
            let detail = problem["detail"].as_str().unwrap();
            let header = format!("Content-Encoding: {},", codings.join(", "));
            assert!(
                detail.contains(&header) && detail.contains("send it uncompressed"),
                "{detail}"
            );
        }
    }
    assert!(app.saved().is_empty() && nvidia.count() == 0);
    // `identity` means no coding.
    let upload =
        app.upload_request(ROCKET, "a.jpg").header("content-encoding", "identity, ,Identity");
    app.send(upload.header("content-encoding", "")).await.assert_success();
    // The header has no effect on a request without a body.
    let health = app.client.get(app.url("/health")).header("content-encoding", "gzip");
    assert_eq!(app.send(health).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_only_after_sending_receives_the_refusal_of_its_request() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The body is so large that the client is still sending when the service refuses the request.
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
        // Repeated, because the outcome depends on timing.
        for round in 0..20 {
            // Every second client sends `Expect`, and waits for an answer. The answer is the refusal
            // and not `100 Continue`, but the client sends its body nevertheless.
            let sends_expect = round % 2 == 0;
            let expect = if sends_expect { "expect: 100-continue\r\n" } else { "" };
            let headers = format!("{framing}{expect}connection: close\r\n");
            let head = request_head("POST /vectorize-image-base64 HTTP/1.1", hosts, &headers);
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            stream.write_all(&head).await.unwrap();
            if sends_expect {
                stream.readable().await.unwrap();
            }
            for piece in body.chunks(64 * 1024) {
                stream.write_all(piece).await.unwrap();
            }
            assert_problem(&parse_answer(&read_to_end(&mut stream).await), status, code);
        }
    }
}

#[tokio::test]
async fn the_connection_stays_open_after_a_refused_compressed_body() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The service must read this refused body to its end to find the next request.
    let body = vec![b'x'; 5 << 20];
    let headers = format!("content-encoding: gzip\r\ncontent-length: {}\r\n", body.len());
    let mut requests = request_head("POST /vectorize-image HTTP/1.1", &["x"], &headers);
    requests.extend(&body);
    requests.extend(request_head("GET /health HTTP/1.1", &["x"], "connection: close\r\n"));
    let answers = exchange(app.address, &requests).await;
    let (refused, health) = answers.split_at(answers.rfind("HTTP/1.1 ").unwrap());
    assert_problem(&parse_answer(refused), 415, "unsupported_content_encoding");
    assert_eq!(parse_answer(health).status, 200);
}

#[tokio::test]
async fn a_transfer_encoding_other_than_chunked_is_refused_and_smuggles_no_request() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // hyper accepts all these lists, because they end in `chunked`.
    for codings in [
        &["gzip, chunked"][..],
        &["gzip", "chunked"],
        &["identity, chunked"],
        &["chunked, chunked"],
        &["chunked", "chunked"],
        &[", chunked"],
        // The first comma is in quotes, so it does not separate codings.
        &["x;a=\",\"chunked,chunked"],
    ] {
        let headers: String =
            codings.iter().map(|coding| format!("transfer-encoding: {coding}\r\n")).collect();
        // There is a request inside the body, and one after it. The service must answer neither:
        // `parse_answer` refuses a second answer.
        let body = format!(
            "{:x}\r\n{SMUGGLED_REQUEST}\r\n0\r\n\r\n{SMUGGLED_REQUEST}",
            SMUGGLED_REQUEST.len()
        );
        for path in ["/vectorize-image-upload", "/health"] {
            let mut request = request_head(&format!("POST {path} HTTP/1.1"), &["x"], &headers);
            request.extend(body.as_bytes());
            let answer = parse_answer(&exchange(app.address, &request).await);
            let problem = assert_problem(&answer, 501, "unsupported_transfer_encoding");
            assert_eq!(answer.header("connection"), "close");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("with a Content-Length"), "{detail}");
        }
    }
    // `chunked` alone is accepted, in upper or lower case.
    let upload_body = form(ROCKET);
    let headers = format!(
        "content-type: {FORM_CONTENT_TYPE}\r\ntransfer-encoding: Chunked\r\nconnection: close\r\n"
    );
    let mut accepted = request_head("POST /vectorize-image-upload HTTP/1.1", &["x"], &headers);
    accepted.extend(format!("{:x}\r\n", upload_body.len()).as_bytes());
    accepted.extend([&upload_body[..], b"\r\n0\r\n\r\n"].concat());
    assert!(exchange(app.address, &accepted).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_request_whose_body_has_an_ambiguous_end_gets_an_empty_400_and_the_connection_closes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The connection must close although the client still sends.
    let more_bytes = "x".repeat(1 << 20);
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
        let head = request_head(&line, &["x"], &format!("{framing}\r\n"));
        let request = [&head[..], SMUGGLED_REQUEST.as_bytes(), more_bytes.as_bytes()].concat();
        let answer = parse_answer(&exchange(app.address, &request).await);
        assert_eq!((answer.status, answer.text().as_str()), (400, ""), "{version} {framing}");
    }
}

#[tokio::test]
async fn with_chunks_the_content_length_is_ignored_and_the_connection_closes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for framing in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        // Without chunks, two different lengths are refused.
        "transfer-encoding: chunked\r\ncontent-length: 5\r\ncontent-length: 6\r\n",
    ] {
        // With the chunks or with a length of 5, the body ends at the same byte. The service must not
        // answer the request that follows: `parse_answer` refuses a second answer.
        let mut request = request_head("POST /nothing HTTP/1.1", &["x"], framing);
        request.extend(format!("0\r\n\r\n{SMUGGLED_REQUEST}").as_bytes());
        let answer = parse_answer(&exchange(app.address, &request).await);
        assert_problem(&answer, 404, "not_found");
    }
}
