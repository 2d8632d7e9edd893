//! The routes for health, readiness and metrics, and a shutdown while a request runs.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{FakeNvidia, ROCKET, Reply, TestApp, embedding, form, post_head};

#[tokio::test]
async fn health_and_readiness_are_json_and_a_refused_nvidia_key_is_reported_without_a_503() {
    let nvidia = FakeNvidia::replying(vec![Reply::status(401)]).await;
    let app = TestApp::start(&nvidia).await;
    assert_eq!(app.get("/health").await.json(), serde_json::json!({ "status": "ok" }));
    let ready = app.get("/ready").await;
    assert_eq!(
        ready.json(),
        serde_json::json!({ "ready": true, "reasons": [], "nvidia_key": "unknown" })
    );
    // NVIDIA responds to the call for this picture with 401.
    app.upload(ROCKET, "rocket.jpg").await;
    let ready = app.get("/ready").await;
    assert_eq!((ready.status, ready.json()["nvidia_key"].as_str()), (200, Some("refused")));
}

#[tokio::test]
async fn metrics_count_requests_calls_retries_and_saved_pictures() {
    let nvidia = FakeNvidia::replying(vec![Reply::status(503), embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    app.get("/an/unknown/path").await;
    let metrics = app.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = metrics.text();
    for line in [
        "imagesvc_requests_total{route=\"/vectorize-image-upload\",status=\"200\"} 1",
        "imagesvc_requests_total{route=\"none\",status=\"404\"} 1",
        "imagesvc_upstream_calls_total{operation=\"infer\",outcome=\"503\"} 1",
        "imagesvc_upstream_calls_total{operation=\"infer\",outcome=\"200\"} 1",
        "imagesvc_upstream_retries_total{operation=\"infer\"} 1",
        "imagesvc_pictures_saved_total 1",
        // the length of ROCKET
        "imagesvc_pictures_saved_bytes_total 112525",
        // the request for the metrics itself
        "imagesvc_requests_in_flight 1",
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "the metrics should contain {line}\n{text}"
        );
    }
    assert!(!text.contains("/an/unknown/path"), "metrics must not contain unknown paths");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_shutdown_waits_for_a_running_request() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    let body = form(ROCKET);
    let head = post_head("/vectorize-image-upload", body.len(), "expect: 100-continue\r\n");
    stream.write_all(&head).await.unwrap();
    // `100 Continue` shows that a handler is running and has begun to read the body.
    let mut interim_response = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut interim_response).await.unwrap();
    assert!(interim_response.starts_with(b"HTTP/1.1 100 Continue"));
    let stopping = tokio::spawn(app.stop());
    stream.write_all(&body).await.unwrap();
    // Because the service stops, it closes the connection after this answer, so the text ends.
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.300}");
    stopping.await.unwrap();
}
