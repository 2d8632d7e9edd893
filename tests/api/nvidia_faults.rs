//! Faults of NVIDIA: which calls the service retries, and which errors clients receive.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, future::join_all, stream};

use crate::support::{
    Answer, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, assert_problem, embedding, picture_number,
    tiny,
};

/// A page from a gateway in front of NVIDIA. `assert_problem` checks that its title does not reach
/// clients.
const HTML_PAGE: &str = "<!DOCTYPE html>\n<html><title>upstream-secret</title></html>";

fn html(status: u16) -> Reply {
    Reply::new(status, &[("content-type", "text/html")], HTML_PAGE)
}

/// An error in NVIDIA's format. `assert_problem` checks that its texts do not reach clients.
fn nvidia_error(status: u16) -> Reply {
    Reply::new(
        status,
        &[("content-type", "application/problem+json")],
        format!(
            r#"{{"status":{status},"title":"upstream-secret","detail":"upstream-secret at /opt/planted"}}"#
        ),
    )
}

/// Faults after which the service makes another attempt.
fn transient_faults() -> Vec<Reply> {
    vec![
        nvidia_error(429),
        nvidia_error(500),
        nvidia_error(502),
        nvidia_error(503),
        nvidia_error(504),
        Reply::status(504), // without a body
        html(502),
        html(200),
        Reply::CloseAfter(Vec::new()),
        Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
        Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n".to_vec()),
        embedding().broken_off(),
        Reply::Hang,
    ]
}

#[tokio::test]
async fn a_picture_is_embedded_after_two_transient_faults() {
    for fault in transient_faults() {
        let nvidia = FakeNvidia::replying(vec![fault.clone(), fault, embedding()]).await;
        // The timeout ends the calls that hang.
        let app = TestApp::builder(&nvidia).setting("NVIDIA_TIMEOUT", "200ms").start().await;
        app.upload(ROCKET, "rocket.jpg").await.assert_success();
        assert_eq!(nvidia.count(), 3);
    }
}

/// What is expected if NVIDIA answers an inline call with `status` and an error in JSON. Returns the
/// number of calls, and the status and the code that the client receives.
fn expected_outcome(status: u16) -> (usize, u16, &'static str) {
    match status {
        400 | 413 | 415 | 422 => (1, 422, "embedding_rejected"),
        401 | 403 => (1, 502, "embedding_unauthorized"),
        402 | 404 | 410 => (1, 503, "embedding_exhausted"),
        429 => (3, 503, "embedding_rate_limited"),
        500 | 502 | 503 | 504 => (3, 502, "embedding_unavailable"),
        // JSON without an embedding. HTML with this status is retried: see `transient_faults`.
        200 => (1, 502, "embedding_invalid"),
        _ => (1, 502, "embedding_unavailable"),
    }
}

#[tokio::test]
async fn the_client_gets_the_expected_code_for_each_status_of_nvidia_and_the_picture_is_saved() {
    let calls_by_status = Arc::new(Mutex::new(HashMap::<usize, usize>::new()));
    let counter = Arc::clone(&calls_by_status);
    // NVIDIA responds to picture number 404 with status 404, and so on.
    let nvidia = FakeNvidia::scripted(move |request, _| {
        let status = picture_number(request);
        *counter.lock().unwrap().entry(status).or_default() += 1;
        nvidia_error(u16::try_from(status).unwrap())
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    for status in 200..600 {
        let (calls, client_status, code) = expected_outcome(status);
        let answer = app.upload(&tiny(status.into()), "a.png").await;
        let problem = assert_problem(&answer, client_status, code);
        assert_eq!(calls_by_status.lock().unwrap()[&status.into()], calls, "{status}");
        let saved_as = problem["saved_as"].as_str().unwrap();
        assert_eq!(problem["path"], format!("downloads/{saved_as}"));
        assert_eq!(app.saved_bytes(saved_as), tiny(status.into()));
        assert_eq!(answer.headers.contains_key("retry-after"), status == 429);
    }
}

#[tokio::test]
async fn the_client_gets_an_error_after_three_attempts_with_a_transient_fault() {
    for fault in transient_faults() {
        let (status, code) = match &fault {
            Reply::Hang => (504, "embedding_timeout"),
            Reply::Bytes(bytes) if bytes.starts_with(b"HTTP/1.1 429") => {
                (503, "embedding_rate_limited")
            }
            // `html(200)`. The other faults with this status are `Reply::CloseAfter`.
            Reply::Bytes(bytes) if bytes.starts_with(b"HTTP/1.1 200") => (502, "embedding_invalid"),
            _ => (502, "embedding_unavailable"),
        };
        let nvidia = FakeNvidia::replying(vec![fault]).await;
        // The timeout ends the calls that hang.
        let app = TestApp::builder(&nvidia).setting("NVIDIA_TIMEOUT", "50ms").start().await;
        let problem = assert_problem(&app.upload(ROCKET, "rocket.jpg").await, status, code);
        assert!(problem["saved_as"].is_string());
        assert_eq!(nvidia.count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_99_percent_of_requests_succeed_if_a_tenth_of_the_calls_fail() {
    const REQUESTS: usize = 2000;
    let faults = transient_faults();
    let random = Mutex::new(fastrand::Rng::with_seed(4));
    let nvidia = FakeNvidia::scripted(move |_, _| {
        let mut random = random.lock().unwrap();
        if random.u8(0..10) == 0 {
            faults[random.usize(0..faults.len())].clone()
        } else {
            embedding()
        }
    })
    .await;
    let time_limit = Duration::from_secs(10);
    let app = TestApp::builder(&nvidia)
        // Ends the calls that hang.
        .setting("NVIDIA_TIMEOUT", "300ms")
        .setting("IMAGESVC_REQUEST_TIMEOUT", format!("{time_limit:?}"))
        .start()
        .await;
    let answers: Vec<(Answer, Duration)> = stream::iter(0..REQUESTS)
        .map(async |n| {
            let started = Instant::now();
            (app.upload(&tiny(n), "a.png").await, started.elapsed())
        })
        .buffer_unordered(32)
        .collect()
        .await;
    assert_eq!(answers.len(), REQUESTS);
    let successes = answers.iter().filter(|(answer, _)| answer.status == 200).count();
    assert!(
        successes * 100 >= REQUESTS * 99,
        "99 % of {REQUESTS} requests should succeed, but {successes} did"
    );
    for (answer, elapsed) in answers {
        // A busy machine may delay an answer a little.
        assert!(
            elapsed < time_limit + Duration::from_millis(250),
            "an answer should come within {time_limit:?}, not after {elapsed:?}"
        );
        if answer.status != 200 {
            assert!(answer.json()["code"].as_str().unwrap().starts_with("embedding_"));
        }
    }
    // The service retries the failed calls: about a tenth of all, by chance perhaps fewer. So this
    // asks only for a twentieth.
    let calls = nvidia.count();
    assert!(calls > REQUESTS + REQUESTS / 20, "more calls should be retried: {calls} calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_exhausts_the_retry_budget_and_requests_succeed_right_after_it() {
    const REQUESTS: usize = 1500;
    let has_outage = Arc::new(AtomicBool::new(true));
    let calls_by_picture = Arc::new(Mutex::new(HashMap::<usize, usize>::new()));
    let (shared_has_outage, counter) = (Arc::clone(&has_outage), Arc::clone(&calls_by_picture));
    let nvidia = FakeNvidia::scripted(move |request, _| {
        *counter.lock().unwrap().entry(picture_number(request)).or_default() += 1;
        if shared_has_outage.load(Ordering::SeqCst) { nvidia_error(503) } else { embedding() }
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let answers = stream::iter(0..REQUESTS).map(async |n| app.upload(&tiny(n), "a.png").await);
    let answers: Vec<_> = answers.buffer_unordered(32).collect().await;
    assert!(answers.iter().all(|answer| answer.status == 502));
    let calls_in_outage = {
        let calls_by_picture = calls_by_picture.lock().unwrap();
        let total: usize = calls_by_picture.values().sum();
        // The retry budget is 100 at the start, and grows by one with every fourth picture. So 475
        // retries are possible.
        let max_retries = REQUESTS / 4 + 100;
        assert!(total <= REQUESTS + max_retries, "retries must stay in the budget: {total} calls");
        assert!(total > REQUESTS + 400, "the service should use most of the budget: {total} calls");
        assert!(calls_by_picture.values().all(|calls| *calls <= 3));
        total
    };
    has_outage.store(false, Ordering::SeqCst);
    for n in REQUESTS..REQUESTS + 50 {
        app.upload(&tiny(n), "a.png").await.assert_success();
    }
    let calls = calls_by_picture.lock().unwrap().values().sum::<usize>();
    assert_eq!(calls, calls_in_outage + 50, "each picture after the outage needs one call");
}

#[tokio::test]
async fn a_retry_waits_as_long_as_retry_after_asks() {
    // An HTTP date has full seconds, so this one is at least 1.5 s ahead. At least 1 s of it
    // remains if the service starts within 0.5 s.
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_millis(2500));
    let seconds = || "1".to_owned();
    let cases = [(429, &seconds as &dyn Fn() -> String), (503, &seconds), (429, &date)];
    for (status, make_retry_after) in cases {
        let retry_after = make_retry_after();
        let reply = Reply::new(status, &[("retry-after", &retry_after)], "");
        let nvidia = FakeNvidia::replying(vec![reply, embedding()]).await;
        let app = TestApp::start(&nvidia).await;
        let started = Instant::now();
        app.upload(ROCKET, "rocket.jpg").await.assert_success();
        let elapsed = started.elapsed();
        assert!(
            elapsed >= Duration::from_secs(1),
            "the retry should wait for the Retry-After {retry_after}, not for {elapsed:?}"
        );
        assert_eq!(nvidia.count(), 2);
    }
}

#[tokio::test]
async fn a_retry_after_that_ends_past_the_deadline_is_passed_to_the_client_without_a_retry() {
    // Each wait is longer than the default request timeout of 60 s.
    let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    for (status, retry_after, client_status, code, client_seconds) in [
        (429, "120", 503, "embedding_rate_limited", 120..=120),
        (429, &later, 503, "embedding_rate_limited", 590..=600),
        (503, "61", 502, "embedding_unavailable", 61..=61),
    ] {
        let reply = Reply::new(status, &[("retry-after", retry_after)], "");
        let nvidia = FakeNvidia::replying(vec![reply]).await;
        let app = TestApp::start(&nvidia).await;
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        assert_problem(&answer, client_status, code);
        assert!(client_seconds.contains(&answer.header("retry-after").parse::<u64>().unwrap()));
        assert_eq!(nvidia.count(), 1);
    }
}

#[tokio::test]
async fn a_retry_after_on_one_call_applies_to_all_calls() {
    let nvidia = FakeNvidia::replying(vec![Reply::new(429, &[("retry-after", "120")], "")]).await;
    let app = TestApp::start(&nvidia).await;
    let identical = join_all((0..25).map(|_| app.upload(ROCKET, "rocket.jpg"))).await;
    let other_pictures: Vec<_> = (0..5).map(tiny).collect();
    let other_uploads = other_pictures.iter().map(|picture| app.upload(picture, "tiny.png"));
    let others = join_all(other_uploads).await;
    // This picture is too large for an inline call, so the service would first create an asset.
    let large = app.upload(HUBBLE, "hubble.jpg").await;
    for answer in identical.iter().chain(&others).chain([&large]) {
        assert_problem(answer, 503, "embedding_rate_limited");
        // A part of the 120 s may have passed.
        let wait = answer.header("retry-after").parse::<u64>().unwrap();
        assert!((100..=120).contains(&wait), "{wait}");
    }
    assert_eq!(nvidia.count(), 1);
}

#[tokio::test]
async fn a_picture_that_arrives_while_nvidia_asks_to_wait_is_sent_after_the_wait() {
    let reply = Reply::new(429, &[("retry-after", "1")], "");
    let nvidia = FakeNvidia::replying(vec![reply, embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    let second_upload = async {
        nvidia.wait_for(1).await;
        app.wait_for(|value| {
            value("imagesvc_upstream_calls_total{operation=\"infer\",outcome=\"429\"}") == 1.0
        })
        .await;
        // NVIDIA has asked to wait 1 s. A little of this second may have passed.
        let started = Instant::now();
        app.upload(&tiny(1), "tiny.png").await.assert_success();
        let elapsed = started.elapsed();
        assert!(
            elapsed > Duration::from_millis(700),
            "the picture should wait for nearly a second, not for {elapsed:?}"
        );
    };
    let (first, ()) = tokio::join!(app.upload(ROCKET, "rocket.jpg"), second_upload);
    first.assert_success();
    assert_eq!(nvidia.count(), 3, "one call should be made for each picture, and one retry");
}
