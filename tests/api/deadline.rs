//! One deadline bounds a whole request: however NVIDIA delays, the client gets an answer in time.

use std::time::{Duration, Instant};

use crate::support::{
    Answer, FakeNvidia, HUBBLE, ROCKET, Received, Reply, TestApp, embedding,
    nvidia_api::{CREATE_ASSET, INFER},
    pending, variant,
};

const DEADLINE: Duration = Duration::from_millis(700);
const GRACE: Duration = Duration::from_millis(250);

fn slow(reply: Reply) -> Reply {
    reply.after(Duration::from_millis(150))
}

/// Whether this is the inference of an uploaded picture.
fn is_of_asset(request: &Received) -> bool {
    request.line() == INFER && request.header("nvcf-input-asset-references").is_some()
}

type Script = fn(&Received) -> Option<Reply>;

/// A name, the picture that is sent, and how NVIDIA misbehaves.
const TROUBLES: &[(&str, &[u8], Script)] = &[
    ("it hangs", ROCKET, |_| Some(Reply::Hang)),
    ("it fails slowly, again and again", ROCKET, |_| Some(slow(Reply::status(503)))),
    ("it trickles", ROCKET, |_| {
        Some(Reply::Trickle(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n".to_vec()))
    }),
    ("its answer stays pending", ROCKET, |_| Some(pending(FakeNvidia::ASSET))),
    ("its poll hangs", ROCKET, |request| {
        Some(if request.method == "GET" { Reply::Hang } else { pending(FakeNvidia::ASSET) })
    }),
    ("its results are lost", ROCKET, |request| {
        Some(if request.method == "GET" {
            slow(Reply::status(404))
        } else {
            pending(FakeNvidia::ASSET)
        })
    }),
    ("it asks to wait just too long", ROCKET, |_| {
        Some(Reply::new(429, &[("retry-after", "1")], ""))
    }),
    ("creating hangs", HUBBLE, |request| (request.line() == CREATE_ASSET).then_some(Reply::Hang)),
    ("creating and inference hang", HUBBLE, |request| {
        matches!(request.line().as_str(), CREATE_ASSET | INFER).then_some(Reply::Hang)
    }),
    ("the upload hangs", HUBBLE, |request| (request.method == "PUT").then_some(Reply::Hang)),
    ("the upload hangs, then inference", HUBBLE, |request| {
        (request.method == "PUT" || request.line() == INFER).then_some(Reply::Hang)
    }),
    ("inference of the upload hangs", HUBBLE, |request| {
        is_of_asset(request).then_some(Reply::Hang)
    }),
    ("inference of the upload is refused, that of the shrunk picture pends", HUBBLE, |request| {
        match request.line().as_str() {
            _ if is_of_asset(request) => Some(slow(Reply::status(422))),
            INFER => Some(pending(FakeNvidia::ASSET)),
            line if line.starts_with("GET") => Some(slow(pending(FakeNvidia::ASSET))),
            _ => None,
        }
    }),
    ("everything fails slowly", HUBBLE, |_| Some(slow(Reply::status(500)))),
];

async fn send(app: &TestApp, picture: &[u8]) -> (Answer, Duration) {
    let started = Instant::now();
    let answer = app.upload(picture, "a.jpg").await;
    (answer, started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_comes_by_the_deadline_whatever_nvidia_does() {
    for (name, picture, script) in TROUBLES {
        let mut late = Vec::new();
        // A busy machine may delay one answer; a real fault delays every one.
        for _ in 0..3 {
            let nvidia = FakeNvidia::with_uploads(script).await;
            let app = TestApp::builder(&nvidia)
                .setting("IMAGESVC_REQUEST_TIMEOUT", "700ms")
                .setting("NVIDIA_TIMEOUT", "300ms")
                .configure(|config| {
                    config.nvidia.retry.base = Duration::from_millis(100);
                })
                .start()
                .await;
            let (answer, elapsed) = send(&app, picture).await;
            if answer.status != 200 {
                let problem = answer.json();
                assert!(problem["code"].as_str().unwrap().starts_with("embedding_"), "{name}");
                assert!(problem["saved_as"].is_string(), "{name}: {problem}");
            }
            if elapsed < DEADLINE + GRACE {
                late.clear();
                break;
            }
            late.push(elapsed);
        }
        assert!(late.is_empty(), "{name}: {late:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_permit_or_the_pace_counts_against_the_deadline() {
    let nvidia = FakeNvidia::replying(vec![Reply::Hang]).await;
    for setting in [("NVIDIA_MAX_CONCURRENCY", "1"), ("NVIDIA_REQUESTS_PER_MINUTE", "1")] {
        let app = TestApp::builder(&nvidia)
            .setting("IMAGESVC_REQUEST_TIMEOUT", "700ms")
            .settings(&[setting])
            .configure(|config| {
                config.nvidia.pace_window = Duration::from_millis(400);
            })
            .start()
            .await;
        let before = nvidia.lines().len();
        let second = async {
            nvidia.wait_for(before + 1).await;
            send(&app, HUBBLE).await
        };
        let ((first, _), (second, elapsed)) = tokio::join!(send(&app, ROCKET), second);
        assert_eq!(first.status, 504);
        assert_eq!(second.status, 504, "{:.300}", second.text());
        assert!(elapsed < DEADLINE + GRACE, "{elapsed:?}");
    }
}

#[tokio::test]
async fn a_hanging_asset_call_leaves_time_to_send_the_picture_inline() {
    for hanging in [CREATE_ASSET, "PUT"] {
        let nvidia = FakeNvidia::with_uploads(move |request| {
            request.line().starts_with(hanging).then_some(Reply::Hang)
        })
        .await;
        let app = TestApp::builder(&nvidia).setting("IMAGESVC_REQUEST_TIMEOUT", "4s").start().await;
        assert_eq!(app.upload(HUBBLE, "hubble.jpg").await.prepared(), "shrunk");
    }
}

#[tokio::test]
async fn a_failing_asset_api_is_bypassed_and_not_called_for_a_while() {
    for fault in [Reply::status(503), Reply::CloseAfter(Vec::new()), Reply::status(301)] {
        let nvidia = FakeNvidia::with_uploads(move |request| match request.line().as_str() {
            CREATE_ASSET => Some(fault.clone()),
            INFER => Some(embedding()),
            _ => None,
        })
        .await;
        let app = TestApp::start(&nvidia).await;
        for n in 0..2 {
            let answer = app.upload(&variant(HUBBLE, n), "hubble.jpg").await;
            assert_eq!(answer.prepared(), "shrunk");
        }
        let creates = |nvidia: &FakeNvidia| {
            nvidia.lines().iter().filter(|line| *line == CREATE_ASSET).count()
        };
        let before = creates(&nvidia);
        assert!(before <= 3, "{before}");
    }
}

#[tokio::test]
async fn after_an_outage_the_asset_api_is_tried_again_sooner_than_after_a_refusal() {
    for (status, again) in [(503, true), (404, false)] {
        let nvidia = FakeNvidia::with_uploads(move |request| {
            (request.line() == CREATE_ASSET).then(|| Reply::status(status))
        })
        .await;
        let app = TestApp::builder(&nvidia)
            .configure(|config| {
                assert_eq!(config.embed.call.outage_memory.as_secs(), 60);
                config.embed.call.outage_memory = Duration::ZERO;
            })
            .start()
            .await;
        app.upload(HUBBLE, "hubble.jpg").await.vector();
        let before = nvidia.lines().len();
        app.upload(&variant(HUBBLE, 1), "hubble.jpg").await.vector();
        let lines = nvidia.lines();
        assert_eq!(lines[before..].contains(&CREATE_ASSET.to_owned()), again, "{status}");
    }
}

#[tokio::test]
async fn in_an_outage_large_pictures_cost_at_most_one_more_call_than_small_ones() {
    let nvidia = FakeNvidia::with_uploads(|_| Some(Reply::status(503))).await;
    let app = TestApp::start(&nvidia).await;
    for (n, calls) in [(0, 4), (1, 3), (2, 3)] {
        let before = nvidia.lines().len();
        let answer = app.upload(&variant(HUBBLE, n), "hubble.jpg").await;
        assert_eq!(answer.status, 502);
        // The first picture spends its attempts on creating the upload, then is sent inline once.
        assert_eq!(nvidia.lines().len() - before, calls, "{:?}", nvidia.lines());
    }
}
