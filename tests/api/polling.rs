//! Pending results, which the service polls for.

use std::sync::LazyLock;

use crate::support::{
    self, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, assert_problem, embedding, free_address,
    nvidia_api::{ASSETS_PATH, INFER, KEY, STATUS_PATH},
};

const ID: &str = FakeNvidia::REQUEST_ID;

/// NVIDIA's reply if the result with this [`ID`] is pending.
fn pending() -> Reply {
    support::pending(ID)
}

/// The request line of a poll for this result.
static POLL: LazyLock<String> = LazyLock::new(|| format!("GET {STATUS_PATH}/{ID}"));

/// Uploads a picture while NVIDIA sends these replies. Returns the request lines that NVIDIA
/// receives.
async fn request_lines(replies: Vec<Reply>) -> Vec<String> {
    let nvidia = FakeNvidia::replying(replies).await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    nvidia.lines()
}

#[tokio::test]
async fn a_pending_result_is_polled_until_it_is_ready() {
    let nvidia = FakeNvidia::replying(vec![pending(), pending(), embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.assert_success();
    assert_eq!(nvidia.lines(), [INFER, &POLL, &POLL]);
    let poll = &nvidia.received()[1];
    assert_eq!(poll.body, b"");
    assert_eq!(
        poll.sorted_headers(),
        [
            "accept: application/json".to_owned(),
            format!("authorization: Bearer {KEY}"),
            concat!("user-agent: imagesvc/", env!("CARGO_PKG_VERSION")).to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_new_inference_is_sent_if_the_result_is_lost() {
    let faults = [
        embedding().broken_off(),
        Reply::CloseAfter(Vec::new()),
        Reply::status(404),
        Reply::status(500),
    ];
    for fault in faults {
        assert_eq!(request_lines(vec![pending(), fault, embedding()]).await, [INFER, &POLL, INFER]);
    }
}

#[tokio::test]
async fn a_rate_limited_poll_is_repeated_without_a_new_inference() {
    let replies = vec![pending(), Reply::status(429), pending(), embedding()];
    assert_eq!(request_lines(replies).await, [INFER, &POLL, &POLL, &POLL]);
}

#[tokio::test]
async fn a_poll_that_fails_at_a_gateway_is_repeated_once_before_a_new_inference() {
    for status in [502, 503] {
        let one_fault = vec![pending(), Reply::status(status), embedding()];
        assert_eq!(request_lines(one_fault).await, [INFER, &POLL, &POLL]);
        let two_faults = vec![pending(), Reply::status(status), Reply::status(status), embedding()];
        assert_eq!(request_lines(two_faults).await, [INFER, &POLL, &POLL, INFER]);
    }
}

#[tokio::test]
async fn a_pending_response_without_a_valid_id_is_an_error() {
    // The first id is empty, the second is a path to another route, and the third lacks one digit.
    for id in ["", &format!("../..{ASSETS_PATH}"), "7a6b5c4d-3e2f-4101-9203-04050607080"] {
        let nvidia = FakeNvidia::replying(vec![support::pending(id)]).await;
        let app = TestApp::start(&nvidia).await;
        assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 502, "embedding_unavailable");
        assert_eq!(nvidia.lines(), [INFER]);
    }
}

#[tokio::test]
async fn polling_ends_at_the_deadline_of_the_request() {
    let nvidia = FakeNvidia::replying(vec![pending()]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "1500ms").start().await;
    let answer = app.upload(ROCKET, "rocket.jpg").await;
    assert_problem(&answer, 504, "embedding_timeout");
    let lines = nvidia.lines();
    assert_eq!(lines[1], *POLL, "the result should be polled before the deadline");
    assert!(lines[1..].iter().all(|line| *line == *POLL), "only polls should follow: {lines:?}");
}

#[tokio::test]
async fn the_pending_result_of_an_asset_is_polled() {
    let nvidia = FakeNvidia::healthy_except(|request| match request.line().as_str() {
        INFER => Some(pending()),
        line if line == *POLL => Some(embedding()),
        _ => None,
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    app.upload(HUBBLE, "hubble.jpg").await.assert_success();
    // The service creates the asset, uploads it, requests its embedding, polls, and deletes it.
    let received = nvidia.wait_for(5).await;
    assert_eq!(received[2].line(), INFER);
    assert_eq!(received[3].line(), *POLL);
    assert_eq!(received[4].method, "DELETE");
}

#[tokio::test]
async fn the_retry_after_of_a_poll_is_passed_to_the_client_if_it_exceeds_the_deadline() {
    // 300 s exceed the default of `IMAGESVC_REQUEST_TIMEOUT`, which is 60 s.
    let nvidia =
        FakeNvidia::replying(vec![pending(), Reply::new(429, &[("retry-after", "300")], "")]).await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.upload(ROCKET, "rocket.jpg").await;
    assert_problem(&answer, 503, "embedding_rate_limited");
    assert_eq!(answer.header("retry-after"), "300");
}

#[tokio::test]
async fn a_poll_that_cannot_connect_does_not_repeat_the_inference() {
    let nvidia = FakeNvidia::replying(vec![pending()]).await;
    let unused_address = free_address().await;
    let status_url = format!("http://{unused_address}{STATUS_PATH}");
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_STATUS_URL", status_url)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "1500ms")
        .start()
        .await;
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 504, "embedding_timeout");
    assert_eq!(nvidia.lines(), [INFER]);
}

#[tokio::test]
async fn a_picture_is_shrunk_and_sent_inline_if_a_poll_refuses_its_asset() {
    for status in [400, 410, 413, 415, 422] {
        let nvidia = FakeNvidia::healthy_except(move |request| match request.line().as_str() {
            // Only an inference on an asset has such a short body.
            INFER if request.body.len() < 100 => Some(pending()),
            line if line == *POLL => Some(Reply::status(status)),
            _ => None,
        })
        .await;
        let app = TestApp::start(&nvidia).await;
        assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "shrunk");
    }
}
