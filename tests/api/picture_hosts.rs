//! Picture hosts: which of their responses the service accepts, and how it reports the others.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

use crate::support::{
    Answer, FakeNvidia, FakeServer, ROCKET, Reply, ServiceProcess, TestApp, assert_problem,
};

/// Lets the service fetch a picture from a host that sends this reply. After a success, checks that ROCKET is
/// saved. After a failure, checks that nothing is saved or sent to NVIDIA.
async fn fetch(reply: Reply) -> Answer {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(move |_, _| reply.clone()).await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let answer = app.by_url(&picture_server.url("/photo")).await;
    match answer.status {
        200 => assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET),
        _ => {
            assert!(app.saved().is_empty(), "nothing must be saved after a failed fetch");
            assert_eq!(nvidia.count(), 0, "nothing must be sent to NVIDIA after a failed fetch");
        }
    }
    answer
}

/// The `detail` of the `download_failed` error that this reply causes.
async fn download_error(reply: Reply) -> String {
    let problem = assert_problem(&fetch(reply).await, 502, "download_failed");
    problem["detail"].as_str().unwrap().to_owned()
}

/// A reply with this `Content-Encoding`, and with `body` as it is.
fn encoded(coding: &str, body: impl AsRef<[u8]>) -> Reply {
    Reply::new(200, &[("content-encoding", coding)], body)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_content_encoding_that_is_not_a_compression_is_ignored() {
    for coding in ["", "aws-chunked", "UTF-8", "none", "Identity"] {
        fetch(encoded(coding, ROCKET)).await.assert_success();
    }
}

#[tokio::test]
async fn a_gzip_encoded_picture_is_unpacked() {
    fetch(encoded("gzip", gzip(ROCKET))).await.assert_success();
    fetch(encoded("aws-chunked,gzip", gzip(ROCKET))).await.assert_success();
    // A gzip file may consist of several members (RFC 1952, 2.2).
    let (first, second) = ROCKET.split_at(20_000);
    fetch(encoded("gzip", [gzip(first), gzip(second)].concat())).await.assert_success();
}

#[tokio::test]
async fn gzip_is_unpacked_only_up_to_the_size_limit() {
    // The default limit is 20 MiB. Only the unpacked bytes exceed it.
    let bomb = gzip(&vec![0xff; 64 << 20]);
    assert!(bomb.len() < 1 << 20, "the packed bytes must be far below the limit");
    assert_problem(&fetch(encoded("gzip", bomb)).await, 413, "image_too_large");
}

#[tokio::test]
async fn gzip_without_any_output_is_read_only_up_to_the_size_limit() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n".to_vec();
    // A gzip header with a file name of 30 MiB, and nothing after it. The default limit is 20 MiB.
    let response =
        [head, b"\x1f\x8b\x08\x08\0\0\0\0\0\xff".to_vec(), vec![b'a'; 30 << 20]].concat();
    assert_problem(&fetch(Reply::CloseAfter(response)).await, 413, "image_too_large");
}

#[tokio::test]
async fn damaged_or_truncated_gzip_is_a_failed_download() {
    // ROCKET is not gzip at all.
    assert!(download_error(encoded("gzip", ROCKET)).await.contains("damaged"));
    let packed = gzip(ROCKET);
    assert!(
        download_error(encoded("gzip", &packed[..packed.len() / 2]))
            .await
            .contains("in the middle")
    );
    let mut wrong_block = packed.clone();
    wrong_block[10] = 0xff; // the first byte after the header
    assert!(download_error(encoded("gzip", wrong_block)).await.contains("damaged"));
    let mut wrong_checksum = packed;
    let checksum_start = wrong_checksum.len() - 8;
    wrong_checksum[checksum_start] ^= 1;
    assert!(download_error(encoded("gzip", wrong_checksum)).await.contains("damaged"));
}

#[tokio::test]
async fn the_error_for_an_unsupported_compression_contains_its_name() {
    for coding in ["br", "zstd", "deflate"] {
        assert!(download_error(encoded(coding, ROCKET)).await.contains(coding));
    }
}

#[tokio::test]
async fn a_203_response_is_accepted() {
    // A proxy responds with 203 if it has changed the host's response.
    fetch(Reply::new(203, &[], ROCKET)).await.assert_success();
}

#[tokio::test]
async fn a_response_with_300_headers_is_accepted() {
    // The HTTP library accepts only 100 by default.
    let names: Vec<_> = (0..300).map(|n| format!("x-header-{n}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "value")).collect();
    fetch(Reply::new(200, &headers, ROCKET)).await.assert_success();
}

#[tokio::test]
async fn for_a_429_and_a_503_the_retry_after_of_a_picture_host_is_passed_on_up_to_an_hour() {
    for status in [429, 503] {
        let answer = fetch(Reply::new(status, &[("retry-after", "77")], "")).await;
        assert_problem(&answer, 502, "download_failed");
        assert_eq!(answer.header("retry-after"), "77");
        let answer = fetch(Reply::status(status)).await;
        assert!(answer.headers.get("retry-after").is_none());
    }
    let answer = fetch(Reply::new(503, &[("retry-after", "4294967295")], "")).await;
    assert_eq!(answer.header("retry-after"), "3600", "Retry-After should be at most one hour");
    let answer = fetch(Reply::new(500, &[("retry-after", "77")], "")).await;
    assert!(
        answer.headers.get("retry-after").is_none(),
        "Retry-After should be passed on only for 429 and 503"
    );
}

#[tokio::test]
async fn a_fetched_web_page_is_reported_as_a_web_page() {
    let page = "<!DOCTYPE html>\n<html><body><img src=\"/photo.jpg\"></body></html>";
    let answer = fetch(Reply::new(200, &[("content-type", "text/html")], page)).await;
    let problem = assert_problem(&answer, 415, "unsupported_image");
    let expected =
        "image_url leads to a web page, not to a picture: send the URL of the picture itself.";
    assert_eq!(problem["detail"], expected);
}

#[tokio::test]
async fn the_error_says_whether_the_response_the_picture_or_only_its_end_is_missing() {
    for response in [Vec::new(), b"no http".to_vec()] {
        assert!(
            download_error(Reply::CloseAfter(response))
                .await
                .contains("no response that can be read")
        );
    }
    // The head announces more bytes than ROCKET has.
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n";
    let only_head = head.to_vec();
    assert!(download_error(Reply::CloseAfter(only_head)).await.contains("before the picture"));
    let part_of_body = [&head[..], ROCKET].concat();
    assert!(download_error(Reply::CloseAfter(part_of_body)).await.contains("in the middle"));
}

#[tokio::test]
async fn a_failing_resolver_is_reported_differently_from_an_unknown_host() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .lookup(|name| {
            Err(match name {
                "unknown.example" => io::ErrorKind::NotFound.into(),
                _ => io::Error::other("Temporary failure in name resolution"),
            })
        })
        .start()
        .await;
    for (name, expected) in
        [("unknown.example", "check the URL"), ("other.example", "could not be looked up just now")]
    {
        let answer = app.by_url(&format!("http://{name}/")).await;
        let problem = assert_problem(&answer, 502, "download_failed");
        assert!(problem["detail"].as_str().unwrap().contains(expected), "{problem}");
    }
}

#[tokio::test]
async fn after_a_403_the_log_suggests_the_user_agent_setting() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|_, _| Reply::status(403)).await;
    let folder = tempfile::tempdir().unwrap();
    let allow = picture_server.address.to_string();
    let service =
        ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_FETCH_ALLOW", &allow)]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = service.url_request(&client, &picture_server.url("/")).send().await.unwrap();
    assert_problem(&Answer::read(answer).await.unwrap(), 502, "download_failed");
    let (_, log) = service.stop();
    let suggestions = log.iter().filter(|line| line.contains("IMAGESVC_FETCH_USER_AGENT")).count();
    assert_eq!(suggestions, 1, "one line should suggest the setting: {log:?}");
}
