//! Each request has one deadline. The client gets an answer by then, whatever NVIDIA does.

use std::time::{Duration, Instant};

use crate::support::{
    Answer, FakeNvidia, HUBBLE, ROCKET, Received, Reply, TestApp,
    nvidia_api::{CREATE_ASSET, INFER},
    pending,
};

/// The time that a request has in the tests that set [`DEADLINE_SETTING`].
const DEADLINE: Duration = Duration::from_millis(700);
/// [`DEADLINE`] as the value of a setting.
const DEADLINE_SETTING: &str = "700ms";
/// How much later than the deadline an answer may arrive at the client.
const GRACE: Duration = Duration::from_millis(250);

/// Delays a reply so much that a request has time for only a few such replies.
fn slow(reply: Reply) -> Reply {
    reply.after(Duration::from_millis(150))
}

/// Whether this is an inference on an asset.
fn is_asset_inference(request: &Received) -> bool {
    request.line() == INFER && request.header("nvcf-input-asset-references").is_some()
}

/// Whether this asks for a pending result. No other call to NVIDIA is a `GET`.
fn is_poll(request: &Received) -> bool {
    request.method == "GET"
}

/// Returns a misbehaving reply to a call, or `None` for NVIDIA's normal reply.
type Script = fn(&Received) -> Option<Reply>;

/// Ways in which NVIDIA misbehaves. Each has a name, the picture that the client sends, and the
/// script of NVIDIA's replies. `ROCKET` is sent to NVIDIA inline, and `HUBBLE` as an asset.
const CASES: &[(&str, &[u8], Script)] = &[
    ("inference hangs", ROCKET, |_| Some(Reply::Hang)),
    ("inference always fails slowly", ROCKET, |_| Some(slow(Reply::status(503)))),
    ("the response to inference arrives byte by byte", ROCKET, |_| {
        Some(Reply::Trickle(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n".to_vec()))
    }),
    ("the result stays pending", ROCKET, |_| Some(pending(FakeNvidia::REQUEST_ID))),
    ("polling hangs", ROCKET, |request| {
        Some(if is_poll(request) { Reply::Hang } else { pending(FakeNvidia::REQUEST_ID) })
    }),
    ("pending results are lost", ROCKET, |request| {
        Some(if is_poll(request) {
            slow(Reply::status(404))
        } else {
            pending(FakeNvidia::REQUEST_ID)
        })
    }),
    ("Retry-After ends after the deadline", ROCKET, |_| {
        // 1 s is longer than `DEADLINE`.
        Some(Reply::new(429, &[("retry-after", "1")], ""))
    }),
    ("creating the asset hangs", HUBBLE, |request| {
        (request.line() == CREATE_ASSET).then_some(Reply::Hang)
    }),
    ("inference and the creation of the asset hang", HUBBLE, |request| {
        matches!(request.line().as_str(), CREATE_ASSET | INFER).then_some(Reply::Hang)
    }),
    ("uploading the asset hangs", HUBBLE, |request| {
        (request.method == "PUT").then_some(Reply::Hang)
    }),
    ("inference and the upload of the asset hang", HUBBLE, |request| {
        (request.method == "PUT" || request.line() == INFER).then_some(Reply::Hang)
    }),
    ("inference on the asset hangs", HUBBLE, |request| {
        is_asset_inference(request).then_some(Reply::Hang)
    }),
    ("the asset is refused, and inline inference stays pending", HUBBLE, |request| {
        match request.line().as_str() {
            _ if is_asset_inference(request) => Some(slow(Reply::status(422))),
            INFER => Some(pending(FakeNvidia::REQUEST_ID)),
            _ if is_poll(request) => Some(slow(pending(FakeNvidia::REQUEST_ID))),
            _ => None,
        }
    }),
    ("every call fails slowly", HUBBLE, |_| Some(slow(Reply::status(500)))),
];

/// Uploads a picture, and measures the time until the answer.
async fn timed_upload(app: &TestApp, picture: &[u8]) -> (Answer, Duration) {
    let started = Instant::now();
    let answer = app.upload(picture, "a.jpg").await;
    (answer, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_by_the_deadline_whatever_nvidia_does() {
    for (name, picture, script) in CASES {
        let mut late_times = Vec::new();
        // A busy machine may delay an answer, but hardly three in a row.
        for _ in 0..3 {
            let nvidia = FakeNvidia::healthy_except(script).await;
            let app = TestApp::builder(&nvidia)
                .setting("IMAGESVC_REQUEST_TIMEOUT", DEADLINE_SETTING)
                // A hanging call ends before the deadline, and is retried.
                .setting("NVIDIA_TIMEOUT", "300ms")
                .configure(|config| {
                    // The wait before the first retry. Waits count against the deadline, too.
                    config.nvidia.retry.base = Duration::from_millis(100);
                })
                .start()
                .await;
            let (answer, elapsed) = timed_upload(&app, picture).await;
            // In some cases the service succeeds with another call.
            if answer.status != 200 {
                let problem = answer.json();
                assert!(problem["code"].as_str().unwrap().starts_with("embedding_"), "{name}");
                assert!(problem["saved_as"].is_string(), "{name}: {problem}");
            }
            if elapsed < DEADLINE + GRACE {
                late_times.clear();
                break;
            }
            late_times.push(elapsed);
        }
        assert!(
            late_times.is_empty(),
            "{name}: one of three answers should be in time, but they took {late_times:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_concurrency_or_the_rate_limit_counts_against_the_deadline() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    for setting in [("NVIDIA_MAX_CONCURRENCY", "1"), ("NVIDIA_REQUESTS_PER_MINUTE", "1")] {
        let app = TestApp::builder(&nvidia)
            .setting("IMAGESVC_REQUEST_TIMEOUT", DEADLINE_SETTING)
            .settings(&[setting])
            .configure(|config| {
                // Replaces the minute of `NVIDIA_REQUESTS_PER_MINUTE`. With the rate limit, the calls
                // for the second picture wait for 400 ms, and then hang until the deadline. If the wait
                // were longer than `DEADLINE`, the second picture would be refused at once.
                config.nvidia.pace_window = Duration::from_millis(400);
            })
            .start()
            .await;
        let calls_before = nvidia.count();
        let second_upload = async {
            nvidia.wait_for(calls_before + 1).await;
            timed_upload(&app, HUBBLE).await
        };
        let ((first, _), (second, elapsed)) =
            tokio::join!(timed_upload(&app, ROCKET), second_upload);
        assert_eq!(first.status, 504);
        assert_eq!(second.status, 504, "{:.300}", second.text());
        assert!(elapsed < DEADLINE + GRACE, "the second answer should not take {elapsed:?}");
    }
}

#[tokio::test]
async fn a_picture_is_sent_inline_in_time_after_a_call_for_its_asset_hangs() {
    for hanging in [CREATE_ASSET, "PUT"] {
        let nvidia = FakeNvidia::healthy_except(move |request| {
            request.line().starts_with(hanging).then_some(Reply::Hang)
        })
        .await;
        // Creating and uploading the asset may take half of this time. The other half is left to
        // shrink the picture and to send it inline.
        let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "4s").start().await;
        assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "shrunk");
    }
}
