//! NVIDIA's failures: which calls the service retries, and which errors clients see.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, future::join_all, stream};

use crate::{
    errors::nvidia_error,
    support::{
        Answer, FakeNvidia, HUBBLE, ROCKET, Reply, TestApp, assert_problem, embedding,
        picture_number, tiny,
    },
};

const HTML_PAGE: &str = "<!DOCTYPE html>\n<html><title>upstream-secret</title></html>";

fn html(status: u16) -> Reply {
    Reply::new(status, &[("content-type", "text/html")], HTML_PAGE)
}

/// Failures that clients do not notice if the next attempt succeeds.
fn transient_faults() -> Vec<Reply> {
    vec![
        nvidia_error(429),
        nvidia_error(500),
        nvidia_error(502),
        nvidia_error(503),
        nvidia_error(504),
        Reply::status(504),
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
async fn transient_failures_are_retried_and_hidden_from_the_client() {
    for fault in transient_faults() {
        let nvidia = FakeNvidia::replying(vec![fault.clone(), fault, embedding()]).await;
        let app = TestApp::builder(&nvidia).setting("NVIDIA_TIMEOUT", "200ms").start().await;
        app.upload(ROCKET, "rocket.jpg").await.vector();
        assert_eq!(nvidia.lines().len(), 3);
    }
}

/// For a status that NVIDIA answers to an inline inference: the number of calls, and the status and
/// code that the client sees.
fn expected_outcome(status: u16) -> (usize, u16, &'static str) {
    match status {
        400 | 413 | 415 | 422 => (1, 422, "embedding_rejected"),
        401 | 403 => (1, 502, "embedding_unauthorized"),
        402 | 404 | 410 => (1, 503, "embedding_exhausted"),
        429 => (3, 503, "embedding_rate_limited"),
        500 | 502 | 503 | 504 => (3, 502, "embedding_unavailable"),
        200 => (1, 502, "embedding_invalid"),
        _ => (1, 502, "embedding_unavailable"),
    }
}

#[tokio::test]
async fn every_status_becomes_what_the_table_says_and_names_the_saved_picture() {
    let calls = Arc::new(Mutex::new(HashMap::<usize, usize>::new()));
    let counted = Arc::clone(&calls);
    let nvidia = FakeNvidia::scripted(move |request, _| {
        let status = picture_number(request);
        *counted.lock().unwrap().entry(status).or_default() += 1;
        nvidia_error(u16::try_from(status).unwrap())
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    for status in 200..600 {
        let (attempts, expected, code) = expected_outcome(status);
        let answer = app.upload(&tiny(status.into()), "a.png").await;
        let problem = assert_problem(&answer, expected, code);
        assert_eq!(calls.lock().unwrap()[&status.into()], attempts, "{status}");
        let saved_as = problem["saved_as"].as_str().unwrap();
        assert_eq!(problem["path"], format!("downloads/{saved_as}"));
        assert_eq!(app.saved_bytes(saved_as), tiny(status.into()));
        assert_eq!(answer.headers.contains_key("retry-after"), status == 429);
    }
}

#[tokio::test]
async fn lasting_failures_are_reported_after_three_attempts() {
    for fault in transient_faults() {
        let (status, code) = match &fault {
            Reply::Hang => (504, "embedding_timeout"),
            Reply::Bytes(bytes) if bytes.starts_with(b"HTTP/1.1 429") => {
                (503, "embedding_rate_limited")
            }
            Reply::Bytes(bytes) if bytes.starts_with(b"HTTP/1.1 200") => (502, "embedding_invalid"),
            _ => (502, "embedding_unavailable"),
        };
        let nvidia = FakeNvidia::replying(vec![fault]).await;
        let app = TestApp::builder(&nvidia).setting("NVIDIA_TIMEOUT", "50ms").start().await;
        let problem = assert_problem(&app.upload(ROCKET, "rocket.jpg").await, status, code);
        assert!(problem["saved_as"].is_string());
        assert_eq!(nvidia.lines().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_fault_in_ten_calls_ninety_nine_clients_in_a_hundred_are_served() {
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
    let deadline = Duration::from_secs(10);
    let app = TestApp::builder(&nvidia)
        .setting("NVIDIA_TIMEOUT", "300ms")
        .setting("IMAGESVC_REQUEST_TIMEOUT", "10s")
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
    assert_eq!(answers.len(), REQUESTS, "every client gets an answer");
    let served = answers.iter().filter(|(answer, _)| answer.status == 200).count();
    assert!(served * 100 >= REQUESTS * 99, "{served}");
    for (answer, elapsed) in answers {
        assert!(elapsed < deadline + Duration::from_millis(250), "{elapsed:?}");
        if answer.status != 200 {
            assert!(answer.json()["code"].as_str().unwrap().starts_with("embedding_"));
        }
    }
    let calls = nvidia.lines().len();
    assert!(calls > REQUESTS + REQUESTS / 20, "there were faults: {calls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_long_outage_retries_end_with_their_budget_and_service_returns_at_once() {
    const REQUESTS: usize = 1500;
    let is_out = Arc::new(AtomicBool::new(true));
    let calls = Arc::new(Mutex::new(HashMap::<usize, usize>::new()));
    let (out, counted) = (Arc::clone(&is_out), Arc::clone(&calls));
    let nvidia = FakeNvidia::scripted(move |request, _| {
        *counted.lock().unwrap().entry(picture_number(request)).or_default() += 1;
        if out.load(Ordering::SeqCst) { nvidia_error(503) } else { embedding() }
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let answers = stream::iter(0..REQUESTS).map(async |n| app.upload(&tiny(n), "a.png").await);
    let answers: Vec<_> = answers.buffer_unordered(32).collect().await;
    assert!(answers.iter().all(|answer| answer.status == 502));
    {
        let calls = calls.lock().unwrap();
        let total: usize = calls.values().sum();
        assert!(total <= REQUESTS + REQUESTS / 4 + 100, "{total}");
        assert!(total > REQUESTS + 400, "the budget is used: {total}");
        assert!(calls.values().all(|calls| *calls <= 3));
    }
    is_out.store(false, Ordering::SeqCst);
    for n in REQUESTS..REQUESTS + 50 {
        app.upload(&tiny(n), "a.png").await.vector();
    }
    assert_eq!(calls.lock().unwrap().values().sum::<usize>(), nvidia.lines().len());
}

#[tokio::test]
async fn a_wait_that_nvidia_asks_for_is_observed() {
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_millis(2500));
    let seconds = || "1".to_owned();
    for (status, wait) in [(429, &seconds as &dyn Fn() -> String), (503, &seconds), (429, &date)] {
        let wait = wait();
        let reply = Reply::new(status, &[("retry-after", &wait)], "");
        let nvidia = FakeNvidia::replying(vec![reply, embedding()]).await;
        let app = TestApp::start(&nvidia).await;
        let started = Instant::now();
        app.upload(ROCKET, "rocket.jpg").await.vector();
        // A date has no fractions of a second, so this one may be only 1.5 s ahead.
        assert!(started.elapsed() >= Duration::from_secs(1), "{wait}");
        assert_eq!(nvidia.lines().len(), 2);
    }
}

#[tokio::test]
async fn a_wait_beyond_the_deadline_is_not_begun_and_passed_on() {
    let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    for (status, wait, expected, code, seconds) in [
        (429, "120", 503, "embedding_rate_limited", 120..=120),
        (429, &later, 503, "embedding_rate_limited", 590..=600),
        (503, "61", 502, "embedding_unavailable", 61..=61),
    ] {
        let nvidia =
            FakeNvidia::replying(vec![Reply::new(status, &[("retry-after", wait)], "")]).await;
        let app = TestApp::start(&nvidia).await;
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        assert_problem(&answer, expected, code);
        assert!(seconds.contains(&answer.header("retry-after").parse::<u64>().unwrap()));
        assert_eq!(nvidia.lines().len(), 1);
    }
}

#[tokio::test]
async fn a_wait_told_to_one_call_holds_for_all() {
    let nvidia = FakeNvidia::replying(vec![Reply::new(429, &[("retry-after", "120")], "")]).await;
    let app = TestApp::start(&nvidia).await;
    let identical = join_all((0..25).map(|_| app.upload(ROCKET, "rocket.jpg"))).await;
    let others: Vec<_> = (0..5).map(tiny).collect();
    let others = join_all(others.iter().map(|other| app.upload(other, "tiny.png"))).await;
    let large = app.upload(HUBBLE, "hubble.jpg").await;
    for answer in identical.iter().chain(&others).chain([&large]) {
        assert_problem(answer, 503, "embedding_rate_limited");
        let wait = answer.header("retry-after").parse::<u64>().unwrap();
        assert!((100..=120).contains(&wait), "{wait}");
    }
    assert_eq!(nvidia.lines().len(), 1);
}

#[tokio::test]
async fn a_picture_that_arrives_during_a_wait_is_sent_after_it() {
    let reply = Reply::new(429, &[("retry-after", "1")], "");
    let nvidia = FakeNvidia::replying(vec![reply, embedding()]).await;
    let app = TestApp::start(&nvidia).await;
    let second = async {
        nvidia.wait_for(1).await;
        app.wait_for(|value| {
            value("imagesvc_upstream_calls_total{operation=\"infer\",outcome=\"429\"}") == 1.0
        })
        .await;
        let told = Instant::now();
        app.upload(&tiny(1), "tiny.png").await.vector();
        assert!(told.elapsed() > Duration::from_millis(700), "{:?}", told.elapsed());
    };
    let (first, ()) = tokio::join!(app.upload(ROCKET, "rocket.jpg"), second);
    first.vector();
    assert_eq!(nvidia.lines().len(), 3);
}
