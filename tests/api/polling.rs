//! Answers that come later.

use crate::support::{HUBBLE, KEY, Nvidia, ROCKET, Reply, TestApp, assert_problem, embedding};

const ID: &str = "7a6b5c4d-3e2f-4101-9203-040506070809";

fn pending() -> Reply {
    Reply::new(202, &[("NVCF-REQID", ID), ("NVCF-STATUS", "pending-evaluation")], "")
}

const INFER: &str = "POST /v1/cv/nvidia/nv-dinov2";
const POLL: &str = "GET /v1/status/7a6b5c4d-3e2f-4101-9203-040506070809";

async fn lines(replies: Vec<Reply>) -> Vec<String> {
    let nvidia = Nvidia::replying(replies).await;
    let app = TestApp::against(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.vector();
    nvidia.lines()
}

#[tokio::test]
async fn a_pending_answer_is_polled_for_until_it_is_there() {
    let nvidia = Nvidia::replying(vec![pending(), pending(), embedding()]).await;
    let app = TestApp::against(&nvidia).await;
    app.upload(ROCKET, "rocket.jpg").await.vector();
    assert_eq!(nvidia.lines(), [INFER, POLL, POLL]);
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
async fn a_result_that_is_lost_on_its_way_is_asked_for_anew() {
    let half = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"metadata\":[".to_vec();
    for lost in [Reply::Cut(half), Reply::Cut(Vec::new()), Reply::status(404), Reply::status(502)] {
        assert_eq!(lines(vec![pending(), lost, embedding()]).await, [INFER, POLL, INFER]);
    }
}

#[tokio::test]
async fn a_poll_that_is_turned_away_is_repeated_and_not_paid_twice() {
    let replies = vec![pending(), Reply::status(429), pending(), embedding()];
    assert_eq!(lines(replies).await, [INFER, POLL, POLL, POLL]);
}

#[tokio::test]
async fn a_pending_answer_without_a_proper_id_is_an_upstream_failure() {
    for id in ["", "../../v2/nvcf/assets", "7a6b5c4d-3e2f-4101-9203-04050607080"] {
        let nvidia = Nvidia::replying(vec![Reply::new(202, &[("NVCF-REQID", id)], "")]).await;
        let app = TestApp::against(&nvidia).await;
        assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 502, "embedding_unavailable");
        assert_eq!(nvidia.lines(), [INFER]);
    }
}

#[tokio::test]
async fn polling_ends_with_the_requests_deadline() {
    let nvidia = Nvidia::replying(vec![pending()]).await;
    let app = TestApp::with_settings(&nvidia, &[("IMAGESVC_REQUEST_TIMEOUT", "1500ms")]).await;
    let answer = app.upload(ROCKET, "rocket.jpg").await;
    assert_problem(&answer, 504, "embedding_timeout");
    assert!(nvidia.lines()[1..].iter().all(|line| line == POLL));
}

#[tokio::test]
async fn an_uploaded_picture_is_polled_for_too() {
    let nvidia = Nvidia::with_uploads(|request| match request.line().as_str() {
        INFER => Some(pending()),
        POLL => Some(embedding()),
        _ => None,
    })
    .await;
    let app = TestApp::against(&nvidia).await;
    app.upload(HUBBLE, "hubble.jpg").await.vector();
    let received = nvidia.wait_for(5).await;
    assert_eq!(received[2].line(), INFER);
    assert_eq!(received[3].line(), POLL);
    assert_eq!(received[4].method, "DELETE");
}

#[tokio::test]
async fn a_poll_that_is_told_to_come_back_after_the_deadline_passes_that_on() {
    let nvidia =
        Nvidia::replying(vec![pending(), Reply::new(429, &[("retry-after", "300")], "")]).await;
    let app = TestApp::against(&nvidia).await;
    let answer = app.upload(ROCKET, "rocket.jpg").await;
    assert_problem(&answer, 503, "embedding_rate_limited");
    assert_eq!(answer.header("retry-after"), "300");
}

#[tokio::test]
async fn a_poll_that_never_arrived_is_no_reason_to_ask_anew() {
    let nvidia = Nvidia::replying(vec![pending()]).await;
    let free = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let status = format!("http://{free}/v1/status");
    let settings = [("NVIDIA_STATUS_URL", status.as_str()), ("IMAGESVC_REQUEST_TIMEOUT", "1500ms")];
    let app = TestApp::with_settings(&nvidia, &settings).await;
    assert_problem(&app.upload(ROCKET, "rocket.jpg").await, 504, "embedding_timeout");
    assert_eq!(nvidia.lines(), [INFER]);
}

#[tokio::test]
async fn an_upload_that_is_refused_by_a_poll_falls_back() {
    for status in [400, 410, 413, 415, 422] {
        let nvidia = Nvidia::with_uploads(move |request| match request.line().as_str() {
            INFER if request.body.len() < 100 => Some(pending()),
            POLL => Some(Reply::status(status)),
            _ => None,
        })
        .await;
        let app = TestApp::against(&nvidia).await;
        let answer = app.upload(HUBBLE, "hubble.jpg").await;
        answer.vector();
        assert_eq!(answer.json()["prepared"], "shrunk");
    }
}
