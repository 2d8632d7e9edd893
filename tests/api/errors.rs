//! The errors that clients see if NVIDIA or the disk fails, if a path or a method is wrong, or if a
//! body stops arriving. Also tests the request id of an error, and calls to NVIDIA through a proxy.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{
    FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, embedding, free_address,
    post_head,
};

#[tokio::test]
async fn a_redirect_from_nvidia_is_not_followed() {
    let other_server = FakeServer::start(|_, _| embedding()).await;
    let location = other_server.url("/");
    for status in [301, 302, 307, 308] {
        let nvidia =
            FakeNvidia::replying(vec![Reply::new(status, &[("location", &location)], "")]).await;
        let app = TestApp::start(&nvidia).await;
        assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 502, "embedding_unavailable");
        assert_eq!(nvidia.count(), 1);
    }
    assert!(other_server.received().is_empty());
}

#[tokio::test]
async fn the_proxy_for_nvidia_is_used_if_it_is_set() {
    let proxy = FakeNvidia::scripted(|_, _| embedding()).await;
    let app = TestApp::builder(&proxy)
        .setting("NVIDIA_PROXY", proxy.url("/"))
        .setting("NVIDIA_INFER_URL", "http://nvidia.example/infer")
        .start()
        .await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    // A proxy receives the whole URL in the request line.
    assert_eq!(proxy.lines(), ["POST http://nvidia.example/infer"]);
}

#[tokio::test]
async fn a_hanging_call_to_nvidia_is_a_timeout_and_the_error_names_the_saved_file() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    // The first setting limits the whole request, and the second each attempt of the call.
    for (name, value) in [("IMAGESVC_REQUEST_TIMEOUT", "1500ms"), ("NVIDIA_TIMEOUT", "20ms")] {
        let app = TestApp::builder(&nvidia).setting(name, value).start().await;
        let problem =
            assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 504, "embedding_timeout");
        assert!(problem["saved_as"].is_string());
    }
}

#[tokio::test]
async fn an_unreachable_nvidia_is_reported_as_unavailable() {
    let nvidia = FakeNvidia::healthy().await;
    let unused_address = free_address().await;
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_INFER_URL", format!("http://{unused_address}/"))
        .start()
        .await;
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 502, "embedding_unavailable");
}

#[tokio::test]
async fn with_less_free_space_than_the_reserve_each_route_for_one_picture_reports_a_full_disk() {
    let nvidia = FakeNvidia::healthy().await;
    // No disk has so much free space.
    let app =
        TestApp::builder(&nvidia).setting("IMAGESVC_MIN_FREE_BYTES", "900000000GiB").start().await;
    for answer in [
        app.upload(ROCKET, "rocket.jpg").await,
        app.base64(ROCKET).await,
        app.by_url("http://example.com/").await,
    ] {
        assert_problem(&answer, 507, "storage_full");
    }
    assert!(app.saved().is_empty());
    // The service is alive, but not ready.
    assert_eq!(app.get("/health").await.status, 200);
    let ready = app.get("/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reasons"][0].as_str()),
        (503, Some("disk_under_reserve"))
    );
}

#[tokio::test]
async fn a_missing_folder_for_incoming_files_is_a_storage_error() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let downloads = folder.path().join("downloads");
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_DOWNLOADS_DIR", downloads.to_str().unwrap())
        .start()
        .await;
    std::fs::rename(downloads.join(".incoming"), folder.path().join("elsewhere")).unwrap();
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 500, "storage_failed");
    let ready = app.get("/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reasons"][0].as_str()),
        (503, Some("downloads_not_writable"))
    );
}

#[tokio::test]
async fn an_unknown_path_is_a_404_and_a_wrong_method_is_a_405_with_allow() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for path in [
        "/nothing",
        "/vectorize-image//",
        "/docs/nothing.js",
        // This path exists only in sandbox mode.
        "/sandbox/photo.jpg",
        "/%ff",
        "/docs/%ff",
        "//",
    ] {
        assert_problem(&app.get(path).await, 404, "not_found");
    }
    for path in ["/vectorize-image", "/vectorize-image-upload", "/vectorize-image-base64"] {
        let answer = app.get(path).await;
        assert_problem(&answer, 405, "method_not_allowed");
        assert_eq!(answer.header("allow"), "POST");
    }
    let answer = app.post("/health", "text/plain", "").await;
    assert_problem(&answer, 405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "GET,HEAD");
    let app = TestApp::sandbox().start().await;
    let answer = app.post("/sandbox/photo.jpg", "text/plain", "").await;
    assert_problem(&answer, 405, "method_not_allowed");
}

#[tokio::test]
async fn a_valid_request_id_is_returned_and_an_invalid_one_is_replaced() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (id, is_valid) in [("trace-1.a_B", true), ("a b", false), ("", false)] {
        let answer = app.send(app.client.get(app.url("/nothing")).header("x-request-id", id)).await;
        let problem = assert_problem(&answer, 404, "not_found");
        assert_eq!(problem["request_id"] == id, is_valid, "{id:?}");
    }
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_a_request_timeout_on_every_route_for_one_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_BODY_TIMEOUT", "100ms").start().await;
    // `post_head` sends the content type of a form. The routes for JSON ignore it.
    for (path, start_of_body) in [
        ("/vectorize-image", "{\"image_url\":"),
        ("/vectorize-image-base64", "{\"image_base64\":"),
        (
            "/vectorize-image-upload",
            "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc",
        ),
    ] {
        let mut stream = TcpStream::connect(app.address).await.unwrap();
        let content_length = 10_000; // more bytes than arrive
        stream.write_all(&post_head(path, content_length, "")).await.unwrap();
        stream.write_all(start_of_body.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
        assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
        assert!(answer.contains("did not arrive in time; send it again"), "{answer}");
    }
}
