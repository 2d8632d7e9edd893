//! Pending answers, which the service polls for.

use std::sync::LazyLock;

use crate::support::{
    self, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, assert_problem, embedding, free_address,
    nvidia_api::{ASSETS_PATH, INFER, KEY, STATUS_PATH},
};

const ID: &str = "7a6b5c4d-3e2f-4101-9203-040506070809";

fn pending() -> Reply {
    support::pending(ID)
}

static POLL: LazyLock<String> = LazyLock::new(|| format!("GET {STATUS_PATH}/{ID}"));

async fn lines(replies: Vec<Reply>) -> Vec<String> {
    let nvidia = FakeNvidia::replying(replies).await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.vector();
    nvidia.lines()
}

#[tokio::test]
async fn a_pending_answer_is_polled_for_until_it_is_there() {
    let nvidia = FakeNvidia::replying(vec![pending(), pending(), embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.vector();
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
async fn a_lost_result_is_requested_again() {
    let faults = [
        embedding().broken_off(),
        Reply::CloseAfter(Vec::new()),
        Reply::status(404),
        Reply::status(500),
    ];
    for lost in faults {
        assert_eq!(lines(vec![pending(), lost, embedding()]).await, [INFER, &POLL, INFER]);
    }
}

#[tokio::test]
async fn a_rate_limited_poll_is_repeated_and_not_paid_twice() {
    let replies = vec![pending(), Reply::status(429), pending(), embedding()];
    assert_eq!(lines(replies).await, [INFER, &POLL, &POLL, &POLL]);
}

#[tokio::test]
async fn a_poll_that_a_gateway_fails_is_repeated_once_before_the_picture_is_paid_again() {
    for fault in [502, 503] {
        let once = vec![pending(), Reply::status(fault), embedding()];
        assert_eq!(lines(once).await, [INFER, &POLL, &POLL]);
        let twice = vec![pending(), Reply::status(fault), Reply::status(fault), embedding()];
        assert_eq!(lines(twice).await, [INFER, &POLL, &POLL, INFER]);
    }
}

#[tokio::test]
async fn a_pending_answer_without_a_proper_id_is_an_upstream_failure() {
    for id in ["", &format!("../..{ASSETS_PATH}"), "7a6b5c4d-3e2f-4101-9203-04050607080"] {
        let nvidia = FakeNvidia::replying(vec![support::pending(id)]).await;
        let app = TestApp::start(&nvidia).await;
        assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 502, "embedding_unavailable");
        assert_eq!(nvidia.lines(), [INFER]);
    }
}

#[tokio::test]
async fn polling_ends_with_the_requests_deadline() {
    let nvidia = FakeNvidia::replying(vec![pending()]).await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "1500ms").start().await;
    let answer = app.upload(ROCKET, "rocket.jpg").await;
    assert_problem(&answer, 504, "embedding_timeout");
    assert!(nvidia.lines()[1..].iter().all(|line| *line == *POLL));
}

#[tokio::test]
async fn an_uploaded_picture_is_polled_for_too() {
    let nvidia = FakeNvidia::with_uploads(|request| match request.line().as_str() {
        INFER => Some(pending()),
        line if line == *POLL => Some(embedding()),
        _ => None,
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    app.upload(HUBBLE, "hubble.jpg").await.vector();
    let received = nvidia.wait_for(5).await;
    assert_eq!(received[2].line(), INFER);
    assert_eq!(received[3].line(), *POLL);
    assert_eq!(received[4].method, "DELETE");
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_that_a_poll_is_told_is_passed_on() {
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
    let free = free_address().await;
    let status = format!("http://{free}{STATUS_PATH}");
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_STATUS_URL", status)
        .setting("IMAGESVC_REQUEST_TIMEOUT", "1500ms")
        .start()
        .await;
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 504, "embedding_timeout");
    assert_eq!(nvidia.lines(), [INFER]);
}

#[tokio::test]
async fn an_upload_that_is_refused_by_a_poll_falls_back() {
    for status in [400, 410, 413, 415, 422] {
        let nvidia = FakeNvidia::with_uploads(move |request| match request.line().as_str() {
            INFER if request.body.len() < 100 => Some(pending()),
            line if line == *POLL => Some(Reply::status(status)),
            _ => None,
        })
        .await;
        let app = TestApp::start(&nvidia).await;
        assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "shrunk");
    }
}
